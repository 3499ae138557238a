"""Forward Euler and its adjoint as two persistent Triton kernels; the formulas are those of `fused`.

One program takes 8 or 16 rows of the batch through all T steps, so a solve is one launch forward and one
backward, whatever T is. A diagonal W is an elementwise product.

Cost: forward and backward each T (n^2 + sum n_i^2) batch multiply-adds, and packing copies each matrix
once. Memory: T batch n numbers each for e, the states and the adjoints v, and for q where post is not
the identity; without gradients and with save="last" only two states. e, and weight gradients over CHUNK
rows of time and batch at once, are products of torch's in the state's own precision;
`torch.set_float32_matmul_precision` lets them use tf32.

What is not done here `why_not` says before a solve. Second derivatives are those of
`fused.plain_states`.
"""

import importlib.util
import os
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers import fused
from ctrnn_assembly.solvers.fused import MatmulPrecision, Save
from ctrnn_assembly.solvers.operators import Dense, Diagonal
from ctrnn_assembly.terms import Terms

# (batch rows of a program, units computed at once). Tensor cores multiply 16 rows at least; exact
# products of float32 do not use them, and with 8 rows twice as many programs share the work. 512 units
# take at most SHARED bytes of shared memory, and few registers spill.
SHAPES: dict[MatmulPrecision, tuple[int, int]] = {"full": (8, 512), "tf32": (16, 512), "bf16": (16, 512)}
SHAPE_OF_DOUBLE = 16, 128
SHARED = 160 * 1024
COMPILED = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
PHIS = [ACTIVATIONS[name] for name in ("identity", "relu", "tanh", "sigmoid", "softplus")]
CHUNK = 2**15  # rows (time and batch) in one product of a weight gradient


def persistent_euler(
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    *,
    matmul_precision: MatmulPrecision = "full",
    save: Save = "all",
) -> Tensor:
    """States of forward Euler, (time + 1, batch, n) or (1, batch, n); arguments as `fused.prepared`.

    A SolverError for what `why_not` names.
    """
    reason = why_not(terms, x0, drive, dt, matmul_precision)
    if reason is not None:
        raise SolverError(
            f"the persistent kernels cannot run this solve: {reason}. Use backend='fused' instead."
        )
    W = fused.structured_weight(terms)
    tensors = (W[None] if W.ndim == 2 else W, 1 / terms.tau, terms.L)
    e = terms.bias.expand(1, 1, -1)
    if drive is not None:
        e = terms.inject(drive.flatten(0, 1)).unflatten(0, drive.shape[:2])
    leaves = [x0, e, *tensors]
    differentiate = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    keep = save == "all" or differentiate
    return cast(Tensor, _Persistent.apply(terms, matmul_precision, save, keep, x0, e, dt, *tensors))


def why_not(
    terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor, matmul_precision: str = "full"
) -> str | None:
    """What keeps the kernels from this solve, in one line; None if nothing does. Looks at no value."""
    device, cuda = x0.device, x0.device.type == "cuda"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    # Whether Triton would run kernels on the CPU; asked without importing it.
    asked = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    if not cuda and not asked:
        return f"the state is on {device}, and Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    tensors = [*terms.tensors(), dt, *([] if drive is None else [drive])]
    other = {(t.dtype, t.device) for t in tensors} - {(x0.dtype, device)}
    if x0.dtype not in (torch.float32, torch.float64):
        return f"the state is {x0.dtype}; it must be float32 or float64"
    if other:
        return f"the state is {x0.dtype} on {device}, but another tensor is {min(other, key=str)}"
    if matmul_precision != "full" and x0.dtype != torch.float32:
        return f"matmul_precision={matmul_precision!r} rounds float32, and the state is {x0.dtype}"
    if dt.requires_grad:
        return "dt asks for a gradient"
    if cuda:
        properties = cast(Any, torch.cuda.get_device_properties(device))
        found = properties.shared_memory_per_block_optin // 1024
        if found < SHARED // 1024:
            return f"{device} has {found} KB of shared memory for a program; it needs {SHARED // 1024}"
    if fused.few_blocks(terms) is not None:
        return "few blocks of L are coupled, and the kernels multiply all"
    if terms.edges:
        return f"the field has {len(terms.edges)} nonlinear couplings"
    for side, phi in (("pre", terms.pre), ("post", terms.post)):
        names = sorted({a.name for a, _ in phi.runs})
        if len(names) > 1:
            return f"{side} mixes the activations {', '.join(names)}"
        if phi.runs[0][0] not in PHIS:
            return f"{side} is {names[0]!r}; the kernels have {', '.join(phi.name for phi in PHIS)}"
    return None


