"""`ctrnn certify RUN|CONFIG`: what is proven of a network, as its weights are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.options import Command, option
from ctrnn_cli.output import json_option, plot_option, print_json

if TYPE_CHECKING:  # imported where they are used, as in the other commands
    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.certificates.curves import FactorCurve


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
    search: str,
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

    given = {key: value for key, value in {"dt": dt, "solver": solver}.items() if value is not None}
    found = Run.open(source, initial=initial, **given)
    config = found.config
    check_solver(config.solver)
    # A second thread slows small matrices down, most of all on a busy machine.
    if config.threads or config.modules * config.units <= DENSE:
        torch.set_num_threads(config.threads or 1)
    core = found.network().core
    certificate = certificate_of(core, search, **given)
    result = {
        "model": config.model,
        "units": config.modules * config.units,
        "weights": found.weights.as_dict(),
        **certificate.as_dict(),
    }
    if plot is not None:
        from ctrnn_assembly.figures.certificate import certificate_figure
        from ctrnn_assembly.figures.style import save_figure

        curves = step_curves(core, certificate, config.dt)
        title = f"{config.model}: {Path(source).name}"
        save_figure(certificate_figure(certificate, curves, title=title), plot)
    if as_json:
        print_json(result)
    else:
        from ctrnn_cli.certificate_table import show_certificate

        show_certificate(certificate, result)
        if plot is not None:
            click.echo(f"drawn in {plot}")
    step = certificate.step is not None and certificate.step.certified
    click.get_current_context().exit(0 if certificate.certified and (step or not require_step) else 1)


def check_solver(solver: str) -> None:
    """Refuse an unknown solver, also of a baseline, which would not look at it."""
    from ctrnn_assembly.errors import unknown
    from ctrnn_assembly.solvers import SOLVERS

    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)


def certificate_of(core: Any, search: Any, **step: Any) -> Certificate:
    """The certificate of a layer and of its step; dt and solver for another step than its own."""
    with warnings.catch_warnings():
        # scipy's, of candidate metrics: the proof refuses bad ones.
        warnings.simplefilter("ignore", RuntimeWarning)
        return core.certificate(search=search, **step)


def check_step(layer: Any, model: str, *, dt: float | None, solver: str | None) -> None:
    """Refuse an unknown solver, and another step for a layer that has a step of its own only.

    Raises:
        ConfigError: naming the option.
    """
    from ctrnn_assembly.errors import ConfigError, unknown
    from ctrnn_assembly.solvers import SOLVERS

    if solver is not None and solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if (dt is not None or solver is not None) and not hasattr(layer, "solver"):
        raise ConfigError(f"{model!r} has no solver and no dt; drop --solver and --dt.")


def step_curves(core: Any, certificate: Certificate, dt: float) -> tuple[FactorCurve, ...]:
    """The factor of a step against dt, of each solver with a proof; none if nothing is certified."""
    from ctrnn_assembly.certificates.curves import factor_curves, gated_curve
    from ctrnn_assembly.certificates.rounding import DENSE

    if not certificate.certified:
        return ()
    if core.gates is not None and core.gates.kind != "constant":
        return (gated_curve(lambda h: core.certificate(dt=h), near=dt),)
    terms, metric = core.terms().detach_cpu(), certificate.metric.matrix
    assert metric is not None
    return factor_curves(terms, metric, near=dt, proofs=8 if terms.n <= DENSE else 2)
