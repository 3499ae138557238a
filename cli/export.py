"""`ctrnn export RUN --out FILE`: a trained network as a program that runs without this library."""

from pathlib import Path
from typing import Any

import click

from ctrnn_assembly import __version__
from ctrnn_cli.shared import Command, OutputFile, emit, facts, json_option, place

FORMATS = {".onnx": "onnx", ".pt2": "torch"}


@click.command("export", cls=Command)
@click.argument("run", metavar="RUN")
@click.option(
    "--out", type=OutputFile(*FORMATS), help=".onnx, .pt2 of torch  [default: model.onnx in RUN]"
)
@click.option("--format", type=click.Choice([*FORMATS.values()]), help="[default: as the suffix says]")
@click.option("--step", is_flag=True, help="one step, (u, x) -> (x_next, logits), not a whole sequence")
@json_option
def export_command(run: str, out: Path | None, format: Any, step: bool, as_json: bool) -> None:
    """Write a run as an ONNX file, or as a program of torch.export.

    It reads sequences (batch, time, features) as the task prepares them, of any batch and length, and
    gives logits; the loop over time is one operator. Its numbers are compared with the network's
    before the file is written. The file's metadata hold the sha256 of the weights and what is certified
    of them, in float64: the program rounds as the precision of the weights does.
    """
    from ctrnn_assembly.certificates.wording import verdict
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.export import exported
    from ctrnn_assembly.training.run import Run, write

    out = place(out, Path(run), "model.pt2" if format == "torch" else "model.onnx")
    if format not in (None, made := FORMATS[out.suffix.lower()]):
        raise ConfigError(f"--format {format} does not go with --out; got {str(out)!r}.")
    opened, part, format = Run.open(run), "step" if step else "sequence", made
    certificate, weights = opened.certificate, opened.weights.as_dict()
    about = {
        "ctrnn_assembly": __version__,
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