def layout(n: int, block: int, width: int) -> dict[str, int]:
    """How n units lie in square tiles, as `kernels` names it: each block starts a tile of its own.

    `width` is the most units that a kernel computes at once, a power of two.
    """
    tile = 16 if block <= 16 else 32  # a power of two, and no less than tensor cores multiply
    per_block = -(-block // tile)
    tiles = n // block * per_block
    group = min(width // tile, 1 << (tiles - 1).bit_length())  # tiles computed at once, a power of two
    blocks = {"n": n, "K": block, "TILE": tile, "PER_BLOCK": per_block}
    return blocks | {"tiles": tiles, "GROUP": group, "GROUPS": -(-tiles // group)}


class _Launch:
    """What both kernels of one solve share; W is (n,), its diagonal, or (blocks, k, k).

    e is b + W_in u, (time, batch, n), or (1, 1, n) without an input.
    """

    def __init__(
        self,
        terms: Terms,
        matmul_precision: MatmulPrecision,
        x0: Tensor,
        e: Tensor,
        dt: Tensor,
        W: Tensor,
        inv_tau: Tensor,
        L: Tensor | None,
    ) -> None:
        from ctrnn_assembly.solvers.cuda import kernels

        self.kernels, self.x0, self.steps, self.post = kernels, x0, len(dt), terms.post
        self.W, self.L, self.e, self.dt = W, L, e.contiguous(), dt.contiguous()
        single = x0.dtype == torch.float32
        self.rows, width = SHAPES[matmul_precision] if single else SHAPE_OF_DOUBLE
        self.low = matmul_precision == "bf16"
        block = terms.n if self.W.ndim == 1 else self.W.shape[-1]
        self.shared: dict[str, Any] = {
            "INV_TAU": inv_tau.contiguous(),
            "batch": len(x0),
            "steps": len(dt),
            "dt_step": dt.shape[1],
            "dt_row": int(dt.shape[1] > 1),
            "e_step": e[0].numel() if len(e) > 1 else 0,
            "e_row": terms.n if e.shape[1] > 1 else 0,
            "PRE": terms.pre.runs[0][0].name,
            "POST": terms.post.runs[0][0].name,
            "PRODUCTS": matmul_precision,
            "ROWS": self.rows,
            **layout(terms.n, block, width),
            **COMPILED,
        }

    def packed(self, A: Tensor | None) -> tuple[str, Tensor]:
        """The kind and the (in, out) tiles of a matrix: None, (n,), (n, n), or blocks as of W.

        With bf16 the tiles are rounded, which the kernels multiply; diagonals stay exact.
        """
        if A is None:
            return "none", self.e  # any pointer: nothing is read
        if A.ndim == 1:
            return "diagonal", A.contiguous()
        s = self.shared
        tile, k, tiles = s["TILE"], s["K"], s["tiles"]
        free, spare = s["PER_BLOCK"] * tile - k, s["GROUPS"] * s["GROUP"] - tiles
        if A.ndim == 3 and s["PER_BLOCK"] == 1:
            kind, values = "own", pad(A.mT, (0, free, 0, free, 0, spare))
        else:
            A = torch.block_diag(*A) if A.ndim == 3 else A
            A = pad(A.unflatten(1, (-1, k)).unflatten(0, (-1, k)), (0, free, 0, 0, 0, free))
            # (row tile, row, column tile, column), then (group, column tile, column, tile, row)
            A = pad(A.reshape(tiles, tile, tiles, tile), (0, 0, 0, 0, 0, 0, 0, spare))
            A = A.unflatten(0, (-1, s["GROUP"]))
            kind, values = "dense", A.permute(0, 3, 4, 1, 2)
        return kind, (values.bfloat16() if self.low else values).contiguous()

    def run(self, kernel: Any, step: int, **arguments: Any) -> None:
        """Launch, with E and DT at one step."""
        self.start(kernel, E=self.e[step], DT=self.dt[step], **arguments, **self.shared)

    def start(self, kernel: Any, **arguments: Any) -> None:
        # Triton launches on the current device, which need not be the tensors'.
        device = self.x0.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[(-(-len(self.x0) // self.rows),)](**arguments)

    def states(self, keep: bool) -> Tensor:
        """All states, (time + 1, batch, n), or (2, batch, n) with the last at the index `time % 2`."""
        X = self.x0.new_empty(self.steps + 1 if keep else 2, *self.x0.shape)
        X[0] = self.x0
        (w_kind, W), (l_kind, L) = self.packed(self.W), self.packed(self.L)
        matrices = {"W": W, "L": L, "W_KIND": w_kind, "L_KIND": l_kind}
        self.run(self.kernels.forward_kernel, 0, X=X, RING=not keep, **matrices)
        return X

    def adjoints(self, X: Tensor, grad: Tensor, every: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(lam_0, V, Q) with V, Q (time, batch, n), from the gradient of all states or of the last."""
        grad, W = grad.contiguous(), self.W
        lam = torch.stack([grad[-1], grad[-1]])
        V = torch.empty_like(X[1:])
        Q = V if self.post.is_identity else torch.empty_like(V)
        w_kind, WT = self.packed(W if W.ndim == 1 else W.mT)
        l_kind, LT = self.packed(None if self.L is None else self.L.mT)
        matrices = {"W": self.packed(W)[1], "WT": WT, "LT": LT, "W_KIND": w_kind, "L_KIND": l_kind}
        stored = {"X": X[-2], "V": V[-1], "Q": Q[-1], "GRAD": grad[-2] if every else grad}
        self.run(self.kernels.adjoint_kernel, -1, LAM=lam, EVERY=every, **stored, **matrices)
        return lam[len(V) % 2], V, Q


class _Persistent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        matmul_precision: MatmulPrecision,
        save: Save,
        keep: bool,
        x0: Tensor,
        e: Tensor,
        dt: Tensor,
        *tensors: Any,
    ) -> Tensor:
        X = _Launch(terms, matmul_precision, x0, e, dt, *tensors).states(keep)
        if keep:
            ctx.terms, ctx.matmul_precision, ctx.every = terms, matmul_precision, save == "all"
            ctx.save_for_backward(X, x0, e, dt, *tensors)
        # A copy of the last state, so that nothing outside shares memory with what the adjoint reads.
        return X if save == "all" else X[len(dt) if keep else len(dt) % 2].clone()[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        X, x0, *given = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            e, dt, *tensors = given
            states, needed = partial(_plain_states, ctx.terms, dt), ctx.needs_input_grad
            leaves, needed = (x0, e, *tensors), (*needed[4:6], *needed[7:])
            found = fused.gradients_again(states, leaves, needed, grad, ctx.matmul_precision)
            return (None, None, None, None, *found[:2], None, *found[2:])
        with torch.autocast(grad.device.type, enabled=False):  # as in the forward pass
            launch = _Launch(ctx.terms, ctx.matmul_precision, X[0], *given)
            lam, V, Q = launch.adjoints(X, grad, ctx.every)
            d_x0 = lam if ctx.needs_input_grad[4] else None
            sums = _weight_gradients(ctx.terms, ctx.needs_input_grad[5:], given, X, V, Q)
            return (None, None, None, None, d_x0, *sums)


def _plain_states(
    terms: Terms, dt: Tensor, x0: Tensor, e: Tensor, W: Tensor, inv_tau: Tensor, L: Tensor | None
) -> Tensor:
    form = fused.Form(terms.pre, terms.post, (), None, "full")
    P = None if L is None else inv_tau[:, None] * L
    return fused.plain_states(form, dt, x0, e.expand(len(dt), -1, -1), W, -inv_tau, P, inv_tau, None)


def _weight_gradients(
    terms: Terms, wanted: tuple[bool, ...], given: list[Any], X: Tensor, V: Tensor, Q: Tensor
) -> list[Tensor | None]:
    """Gradients of e, dt (none), W, 1/tau and L, summed over chunks of time."""
    e, dt, W, inv_tau, L = given
    d_e = Q.sum_to_size(e.shape) if wanted[0] else None
    dW, d_inv_tau, dL = (
        torch.zeros_like(t) if need and t is not None else None
        for t, need in zip(given[2:], wanted[2:], strict=True)
    )
    inverse = torch.where(dt == 0, 0, 1 / dt)[:, :, None]  # a step of length 0 adds none
    steps = max(1, CHUNK // X.shape[1])
    for start in range(0, len(V), steps):
        part = slice(start, start + steps)
        x, v, q = X[:-1][part], V[part], Q[part]
        if d_inv_tau is not None:  # lam+ (x+ - x) tau with lam+ = v tau / dt
            d_inv_tau += (v * (X[1:][part] - x) * inverse[part]).sum((0, 1)) / inv_tau.square()
        x, v, q = (a.flatten(0, 1) for a in (x, v, q))
        if dW is not None:
            operator = Diagonal(W) if W.ndim == 1 else Dense(W)
            operator.gradient(dW, q, terms.pre(x))
        if dL is not None:
            Dense(L).gradient(dL, v, x)
    return [d_e, None, dW, d_inv_tau, dL]
