"""Three verdicts, and witnesses of a refutation: two states under one input that never meet.

A net that contracts has under a constant input one fixed point, and it is stable. Two refute this, and
so does one with a growing mode. That they exist is proven, as a small residual proves nothing, and then
seen in runs. Source: THEORY section 16.
"""

import hashlib
import math
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise, around
from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.rounding import UNIT, frobenius, gamma, is_positive_definite
from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
from ctrnn_assembly.diagnostics.linearise import Behaviour, behaviour, of_torch
from ctrnn_assembly.errors import CtrnnError, DataError
from ctrnn_assembly.linalg import one_thread
from ctrnn_assembly.recurrent import is_plain
from ctrnn_assembly.schemes import SCHEMES, SOLVERS
from ctrnn_assembly.terms import Terms

LARGEST, STARTS = 128, 6  # units of a net that is searched, states to start from under each input
RADIUS = 1e-7  # within which one root is proven, relative to 1 + max |x|
SLACK = 1.01  # far above what rounding does to the bounds themselves, sums of positive numbers
ULPS = 64 * UNIT  # of phi and phi' as torch computes them, relative to 1 + |x|
PUSH, APART = 1e-4, 1e-5  # from an unstable point, and what two states are apart at least, relative
STEPS, GROWN = 500, 10.0  # of a run, which ends before when the states are so many times as far apart
# sup |phi''| between the kinks, rounded up: 4 / sqrt(27) of tanh, 1 / sqrt(108) of the sigmoid
CURVATURE = {"identity": 0.0, "relu": 0.0, "hardtanh": 0.0, "leaky_relu": 0.0, "tanh": 0.7699}
CURVATURE |= {"sigmoid": 0.09623, "softplus": 0.2501, "elu": 1.0001, "selu": 1.7582, "silu": 0.5001}
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "selu": (0.0,), "hardtanh": (-1.0, 1.0)}


@dataclass(frozen=True)
class Witness:
    """Two states, (n,), whose distance does not tend to zero under a constant input (m,).

    `refutes` the "flow", or the "step" of `solver` and `dt`, None and 1 of a map. `kind` is "two fixed
    points", or "an unstable fixed point", the first. `net` is `net_hash`; `run` says what was seen.
    """

    kind: str
    refutes: str
    dt: float
    solver: str | None
    input: list[float]
    states: list[list[float]]
    net: str = ""
    run: str = ""

    def __str__(self) -> str:
        what = "flow" if self.refutes == "flow" else f"{self.solver or 'map'} step of {self.dt:g}"
        return f"the {what} is refuted by {self.kind}: under one input, two states are {self.run}"


@dataclass(frozen=True)
class Verdicts:
    """certified, refuted or unknown: the flow, None of a map, and the step, None without it; and why."""

    flow: str | None
    step: str | None
    witnesses: tuple[Witness, ...]
    tried: str


@one_thread()
def judge(net: Any, certificate: Certificate, *, inputs: int = 4) -> Verdicts:
    """What the certificate leaves open is searched for under so many inputs, 0 for no search.

    "refuted" has a witness that `replay` confirmed; "unknown" says what was tried, and proves nothing.
    """
    step, is_map = certificate.step, certificate.of_map or isinstance(net, nn.RNNBase)
    said, tried, found = ("unknown", "certified"), "", dict[str, Witness]()
    names = {"flow": None if is_map else said[certificate.certified]}
    names["step"] = None if step is None else said[step.certified]
    open_ = [what for what, name in names.items() if name == "unknown"]
    if open_ and inputs:
        try:
            found = _search(net, open_, step, inputs)
            tried = f"{inputs} inputs show neither two fixed points nor an unstable one beyond doubt"
        except (CtrnnError, torch.linalg.LinAlgError) as error:
            tried = f"the search ended: {' '.join(str(error).split())[:200]}"
    names, tried = names | dict.fromkeys(found, "refuted"), tried if len(found) < len(open_) else ""
    return Verdicts(names["flow"], names["step"], tuple(found.values()), tried)


