"""`ctrnn fixed-points`: where the network comes to rest under a constant input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ctrnn_cli.outputs import Outputs, picture_title
from ctrnn_cli.subject import load_subject, subject_options

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from ctrnn_assembly.diagnostics.fixed_points import FixedPoints


@click.command("fixed-points", short_help="Fixed points under constant inputs, and their spectra.")
@subject_options
@click.option(
    "--input",
    "held",
    type=click.Choice(["mean", "last", "zero"]),
    default="mean",
    help="the constant input: of each sequence the mean or the last sample, or zero  [default: mean]",
)
@click.option("--starts", type=int, default=32, help="states to start from  [default: 32]")
@click.option("--spread", type=float, default=2.0, help="standard deviation of the starts  [default: 2]")
@click.option("--largest", type=int, metavar="K", help="only the K leading eigenvalues, for large nets")
def fixed_points_command(
    source: str,
    outputs: Outputs,
    held: str,
    starts: int,
    spread: float,
    largest: int | None,
    **options: Any,
) -> None:
    """Search by Newton's method from many starts. A contracting network has exactly one, a stable one.

    Finding one fixed point, or none, proves nothing by itself: the certificate beside it does.
    """
    import torch

    from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
    from ctrnn_assembly.figures.fixed_points import fixed_points_figure

    subject = load_subject(source, **options)
    core = subject.core
    found = [
        find_fixed_points(
            core,
            constant_input(subject.sequence(k), held),
            starts=starts,
            spread=spread,
            largest=largest,
            generator=torch.Generator().manual_seed(0),
        )
        for k in range(1 if held == "zero" else len(subject.u))
    ]
    certificate = subject.certificate()
    rows = _rows(found)
    result = {
        **subject.about(),
        "input": held,
        "starts": starts,
        "certificate": certificate.as_dict(),
        "messages": [points.message for points in found],
        "rows": rows,
    }
    title = picture_title(result, source)
    arrays = {f"points{k}": points.points.numpy() for k, points in enumerate(found)}
    arrays |= {f"eigenvalues{k}": points.eigenvalues.numpy() for k, points in enumerate(found)}
    outputs.emit(
        result,
        _table(result),
        _notes(result),
        rows=rows or [{"sample": None}],
        arrays=arrays,
        figure=lambda: fixed_points_figure(
            found, rate=certificate.rate if certificate.certified else None, title=title
        ),
    )


def constant_input(u: Tensor, held: str) -> Tensor:
    """(m,) from a sequence (T, m)."""
    return {"mean": u.mean(0), "last": u[-1], "zero": 0 * u[-1]}[held]


def _rows(found: list[FixedPoints]) -> list[dict[str, Any]]:
    return [
        {
            "sample": sample,
            "point": k,
            "kind": kind,
            "norm": float(points.points[k].norm()),
            "residual": float(points.residuals[k]),
            "abscissa": float(points.eigenvalues[k].real.max()),
            "hits": int(points.hits[k]),
        }
        for sample, points in enumerate(found)
        for k, kind in enumerate(points.kinds)
    ]


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"{result['model']} on {result['task']}: fixed points under the {result['input']} input"
    names = ("sample", "point", "kind", "|x|", "max |tau x'|", "max Re eig J", "starts")
    table = Table(*names, title=title)
    for row in result["rows"]:
        table.add_row(
            str(row["sample"]),
            str(row["point"]),
            row["kind"],
            f"{row['norm']:.5f}",
            f"{row['residual']:.1e}",
            f"{row['abscissa']:.5f}",
            f"{row['hits']} of {result['starts']}",
        )
    return table


def _notes(result: dict[str, Any]) -> list[str]:
    from ctrnn_cli.show import certificate_rows

    found = [f"sample {k}: {message}" for k, message in enumerate(result["messages"])]
    return found + [f"{name}: {value}" for name, value in certificate_rows(result["certificate"])]
