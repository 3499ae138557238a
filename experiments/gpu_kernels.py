"""Check the persistent Triton kernels on a GPU, then time them against what they have to beat.

    python experiments/gpu_kernels.py --out experiments/results/gpu-kernels.json

One network of 16 blocks of 32 relu units under an input of one channel, forward and backward, all
gradients, with a dense coupling, 20 pairs and 5 pairs of blocks. First every variant is compared with
the same solve in float64 and repeated: two runs that differ in one bit have raced. Nothing is timed
unless all that holds. Then the variants take turns, one run each a round, against

    torch adjoint   `solvers.euler_adjoint`, the same formulas step by step
    nn.RNN          cuDNN's persistent kernels: a dense relu network of 512 units, another model
    torchdiffeq     its Euler of the same field, with autograd through the steps

in the same precision of products. nn.RNN in bfloat16 also has its state in bfloat16, which the kernels
never have. Times are of the device, in milliseconds; the fastest and the median round are kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

import torch
import torchdiffeq
from torch import Tensor, nn

from ctrnn_assembly.activations import ACTIVATIONS, Elementwise
from ctrnn_assembly.solvers.euler_adjoint import euler_adjoint
from ctrnn_assembly.solvers.persistent import persistent_euler
from ctrnn_assembly.terms import Terms

BLOCKS, UNITS, DT = 16, 32, 0.03
PAIRS = {"dense": None, "C=20": 20, "C=5": 5}
Products = Literal["full", "tf32", "bf16"]
# Relative norms against float64, of 64 steps: a sum over time and batch loses a digit more than a state.
LIMITS = {"full": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
STEPS, REPEATS = 64, 20  # of the check
Run = Callable[[], object]


class Case(NamedTuple):
    """One variant of the network; the defaults are what is timed."""

    coupling: str
    form: str = "x"
    diagonal: bool = False
    phi: str = "relu"
    batch: int = 128


def field(case: Case, dtype: torch.dtype) -> Terms:
    """Fixed weights, W of gain 0.5 and a skew L, so that no state grows."""
    g = torch.Generator().manual_seed(0)
    n = BLOCKS * UNITS
    blocks = 0.5 * UNITS**-0.5 * torch.randn(BLOCKS, UNITS, UNITS, generator=g, dtype=torch.float64)
    if case.diagonal:
        blocks = torch.diag_embed(blocks.diagonal(dim1=1, dim2=2))
    every = [(i, j) for i in range(BLOCKS) for j in range(i + 1, BLOCKS)]
    order = torch.randperm(len(every), generator=g)[: PAIRS[case.coupling]].tolist()
    chosen = tuple(sorted(every[k] for k in order))
    mask = torch.zeros(BLOCKS, BLOCKS, dtype=torch.float64)
    for i, j in chosen:
        mask[i, j] = mask[j, i] = 1
    mask = mask.repeat_interleave(UNITS, 0).repeat_interleave(UNITS, 1)
    L = torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5
    one, phi = (Elementwise(((ACTIVATIONS[name], n),)) for name in ("identity", case.phi))
    return Terms(
        tuple(W.to("cuda", dtype) for W in blocks),
        *((phi, one) if case.form == "x" else (one, phi)),
        (0.1 * torch.randn(n, generator=g, dtype=torch.float64)).to("cuda", dtype),
        (1 + torch.rand(n, generator=g, dtype=torch.float64)).to("cuda", dtype),
        L=((L - L.mT) * mask).to("cuda", dtype),
        W_in=torch.randn(n, 1, generator=g, dtype=torch.float64).to("cuda", dtype),
        pairs=() if case.coupling == "dense" else chosen,
        diagonal=case.diagonal,
    )


def samples(steps: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(x0, drive, dt)."""
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(batch, BLOCKS * UNITS, generator=g, dtype=torch.float64)
    drive = torch.randn(steps, batch, 1, generator=g, dtype=torch.float64)
    dt = torch.full((steps, 1), DT, dtype=dtype, device="cuda")
    return x0.to("cuda", dtype), drive.to("cuda", dtype), dt


def gradients(solver: Any, terms: Terms, steps: int, batch: int) -> list[Tensor]:
    """States, and the gradients of their squares' mean."""
    x0, drive, dt = samples(steps, batch, terms.tau.dtype)
    leaves = [x0, drive, *terms.tensors()]
    for leaf in leaves:
        leaf.requires_grad_()
    x = solver(terms, x0, drive, dt)
    return [x.detach(), *torch.autograd.grad(x.square().mean(), leaves)]


