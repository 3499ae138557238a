"""A Triton kernel: one program carries a tile of batch rows through all steps of a grid scheme.

    x+   = D x + P x + C post(W pre(x) + e),        D and C diagonal; or, SCALED, x + dt (D x + ...)
    lam  = D v + P^T v + S W^T (R v) + grad,        v = lam+; or, SCALED, lam+ + dt (D lam+ + ...) + grad

BACK, it is the adjoint, from the last step to the first, with the slopes S = pre'(x) and R = C post'(z).

Every unit reads other units, and Triton cannot index registers, so the state goes through memory from
step to step, and one barrier a step makes a program's stores visible to all its threads.

Units lie in square tiles of TILE units; a block of K units starts a tile of its own and its last tile
may be part empty (masked). GROUP tiles are computed at once, as (GROUP, ROWS, TILE). The matrices W and
P, or their transposes, come packed as (in, out) tiles, in one of these kinds:

    own       (tiles, TILE, TILE): W of one tile a block
    dense     (groups, tiles, TILE, GROUP TILE): every tile, as one wide product
    diagonal  (n,): W as an elementwise product
    none      of P alone: nothing

PRODUCTS is what operands of products are rounded to. Import this file only where Triton is installed. It
uses Triton's builtins alone: library functions, such as tl.zeros, are bound when Triton is imported.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

# Whether this kernel was decorated for the interpreter: it is decided now, once a process.
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)

# One compiled kernel serves every batch and every length.
SIZES = ["batch", "steps", "move", "e_step", "e_row"]


@triton.jit
def _phi(x, R, ok, NAME: tl.constexpr):
    """The activation of that name, as in `activations.ACTIVATIONS`; or x times the "slopes" at R."""
    y = x
    if NAME == "slopes":
        y = x * tl.load(R, mask=ok, other=0.0)
    elif NAME == "relu":
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
    g = tl.arange(0, GROUP)[:, None, None] * TILE
    i = tl.arange(0, TILE)[None, :, None]
    return tl.load(A + first * TILE * TILE + (g + i) * TILE + tl.arange(0, TILE)[None, None, :])


@triton.jit
def _mix(
    acc, SRC, R, A, group, batch, n, tiles, PHI: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, PER_BLOCK: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """acc + A phi(x), (GROUP, ROWS, TILE), for x at SRC, one column tile after another."""
    WIDE: tl.constexpr = GROUP * TILE
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, TILE)[None, :]
    inside = tl.arange(0, TILE)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    wide = tl.full((ROWS, WIDE), 0.0, acc.dtype)
    for col in range(tiles):
        place = (col % PER_BLOCK) * TILE + lane
        unit = (col // PER_BLOCK) * K + place
        ok = (row < batch) & (place < K)
        x = tl.load(SRC + row * n + unit, mask=ok, other=0.0)
        a = tl.load(A + (group * tiles + col) * TILE * WIDE + inside)
        wide = _dot(_phi(x, R + row * n + unit, ok, PHI), a, wide, PRODUCTS)
    return acc + tl.permute(tl.reshape(wide, (ROWS, GROUP, TILE)), (1, 0, 2))


@triton.jit(do_not_specialize=SIZES)
def kernel(
    X, E, DT, R, S, D, W, P, batch, steps, move, n, tiles, dt_step, dt_row, e_step, e_row,
    BACK: tl.constexpr, SCALED: tl.constexpr, PRE: tl.constexpr, POST: tl.constexpr,
    W_KIND: tl.constexpr, P_KIND: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, PER_BLOCK: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """All states from the one at X on, each `move` numbers behind the last; with RING two, used in turn.

    Every pointer that moves with time starts at the first step that is taken. BACK, the states are lam,
    E is grad, W and P come transposed, and PRE and POST say of R and of S whether they are "slopes", or
    the "identity" and not read. Else R is not read, and S is C, (n,), if post is not the identity.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :, None]
    live = row < batch
    HOLD: tl.constexpr = GROUPS == 1
    held = 0.0
    if W_KIND == "own" and HOLD:  # own tiles stay with the program, where one group has them all
        held = _tiles(W, 0, GROUP, TILE)
    here = X
    there = X + move
    for _ in range(steps):
        for group in range(GROUPS):
            unit, real = _units(group * GROUP + tl.arange(0, GROUP), tiles, K, TILE, PER_BLOCK)
            at = row * n + unit
            ok = live & real
            x = tl.load(here + at, mask=ok, other=0.0)
            e = tl.load(E + row * e_row + unit, mask=ok, other=0.0)
            z = e
            if BACK:
                z = tl.full((GROUP, ROWS, TILE), 0.0, x.dtype)
            p = _phi(x, R + at, ok, PRE)
            if W_KIND == "diagonal":
                z += tl.load(W + unit, mask=real, other=0.0) * p
            elif W_KIND == "dense":
                z = _mix(
                    z, here, R, W, group, batch, n, tiles, PRE, PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS
                )
            elif HOLD:
                z = _dot(p, held, z, PRODUCTS)
            else:
                z = _dot(p, _tiles(W, group * GROUP, GROUP, TILE), z, PRODUCTS)
            z = _phi(z, S + at, ok, POST)
            if POST != "identity" and not BACK:
                z = z * tl.load(S + unit, mask=real, other=0.0)
            new = z + tl.load(D + unit, mask=real, other=0.0) * x
            if P_KIND == "dense":
                new = _mix(
                    new, here, R, P, group, batch, n, tiles, "identity",
                    PRODUCTS, K, TILE, PER_BLOCK, GROUP, ROWS,
                )  # fmt: skip
            if SCALED:
                new = x + tl.load(DT + row * dt_row, mask=live, other=0.0) * new
            if BACK:
                new += e
            tl.store(there + at, new, mask=ok)
        tl.debug_barrier()  # the next step reads what other threads of this program have stored
        DT += dt_step
        E += e_step
        if BACK:
            R += move
            S += move
        spare = here
        here = there
        there = there + move
        if RING:
            there = spare
