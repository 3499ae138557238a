"""`ctrnn compare`: runs side by side; `sweep`, `reproduce`: many of them; `bench`: times of others."""

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from ctrnn_assembly.errors import ConfigError, TrainingError
from ctrnn_cli import shared
from ctrnn_cli.shared import DIR, PATH, Column, Command, console, emit, json_option, plot_option, table

say = partial(click.echo, err=True)  # progress, beside the tables
RESULTS, FAST_RESULTS = Path("experiments/results"), Path("runs/fast-results")
BENCH_COLUMNS = (
    Column("work", "work"),
    Column("size", "size"),
    Column("name", "contestant"),
    Column("median_s", "median ms", lambda seconds: f"{1000 * seconds:.2f}"),
    Column("min_s", "min ms", lambda seconds: f"{1000 * seconds:.2f}"),
    Column("times", "times", ".2f"),
    Column("times_min", "of minima", ".2f"),
    Column("share", "share", ".0%"),
    Column("limit", "of the limit of"),
    Column("peak_mb", "MB", ".1f"),
)
DEVICE = "auto is the GPU where there is one"


@click.command("reproduce")
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--list", "list_all", is_flag=True, help="show all experiments and what they took")
@click.option("--rows", default="", metavar="ROW,...", help="only these, or patterns like svd-*")
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="only this seed")
@click.option("--fast", is_flag=True, help="a few small samples, 2 epochs: see that it runs")
@click.option("--data-dir", help="where the data are; else CTRNN_DATA_DIR")
@click.option("--runs", type=DIR, default=Path("runs/reproduce"), help="to resume from")
@click.option("--results", type=DIR, help=f"one JSON file a run; {RESULTS}, or {FAST_RESULTS}")
@json_option
def reproduce_command(names: tuple[str, ...], list_all: bool, as_json: bool, **given: Any) -> None:
    """Train what an experiment asks for and print the published accuracy and ours side by side.

    Each row and seed is a run of its own. A run whose result is there is skipped, one that was
    interrupted goes on, and one that another process trains is left to it: the same command finishes
    what Ctrl-C stopped, and started several times at once shares the runs. Accuracy is that of the epoch
    with the best validation accuracy; the best test epoch is shown because papers print it.
    """
    from ctrnn_assembly.reproduction.experiments import experiment_names, load_experiment
    from ctrnn_assembly.reproduction.results import cells, compare, read_results, summary, summary_cells
    from ctrnn_assembly.reproduction.run import run_all

    if not names and not list_all:
        raise ConfigError("ctrnn reproduce needs the name of an experiment. --list shows them all.")
    seeds, fast, results = (given.pop(key) for key in ("seeds", "fast", "results"))
    results = results or (FAST_RESULTS if fast else RESULTS)
    read = partial(read_results, results)
    experiments = [load_experiment(name) for name in names or experiment_names()]
    if list_all:
        listed = [summary(e, read(e)) for e in experiments]
        texts = [{**summary_cells(one), "command": one["experiment"]} for one in listed]
        emit(listed, table(texts, title="ctrnn reproduce ..."), as_json=as_json)
        return
    patterns = [pattern for pattern in given.pop("rows").split(",") if pattern]
    jobs = [job for e in experiments for job in e.jobs(patterns, seeds=seeds, fast=fast)]
    failures = run_all(jobs, results=results, say=say, **given)
    lines = {e.name: compare(e.matching(patterns), read(e, fast=fast), e.against) for e in experiments}
    note = " (--fast: not comparable)" if fast else ""
    tables = (table([cells(one) for one in found], title=name + note) for name, found in lines.items())
    emit({"fast": fast, "experiments": lines}, *tables, as_json=as_json)
    if failures:
        raise TrainingError(f"{len(failures)} of {len(jobs)} runs failed; the first: {failures[0]}")


@click.command("compare")
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=PATH)
@json_option
def compare_command(folders: tuple[Path, ...], as_json: bool) -> None:
    """Finished runs side by side: settings that differ, test measures, certificates and time.

    Runs that differ by their seed alone are a column: means, and half the 95 % interval over seeds.
    """
    from ctrnn_assembly.certificates.result import down
    from ctrnn_assembly.reproduction.results import means
    from ctrnn_assembly.training.config import FREE
    from ctrnn_assembly.training.run import read_config, read_summary, refusing

    groups, known = dict[str, dict[int, Any]](), [read_config(one).model_dump() for one in folders]
    free = FREE | {"seed", "task"}
    differ = [k for k in known[0] if k not in free and len({str(one[k]) for one in known}) > 1]
    for folder, config in zip(folders, known, strict=True):
        if (found := read_summary(folder)) is None:
            raise ConfigError(f"{folder} is not finished. `ctrnn train --resume {folder}` goes on.")
        one = {**found, **config, "task": found.get("task"), "run": str(folder)}
        group = groups.setdefault(str([one[key] for key in ("task", *differ)]), {})
        if (twin := group.setdefault(one["seed"], one)) is not one:
            raise ConfigError(f"{twin['run']} and {folder} have the same settings and seed. Drop one.")
    columns = []
    for runs in (list(group.values()) for group in groups.values()):
        paths = ", ".join(one["run"] for one in runs)
        column: dict[str, Any] = {"runs": paths, "of_runs": len(runs)}
        with refusing(f"summary.json of {paths} is damaged", "`ctrnn train --resume` writes it."):
            column |= {key: runs[0][key] for key in ("task", *differ)}
            columns.append(column | means(runs))

    def text(key: str, value: Any) -> str:
        number: Any = down if key == "rate" else "{:.4g}".format  # a bound is not rounded up
        return "-" if value is None else number(value) if isinstance(value, float) else str(value)

    names = dict.fromkeys(key for column in columns for key in column)
    lines = [{"": k} | {str(i): text(k, one.get(k)) for i, one in enumerate(columns, 1)} for k in names]
    lines = [line for line in lines if set(line.values()) - {line[""], "-"}]
    emit({"differ": differ, "columns": columns}, table(lines, title="runs"), as_json=as_json)


