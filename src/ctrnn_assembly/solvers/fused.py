"""The fused loop of every grid scheme, and its hand-written adjoint.

    x+ = D x + P x + Q post(W pre(x) + e) + sum_e K_e psi_e(x),      e = E [u, 1]

`fused_step` reads these tensors, under autograd, from the scheme's pair once a solve: D + P = A with D
diagonal, and C is Q, or goes into W and E where post is the identity, and into K. Steps of different
lengths, of schemes whose pair is proportional to dt, have the tensors of x+ = x + dt_k (D x + ...).
An implicit step multiplies x+ by P: x+ = (I - P)^-1 y, where y is all of the above but P x.

Adjoint, for v = dt_k lam+ (or lam+), z = W pre(x) + e, f = post(z):

    q = post'(z) o Q^T v,   lam = D v + P^T v + pre'(x) o (W^T q) + sum psi'(x) o (K^T v)   (+ lam+)
    dW = q pre(x)^T,  dE = q [u, 1]^T,  dP = v x^T,  dQ = v f^T,  dK = v psi(x)^T,  dD = v o x

Of an implicit step v = (I - P)^-T lam+, lam has no P^T v, and dP = v x+^T: no adjoint of an inverse.
States are (time, batch, n) in memory; if only few blocks of L are coupled, (blocks, time, batch, k), and
only those are multiplied: a step then costs batch (p k^2 + C k^2) multiply-adds, C the number of blocks
of L, whatever n is. In both, time is the third axis from the right. Memory, for states of batch x n
numbers: T + 1 of them and some SEGMENT, or with recompute="sqrt" about 4 sqrt(T), for one forward pass
more: of each segment the first state is stored, the others are made again. Second derivatives are those
of `plain_states`, the same steps under autograd.
"""

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal, cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.activations import Elementwise
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.linalg import working_precision
from ctrnn_assembly.schemes import SCHEMES, Scheme, inverse, step_pair
from ctrnn_assembly.solvers.again import Loop
from ctrnn_assembly.solvers.elimination import Eliminated, Places, elimination
from ctrnn_assembly.solvers.operators import BlockPattern, Dense, Diagonal, FewBlocks, indices
from ctrnn_assembly.terms import Terms

Save = Literal["all", "last"]
Recompute = Literal["none", "sqrt"]
MatmulPrecision = Literal["full", "tf32", "bf16"]


SEGMENT = 32  # steps whose weight gradients are one product
# Above this share of coupled blocks one dense product a step is faster than many small ones.
FEW = 0.4
KEPT = 2  # CPU buffers that wait for their next use
_free: list[Tensor] = []
_lock = threading.RLock()  # the garbage collector can free one buffer while another is made


@dataclass(frozen=True)
class Form:
    """What a step is apart from its tensors; a recorded graph is known by it."""

    pre: Elementwise
    post: Elementwise
    psi: tuple[Elementwise, ...]
    pattern: BlockPattern | None
    matmul_precision: MatmulPrecision
    implicit: Places | None = None  # of `elimination`, () where it is dense

    def ordered(self, x: Tensor) -> Tensor:
        """(time, batch, n) in the memory order of the states."""
        pattern = self.pattern
        return x if pattern is None else rearrange(x, "t batch (p k) -> p t batch k", p=pattern.p)

    def flat(self, x: Tensor) -> Tensor:
        """The inverse of `ordered`."""
        return x if self.pattern is None else rearrange(x, "p t batch k -> t batch (p k)")


@dataclass(frozen=True)
class Plan:
    """What a pass returns (`every` state, or the last), and what it stores for the backward pass."""

    every: bool
    whole: bool  # stores every state, else the first of each segment
    few: bool  # never all of them, whatever gradients are wanted
    length: int  # steps of a segment
    way: str = "fused"  # or "graph", "persistent"

    def segments(self, steps: int) -> list[tuple[int, int]]:
        """(start, end) of consecutive pieces of time, in order."""
        return [(k, min(k + self.length, steps)) for k in range(0, steps, self.length)]


