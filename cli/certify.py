"""`ctrnn certify RUN|CONFIG`: what is proven of a network, as its weights are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click import option
from rich.table import Table

from ctrnn_cli.shared import ONE_FIELD, Column, Command, emit, facts, json_option, plot_option, table

MANY, WORST = 20, 5  # more modules than that are shown by the worst of them
SEARCHES = click.Choice(["none", "fast", "convex"])
MODULES = (
    Column("index", "module"),
    Column("size", "units", ">"),
    Column("theorem", "theorem"),
    Column("margin", "margin (1/tau)", ">"),
    Column("rate", "rate", ">"),
)
LAYERS = (
    Column("index", "layer"),
    Column("factor", "factor <=", ">"),
    Column("memory", "samples to 1/1000", ">"),
    Column("input_gain", "input gain <=", ">"),
    Column("output_gain", "output gain <=", ">"),
)


@click.command("certify", cls=Command)
@click.argument("source", metavar="RUN|CONFIG")
@option("--dt", type=float, help="certify another time between samples  [default: the run's own]")
@option("--substeps", type=int, help="certify the step of dt / N  [default: the run's own]")
@option("--solver", help="certify the step of another solver  [default: the run's own]")
@option("--one-field", is_flag=True, default=None, help=ONE_FIELD)
@option("--initial", is_flag=True, help="of a run, the weights before training")
@option("--search", type=SEARCHES, default="fast", help="for a metric, if the net's own proves nothing")
@option("--require-step", is_flag=True, help="exit with 1 also if the step is not certified")
@json_option
@plot_option
def certify_command(
    source: str, search: Any, require_step: bool, as_json: bool, plot: Path | None, **changes: Any
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

    run = Run.open(source, **changes)
    config, units = run.config, run.about()["units"]
    # A second thread slows small matrices down, most of all on a busy machine.
    if config.threads or units <= DENSE:
        torch.set_num_threads(config.threads or 1)
    certificate, weights = run.certify(search), run.weights.as_dict()

    def figure() -> Any:
        from ctrnn_assembly.certificates.curves import step_curves
        from ctrnn_assembly.figures.diagnostics import certificate_figure

        step = config.dt / config.substeps
        core: Any = run.build(data=False).core
        curves = [] if certificate.of_layers else step_curves(core, certificate, near=step)
        return certificate_figure(certificate, curves, title=f"{config.model}: {Path(source).name}")

    title = f"{config.model}, {units} units{', tau trained' if config.train_tau else ''}"
    emit(
        {"model": config.model, "units": units, "weights": weights} | certificate.as_dict(),
        click.style(verdict(certificate), fg="green" if certificate.certified else "red"),
        facts([*weights_rows(weights), *fact_rows(certificate)], title=title),
        *shown_modules(certificate.modules, "modules" if certificate.cascade is None else "layers"),
        *shown_steps(certificate.cascade),
        figure=figure,
        as_json=as_json,
        plot=plot,
    )
    step = certificate.step is not None and certificate.step.certified
    click.get_current_context().exit(0 if certificate.certified and (step or not require_step) else 1)


def shown_modules(modules: Sequence[Any], title: str = "modules") -> Iterator[Table | str]:
    """A table of the modules; of many, the worst ones, and what all others have at least."""
    from ctrnn_assembly.certificates.wording import down

    worst = sorted(modules, key=lambda module: module.margin)
    shown = worst[:WORST] if len(worst) > MANY else modules
    rows = [vars(one) | {"margin": down(one.margin), "rate": down(one.rate)} for one in shown]
    if rows:
        yield table(rows, MODULES, title=title)
    if rest := worst[len(shown) :]:
        sizes, theorems = [one.size for one in rest], Counter(one.theorem for one in rest)
        units = "-".join(str(size) for size in sorted({min(sizes), max(sizes)}))
        margin, rate = down(rest[0].margin), down(min(one.rate for one in rest))
        counts = ", ".join(f"{name}: {count}" for name, count in theorems.most_common())
        yield f"{len(rest)} more of {units} units: margin >= {margin}, rate >= {rate}; {counts}"


def shown_steps(cascade: Any) -> Iterator[Table]:
    """Of a stack, a table of its layers' steps, with the constants between them."""
    from ctrnn_assembly.certificates.wording import factor, samples_words, up

    if cascade is not None:
        rows = [
            vars(one)
            | {"factor": factor(one.factor), "memory": samples_words(one.memory)}
            | {name: up(vars(one)[name]) for name in ("input_gain", "output_gain")}
            for one in cascade.layers
        ]
        yield table(rows, LAYERS, title="steps")