@click.command("sweep", cls=Command)
@click.argument("file", metavar="CONFIG", type=PATH)
@click.option("--out", type=DIR, metavar="DIR", help="[default: runs/ and the name of CONFIG]")
@click.option("--show", is_flag=True, help="what is there so far; trains nothing")
@json_option
@plot_option
def sweep_command(file: Path, out: Path | None, show: bool, as_json: bool, plot: Path | None) -> None:
    """Search settings by a grid, at random, or by the scores so far; the best trial on top.

    CONFIG says in YAML what is searched: docs/howto/sweep.md. The same command, started again or on
    another core or machine that sees the folder, takes part: each trial is counted once, and one whose
    process was killed goes on from its last epoch. Validation chooses, and the test is told of the best
    trial alone. --plot draws how much each setting matters, beside the trials.
    """
    from ctrnn_assembly.certificates.result import down
    from ctrnn_assembly.data.targets import in_words
    from ctrnn_assembly.reproduction.sweep import Trials

    trials = Trials(file, out or Path("runs") / file.stem)
    if not show:
        trials.train(say)
    rows, sweep = trials.rows(), trials.sweep
    columns = (
        Column("trial", "trial"),
        *[Column(k, k, "" if isinstance(x, list) else ".4g") for k, x in sweep.search.items()],
        Column("score", "validation", ".4f"),
        Column("seconds", "seconds a run", ".1f"),
        Column("certified", f"certified of {sweep.seeds}", ">"),
        Column("rate", "rate >=", down),
        Column("step_certified", "step certified", ">"),
        Column("state", "state"),
    )
    title = f"{trials.folder}: {len(rows)} of {sweep.count} trials"
    emit(
        {"folder": str(trials.folder), "count": sweep.count, "trials": rows},
        table(rows, columns, title=title),
        *[f"trial {row['trial']}: test {said}" for row in rows if (said := in_words(row, "test"))],
        *[f"trial {row['trial']} failed: {row['reason']}" for row in rows if "reason" in row],
        as_json=as_json,
        plot=plot,
        figure=lambda: shared.drawn("curves.sweep_figure", rows, trials.importance(), title=title),
    )


@click.command("bench")
@click.argument("works", metavar="[WORK]...", nargs=-1)
@click.option("--n", type=int, help="units altogether  [default: of the work]")
@click.option("--units", type=int, help="units of each module  [default: of the work]")
@click.option("--batch", type=int, help="samples  [default: of the work]")
@click.option("--steps", type=int, help="steps of a sequence  [default: of the work]")
@click.option("--coupling", metavar="NAME", help="all, random:C, ... of all work  [default: its own]")
@click.option("--rounds", type=int, default=7, help="timings of each, 7 or more")
@click.option("--only", multiple=True, metavar="NAME", help="this contestant only; may be repeated")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help=DEVICE)
@click.option("--threads", type=int, help="CPU threads  [default: torch's own]")
@json_option
@plot_option
def bench_command(works: tuple[str, ...], as_json: bool, plot: Path | None, **settings: Any) -> None:
    """How long one forward and backward pass of a sequence takes, of ours and of what others would use.

    Without WORK all of it. In every round each contestant is timed once, in a new order; given are
    median and minimum, and how many times as long it takes as ours that it stands below; of `large`,
    by useful operation. `share` is how near the minimum is to a limit of the machine, the nearest of
    three timed in the same rounds: the rate of its matrix products, of its memory, of calls of torch.

    Before, ours are checked against the plain loop. An assembly without gates is given as leaf tensors.
    The loss is one of the last state, with gradients of all parameters and none of the input. Ctrl-C
    prints what was measured until then. On a GPU `peak_mb` (10^6 bytes) is what the allocator hands out.
    """
    from rich.progress import track

    from ctrnn_assembly.benchmark.measure import measure, sentences

    fields = ("n", "units", "batch", "steps", "coupling")
    size = {k: x for k in fields if (x := settings.pop(k)) is not None}
    quiet = not sys.stderr.isatty()
    bar = partial(track, console=console(err=True), transient=True, disable=quiet)
    found = measure(size, works, track=bar, **settings)
    rows = bench_rows(found["rows"])
    figure = partial(shared.drawn, "curves.speed_figure", found) if rows else None
    shown = [table(rows, BENCH_COLUMNS, title="forward and backward")] * bool(rows)
    emit(found, *shown, *sentences(found), as_json=as_json, figure=figure, plot=plot)
    for note in found["notes"]:
        click.echo(f"warning: {note}", err=True)
    click.get_current_context().exit(130 if found["interrupted"] else 0)


def bench_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the work, and the size in a work, that are as above."""
    found = []
    for above, row in pairwise([{"work": None}, *rows]):
        same = row["work"] == above["work"]
        found.append(row | {k: "" for k in ("work", "size") if same and row[k] == above[k]})
    return found
