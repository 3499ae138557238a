"""Fixed points under a constant input, x' = 0: found from many starts, told apart, classified.

`newton` finds the roots. Finding none proves nothing: the starts may be bad, or there may be none.
Grid solvers have the fixed points of the field, whatever their dt; stability under a step is that of
`step_jacobian`.

Source: Sussillo and Barak 2013, for the use; THEORY section 1: a contracting net has exactly one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.eigen import check_largest, leading
from ctrnn_assembly.diagnostics.jacobian import Jacobian, check_points, field_map
from ctrnn_assembly.diagnostics.newton import Search
from ctrnn_assembly.errors import ConfigError, ShapeError

Kind = Literal["stable", "unstable", "saddle", "marginal"]


@dataclass(frozen=True)
class FixedPoints:
    """The distinct fixed points that were found, the most often found first.

    Attributes:
        points: (p, n). residuals: max |tau x'| at each, (p,).
        eigenvalues: of J at each, by falling real part, (p, n) or (p, k), complex128, per unit of time.
        kinds: with the tolerance `marginal` on the real parts of all eigenvalues:
            "stable": all below -marginal; "marginal": the largest within it, so that the linearisation
            does not tell; "saddle": some above it and some below -marginal; "unstable": the largest
            above it and none below -marginal.
        hits: from how many starts each was found, (p,).
        starts: starts in all. marginal: the tolerance. smallest: the smallest residual of any start.
    """

    points: Tensor
    residuals: Tensor
    eigenvalues: Tensor
    kinds: tuple[Kind, ...]
    hits: Tensor
    starts: int
    marginal: float
    smallest: float

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def failed(self) -> int:
        """From how many starts no fixed point was found."""
        return self.starts - int(self.hits.sum())

    @property
    def message(self) -> str:
        """What was found, as a sentence."""
        if not len(self):
            return (
                f"no fixed point was found from {self.starts} starts; the smallest residual is "
                f"{self.smallest:.3g}. This does not show that there is none."
            )
        counts = {kind: self.kinds.count(kind) for kind in dict.fromkeys(self.kinds)}
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return f"{len(self)} found from {self.starts} starts ({self.failed} failed): {parts}."


@torch.no_grad()
def find_fixed_points(
    field: Any,
    u: Tensor | None = None,
    *,
    starts: int = 32,
    spread: float = 2.0,
    x0: Tensor | None = None,
    tolerance: float = 1e-10,
    same: float = 1e-6,
    marginal: float = 1e-6,
    largest: int | None = None,
    iterations: int = 100,
    generator: torch.Generator | None = None,
) -> FixedPoints:
    """Search for fixed points of the field under a constant input.

    Args:
        field: a `Subnetwork`, `Assembly`, `CTRNN` or `Terms`.
        u: the constant input, (m,), or None.
        starts, spread: how many starts: zero, and N(0, spread^2) for the others.
        x0: instead of these, starts of your own, (starts, n): a trajectory's states are good ones.
        tolerance: accepted are points with max |tau x'| <= tolerance (1 + max |x|).
        same: two points are one if no unit differs by more than same (1 + max |x|).
        marginal: tolerance of the kinds, per unit of time.
        largest: only so many leading eigenvalues, see `eigen`; by default all.
        iterations: at most, of each of the three attempts, for each start.

    Returns:
        `FixedPoints`, possibly none.

    Raises:
        ConfigError, ShapeError, DataError: for arguments that do not fit.
        SolverError: if ARPACK does not converge.

    Guarantee: each point has the stated residual. None that the list is complete, except that a
    contracting net has exactly one.
    """
    flow = field_map(field)
    n = flow.terms.n
    _check_settings(starts, spread, tolerance, same, marginal, iterations)
    check_largest(largest, n)
    if x0 is None:
        x0 = spread * torch.randn(starts, n, generator=generator, dtype=torch.float64)
        x0[0] = 0
    start, drive = check_points(flow.terms, x0, _as_batch(u))
    search = Search(flow, None if drive is None else drive[:1], tolerance, iterations)
    x, residuals = search.run(start)
    found = search.accepts(x)
    chosen, hits = _distinct(x[found], residuals[found], same)
    points = x[found][chosen]
    spectra = [
        _classified(flow.jacobian(point[None], search.drive), largest, marginal) for point in points
    ]
    none = torch.zeros(0, largest or n, dtype=torch.complex128)
    return FixedPoints(
        points=points,
        residuals=residuals[found][chosen],
        eigenvalues=torch.stack([values for values, _ in spectra]) if spectra else none,
        kinds=tuple(kind for _, kind in spectra),
        hits=hits,
        starts=len(x),
        marginal=marginal,
        smallest=float(residuals.nan_to_num(nan=math.inf).min()),
    )


def _classified(J: Jacobian, largest: int | None, marginal: float) -> tuple[Tensor, Kind]:
    """Eigenvalues at one fixed point, and its kind."""
    values = leading(J, "real", largest)
    top = float(values[0].real)
    if top < -marginal:
        return values, "stable"
    if top <= marginal:
        return values, "marginal"
    lowest = values if largest is None else leading(J, "real", None)
    return values, "saddle" if float(lowest[-1].real) < -marginal else "unstable"


def _distinct(x: Tensor, residuals: Tensor, same: float) -> tuple[Tensor, Tensor]:
    """Which of the points x (found, n) to keep, the best of each group, and the groups' sizes."""
    kept: list[int] = []
    hits: list[int] = []
    for k in residuals.argsort().tolist():
        near = (x[kept] - x[k]).abs().amax(1) <= same * (1 + x[k].abs().amax())
        if bool(near.any()):
            hits[int(near.nonzero()[0, 0])] += 1
        else:
            kept.append(k)
            hits.append(1)
    order = torch.tensor(hits, dtype=torch.long).argsort(descending=True, stable=True)
    return torch.tensor(kept, dtype=torch.long)[order], torch.tensor(hits, dtype=torch.long)[order]


def _as_batch(u: Tensor | None) -> Tensor | None:
    """A constant input as (1, m)."""
    if u is not None and u.ndim != 1:
        raise ShapeError(f"u must be (m,), one constant input; got {tuple(u.shape)}. Use u[0].")
    return None if u is None else u[None]


def _check_settings(
    starts: int, spread: float, tolerance: float, same: float, marginal: float, iterations: int
) -> None:
    if starts < 1 or iterations < 1:
        raise ConfigError(f"starts and iterations must be at least 1; got {starts} and {iterations}.")
    for name, value in (("tolerance", tolerance), ("same", same)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive and finite; got {value}.")
    for name, value in (("spread", spread), ("marginal", marginal)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be finite and at least 0; got {value}.")
