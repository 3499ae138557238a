"""Write the tables of experiments/README.md and README.md from the files in experiments/results/.

    python experiments/tables.py            # rewrites what is between the markers
    python experiments/tables.py --check    # exit code 1 if that would change a file

Only runs that are in experiments/results/ are in the tables; nothing is filled in by hand.
"""

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from keep import shown

from ctrnn_assembly.certificates.result import down
from ctrnn_assembly.reproduction.experiments import Experiment, experiment_names, load_experiment
from ctrnn_assembly.reproduction.results import cells, compare, read_results, summary, summary_cells, yes
from ctrnn_assembly.training.run import write
from ctrnn_cli.compare import BENCH_COLUMNS, bench_rows

ROOT = Path(__file__).resolve().parents[1]
Results = list[dict[str, Any]]
# What README.md shows: a certified net beside the published one, each task, and another solver.
HIGHLIGHTS = (
    ("japanese-vowels-equal", "gated"),
    ("japanese-vowels-equal", "noisy-sparse-combo-imex"),
    ("digits", "svd-combo"),
    ("deep-smnist", "adadiag-4"),
    ("deep-psmnist", "adadiag-4"),
    ("deep-scifar10", "adadiag-4"),
    ("solver-swap", "svd-combo"),
)
SWAPPED = "Tested with other solvers and steps (test accuracy; certificate of the step):"
EXPONENTS = (
    "Largest finite-time exponent of the trained step and, at a tenth of it, of the flow: mean, "
    "and range over the images; and the certified rate, which bounds the flow:"
)
NOTHING = "Not measured yet."
DETAILS = ("auto-", "fused", "ours-adadiag", "scn")  # no rows of README.md


def markdown(rows: Results) -> str:
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
    index, sections = [], []
    for experiment in map(load_experiment, experiment_names()):
        there = read_results(results, experiment)
        line = summary_cells(summary(experiment, there))
        index.append(line | {"command": f"`{line['command']}`"})
        sections += [section(experiment, there, index[-1])] if there else []
    return "\n\n".join([markdown(index), *sections])


def section(experiment: Experiment, there: Results, index: dict[str, str]) -> str:
    """One experiment: published and ours, row by row, and what else was measured."""
    commits = sorted({str(result["commit"])[:10] for result in there})
    machines = sorted({f"{result['hardware']}, {result['threads']} thread(s)" for result in there})
    parts = [
        f"### {experiment.name}",
        f"{index['what']}. Source: {index['source']}. {index['command']}, {index['run']}. "
        f"On {'; '.join(machines)}. Commit {', '.join(commits)}.",
        markdown([cells(line) for line in compare(experiment.rows, there, experiment.against)]),
    ]
    if experiment.evaluate:
        swapped: Results = [{"row": row.name} for row in experiment.rows]
        for line, one in product(swapped, experiment.evaluate):
            line[one.name] = swapped_cell(there, line["row"], one.name)
        parts += [SWAPPED, markdown(swapped)]
    if experiment.lyapunov:
        parts += [EXPONENTS, markdown(exponents(there))]
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


def exponents(there: Results) -> Results:
    """Largest exponents and certified rate over training, of the first seed of each row."""
    ran = [r for r in reversed(there) if "lyapunov" in r]
    by_row = {r["row"]: {e["epoch"]: e for e in r["lyapunov"]} for r in ran}
    rows = []
    for epoch in sorted({epoch for found in by_row.values() for epoch in found}):
        line = {"epoch": str(epoch)}
        for row, found in by_row.items():
            one = found.get(epoch)
            for name in ("step", "flow"):
                cell = "-" if one is None else "overflow"
                if one and one[name] is not None:
                    low, high = one[f"{name}_range"]
                    cell = f"{one[name]:.4f} ({low:.3f} to {high:.3f})"
                line[f"{row}: of the {name}"] = cell
            rate = down(one["rate"]) if one and one["certified"] else "no" if one else "-"
            line[f"{row}: rate >="] = rate
        rows.append(line)
    return rows


def highlights(results: Path) -> str:
    """For README.md: the rows that a newcomer must see."""
    rows = []
    for name, row in HIGHLIGHTS:
        there = read_results(results, experiment := load_experiment(name))
        line = cells(compare(experiment.matching([row]), there)[0])
        shown = {
            "experiment, row": f"{name}, {row}",
            "published": line["published"],
            "ours": f"{line['ours']} (n={line['n']})",
            "tested with dopri5": swapped_cell(there, row, "dopri5"),
            "certified": line["certified after"],
        }
        rows.append(shown | {key: line[key] for key in ("rate >=", "step certified")})
    return markdown(rows)


def newest(results: Path, name: str) -> Results:
    """What a script kept on the last of its days."""
    files = sorted(results.glob(f"*-{name}.json"))
    days = [file for file in files if file.name[:10] == files[-1].name[:10]]
    return [json.loads(file.read_text(encoding="utf-8")) for file in days]


def speed(results: Path, hidden: tuple[str, ...] = ()) -> str:
    """What `ctrnn bench --json` last said, without the contestants named like `hidden`."""
    parts = []
    for run in newest(results, "bench-*"):
        rows = [row for row in run["rows"] if not any(word in row["name"] for word in hidden)]
        columns = [one for one in BENCH_COLUMNS if one.key != "peak_mb"]
        where = f"{run['hardware']}, torch {run['versions']['torch']}, {run['date']}"
        parts += [f"{run['threads']} thread(s) of {where}, {run['rounds']} rounds:"]
        parts += [markdown(shown(bench_rows(rows), columns))]
    return "\n\n".join(parts) or NOTHING


def kept(results: Path, name: str) -> str:
    """The tables that a script last printed, and where they were measured."""
    where, runs = "{}\n\n`{command}`, {date}, {hardware}.", newest(results, name)
    return "\n\n".join(where.format(markdown(run["table"]), **run) for run in runs) or NOTHING


TARGETS: dict[str, dict[str, Callable[[Path], str]]] = {
    "experiments/README.md": {
        "results": all_tables,
        "epochs": partial(kept, name="epochs"),
        "since": partial(kept, name="since-*"),
        "bench": speed,
    },
    "experiments/gradients_explode/README.md": {
        "figure1": partial(kept, name="gradients-explode-figure1"),
        "figure3": partial(kept, name="gradients-explode-figure3-images"),
    },
    "README.md": {"speed": partial(speed, hidden=DETAILS), "results": highlights},
}


def tabulated(name: str) -> tuple[str, str]:
    """A file as it is, and as it would be made."""
    text = made = (ROOT / name).read_text(encoding="utf-8")
    for block, make in TARGETS[name].items():
        made = between(made, make(ROOT / "experiments" / "results"), name, block)
    return text, made


if __name__ == "__main__":
    tables = {name: tabulated(name) for name in TARGETS}
    stale = {name: made for name, (text, made) in tables.items() if text != made}
    if "--check" in sys.argv[1:]:
        sys.exit(int(bool(stale)))
    for name, made in stale.items():
        write(ROOT / name, made)
        print(f"written: {name}")
