"""A fused step and its adjoint by one persistent Triton kernel; the formulas are those of `fused`.

One program takes 8 or 16 rows of the batch through all T steps: one launch each way, whatever T is.

Memory: T batch n numbers each for e and the states, then for the adjoints v and the slopes of pre and
post where these are not the identity; without gradients and with save="last" only two states. e, slopes,
and weight gradients are products of torch's. What is not done `why_not` says before a solve.
"""

import importlib.util
import os
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctrnn_assembly.activations import ACTIVATIONS
from ctrnn_assembly.solvers.fused import Form, FusedKernel, MatmulPrecision, Plan, zeros_for

# (batch rows of a program, units computed at once). Tensor cores multiply 16 rows at least; exact
# products of float32 do not use them, and with 8 rows twice as many programs share the work. 512 units
# take at most SHARED bytes of shared memory, and few registers spill.
SHAPES: dict[MatmulPrecision, tuple[int, int]] = {"full": (8, 512), "tf32": (16, 512), "bf16": (16, 512)}
SHAPE_OF_DOUBLE = 16, 128
SHARED = 160 * 1024
COMPILED = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
PHIS = [ACTIVATIONS[name] for name in ("identity", "relu", "tanh", "sigmoid", "softplus")]
CHUNK = 2**15  # rows (time and batch) in one product of a weight gradient


def why_not(form: Form, plan: Plan, x0: Any, *tensors: Tensor | None) -> str | None:
    """What keeps the kernels from this solve, in one line; None if nothing does. Looks at no value."""
    device, cuda = x0.device, x0.device.type == "cuda"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    # Whether Triton would run kernels on the CPU; asked without importing it.
    asked = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    if not cuda and not asked:
        return f"the state is on {device}, and Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    if plan.few:
        return "the kernels store all states, and recompute is 'sqrt'"
    other = {(t.dtype, t.device) for t in tensors if t is not None} - {(x0.dtype, device)}
    if x0.dtype not in (torch.float32, torch.float64):
        return f"the state is {x0.dtype}; it must be float32 or float64"
    if other:
        return f"the state is {x0.dtype} on {device}, but another tensor is {min(other, key=str)}"
    if form.matmul_precision != "full" and x0.dtype != torch.float32:
        return f"matmul_precision={form.matmul_precision!r} rounds float32, and the state is {x0.dtype}"
    if cuda:
        found = cast(Any, torch.cuda.get_device_properties(device)).shared_memory_per_block_optin // 1024
        if found < SHARED // 1024:
            return f"{device} has {found} KB of shared memory for a program; it needs {SHARED // 1024}"
    if form.pattern is not None:
        return "few blocks of L are coupled, and the kernels multiply all"
    if form.psi:
        return f"the field has {len(form.psi)} nonlinear couplings"
    C = tensors[5]
    if C is not None and C.ndim > 1:
        return "the step multiplies what is after phi by a dense matrix"
    for side, phi in (("pre", form.pre), ("post", form.post)):
        names = sorted({a.name for a, _ in phi.runs})
        if len(names) > 1:
            return f"{side} mixes the activations {', '.join(names)}"
        if phi.runs[0][0] not in PHIS:
            return f"{side} is {names[0]!r}; the kernels have {', '.join(phi.name for phi in PHIS)}"
    return None


