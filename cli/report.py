"""`ctrnn report RUN --out report.html`: everything about a run on one page that opens offline."""

from __future__ import annotations

from pathlib import Path

import click

from ctrnn_cli.output import OutputFile


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=OutputFile(".html", ".htm"), help="the page, .html")
def report_command(run: Path, out: Path) -> None:
    """Write one self-contained HTML page: summary, certificate, curves, weights, spectra, configuration.

    No data are read. The certificate is computed from the weights in the folder: the trained ones, or
    those of the last epoch if the run is not finished.
    """
    from ctrnn_assembly.figures.report import report
    from ctrnn_assembly.training.run import write

    write(out, report(run))
    click.echo(f"report of {run}: written to {out}")
