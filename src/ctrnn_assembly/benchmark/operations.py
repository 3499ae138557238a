"""The operations that a solve needs, a multiplication and an addition counted as two.

One step forward multiplies every sample with every entry of the coupling and of the weights once. The
backward pass does the same with the transposed matrices, for the adjoint, and once more for the
gradient of every entry that is trained. Elementwise work and the single input are left out: a share of
the product rate that is computed from these is what was used of it, whatever a contestant did besides.
"""

from __future__ import annotations

from typing import Literal

from ctrnn_assembly.benchmark.problem import Problem

Kind = Literal["forward", "forward_backward"]
KINDS: tuple[Kind, ...] = ("forward", "forward_backward")


def coupling_entries(problem: Problem) -> int:
    """n^2 where L is dense, 2 C k^2 for C pairs of modules of k units."""
    k = problem.size.units
    return problem.size.n**2 if problem.dense else 2 * len(problem.pairs) * k**2


def weight_entries(problem: Problem) -> int:
    """Of the modules: n for diagonal ones, p k^2 for dense ones, those not 0 for sparse ones."""
    if problem.blocks == "diagonal":
        return problem.size.n
    if problem.blocks == "sparse":
        return int(sum(int(W.count_nonzero()) for W in problem.terms.blocks))
    return problem.size.modules * problem.size.units**2


def assembly_operations(problem: Problem, kind: Kind) -> int:
    """Of one Euler solve: 6 T batch (n^2 + p k^2) forward and backward, if all is dense and trained."""
    passes = 2 * problem.size.steps * problem.size.batch
    coupling, weights = coupling_entries(problem), weight_entries(problem)
    if kind == "forward":
        return passes * (coupling + weights)
    frozen = problem.blocks == "sparse"
    return passes * (3 * coupling + (2 if frozen else 3) * weights)


def imex_operations(problem: Problem, kind: Kind) -> int:
    """Of one IMEX solve, whose two matrices are dense whatever the coupling is."""
    entries = 2 * problem.size.n**2 + weight_entries(problem)
    return 2 * problem.size.steps * problem.size.batch * entries * (1 if kind == "forward" else 3)


def recurrent_operations(problem: Problem, kind: Kind, gates: int) -> int:
    """Of nn.RNN (1 gate) and nn.LSTM (4): n^2 entries a gate."""
    entries = gates * problem.size.n**2
    return 2 * problem.size.steps * problem.size.batch * entries * (1 if kind == "forward" else 3)
