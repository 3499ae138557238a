"""Fixed points under a constant input: found from many starts, told apart, classified.

Of a flow the roots of x' = 0; of a map, such as nn.GRU, those of step(u, x) - x = 0. Grid solvers have
the fixed points of the field, whatever their dt; stability under a step is that of `step_jacobian`.

Bounded steps of Newton find stable and unstable roots alike; a start from which they find none follows
the flow by implicit steps, whose length grows as |f| falls. Finding none proves nothing. Cost: an LU
factorisation an iteration and start. Source: Sussillo and Barak 2013, for the use; pseudo-transient
continuation: Kelley and Keyes 1998.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ctrnn_assembly.diagnostics.linearise import Map, linearise, prepare
from ctrnn_assembly.diagnostics.spectrum import eigenvalues
from ctrnn_assembly.errors import check_within

Kind = Literal["stable", "unstable", "saddle", "marginal"]

CHUNK = 2**24  # numbers in the Jacobians factorised at once: 128 MiB, or one larger Jacobian
SMALL_STEP = 1e-9
ITERATIONS = 100  # at most, of each attempt, for each start
SAME = 1e-6  # two points are one if no unit differs by more than this times 1 + max |x|


@dataclass(frozen=True)
class FixedPoints:
    """The distinct fixed points that were found, the most often found first.

    Attributes:
        points: (p, n). residuals: max |tau x'|, or max |step(u, x) - x|, at each, (p,).
        eigenvalues: at each, (p, n), complex128: of a flow's J, per unit of time, by falling
            real part; of a map's step, by falling modulus.
        kinds: by the growth of the eigenvalues, the real part, of a map the modulus less 1: "stable":
            all below -marginal; "marginal": the largest within it; "unstable": the largest above it;
            "saddle": some below -marginal, too.
        hits: from how many of the `starts` each was found, (p,). smallest: residual that was met.
    """

    points: Tensor
    residuals: Tensor
    eigenvalues: Tensor
    kinds: tuple[Kind, ...]
    hits: Tensor
    starts: int
    smallest: float

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def failed(self) -> int:
        """From how many starts no fixed point was found."""
        return self.starts - int(self.hits.sum())

    @property
    def message(self) -> str:
        if not len(self):
            found = f"no fixed point was found from {self.starts} starts; the smallest residual is"
            return f"{found} {self.smallest:.3g}. This does not show that there is none."
        counts = {kind: self.kinds.count(kind) for kind in dict.fromkeys(self.kinds)}
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return f"{len(self)} found from {self.starts} starts ({self.failed} failed): {parts}."


@torch.no_grad()
def find_fixed_points(
    net: Any,
    u: Tensor | None = None,
    x0: Tensor | None = None,
    *,
    starts: int = 32,
    spread: float = 2.0,
    tolerance: float = 1e-10,
    marginal: float = 1e-6,
    generator: torch.Generator | None = None,
) -> FixedPoints:
    """Search for fixed points of a net under a constant input.

    Args:
        u: the constant input, (m,).
        x0: starts of your own, (starts, n), such as a trajectory's states, if gates saturate far away.
        starts, spread: without x0, how many starts: zero, and N(0, spread^2) for the others.
        tolerance: accepted are points with a residual of at most tolerance (1 + max |x|).
        marginal: tolerance of the kinds, per unit of time, or per sample.

    Guarantee: each point has the stated residual, not that the list is complete.

    >>> net = Subnetwork(Unconstrained(), 1, weight=torch.full((1, 1), 2.0))  # x' = -x + 2 tanh(x)
    >>> sorted(find_fixed_points(net).points.flatten().tolist()), sorted(find_fixed_points(net).kinds)
    ([-1.9150..., 0.0, 1.9150...], ['stable', 'stable', 'unstable'])
    """
    check_within("[1, inf)", starts=starts)
    check_within("(0, inf)", tolerance=tolerance)
    check_within("[0, inf)", spread=spread, marginal=marginal)
    random: dict[str, Any] = {"count": starts, "spread": spread, "generator": generator}
    known, held, start = prepare(net, u, x0, "(m,)", "x0 (starts, n)", **random)
    if x0 is None:
        start[0] = 0
    own, drive = known.own_map(), None if held is None else held[None]
    f = own if known.flow is not None else lambda u, x: own(u, x) - x
    search = _Search(f, known.tau, drive, tolerance)
    x = search.run(start)
    residuals, found = search.residuals(x), search.accepts(x)
    chosen, hits = _distinct(x[found], residuals[found])
    points = x[found][chosen]
    none = torch.zeros(0, known.size, dtype=torch.complex128)
    each = (linearise(own, drive, point[None]).matrix() for point in points)
    values = torch.cat([none, *(eigenvalues(J, by_modulus=known.flow is None) for J in each)])
    growth = values.real if known.flow is not None else values.abs() - 1
    return FixedPoints(
        points=points,
        residuals=residuals[found][chosen],
        eigenvalues=values,
        kinds=tuple(_kind(one[0], one[-1], marginal) for one in growth),
        hits=hits,
        starts=len(x),
        smallest=search.smallest,
    )


def _kind(largest: Tensor, smallest: Tensor, marginal: float) -> Kind:
    if largest < -marginal:
        return "stable"
    if largest <= marginal:
        return "marginal"
    return "saddle" if smallest < -marginal else "unstable"


def _distinct(x: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the points x (found, n) to keep, the best of each group, and the groups' sizes."""
    kept: list[int] = []
    hits: list[int] = []
    for k in residuals.argsort().tolist():
        near = (x[kept] - x[k]).abs().amax(1) <= SAME * (1 + x[k].abs().amax())
        if bool(near.any()):
            hits[int(near.nonzero()[0, 0])] += 1
        else:
            kept.append(k)
            hits.append(1)
    order = torch.tensor(hits, dtype=torch.long).argsort(descending=True, stable=True)
    return torch.tensor(kept, dtype=torch.long)[order], torch.tensor(hits, dtype=torch.long)[order]


