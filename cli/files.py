"""`ctrnn predict`, `export`, `plot` and `report`: files made of a run, by default in its folder."""

from pathlib import Path
from typing import Any

import click

import ctrnn_assembly
from ctrnn_assembly.errors import ConfigError, check_known
from ctrnn_cli.shared import PATH, PICTURE, Command, Output, emit, facts, json_option, place

PROGRAMS = {".onnx": "onnx", ".pt2": "torch"}
KINDS = {
    "curves": "accuracy and loss over epochs, with the published accuracy",
    "certificate": "rate, factor of a step and largest certified dt over epochs",
    "weights": "heat maps of W and L",
}


@click.command("predict", cls=Command)
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--data", type=PATH, metavar="FILE", required=True, help="series as for training")
@click.option("--out", type=Output(".csv"), metavar="FILE", help="[default: predictions.csv in RUN]")
def predict_command(folder: Path, data: Path, out: Path | None) -> None:
    """Say of the series of a file what a run learnt to, with its weights and normalisation.

    The file has the channels of training; a target in it is not read. The table has a row a series, or
    for per-step and forecast a row a step: id, step (from 0), time if there is one, prediction, in the
    data's own unit, and the probability that the net gives to each class.
    """
    from ctrnn_assembly.data.own import Preparation, read_series
    from ctrnn_assembly.data.targets import STEPWISE
    from ctrnn_assembly.training.batches import outputs_of
    from ctrnn_assembly.training.run import PREPARATION, Run, read_config, write_table

    read_config(folder)  # a run folder, not the name of a recipe
    out = place(out, folder, "predictions.csv")
    run, prepared = Run.open(folder), Preparation.read(folder / PREPARATION)
    series = read_series(data, None, prepared.columns)
    split, rows, stepwise = prepared.split(series, answered=False), [], prepared.target in STEPWISE
    for i, outputs in enumerate(outputs_of(run.model, split)):
        for step, one in enumerate(outputs[: series.lengths[i]] if stepwise else [outputs]):
            row: dict[str, Any] = {"id": series.ids[i]} | ({"step": step} if stepwise else {})
            if stepwise and series.stamps is not None:
                row["time"] = series.stamps[i, step]
            rows.append(row | prepared.words(one))
    write_table(out, rows)
    click.echo(f"{run.title}: {len(series.ids)} series of {data.name}. {series.note}".rstrip())
    click.echo(f"written: {out}")


@click.command("export", cls=Command)
@click.argument("run", metavar="RUN")
@click.option("--out", type=Output(*PROGRAMS), help=".onnx or .pt2  [default: model.onnx in RUN]")
@click.option("--step", is_flag=True, help="one step, (u, x) -> (x_next, logits), not a whole sequence")
@json_option
def export_command(run: str, out: Path | None, step: bool, as_json: bool) -> None:
    """Write a run as an ONNX file, or, with the suffix .pt2, as a program of torch.export.

    It reads sequences (batch, time, features) as the task prepares them, of any batch and length, and
    gives logits; the loop over time is one operator. Its numbers are compared with the network's
    before the file is written. The file's metadata hold the sha256 of the weights and what is certified
    of them, in float64: the program rounds as the precision of the weights does.
    """
    from ctrnn_assembly.certificates.result import verdict
    from ctrnn_assembly.export import exported
    from ctrnn_assembly.training.run import Run, write

    out = place(out, Path(run), "model.onnx")
    opened, part, format = Run.open(run), "step" if step else "sequence", PROGRAMS[out.suffix.lower()]
    certificate, weights = opened.certificate, opened.weights.as_dict()
    about = {
        "ctrnn_assembly": ctrnn_assembly.__version__,
        "model": opened.config.model,
        "program": part,
        "weights": str(weights["kind"]),
        "weights_sha256": str(weights["sha256"]),
        "certified": str(certificate.certified).lower(),
        "step_certified": str(certificate.step is not None and certificate.step.certified).lower(),
        "certificate": verdict(certificate),
    }
    content, deviation = exported(opened.model, part, format, about)  # type: ignore[arg-type]
    write(out, content)
    found = {"file": str(out), "format": format, "deviation": deviation, **about}
    rows = [(name.replace("_", " "), str(value)) for name, value in found.items()]
    emit(found, facts(rows, title=f"{opened.title}"), as_json=as_json)


@click.command("plot")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--kind", required=True, metavar="|".join(KINDS), help="what to draw")
@click.option("--out", type=PICTURE, help=".png, .svg or .pdf  [default: KIND.png in the first RUN]")
@click.option("--initial", is_flag=True, help="weights: before training")
def plot_command(runs: tuple[Path, ...], kind: str, out: Path | None, initial: bool) -> None:
    """Draw a picture, ready for print at 7 inches.

    curves and certificate draw one run or several; weights draws one: its trained weights, or those of
    the last epoch if it is not finished. Published accuracies are drawn beside runs on the whole task
    only, with their source.
    """
    from ctrnn_assembly.figures.curves import curves_figure, margin_figure
    from ctrnn_assembly.figures.diagnostics import weights_figure
    from ctrnn_assembly.figures.style import save_figure
    from ctrnn_assembly.reproduction.experiments import published_for

    check_known("--kind", kind, KINDS)
    if kind == "weights" and len(runs) > 1:
        raise ConfigError(f"--kind {kind} draws one run; got {len(runs)}. Name one of them.")
    if kind != "weights" and initial:
        raise ConfigError(f"--kind {kind} draws all epochs. Drop --initial.")
    out = place(out, runs[0], f"{kind}.png")
    found = [ctrnn_assembly.Run.open(run, initial=initial) for run in runs]
    if kind == "curves":
        figure = curves_figure(found, published_for(found))
    elif kind == "certificate":
        figure = margin_figure(found)
    else:
        figure = weights_figure(found[0].build(data=False).core, title=found[0].title)
    save_figure(figure, out)
    click.echo(f"{KINDS[kind]}: drawn in {out}")


@click.command("report")
@click.argument("run", type=PATH)
@click.option("--out", type=Output(".html", ".htm"), help="the page  [default: report.html in RUN]")
def report_command(run: Path, out: Path | None) -> None:
    """Write one self-contained HTML page: summary, certificate, curves, weights, configuration.

    No data are read. The certificate is computed from the weights in the folder: the trained ones, or
    those of the last epoch if the run is not finished.
    """
    from ctrnn_assembly.figures.report import report
    from ctrnn_assembly.training.run import write

    out = place(out, run, "report.html")
    write(out, report(run))
    click.echo(f"report of {run}: written to {out}")
