"""Triton kernels: one program carries a tile of batch rows through all steps of a grid scheme.

    x+ = D x + P x + C post(W pre(x) + e),   D and C diagonal; or, SCALED, x + dt (D x + ...)

Rows of the batch are independent, so programs never wait for each other. A program's own threads do:
every unit reads other units, and Triton cannot index registers, so the state goes through memory, from
step to step, and one barrier a step makes the stores of all threads visible to all of them. Stores of a
step go elsewhere than its loads, so no second barrier is needed.

Units lie in square tiles of TILE units; a block of K units starts a tile of its own and its last tile
may be part empty (masked). GROUP tiles are computed at once, as (GROUP, ROWS, TILE). The matrices W and
P, or their transposes, come packed as (in, out) tiles, in one of three kinds (`_mix`):

    own     (tiles, TILE, TILE): block-diagonal, one tile a block
    dense   (groups, tiles, TILE, GROUP TILE): every tile, as one wide product
    none    nothing; a diagonal W, kind `diagonal`, is an elementwise product instead

Cost a step and program: ROWS TILE^2 multiply-adds a tile, the tiles' bytes once from the L2 cache, and
the state written once. State and sums are in the state's own precision; PRODUCTS says what the operands
of matrix products are rounded to.

This file imports Triton: import it only where Triton is known to be installed. Only Triton's builtins
are used, none of its library functions (such as tl.zeros): those are bound to the GPU or to the
interpreter when Triton is first imported, which may be long before this file.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

# Whether these kernels were decorated for the interpreter: it is decided now, once a process.
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)

# One compiled kernel serves every batch and every length.
SIZES = ["batch", "steps", "e_step", "e_row"]


@triton.jit
def _phi(x, NAME: tl.constexpr):
    """The activation of that name, as in `activations.ACTIVATIONS`; a NaN stays one."""
    y = x
    if NAME == "relu":
        y = tl.where(x <= 0.0, 0.0, x)
    elif NAME == "tanh":
        # Triton's own belongs to a device library, which the interpreter lacks. Error: an ulp of 1.
        e = tl.exp(-2.0 * tl.abs(x))
        size = (1.0 - e) / (1.0 + e)
        y = tl.where(x >= 0.0, size, -size)
    elif NAME == "sigmoid":
        # exp of a negative number only: no overflow, and a full relative accuracy on both sides.
        e = tl.exp(-tl.abs(x))
        y = tl.where(x >= 0.0, 1.0, e) / (1.0 + e)
    elif NAME == "softplus":
        y = tl.where(x <= 0.0, 0.0, x) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    return y


@triton.jit
def _units(tile, tiles, K: tl.constexpr, TILE: tl.constexpr, PER_BLOCK: tl.constexpr):
    """The units of the tiles (GROUP,), and which of them exist; both (GROUP, 1, TILE)."""
    tile = tile[:, None, None]
    lane = (tile % PER_BLOCK) * TILE + tl.arange(0, TILE)[None, None, :]
    return (tile // PER_BLOCK) * K + lane, (tile < tiles) & (lane < K)


@triton.jit
def _dot(x, a, acc, PRODUCTS: tl.constexpr):
    """acc + x a, batched over the first of three dimensions, or of two."""
    if PRODUCTS == "bf16":
        x = x.to(tl.bfloat16)
        if INTERPRETED:  # it multiplies the bit patterns of bfloat16; in float32 the product is exact
            x = x.to(tl.float32)
            a = a.to(tl.float32)
    if PRODUCTS == "tf32":
        acc = tl.dot(x, a, acc, input_precision="tf32", out_dtype=acc.dtype)
    else:
        acc = tl.dot(x, a, acc, input_precision="ieee", out_dtype=acc.dtype)
    return acc


@triton.jit
def _tiles(A, first, GROUP: tl.constexpr, TILE: tl.constexpr):
    """GROUP consecutive tiles, (GROUP, TILE, TILE)."""
    g = tl.arange(0, GROUP)[:, None, None] * TILE
    i = tl.arange(0, TILE)[None, :, None]
    return tl.load(A + first * TILE * TILE + (g + i) * TILE + tl.arange(0, TILE)[None, None, :])


@triton.jit
def _mix_dense(
    acc, SRC, A, group, batch, n, tiles, PHI: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, PER_BLOCK: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One column tile after another, for all rows of the group in one product."""
    WIDE: tl.constexpr = GROUP * TILE
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, TILE)[None, :]
    inside = tl.arange(0, TILE)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    wide = tl.full((ROWS, WIDE), 0.0, acc.dtype)
    for col in range(tiles):
        place = (col % PER_BLOCK) * TILE + lane
        unit = (col // PER_BLOCK) * K + place
        x = tl.load(SRC + row * n + unit, mask=(row < batch) & (place < K), other=0.0)
        a = tl.load(A + (group * tiles + col) * TILE * WIDE + inside)
        wide = _dot(_phi(x, PHI), a, wide, PRODUCTS)
    return acc + tl.permute(tl.reshape(wide, (ROWS, GROUP, TILE)), (1, 0, 2))


@triton.jit
def _mix(
    acc, own, held, SRC, A, group, batch, n, tiles, unit, real, HOLD: tl.constexpr,
    KIND: tl.constexpr, PHI: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr,
    PER_BLOCK: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """acc + A phi(x), (GROUP, ROWS, TILE), for x at SRC, whose tiles of this group are `own`.

    HOLD says that A's own tiles are `held` already.
    """
    if KIND == "diagonal":
        acc = acc + tl.load(A + unit, mask=real, other=0.0) * _phi(own, PHI)
    elif KIND == "own":
        a = held
        if not HOLD:
            a = _tiles(A, group * GROUP, GROUP, TILE)
        acc = _dot(_phi(own, PHI), a, acc, PRODUCTS)
    elif KIND == "dense":
        acc = _mix_dense(
            acc, SRC, A, group, batch, n, tiles, PHI, PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS
        )
    return acc


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    X, E, DT, D, C, W, P, batch, steps, n, tiles, dt_step, dt_row, e_step, e_row, SCALED: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, W_KIND: tl.constexpr, P_KIND: tl.constexpr,
    PRODUCTS: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, PER_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """All states: X is (steps + 1, batch, n) with x0 first, or with RING (2, batch, n), used in turn."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :, None]
    live = row < batch
    HOLD: tl.constexpr = GROUPS == 1
    held = 0.0
    if W_KIND == "own" and HOLD:  # own tiles stay with the program, where one group has them all
        held = _tiles(W, 0, GROUP, TILE)
    here = X
    there = X + batch * n
    for _ in range(steps):
        for group in range(GROUPS):
            tile = group * GROUP + tl.arange(0, GROUP)
            unit, real = _units(tile, tiles, K, TILE, PER_BLOCK)
            x = tl.load(here + row * n + unit, mask=live & real, other=0.0)
            z = _mix(
                tl.load(E + row * e_row + unit, mask=live & real, other=0.0),
                x, held, here, W, group, batch, n, tiles, unit, real, HOLD,
                W_KIND, PRE, PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS,
            )  # fmt: skip
            if POST != "identity":
                z = _phi(z, POST) * tl.load(C + unit, mask=real, other=0.0)
            new = _mix(
                z + tl.load(D + unit, mask=real, other=0.0) * x,
                x, 0.0, here, P, group, batch, n, tiles, unit, real, False,
                P_KIND, "identity", PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS,
            )  # fmt: skip
            if SCALED:
                new = x + tl.load(DT + row * dt_row, mask=live, other=0.0) * new
            tl.store(there + row * n + unit, new, mask=live & real)
        tl.debug_barrier()  # the next step reads what other threads of this program have stored
        DT += dt_step
        E += e_step
        spare = here
        here = there
        there = there + batch * n
        if RING:
            there = spare


@triton.jit
def _send(lam, V, Q, DT, row, live, at, ok, dt_row, SCALED: tl.constexpr, POST: tl.constexpr):
    """Store v = (dt) lam and, unless post is the identity, q = Q v in the place of Q."""
    v = lam
    if SCALED:
        v = lam * tl.load(DT + row * dt_row, mask=live, other=0.0)
    tl.store(V + at, v, mask=ok)
    if POST != "identity":
        tl.store(Q + at, tl.load(Q + at, mask=ok, other=0.0) * v, mask=ok)


@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    S, V, Q, LAM, GRAD, DT, D, WT, PT, batch, steps, n, tiles, dt_step, dt_row, SCALED: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, W_KIND: tl.constexpr, P_KIND: tl.constexpr,
    PRODUCTS: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, PER_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """lam_k = D v_k + S_k W^T q_k + P^T v_k + grad_k, from the last step to the first.

    Stores v_k = lam_k+1 and q_k = post'(z_k) C v_k of every step; SCALED, v_k = dt_k lam_k+1, and lam_k
    is lam_k+1 more. Q holds post'(z_k) C before, and S pre'(x_k), where these are not the identity.

    Every pointer that moves with time starts at its last step; grad_k is added if EVERY. LAM is
    (2, batch, n), used in turn; its first half holds the gradient of the last state, and lam_0 ends in
    half `steps % 2`. W^T and P^T come packed like W and P.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :, None]
    live = row < batch
    HOLD: tl.constexpr = GROUPS == 1
    held = 0.0
    if W_KIND == "own" and HOLD:
        held = _tiles(WT, 0, GROUP, TILE)
    here = LAM
    there = LAM + batch * n
    for group in range(GROUPS):
        unit, real = _units(group * GROUP + tl.arange(0, GROUP), tiles, K, TILE, PER_BLOCK)
        at = row * n + unit
        lam = tl.load(here + at, mask=live & real, other=0.0)
        _send(lam, V, Q, DT, row, live, at, live & real, dt_row, SCALED, POST)
    tl.debug_barrier()
    for done in range(steps):
        DT -= dt_step
        for group in range(GROUPS):
            unit, real = _units(group * GROUP + tl.arange(0, GROUP), tiles, K, TILE, PER_BLOCK)
            at = row * n + unit
            ok = live & real
            v = tl.load(V + at, mask=ok, other=0.0)
            q = v
            if POST != "identity":
                q = tl.load(Q + at, mask=ok, other=0.0)
            back = _mix(
                tl.full((GROUP, ROWS, TILE), 0.0, V.dtype.element_ty),
                q, held, Q, WT, group, batch, n, tiles, unit, real, HOLD,
                W_KIND, "identity", PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS,
            )  # fmt: skip
            if PRE != "identity":
                back = back * tl.load(S + at, mask=ok, other=0.0)
            lam = _mix(
                back + tl.load(D + unit, mask=real, other=0.0) * v,
                v, 0.0, V, PT, group, batch, n, tiles, unit, real, False,
                P_KIND, "identity", PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS,
            )  # fmt: skip
            if SCALED:
                lam += tl.load(here + at, mask=ok, other=0.0)
            if EVERY:
                lam += tl.load(GRAD + at, mask=ok, other=0.0)
            tl.store(there + at, lam, mask=ok)
            if done + 1 < steps:
                before = at - batch * n
                _send(lam, V, Q, DT, row, live, before, ok, dt_row, SCALED, POST)
        tl.debug_barrier()  # the step before reads the v and q that other threads have just stored
        S -= batch * n
        V -= batch * n
        Q -= batch * n
        GRAD -= batch * n
        spare = here
        here = there
        there = spare
