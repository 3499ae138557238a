"""How much faster than an earlier commit: the same work by both trees, in alternating processes.

    python experiments/since.py [--pairs 7]

The earlier tree comes from its own wheel, in a folder of its own; torch and the rest are those of this
environment, with its OMP_NUM_THREADS. A process times each row several times, after a warm-up; a pair
is one process of each tree, in changing order. Rows are forward and backward for the gradients of all
weights, by `solve` of a field of leaf tensors or by a whole gated net, with relu; and training steps
of recipes, from one to the next in `ctrnn train` itself. Leaves results/DATE-since-THREADS.json.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from timeit import repeat
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ctrnn_assembly.solvers import solve
from ctrnn_cli.main import main as ctrnn

COMMIT = "984ec1a"
IS_OLD = find_spec("ctrnn_assembly.architectures") is not None  # the tree of this process
if IS_OLD:
    from ctrnn_assembly.architectures import build_model
else:
    from ctrnn_assembly.models import build_model
PHI, SOLVER, MAPPED = ("phi", "method", "_mapped") if IS_OLD else ("activation", "solver", "mapped")
# Model, modules, units, batch, steps; coupling, and solver.
PASSES = {
    f"n=64, batch 32, T=128, {solver}": ("svd-combo", 4, 16, 32, 128, "all", solver)
    for solver in ("euler", "exponential-euler")
}
PASSES |= {
    f"{model}, 16x32, C=5, batch {batch}": (model, 16, 32, batch, 196, "random:5", "euler")
    for batch in (128, 16)
    for model in ("adadiag-tanh", "svd-combo", "adadiag-gated-constant", "adadiag-gated-input")
}
# The recipes as they are in both trees; the first leaves threads as they are, the other sets 1.
RECIPES = {"JapaneseVowels, a step": "adadiag-japanese-vowels", "digits, a step": "digits"}
WARM, TIMES = {"pass": 2, "step": 5}, {"pass": 5, "step": 30}  # runs before the timings, and timings
KINDS = {"min": min, "median": median}


def pass_seconds(
    model: str, modules: int, units: int, batch: int, steps: int, coupling: str, solver: str
) -> list[float]:
    """Forward and backward of one solve, or of a gated net, which had no solve of its own."""
    size = {"modules": modules, "units": units, "coupling": coupling, PHI: "relu"}
    net: Any = build_model(model, 1, 10, **size)
    u = torch.rand(batch, steps, 1, generator=torch.Generator().manual_seed(0))
    field, encoder, weights = net.core.field, net.core.encoder, list(net.parameters())
    last = partial(net, u)
    if "gated" not in model:
        terms = field.terms().driven(encoder.weight)
        terms = getattr(terms, MAPPED)(lambda x: x.detach().clone())
        weights = [x.requires_grad_() for x in terms.tensors() if x is not terms.tau]
        given = {"u": u, "dt": 0.03, "save": "last", SOLVER: solver}
        last = lambda: solve(terms, u.new_zeros(batch, field.size), **given).last  # noqa: E731
    torch.set_flush_denormal(True)

    def run() -> None:
        torch.autograd.grad(last().square().mean(), weights)

    return repeat(run, number=1, repeat=WARM["pass"] + TIMES["pass"])[WARM["pass"] :]


def step_seconds(name: str) -> list[float]:
    """From a step of the optimiser to the next, in a run of the recipe."""
    starts = []

    def note(*_: Any) -> None:
        starts.append(perf_counter())
        if len(starts) > WARM["step"] + TIMES["step"]:
            raise SystemExit  # enough

    hook = register_optimizer_step_pre_hook(note)
    with TemporaryDirectory() as folder, suppress(SystemExit), redirect_stdout(sys.stderr):
        ctrnn(["train", "--recipe", name, "--out", f"{folder}/run"], standalone_mode=False)
    hook.remove()
    return [b - a for a, b in pairwise(starts)][WARM["step"] :]


def main(pairs: int) -> None:
    from keep import HERE, finish

    from ctrnn_assembly.training.provenance import provenance
    from ctrnn_cli.shared import Column

    result, rows = provenance() | {"against": COMMIT, "pairs": pairs}, []
    with TemporaryDirectory() as folder:
        old = [f"--target={folder}", f"git+file://{HERE.parent}@{COMMIT}"]
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, *old], check=True)
        now = os.environ.get("PYTHONPATH", "")
        trees = {"before": f"{folder}:{now}", "now": now}  # where a process looks for packages first
        found = {tree: [] for tree in trees}
        for pair in range(pairs):
            for tree in list(trees)[:: 1 if pair % 2 else -1]:
                environment = os.environ | {"PYTHONPATH": trees[tree]}
                rows_of = [sys.executable, __file__, "--rows"]
                found[tree].append(json.loads(subprocess.check_output(rows_of, env=environment)))
            print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
    for name in found["now"][0]:
        times = {tree: [s for one in runs for s in one[name]] for tree, runs in found.items()}
        row = {f"{k}_{tree}": 1000 * f(x) for tree, x in times.items() for k, f in KINDS.items()}
        rows.append({"name": name, **row} | {k: row[f"{k}_before"] / row[f"{k}_now"] for k in KINDS})
    columns = [Column("name", "work")]
    columns += [Column(f"{k}_{t}", f"{k} {t}, ms", ".2f") for k in KINDS for t in trees]
    columns += [Column(k, f"times faster ({k})", ".2f") for k in KINDS]
    result |= {"seconds": found, "rows": rows}
    finish(f"since-{result['threads']}", result, columns, f"since {COMMIT}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rows", action="store_true", help="print the times of this process alone")
    args = parser.parse_args()
    if args.rows:
        rows = {name: pass_seconds(*size) for name, size in PASSES.items()}
        print(json.dumps(rows | {row: step_seconds(name) for row, name in RECIPES.items()}))
    else:
        main(args.pairs)
