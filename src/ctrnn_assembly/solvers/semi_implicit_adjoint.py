"""IMEX and exponential Euler with the hand-written adjoint: the fast path of `semi_implicit`.

    x+ = P x + Q (post(W pre(x) + b + W_in u) + sum_e K_e psi_e(x))

P and Q are made once a solve, under autograd; they are dense, so a step costs two dense products. Steps
of several lengths go to the plain twin, and take no other settings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.adjoint import Checkpoint, Save, integrate
from ctrnn_assembly.solvers.euler_adjoint import input_product, same_steps, structured_weight
from ctrnn_assembly.solvers.semi_implicit import Matrices, semi_implicit
from ctrnn_assembly.solvers.step import Products, Step
from ctrnn_assembly.terms import Terms


def semi_implicit_adjoint(
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    matrices: Matrices,
    *,
    save: Save = "all",
    checkpoint: Checkpoint = "none",
    products: Products = "full",
    graph: bool = False,
) -> Tensor:
    """States; arguments as `semi_implicit.semi_implicit`, and those of `adjoint.integrate`."""
    if not same_steps(dt):
        if checkpoint != "none" or products != "full" or graph:
            raise SolverError(
                "semi-implicit steps of several lengths have no checkpoint, products or backend. Leave "
                "these settings out, use one dt, or method='euler'."
            )
        states = semi_implicit(terms, x0, drive, dt, matrices)
        return states[-1:] if save == "last" else states
    P, Q = matrices(terms, dt[0, 0])
    W, p = structured_weight(terms)
    E, inputs = input_product(terms, drive, None, len(x0), len(dt))
    diagonal = P.ndim == 1
    # The diagonal of P, near 1, apart from the rest: rounded operands would change the leak.
    D = P if diagonal else P.diagonal()
    step = Step(
        pre=terms.pre,
        post=terms.post,
        W=W,
        D=D.reshape(p, 1, -1),
        P=None if diagonal else P - torch.diag(D),
        Q=Q.view(p, 1, -1) if diagonal else Q,
        E=E,
        K=tuple(Q[:, None] * edge.K if diagonal else Q @ edge.K for edge in terms.edges),
        psi=tuple(edge.psi for edge in terms.edges),
        products=products,
    )
    return integrate(step, x0, inputs, None, save=save, checkpoint=checkpoint, graph=graph)
