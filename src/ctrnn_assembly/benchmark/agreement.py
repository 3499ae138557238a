"""Correctness before speed: a contestant must find the states and gradients of the plain loop.

The plain loop runs in float64, the contestant in float32, both for a few steps of the given n. Only
entries that are free are compared: where L is zero by its pairs, or W by being diagonal, a solver that
uses the zeros has no gradient to give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctrnn_assembly.benchmark.contestants import Contestant
from ctrnn_assembly.benchmark.problem import Problem, Size, coupled, make_problem
from ctrnn_assembly.errors import SolverError

STEPS, BATCH = 8, 4


def check_agreement(
    contestants: Sequence[Contestant], size: Size, coupling: str, device: str
) -> list[dict[str, Any]]:
    """The relative differences of every contestant from the plain loop of its steps.

    Raises:
        SolverError: naming the first that differs by more than its tolerance.
    """
    return [
        _compare(contestant, _few(size), coupling, device)
        for contestant in contestants
        if contestant.tolerance is not None
    ]


def refusal(contestant: Contestant, size: Size, coupling: str, device: str) -> str | None:
    """Why a contestant cannot run here, in its own words; None if it can."""
    try:
        contestant.build(
            make_problem(_few(size), coupling, contestant.blocks, device=device)
        ).gradients()
    except SolverError as error:
        return str(error)
    return None


def _few(size: Size) -> Size:
    return replace(size, batch=min(size.batch, BATCH), steps=min(size.steps, STEPS))


def _compare(contestant: Contestant, size: Size, coupling: str, device: str) -> dict[str, Any]:
    exact = make_problem(size, coupling, contestant.blocks, dtype=torch.float64)
    problem = make_problem(size, coupling, contestant.blocks, device=device)
    wanted, found = contestant.reference(exact), contestant.build(problem)
    with torch.no_grad():
        states = _difference(found.last(), wanted.last())
    differences = [
        _difference(_free(a, problem, leaf), _free(b, problem, leaf))
        for a, b, leaf in zip(found.gradients(), wanted.gradients(), problem.parameters, strict=True)
    ]
    gradients = math.nan if any(map(math.isnan, differences)) else max(differences)
    assert contestant.tolerance is not None
    # Written so that NaN is refused: it is never within the tolerance.
    if not (states <= contestant.tolerance and gradients <= contestant.tolerance):
        raise SolverError(
            f"{contestant.name} with coupling {coupling} on {device} differs from the plain loop by "
            f"{states:.2g} in its states and {gradients:.2g} in its gradients (relative norms; at most "
            f"{contestant.tolerance:g} is accepted). Nothing was timed; leave it out, and report it."
        )
    return {
        "name": contestant.name,
        "coupling": coupling,
        "device": device,
        "states": states,
        "gradients": gradients,
        "tolerance": contestant.tolerance,
    }


def _free(gradient: Tensor, problem: Problem, leaf: Tensor) -> Tensor:
    """A gradient, zero where the leaf is zero by construction."""
    gradient = gradient.cpu()
    if leaf is problem.terms.L:
        return gradient * coupled(problem)
    if problem.blocks == "diagonal" and gradient.ndim == 2 and leaf is not problem.terms.W_in:
        return gradient.diagonal()
    return gradient


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted; 0 where both are zero, as behind a unit that is off."""
    return float((found.cpu().double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
