"""(I - P)^-1 of a P of few blocks, as a sequence of small products: block Gaussian elimination.

Of the coupled modules the one with the fewest neighbours is eliminated next. In a forest of pairs no
block is filled in, and (I - P)^-1 x costs a product for each block of P, as P x does, and one for each
module that is not a leaf. There is no pivoting, nor need where P is skew in a metric of the modules: the
symmetric part of every pivot is then at least I.
"""

from collections import defaultdict

import torch
from torch import Tensor

from ctrnn_assembly.linalg import remembered
from ctrnn_assembly.solvers.operators import BlockPattern, FewBlocks

Places = tuple[tuple[int, int], ...]


@remembered
def elimination(P: Tensor, pattern: BlockPattern, most: float) -> tuple[Places, Tensor] | None:
    """The products of (I - P)^-1, x_i += A x_j or, where i = j, x_i = A x_i: all (i, j), and all A.

    P is (C, k, k), at the pattern and at its transpose. None for more than `most`, or poor, products.
    """
    one = torch.eye(P.shape[-1]).to(P)
    M = dict(zip(zip(pattern.rows, pattern.columns, strict=True), -P, strict=True))
    down, up = list[tuple[int, int, Tensor]](), list[tuple[int, int, Tensor]]()
    beside, changed = defaultdict[int, set[int]](set), set[int]()
    for i, j in M:
        beside[i].add(j)
    while beside:
        v = min(beside, key=lambda v: (len(beside[v]), v in changed))
        later, inverse = beside.pop(v), torch.linalg.inv_ex(M[v, v])[0] if v in changed else one
        for i in later:
            beside[i] = (beside[i] | later) - {i, v}
            down.append((i, v, -M[i, v] @ inverse))
            for j in later:
                M[i, j] = M.get((i, j), one * (i == j)) + down[-1][-1] @ M[v, j]
        own = [(v, v, inverse)] if v in changed else []
        up = [*((v, j, -M[v, j]) for j in later), *own, *up]
        changed |= later
        if len(down) + len(up) > most:
            return None
    places, A = tuple((i, j) for i, j, _ in down + up), torch.stack([A for *_, A in down + up])
    y = P.new_ones(pattern.p, 1, P.shape[-1])
    x = y.clone()
    Eliminated(A, places).apply_(x)
    FewBlocks(P, pattern).add(y, x)  # y + P x = x
    return (places, A) if bool((x - y).abs().max() <= 1e-12 * y.abs().max()) else None


class Eliminated:
    """(I - P)^-1 by its products A (products, k, k) at `places`, for rows (p, rows, k)."""

    def __init__(self, A: Tensor, places: Places) -> None:
        self.A, self.places, self.right = A, places, A.mT.contiguous().unbind(0)

    def apply_(self, x: Tensor) -> None:
        rows = x.unbind(0)
        for (i, j), right in zip(self.places, self.right, strict=True):
            if i == j:
                rows[i].copy_(rows[i] @ right)
            else:
                rows[i].addmm_(rows[j], right)

    def transposed(self) -> "Eliminated":
        return Eliminated(self.A.mT.flip(0), tuple((j, i) for i, j in reversed(self.places)))