@torch.no_grad()
def _search(net: Any, open_: list[str], step: Any, inputs: int) -> dict[str, Witness]:
    """Witnesses that replay, by what they refute, of fixed points under inputs that grow from zero."""
    terms, known, draw = field_of(net), behaviour(net), torch.Generator().manual_seed(0)
    if terms.n > LARGEST:
        raise DataError(f"the state has {terms.n} numbers, and {LARGEST} are the most")
    direction, found = torch.randn(known.input_size or 0, generator=draw).double(), dict[str, Witness]()
    scheme = step.solver if step is not None and known.flow is not None else None
    steps = {"flow": (1.0, None), "step": (step.dt * known.substeps if step else 1.0, scheme)}
    for u in ((-1) ** k * k / 2 * direction for k in range(inputs)):
        x0 = 2 * torch.randn(STARTS, terms.n, generator=draw).double()
        x0[1] = -x0[0]
        for _ in range(60):  # two, from opposite states, where the net comes by itself
            x0[:2] = (x0[:2] + terms.drift(x0[:2], u.expand(2, -1)) / 2).clamp(-1e3, 1e3)
        points = find_fixed_points(terms, u, x0).points
        roots = [(x, root) for x in points if (root := _root(terms, u, x)) is not None]
        for what in (one for one in open_ if one not in found):
            modes = [(x, _growing(root, known, what, *steps[what])) for x, root in roots]
            still = [x for x, mode in modes if mode is None]
            claims: Any = [("two fixed points", still[:2])] if still[1:] else []
            pushed = [(x, x + PUSH * (1 + x.abs().max()) * v) for x, v in modes if v is not None]
            for kind, pair in [*claims, *(("an unstable fixed point", one) for one in pushed)]:
                claim = Witness(kind, what, *steps[what], u.tolist(), torch.stack(pair).tolist())
                with suppress(CtrnnError):  # of runs that end too near each other, or no known step
                    found[what] = replay(claim, net)
                    break
        if len(found) == len(open_):
            break
    return found


def field_of(net: Any) -> Terms:
    """Terms in float64 whose fixed points, and eigenvalues of J there, are those of a net.

    Those of an `nn.RNN` have tau = 1, x' = h+ - h and all layers in one W. DataError of any other net.
    """
    for part in net.modules() if isinstance(net, nn.Module) else ():
        if not is_plain(part, type(part)) or not type(part).__module__.startswith(("ctrnn_", "torch")):
            raise DataError(f"a {type(part).__name__} with hooks or a forward of its own has no formula")
    known = behaviour(net)
    if known.terms is not None and not known.terms.edges:
        return known.terms
    if type(net) is not nn.RNN:
        raise DataError(f"no formula by which a {type(net).__name__} could be refuted is known")
    n, N = net.hidden_size, known.size
    W, W_in, bias = (torch.zeros(N, k, dtype=torch.float64) for k in (N, net.input_size, 1))
    for k, (entering, own, *biases) in enumerate(net.all_weights):
        rows = slice(k * n, k * n + n)
        W[rows, rows] = own
        (W[:, k * n - n : k * n] if k else W_in)[rows] = entering
        bias[rows, 0] = sum(b.double() for b in biases)
    maps = around(ACTIVATIONS[net.nonlinearity], N, inside=True)
    return Terms((W,), *maps, bias[:, 0], torch.ones(N, dtype=W.dtype), W_in=W_in)


def _bend(phi: Elementwise, x: Tensor, reach: Tensor) -> tuple[float, float]:
    """Bounds on |phi'|, and on its Lipschitz constant within `reach` of x: infinite if there is none."""
    sizes, bend = [n for _, n in phi.runs], 0.0
    for (one, _), z, r in zip(phi.runs, x.split(sizes), reach.split(sizes), strict=True):
        known = ACTIVATIONS.get(one.name) is one and one.name in CURVATURE
        kinked = any(bool(((z - kink).abs() <= r).any()) for kink in KINKS.get(one.name, ()))
        bend = max(bend, CURVATURE[one.name] if known and not kinked else math.inf)
    return phi.g, bend


def _root(terms: Terms, u: Tensor, x: Tensor) -> tuple[Tensor, float] | None:
    """J of g = tau x' at x, and how far it is from J at the one root near x: THEORY section 16."""
    W, n, radius, eye = terms.weight(), terms.n, RADIUS * (1 + float(x.abs().max())), torch.eye(terms.n)
    L, w, each = torch.zeros_like(W) if terms.L is None else terms.L, frobenius(W), gamma(3 * n + 9)
    p, drive = terms.pre(x), terms.inject(u[None])[0]
    y, entering = W @ p + drive, u.abs() if terms.W_in is None else terms.W_in.abs() @ u.abs()
    # y' = W phi' has a norm of at most `size` everywhere; `off` is of y, `slope_off` of both phi'.
    steep_p, bend_p = _bend(terms.pre, x, torch.full_like(x, radius))
    off = W.abs() @ (ULPS * (x.abs() + p.abs()) + each * p.abs())
    off = off + gamma(len(u) + n + 9) * (entering + terms.bias.abs())
    size, steep_q, bend_q = w * steep_p, *_bend(terms.post, y, off + radius * w * steep_p)
    slope_off = ULPS * (1 + steep_p) * (1 + float(x.abs().max())) * w * steep_q
    slope_off += (bend_q * float(off.max()) + ULPS * (1 + steep_q) * (1 + float(y.abs().max()))) * size
    out = terms.post(y)
    value, off = out - x + L @ x, steep_q * off + ULPS * (y.abs() + out.abs())
    off = off + each * (out.abs() + x.abs() + L.abs() @ x.abs())
    J = terms.post.slope_at(y)[:, None] * W * terms.pre.slope_at(x) - eye + L
    J_off = slope_off + each * (size * steep_q + frobenius(L) + n)
    bend, X = bend_q * size**2 + steep_q * w * bend_p, torch.linalg.inv_ex(J)[0]
    q = frobenius(X @ J - eye) + each * (frobenius(X) * frobenius(J) + n)
    q = SLACK * (q + frobenius(X) * (J_off + bend * radius))
    eta = SLACK * frobenius(X) * (float(value.norm()) + float(off.norm()))
    return (J, J_off + bend * eta / (1 - q)) if q <= 0.5 and eta <= (1 - q) * radius else None


