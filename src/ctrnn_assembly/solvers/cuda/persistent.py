"""Forward Euler and its adjoint as two persistent Triton kernels; the formulas are those of `fused`.

One program takes 8 or 16 rows of the batch through all T steps, so a solve is one launch forward and one
backward, whatever T is. The coupling is multiplied tile by tile: only the tiles of the coupled pairs,
if that takes fewer products, else all of them. A diagonal W is an elementwise product.

Cost: forward and backward each T (n^2 + sum n_i^2) batch multiply-adds with a dense L, or T (2 C + p)
n_i^2 batch and the unused slots (`tiles`) with C pairs. Memory: T batch n numbers for the
states and as many for the adjoints v, twice as many where post is not the identity; without gradients
and with save="last" only two states. Weight gradients are products over CHUNK rows of time and batch at
once, in the state's own precision; `torch.set_float32_matmul_precision` lets them use tf32.

Not done here: nonlinear edges, several activations in one field, one's own activations, second
derivatives, a gradient with respect to dt, recomputing. `why_not` says so before a solve.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.solvers.cuda.tiles import Packed, Packer
from ctrnn_assembly.solvers.fused import FEW, MatmulPrecision, structured_weight
from ctrnn_assembly.terms import Terms

# (batch rows of a program, units computed at once). Tensor cores multiply 16 rows at least; exact
# products of float32 do not use them, and with 8 rows twice as many programs share the work. 512 units
# take at most SHARED bytes of shared memory, and few registers spill.
SHAPES: dict[MatmulPrecision, tuple[int, int]] = {"full": (8, 512), "tf32": (16, 512), "bf16": (16, 512)}
SHAPE_OF_DOUBLE = 16, 128
SHARED = 160 * 1024
COMPILED = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
FEW_INPUTS = 4  # up to here W_in u is summed in the kernel; beyond, it is one product for all steps
CHUNK = 2**15  # rows (time and batch) in one product of a weight gradient


def persistent_euler(
    terms: Terms,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    *,
    matmul_precision: MatmulPrecision = "full",
    save: Literal["all", "last"] = "all",
) -> Tensor:
    """States of forward Euler; the other arguments as `schemes.integrate`.

    Args:
        matmul_precision: how the operands of W p, L x and their adjoints are rounded; sums and states
            never are. "full" not at all, "tf32" to 10 bits of mantissa, "bf16" to 7.
        save: all states, (time + 1, batch, n), or only the last, (1, batch, n).

    Raises:
        SolverError: for what `why_not` names.
    """
    reason = why_not(terms, x0, drive, dt)
    if reason is None and matmul_precision != "full" and x0.dtype != torch.float32:
        reason = f"matmul_precision={matmul_precision!r} rounds float32, and the state is {x0.dtype}"
    if reason is not None:
        raise SolverError(
            f"the persistent kernels cannot run this solve: {reason}. Use backend='fused' instead."
        )
    if len(dt) == 0:
        return x0[None]
    tensors = (_weight(terms), terms.bias, 1 / terms.tau, terms.L, terms.W_in)
    leaves = [x0, drive, *tensors]
    differentiate = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    settings = _Settings(matmul_precision, save == "all", save == "all" or differentiate)
    out: Tensor = _Persistent.apply(terms, settings, x0, drive, dt, *tensors)
    return out


def why_not(terms: Terms, x0: Tensor, drive: Tensor | None, dt: Tensor) -> str | None:
    """What keeps the kernels from this solve, in one line; None if nothing does. Looks at no value."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if x0.device.type != "cuda" and not _interpreting():
        return f"the state is on {x0.device}, and Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    tensors = [*terms.tensors(), dt, *([] if drive is None else [drive])]
    other = {(t.dtype, t.device) for t in tensors} - {(x0.dtype, x0.device)}
    if x0.dtype not in (torch.float32, torch.float64):
        return f"the state is {x0.dtype}; it must be float32 or float64"
    if other:
        return f"the state is {x0.dtype} on {x0.device}, but another tensor is {min(other, key=str)}"
    if dt.requires_grad:
        return "dt asks for a gradient"
    return _why_not_device(x0.device) or _why_not_field(terms)


