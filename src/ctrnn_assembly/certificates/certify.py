"""Is this system contracting, how fast, and does its step keep it, up to which dt?"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.certificates import result
from ctrnn_assembly.certificates.given import terms_of, uncertain
from ctrnn_assembly.certificates.interconnection import Interconnection, block_norms, nonzero_blocks
from ctrnn_assembly.certificates.maps import certify_rnn
from ctrnn_assembly.certificates.modules import ModuleBound
from ctrnn_assembly.certificates.result import Certificate, Module, StepCertificate, StepProof
from ctrnn_assembly.certificates.rounding import last_proven
from ctrnn_assembly.certificates.search import JOINT_SIZE, candidates, identity, jointly, reweighed
from ctrnn_assembly.certificates.steps import prove_step
from ctrnn_assembly.errors import ConfigError, ContractionError, check_known
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.recurrent import HOOKS
from ctrnn_assembly.schemes import SCHEMES, SOLVERS, unknown_solver
from ctrnn_assembly.terms import Terms, Uncertainty
from ctrnn_assembly.topology import recognise

# In units of 1 / tau: a smaller rate is no guarantee that anyone can use, and is refused.
SMALLEST_RATE = 1e-6
# Products of three larger entries overflow, and an infinite bound must never look like a proof.
LARGEST = 1e50
ILL_CONDITIONED = 1e8  # condition number of a metric from which milder weights are sought
POINTS = 10  # of a curve, besides the dt that are asked for or the largest

Search = Literal["none", "rate", "fast"]
StepLengths = float | Sequence[float] | Tensor | None
Lengths = tuple[float, ...]


@one_thread()
def certify(
    field: Any,
    L: Any = None,
    *,
    metric: Metric | None = None,
    dt: StepLengths = None,
    solver: str | None = None,
    search: Search = "fast",
    uncertainty: Any = None,
    **given: Any,
) -> Certificate:
    """Certify a layer, a classifier, a field, plain `Terms`, matrices or an `nn.RNN`, as they are now.

    Args:
        field: a layer, or a `SequenceClassifier`, which answers by its `certificate`; a `Subnetwork`, an
            `Assembly`, or what else has `terms()` and `metric()`; `Terms`; matrices W, L and `given`
            as for `terms_of`; an `nn.RNN`, as torch computes it. Of any other net nothing is proven.
        L: the coupling of matrices; of what else there is, a metric may stand in its place.
        metric: the one to try first, one factor a block; by default that of a field, for others I.
        dt, solver: the discrete step to certify, dt in the unit of tau; by default a layer's own, of a
            field none, and Euler's. A tensor or list of dt, as of irregular samples: steps of all these
            lengths in any order, in one metric; of Euler of all between, too, else at most 64.
        search: for another metric if that one does not prove both rate and step. "none"; "rate" for
            identity, Perron, Lyapunov and balanced metrics if it does not prove the rate, and the step
            of more than 256 units by a bound in closed form alone, as in a training's epochs; "fast" for
            these and, for few units, one of the step, or else the rate, together with its multipliers.
        uncertainty: of a field, `Terms` or matrices: the certificate is to hold for all W + dW and
            L + dL within it, a radius in the spectral norm, or half-widths of the entries of W, or
            `Uncertainty(W, L)` of both.

    Raises: ConfigError for an unknown search or solver, a metric for a layer, and what is no net.

    The guarantee is that of `Certificate`, which also says whatever is not proven.

    >>> found = certify(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), dt=0.1, solver="imex")
    >>> round(found.rate, 3), found.step.certified
    (0.5, True)
    """
    check_known("search", search, get_args(Search))
    if solver is not None and solver not in SOLVERS:
        raise unknown_solver(solver)
    metric, L = (L, None) if isinstance(L, Metric) else (metric, L)
    if isinstance(field, Tensor | np.ndarray | list | tuple):
        field, L, given = terms_of(field, L, **given), None, {}
    if given or L is not None or not isinstance(metric, Metric | None):
        got = ", ".join((*given, type(L).__name__, type(metric).__name__))
        raise ConfigError(f"L and tau go with matrices, and metric must be a Metric; got {got}.")
    asked = getattr(field, "certificate", None) or getattr(field, "terms", None)
    owner = getattr(asked, "__self__", field)  # another one where a net within this one answers
    if owner is getattr(field, "_orig_mod", 0) and not any(getattr(field, k) for k in HOOKS):
        field = owner
    own = owner is field
    if isinstance(field, nn.RNNBase) or (own and callable(getattr(field, "certificate", None))):
        if metric is not None or uncertainty is not None:
            fix = "Use certify(layer.field, metric) or certify(layer.field, uncertainty=...)."
            raise ConfigError(f"a layer is certified in its own metric, for its own weights. {fix}")
        if isinstance(field, nn.RNNBase):
            return certify_rnn(field)
        return field.certificate(dt=dt, solver=solver, search=search)
    solver = solver or "euler"
    name = getattr(field, "__name__", type(field).__name__)
    reason = f"no certificate is defined for {name}; certify a layer, or matrices: certify(W, L)"
    if changed := getattr(field, "changed", str)():
        reason = f"a {changed} has hooks or a forward that its tensors do not say; remove these"
    elif own and hasattr(field, "terms") and not (reason := unsteady(lambda: field.terms().tensors())):
        field, metric = field.terms(), metric or field.metric()
    if isinstance(field, Terms):
        terms = field.detach_cpu() if uncertainty is None else uncertain(field.detach_cpu(), uncertainty)
        return _certify_terms(terms, metric, step_lengths(dt), solver, search)
    if not callable(field) and not hasattr(field, "terms"):
        must = "field must be a layer, a classifier, a field or Terms"
        raise ConfigError(f"{must}; got {name}. Use certify(layer), or load_run(path).certificate.")
    return Certificate.refused(reason, dt=max(step_lengths(dt), default=None), solver=solver)


def step_lengths(dt: StepLengths) -> Lengths:
    """The distinct numbers in dt, increasing; none if it is None or empty."""
    return () if dt is None else tuple(torch.as_tensor(dt, dtype=torch.float64).unique().tolist())


def random_states() -> list[Tensor]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def parametrized(net: nn.Module) -> list[Tensor]:
    """The tensors that are computed at every reading, by torch's parametrisations, at any depth."""
    return [getattr(m, name) for m in net.modules() for name in getattr(m, "parametrizations", ())]


