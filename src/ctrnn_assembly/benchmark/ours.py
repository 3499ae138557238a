"""Our solvers as contestants: the one place where they are made."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from ctrnn_assembly.benchmark.problem import Problem
from ctrnn_assembly.benchmark.task import Task
from ctrnn_assembly.solvers import solve

KNOWN = inspect.signature(solve).parameters


def ours(problem: Problem, **settings: Any) -> Task:
    """The last state by `solve`, with the settings of a backend."""
    given = {"u": problem.u, "dt": problem.size.dt, "save": "last", **_known(settings)}

    def last() -> Tensor:
        return solve(problem.terms, problem.x0, **given).last

    return Task(last, problem.parameters)


def is_supported(settings: dict[str, Any]) -> bool:
    """Whether `solve` has the settings of a contestant."""
    return _known(settings).keys() <= KNOWN.keys()


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the name of the one backend, as long as `solve` has no other."""
    if settings.get("backend") == "adjoint" and "backend" not in KNOWN:
        return {name: value for name, value in settings.items() if name != "backend"}
    return settings
