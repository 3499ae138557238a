"""Forward Euler with a hand-written adjoint: the fast path, with `euler` as its slow twin.

    x+ = (1 - h) x + h (post(W pre(x) + b + W_in u) + L x + sum_e K_e psi_e(x)),      h = dt / tau

`euler_step` folds h into the tensors, under autograd, once a solve; `adjoint.integrate` does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.errors import DataError
from ctrnn_assembly.solvers.adjoint import Checkpoint, Save, integrate
from ctrnn_assembly.solvers.step import Cells, Products, Step
from ctrnn_assembly.terms import Terms

# Above this share of coupled blocks one dense product a step is faster than many small ones.
FEW = 0.4


def euler_adjoint(
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    *,
    save: Save = "all",
    checkpoint: Checkpoint = "none",
    products: Products = "full",
    graph: bool = False,
) -> Tensor:
    """States of forward Euler; arguments as `euler.euler`, and those of `adjoint.integrate`."""
    assert not dt.requires_grad  # `solve` refuses it
    equal = same_steps(dt)
    step, inputs = euler_step(terms, drive, dt[0, 0] if equal else None, len(x0), len(dt), products)
    return integrate(
        step, x0, inputs, None if equal else dt, save=save, checkpoint=checkpoint, graph=graph
    )


def same_steps(dt: Tensor) -> bool:
    """Whether step lengths, (T, 1) or (T, batch), are one number, up to the rounding of the times."""
    if dt.shape[1] > 1:
        return False
    rounding = torch.finfo(dt.dtype).eps * dt.sum()
    return bool(((dt - dt[:1]).abs() <= rounding).all())


def euler_step(
    terms: Terms,
    drive: Tensor | None,
    dt: Tensor | None,
    batch: int,
    steps: int,
    products: Products = "full",
) -> tuple[Step, Tensor]:
    """The step of length dt, or the one that is to be multiplied by each dt, and its inputs."""
    h = 1 / terms.tau if dt is None else dt / terms.tau
    W, p = structured_weight(terms)
    inside = terms.post.is_identity
    if inside:
        W = W * h.view(p, 1, -1) if terms.diagonal else W * h.view(p, -1, 1)
    P, cells = _coupling(terms, h, p)
    E, inputs = input_product(terms, drive, h if inside else None, batch, steps)
    step = Step(
        pre=terms.pre,
        post=terms.post,
        W=W,
        D=(-h if dt is None else 1 - h).view(p, 1, -1),
        P=P,
        Q=None if inside else h.view(p, 1, -1),
        E=E,
        K=tuple(h[:, None] * edge.K for edge in terms.edges),
        psi=tuple(edge.psi for edge in terms.edges),
        cells=cells,
        products=products,
    )
    return step, inputs


def structured_weight(terms: Terms) -> tuple[Tensor, int]:
    """W as (p, k, k) or, if diagonal, (p, 1, k); as one block if the blocks differ in size."""
    p = len(terms.blocks) if len(set(terms.sizes)) == 1 else 1
    if terms.diagonal:
        w = torch.cat([W.diagonal() for W in terms.blocks])
        entries = torch.cat([W.flatten() for W in terms.blocks])
        if int(entries.count_nonzero()) != int(w.count_nonzero()):
            raise DataError(
                "every W of Terms with diagonal=True must be diagonal; got entries elsewhere. Set "
                "diagonal=False."
            )
        return w.view(p, 1, -1), p
    return (torch.stack(terms.blocks) if p > 1 else terms.weight()[None]), p


def input_product(
    terms: Terms, drive: Tensor | None, h: Tensor | None, batch: int, steps: int
) -> tuple[Tensor | None, Tensor]:
    """(E, inputs) with b + W_in u = [u, 1] E, times h if it is given."""
    scale = torch.ones_like(terms.tau) if h is None else h
    if drive is not None and terms.W_in is None:
        return None, scale * (terms.bias + drive)
    bias = (scale * terms.bias)[None]
    if drive is None:
        return bias, terms.tau.new_ones(1, 1, 1).expand(steps, batch, 1)
    assert terms.W_in is not None
    return torch.cat([scale * terms.W_in.mT, bias]), pad(drive, (0, 1), value=1.0)


def _coupling(terms: Terms, h: Tensor, p: int) -> tuple[Tensor | None, Cells | None]:
    """h L, dense or as its nonzero blocks."""
    if terms.L is None:
        return None, None
    P = h[:, None] * terms.L
    one_kind = all(len(phi.runs) == 1 for phi in (terms.pre, terms.post))
    if p == 1 or not terms.pairs or terms.edges or not one_kind or 2 * len(terms.pairs) > FEW * p * p:
        return P, None
    rows, columns = zip(
        *sorted({(i, j) for a, b in terms.pairs for i, j in ((a, b), (b, a))}), strict=True
    )
    blocks = P.view(p, terms.n // p, p, -1).transpose(1, 2)[list(rows), list(columns)]
    if int(blocks.detach().count_nonzero()) != int(P.detach().count_nonzero()):
        raise DataError(
            "L must be zero outside the coupled pairs of its Terms; got entries elsewhere. Give all "
            "pairs, or none for a dense L."
        )
    return blocks, Cells(rows, columns)