def prepared(
    *given: Any,
    save: Save = "all",
    recompute: Recompute = "none",
    matmul_precision: MatmulPrecision = "full",
    backend: str = "fused",
) -> Callable[[], Tensor]:
    """() -> states by the fused loop, (time + 1, batch, n), or (1, batch, n); the step is made here.

    Args:
        given: as of `schemes.integrate`; steps of equal length unless the scheme has an increment.
        save, recompute, matmul_precision: as of `solvers.solve`.
        backend: as of `solvers.solve`, but for plain. "graph" records both passes as CUDA graphs, and
            replays these where the shapes are the same; "persistent" has one Triton kernel for each,
            if all states are stored, and "compiled" machine code on a CPU.
    """
    (scheme, terms, x0, drive, dt), every = given, save == "all"
    recorded = backend in ("graph", "persistent") or (backend == "auto" and x0.device.type == "cuda")
    exact = matmul_precision == "full" and backend in ("auto", "fused", "compiled") and not recorded
    implicit = exact and scheme is SCHEMES["imex"]
    form, *tensors = fused_step(scheme, terms, x0, drive, dt, matmul_precision, implicit)
    if backend == "compiled":
        return partial(_loaded(backend).states, form, every, x0, *tensors)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x0, *tensors))
    few = recompute == "sqrt"
    length = max(1, math.isqrt(len(dt))) if few else SEGMENT
    plan = Plan(every, every or (learns and not few), few, length)
    if recorded:
        plan = replace(plan, way=_loaded("check").way_of(backend, form, plan, x0, *tensors))
    return partial(Integrate.apply, form, plan, x0, *tensors)


def same_steps(dt: Tensor) -> bool:
    """Whether step lengths, (T, 1) or (T, batch), are one number, up to the rounding of the times."""
    rounding = torch.finfo(dt.dtype).eps * dt.sum().abs()
    return dt.shape[1] == 1 and bool(((dt - dt[:1]).abs() <= rounding).all())


def fused_step(
    scheme: Scheme,
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    precision: MatmulPrecision,
    implicit: bool = False,
) -> tuple[Any, ...]:
    """The step of a scheme, (form, inputs, dt, W, D, P, Q, E, *K, *R); arguments as of `prepared`.

    inputs: (time, batch, m), or e itself, (time, batch, n). dt: the lengths if they are several, else
    None. W: (n,), the diagonal, (p, k, k), blocks, or (n, n). D: (n,). P: (n, n); (C, k, k), the blocks
    at the form's pattern; or None. Q: None where post is the identity, else (n,), a diagonal, or (n, n).
    E: (n, m), or None. K: (n, n) each.

    Without `implicit` there is no R. With it steps of IMEX have the tensors of Euler, but P belongs to
    x+ (`form.implicit`), and one more without a gradient, (I - P)^-1, (n, n) or as of `elimination`.
    """
    equal, pattern = same_steps(dt), None
    if scheme.increment is not None or implicit:  # then C does not depend on L, and A - I = C (L - I)
        one = scheme if equal else replace(scheme, pair=cast(Any, scheme.increment))
        D, C = step_pair(one, replace(terms, L=None), dt[0, 0] if equal else dt.new_ones(()))
        P, pattern = _coupling(terms, C)
    else:
        assert equal  # steps of several lengths go to the plain loop
        A, C = step_pair(scheme, terms, dt[0, 0])
        # The diagonal of A, near 1, apart from the rest: rounded operands would change the leak.
        D, P = (A, None) if A.ndim == 1 else (A.diagonal(), A - torch.diag(A.diagonal()))
    inside, W = terms.post.is_identity, structured_weight(terms)
    E, inputs = _input_product(terms, drive, C if inside else None, len(x0), len(dt))
    psi, K = tuple(edge.psi for edge in terms.edges), (_weighted(C, edge.K) for edge in terms.edges)
    form = Form(terms.pre, terms.post, psi, pattern, precision)
    W, Q = (_weighted(C, W), None) if inside else (W, C)
    tensors = W, D, P, Q, E, *K
    if implicit and P is not None:
        (wide,) = working_precision(P.detach())
        if pattern is None:
            places, R = Places(), inverse(torch.eye(len(P)).to(wide) - wide)
        elif (found := elimination(wide, pattern, FEW * pattern.p**2)) is not None:
            places, R = found
        else:  # better as a dense L
            return fused_step(scheme, replace(terms, pairs=()), x0, drive, dt, precision, implicit)
        form, tensors = replace(form, implicit=places), (*tensors, R.to(P.dtype))
    return form, inputs, None if equal else dt, *tensors


