"""Matrix facts that several theorems share. Tensors in, tensors out; float64 where it matters."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce, wraps
from threading import RLock
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ctrnn_assembly.transforms import known

ALONE = RLock()  # the limit is of the process: proofs that overlap would restore each other's


@contextmanager
def one_thread() -> Iterator[None]:
    """For proofs, without gradients; of small matrices, a second thread may cost a hundredfold."""
    with ALONE, torch.no_grad():
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):
                yield
        finally:
            torch.set_num_threads(before)


def working_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float64, so that a float32 parametrisation rounds once, at its end (not on MPS)."""
    return tuple(t if t.device.type == "mps" else t.to(torch.float64) for t in tensors)


def remembered(f: Callable[..., Any]) -> Callable[..., Any]:
    """f(G, ...) whose last result serves again, without gradients, while G has the same values.

    From batch to batch of an evaluation weights stay: to compare them costs less than an inverse.
    """
    last: Any = None

    @wraps(f)
    def again(G: Tensor, *others: Any) -> Any:
        nonlocal last
        if torch.is_grad_enabled() or not known(G):
            return f(G, *others)
        kept, kind = last, (G.dtype, G.device, others)
        if kept is None or kept[0] != kind or not torch.equal(kept[1], G):
            with torch.inference_mode(False), torch.no_grad():  # else nothing could be learnt with it
                last = kept = kind, G.clone(), f(G, *others)
        return kept[2]

    return again


@remembered
def exponential(G: Tensor) -> tuple[Tensor, Tensor]:
    """e^G and phi(G) = int_0^1 e^{sG} ds, of G (..., n, n); differentiable any number of times.

    phi by its Taylor polynomial of degree 15 at B = G / 2^k, k times phi(2 B) = (I + e^B) phi(B) / 2
    and e^2B = (e^B)^2: by B phi(B)^2 rounding grows. A third of the time of torch's exponential, and G
    may be singular. k makes ||B^j||^(1/j) <= .8, j = 3 and 4, hence j >= 6: the rest is below rounding.
    """
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    powers = [eye, G, G @ G]
    powers += [powers[2] @ G, powers[2] @ powers[2]]
    sizes = [float(torch.linalg.matrix_norm(powers[j].detach()).max()) ** (1 / j) for j in (1, 3, 4)]
    size = max(sizes[0] / 8, *sizes[1:]) / 0.8  # a larger ||B|| costs digits
    k = math.ceil(math.log2(size)) if 1 < size < math.inf else 0
    w = [0.5 ** (k * j) / math.factorial(j + 1) for j in range(16)]
    parts = [w[j] * eye + sum(w[j + i] * powers[i] for i in (1, 2, 3)) for j in (12, 8, 4, 0)]
    phi = reduce(lambda done, part: powers[4] @ done + part, parts)
    E = eye + (G * 0.5**k) @ phi
    for _ in range(k):
        phi, E = (phi + E @ phi) / 2, E @ E
    return E, phi


def plain_exponential(G: Tensor) -> tuple[Tensor, Tensor]:
    """As `exponential`, without a look at values: exp([[G, I], [0, 0]]) = [[e^G, phi(G)], [0, I]]."""
    n = G.shape[-1]
    top = torch.cat([G, torch.eye(n, dtype=G.dtype, device=G.device).expand_as(G)], -1)
    whole = torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top)], -2))
    return whole[..., :n, :n], whole[..., :n, n:]


def symmetric_part(A: Tensor) -> Tensor:
    """(A + A^T) / 2."""
    return (A + A.mT) / 2


def majorant(W: Tensor, monotone: bool) -> Tensor:
    """Wabs: |W| with non-positive diagonal entries set to 0 when phi is monotone (Theorem 1)."""
    positive = W.diagonal(0, -2, -1).clamp(min=0)
    return W.abs().diagonal_scatter(positive, 0, -2, -1) if monotone else W.abs()


def log_metzler_scaling(B: Tensor, r: float, slack: float = 1e-6) -> Tensor | None:
    """log theta of the diagonal metric P = diag(e / d) for B >= 0; None unless rho(B) < r is shown.

    d = (rI - B)^-1 1 and e = (rI - B^T)^-1 1 are positive exactly when rho(B) < r (THEORY section 2);
    this, and max_i (B d)_i / d_i < r, are checked on the computed d and e, with a relative `slack`.
    """
    d, e = resolvent_sums(r * torch.eye(len(B)).to(B) - B)
    if not all(bool((v > 0).all() and v.isfinite().all()) for v in (d, e)):
        return None
    strict = r * (1 - slack)
    if bool(((B @ d) / d).max() > strict) or bool(((B.mT @ e) / e).max() > strict):
        return None
    return (e / d).log() / 2


def resolvent_sums(A: Tensor) -> tuple[Tensor, Tensor]:
    """A^-1 1 and A^-T 1, (n,); not finite, rather than an error, where A is singular."""
    one = torch.ones_like(A[0])
    return torch.linalg.solve_ex(A, one)[0], torch.linalg.solve_ex(A.mT, one)[0]