def _growing(root: Any, known: Behaviour, what: str, dt: float, solver: Any) -> Tensor | None:
    """A unit vector that an unstable mode stretches beyond doubt, if there is one: THEORY section 16."""
    (J, J_off), is_flow, eye = root, what == "flow", torch.eye(known.size)
    C = (1.0 if is_flow or known.terms is None else dt / known.substeps) / known.tau
    if not is_flow and solver not in (None, "euler"):
        diagonal = solver in SCHEMES and known.terms is not None and known.terms.L is None
        C = SCHEMES[solver].pair(C, None)[1] if diagonal else math.nan * C
    A = C[:, None] * J + (0 if is_flow else eye)
    if not bool(torch.isfinite(A).all()):
        return None
    values, V = torch.linalg.eig(A)
    grown, X = values.real if is_flow else values.abs() - 1, torch.linalg.inv_ex(V)[0]
    P = (X.mH * grown.sign() @ X).real
    P, v = (P + P.mT) / 2, V[:, grown.argmax()].real
    S = A.mT @ P + P @ A if is_flow else A.mT @ P @ A - P
    p, a = frobenius(P), frobenius(A)
    off = SLACK * (float(C.max()) * (J_off + 16 * UNIT * frobenius(J)) + gamma(4) * a)
    error = SLACK * p * (2 * a * off + off**2 + 4 * gamma(2 * len(A) + 4) * (a + 1) ** 2)
    beyond = float(v @ P @ v) > 4 * gamma(2 * len(A)) * p * float(v @ v)
    return v / v.norm() if beyond and is_positive_definite((S + S.mT) / 2, error) else None


@one_thread()
def replay(witness: Witness, net: Any) -> Witness:
    """The witness with what is seen now; a DataError if the net is another, or a claim fails."""
    known, terms, length = behaviour(net), field_of(net), (witness.dt, witness.solver)
    u, states = (torch.tensor(given, dtype=torch.float64) for given in (witness.input, witness.states))
    if witness.net not in ("", digest := net_hash(net, witness)):
        raise DataError(f"the witness is about a net of sha256 {witness.net}; here {digest}.")
    is_flow, is_step = witness.refutes == "flow", known.resolve(*length) == length
    if known.flow is None if is_flow else not is_step or witness.solver not in (None, *SOLVERS):
        raise DataError(f"the {witness.refutes} of {length} need not rest where the field does.")
    roots = [_root(terms, u, x) for x in states[: 2 if witness.kind == "two fixed points" else 1]]
    start, scale = float((states[1] - states[0]).norm()), 1 + float(states.abs().max())
    if not roots[1:] and roots[0] and _growing(roots[0], known, witness.refutes, *length) is None:
        roots = [None]
    if None in roots or not start > APART * scale:
        raise DataError(f"the witness does not replay: no {witness.kind} beyond doubt.")
    h = 0.5 / frobenius(roots[0][0] / known.tau[:, None])  # type: ignore[index]
    moves: Any = [(known.step_map(h, "rk4") if is_flow else known.step_map(*length), torch.float64)]
    native = isinstance(net, nn.Module) and (known.step or known.dt) and not is_flow
    if native and length == known.resolve(None, None):  # in its own dtype, too
        own = deepcopy(net).cpu().eval()
        moves.append(((own if known.terms else of_torch(own)).step, next(own.parameters()).dtype))
    for move, dtype in moves:
        z, end, k = states.to(dtype), start, 0
        while k < STEPS and start / 2 <= end < GROWN * start:
            z, k = move(u.to(dtype).expand(2, -1), z), k + 1
            end = float((z[1] - z[0]).double().norm())
        if not end >= start / 2:
            raise DataError(f"the witness does not replay: {start:.4g} apart, then {end:.4g}, {dtype}.")
    run = f"{start:.4g} apart, and {end:.4g} after {k} steps in {str(dtype).removeprefix('torch.')}"
    return replace(witness, net=digest, run=run)


def net_hash(net: Any, witness: Witness) -> str:
    """sha256 of the claim's step and all that defines a net: maps, own step, the field's tensors."""
    known, terms = behaviour(net), field_of(net)
    runs = [[(phi.name, n) for phi, n in one.runs] for one in (terms.pre, terms.post)]
    own = type(net).__name__, known.dt, known.solver, known.substeps, terms.L is None, terms.W_in is None
    digest = hashlib.sha256(f"{runs} {own} {witness.refutes} {witness.dt} {witness.solver}".encode())
    for tensor in terms.tensors():
        digest.update(f"{tuple(tensor.shape)}".encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()
