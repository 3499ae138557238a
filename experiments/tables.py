"""Write the tables of experiments/README.md and README.md from the files in experiments/results/.

    python experiments/tables.py            # rewrites what is between the markers
    python experiments/tables.py --check    # exit code 1 if that would change a file

Only runs that are in experiments/results/ are in the tables; nothing is filled in by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctrnn_assembly.training.run import write
from ctrnn_cli.comparison import compare, ours, read_results, runs_text, state, yes
from ctrnn_cli.costs import lasting
from ctrnn_cli.experiments import Experiment, Figure, experiment_names, load_experiment
from ctrnn_cli.reproduce import summary

ROOT = Path(__file__).resolve().parents[1]
Table = list[list[str]]


def between(text: str, made: str, name: str, block: str) -> str:
    """The text with what is between the markers of a block replaced."""
    begin, end = (f"<!-- experiments/tables.py, {block}: {edge} -->" for edge in ("begin", "end"))
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"error: {name} must hold the lines {begin} and {end}.")
    return f"{before}{begin}\n\n{made.strip()}\n\n{end}{after}"


def markdown(header: Sequence[str], rows: Table) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def all_tables(results: Path) -> str:
    """For experiments/README.md: the index, then every experiment that has been run."""
    parts = [index(results)]
    for experiment, there in read_all(results):
        if there:
            parts.append(section(experiment, there))
    return "\n\n".join(parts)


def read_all(results: Path) -> Iterator[tuple[Experiment, list[dict[str, Any]]]]:
    """Every experiment with its results."""
    for name in experiment_names():
        experiment = load_experiment(name)
        yield experiment, read_results(results, experiment)


def index(results: Path) -> str:
    """All experiments: command, runs, what they cost, whether they were run."""
    columns = ("about", "source", "runs", "cost", "published", "state")
    rows = []
    for name in experiment_names():
        one = summary(load_experiment(name), results)
        rows.append([f"`ctrnn reproduce {name}`", *(str(one[column]) for column in columns)])
    header = ("command", "what", "source", "runs", "time", "highest published", "run")
    return markdown(header, rows)


def section(experiment: Experiment, there: list[dict[str, Any]]) -> str:
    """One experiment: published and ours, row by row, and what else was measured."""
    lines = compare(experiment.rows, there)
    commits = sorted({str(result["commit"])[:10] for result in there})
    machines = sorted({f"{result['hardware']}, {result['threads']} thread(s)" for result in there})
    parts = [
        f"### {experiment.name}",
        f"{experiment.about}. Source: {experiment.source}. `ctrnn reproduce {experiment.name}`, "
        f"{state(experiment, there)}. On {'; '.join(machines)}. Commit {', '.join(commits)}.",
        markdown(COLUMNS, [cells(line) for line in lines]),
    ]
    if experiment.evaluate:
        parts.append(swapped(experiment, there))
    if experiment.lyapunov:
        parts.append(exponents(experiment, there))
    return "\n\n".join(parts)


COLUMNS = (
    "row",
    "published",
    "ours",
    "n",
    "best test epoch",
    "last epoch",
    "certified before",
    "certified after",
    "rate >=",
    "step certified",
    "parameters",
    "time a run",
)


def cells(line: dict[str, Any]) -> list[str]:
    """A row of a section's table."""
    published = published_text(line)
    if not line["n"] and not line["stopped"]:
        return [line["row"], published, "not yet run", *["-"] * (len(COLUMNS) - 3)]
    after, before = line["certificate"], line["certificate_initial"]
    return [
        line["row"],
        published,
        ours(line["test_accuracy"]),
        runs_text(line),
        ours(line["best_epoch_accuracy"]),
        ours(line["final_epoch_accuracy"]),
        "-" if before is None else yes(before["certified"], before["of"]),
        "-" if after is None else yes(after["certified"], after["of"]),
        rate_text(after),
        "-" if after is None else yes(after["discrete"], after["of"]),
        "-" if line["parameters"] is None else f"{line['parameters']:,}",
        "-" if line["seconds"] is None else lasting(line["seconds"]),
    ]