def unsteady(read: Callable[[], Sequence[Tensor]]) -> str:
    """What is wrong if readings of the tensors draw numbers or differ: then a solve will have others."""
    try:
        before, pairs = random_states(), [*zip(read(), read(), strict=True)]
        same = all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)
    except (RuntimeError, IndexError, AssertionError) as error:  # of an encoder of one length, or meta
        return f"its tensors cannot be read, or its encoder called with two samples: {error}"
    same = same and all(map(torch.equal, before, random_states()))
    return "" if same else "two readings of the weights differ, as by dropout in training; call eval()"


def _certify_terms(
    terms: Terms, metric: Metric | None, dt: Lengths, solver: str, search: Search
) -> Certificate:
    """In the metric that is given, by default the identity, or else in the best that is found."""
    given = identity(terms) if metric is None else metric.detach_cpu()
    inside = partial(_certify_in, terms, dt, solver, search != "rate")
    own = inside(given, "identity" if metric is None else "given")
    steps = search != "rate" and bool(dt) and 0 < dt[0] <= dt[-1] < 1e100 and solver in SCHEMES
    steps &= solver == "euler" or len(dt) <= result.LISTED
    if search != "none" and own.modules and own.metric.condition_number > ILL_CONDITIONED:
        own = _milder(own, given, terms, inside)
    if _holds(own, steps) or search == "none" or unusable(terms, given):
        return own
    usable = [(origin, other) for origin, other in candidates(terms) if not unusable(terms, other)]
    usable.sort(key=lambda entry: -Interconnection.of(terms, entry[1]).rate()[0])
    best = own
    for origin, other in usable if steps else usable[:1]:
        tried = inside(other, origin)
        if _holds(tried, steps):
            return tried
        best = best if best.certified else tried
    few = search == "fast" and own.modules and terms.n <= JOINT_SIZE
    if few and Interconnection.of(terms, given).abscissa_at_full_slope() < 0:
        starts = [given, *(other for _, other in usable)]
        for other in jointly(terms, starts, dt[-1] if steps else 0.0, solver if steps else "euler"):
            tried = inside(other, "search: joint")
            if _holds(tried, steps):
                return tried
    if best.certified:
        return best
    added = "no identity, Perron, Lyapunov or balanced metric was found that shows it either"
    return replace(own, reasons=(*own.reasons, added))


