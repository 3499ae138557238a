"""Results, one JSON file a run, and what they say beside the published accuracies, row by row.

A result is the run's summary.json (docs/reference/files.md) with

    experiment, row, fast     what it is a run of
    measures                  what the experiment measured besides: `Experiment.measures`
    evaluate, lyapunov        what came of that
    stopped                   instead of accuracies and certificates, why the run did not end
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from ctrnn_assembly.certificates.result import down
from ctrnn_assembly.data.targets import MEASURES
from ctrnn_assembly.errors import ConfigError, refusing
from ctrnn_assembly.reproduction.experiments import Experiment, Job, PublishedAccuracy, Row
from ctrnn_assembly.training.config import TrainConfig, difference, make_config
from ctrnn_assembly.training.run import lasting, write

Record = dict[str, Any]  # a result, or a line of what is made of several
ACCURACIES = ("val_accuracy", "test_accuracy", "best_epoch_accuracy", "final_epoch_accuracy")


def keep_result(results: Path, job: Job, result: Record) -> None:
    """Write a result, one line a key, whole or not at all."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
    write(results / f"{job.path}.json", "{\n" + ",\n".join(lines) + "\n}\n")


def checked_result(results: Path, job: Job) -> Record:
    """The result of a run; DataError if it is damaged, ConfigError if it is of other settings."""
    path = results / f"{job.path}.json"
    with refusing(f"{path} is not the result of a run", "Delete it to run again."):
        result: Record = json.loads(path.read_text(encoding="utf-8"))
        fast, stored = result["fast"], result["config"]
    # Settings that are gone by now are left out.
    config = make_config({k: v for k, v in stored.items() if k in TrainConfig.model_fields})
    measured = result.get("measures", {}) == job.experiment.measures()
    other = (
        difference(config, job.config())
        or (fast != job.fast and f"fast {fast} for {job.fast}")
        or (not measured and "other solvers to test with, or other epochs to measure exponents of")
    )
    if other:
        of = f"{path} is of other settings than {job.experiment.name} has now ({other})"
        raise ConfigError(f"{of}. Delete it to run again.")
    return result


def read_results(results: Path, experiment: Experiment, *, fast: bool = False) -> list[Record]:
    """The results of an experiment's rows that are there, of any seed, as `checked_result`."""
    found = []
    for row in experiment.rows:
        folder = (results / Job(experiment, row, 0, fast).path).parent
        endings = (path.stem.removeprefix(f"{row.name}-seed") for path in folder.glob("*.json"))
        seeds = sorted(int(ending) for ending in endings if ending.isdecimal())
        found += [checked_result(results, Job(experiment, row, seed, fast)) for seed in seeds]
    return found


def compare(rows: Sequence[Row], results: Sequence[Record], against: str | None = None) -> list[Record]:
    """A line a row: published, ours in per cent, certificate, ...; `paired` with the row `against`."""
    reference = [result for result in results if result["row"] == against and "stopped" not in result]
    lines = []
    for row in rows:
        found = [result for result in results if result["row"] == row.name]
        done = [result for result in found if "stopped" not in result]
        line = {
            "row": row.name,
            "task": sorted({result["task"] for result in found}),
            "published": [one.model_dump() for one in row.published],
            "n": len(done),
            "stopped": len(found) - len(done),
            "parameters": done[0]["parameters"] if done else None,
            "seconds": statistics.fmean(result["seconds"] for result in done) if done else None,
            "hardware": sorted({result["hardware"] for result in found}),
        }
        line |= {name: spread([result[name] for result in done]) for name in ACCURACIES}
        if against is not None:
            line |= {"against": against, "difference": paired(done, reference)}
        certificates = ("certificate", "certificate_initial")
        lines.append(line | {key: verdict([result[key] for result in done]) for key in certificates})
    return lines


def spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation in per cent; that of a single run is None."""
    if not (known := [100 * value for value in values if value is not None]):
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "std": deviation, "min": min(known), "max": max(known)}


def paired(one: Sequence[Record], other: Sequence[Record]) -> dict[str, float | int] | None:
    """Mean difference of test accuracies over common seeds, in per cent, and `half_interval`; None of
    fewer than two seeds."""
    ours, theirs = ({r["seed"]: r["test_accuracy"] for r in results} for results in (one, other))
    differences = [100 * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
    half, n = half_interval(differences), len(differences)
    return None if half is None else {"mean": statistics.fmean(differences), "half": half, "n": n}


def half_interval(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean of n normal values, t_{.975, n - 1} s / sqrt(n); None of one."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5) if n > 1 else None


def verdict(certificates: Sequence[Record]) -> Record | None:
    """How many are certified, in continuous time and in the step, and the smallest certified rate."""
    if not certificates:
        return None
    proven = [c["rate"] for c in certificates if c["certified"]]
    steps = sum((c.get("discrete") or {}).get("certified", False) for c in certificates)
    rate = min(proven, default=None)
    return {"of": len(certificates), "certified": len(proven), "rate": rate, "discrete": steps}


def means(runs: Sequence[Record], part: str = "test") -> Record:
    """What finished runs come to, from their summaries: means of the measures of a part and of seconds,
    each with its `half_interval`, how many are certified, and the smallest rate."""
    found: Record = {}
    for name in [*(f"{part}_{key}" for key in MEASURES), "seconds"]:
        if reached := [one[name] for one in runs if one.get(name) is not None]:
            found |= {name: statistics.fmean(reached), f"{name}_half_interval": half_interval(reached)}
    if (proven := verdict([one["certificate"] for one in runs])) is not None:
        found |= {"certified": proven["certified"], "step_certified": proven["discrete"]}
        found |= {"rate": proven["rate"], "parameters": runs[0]["parameters"]}
    return found


def cells(line: Record) -> dict[str, str]:
    """A line of `compare` as a table shows it: text by column."""
    after, before = line["certificate"], line["certificate_initial"]
    published = [PublishedAccuracy.model_validate(one) for one in line["published"]]
    noted = (f"{one}{f', {one.note}' if one.note else ''}" for one in published)
    stopped = f" + {line['stopped']} stopped" if line["stopped"] else ""
    n = f"{line['n']}{stopped}" if line["n"] or stopped else "-"
    difference = {}
    if "against" in line:
        d, own = line["difference"], line["row"] == line["against"]
        shown = "-" if d is None or own else f"{d['mean']:+.2f} ± {d['half']:.2f} (n={d['n']})"
        difference = {f"paired with {line['against']}, 95 %": shown}
    return {
        "row": line["row"],
        "task": "; ".join(line["task"]) or "-",
        "published": "; ".join(noted) or "-",
        "ours": ours(line["test_accuracy"]) if n != "-" else "not yet run",
        "n": n,
        **difference,
        "best test epoch": ours(line["best_epoch_accuracy"]),
        "last epoch": ours(line["final_epoch_accuracy"]),
        "certified before": "-" if before is None else yes(before["certified"], before["of"]),
        "certified after": "-" if after is None else yes(after["certified"], after["of"]),
        "rate >=": "-" if after is None or after["rate"] is None else down(after["rate"]),
        "step certified": "-" if after is None else yes(after["discrete"], after["of"]),
        "parameters": "-" if line["parameters"] is None else f"{line['parameters']:,}",
        "time a run": "-" if line["seconds"] is None else lasting(line["seconds"]),
    }


def summary(experiment: Experiment, results: Sequence[Record]) -> Record:
    """An experiment in a line: what it is, its rows and runs, and the seconds that they took."""
    planned = {(job.row.name, job.seed) for job in experiment.jobs()}
    published = [(one, row.name) for row in experiment.rows for one in row.published]
    highest = max(published, key=lambda one: one[0].value, default=None)
    return {
        "experiment": experiment.name,
        "about": experiment.about,
        "source": experiment.source,
        "rows": [row.name for row in experiment.rows],
        "runs": len(planned),
        "done": len(planned & {(result["row"], result["seed"]) for result in results}),
        "seconds": sum(result.get("seconds", 0.0) for result in results),
        "published": "-" if highest is None else f"{highest[0]}: {highest[1]}",
    }


def summary_cells(line: Record) -> dict[str, str]:
    """A `summary` as a table shows it: text by column."""
    done, runs = line["done"], line["runs"]
    return {
        "command": f"ctrnn reproduce {line['experiment']}",
        "what": line["about"],
        "source": line["source"],
        "runs": str(runs),
        "time": lasting(line["seconds"]) if done else "-",
        "highest published": line["published"],
        "run": {0: "not yet run", runs: f"all {runs} runs"}.get(done, f"{done} of {runs} runs"),
    }


def ours(value: dict[str, float | None] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.2f}" + ("" if value["std"] is None else f" ± {value['std']:.2f}")


def yes(count: int, of: int) -> str:
    return {0: "no", of: "yes"}.get(count, f"{count} of {of}")
