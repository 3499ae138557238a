"""`ctrnn bench`: our solvers and what others would use, timed in turn in one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ctrnn_assembly.errors import ConfigError
from ctrnn_cli.output import plot_option

if TYPE_CHECKING:
    from ctrnn_assembly.benchmark import Report, Size
    from ctrnn_assembly.benchmark.measure import Progress

COUPLINGS = ("all", "random:5", "random:20")


@click.command("bench")
@click.option("--n", type=int, default=512, help="units altogether  [default: 512]")
@click.option("--units", type=int, default=32, help="units of each module  [default: 32]")
@click.option("--batch", type=int, default=128, help="samples  [default: 128]")
@click.option("--steps", type=int, default=196, help="steps of a sequence  [default: 196]")
@click.option("--rounds", type=int, default=7, help="timings of each, 7 or more  [default: 7]")
@click.option(
    "--coupling",
    "couplings",
    multiple=True,
    metavar="NAME",
    help="all, random:C, ...; may be repeated  [default: all, random:5, random:20]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="of ours this backend only: adjoint, graph or persistent; may be repeated",
)
@click.option("--only", multiple=True, metavar="NAME", help="this contestant only; may be repeated")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="auto is the GPU where there is one, with ours on the CPU as well",
)
@click.option("--threads", type=int, help="CPU threads  [default: torch's own]")
@click.option(
    "--budget", type=float, default=240.0, help="seconds for the rounds, 0 for no limit  [default: 240]"
)
@click.option("--no-memory", is_flag=True, help="do not measure peak memory")
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
@plot_option
def bench_command(
    n: int,
    units: int,
    batch: int,
    steps: int,
    rounds: int,
    couplings: tuple[str, ...],
    backends: tuple[str, ...],
    only: tuple[str, ...],
    device: str,
    threads: int | None,
    budget: float,
    no_memory: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
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
    import torch

    from ctrnn_assembly.benchmark import Size, measure

    size = Size(n=n, units=units, batch=batch, steps=steps)
    check_numbers(rounds, threads, budget)
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as progress:
        report = measure(
            size,
            tuple(dict.fromkeys(couplings)) or fitting(size),
            devices=devices_for(device),
            rounds=rounds,
            backends=backends,
            only=only,
            memory=not no_memory,
            budget=budget,
            progress=progress,
        )
    if plot is not None and report.rows:
        from ctrnn_assembly.figures.speed import speed_figure
        from ctrnn_assembly.figures.style import save_figure

        save_figure(speed_figure(report), plot)
    show(report, as_json, plot)
    click.get_current_context().exit(130 if report.facts["interrupted"] else 0)


def check_numbers(rounds: int, threads: int | None, budget: float) -> None:
    """Refuse what cannot be timed.

    Raises:
        ConfigError: naming the option.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1; got {rounds}. Use --rounds 7.")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads must be at least 1; got {threads}. Leave it out for torch's own.")
    if not 0 <= budget < float("inf"):
        raise ConfigError(f"--budget must be 0 or more seconds; got {budget}. Use 0 for no limit.")


def fitting(size: Size) -> tuple[str, ...]:
    """The default couplings, as far as there are so many pairs."""
    pairs = size.modules * (size.modules - 1) // 2
    counts = {name: int(name.removeprefix("random:")) for name in COUPLINGS if ":" in name}
    return tuple(name for name in COUPLINGS if counts.get(name, 0) <= pairs)


def devices_for(device: str) -> tuple[str, ...]:
    """The devices to time, the one for all contestants first.

    Raises:
        ConfigError: if there is no GPU and one was asked for.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("--device cuda needs a GPU that torch can use; there is none. Use cpu.")
    if device == "auto":
        return ("cuda", "cpu") if there else ("cpu",)
    return (device,)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


def show(report: Report, as_json: bool, plot: Path | None) -> None:
    """The JSON alone, or the tables with what is to be known about them; warnings on stderr."""
    from ctrnn_cli.bench_table import print_report

    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        print_report(report)
        if plot is not None and report.rows:
            click.echo(f"drawn in {plot}")
    for note in report.notes:
        click.echo(f"warning: {note}", err=True)