def structured_weight(terms: Terms) -> Tensor:
    """W as its diagonal (n,), as equal blocks (p, k, k), or as (n, n)."""
    if terms.diagonal:
        w = torch.cat([W.diagonal() for W in terms.blocks])
        entries = torch.cat([W.flatten() for W in terms.blocks])
        if int(entries.count_nonzero()) != int(w.count_nonzero()):
            raise DataError(
                "every W of Terms with diagonal=True must be diagonal; got entries elsewhere. Set "
                "diagonal=False."
            )
        return w
    stacked = terms.stacked
    return terms.weight() if stacked is None else stacked


def few_blocks(terms: Terms) -> BlockPattern | None:
    """The coupled blocks of L, (i, j) and (j, i), if all have one size and are few enough to pay."""
    p, pairs = len(terms.blocks), terms.pairs
    one_kind = all(len(phi.runs) == 1 for phi in (terms.pre, terms.post))
    if terms.stacked is None or not pairs or terms.edges or not one_kind or 2 * len(pairs) > FEW * p * p:
        return None
    both = sorted({(i, j) for a, b in pairs for i, j in ((a, b), (b, a))})
    return BlockPattern(p, *zip(*both, strict=True))


def _coupling(terms: Terms, C: Tensor) -> tuple[Tensor | None, BlockPattern | None]:
    """diag(C) L, dense or as its nonzero blocks."""
    pattern = few_blocks(terms)
    if terms.L is None or pattern is None:
        return terms.L if terms.L is None else C[:, None] * terms.L, None
    rows, p = list(pattern.rows), pattern.p
    blocks = rearrange(terms.L, "(i r) (j c) -> i j r c", i=p, j=p)[rows, list(pattern.columns)]
    if int(blocks.detach().count_nonzero()) != int(terms.L.detach().count_nonzero()):
        raise DataError(
            "L must be zero outside the coupled pairs of its Terms; got entries elsewhere. Give all "
            "pairs, or none for a dense L."
        )
    return C.view(p, -1, 1)[rows] * blocks, pattern


def _weighted(C: Tensor, W: Tensor) -> Tensor:
    """C W for C (n,), a diagonal, or (n, n), and W as in `fused_step`."""
    if W.ndim == 1:
        return C * W
    if C.ndim == 1:
        return C.view(*W.shape[:-1], 1) * W
    return C @ (W if W.ndim == 2 else torch.block_diag(*W))


def _input_product(
    terms: Terms, drive: Tensor | None, C: Tensor | None, batch: int, steps: int
) -> tuple[Tensor | None, Tensor]:
    """(E, inputs) with b + W_in u = E [u, 1], times C if it is given."""
    bias = terms.bias
    if drive is not None and terms.W_in is None:
        if C is not None and C.ndim == 2:
            return C, bias + drive
        return None, bias + drive if C is None else C * (bias + drive)
    if drive is None:
        E, inputs = bias[:, None], bias.new_ones(1, 1, 1).expand(steps, batch, 1)
    else:
        E = torch.cat([cast(Tensor, terms.W_in), bias[:, None]], 1)
        inputs = pad(drive, (0, 1), value=1.0)
    return E if C is None else _weighted(C, E), inputs


