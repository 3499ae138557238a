"""`ctrnn reproduce NAME...`: run an experiment's rows and seeds, and print them beside the published."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_assembly.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ctrnn_cli.experiments import Experiment

RESULTS, FAST_RESULTS = Path("experiments/results"), Path("runs/fast-results")


@click.command("reproduce")
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--list", "list_all", is_flag=True, help="show all experiments and what they cost")
@click.option("--rows", metavar="ROW,...", help="only these rows; patterns like svd-* are allowed")
@click.option("--seeds", type=click.IntRange(min=1), help="runs of each row, with seeds 0, 1, ...")
@click.option("--seed", "only", type=click.IntRange(min=0), multiple=True, help="only this seed")
@click.option("--fast", is_flag=True, help="a few small samples, 2 epochs: see that it runs")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="runs at a time  [default: 1]")
@click.option("--data-dir", help="where the data are; else CTRNN_DATA_DIR")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs/reproduce"),
    help="run folders, to resume from  [default: runs/reproduce]",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help=f"one JSON file a run  [default: {RESULTS}; with --fast {FAST_RESULTS}]",
)
@click.option("--json", "as_json", is_flag=True, help="print the table as JSON")
def reproduce_command(
    names: tuple[str, ...],
    list_all: bool,
    rows: str | None,
    seeds: int | None,
    only: tuple[int, ...],
    fast: bool,
    jobs: int,
    data_dir: str | None,
    runs: Path,
    results: Path | None,
    as_json: bool,
) -> None:
    """Train what an experiment asks for and print the published figure and ours side by side.

    Each row and seed is a run of its own, in a process with one thread. A run whose result is there is
    skipped and one that was interrupted goes on, so the same command finishes what Ctrl-C stopped.
    Accuracy is that of the epoch with the best validation accuracy; the best test epoch is shown
    because papers print it.
    """
    from ctrnn_cli.experiments import jobs as planned
    from ctrnn_cli.experiments import load_experiment
    from ctrnn_cli.scheduler import Places, run_all

    results = results or (FAST_RESULTS if fast else RESULTS)
    if list_all:
        show_list(names, results, as_json=as_json)
        return
    if not names:
        raise ConfigError("ctrnn reproduce needs the name of an experiment. --list shows them all.")
    if seeds is not None and only:
        raise ConfigError("--seeds and --seed exclude each other. Drop one of them.")
    experiments = [load_experiment(name) for name in names]
    patterns = [pattern for pattern in (rows or "").split(",") if pattern]
    asked = [
        job
        for experiment in experiments
        for job in planned(experiment, rows=patterns, seeds=seeds, only=only, fast=fast)
    ]
    failures, interrupted = run_all(asked, Places(runs, results, data_dir), at_once=jobs)
    show_tables(experiments, results, patterns, fast=fast, as_json=as_json)
    if interrupted:
        click.echo("interrupted; the same command goes on from there", err=True)
        sys.exit(130)
    if failures:
        raise TrainingError(f"{len(failures)} of {len(asked)} runs failed; the first: {failures[0]}")


def show_list(names: tuple[str, ...], results: Path, *, as_json: bool) -> None:
    """Every experiment, or those named: rows, runs, cost, published figure, and whether it was run."""
    from rich.table import Table

    from ctrnn_cli.experiments import experiment_names, load_experiment

    listed = [summary(load_experiment(name), results) for name in names or experiment_names()]
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    table = Table("experiment", "what", "runs", "cost", "published", "run")
    for name in (0, 3):
        table.columns[name].no_wrap = True
    for one in listed:
        cells = ("experiment", "about", "runs", "cost", "published", "state")
        table.add_row(*(str(one[cell]) for cell in cells))
    console().print(table)
    click.echo("cost: what the runs took, and ~ an estimate on one CPU core for those not yet run")


def summary(experiment: Experiment, results: Path) -> dict[str, Any]:
    """One line of the list."""
    from ctrnn_cli.comparison import read_results, state
    from ctrnn_cli.costs import cost, cost_text
    from ctrnn_cli.experiments import jobs

    there = read_results(results, experiment)
    taken, missing = cost(experiment, there)
    return {
        "experiment": experiment.name,
        "about": experiment.about,
        "source": experiment.source,
        "rows": [row.name for row in experiment.rows],
        "runs": len(jobs(experiment)),
        "seconds": taken,
        "estimated_seconds": missing,
        "cost": cost_text(taken, missing),
        "published": experiment.highest(),
        "state": state(experiment, there),
    }


def show_tables(
    experiments: list[Experiment], results: Path, patterns: list[str], *, fast: bool, as_json: bool
) -> None:
    """The comparison of each experiment's rows, with every result that is there."""
    from ctrnn_cli.comparison import compare, read_results
    from ctrnn_cli.experiments import matching

    lines = {
        e.name: compare(matching(e, patterns), read_results(results, e, fast=fast)) for e in experiments
    }
    if as_json:
        click.echo(json.dumps({"fast": fast, "experiments": lines}, indent=2))
        return
    for experiment in experiments:
        title = experiment.name + (" (--fast: not comparable)" if fast else "")
        console().print(comparison_table(title, lines[experiment.name]))


def console() -> Console:
    """A terminal's own width; a file is as wide as the tables need."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def comparison_table(title: str, lines: list[dict[str, Any]]) -> Table:
    """Published, ours, best epoch, certificate, parameters, seconds."""
    from rich.table import Table

    from ctrnn_cli.comparison import ours, runs_text, yes

    columns = ("row", "published", "ours", "n", "best epoch", "last epoch", "certified", "rate >=")
    table = Table(*columns, "step certified", "parameters", "seconds", title=title)
    for one in lines:
        proven = one["certificate"]
        table.add_row(
            one["row"],
            "\n".join(figure_text(figure) for figure in one["published"]) or "-",
            ours(one["test_accuracy"]),
            runs_text(one),
            ours(one["best_epoch_accuracy"]),
            ours(one["final_epoch_accuracy"]),
            "-" if proven is None else yes(proven["certified"], proven["of"]),
            "-" if proven is None or proven["rate"] is None else f"{proven['rate']:.4g}",
            "-" if proven is None else yes(proven["discrete"], proven["of"]),
            "-" if one["parameters"] is None else f"{one['parameters']:,}",
            "-" if one["seconds"] is None else f"{one['seconds']:.0f}",
        )
    return table


def figure_text(figure: dict[str, Any]) -> str:
    """A published figure in a cell."""
    from ctrnn_cli.experiments import Figure

    return str(Figure(**figure))
