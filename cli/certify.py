"""`ctrnn certify RUN|CONFIG`: what is proven of a network, as its weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.options import Command, check_step, option
from ctrnn_cli.output import Column, console, facts, json_option, plot_option, print_json, table

if TYPE_CHECKING:  # torch takes seconds to import, for which --help need not wait
    from rich.table import Table

    from ctrnn_assembly.certificates import Certificate, Module
    from ctrnn_assembly.certificates.curves import FactorCurve

MANY, WORST = 20, 5  # more modules than that are shown by the worst of them
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
@option(
    "--search",
    type=click.Choice(["none", "fast", "convex"]),
    default="fast",
    help="where to look for a metric if the network's own proves nothing  [default: fast]",
)
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
    from ctrnn_assembly.training.run import Run

    run = Run.open(source, initial=initial, dt=dt, solver=solver)
    config = run.config
    units = config.modules * config.units
    # A second thread slows small matrices down, most of all on a busy machine.
    if config.threads or units <= DENSE:
        torch.set_num_threads(config.threads or 1)
    check_step(config, dt=dt, solver=solver)
    certificate = run.certificate(search)
    weights = run.weights.as_dict()
    if plot is not None:
        from ctrnn_assembly.figures.certificate import certificate_figure
        from ctrnn_assembly.figures.style import save_figure

        curves = step_curves(run.network().core, certificate, config.dt)
        title = f"{config.model}: {Path(source).name}"
        save_figure(certificate_figure(certificate, curves, title=title), plot)
    if as_json:
        about = {"model": config.model, "units": units, "weights": weights}
        print_json(about | certificate.as_dict())
    else:
        show_certificate(certificate, weights, title=f"{config.model}, {units} units")
        if plot is not None:
            click.echo(f"written: {plot}")
    step = certificate.step is not None and certificate.step.certified
    click.get_current_context().exit(0 if certificate.certified and (step or not require_step) else 1)


def step_curves(layer: Any, certificate: Certificate, dt: float) -> tuple[FactorCurve, ...]:
    """The factor of a step against dt, of each solver with a proof; none if nothing is certified."""
    from ctrnn_assembly.certificates.curves import factor_curves, gated_curve
    from ctrnn_assembly.certificates.rounding import DENSE

    if not certificate.certified:
        return ()
    if layer.gates is not None and layer.gates.kind != "constant":
        return (gated_curve(lambda h: layer.certificate(dt=h), near=dt),)
    terms, metric = layer.terms().detach_cpu(), certificate.metric.matrix
    assert metric is not None
    return factor_curves(terms, metric, near=dt, proofs=8 if terms.n <= DENSE else 2)


def show_certificate(certificate: Certificate, weights: dict[str, Any], *, title: str) -> None:
    """The verdict in one line, then what it rests on."""
    from ctrnn_assembly.certificates.wording import fact_rows, verdict, weights_rows

    click.secho(verdict(certificate), fg="green" if certificate.certified else "red")
    console().print(facts([*weights_rows(weights), *fact_rows(certificate)], title=title))
    if certificate.modules:
        console().print(module_table(certificate.modules))


def module_table(modules: Sequence[Module]) -> Table:
    """One row a module; the worst ones and a summary if there are many."""
    from ctrnn_assembly.certificates.wording import down

    shown = sorted(modules, key=lambda m: m.margin)[:WORST] if len(modules) > MANY else modules
    rows = [
        {
            "module": str(m.index),
            "units": str(m.size),
            "theorem": m.theorem,
            "margin": down(m.margin),
            "rate": down(m.rate),
        }
        for m in shown
    ]
    rest = [m for m in modules if m not in shown]
    if rest:
        sizes = sorted({m.size for m in rest})
        theorems = Counter(m.theorem for m in rest)
        rows.append(
            {
                "module": f"{len(rest)} more",
                "units": "-".join(str(size) for size in {sizes[0]: 0, sizes[-1]: 0}),
                "theorem": ", ".join(f"{name}: {count}" for name, count in theorems.most_common()),
                "margin": f">= {down(min(m.margin for m in rest))}",
                "rate": f">= {down(min(m.rate for m in rest))}",
            }
        )
    return table(MODULES, rows, title="modules")