class FusedKernel:
    """A step with its operators, for one pass over time; makes no graph of autograd."""

    def __init__(self, form: Form, tensors: Sequence[Any]) -> None:
        W, D, P, Q, E, *others = tensors
        K, R = others[: len(form.psi)], others[len(form.psi) :]
        self.form, self.raw, self.pattern = form, tensors, form.pattern
        self.pre_is_identity, low = form.pre.is_identity, form.matmul_precision == "bf16"
        self.D, self.W = self._operator(D), self._operator(W, low)
        self.P = self._operator(P, low)
        if form.pattern is not None and P is not None:
            self.P = FewBlocks(P, form.pattern, low)
        self.R: Any = None
        if form.implicit is not None:
            self.R = Eliminated(R[0], form.implicit) if form.implicit else Dense(*R)
        self.Q = self._operator(Q, low)
        self.E = self._operator(torch.ones_like(D) if E is None else E)
        self.K = [self._operator(each, low) for each in K]

    def _operator(self, A: Tensor | None, low: bool = False) -> Any:
        if A is None:
            return None
        diagonal, pattern = A.ndim == 1, self.pattern
        if pattern is not None and A.ndim < 3:
            A = A.unflatten(0, (pattern.p, 1, -1) if diagonal else (pattern.p, -1))
        return Diagonal(A) if diagonal else Dense(A, pattern is not None, low)

    def inputs(self, u: Tensor) -> Tensor:
        """Inputs (time, batch, m) as E takes them, in the memory order of the states."""
        if self.pattern is None or self.raw[4] is None:
            return self.form.ordered(u)
        return u.expand(self.pattern.p, *u.shape)

    def empty(self, steps: int, x: Tensor, reused: bool = False) -> Tensor:
        """Memory of that many states of the batch of x."""
        n, pattern, batch = self.D.w.numel(), self.pattern, x.shape[-2]
        shape = (steps, batch, n) if pattern is None else (pattern.p, steps, batch, n // pattern.p)
        return pooled(shape, x) if reused else x.new_empty(shape)

    def roll(self, plan: Plan, x0: Tensor, inputs: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
        """All steps from x0: what the plan stores, and the last state; all in memory order."""
        segments = plan.segments(len(inputs))
        count = len(inputs) + 1 if plan.whole else len(segments)
        # States that the caller keeps must not lie in memory that is used again.
        kept = plan.every or plan.way != "fused" or x0.device.type != "cpu"
        stored = self.empty(count, x0, reused=not kept)
        states = stored if plan.whole else self.empty(plan.length + 1, x0)
        last, u, direct = x0, self.inputs(inputs).unbind(-3), dt is None and self.pattern is None
        for index, (start, end) in enumerate(segments):
            here = states.narrow(-3, start if plan.whole else 0, end - start + 1)
            if index == 0 or not plan.whole:
                here.narrow(-3, 0, 1).copy_(last)
            if not plan.whole:
                stored.narrow(-3, index, 1).copy_(last)
            x, *later = here.unbind(-3)
            for k, out in enumerate(later, start):
                p = x if self.pre_is_identity else self.form.pre(x)
                new = torch.mul(x, self.D.w, out=out if direct else None)
                if self.Q is None:
                    self.E.add(new, u[k])
                    self.W.add(new, p)
                else:
                    z = self.E.product(u[k])
                    self.W.add(z, p)
                    self.Q.add(new, self.form.post(z))
                if self.P is not None and self.R is None:
                    self.P.add(new, x)
                for psi, K in zip(self.form.psi, self.K, strict=True):
                    K.add(new, psi(x))
                if dt is not None:
                    torch.addcmul(x, dt[k][:, None], new, out=out)
                elif not direct:
                    out.copy_(new)
                if self.R is not None:
                    self.R.apply_(out)
                x = out
            last = here.narrow(-3, end - start, 1)
        return stored, last

    def back(
        self, turned: Any, sums: Any, x: Tensor, lam: Tensor, inputs: Tensor, dt: Any, grads: Any
    ) -> Tensor:
        """lam[:-1] from lam[-1] over a segment of states x and one more; adds to the sums; returns q."""
        form, steps, (W, P, Q, R, *K) = self.form, len(inputs), turned
        after, x = x.narrow(-3, 1, steps), x.narrow(-3, 0, steps)
        p = x if self.pre_is_identity else form.pre(x)
        psi = [phi(x) for phi in form.psi]
        v = lam.narrow(-3, 1, steps) if dt is None else torch.empty_like(x)
        q, z, f = v, x, x
        if Q is not None:
            z = self.under_post(inputs, p)
            q, f = torch.empty_like(x), form.post(z)
        xs, vs, qs, ps, zs, fs, lams = (a.unbind(-3) for a in (x, v, q, p, z, f, lam))
        for k in range(steps - 1, -1, -1):
            v_k, out = vs[k], lams[k]
            if dt is not None:
                torch.mul(lams[k + 1], dt[k][:, None], out=v_k)
            if R is not None:
                R.apply_(v_k)
            if Q is not None:
                qs[k].copy_(form.post.pull_back(Q.product(v_k), zs[k], fs[k]))
            new = out if form.pattern is None else torch.empty_like(v_k)
            if grads is None:
                torch.mul(v_k, self.D.w, out=new)
            else:
                torch.addcmul(grads[k], v_k, self.D.w, out=new)
            if P is not None and R is None:
                P.add(new, v_k)
            for phi, y, K_t in zip(form.psi, psi, K, strict=True):
                new.add_(phi.pull_back(K_t.product(v_k), xs[k], y[k]))
            back = W.product(qs[k])
            if not self.pre_is_identity:
                back = form.pre.pull_back(back, xs[k], ps[k])
            torch.add(new, back, out=out)
            if dt is not None:
                out.add_(lams[k + 1])
        below = x if R is None else after
        self.add_gradients(sums, (self.inputs(inputs), x, p, v, q, f, below, *psi))
        return q

    def under_post(self, inputs: Tensor, p: Tensor) -> Tensor:
        """z = W p + e of a segment, for p = pre(x)."""
        z = self.E.product(_rows(self.inputs(inputs))).unflatten(-2, inputs.shape[:2])
        self.W.add(_rows(z), _rows(p))
        return z

    def add_gradients(self, sums: Any, segment: Sequence[Tensor]) -> None:
        """Those of W, D, P, Q, E and K, from inputs, x, p, v, q, f, what P multiplies, *psi."""
        u, x, p, v, q, f, below, *psi = map(_rows, segment)
        operators = (self.W, self.D, self.P, self.Q, self.E, *self.K)
        factors = ((q, p), (v, x), (v, below), (v, f), (q, u), *((v, y) for y in psi))
        for total, operator, pair in zip(sums, operators, factors, strict=False):  # R has none
            if total is not None:
                operator.gradient(total, *pair)


def pooled(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised CPU tensor whose memory is used again when it is freed, by autograd too.

    torch gives big CPU tensors back, and fresh pages cost more than the arithmetic on them.
    Whoever keeps a view of it must keep the tensor itself.
    """
    size = math.prod(shape)
    with _lock:
        fits = (size <= old.numel() <= 4 * size and old.dtype == like.dtype for old in _free)
        found = next((k for k, fit in enumerate(fits) if fit), None)
        memory = None if found is None else _free.pop(found)
    if memory is None:
        with torch.inference_mode(False):  # else it could not be written to outside of that mode
            memory = torch.empty(size, dtype=like.dtype)
    tensor = memory[:size].view(shape)
    weakref.finalize(tensor, _give_back, memory).atexit = False
    return tensor


def _give_back(memory: Tensor) -> None:
    with _lock:
        _free.append(memory)
        del _free[:-KEPT]  # the newest stay: what was used last is what the next solve needs


def _rows(x: Tensor) -> Tensor:
    """All states of a segment as the rows of an operator."""
    return x.flatten(-3, -2)


def _loaded(name: str) -> Any:
    """A module of `solvers.cuda`, or `compiled`, imported when a solve asks for it."""
    return import_module(f"ctrnn_assembly.solvers.{'' if name == 'compiled' else 'cuda.'}{name}")


def _rounded(form: Form) -> AbstractContextManager[None]:
    """Products of tf32 operands, if the form asks for them."""
    return _loaded("graph").tf32() if form.matmul_precision == "tf32" else nullcontext()


class Integrate(Loop):
    @staticmethod
    def forward(
        ctx: Any, form: Form, plan: Plan, x0: Tensor, inputs: Tensor, dt: Tensor | None, *tensors: Any
    ) -> Tensor:
        """States, (time + 1, batch, n), or the last one alone, (1, batch, n), by `plan.way`."""
        ctx.plain, ctx.adjoint = partial(plain_states, form), partial(_adjoint, form, plan)
        given = (x0, inputs, dt, *tensors)
        with _rounded(form):
            if plan.way == "fused":  # written out: `_forward` would be one more frame in every step
                stored, last = FusedKernel(form, tensors).roll(plan, form.ordered(x0[None]), inputs, dt)
            elif plan.way == "graph":
                stored, last = _loaded("graph").replayed(_forward, (form, plan), given)
            else:
                stored, last = _loaded(plan.way).forward(form, plan, *given)
        ctx.save_for_backward(stored, *given)
        if plan.every:
            return form.flat(stored).contiguous()
        return form.flat(last).clone(memory_format=torch.contiguous_format)


def _adjoint(form: Form, plan: Plan, needed: Any, grads: Any, stored: Tensor, *given: Any) -> Any:
    """By the adjoint's recurrence, as `plan.way` has it; lengths of steps have no gradient."""
    fixed, read = (form, plan, (*needed[:2], *needed[3:])), (*grads, stored, *given[1:])
    with _rounded(form):
        if plan.way == "graph":
            found = _loaded("graph").replayed(_gradients, fixed, read)
        else:
            found = (_gradients if plan.way == "fused" else _loaded(plan.way).gradients)(*fixed, *read)
    return (*found[:2], None, *found[2:])


def plain_states(form: Form, x0: Tensor, inputs: Tensor, dt: Any, *tensors: Any) -> Tensor:
    """The states of the tensors of `fused_step`, (time + 1, batch, n), without in-place writes.

    dt: (time, 1 or batch), or None; or (k, x) -> (h g, s) of `compiled`. No operand is rounded.
    """
    W, D, P, Q, E, *others = tensors
    K = others[: len(form.psi)]
    W = W.diag() if W.ndim == 1 else torch.block_diag(*W) if W.ndim == 3 else W
    if form.pattern is not None and P is not None:
        whole = P.new_zeros(form.pattern.p, form.pattern.p, *P.shape[1:])
        P = rearrange(whole.index_put(indices(form.pattern, P.device), P), "i j r c -> (i r) (j c)")
    # Of units that `compiled` has filled up with, blocks know nothing.
    W = pad(W, (0, len(D) - len(W)) * 2)
    if P is not None:
        P = pad(P, (0, len(D) - len(P)) * 2)
    R = torch.linalg.inv(torch.eye(len(P)).to(P) - P) if form.implicit is not None else None
    states = [x0]
    for k, drive in enumerate(inputs if E is None else inputs @ E.mT):
        x = last = states[-1]
        p = form.pre(x)
        h, s = dt(k, x) if callable(dt) else (None if dt is None else dt[k][:, None], None)
        if s is not None:
            x, p = s * x, s * p
        f = form.post(p @ W.mT + drive)
        new = D * x + (f if Q is None else Q * f if Q.ndim == 1 else f @ Q.mT)
        new = new if P is None or R is not None else new + x @ P.mT
        for psi, A in zip(form.psi, K, strict=True):
            new = new + psi(x) @ A.mT
        new = new if R is None else new @ R.mT
        states.append(new if h is None else last + h * new)
    return torch.stack(states)


def zeros_for(tensors: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Zeros of the shape of each tensor, where needed."""
    pairs = zip(tensors, needed, strict=True)
    return [t.new_zeros(t.shape) if need and t is not None else None for t, need in pairs]


def _forward(
    form: Form, plan: Plan, x0: Tensor, inputs: Tensor, dt: Tensor | None, *tensors: Any
) -> tuple[Tensor, Tensor]:
    """The forward pass as a function of tensors: what is stored, and the last state."""
    return FusedKernel(form, tensors).roll(plan, form.ordered(x0[None]), inputs, dt)


def _gradients(form: Form, plan: Plan, needed: tuple[bool, ...], *given: Any) -> tuple[Any, ...]:
    """Those of x0, inputs and tensors, where needed; given that of (T + 1 or 1, batch, n) states."""
    grad, stored, inputs, dt, *tensors = given
    kernel = FusedKernel(form, tensors)
    forward = (kernel.W, kernel.P, kernel.Q, kernel.R, *kernel.K)
    turned = tuple(None if A is None else A.transposed() for A in forward)
    sums, d_inputs = zeros_for(tensors, needed[2:]), torch.empty_like(inputs) if needed[1] else None
    grads = form.ordered(grad)
    lam, again = kernel.empty(plan.length + 1, grad), replace(plan, whole=True)
    first = grads.narrow(-3, len(grad) - 1, 1)
    for index, (start, end) in reversed([*enumerate(plan.segments(len(inputs)))]):
        steps, u, d = end - start, inputs[start:end], None if dt is None else dt[start:end]
        x = stored.narrow(-3, start, steps + 1) if plan.whole else stored.narrow(-3, index, 1)
        if not plan.whole:
            x, _ = kernel.roll(again, x, u, d)
        lam.narrow(-3, steps, 1).copy_(first)
        later = grads.narrow(-3, start, steps).unbind(-3) if len(grad) > 1 else None
        q = kernel.back(turned, sums, x, lam, u, d, later)
        first = lam.narrow(-3, 0, 1).clone()
        if d_inputs is not None:
            E, flat = tensors[4], form.flat(q)
            d_inputs[start:end] = flat if E is None else flat @ E
    d_x0 = form.flat(first)[0].contiguous() if needed[0] else None
    return (d_x0, d_inputs, *sums)
