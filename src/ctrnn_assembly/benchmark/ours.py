"""Our solvers as contestants: the one place where they are made."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.benchmark.task import Task
from ctrnn_assembly.solvers import solve


def ours(problem: Problem, **settings: Any) -> Task:
    """The last state by `solve`, with the settings of a backend."""

    def last() -> Tensor:
        given = {"u": problem.u, "dt": problem.size.dt, "save": "last", **settings}
        return solve(problem.terms, problem.x0, **given).last

    return Task(last, problem.parameters)
