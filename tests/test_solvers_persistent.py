"""The persistent kernels: equal to the plain Euler loop, in states and all gradients.

Without a GPU, Triton's interpreter runs them on the CPU: the same arithmetic, but one thread, so that
nothing here can show a missing barrier. `test_kernels_compile_for_a_gpu` also compiles them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ctrnn_assembly.activations import ACTIVATIONS, Activation, Elementwise
from ctrnn_assembly.errors import SolverError
from ctrnn_assembly.schemes import SCHEMES
from ctrnn_assembly.schemes import integrate as plain_loop
from ctrnn_assembly.solvers.cuda import persistent
from ctrnn_assembly.solvers.cuda.persistent import layout
from ctrnn_assembly.solvers.fused import Plan, fused_step, prepared
from ctrnn_assembly.terms import Edge, Terms
from solver_problems import normal
from solver_problems import one_thread as one_thread


def fused_loop(*given: Any, **options: Any) -> Tensor:
    return prepared(*given, **options)()


EULER = SCHEMES["euler"]
euler = partial(plain_loop, EULER)
persistent_euler = partial(fused_loop, EULER, backend="persistent")


def why_not(*case: Any, scheme: Any = EULER, few: bool = False, precision: Any = "full") -> str | None:
    form, *tensors = fused_step(scheme, *case, precision)
    return persistent.why_not(form, Plan(True, True, few, 32), case[1], *tensors)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Coupling = Literal["none", "dense", "sparse"]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (it has no macOS wheels)"
)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the interpreter while a test of this file runs, and nowhere else.

    Triton looks at the variable when a kernel is decorated, which is when `kernels` is first
    imported: by the first solve of this file, since every other file finds no CUDA device and stops
    before. That Triton itself may have been imported long before, without the variable, does no harm,
    because the kernels use none of its own jitted functions.
    """
    if DEVICE.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def mask_of(sizes: tuple[int, ...], pairs: tuple[tuple[int, int], ...]) -> Tensor:
    """1 where the pairs of blocks couple, (n, n)."""
    ones = torch.zeros(len(sizes), len(sizes))
    for i, j in pairs:
        ones[i, j] = ones[j, i] = 1
    counts = torch.tensor(sizes)
    return ones.repeat_interleave(counts, 0).repeat_interleave(counts, 1)


def field(
    sizes: tuple[int, ...],
    coupling: Coupling = "none",
    pairs: tuple[tuple[int, int], ...] = ((0, 1),),
    phi: str = "tanh",
    form: str = "x",
    inputs: int | None = None,
    diagonal: bool = False,
) -> Terms:
    """A field that need not contract, with unequal tau; nothing in it is zero but what must be."""
    n = sum(sizes)
    blocks = [normal(k, k, seed=k + i, scale=k**-0.5) for i, k in enumerate(sizes)]
    L = None if coupling == "none" else normal(n, n, seed=1, scale=n**-0.5)
    if L is not None and coupling == "sparse":
        L = L * mask_of(sizes, pairs)
    one, phis = (Elementwise(((ACTIVATIONS[name], n),)) for name in ("identity", phi))
    pre, post = (phis, one) if form == "x" else (one, phis)
    return Terms(
        tuple(torch.diag(W.diagonal()) if diagonal else W for W in blocks),
        pre,
        post,
        normal(n, seed=2),
        0.5 + normal(n, seed=3).sigmoid(),
        L=L,
        W_in=None if inputs is None else normal(n, inputs, seed=4),
        pairs=pairs if coupling == "sparse" else (),
        diagonal=diagonal,
    )


def moved(terms: Terms, dtype: torch.dtype) -> Terms:
    """A copy with that dtype, on the device of these tests."""
    return terms.mapped(lambda tensor: tensor.detach().to(DEVICE, dtype))


