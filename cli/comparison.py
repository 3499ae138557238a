"""The results of an experiment beside the published figures: one line a row, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctrnn_assembly.errors import ConfigError
from ctrnn_cli.experiments import Experiment, Job, Row, difference, jobs
from ctrnn_cli.results import config_of, read_result

ACCURACIES = {
    "val_accuracy": "validation, which selects",
    "test_accuracy": "selected by validation",
    "best_epoch_accuracy": "best test epoch",
    "final_epoch_accuracy": "last epoch",
}


def result_path(results: Path, job: Job) -> Path:
    """Where the result of a run is kept."""
    return results / job.folder / f"{job.name}.json"


def read_results(results: Path, experiment: Experiment, *, fast: bool = False) -> list[dict[str, Any]]:
    """The results of an experiment's rows that are there, of any seed.

    Raises:
        ConfigError: for a result of other settings than the experiment has now.
    """
    found = []
    for row in experiment.rows:
        folder = results / Job(experiment, row, 0, fast).folder
        for path in sorted(folder.glob(f"{row.name}-seed*.json"), key=_seed):
            if path.name == f"{row.name}-seed{_seed(path)}.json":
                found.append(checked_result(path, Job(experiment, row, _seed(path), fast)))
    return found


def _seed(path: Path) -> int:
    digits = path.stem.rpartition("-seed")[2]
    return int(digits) if digits.isdecimal() else -1


def checked_result(path: Path, job: Job) -> dict[str, Any]:
    """The result of a run.

    Raises:
        DataError: if it is damaged; ConfigError: if it is of other settings.
    """
    result = read_result(path)
    reason = difference(config_of(result), job.config())
    if not reason and bool(result["fast"]) != job.fast:
        reason = f"fast {result['fast']} for {job.fast}"
    if not reason and result.get("measures", {}) != job.experiment.measures():
        reason = "other solvers to test with, or other epochs to measure exponents of"
    if reason:
        raise ConfigError(
            f"{path} is of other settings than {job.experiment.name} has now ({reason}). Delete it to "
            "run again."
        )
    return result


def compare(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a row: published figures, ours, certificate, parameters, seconds."""
    return [line(row, [r for r in results if r["row"] == row.name]) for row in rows]


def line(row: Row, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ours in per cent; None for what is not known, and nothing but the published without a run."""
    done = [result for result in results if "stopped" not in result]
    return {
        "row": row.name,
        "published": [figure.model_dump() for figure in row.published],
        "n": len(done),
        "stopped": len(results) - len(done),
        **{name: spread([result[name] for result in done]) for name in ACCURACIES},
        "certificate": verdict([result["certificate"] for result in done]),
        "certificate_initial": verdict([result["certificate_initial"] for result in done]),
        "parameters": done[0]["parameters"] if done else None,
        "seconds": mean([result["seconds"] for result in done]),
        "hardware": sorted({result["hardware"] for result in results}),
    }


def spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation in per cent; that of a single run is None."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "std": deviation, "min": min(known), "max": max(known)}


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return statistics.fmean(values) if values else None


def verdict(certificates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How many are certified, in continuous time and in the step, and the smallest certified rate."""
    if not certificates:
        return None
    proven = [c["rate"] for c in certificates if c["certified"]]
    steps = [c for c in certificates if (c.get("discrete") or {}).get("certified")]
    return {
        "of": len(certificates),
        "certified": len(proven),
        "rate": min(proven, default=None),
        "discrete": len(steps),
    }


def ours(value: dict[str, float | None] | None) -> str:
    """mean ± std in per cent."""
    if value is None:
        return "-"
    return f"{value['mean']:.2f}" + ("" if value["std"] is None else f" ± {value['std']:.2f}")


def yes(count: int, of: int) -> str:
    """yes, no, or how many of them."""
    return {0: "no", of: "yes"}.get(count, f"{count} of {of}")


def runs_text(one: dict[str, Any]) -> str:
    """The number of runs, and how many of them stopped before their end."""
    return str(one["n"]) + (f" + {one['stopped']} stopped" if one["stopped"] else "")


def state(experiment: Experiment, results: Sequence[dict[str, Any]], *, fast: bool = False) -> str:
    """Whether it was run: "not yet run", "3 of 44 runs", or "all 44 runs"."""
    planned = [(job.row.name, job.seed) for job in jobs(experiment, fast=fast)]
    there = {(result["row"], result["seed"]) for result in results}
    done = sum(one in there for one in planned)
    if not done:
        return "not yet run"
    return f"all {done} runs" if done == len(planned) else f"{done} of {len(planned)} runs"
