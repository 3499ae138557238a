"""`ctrnn bench`: our solvers and what others would use, timed in turn in one process."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from ctrnn_cli.output import Column, console, emit, json_option, plot_option, table

COLUMNS = (
    Column("coupling", "coupling"),
    Column("name", "contestant"),
    Column("median_ms", "median ms", ".2f"),
    Column("min_ms", "min ms", ".2f"),
    Column("share", "share", ".1%"),
    Column("peak_mb", "MB", ".1f"),
)
COUPLING = "all, random:C, ...; may be repeated  [default: all, random:5, random:20]"
DEVICE = "auto is the GPU where there is one, with ours on the CPU as well"


@click.command("bench")
@click.option("--n", type=int, default=512, help="units altogether  [default: 512]")
@click.option("--units", type=int, default=32, help="units of each module  [default: 32]")
@click.option("--batch", type=int, default=128, help="samples  [default: 128]")
@click.option("--steps", type=int, default=196, help="steps of a sequence  [default: 196]")
@click.option("--rounds", type=int, default=7, help="timings of each, 7 or more  [default: 7]")
@click.option("--coupling", "couplings", multiple=True, metavar="NAME", help=COUPLING)
@click.option("--only", multiple=True, metavar="NAME", help="this contestant only; may be repeated")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help=DEVICE)
@click.option("--threads", type=int, help="CPU threads  [default: torch's own]")
@click.option("--no-memory", is_flag=True, help="do not measure peak memory")
@json_option
@plot_option
def bench_command(no_memory: bool, as_json: bool, plot: Path | None, **settings: Any) -> None:
    """How long one forward pass, and one forward and backward pass, of a sequence take.

    In every round each contestant is timed once, in a new order; given are median and minimum. The
    matrix product of the machine is timed in the same rounds: `share` is the part of its rate (the
    median of the rounds, in the same dtype) that the useful operations of a contestant reach.

    Before, ours are checked against the plain loop. Every contestant gets the field as leaf tensors;
    nn.RNN and nn.LSTM have no coupling and stand under `all`. The loss is one of the last state, with
    gradients of all parameters and none of the input. Ctrl-C prints what was measured until then.

    `peak_mb` (10^6 bytes) is what the resident set of a process of its own grows by, on a GPU what the
    allocator hands out.
    """
    from rich.progress import track

    from ctrnn_assembly.benchmark.measure import measure, sentences, tables
    from ctrnn_assembly.benchmark.problem import Problem
    from ctrnn_assembly.figures.speed import speed_figure

    size = Problem(**{name: settings.pop(name) for name in ("n", "units", "batch", "steps")})
    quiet = not sys.stderr.isatty()
    bar = partial(track, console=console(err=True), transient=True, disable=quiet)
    found = measure(size, memory=not no_memory, track=bar, **settings)
    shown = [table(rows, COLUMNS, title=title) for title, rows in tables(found)]
    figure = partial(speed_figure, found) if found["rows"] else None
    emit(found, *shown, *sentences(found), as_json=as_json, figure=figure, plot=plot)
    for note in found["notes"]:
        click.echo(f"warning: {note}", err=True)
    click.get_current_context().exit(130 if found["interrupted"] else 0)