def check() -> list[dict[str, Any]]:
    """The largest relative error of each variant; ends the program at the first that is too large."""
    rows: list[dict[str, Any]] = []
    # A relu whose argument rounds across zero changes a gradient by far more than the rounding: tanh.
    for coupling, kind, batch in product(PAIRS, (("x", False), ("r", False), ("x", True)), (128, 17)):
        case = Case(coupling, *kind, "tanh", batch)
        exact = gradients(euler_adjoint, field(case, torch.float64), STEPS, batch)
        for products in get_args(Products):
            error = compare(exact, case, products)
            rows.append({**case._asdict(), "products": products, "error": error})
            if not error < LIMITS[products]:
                sys.exit(f"wrong, nothing is timed: {rows[-1]}; the limit is {LIMITS[products]}")
    return rows


def compare(exact: list[Tensor], case: Case, products: Products) -> float:
    """The largest relative error; ends the program if repeated runs differ."""
    terms = field(case, torch.float32)
    solver = lambda *a: persistent_euler(*a, products=products)  # noqa: E731
    with precision("full"):
        found = [gradients(solver, terms, STEPS, case.batch) for _ in range(REPEATS)]
    for again in found[1:]:  # the states and the gradient of x0 come from the kernels alone
        if not all(torch.equal(a, b) for a, b in zip(found[0][:2], again[:2], strict=True)):
            sys.exit(f"two runs differ ({case}, {products}): a race, nothing is timed")
    errors = []
    for index, (a, b) in enumerate(zip(found[0], exact, strict=True)):
        if case.diagonal and 3 <= index < 3 + BLOCKS:  # a gradient of W_i reaches its diagonal only
            a, b = a.diagonal(), b.diagonal()
        errors.append(float((a.double() - b).norm() / b.norm()))
    return max(errors)


@contextmanager
def precision(products: Products) -> Iterator[None]:
    """torch's own products in that precision, cuDNN's included."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if products == "full" else "high")
    torch.backends.cudnn.allow_tf32 = products != "full"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def through(solver: Any, coupling: str, steps: int, batch: int) -> Run:
    terms = field(Case(coupling), torch.float32)
    x0, drive, dt = samples(steps, batch, torch.float32)
    leaves = [x0.requires_grad_(), *(t.requires_grad_() for t in terms.tensors())]

    def run() -> object:
        return torch.autograd.grad(solver(terms, x0, drive, dt).square().mean(), leaves)

    return run


def torchdiffeq_euler(terms: Terms, x0: Tensor, drive: Tensor, dt: Tensor) -> Tensor:
    step = iter(range(len(drive)))  # Euler asks once a step; reading t would wait for the device
    t = DT * torch.arange(len(drive) + 1, device="cuda")
    states: Tensor = torchdiffeq.odeint(lambda t, x: terms(x, drive[next(step)]), x0, t, method="euler")
    return states


def recurrent(products: Products, steps: int, batch: int) -> Run:
    dtype = torch.bfloat16 if products == "bf16" else torch.float32
    net = nn.RNN(1, BLOCKS * UNITS, nonlinearity="relu").to("cuda", dtype)
    x0, drive, _ = samples(steps, batch, dtype)
    leaves = [x0.requires_grad_(), *net.parameters()]

    def run() -> object:
        output, _ = net(drive, x0[None])
        return torch.autograd.grad(output.square().mean(), leaves)

    return run


def candidates(steps: int, batch: int) -> dict[tuple[str, str, Products], Run]:
    """(what, coupling, products): a run, forward and backward."""
    runs: dict[tuple[str, str, Products], Run] = {}
    for products in get_args(Products):
        for name in PAIRS:
            solver = lambda *a, p=products: persistent_euler(*a, products=p)  # noqa: E731
            runs["kernels", name, products] = through(solver, name, steps, batch)
        runs["nn.RNN", "dense", products] = recurrent(products, steps, batch)
        if products != "bf16":
            for name in PAIRS:
                runs["torch adjoint", name, products] = through(euler_adjoint, name, steps, batch)
            runs["torchdiffeq", "dense", products] = through(torchdiffeq_euler, "dense", steps, batch)
    return runs


def milliseconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def timings(steps: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    runs = candidates(steps, batch)
    found: dict[tuple[str, str, Products], list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):  # the first round compiles, and is not kept
        for key, run in runs.items():
            with precision(key[2]):
                time = milliseconds(run)
            if number:
                found[key].append(time)
    return [
        {"what": what, "coupling": coupling, "products": products, "min": min(ms), "median": median(ms)}
        for (what, coupling, products), ms in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-kernels.json"))
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this script times GPU kernels, and torch finds no CUDA device on this machine.")
    asked = ["git", "rev-parse", "HEAD"]
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python experiments/gpu_kernels.py --steps {args.steps} --batch {args.batch}",
        "commit": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip(),
        "hardware": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "units": BLOCKS * UNITS,
        "steps": args.steps,
        "batch": args.batch,
        "rounds": args.rounds,
        "errors": check(),
        "milliseconds": timings(args.steps, args.batch, args.rounds),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["milliseconds"]:
        print("{what:14} {coupling:6} {products:5} {min:9.3f} {median:9.3f} ms".format(**row))


if __name__ == "__main__":
    main()
