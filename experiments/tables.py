"""Write the tables of experiments/README.md and README.md from the files in experiments/results/.

    python experiments/tables.py            # rewrites what is between the markers
    python experiments/tables.py --check    # exit code 1 if that would change a file

Only runs that are in experiments/results/ are in the tables; nothing is filled in by hand.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctrnn_assembly.reproduction.experiments import Experiment, experiment_names, load_experiment
from ctrnn_assembly.reproduction.results import (
    cells,
    compare,
    read_results,
    summary,
    summary_cells,
    yes,
)
from ctrnn_assembly.training.run import write

ROOT = Path(__file__).resolve().parents[1]
Results = list[dict[str, Any]]
# What README.md shows: a certified net beside the published one, each task, and another solver.
HIGHLIGHTS = (
    ("japanese-vowels-equal", "gated"),
    ("japanese-vowels-equal", "noisy-sparse-combo-imex"),
    ("digits", "svd-combo"),
    ("smnist-14", "adadiag-constant-c20"),
    ("psmnist-14", "adadiag-constant-c20"),
    ("solver-swap", "svd-combo"),
)


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table of rows of cells by column."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(text: str, made: str, name: str, block: str) -> str:
    """The text with what is between the markers of a block replaced."""
    begin, end = (f"<!-- experiments/tables.py, {block}: {edge} -->" for edge in ("begin", "end"))
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"error: {name} must hold the lines {begin} and {end}.")
    return f"{before}{begin}\n\n{made.strip()}\n\n{end}{after}"


def all_tables(results: Path) -> str:
    """For experiments/README.md: the index, then every experiment that has been run."""
    experiments = [load_experiment(name) for name in experiment_names()]
    there = [(experiment, read_results(results, experiment)) for experiment in experiments]
    index = [summary_cells(summary(experiment, found)) for experiment, found in there]
    for line in index:
        line["command"] = f"`{line['command']}`"
    sections = [section(experiment, found) for experiment, found in there if found]
    return "\n\n".join([markdown(index), *sections])


def section(experiment: Experiment, there: Results) -> str:
    """One experiment: published and ours, row by row, and what else was measured."""
    commits = sorted({str(result["commit"])[:10] for result in there})
    machines = sorted({f"{result['hardware']}, {result['threads']} thread(s)" for result in there})
    index = summary_cells(summary(experiment, there))
    parts = [
        f"### {experiment.name}",
        f"{index['what']}. Source: {index['source']}. `{index['command']}`, {index['run']}. "
        f"On {'; '.join(machines)}. Commit {', '.join(commits)}.",
        markdown([cells(line) for line in compare(experiment.rows, there)]),
    ]
    if experiment.evaluate:
        names = [one.name for one in experiment.evaluate]
        swapped = [
            {"row": row.name} | {name: swapped_cell(there, row.name, name) for name in names}
            for row in experiment.rows
        ]
        about = "Tested with other solvers and steps (test accuracy; certificate of the step):"
        parts += [about, markdown(swapped)]
    if experiment.lyapunov:
        about = (
            "Largest finite-time exponent of the trained step and, at a tenth of it, of the flow: mean, "
            "and range over the images; and the certified rate, which bounds the flow:"
        )
        parts += [about, markdown(exponents(there))]
    return "\n\n".join(parts)


def swapped_cell(there: Results, row: str, name: str) -> str:
    """Mean accuracy with other settings, whether their step is certified, and how many failed."""
    found = [e for r in there if r["row"] == row for e in r.get("evaluate", ()) if e["name"] == name]
    done = [e for e in found if e["test_accuracy"] is not None]
    failed = [f"{len(found) - len(done)} failed"] * (len(done) < len(found))
    if done:
        steps = sum((e["certificate"]["discrete"] or {}).get("certified", False) for e in done)
        mean = 100 * statistics.fmean(e["test_accuracy"] for e in done)
        failed.insert(0, f"{mean:.2f} ({yes(steps, len(done))})")
    return ", ".join(failed) or "-"


def exponents(there: Results) -> list[dict[str, str]]:
    """Largest exponents and certified rate over training, of the first seed of each row."""
    by_row = {
        r["row"]: {e["epoch"]: e for e in r["lyapunov"]} for r in reversed(there) if "lyapunov" in r
    }
    rows = []
    for epoch in sorted({epoch for found in by_row.values() for epoch in found}):
        line = {"epoch": str(epoch)}
        for row, found in by_row.items():
            one = found.get(epoch)
            line[f"{row}: of the step"] = exponent_cell(one, "step")
            line[f"{row}: of the flow"] = exponent_cell(one, "flow")
            certified = f"{one['rate']:.4g}" if one and one["certified"] else "no"
            line[f"{row}: rate >="] = "-" if one is None else certified
        rows.append(line)
    return rows


def exponent_cell(one: dict[str, Any] | None, name: str) -> str:
    """Mean and range; overflow where the state did."""
    if one is None or one[name] is None:
        return "-" if one is None else "overflow"
    low, high = one[f"{name}_range"]
    return f"{one[name]:.4f} ({low:.3f} to {high:.3f})"


def highlights(results: Path) -> str:
    """For README.md: the rows that a newcomer must see."""
    rows = []
    for name, row in HIGHLIGHTS:
        experiment = load_experiment(name)
        there = read_results(results, experiment)
        line = cells(compare(experiment.matching([row]), there)[0])
        rows.append(
            {
                "experiment, row": f"{name}, {row}",
                "published": line["published"],
                "ours": f"{line['ours']} (n={line['n']})",
                "tested with dopri5": swapped_cell(there, row, "dopri5"),
                "certified": line["certified after"],
                "rate >=": line["rate >="],
                "step certified": line["step certified"],
            }
        )
    return markdown(rows)


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
    names = list(dict.fromkeys(row["name"] for row in size["rows"]))
    names = [n for n in names if n in OURS] + [n for n in names if not n.startswith("ours-")]
    columns = {
        f"{coupling}, batch {run['batch']}": (run, coupling)
        for run in kept["runs"]
        for coupling in ("all", "random:20", "random:5")
    }
    rows = [
        {"": name} | {header: speed_cell(*where, name) for header, where in columns.items()}
        for name in names
    ]
    return f"{about}\n\n{markdown(rows)}"


def speed_cell(run: dict[str, Any], coupling: str, name: str) -> str:
    """Milliseconds and the share of the limit; for others, how many times as long as ours."""
    row, own = timing(run, coupling, name), timing(run, coupling, OURS[0])
    if row is None or own is None:
        return "-"
    if name in OURS:
        return f"{1000 * row['median_s']:.0f} ms, share {100 * row['share']:.0f} %"
    return f"{row['median_s'] / own['median_s']:.1f} times"


def timing(run: dict[str, Any], coupling: str, name: str) -> dict[str, Any] | None:
    """The row of a contestant; that of all pairs where the coupling means nothing to it."""
    rows = [row for row in run["rows"] if row["name"] == name and row["kind"] == "forward_backward"]
    fits = [row for row in rows if row["coupling"] == coupling]
    return (fits or (rows if name.startswith("nn.") else []) or [None])[0]


OURS = ("ours-fused", "ours-adadiag-fused")
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
