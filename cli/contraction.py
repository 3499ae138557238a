"""`ctrnn contraction`: distances between trajectories under one input, and the certified envelope."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from ctrnn_assembly.certificates.result import finite
from ctrnn_cli.outputs import Outputs, picture_title
from ctrnn_cli.subject import load_subject, subject_options

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.metrics import Metric
    from ctrnn_assembly.terms import Terms


@dataclass(frozen=True)
class Distances:
    """Of pairs of trajectories, one row a pair: in the metric and Euclidean, (pairs, T + 1)."""

    times: Tensor
    metric: Tensor
    euclidean: Tensor

    @property
    def largest_factor(self) -> float:
        """The largest factor of one step in the metric, above the rounding floor."""
        before, after = self.metric[:, :-1], self.metric[:, 1:]
        kept = before > 1e-9 * self.metric[:, :1]
        return float((after / before)[kept].max())


@click.command("contraction", short_help="Distances between trajectories, and what is certified.")
@subject_options
@click.option("--pairs", type=int, default=8, help="pairs of initial states a sequence  [default: 8]")
@click.option("--spread", type=float, default=1.0, help="their standard deviation  [default: 1]")
@click.option(
    "--twin", is_flag=True, help="beside it the same modules with a coupling that has no guarantee"
)
def contraction_command(
    source: str,
    outputs: Outputs,
    pairs: int,
    spread: float,
    twin: bool,
    **options: Any,
) -> None:
    """Start pairs of trajectories apart and drive both with the same input.

    The twin has the same modules and the same strength of coupling, but the modules of a pair excite
    each other in the metric, where the original ones have feedback of opposite signs.
    """
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.figures.contraction import contraction_figure

    if pairs < 1 or not 0 < spread < math.inf:
        raise ConfigError(f"--pairs must be at least 1 and --spread positive; got {pairs}, {spread}.")
    subject = load_subject(source, **options)
    core, terms = subject.core, subject.terms
    certificate = subject.certificate()
    metric = certificate.metric.matrix or subject.metric  # the one that the numbers hold in
    settings: dict[str, Any] = {"dt": core.dt, "method": core.solver, "pairs": pairs, "spread": spread}
    found = distances(terms, metric, subject.u, **settings)
    other = distances(excited(terms, metric), metric, subject.u, **settings) if twin else None
    step = certificate.step
    result = {
        **subject.about(),
        "pairs": pairs,
        "certificate": certificate.as_dict(),
        "largest_factor": finite(found.largest_factor),
        "certified_factor": None if step is None or not step.certified else step.contraction_factor,
        "growth": _growth(found.metric),
        "euclidean_growth": _growth(found.euclidean),
        "twin_growth": None if other is None else _growth(other.metric),
        "rows": _rows(found, other, certificate),
    }
    title = picture_title(result, source)
    arrays = {"times": found.times.numpy(), "metric": found.metric.numpy()}
    arrays |= {"euclidean": found.euclidean.numpy()}
    if other is not None:
        arrays["twin"] = other.metric.numpy()
    outputs.emit(
        result,
        _table(result),
        _notes(result),
        rows=result["rows"],
        arrays=arrays,
        figure=lambda: contraction_figure(
            found.times.numpy(),
            found.metric.numpy(),
            found.euclidean.numpy(),
            certificate,
            twin=None if other is None else other.euclidean.numpy(),
            title=title,
        ),
    )


def distances(
    terms: Terms, metric: Metric, u: Tensor, *, dt: float, method: str, pairs: int, spread: float
) -> Distances:
    """Distances of `pairs` pairs for each sequence u (batch, T, m), in float64.

    |x - y| in the metric diag(tau) M is |Theta tau^1/2 (x - y)|.
    """
    import torch

    from ctrnn_assembly.solvers import solve

    generator = torch.Generator().manual_seed(0)
    drive = u.repeat_interleave(pairs, 0)
    shape = (len(drive), terms.n)
    x, y = (spread * torch.randn(shape, generator=generator, dtype=u.dtype) for _ in range(2))
    both = solve(terms, torch.cat([x, y]), u=drive.repeat(2, 1, 1), dt=dt, method=method)
    x, y = both.x.chunk(2)
    theta = metric.theta().to(x) * terms.tau.to(x).sqrt()
    times = torch.arange(x.shape[1], dtype=x.dtype) * dt
    return Distances(times, ((x - y) @ theta.mT).norm(dim=-1), (x - y).norm(dim=-1))


def excited(terms: Terms, metric: Metric) -> Terms:
    """The same modules, each coupled pair with the signs of mutual excitation in the metric.

    In balanced form feedback is K = U - U^T with U the blocks above the diagonal; this is U + U^T.

    Raises:
        ConfigError: without linear coupling.
    """
    import torch

    from ctrnn_assembly.errors import ConfigError

    if terms.L is None:
        raise ConfigError("--twin needs a network with linear coupling; this one has none.")
    theta, inverse = metric.theta().to(terms.L), metric.theta_inv().to(terms.L)
    upper = torch.triu(theta @ terms.L @ inverse, 1)
    return replace(terms, L=inverse @ (upper + upper.mT) @ theta)


def _growth(d: Tensor) -> float | None:
    """The largest distance at the end over that at the beginning; None if it overflowed."""
    return finite(float((d[:, -1] / d[:, 0]).max()))


def _rows(found: Distances, other: Distances | None, certificate: Certificate) -> list[dict[str, Any]]:
    """Largest distances over the pairs, relative to the start, at about twenty times."""
    step = certificate.step
    gain = step.contraction_factor if step is not None and step.certified else None
    rows = []
    for k in range(0, len(found.times), max(1, (len(found.times) - 1) // 20)):
        row = {
            "time": float(found.times[k]),
            "metric": finite(float((found.metric[:, k] / found.metric[:, 0]).max())),
            "euclidean": finite(float((found.euclidean[:, k] / found.euclidean[:, 0]).max())),
            "certified_step": None if gain is None else gain**k,
            "certified_continuous": (
                math.exp(-certificate.rate * float(found.times[k])) if certificate.certified else None
            ),
        }
        if other is not None:
            row["twin"] = finite(float((other.metric[:, k] / other.metric[:, 0]).max()))
        rows.append(row)
    return rows


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"{result['model']} on {result['task']}: largest distance of {result['pairs']} pairs"
    names = ["time", "in the metric", "Euclidean", "certified (step)", "certified (continuous)"]
    keys = ["time", "metric", "euclidean", "certified_step", "certified_continuous"]
    if result["twin_growth"] is not None or "twin" in result["rows"][0]:
        names, keys = [*names, "twin"], [*keys, "twin"]
    table = Table(*names, title=title)
    for column in table.columns:
        column.justify = "right"
    for row in result["rows"]:
        table.add_row(*("overflow" if row[key] is None and key == "twin" else
                        "-" if row[key] is None else f"{row[key]:.4g}" for key in keys))  # fmt: skip
    return table


def _notes(result: dict[str, Any]) -> list[str]:
    from ctrnn_cli.show import certificate_rows

    factor, bound = result["largest_factor"], result["certified_factor"]
    measured = "-" if factor is None else f"{factor:.6f}"
    return [
        f"largest factor of one step: {measured} measured, "
        + ("not certified" if bound is None else f"at most {bound:.6f} certified"),
        *(f"{name}: {value}" for name, value in certificate_rows(result["certificate"])),
    ]