def problem(
    terms: Terms, batch: int, steps: int, driven: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[Terms, Tensor, Tensor | None, Tensor]:
    m = terms.n if terms.W_in is None else terms.W_in.shape[1]
    u = normal(steps, batch, m, seed=5).to(DEVICE, dtype) if driven else None
    dt = torch.full((steps, 1), 0.1, dtype=dtype, device=DEVICE)
    return moved(terms, dtype), normal(batch, terms.n, seed=6).to(DEVICE, dtype), u, dt


def with_gradients(solver: Any, case: tuple[Any, ...], **settings: Any) -> dict[str, Tensor]:
    """The states and the gradient of everything, for a loss that weighs every state differently.

    Of L and a diagonal W, only what their Terms declare not to be zero.
    """
    terms, x0, u, dt = case
    known = [f.name for f in fields(terms) if isinstance(getattr(terms, f.name), Tensor)]
    names = ["x0", *(f"W{i}" for i in range(len(terms.blocks))), *known]
    leaves = dict(zip(names, [x0, *terms.tensors()], strict=True)) | ({} if u is None else {"u": u})
    for leaf in leaves.values():
        leaf.requires_grad_()
    states = solver(terms, x0, u, dt, **settings)
    loss = (states * normal(*states.shape, seed=7).to(states)).sum()
    found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    if terms.pairs:
        found["L"] = found["L"] * mask_of(terms.sizes, terms.pairs).to(x0)
    if terms.diagonal:
        found |= {name: found[name].diagonal() for name in names if name[:1] == "W" and name != "W_in"}
    return {"states": states.detach(), **found}


def check(case: tuple[Any, ...], scheme: Any = EULER) -> None:
    plain = with_gradients(partial(plain_loop, scheme), case)
    for name, ours in with_gradients(partial(fused_loop, scheme, backend="persistent"), case).items():
        assert_close(ours, plain[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


SHAPES = [((k,) * p, c) for k, p, c in product((5, 8, 16, 32), (1, 3), ("none", "dense"))]
BATCHES, STEPS, INPUTS = (3, 1, 17), (2, 7, 1), (1, None, 3, "no drive", 6)


@needs_triton
@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("number", range(len(SHAPES)), ids=[f"{s}-{c}" for s, c in SHAPES])
def test_states_and_all_gradients_equal_the_plain_loop(number: int, form: str) -> None:
    sizes, coupling = SHAPES[number]
    turn = number + (form == "r")
    inputs = INPUTS[turn % 5]
    m = inputs if isinstance(inputs, int) else None
    terms = field(sizes, coupling, form=form, inputs=m)  # type: ignore[arg-type]
    check(problem(terms, BATCHES[turn % 3], STEPS[turn // 3 % 3], driven=inputs != "no drive"))


@needs_triton
@pytest.mark.parametrize("form", ["x", "r"])
@pytest.mark.parametrize("phi", [phi.name for phi in persistent.PHIS])
def test_every_activation_equals_the_plain_loop(phi: str, form: str) -> None:
    check(problem(field((6,), "dense", phi=phi, form=form, inputs=2), 4, 3))


@needs_triton
@pytest.mark.parametrize("coupling", ["none", "dense"])
@pytest.mark.parametrize(
    "sizes",
    [
        (40, 40, 40, 40),  # blocks of two tiles, the second part empty
        (7, 30, 4),  # unequal blocks
        (5,) * 9,  # nine tiles, of which float64 takes eight at once
    ],
)
def test_blocks_of_several_tiles_and_several_groups(sizes: tuple[int, ...], coupling: Coupling) -> None:
    for form in ("x", "r"):
        check(problem(field(sizes, coupling, form=form, inputs=2), 2, 3))


@needs_triton
@pytest.mark.parametrize(
    ("sizes", "coupling"),
    [
        *product([(1,) * 40, (8, 8, 8), (5, 20, 9)], ["none", "dense"]),
        ((5, 20, 9), "sparse"),  # unequal blocks, all of which the fused loop multiplies too
    ],
)
def test_a_diagonal_weight_equals_the_plain_loop(sizes: tuple[int, ...], coupling: Coupling) -> None:
    terms = field(sizes, coupling, ((0, 2),), diagonal=True)
    for form in (terms, replace(terms, pre=terms.post, post=terms.pre)):
        check(problem(form, 3, 3))


@needs_triton
@pytest.mark.parametrize("per_sample", [False, True])
def test_irregular_steps_equal_the_plain_loop(per_sample: bool) -> None:
    terms, x0, u, _ = problem(field((5, 5, 5), "dense", inputs=2, form="r"), 3, 6)
    dt = normal(6, 3 if per_sample else 1, seed=8).sigmoid().to(DEVICE)
    dt[2] = 0
    check((terms, x0, u, dt))


@needs_triton
@pytest.mark.parametrize("name", ["imex", "exponential-euler"])
@pytest.mark.parametrize(("form", "coupling"), [("x", "dense"), ("x", "none"), ("r", "none")])
def test_semi_implicit_steps_equal_the_plain_loop(name: str, form: str, coupling: Coupling) -> None:
    check(problem(field((5, 8), coupling, form=form, inputs=2), 3, 4), SCHEMES[name])


@needs_triton
def test_a_dense_matrix_after_phi_is_refused() -> None:
    case = problem(field((5, 8), "dense", form="r"), 3, 4)
    reason = why_not(*case, scheme=SCHEMES["imex"])
    assert reason == "the step multiplies what is after phi by a dense matrix"


@needs_triton
def test_the_gradient_of_the_coupling_is_the_adjoints() -> None:
    # Outside the coupled blocks too: who compares the loops, as `check` does, must find no difference.
    terms, x0, u, dt = problem(field((5, 5), "sparse"), 3, 4)
    assert terms.L is not None
    terms.L.requires_grad_()
    ours, adjoint = (
        torch.autograd.grad(f(terms, x0, u, dt).square().sum(), terms.L)
        for f in (persistent_euler, partial(fused_loop, SCHEMES["euler"]))
    )
    assert_close(ours, adjoint, rtol=1e-10, atol=1e-12)


@needs_triton
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_the_last_state_alone_has_the_same_gradients(steps: int) -> None:
    case = problem(field((5, 5), "dense", form="r", inputs=2), 3, steps)
    plain = with_gradients(lambda *a: euler(*a)[-1:], case)
    for name, ours in with_gradients(persistent_euler, case, save="last").items():
        assert_close(ours, plain[name], rtol=1e-10, atol=1e-12)
    with torch.no_grad():  # two states in turn instead of all
        last = persistent_euler(*case, save="last")
    assert_close(last, plain["states"], rtol=1e-12, atol=1e-12)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


# float32 rounds at 6e-8, tf32 operands at 5e-4 and bfloat16 operands at 4e-3 (8e-3 in the interpreter,
# which truncates); of a step, dt / tau is rounded so, and sums average it. The interpreter leaves tf32
# products exact: only on a GPU does its line test the rounding.
@needs_triton
@pytest.mark.parametrize(("matmul_precision", "limit"), [("full", 1e-5), ("tf32", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("form", ["x", "r"])
def test_float32_agrees_with_float64_by_norm(matmul_precision: str, limit: float, form: str) -> None:
    terms = field((16,) * 3, "dense", form=form, inputs=3)
    exact = with_gradients(euler, problem(terms, 5, 12))
    case = problem(terms, 5, 12, dtype=torch.float32)
    rounded = with_gradients(persistent_euler, case, matmul_precision=matmul_precision)
    for name, ours in rounded.items():
        assert ours.dtype == torch.float32
        assert relative(ours, exact[name]) < limit, name
    if matmul_precision == "bf16":  # the setting reaches the kernels
        assert relative(rounded["states"], exact["states"]) > 1e-5


@needs_triton
def test_rows_of_the_batch_do_not_touch_each_other() -> None:
    terms, x0, u, dt = problem(field((5, 5), "dense", inputs=2), 17, 2)
    assert u is not None
    whole = persistent_euler(terms, x0, u, dt)
    for row in (0, 15, 16):
        alone = persistent_euler(terms, x0[row : row + 1], u[:, row : row + 1], dt)
        assert_close(whole[:, row], alone[:, 0], rtol=0, atol=1e-14)


@needs_triton
def test_views_are_read_as_what_they_show() -> None:
    terms, x0, _, dt = problem(field((5, 5), "dense", inputs=2), 3, 4)
    wide = normal(3, 4, 4, seed=9).to(DEVICE)
    u = wide[:, :, ::2].transpose(0, 1)  # as `solve` passes it, and strided
    terms = replace(terms, W_in=terms.W_in.mT.contiguous().mT, tau=terms.tau.expand(2, -1).mT[:, 0])
    check((terms, x0.mT.contiguous().mT, u.detach(), dt))
    x0 = x0.clone().requires_grad_()  # the gradient of a sum is one number, expanded
    ours, plain = (torch.autograd.grad(f(terms, x0, u, dt).sum(), x0) for f in (persistent_euler, euler))
    assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@needs_triton
def test_only_the_gradients_asked_for_are_computed() -> None:
    terms, x0, u, dt = problem(field((5, 5), "dense", inputs=2), 3, 4)
    terms.L.requires_grad_()  # type: ignore[union-attr]
    ours, plain = (
        torch.autograd.grad(f(terms, x0, u, dt).square().sum(), terms.L)
        for f in (persistent_euler, euler)
    )
    assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert not persistent_euler(moved(terms, torch.float64), x0, u, dt).requires_grad


@needs_triton
@pytest.mark.parametrize("phi", [phi.name for phi in persistent.PHIS])
def test_a_state_that_is_not_a_number_stays_visible(phi: str) -> None:
    terms, x0, u, dt = problem(field((5,), phi=phi), 3, 2)
    x0[1, 2] = torch.nan
    x = persistent_euler(terms, x0, u, dt)
    assert x[-1, 1].isnan().all()
    assert not x[-1, (0, 2)].isnan().any()


@needs_triton
def test_relu_has_zero_slope_at_zero() -> None:
    terms, x0, u, dt = problem(field((5,), phi="relu"), 3, 1, driven=False)
    check((replace(terms, bias=torch.zeros_like(terms.bias)), torch.zeros_like(x0), u, dt))


@needs_triton
@pytest.mark.parametrize("save", ["all", "last"])
def test_second_derivatives_are_those_of_the_plain_loop(save: Any) -> None:
    terms, x0, u, dt = problem(field((5, 5), "dense", inputs=2), 3, 2)
    leaves, found = [x0.requires_grad_(), *(t.requires_grad_() for t in terms.tensors())], []
    for states in (persistent_euler(terms, x0, u, dt, save=save), euler(terms, x0, u, dt)):
        first = torch.autograd.grad(states[-1].square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    assert_close(*found)


def unsupported() -> dict[str, tuple[Any, str]]:
    terms, x0, u, dt = problem(field((3, 3), "dense"), 2, 2)
    phi, one = terms.pre, terms.post
    own = Elementwise(((Activation("sine", torch.sin, slope=(-1.0, 1.0)), 6),))
    mixed = Elementwise(((ACTIVATIONS["tanh"], 3), (ACTIVATIONS["relu"], 3)))
    half = moved(terms, torch.bfloat16), x0.bfloat16(), None, dt.bfloat16()
    return {
        "few": (
            (moved(field((3,) * 3, "sparse"), torch.float64), *problem(field((3,) * 3), 2, 2)[1:]),
            "few blocks of L",
        ),
        "edges": ((replace(terms, edges=(Edge(terms.L, phi),)), x0, u, dt), "1 nonlinear coupling"),  # type: ignore[arg-type]
        "mixed": ((replace(terms, pre=mixed), x0, u, dt), "pre mixes the activations relu, tanh"),
        "elu": (
            (replace(terms, pre=Elementwise(((ACTIVATIONS["elu"], 6),))), x0, u, dt),
            "pre is 'elu'; the",
        ),
        "own": (
            (replace(terms, pre=one, post=own), x0, u, dt),
            "post is 'sine'; the kernels have identity, relu",
        ),
        "dtype": (half, "the state is torch.bfloat16; it must be float32 or float64"),
        "other dtype": ((terms, x0.float(), u, dt), "another tensor is .*float64"),
    }


@needs_triton
@pytest.mark.parametrize("name", ["few", "edges", "mixed", "elu", "own", "dtype", "other dtype"])
def test_what_is_not_supported_is_named_in_one_line(name: str) -> None:
    case, message = unsupported()[name]
    reason = why_not(*case)
    assert reason is not None
    assert "\n" not in reason
    with pytest.raises(SolverError, match=f"'persistent' cannot run this: .*{message}.*Use 'auto'"):
        persistent_euler(*case)


@needs_triton
def test_rounded_products_of_float64_are_refused() -> None:
    case = problem(field((3,)), 2, 2)
    assert why_not(*case) is None
    reason = why_not(*case, precision="bf16")
    assert reason == "matmul_precision='bf16' rounds float32, and the state is torch.float64"
    assert why_not(*case, few=True) == "the kernels store all states, and recompute is 'sqrt'"


def test_a_machine_without_triton_or_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, x0, u, dt = problem(field((3,)), 2, 2)
    on_cpu = terms.detach_cpu(), x0.cpu(), u.cpu() if u is not None else None, dt.cpu()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if importlib.util.find_spec("triton") is not None:
        assert "the state is on cpu, and Triton needs a CUDA device" in str(why_not(*on_cpu))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not(*on_cpu) == "Triton is not installed"


@pytest.mark.parametrize(("n", "block"), [(5, 5), (96, 32), (45, 5), (160, 40), (7, 7), (1000, 1000)])
def test_every_unit_lies_in_one_tile_and_blocks_share_none(n: int, block: int) -> None:
    found = layout(n, block, 128)
    tile, tiles, group = found["TILE"], found["tiles"], found["GROUP"]
    per_block = found["PER_BLOCK"]
    first = [unit // block * per_block + unit % block // tile for unit in range(n)]
    assert sorted(set(first)) == list(range(tiles))
    assert max(first.count(t) for t in range(tiles)) <= tile
    for start in range(0, n, block):
        assert {t // per_block for t in first[start : start + block]} == {start // block}
    assert 0 <= found["GROUPS"] * group - tiles < group
    assert group * tile <= 128


@needs_triton
@pytest.mark.parametrize(
    ("form", "coupling", "diagonal", "precision"),
    [
        ("x", "dense", True, "full"),
        ("x", "dense", False, "full"),
        ("r", "none", False, "tf32"),
        ("r", "dense", False, "bf16"),
    ],
)
def test_kernels_compile_for_a_gpu(
    form: str, coupling: Coupling, diagonal: bool, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interpreter accepts much that the compiler refuses. Compiling needs no GPU, but kernels that
    # were decorated without the variable: hence a second copy of their module.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ctrnn_assembly.solvers import cuda

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    file = Path(cuda.__file__).with_name("kernels.py")
    spec = importlib.util.spec_from_file_location("kernels_for_a_gpu", file)
    assert spec is not None
    assert spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    assert not kernels.INTERPRETED
    monkeypatch.setattr(cuda, "kernels", kernels, raising=False)
    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
    backward, kernel = [], kernels.kernel

    def compiled(**arguments: Any) -> None:
        backward.append(arguments["BACK"])
        options = {name: arguments.pop(name) for name in persistent.COMPILED}
        constants, types = {}, {}
        for index, parameter in enumerate(kernel.params):
            value = arguments.pop(parameter.name)
            kind = pointers[value.dtype] if isinstance(value, Tensor) else "i32"
            if parameter.is_constexpr:
                constants[(index,)], kind = value, "constexpr"
            types[parameter.name] = kind
        assert not arguments, arguments
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        code = binary.asm["ttgir"]
        assert binary.metadata.shared <= persistent.SHARED
        assert code.count("ttg.barrier all") + code.count("gpu.barrier") == 1  # a step

    monkeypatch.setattr(kernels, "kernel", {(1,): compiled})  # one program, for two samples
    terms = field((32,) * 16, coupling, form=form, inputs=1, diagonal=diagonal)
    terms, x0, u, dt = problem(terms, 2, 2, dtype=torch.float32)
    steps = fused_step(
        EULER, terms, x0, u, torch.tensor([[0.1], [0.2]]).float() if diagonal else dt, precision
    )
    step_form, inputs, dt, *tensors = steps
    plan = Plan(True, True, False, 32)
    X, _ = persistent.forward(step_form, plan, x0, inputs, dt, *tensors)
    persistent.gradients(step_form, plan, (True,) * 7, X, X, inputs, dt, *tensors)
    assert backward == [False, True]
