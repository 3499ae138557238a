"""`ctrnn certify RUN|CONFIG`: what is proven of a network, as its weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.options import Command, option
from ctrnn_cli.output import Column, console, facts, json_option, plot_option, print_json, table

if TYPE_CHECKING:  # torch takes seconds to import, for which --help need not wait
    from ctrnn_assembly.certificates import Module

MANY, WORST = 20, 5  # more modules than that are shown by the worst of them
SEARCHES = click.Choice(["none", "fast", "convex"])
MODULES = (
    Column("module", "module"),
    Column("units", "units", ">"),
    Column("theorem", "theorem"),
    Column("margin", "margin (1/tau)", ">"),
    Column("rate", "rate", ">"),
)


@click.command("certify", cls=Command)
@click.argument("source", metavar="RUN|CONFIG")
@option("--dt", type=float, help="certify another step  [default: the run's own]")
@option("--solver", help="certify the step of another solver  [default: the run's own]")
@option("--initial", is_flag=True, help="of a run, the weights before training")
@option("--search", type=SEARCHES, default="fast", help="for a metric, if the net's own proves nothing")
@option("--require-step", is_flag=True, help="exit with 1 also if the step is not certified")
@json_option
@plot_option
def certify_command(
    source: str,
    dt: float | None,
    solver: str | None,
    initial: bool,
    search: Any,
    require_step: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Prove that two states under one input approach each other, for the weights as they are now.

    RUN is a run folder: its trained weights, or those of the last epoch if it is not finished. CONFIG is
    a YAML file or the name of a recipe: the network with its initial weights. No data are read.

    Exit code 0: certified in continuous time. 1: not certified. 2: an error. The step of the solver has
    a verdict of its own (`discrete` in the JSON), which counts for the exit code with --require-step.

    In the JSON, null stands for a bound that does not exist; max_dt null means every dt.
    """
    import torch

    from ctrnn_assembly.certificates.rounding import DENSE
    from ctrnn_assembly.certificates.wording import fact_rows, verdict, weights_rows
    from ctrnn_assembly.training.run import Run

    run = Run.open(source, initial=initial, dt=dt, solver=solver)
    config, units = run.config, run.config.modules * run.config.units
    # A second thread slows small matrices down, most of all on a busy machine.
    if config.threads or units <= DENSE:
        torch.set_num_threads(config.threads or 1)
    certificate, weights = run.certificate(search), run.weights.as_dict()
    if plot is not None:
        from ctrnn_assembly.certificates.curves import step_curves
        from ctrnn_assembly.figures.certificate import certificate_figure
        from ctrnn_assembly.figures.style import save_figure

        curves = step_curves(run.model(data=False).core, certificate, near=config.dt)
        title = f"{config.model}: {Path(source).name}"
        save_figure(certificate_figure(certificate, curves, title=title), plot)
    if as_json:
        print_json({"model": config.model, "units": units, "weights": weights} | certificate.as_dict())
    else:
        click.secho(verdict(certificate), fg="green" if certificate.certified else "red")
        known = [*weights_rows(weights), *fact_rows(certificate)]
        console().print(facts(known, title=f"{config.model}, {units} units"))
        if certificate.modules:
            console().print(table(MODULES, module_rows(certificate.modules), title="modules"))
        if plot is not None:
            click.echo(f"written: {plot}")
    step = certificate.step is not None and certificate.step.certified
    click.get_current_context().exit(0 if certificate.certified and (step or not require_step) else 1)


def module_rows(modules: Sequence[Module]) -> list[dict[str, Any]]:
    """One row a module; the worst ones and a summary if there are many."""
    from ctrnn_assembly.certificates.wording import down

    def row(name: object, units: object, theorem: str, worst: Sequence[Module], at_least: str) -> Any:
        margin, rate = min(m.margin for m in worst), min(m.rate for m in worst)
        numbers = f"{at_least}{down(margin)}", f"{at_least}{down(rate)}"
        return dict(zip((c.key for c in MODULES), (name, units, theorem, *numbers), strict=True))

    many = len(modules) > MANY
    shown = sorted(modules, key=lambda m: m.margin)[:WORST] if many else modules
    rows = [row(m.index, m.size, m.theorem, [m], "") for m in shown]
    if many:
        rest = [m for m in modules if m not in shown]
        sizes, theorems = [m.size for m in rest], Counter(m.theorem for m in rest)
        units = "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))
        counts = ", ".join(f"{name}: {count}" for name, count in theorems.most_common())
        rows.append(row(f"{len(rest)} more", units, counts, rest, ">= "))
    return rows