@dataclass
class _Search:
    """f(u, x) = 0 under one input, (1, m) or None, with time constants tau, and when to stop."""

    f: Map
    tau: Tensor
    drive: Tensor | None
    tolerance: float
    smallest: float = math.inf  # residual so far

    def run(self, x: Tensor) -> Tensor:
        start, x = x, self.iterate(x, 0, self._newton)
        lost = ~self.accepts(x)
        if bool(lost.any()):
            settled = self.iterate(start[lost], 1 / float(self.tau.min()), self._settle)
            x[lost] = self.iterate(settled, 0, self._newton)
        return x

    def accepts(self, x: Tensor) -> Tensor:
        return self.residuals(x) <= self.tolerance * (1 + x.abs().amax(1))

    def residuals(self, x: Tensor) -> Tensor:
        """max |tau f|, (batch,)."""
        found = (self.f(self._inputs(x), x) * self.tau).abs().amax(1)
        self.smallest = min(self.smallest, float(found.nan_to_num(nan=math.inf).min()))
        return found

    def _inputs(self, x: Tensor) -> Tensor | None:
        return None if self.drive is None else self.drive.expand(len(x), -1)

    def iterate(self, x: Tensor, first: float, move: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        """Move each x (batch, n) until its move, (x, y, 1 / delta) -> x, 1 / delta, going, ends it."""
        x, shift, active = x.clone(), x.new_full((len(x),), first), torch.arange(len(x))
        for _ in range(ITERATIONS):
            y = self._solve(x[active], shift[active])
            x[active], shift[active], going = move(x[active], y, shift[active])
            active = active[going]
            if not len(active):
                break
        return x

    def _solve(self, x: Tensor, shift: Tensor) -> Tensor:
        """y with (I / delta - J) y = f, of least norm where that is singular; (batch, n)."""
        parts = []
        chunk = max(1, CHUNK // x.shape[1] ** 2)
        for z, inverse in zip(x.split(chunk), shift.split(chunk), strict=True):
            here = linearise(self.f, self._inputs(z), z)
            A = -here.matrix()
            A.diagonal(dim1=1, dim2=2).add_(inverse[:, None])
            f = here.value[..., None]
            y, info = torch.linalg.solve_ex(A, f)
            bad = (info != 0) | ~torch.isfinite(y).all(1)[:, 0]
            bad &= torch.isfinite(A).all(2).all(1) & torch.isfinite(f).all(1)[:, 0]
            if bool(bad.any()):
                y[bad] = torch.linalg.lstsq(A[bad], f[bad], driver="gelsd").solution
            parts.append(y[..., 0])
        return torch.cat(parts)

    def _newton(self, x: Tensor, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x + s y with s <= 1 and s max |y| <= (1 + rms x) / 2, unless y is not finite."""
        size, scale = y.abs().amax(1), 1 + x.square().mean(1).sqrt()
        s = (scale / 2 / size.clamp(min=1e-300)).clamp(max=1)
        new = torch.where(torch.isfinite(size)[:, None], x + s[:, None] * y, x)
        return new, shift, (new - x).abs().amax(1) > SMALL_STEP * (1 + new.abs().amax(1))

    def _settle(self, x: Tensor, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x + y, and delta grows as |f| falls; where y goes against the flow, only a shorter delta."""
        along = (y * self.f(self._inputs(x), x)).sum(1) > 0
        new = torch.where(along[:, None], x + y, x)
        before, after = self.residuals(x), self.residuals(new)
        growth = (before / after.clamp(min=1e-300)).nan_to_num(nan=0.0)
        delta = torch.where(along, growth.clamp(0.2, 5.0), 0.2) / shift
        delta = delta.clamp(1e-3 * float(self.tau.min()), 1e6 * float(self.tau.max()))
        return new, 1 / delta, ~(after <= self.tolerance)