def _milder(
    own: Certificate, metric: Metric, terms: Terms, inside: Callable[[Metric, str], Certificate]
) -> Certificate:
    """The same modules with other weights where that shortens the time until distances are below 1."""
    step = own.step is not None and own.step.certified
    for origin, other in reweighed(terms, metric):
        tried = inside(other, origin)
        kept = tried.rate >= own.rate / 2 and _holds(tried, step)
        if kept and tried.crossing_time < own.crossing_time:
            own = tried
    return own


def _holds(certificate: Certificate, steps: bool) -> bool:
    step = certificate.step
    return certificate.certified and (not steps or step is None or step.certified)


def _certify_in(
    terms: Terms, dt: Lengths, solver: str, sharp: bool, metric: Metric, origin: str
) -> Certificate:
    broken, longest = unusable(terms, metric), max(dt, default=None)
    if broken:
        return Certificate.refused(broken, dt=longest, solver=solver, origin=origin)
    try:
        whole = Interconnection.of(terms, metric)
        rate, rounding = whole.rate()
    except torch.linalg.LinAlgError as error:
        reason = f"the numbers differ too much in size for float64 linear algebra ({error})"
        return Certificate.refused(reason, dt=longest, solver=solver, origin=origin)
    smallest = SMALLEST_RATE / float(terms.tau.max())
    taus = terms.tau.double().split(terms.sizes)
    modules = tuple(map(_module, count(), whole.modules, taus))
    certified = all(module.certified for module in modules) and rate >= smallest
    facts, coupling = result.MetricFacts.of(metric, terms.tau, origin), _coupling_facts(terms, whole)
    step = StepCertificate.refused(solver, dt[-1]) if dt else None
    if certified and dt:
        step = StepCertificate.of_all(prove_step(whole, solver, sharp), solver, dt)
    reasons = () if certified else (_reason(whole, modules, rate, smallest),)
    maps = (terms.pre, terms.post, *(edge.psi for edge in terms.edges))
    declared = {phi.name for one in maps for phi in one.units if not phi.proven}
    claim = "" if terms.within is None else result.WITHIN
    everything = facts, modules, coupling, step, reasons, tuple(sorted(declared)), claim
    return Certificate(certified, rate, rounding, *everything)


@torch.no_grad()
def largest_uncertainty(
    terms: Terms, metric: Metric, by: Any, *, dt: float | None = None, solver: str = "euler"
) -> float:
    """How many times `by`, as in `certify`, is certified in this metric, flow and step; 0 for none."""
    unit = uncertain(terms.detach_cpu(), by).within
    assert unit is not None

    def at(scale: float, dt: float | None = None) -> Certificate:
        scaled = Uncertainty(tuple(scale * one for one in unit.W), scale * unit.L)
        return certify(terms, metric, dt=dt, solver=solver, search="none", uncertainty=scaled)

    nominal = at(0.0, dt)
    if not _holds(nominal, True):
        return 0.0
    size = max(float(torch.as_tensor(one).max()) for one in (*unit.W, unit.L))
    if not size:
        return math.inf
    far = 1 / max(size * terms.pre.g * terms.post.g, 1e-300)  # where rounding does not hide what is lost
    lost = max(nominal.rate - at(far).rate, 1e-8 * nominal.rate)  # it does, of a size below 1e-300
    largest = far * (nominal.rate - SMALLEST_RATE / float(terms.tau.max())) / lost
    return last_proven(largest, lambda scale: _holds(at(scale, dt), True))


@dataclass(frozen=True)
class FactorCurve:
    """Upper bounds on the factor of one step for increasing dt, up to `max_dt`; infinite beyond."""

    solver: str
    dts: tuple[float, ...]
    factors: tuple[float, ...]
    max_dt: float