def layout(n: int, block: int, width: int) -> dict[str, int]:
    """How n units lie in square tiles, as `kernels` names it; `width`, a power of two, is a group's."""
    tile = 16 if block <= 16 else 32  # a power of two, and no less than tensor cores multiply
    per_block = -(-block // tile)
    tiles = n // block * per_block
    group = min(width // tile, 1 << (tiles - 1).bit_length())  # tiles computed at once, a power of two
    blocks = {"n": n, "K": block, "TILE": tile, "PER_BLOCK": per_block}
    return blocks | {"tiles": tiles, "GROUP": group, "GROUPS": -(-tiles // group)}


def packed(A: Tensor | None, shape: dict[str, int], low: bool) -> tuple[str, Any]:
    """Kind and (in, out) tiles, by `low` in bf16, of None, (n,), (n, n), or blocks (p, k, k)."""
    if A is None:
        return "none", None
    if A.ndim == 1:
        return "diagonal", A.contiguous()
    tile, k, tiles = shape["TILE"], shape["K"], shape["tiles"]
    free, spare = shape["PER_BLOCK"] * tile - k, shape["GROUPS"] * shape["GROUP"] - tiles
    if A.ndim == 3 and shape["PER_BLOCK"] == 1:
        kind, values = "own", pad(A.mT, (0, free, 0, free, 0, spare))
    else:
        A = torch.block_diag(*A) if A.ndim == 3 else A
        A = pad(A.unflatten(1, (-1, k)).unflatten(0, (-1, k)), (0, free, 0, 0, 0, free))
        # (row tile, row, column tile, column), then (group, column tile, column, tile, row)
        A = pad(A.reshape(tiles, tile, tiles, tile), (0, 0, 0, 0, 0, 0, 0, spare))
        A = A.unflatten(0, (-1, shape["GROUP"]))
        kind, values = "dense", A.permute(0, 3, 4, 1, 2)
    return kind, (values.bfloat16() if low else values).contiguous()


def launch(form: Form, X: Tensor, dt: Tensor | None, W: Any, D: Tensor, P: Any, **given: Any) -> None:
    """Take all steps from the state (batch, n) at X on; all else as `kernels.kernel` names it."""
    from ctrnn_assembly.solvers.cuda import kernels

    (batch, n), precision, low = X.shape, form.matmul_precision, form.matmul_precision == "bf16"
    rows, width = SHAPES[precision] if X.dtype == torch.float32 else SHAPE_OF_DOUBLE
    W, back = W[None] if W.ndim == 2 else W, given["BACK"]
    shape = layout(n, n if W.ndim == 1 else W.shape[-1], width)
    (w_kind, W), (p_kind, P) = (packed(A, shape, low) for A in (W, P))
    matrices = {"W": W, "P": X if P is None else P, "W_KIND": w_kind, "P_KIND": p_kind}
    dt_step = 0 if dt is None else dt.shape[1]
    times = {"SCALED": dt is not None, "dt_row": int(dt_step > 1), "dt_step": dt_step * (-1) ** back}
    times |= {"DT": X if dt is None else dt.contiguous()[-1 if back else 0]}
    sizes = {"batch": batch, "ROWS": rows, "PRODUCTS": precision, "move": batch * n * (-1) ** back}
    arguments = {"X": X, "D": D.contiguous(), **matrices, **times, **sizes, **shape, **COMPILED, **given}
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(X.device) if X.device.type == "cuda" else nullcontext():
        kernels.kernel[(-(-batch // rows),)](**arguments)


def forward(
    form: Form, plan: Plan, x0: Tensor, inputs: Tensor, dt: Tensor | None, *tensors: Any
) -> tuple[Tensor, Tensor]:
    """As the forward pass of `fused`: what is stored, and the last state."""
    (W, D, P, C, E), steps = tensors, len(inputs)
    alike = E is not None and inputs.stride()[:2] == (0, 0)  # no input: one e for all
    e = inputs[:1, :1] if alike else inputs
    e = (e if E is None else e @ E.mT).contiguous()
    given = {"E": e, "e_step": 0 if alike else e[0].numel(), "e_row": 0 if alike else x0.shape[1]}
    given |= {"R": x0, "S": D if C is None else C.contiguous()}  # not read: any pointer
    given |= {"PRE": form.pre.runs[0][0].name, "POST": form.post.runs[0][0].name}
    X = x0.new_empty(steps + 1 if plan.whole else 2, *x0.shape)  # or two states in turn
    X[0] = x0
    launch(form, X[0], dt, W, D, P, steps=steps, BACK=False, RING=not plan.whole, **given)
    return X, X[steps if plan.whole else steps % 2][None]


def gradients(form: Form, plan: Plan, needed: tuple[bool, ...], *given: Any) -> tuple[Any, ...]:
    """As those of `fused`, of x0, inputs and tensors; given the gradient and what was saved."""
    grad, X, inputs, dt, *tensors = given
    (W, D, P, C, E), kernel = tensors, FusedKernel(form, tensors)
    lam, steps = torch.empty_like(X), max(1, CHUNK // X.shape[1])
    lam[-1] = grad[-1]
    parts = [slice(start, start + steps) for start in range(0, len(inputs), steps)]
    S, R = (X[1:] if phi.is_identity else torch.empty_like(X[1:]) for phi in (form.pre, form.post))
    for part in parts:
        x = X[:-1][part]
        if not form.pre.is_identity:
            S[part] = form.pre.slope_at(x)
        if C is not None:
            torch.mul(form.post.slope_at(kernel.under_post(inputs[part], form.pre(x))), C, out=R[part])
    every, size = len(grad) > 1, X[0].numel()
    e = grad.contiguous()[-2] if every else torch.zeros_like(D)
    sizes = {"e_step": -size if every else 0, "e_row": X.shape[-1] if every else 0, "steps": len(inputs)}
    phis = ("identity" if phi.is_identity else "slopes" for phi in (form.post, form.pre))
    kinds = dict(zip(("PRE", "POST"), phis, strict=True)) | {"BACK": True, "RING": False}
    W_T, P_T = W if W.ndim == 1 else W.mT, None if P is None else P.mT
    launch(form, lam[-1], dt, W_T, D, P_T, E=e, R=R[-1], S=S[-1], **sizes, **kinds)
    V = lam[1:] if dt is None else lam[1:] * dt[:, :, None]
    Q, sums = V if C is None else R.mul_(V), zeros_for(tensors, needed[2:])
    for part in parts:
        x, v, q, u = X[:-1][part], V[part], Q[part], inputs[part]
        p = form.pre(x)
        f = v if sums[3] is None else form.post(kernel.under_post(u, p))
        kernel.add_gradients(sums, (u, x, p, v, q, f, x))
    d_inputs = None if not needed[1] else Q if E is None else Q @ E
    return (lam[0] if needed[0] else None, d_inputs, *sums)
