"""What a certificate says: plain numbers, ready for JSON, and sentences.

Every number is a bound with float64 rounding accounted for, on the side that cannot mislead. In words it
is rounded to the side that claims less: rates and certified dt down, factors and costs up.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any, Self

import torch
from torch import Tensor

from ctrnn_assembly.metrics import Metric

WITHIN = "all W and L within the uncertainty"
LISTED = 64  # dt that are certified one by one
ILL_CONDITIONED = 1e6
SOURCES = {
    "trained": "trained, with the best validation accuracy",
    "checkpoint": "of the last epoch: the run is not finished",
    "initial": "initial, before training",
    "given": "given matrices",
}


@dataclass(frozen=True)
class StepProof:
    """What is proven of the steps of one scheme: dt to an upper bound on the factor, infinite for none.

    Up to `max_dt` every step contracts; 0 for none. Contracting steps may be an `interval`, as Euler's.
    """

    factor: Callable[[float], float]
    max_dt: float
    advice: str = "no dt is certified"
    interval: bool = False


@dataclass(frozen=True)
class Meeting:
    """States meet, from any start, down to `floor` + `per_input` U (Euclidean) under inputs up to U."""

    arithmetic: str
    floor: float
    per_input: float


@dataclass(frozen=True)
class StepCertificate:
    """Whether one step of a solver contracts, and why not; dt, its length, in the unit of tau.

    `substeps` of them lead from one sample to the next. `contraction_factor` bounds the factor by which
    a step changes the distance of two states in the metric, None if unknown. Every dt up to `max_dt` is
    certified: 0 for none, infinite for all; nothing is said between it and a dt certified beyond it. Of
    several `lengths`, in any order, dt has the largest bound; of Euler's they are the ends of an
    interval. All but `meeting` is of exact arithmetic; without it rounding may keep states apart.

    >>> step: StepCertificate = certify(torch.zeros(2, 2), dt=0.1).step  # x' = -x
    >>> round(step.contraction_factor, 6), round(step.max_dt, 6)
    (0.9, 2.0)
    """

    solver: str
    dt: float
    certified: bool
    contraction_factor: float | None
    max_dt: float = 0.0
    reason: str = ""
    substeps: int = 1
    lengths: tuple[float, ...] = ()
    meeting: Meeting | None = None

    @classmethod
    def refused(
        cls, solver: str, dt: float, reason: str = "the continuous system is not certified"
    ) -> Self:
        """Nothing is proven, and why."""
        return cls(solver, dt, False, None, 0.0, reason)

    @classmethod
    def of(cls, proof: StepProof, solver: str, dt: float) -> Self:
        """What a proof says of one dt."""
        if not 0 < dt < 1e100:
            return cls.refused(solver, dt, f"dt must be positive and below 1e100; got {dt}")
        factor, max_dt = proof.factor(dt), proof.max_dt
        if factor < 1:
            return cls(solver, dt, True, factor, max(max_dt, dt) if proof.interval else max_dt)
        reason = f"the largest certified dt is {down(max_dt, 6)}" if max_dt > 0 else proof.advice
        if math.isfinite(factor):
            reason = f"the bound on the step's factor is {up(factor, 6)}, not below 1; {reason}"
        return cls(solver, dt, False, finite(factor), min(max_dt, dt), reason)

    @classmethod
    def of_all(cls, proof: StepProof, solver: str, lengths: tuple[float, ...]) -> Self:
        """Of steps of increasing lengths in any order: of an `interval`, by convexity, by its ends."""
        some = lengths[:: len(lengths) - 1] if proof.interval and len(lengths) > 1 else lengths
        if len(some) > LISTED:
            reason = f"no proof is known of a range of {solver} steps; give at most {LISTED} dt"
            return cls.refused(solver, some[-1], reason)
        steps = [cls.of(proof, solver, dt) for dt in some]
        worst = max(steps, key=lambda step: (not step.certified, step.contraction_factor or math.inf))
        return replace(worst, lengths=some) if len(some) > 1 else worst

    @property
    def sample_factor(self) -> float | None:
        """contraction_factor^substeps, rounded up: bounds the factor from one sample to the next."""
        q, count = self.contraction_factor, self.substeps
        if q is None or count == 1 or not self.certified:
            return q
        return math.nextafter(q**count, math.inf)

    @property
    def exponent_bound(self) -> float | None:
        """log(contraction_factor) / dt, which no Lyapunov exponent exceeds in the long run; or None."""
        factor = self.contraction_factor
        return math.log(factor) / max(self.lengths or (self.dt,)) if self.certified and factor else None


@dataclass(frozen=True)
class Module:
    """One module alone, in its metric: a lower bound on its rate and the plainest proof of it.

    `margin` is 1 - c, the distance from the boundary of the theorem's set, in units of 1 / tau.
    """

    index: int
    size: int
    theorem: str
    margin: float
    rate: float
    certified: bool


@dataclass(frozen=True)
class MetricFacts:
    """The metric diag(tau) M of the proof: its kind, origin and extreme eigenvalues, and M itself.

    `origin` is "given" for the field's own. `matrix`, M, is None where nothing could be proven.
    """

    kind: str
    origin: str
    smallest: float
    largest: float
    matrix: Metric | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, metric: Metric, tau: Tensor, origin: str) -> Self:
        """Of diag(tau) M."""
        timed = metric.mapped(Tensor.double).scaled(tau.double().sqrt())
        values = torch.cat([factor.eigenvalues() for factor in timed.factors])
        low, high = float(values.min()), float(values.max())
        kind = "dense" if not metric.is_diagonal else "identity" if low == high else "diagonal"
        return cls(kind, origin, low, high, metric)

    @property
    def condition_number(self) -> float:
        """largest / smallest; distances may grow by its root before they shrink."""
        return self.largest / self.smallest if self.smallest > 0 else math.inf


@dataclass(frozen=True)
class CouplingFacts:
    """The coupling of pairs of modules by L, and the number of nonlinear edges, in the metric.

    `residual` is the largest over the pairs of ||Theta_i^-T (M_i L_ij + L_ji^T M_j) Theta_j^-1|| over
    the root of tau_i tau_j, 0 for exact feedback; `norm` is ||tau^-1/2 L tau^-1/2||_M. `cost` is the
    most that linear coupling takes from the rate.
    """

    topology: str
    pairs: tuple[tuple[int, int], ...]
    residual: float
    norm: float
    cost: float
    edges: int


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a cascade alone; `memory` is the samples after which it holds less than 1/1000."""

    index: int
    rate: float
    factor: float
    input_gain: float
    output_gain: float
    memory: float


