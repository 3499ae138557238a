"""torchdyno's assembly core, where it is installed: the same weights, coupling and step.

Its input matrix is created as (m, n) and used as (n, m), so ours is put in its place; it stays frozen,
as it is there. In evaluation the core reuses the matrices of its first call.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.benchmark.task import Task

MODULE = "torchdyno.models.rnn_assembly"


def is_installed() -> bool:
    """Whether torchdyno can be timed."""
    return find_spec("torchdyno") is not None


def adadiag(problem: Problem) -> Task:
    """Diagonal blocks, bounded by tanh."""
    return _core(problem, "tanh")


def scn(problem: Problem) -> Task:
    """Blocks without a constraint, trained."""
    return _core(problem, None)


def scn_frozen(problem: Problem) -> Task:
    """Sparse blocks, frozen."""
    return _core(problem, "fixed")


def _core(problem: Problem, constrained: Literal["tanh", "fixed"] | None) -> Task:
    core = build_core(problem, constrained)
    sequence = problem.u.transpose(0, 1)

    def last() -> Tensor:
        core.train(torch.is_grad_enabled())
        return core.compute_states(sequence)[-1]

    used = (core._blocks._blocks, core._couplings._couplings)
    return Task(last, [tensor for tensor in used if tensor.requires_grad])


def build_core(problem: Problem, constrained: Literal["tanh", "fixed"] | None) -> Any:
    """torchdyno's module with the weights, the coupling and the step of a problem."""
    assembly = import_module(MODULE).RNNAssembly
    terms, k = problem.terms, problem.size.units
    assert terms.L is not None
    assert terms.W_in is not None
    L = terms.L.detach().cpu()
    couplings = [L[i * k : (i + 1) * k, j * k : (j + 1) * k] for i, j in problem.pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it copies a tensor by torch.tensor
        core = assembly(
            input_size=1,
            out_size=1,
            blocks=[W.detach().cpu() for W in terms.blocks],
            coupling_blocks=couplings,
            coupling_topology=list(problem.pairs),
            eul_step=problem.size.dt,
            activation="relu",
            constrained_blocks=constrained,
        )
    core._input_mat = nn.Parameter(terms.W_in.detach().clone(), requires_grad=False)
    return core.to(problem.device)
