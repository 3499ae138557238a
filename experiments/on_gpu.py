"""Everything that needs a GPU, once: the CUDA backends are checked, then timed, then a net is trained.

    python experiments/on_gpu.py --out FOLDER        FOLDER is $OUT, else the current one

Writes FOLDER/DATE-on-gpu.json after each part. The check solves one network of 16 blocks of 32 units, in
both forms, with three couplings and a diagonal W, by the graph backend, and where all blocks are coupled
by the persistent one, in every precision of products, and compares states and all gradients with the
fused loop in float64; repeated runs of a persistent kernel that differ in one bit have raced. Times are
of `ctrnn bench`, where nn.RNN (cuDNN) and torchdiffeq take part, and training is of a recipe by `ctrnn
train`.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from keep import about, keep
from torch import Tensor

from ctrnn_assembly import AdaDiagTanh, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.solvers.fused import MatmulPrecision
from ctrnn_assembly.terms import Terms

BLOCKS, UNITS, STEPS, DT, REPEATS = 16, 32, 64, 0.03, 20
COUPLINGS = ("all", "random:20", "random:5")
# Relative norms against float64, of 64 steps: a sum over time and batch loses a digit more than a state.
LIMITS = {"full": 1e-4, "tf32": 1e-3, "bf16": 1e-2}


def field(coupling: str, form: Any, diagonal: bool) -> Terms:
    """A driven assembly in float64 on the CPU."""
    g = torch.Generator().manual_seed(0)
    # A relu whose argument rounds across zero changes a gradient by far more than the rounding: tanh.
    kind = AdaDiagTanh if diagonal else SingularValueBounded
    parts = [Subnetwork(kind("tanh"), UNITS, form=form, generator=g) for _ in range(BLOCKS)]
    terms = couple(parts, coupling, generator=g).double().terms().detach_cpu()
    return terms.driven(torch.randn(terms.n, 1, generator=g, dtype=torch.float64))


def states_and_gradients(terms: Terms, batch: int, dtype: torch.dtype, **settings: Any) -> list[Tensor]:
    """States of all steps, and the gradients of the mean of their squares."""
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(batch, terms.n, generator=g, dtype=torch.float64).to("cuda", dtype)
    u = torch.randn(batch, STEPS, 1, generator=g, dtype=torch.float64).to("cuda", dtype)
    copy = terms.mapped(lambda tensor: tensor.to("cuda", dtype).requires_grad_())
    leaves = [x0.requires_grad_(), u.requires_grad_(), *copy.tensors()]
    x = solve(copy, x0, u=u, dt=DT, **settings).x
    return [x.detach(), *torch.autograd.grad(x.square().mean(), leaves)]


def check() -> list[dict[str, Any]]:
    """The largest relative error of every case, and whether repeated runs gave the same bits."""
    rows = []
    kinds = (("x", False), ("r", False), ("x", True))
    for coupling, (form, diagonal), batch in product(COUPLINGS, kinds, (128, 17)):
        terms = field(coupling, form, diagonal)
        exact = states_and_gradients(terms, batch, torch.float64, backend="fused")
        # The persistent kernels refuse couplings of few blocks.
        backends = ("graph", "persistent") if coupling == "all" else ("graph",)
        for backend, precision in product(backends, get_args(MatmulPrecision)):
            settings = {"backend": backend, "matmul_precision": precision}
            runs = [
                states_and_gradients(terms, batch, torch.float32, **settings)
                for _ in range(REPEATS if backend == "persistent" else 2)
            ]
            pairs = zip(runs[0], exact, strict=True)
            error = max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
            # The states and the gradient of x0 come from the kernels alone.
            same = all(
                torch.equal(a, b) for run in runs for a, b in zip(runs[0][:2], run[:2], strict=True)
            )
            case = {"coupling": coupling, "form": form, "diagonal": diagonal, "batch": batch}
            right = error < LIMITS[precision] and same
            rows.append({**case, **settings, "error": error, "same_bits": same, "right": right})
    return rows


def ctrnn(*options: str) -> Any:
    """What a command prints as JSON, or its error."""
    done = subprocess.run(["ctrnn", *options, "--json"], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-2000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--recipe", default="digits", help="of the training")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this script needs a CUDA device, and torch finds none on this machine.")
    result, run = about(__file__), str(args.out / "run")
    parts = {
        "check": check,
        "bench": lambda: ctrnn("bench", "--device", "cuda", "--steps", "1024"),
        "train": lambda: ctrnn("train", "--recipe", args.recipe, "--device", "cuda", "--out", run),
    }
    for name, part in parts.items():
        result[name] = part()
        keep("on-gpu", result, args.out)
    if wrong := [row for row in result["check"] if not row["right"]]:
        sys.exit(f"{len(wrong)} of {len(result['check'])} cases are wrong, such as {wrong[0]}")


if __name__ == "__main__":
    main()