@dataclass(frozen=True)
class CascadeFacts:
    """How strong the proof of a stack is: samples until differences are provably below a thousandth.

    `samples` is of the largest difference of any layer's states, in its metric; `memory` of the slowest
    layer alone. From equal states, an input difference moves the output by at most `peak_gain` times its
    largest norm over time, `l2_gain` times its root of summed squares; infinite without an `nn.Linear`.
    """

    layers: tuple[LayerFacts, ...]
    samples: float
    memory: float
    slowest: int
    peak_gain: float
    l2_gain: float


@dataclass(frozen=True)
class Certificate:
    """The result of `certify`.

    `rate` is a lower bound, per unit of time, perhaps negative; `rounding` is already taken off it.
    `reasons` say what failed first, its value, and what to change. `declared` names the activations
    whose slopes are not proven; `claim` the inputs and states that it is for, where it is not for all.

    Guarantee: if `certified`, two states under one input approach each other in the metric diag(tau) M
    at least like exp(-rate t), for every phi with the declared slopes; if also `step.certified`, each
    step multiplies their distance by at most `step.contraction_factor`, in exact arithmetic.

    >>> found: Certificate = certify(torch.eye(2))  # x' = -x + phi(x) does not contract at 0
    >>> found.certified, found.reasons[0][:55]
    (False, 'module 0 is not shown to contract in its metric: the be')
    """

    certified: bool
    rate: float
    rounding: float
    metric: MetricFacts
    modules: tuple[Module, ...]
    coupling: CouplingFacts
    step: StepCertificate | None
    reasons: tuple[str, ...]
    declared: tuple[str, ...] = ()
    claim: str = ""
    cascade: CascadeFacts | None = None  # of a `Stack`

    @classmethod
    def refused(
        cls, reason: str, *, dt: float | None = None, solver: str = "euler", origin: str = "none"
    ) -> Self:
        """Nothing is proven, and why."""
        step = None if dt is None else StepCertificate.refused(solver, dt, reason)
        metric = MetricFacts("none", origin, 0.0, math.inf)
        coupling = CouplingFacts("unknown", (), math.inf, math.inf, math.inf, 0)
        return cls(False, -math.inf, math.inf, metric, (), coupling, step, (reason,))

    def __str__(self) -> str:
        """The verdict, and below it what is known, a line each."""
        return "\n".join([verdict(self), *(f"  {name}: {what}" for name, what in fact_rows(self))])

    @property
    def slowest_time_constant(self) -> float:
        """1 / rate: distances fall by a factor e in this time, or faster; infinite if not certified."""
        return 1 / self.rate if self.certified else math.inf

    @property
    def crossing_time(self) -> float:
        """log(cond) / (2 rate): from then on no Euclidean distance exceeds its first value."""
        return self.slowest_time_constant * math.log(self.metric.condition_number) / 2

    @property
    def of_layers(self) -> bool:
        """Whether it is of a `Stack`, whose proof is in no one metric: Euclidean distances may grow."""
        return self.metric.kind == "cascade"

    @property
    def of_map(self) -> bool:
        """Whether it is of a map, whose step alone is a net: then there is no flow."""
        return self.step is not None and self.step.solver == "map"

    def jacobian_bound(self, samples: int) -> float | None:
        """sqrt(cond(diag(tau) M)) factor^samples >= ||dx_T / dx_t||; None without a certified step."""
        factor = None if self.step is None or not self.step.certified else self.step.sample_factor
        if factor is None:
            return None
        return math.sqrt(self.metric.condition_number) * factor**samples

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, None where a bound is infinite; the step by the key "discrete"."""
        result = {"verdict": verdict(self)} | plain(self)
        result["discrete"] = result.pop("step")
        result["metric"]["condition_number"] = finite(self.metric.condition_number)
        return result | {"slowest_time_constant": finite(self.slowest_time_constant)}


def plain(value: Any) -> Any:
    """For JSON: None for NaN and infinity, a dict of the fields that a dataclass shows in its repr."""
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None


def verdict(certificate: Certificate) -> str:
    """One line: certified or not, why not, and what to change."""
    if not certificate.certified:
        return f"NOT certified: {'; '.join(certificate.reasons)}"
    proven = f"certified: contracts at a rate of at least {down(certificate.rate)}"
    if certificate.declared:
        proven += f" for {declared(certificate.declared)}"
    if certificate.claim:
        proven += f" for {certificate.claim}"
    step = certificate.step
    if step is None:
        return proven
    if certificate.of_map and step.contraction_factor is not None:
        how = f"contracts: {factor_words(step.contraction_factor, 1)} a step"
        return f"certified: {certificate.claim}, {how}; it is no flow"
    name = f"{step.solver} step of {step.dt:g}"
    if step.certified and step.lengths:
        count = "every length" if step.solver == "euler" else f"{len(step.lengths)} lengths"
        ends = f"{step.lengths[0]:g} to {step.lengths[-1]:g}"
        return f"{proven}, and so do {step.solver} steps of {count} from {ends}"
    if step.certified:
        return f"{proven}, and so does the {name}"
    return f"{proven} in continuous time, but NOT its {name}: {step.reason}"


def weights_rows(weights: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("weights", SOURCES[weights["kind"]])]
    if weights["file"] is not None:
        rows += [("file", weights["file"]), ("sha256", f"{weights['sha256'][:16]}...")]
    return rows


def fact_rows(certificate: Certificate) -> list[tuple[str, str]]:
    """Rate, metric, step and coupling; nothing of what is not known."""
    if not certificate.modules:
        return []
    where = "in the long run" if certificate.of_layers else "in the metric"
    unit = "step, -log of the factor" if certificate.of_map else "unit of time"
    rows = [("rate", f">= {down(certificate.rate)} per {unit}, {where}")]
    if certificate.certified:
        longest = f"<= {up(certificate.slowest_time_constant)}"
        rows.append(("time constant", f"{longest}: distances shrink by a factor e in this time"))
        if (sooner := certificate.crossing_time) > 0:
            rows.append(("Euclidean", f"distances are below their first values after {up(sooner)}"))
    if certificate.declared:
        rows.append(("for", declared(certificate.declared)))
    if certificate.claim:
        rows.append(("only for", certificate.claim))
    metric, condition = certificate.metric, certificate.metric.condition_number
    origin = "of the modules' theorems" if metric.origin == "given" else f"by {metric.origin}"
    growth = growth_words(condition)
    warning = "WARNING, of little use: " if condition > ILL_CONDITIONED else ""
    taken = "uncertainty costs" if certificate.claim == WITHIN else "rounding"
    rows += [
        (taken, f"{up(certificate.rounding, 2)}, taken off the rate already"),
        ("metric", f"{metric.kind}, {origin}"),
        ("its eigenvalues", f"{metric.smallest:.4g} to {metric.largest:.4g}"),
        ("condition number", f"{up(condition)}; {warning}{growth}" if condition > 1 else "1"),
    ]
    step = certificate.step
    if step is not None:
        bound = step.contraction_factor if step.certified else None
        words = step.reason if bound is None else factor_words(bound, step.substeps)
        rows.append((f"{step.solver} step, dt {step.dt:g}", words))
        if not certificate.of_map and (step.certified or step.max_dt > 0):
            longest = "every dt" if math.isinf(step.max_dt) else down(step.max_dt)
            longest += f", and {step.dt:g} by itself" if step.certified and step.dt > step.max_dt else ""
            rows.append(("largest certified dt", longest))
        if step.certified:
            rows.append(("rounding in steps", meeting_words(step.meeting)))
    if (cascade := certificate.cascade) is not None:
        of = "" if step is not None and step.certified else "of the exact solution, "
        alone = f"{cascade.slowest}, alone after {samples_words(cascade.memory)}"
        more = f"the proof of the whole takes {up(cascade.samples / cascade.memory, 3)} times as many"
        rows += [
            ("differences", f"{of}below a thousandth after {samples_words(cascade.samples)} samples"),
            ("slowest layer", f"{alone}; {more}"),
        ]
    coupling = certificate.coupling
    if not coupling.pairs and not coupling.edges:
        return [*rows, ("coupling", "none")]
    count = f"{len(coupling.pairs)} pair{'s' if len(coupling.pairs) != 1 else ''}"
    named = coupling.topology if coupling.topology == count else f"{coupling.topology}, {count}"
    rows += [
        ("coupling", f"{named}, norm {up(coupling.norm)} in the metric"),
        ("largest residual", f"{up(coupling.residual, 2)}; 0 is exact feedback"),
        ("cost of the coupling", f"takes at most {up(coupling.cost, 2)} off the rate"),
    ]
    if coupling.edges:
        rows.append(("nonlinear couplings", str(coupling.edges)))
    return rows


def growth_words(condition: float) -> str:
    """What a metric of this condition number leaves to Euclidean distances."""
    return f"Euclidean distances may grow {up(math.sqrt(condition), 3)}-fold before they shrink"


def meeting_words(meeting: Meeting | None) -> str:
    """Down to which distance rounded states meet."""
    if meeting is None:
        return "the factor is of exact arithmetic: no distance is known to which rounded states meet"
    floor, per_input = up(meeting.floor, 2), up(meeting.per_input, 2)
    return f"states meet down to {floor} + {per_input} U in {meeting.arithmetic}, for inputs |u| <= U"


def samples_words(samples: float) -> str:
    return f"{samples:,.0f}" if math.isfinite(samples) else "more than 10^12"


def factor_words(q: float, substeps: int) -> str:
    """The bound on the factor of a step and, where a sample takes several, on that of a sample."""
    several = f", and <= {factor(q**substeps)} in the {substeps} steps of a sample"
    return f"factor <= {factor(q)}{several if substeps > 1 else ''}"


def declared(names: Iterable[str]) -> str:
    """On what the user's word a certificate rests."""
    return f"slopes of {', '.join(map(repr, names))} that are declared, not proven"


def factor(bound: float) -> str:
    """A factor, rounded up, with so many digits that three of its distance from 1 are seen."""
    digits = 4 if bound <= 0.9 or bound >= 1 else 3 - math.floor(math.log10(1 - bound))
    return up(bound, digits)


def down(value: float, digits: int = 4, towards: str = ROUND_FLOOR) -> str:
    """A lower bound with few digits: rounded down."""
    if not math.isfinite(value):
        return str(value)
    context = Context(prec=digits, rounding=towards)
    return f"{float(context.create_decimal_from_float(value)):.{digits}g}"


def up(value: float, digits: int = 4) -> str:
    """An upper bound with few digits: rounded up."""
    return down(value, digits, ROUND_CEILING)
