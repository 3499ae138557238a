"""`ctrnn plot RUN... --kind KIND --out FILE`, and `ctrnn report RUN --out FILE`: a page of pictures."""

from pathlib import Path

import click

from ctrnn_assembly.errors import ConfigError, check_known
from ctrnn_cli.shared import PATH, PICTURE, OutputFile, place

OF_MANY = {
    "curves": "accuracy and loss over epochs, with the published accuracy",
    "certificate": "rate, factor of a step and largest certified dt over epochs",
}
OF_ONE = {
    "weights": "heat maps of W and L",
    "coupling": "how strongly modules are coupled, from each to each",
}
KINDS = {**OF_MANY, **OF_ONE}


@click.command("plot")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--kind", required=True, metavar="|".join(KINDS), help="what to draw")
@click.option("--out", type=PICTURE, help=".png, .svg or .pdf  [default: KIND.png in the first RUN]")
@click.option("--initial", is_flag=True, help="weights, coupling: before training")
def plot_command(runs: tuple[Path, ...], kind: str, out: Path | None, initial: bool) -> None:
    """Draw a picture, ready for print at 7 inches.

    curves and certificate draw one run or several; weights and coupling draw one: its trained
    weights, or those of the last epoch if it is not finished. Published accuracies are drawn beside runs
    on the whole task only, with their source.
    """
    from ctrnn_assembly.figures.curves import curves_figure, margin_figure
    from ctrnn_assembly.figures.network import NETWORK_FIGURES
    from ctrnn_assembly.figures.style import save_figure
    from ctrnn_assembly.reproduction.experiments import published_for
    from ctrnn_assembly.training.run import Run

    check_known("--kind", kind, KINDS)
    if kind in OF_ONE and len(runs) > 1:
        raise ConfigError(f"--kind {kind} draws one run; got {len(runs)}. Name one of them.")
    if kind in OF_MANY and initial:
        raise ConfigError(f"--kind {kind} draws all epochs. Drop --initial.")
    found = [Run.open(run, initial=initial) for run in runs]
    if kind == "curves":
        figure = curves_figure(found, published_for(found))
    elif kind == "certificate":
        figure = margin_figure(found)
    else:
        figure = NETWORK_FIGURES[kind](found[0].build(data=False).core, found[0].title)
    out = place(out, runs[0], f"{kind}.png")
    save_figure(figure, out)
    click.echo(f"{KINDS[kind]}: drawn in {out}")


@click.command("report")
@click.argument("run", type=PATH)
@click.option("--out", type=OutputFile(".html", ".htm"), help="the page  [default: report.html in RUN]")
def report_command(run: Path, out: Path | None) -> None:
    """Write one self-contained HTML page: summary, certificate, curves, weights, configuration.

    No data are read. The certificate is computed from the weights in the folder: the trained ones, or
    those of the last epoch if the run is not finished.
    """
    from ctrnn_assembly.figures.report import report
    from ctrnn_assembly.training.run import write

    page, out = report(run), place(out, run, "report.html")
    write(out, page)
    click.echo(f"report of {run}: written to {out}")