@one_thread()
def step_curves(net: Any, certificate: Certificate, *, near: float) -> tuple[FactorCurve, ...]:
    """Of all solvers, over dt around `near`, in the metric of the net's certificate; none without one.

    The net is `Terms` or a layer, of which gates that read input or state leave Euler's curve alone.
    """
    metric, gates = certificate.metric.matrix, getattr(net, "gates", None)
    if not certificate.certified or metric is None:
        return ()
    if gates is None or gates.kind == "constant":
        terms = (net if isinstance(net, Terms) else net.terms()).detach_cpu()
        if broken := unusable(terms, metric):
            raise ContractionError(f"the certificate is of another net: {broken}. Certify this one.")
        whole = Interconnection.of(terms, metric)
        return _sampled({scheme: prove_step(whole, scheme) for scheme in SCHEMES}, near)

    def step(dt: float) -> Any:
        return net.certificate(dt=dt * net.substeps, solver="euler").step

    euler = StepProof(lambda dt: step(dt).contraction_factor or math.inf, step(near).max_dt)
    return _sampled({"euler": euler}, near)


def _sampled(proofs: dict[str, StepProof], near: float) -> tuple[FactorCurve, ...]:
    """From a tenth of the smallest to three times the largest of `near` and the largest dt."""
    marks = [near, *(proof.max_dt for proof in proofs.values() if 0 < proof.max_dt < math.inf)]
    dts = sorted({*np.geomspace(min(marks) / 10, 3 * max(marks), POINTS).tolist(), *marks})
    curves = []
    for scheme, proof in proofs.items():
        known = [dt <= proof.max_dt or dt == near for dt in dts]
        factors = (proof.factor(dt) if one else math.inf for dt, one in zip(dts, known, strict=True))
        curves.append(FactorCurve(scheme, tuple(dts), tuple(factors), proof.max_dt))
    return tuple(curves)


def _module(index: int, proven: ModuleBound, tau: Tensor) -> Module:
    unit = float(tau.max()) if proven.rate > 0 else float(tau.min())
    certified = proven.rate * float(tau.max()) >= SMALLEST_RATE
    theorem = proven.theorem if certified else "none"
    return Module(index, len(tau), theorem, proven.rate * unit, proven.rate, certified)


def _reason(whole: Interconnection, modules: Sequence[Module], rate: float, smallest: float) -> str:
    """The first condition that failed, its value, and what to change."""
    growth, unstable = whole.abscissa_at_full_slope(), ""
    if growth > 0:
        unstable = f"At the largest slopes the Jacobian has an eigenvalue with real part {growth:.4g}: "
        unstable += "no constant metric can show contraction. "
    worst = min(modules, key=lambda module: module.margin)
    if not worst.certified:
        failed = sum(not module.certified for module in modules)
        return (
            f"module {worst.index} is not shown to contract in its metric: the best bound on its rate "
            f"is {worst.margin:.6g} / tau, needed is {SMALLEST_RATE:g} ({failed} of {len(modules)} "
            f"modules fail). {unstable}Scale its weights down, or use a trained constraint such as "
            "svd-combo"
        )
    what = "nonlinear edges cost" if whole.edges else "coupling costs"
    return (
        f"the {what} more than the modules' rates: the whole has the bound {rate:.6g}, needed is "
        f"{smallest:.3g}; the symmetric part of L in the metric is {whole.cost:.6g}. {unstable}Use "
        "feedback coupling, which costs nothing, or scale the coupling down"
    )


def _coupling_facts(terms: Terms, whole: Interconnection) -> result.CouplingFacts:
    norms = block_norms(2 * whole.skewness[0], terms.sizes)
    present = ((min(i, j), max(i, j)) for i, j, _ in nonzero_blocks(whole.K, terms.sizes) if i != j)
    pairs = tuple(sorted(set(present)))
    residual = max((float(norms[i, j]) for i, j in pairs), default=0.0)
    topology, edges = recognise(pairs, len(terms.sizes)), len(terms.edges)
    return result.CouplingFacts(topology, pairs, residual, whole.norm, whole.cost, edges)