def published_text(line: dict[str, Any]) -> str:
    """The published figures of a row, with their notes."""
    figures = [Figure(**figure) for figure in line["published"]]
    return "; ".join(f"{f}{f', {f.note}' if f.note else ''}" for f in figures) or "-"


def rate_text(verdict: dict[str, Any] | None) -> str:
    """The smallest certified rate."""
    return "-" if verdict is None or verdict["rate"] is None else f"{verdict['rate']:.4g}"


def swapped(experiment: Experiment, there: list[dict[str, Any]]) -> str:
    """Test accuracy of the same weights by solver: mean over seeds."""
    names = [one.name for one in experiment.evaluate]
    rows = []
    for row in experiment.rows:
        found = [r for r in there if r["row"] == row.name and r.get("evaluate")]
        by_name = [[e for r in found for e in r["evaluate"] if e["name"] == name] for name in names]
        rows.append([row.name, *(swapped_cell(entries) for entries in by_name)])
    return (
        "Tested with other solvers and steps (test accuracy; certificate of the step):\n\n"
        + markdown(["row", *names], rows)
    )


def swapped_cell(entries: list[dict[str, Any]]) -> str:
    """Mean accuracy, whether the step of that solver is certified, and how many it could not solve."""
    done = [e for e in entries if e["test_accuracy"] is not None]
    failed = f"{len(entries) - len(done)} failed" if len(done) < len(entries) else ""
    if not done:
        return failed or "-"
    steps = [(e["certificate"]["discrete"] or {}).get("certified", False) for e in done]
    mean = 100 * sum(e["test_accuracy"] for e in done) / len(done)
    return f"{mean:.2f} ({yes(sum(steps), len(steps))})" + (f", {failed}" if failed else "")


def exponents(experiment: Experiment, there: list[dict[str, Any]]) -> str:
    """Largest exponent and certified rate over training, of the first seed."""
    by_row = {r["row"]: r["lyapunov"] for r in reversed(there) if r.get("lyapunov")}
    header = ["epoch"]
    for row in by_row:
        header += [f"{row}: of the step", "of the flow", "rate >="]
    epochs = sorted({one["epoch"] for found in by_row.values() for one in found})
    rows = []
    for epoch in epochs:
        cells = [str(epoch)]
        for found in by_row.values():
            one = next((one for one in found if one["epoch"] == epoch), None)
            cells += ["-", "-", "-"] if one is None else exponent_cells(one)
        rows.append(cells)
    about = (
        "Largest finite-time exponent of the trained step and, at a tenth of it, of the flow: mean, and "
        "range over the images; and the certified rate, which bounds the flow:"
    )
    return f"{about}\n\n{markdown(header, rows)}"


def exponent_cells(one: dict[str, Any]) -> list[str]:
    """The exponents, overflow where the state did; the rate, no where it is not certified."""
    rate = f"{one['rate']:.4g}" if one["certified"] else "no"
    return [*(exponent_cell(one[name], one[f"{name}_range"]) for name in ("step", "flow")), rate]


def exponent_cell(mean: float | None, around: list[float] | None) -> str:
    """Mean and range."""
    if mean is None or around is None:
        return "overflow"
    return f"{mean:.4f} ({around[0]:.3f} to {around[1]:.3f})"


def highlights(results: Path) -> str:
    """For README.md: rows beside a published figure; by validation the best with and without proof."""
    rows = []
    for experiment, there in read_all(results):
        lines = [line for line in compare(experiment.rows, there) if line["n"]]
        for line in chosen(lines):
            after = line["certificate"]
            rows.append(
                [
                    f"{experiment.name}, {line['row']}",
                    published_text(line),
                    f"{ours(line['test_accuracy'])} (n={line['n']})",
                    ours(line["best_epoch_accuracy"]),
                    yes(after["certified"], after["of"]),
                    rate_text(after),
                    yes(after["discrete"], after["of"]),
                    "; ".join(line["hardware"]),
                ]
            )
    if not rows:
        return "No experiment has been run yet."
    header = ("experiment, row", "published", "ours", "best test epoch", "certified", "rate >=")
    return markdown((*header, "step certified", "hardware"), rows)