def _why_not_device(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    known = torch.cuda.get_device_properties(device)
    found: int = known.shared_memory_per_block_optin  # type: ignore[attr-defined]
    if found < SHARED:
        return (
            f"{device} has {found // 1024} KB of shared memory for a program; it needs {SHARED // 1024}"
        )
    return None


def _why_not_field(terms: Terms) -> str | None:
    if terms.edges:
        return f"the field has {len(terms.edges)} nonlinear couplings"
    for side, phi in (("pre", terms.pre), ("post", terms.post)):
        names = sorted({a.name for a, _ in phi.runs})
        if len(names) > 1:
            return f"{side} mixes the activations {', '.join(names)}"
        if phi.runs[0][0] != ACTIVATIONS.get(names[0]):
            return f"{side} is your own activation {names[0]!r}"
    return None


def _interpreting() -> bool:
    """Whether Triton would run kernels on the CPU; asked without importing it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _weight(terms: Terms) -> Tensor:
    """W as its diagonal (n,), as (blocks, k, k) if all blocks have one size, else as (1, n, n)."""
    W = structured_weight(terms)
    return W[None] if W.ndim == 2 else W


@dataclass(frozen=True)
class _Settings:
    matmul_precision: MatmulPrecision
    every: bool  # return every state, not only the last
    keep: bool  # store every state


@dataclass(frozen=True)
class _Launch:
    """What both kernels of one solve share."""

    terms: Terms
    packer: Packer
    rows: int  # of the batch, in one program
    x0: Tensor
    drive: Tensor | None  # as the kernels read it: contiguous, or W_in u where there are many inputs
    dt: Tensor
    W: Tensor
    bias: Tensor
    inv_tau: Tensor
    L: Tensor | None
    W_in: Tensor | None

    @property
    def inputs(self) -> int:
        if self.drive is None:
            return 0
        return -1 if self.W_in is None else self.drive.shape[-1]

    def shared(self) -> dict[str, Any]:
        """The keyword arguments that both kernels take."""
        from ctrnn_assembly.solvers.cuda import kernels

        batch, n = self.x0.shape
        layout = self.packer.layout
        return {
            "BIAS": self.bias.contiguous(),
            "INV_TAU": self.inv_tau.contiguous(),
            "W_IN": self.bias if self.W_in is None else self.W_in.contiguous(),
            "batch": batch,
            "steps": len(self.dt),
            "n": n,
            "tiles": layout.tiles,
            "dt_step": self.dt.shape[1],
            "dt_row": int(self.dt.shape[1] > 1),
            "u_step": 0 if self.drive is None else self.drive[0].numel(),
            "PRE": _name(self.terms.pre),
            "POST": _name(self.terms.post),
            "INPUTS": self.inputs,
            "PRODUCTS": self.packer.matmul_precision,
            "K": layout.block,
            "TILE": layout.tile,
            "PER_BLOCK": layout.per_block,
            "GROUP": layout.group,
            "GROUPS": layout.groups,
            "ROWS": self.rows,
            "INTERPRETED": kernels.INTERPRETED,
            **COMPILED,
        }

    def at(self, step: int) -> dict[str, Tensor]:
        """U and DT at one step."""
        return {"U": self.bias if self.drive is None else self.drive[step], "DT": self.dt[step]}

    def run(self, kernel: Any, **arguments: Any) -> None:
        device = self.x0.device
        with _on(device):
            kernel[(-(-self.x0.shape[0] // self.rows),)](**arguments)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _name(phi: Elementwise) -> str:
    return phi.runs[0][0].name


def _launch(
    terms: Terms,
    matmul_precision: MatmulPrecision,
    x0: Tensor,
    drive: Tensor | None,
    dt: Tensor,
    W: Tensor,
    bias: Tensor,
    inv_tau: Tensor,
    L: Tensor | None,
    W_in: Tensor | None,
) -> _Launch:
    if drive is not None and W_in is not None and drive.shape[-1] > FEW_INPUTS:
        drive, W_in = drive @ W_in.mT, None
    drive = None if drive is None else drive.contiguous()
    rows, width = SHAPES[matmul_precision] if x0.dtype == torch.float32 else SHAPE_OF_DOUBLE
    packer = Packer(terms, W, matmul_precision, width)
    return _Launch(terms, packer, rows, x0, drive, dt.contiguous(), W, bias, inv_tau, L, W_in)


def _operand(name: str, packed: Packed) -> dict[str, Tensor]:
    return {name: packed.values, f"{name}_COLS": packed.cols, f"{name}_STARTS": packed.starts}


def _states(launch: _Launch, keep: bool) -> Tensor:
    """All states, (time + 1, batch, n), or (2, batch, n) with the last one at the index `time % 2`."""
    from ctrnn_assembly.solvers.cuda.kernels import forward_kernel

    X = launch.x0.new_empty(len(launch.dt) + 1 if keep else 2, *launch.x0.shape)
    X[0] = launch.x0
    W = launch.packer.weight(launch.W)
    L = launch.packer.coupling(launch.L, launch.bias)
    launch.run(
        forward_kernel,
        X=X,
        **launch.shared(),
        **launch.at(0),
        **_operand("W", W),
        **_operand("L", L),
        W_KIND=W.kind,
        L_KIND=L.kind,
        RING=not keep,
    )
    return X


def _adjoints(launch: _Launch, X: Tensor, grad: Tensor, every: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(lam_0, V, Q) with V, Q (time, batch, n), from the gradient of all states or of the last."""
    from ctrnn_assembly.solvers.cuda.kernels import adjoint_kernel

    grad = grad.contiguous()
    lam = torch.stack([grad[-1], grad[-1]])
    V = torch.empty_like(X[1:])
    Q = V if launch.terms.post.is_identity else torch.empty_like(V)
    packer, W = launch.packer, launch.W
    forward, backward = packer.weight(W), packer.weight(W if W.ndim == 1 else W.mT)
    L = packer.coupling(None if launch.L is None else launch.L.mT, launch.bias)
    launch.run(
        adjoint_kernel,
        X=X[-2],
        V=V[-1],
        Q=Q[-1],
        LAM=lam,
        GRAD=grad[-2] if every else grad,
        **launch.shared(),
        **launch.at(-1),
        **_operand("W", forward),
        **_operand("WT", backward),
        **_operand("LT", L),
        W_KIND=forward.kind,
        L_KIND=L.kind,
        EVERY=every,
    )
    return lam[len(V) % 2], V, Q


class _Persistent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        settings: _Settings,
        x0: Tensor,
        drive: Tensor | None,
        dt: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        launch = _launch(terms, settings.matmul_precision, x0, drive, dt, *tensors)  # type: ignore[arg-type]
        X = _states(launch, settings.keep)
        if settings.keep:
            ctx.terms, ctx.settings = terms, settings
            ctx.save_for_backward(X, drive, dt, *tensors)
        # A copy of the last state, so that nothing outside shares memory with what the adjoint reads.
        return X if settings.every else X[len(dt) if settings.keep else len(dt) % 2].clone()[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; `once_differentiable` may give None instead
            raise SolverError("the persistent kernels have no second derivatives. Use backend='plain'.")
        with torch.autocast(grad.device.type, enabled=False):  # as in the forward pass
            X, drive, dt, *tensors = ctx.saved_tensors
            launch = _launch(ctx.terms, ctx.settings.matmul_precision, X[0], drive, dt, *tensors)
            lam, V, Q = _adjoints(launch, X, grad, ctx.settings.every)
            wanted = ctx.needs_input_grad
            sums = _weight_gradients(ctx, X, V, Q, wanted)
            return (None, None, lam if wanted[2] else None, *sums)


def _weight_gradients(
    ctx: Any, X: Tensor, V: Tensor, Q: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of drive, dt (none), W, bias, 1/tau, L and W_in, summed over chunks of time."""
    _, drive, dt, W, bias, inv_tau, L, W_in = ctx.saved_tensors
    parts = (drive, None, W, bias, inv_tau, L, W_in)
    sums = [
        torch.zeros_like(part) if need and part is not None else None
        for part, need in zip(parts, wanted[3:], strict=True)
    ]
    steps = max(1, CHUNK // X.shape[1])
    for start in range(0, len(V), steps):
        part = slice(start, start + steps)
        x, u = X[:-1][part], None if drive is None else drive[part]
        _add_products(ctx.terms, sums, x, V[part], Q[part], u, W_in)
        if sums[0] is not None:
            sums[0][part] = Q[part] if W_in is None else Q[part] @ W_in
        if sums[4] is not None:
            sums[4] += _tau_gradient(V[part], X[1:][part] - x, dt[part], inv_tau)
    if sums[5] is not None:
        _keep_coupled(sums[5], ctx.terms)
    return sums


def _keep_coupled(dL: Tensor, terms: Terms) -> None:
    """Zero the gradient of L, in place, outside few coupled blocks: there the fused loop has none."""
    p = len(terms.sizes)
    if p == 1 or not terms.pairs or len(set(terms.sizes)) > 1 or 2 * len(terms.pairs) > FEW * p * p:
        return
    coupled = torch.zeros(p, p)
    for i, j in terms.pairs:
        coupled[i, j] = coupled[j, i] = 1
    dL.view(p, terms.n // p, p, -1).mul_(coupled.to(dL)[:, None, :, None])


def _add_products(
    terms: Terms,
    sums: list[Tensor | None],
    X: Tensor,
    V: Tensor,
    Q: Tensor,
    u: Tensor | None,
    W_in: Tensor | None,
) -> None:
    """dW += q^T p by blocks, db += sum q, dL += v^T x, dW_in += q^T u over all rows of one chunk."""
    x, v, q = X.flatten(0, 1), V.flatten(0, 1), Q.flatten(0, 1)
    _, _, W, bias, _, L, dW_in = sums
    if W is not None:
        p = x if terms.pre.is_identity else terms.pre(x)
        if W.ndim == 1:
            W += (q * p).sum(0)
        else:
            q_blocks, p_blocks = (a.unflatten(-1, (len(W), -1)).transpose(0, 1) for a in (q, p))
            W.baddbmm_(q_blocks.mT, p_blocks)  # (p, k, rows) times (p, rows, k)
    if bias is not None:
        bias += q.sum(0)
    if L is not None:
        L.addmm_(v.mT, x)
    if dW_in is not None and u is not None:
        dW_in.addmm_(q.mT, u.flatten(0, 1))


def _tau_gradient(V: Tensor, moved: Tensor, dt: Tensor, inv_tau: Tensor) -> Tensor:
    """d(1/tau) = sum lam+ (x+ - x) / (1/tau) with lam+ = v tau / dt; a step of length 0 adds none."""
    inverse = torch.where(dt == 0, 0, 1 / dt)  # (steps, 1 or batch)
    return (V * moved * inverse[:, :, None]).sum((0, 1)) / inv_tau.square()