def unusable(terms: Terms, metric: Metric) -> str:
    """Why nothing can be proven, as a sentence, or an empty string."""
    return next(_faults(terms, metric), "")


def _faults(terms: Terms, metric: Metric) -> Iterator[str]:
    """What makes a proof impossible; a check relies on those before it, so only the first counts."""
    tensors = [*terms.tensors(), *(factor.theta for factor in metric.factors)]
    for tensor in tensors:
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.dtype == torch.bool:
            yield f"weights, metric and time constants must be real and dense; got {tensor.dtype}"
    yield from _bad_shapes(terms, metric)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        yield "a weight, metric or time constant is NaN or infinite; retrain or use an intact copy"
    tau = terms.tau.double()
    if not bool((tau > 0).all()):
        yield f"every time constant must be positive; the smallest is {float(tau.min()):.6g}"
    everywhere = (terms.pre, terms.post, *(edge.psi for edge in terms.edges))
    steepest = max(one.g for one in everywhere)
    if steepest > LARGEST:
        yield f"the slopes reach {steepest:.3g}; beyond {LARGEST:g} float64 cannot prove anything"
    largest = max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
    if largest > LARGEST or float(1 / tau.min()) > LARGEST:
        sizes = f"the largest entry is {largest:.3g}, the smallest time constant {float(tau.min()):.3g}"
        yield f"{sizes}; beyond {LARGEST:g} and its inverse float64 cannot prove anything"
    start, maps = 0, (terms.pre.units, terms.post.units)
    for k, (factor, t) in enumerate(zip(metric.factors, terms.tau.split(terms.sizes), strict=True)):
        for reason in _bad_factor(factor):
            yield f"the metric of module {k} {reason}"
        if not factor.is_diagonal and bool((t != t[0]).any()):
            yield f"module {k} has a dense metric, which needs one time constant; got several"
        pre, post = (set(units[start : start + len(t)]) for units in maps)
        if len(pre) > 1 or len(post) > 1 or not {ACTIVATIONS["identity"]} & (pre | post):
            yield f"module {k} needs one activation, before or after W"
        start += len(t)


def _bad_shapes(terms: Terms, metric: Metric) -> Iterator[str]:
    blocks = [tuple(W.shape) for W in terms.blocks]
    if not blocks or any(len(s) != 2 or s[0] != s[1] or s[0] < 1 for s in blocks):
        yield f"every module needs a square weight; got shapes {blocks[:4]}"
    n = sum(s[0] for s in blocks)
    thetas = [tuple(factor.theta.shape) for factor in metric.factors]
    fits = [theta in ((s[0],), s) for theta, s in zip(thetas, blocks, strict=False)]
    if len(thetas) != len(blocks) or not all(fits):
        yield f"the metric has factors of shapes {thetas[:4]}, the field modules of {blocks[:4]}"
    square = [terms.L, *(edge.K for edge in terms.edges)]
    wrong = [tuple(A.shape) for A in square if A is not None and A.shape != (n, n)]
    if wrong or terms.tau.shape != (n,):
        yield f"couplings must be ({n}, {n}) and tau ({n},); got {wrong[:4]}, {tuple(terms.tau.shape)}"
    maps = (terms.pre, terms.post, *(edge.psi for edge in terms.edges))
    if any(len(m.units) != n for m in maps):
        yield f"every activation must be declared for all {n} units"


def _bad_factor(factor: Factor) -> Iterator[str]:
    diagonal = factor.is_diagonal
    values = factor.theta if diagonal else torch.linalg.svdvals(factor.theta.double())
    low, high, limit = float(values.min()), float(values.max()), 1e-14 if diagonal else 1e-7
    if diagonal and low <= 0:
        yield f"must have a positive factor theta; the smallest entry is {low:.3g}"
    if high <= 1 / LARGEST or low <= limit * high:
        ratio = (high / low) ** 2 if low > 0 else float("inf")
        what = f"is singular or too ill-conditioned for float64 (condition number {ratio:.3g})"
        yield f"{what}; sample the module again with a smaller max_condition"