def chosen(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What README.md shows of an experiment."""
    beside = [line for line in lines if line["published"]]
    best = []
    for certified in (True, False):
        kind = [
            ln
            for ln in lines
            if (ln["certificate"]["certified"] == ln["certificate"]["of"]) is certified
        ]
        selected = [line for line in kind if line["val_accuracy"]]  # a final run holds nothing out
        best += sorted(selected, key=lambda line: -line["val_accuracy"]["mean"])[:1]
    return [line for line in lines if line in beside or line in best]


def speed(results: Path) -> str:
    """Forward and backward of the newest `experiments/speed.py`: ours, and how many times the others."""
    files = sorted(results.glob("*-speed-*.json"))
    if not files:
        return "Not measured yet."
    kept = json.loads(files[-1].read_text(encoding="utf-8"))
    size = kept["runs"][0]
    about = (
        f"Forward and backward of {size['n']} units as {size['modules']} x {size['units']} over "
        f"{size['steps']} steps, {kept['threads']} thread(s) of {kept['hardware']}, torch "
        f"{kept['versions']['torch']}, {kept['date']}: medians of {size['rounds']} rounds, "
        "and how many times as long the others took. share: of the rate of the machine's own product "
        "of 128 x n x n."
    )
    columns = [(run, coupling) for run in kept["runs"] for coupling in ("all", "random:20", "random:5")]
    names = list(dict.fromkeys(row["name"] for row in size["rows"]))
    ours_first = [name for name in names if name in ("ours-adjoint", "ours-adadiag-adjoint")]
    others = [name for name in names if not name.startswith("ours-")]
    rows = [[name, *(own_cell(*column, name) for column in columns)] for name in ours_first]
    rows += [[name, *(times_cell(*column, name) for column in columns)] for name in others]
    header = ["", *(f"{coupling}, batch {run['batch']}" for run, coupling in columns)]
    return f"{about}\n\n{markdown(header, rows)}"


def timing(run: dict[str, Any], coupling: str, name: str) -> dict[str, Any] | None:
    """The row of a contestant; that of all pairs where the coupling means nothing to it."""
    rows = [row for row in run["rows"] if row["name"] == name and row["kind"] == "forward_backward"]
    fits = [row for row in rows if row["coupling"] == coupling]
    return (fits or (rows if name.startswith("nn.") else []) or [None])[0]


def own_cell(run: dict[str, Any], coupling: str, name: str) -> str:
    """Milliseconds, and the share of the limit."""
    row = timing(run, coupling, name)
    return "-" if row is None else f"{1000 * row['median_s']:.0f} ms, share {100 * row['share']:.0f} %"


def times_cell(run: dict[str, Any], coupling: str, name: str) -> str:
    """How many times as long as ours-adjoint: by medians."""
    row, own = timing(run, coupling, name), timing(run, coupling, "ours-adjoint")
    return "-" if row is None or own is None else f"{row['median_s'] / own['median_s']:.1f} times"


TARGETS: dict[str, dict[str, Callable[[Path], str]]] = {
    "experiments/README.md": {"results": all_tables},
    "README.md": {"speed": speed, "results": highlights},
}


def tabulated(name: str, root: Path = ROOT) -> tuple[str, str]:
    """A file as it is, and as it would be made."""
    text = made = (root / name).read_text(encoding="utf-8")
    for block, make in TARGETS[name].items():
        made = between(made, make(root / "experiments" / "results"), name, block)
    return text, made


if __name__ == "__main__":
    stale = False
    for name in TARGETS:
        text, made = tabulated(name)
        stale |= text != made
        if text != made and "--check" not in sys.argv[1:]:
            write(ROOT / name, made)
            print(f"written: {name}")
    sys.exit(int(stale and "--check" in sys.argv[1:]))
