"""How much faster than an earlier commit: the same work by both trees, in alternating processes.

    python experiments/since.py [--commit 984ec1a] [--pairs 7] [--threads 1] [--data-dir DIR]

The earlier tree comes from its own wheel, built of `git archive`; torch and the rest are those of this
environment. A process times each row several times after a warm-up; a pair is one process of each tree,
in changing order. Rows are forward and backward for the gradients of all weights, by `solve` of a field
of leaf tensors or by a whole gated net, with relu; and training steps of recipes, from one to the next
in the program itself. Leaves results/DATE-since-THREADS.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
IS_OLD = find_spec("ctrnn_assembly.architectures") is not None  # the tree of this process
OLD_NAMES = {"activation": "phi", "solver": "method"}
# Model, modules, units, batch, steps; coupling, and solver.
PASSES = {
    "n=64, batch 32, T=128, Euler": ("svd-combo", 4, 16, 32, 128, "all", "euler"),
    "n=64, batch 32, T=128, exponential": ("svd-combo", 4, 16, 32, 128, "all", "exponential-euler"),
}
for _batch in (128, 16):
    PASSES |= {
        f"{model}, 16x32, C=5, batch {_batch}": (model, 16, 32, _batch, 196, "random:5", "euler")
        for model in ("adadiag-tanh", "svd-combo", "adadiag-gated-constant", "adadiag-gated-input")
    }
# The recipes as they are in both trees; the first leaves threads as they are, the other sets 1.
RECIPES = {"JapaneseVowels, a step": "adadiag-japanese-vowels", "digits, a step": "digits"}
TIMES, STEPS = 5, 30  # timings of a pass, and steps of a training
WARM = {"pass": 2, "step": 5}  # before them
KINDS = {"min": min, "median": median}


class EnoughError(Exception):
    """The steps that were to be timed are done."""


def named(**settings: Any) -> dict[str, Any]:
    """Settings by the names that they have in this tree."""
    return {OLD_NAMES.get(k, k) if IS_OLD else k: x for k, x in settings.items()}


def one_pass(
    model: str, modules: int, units: int, batch: int, steps: int, coupling: str, solver: str
) -> Callable[[], Any]:
    """Forward and backward of one solve, or of a gated net, which had no solve of its own."""
    from ctrnn_assembly.solvers import solve

    if IS_OLD:
        from ctrnn_assembly.architectures import build_model
    else:
        from ctrnn_assembly.models import build_model
    size = {"modules": modules, "units": units, "coupling": coupling}
    net: Any = build_model(model, 1, 10, **size, **named(activation="relu"))
    u = torch.rand(batch, steps, 1, generator=torch.Generator().manual_seed(0))
    if "gated" in model:
        weights = list(net.parameters())
        return lambda: torch.autograd.grad(net(u).square().mean(), weights)
    terms, x0 = (
        net.core.field.terms().driven(net.core.encoder.weight),
        u.new_zeros(batch, net.core.field.size),
    )
    mapped = terms._mapped if IS_OLD else terms.mapped
    terms = mapped(lambda x: x.detach().clone())
    leaves = [x.requires_grad_() for x in terms.tensors() if x is not terms.tau]
    given = {"u": u, "dt": 0.03, "save": "last", **named(solver=solver)}
    return lambda: torch.autograd.grad(solve(terms, x0, **given).last.square().mean(), leaves)


def pass_seconds(*size: Any) -> list[float]:
    """Of one of `PASSES`."""
    run, seconds = one_pass(*size), []
    torch.set_flush_denormal(True)
    for _ in range(WARM["pass"] + TIMES):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return seconds[WARM["pass"] :]


def step_seconds(recipe: str, data_dir: str | None) -> list[float]:
    """From the start of a training step to that of the next, in a run of the recipe."""
    if IS_OLD:
        from ctrnn_assembly import training as module
        from ctrnn_assembly.config import make_config
        from ctrnn_assembly.config import recipe as settings
        from ctrnn_cli.fit import fit

        owner, name, more = module.Training, "optimizer_step", {"resume": False, "quiet": True}
    else:
        from ctrnn_assembly.training import fit as module
        from ctrnn_assembly.training.config import make_config
        from ctrnn_assembly.training.config import recipe as settings

        fit, owner, name, more = module.fit, module, "train_step", {"report": lambda line: None}
    step, starts = getattr(owner, name), []

    def timed(*args: Any, **given: Any) -> Any:
        starts.append(perf_counter())
        if len(starts) > WARM["step"] + STEPS:
            raise EnoughError
        return step(*args, **given)

    setattr(owner, name, timed)
    with TemporaryDirectory() as folder:
        try:
            fit(make_config(settings(recipe), {"data_dir": data_dir}), Path(folder) / "run", **more)
        except EnoughError:
            pass
        finally:
            setattr(owner, name, step)
    return [b - a for a, b in pairwise(starts)][WARM["step"] :]


def child(data_dir: str | None) -> None:
    """Prints the seconds of every row, in this process with its tree."""
    found = {name: pass_seconds(*size) for name, size in PASSES.items()}
    found |= {name: step_seconds(recipe, data_dir) for name, recipe in RECIPES.items()}
    print(json.dumps(found))


def seconds_of(path: str | None, threads: int, data_dir: str | None) -> dict[str, list[float]]:
    """The rows of a process that has the packages of a folder before its others."""
    paths = [path, os.environ.get("PYTHONPATH")]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": ":".join(filter(None, paths))}
    given = ["--data-dir", data_dir] if data_dir else []
    command = [sys.executable, __file__, "--child", *given]
    found: dict[str, list[float]] = json.loads(subprocess.check_output(command, env=env, text=True))
    return found


def install(commit: str, folder: Path) -> str:
    """The commit's package, in a folder of its own."""
    source, target = folder / "source", folder / "site"
    source.mkdir()
    archive = subprocess.check_output(["git", "-C", str(HERE.parent), "archive", commit])
    subprocess.run(["tar", "x", "-C", str(source)], input=archive, check=True)
    build = ["install", "-qq", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True)
    return str(target)


def main(args: argparse.Namespace) -> None:
    """Alternate, compare, keep."""
    from keep import keep, shown

    from ctrnn_assembly.training.provenance import provenance
    from ctrnn_cli.shared import Column, console, table

    result = provenance() | {"threads": args.threads, "against": args.commit, "pairs": args.pairs}
    with TemporaryDirectory() as folder:
        trees = {"before": install(args.commit, Path(folder)), "now": None}
        found = {tree: [] for tree in trees}
        for pair in range(args.pairs):
            for tree in list(trees)[:: 1 if pair % 2 else -1]:
                found[tree].append(seconds_of(trees[tree], args.threads, args.data_dir))
            print(f"pair {pair + 1} of {args.pairs}", file=sys.stderr)
    result["seconds"], rows = found, []
    for name in found["now"][0]:
        times = {tree: [s for one in runs for s in one[name]] for tree, runs in found.items()}
        row = {f"{k}_{tree}": 1000 * f(x) for tree, x in times.items() for k, f in KINDS.items()}
        row |= {k: row[f"{k}_before"] / row[f"{k}_now"] for k in KINDS}
        rows.append({"name": name, **row})
    result["rows"] = rows
    columns = [Column("name", "work")]
    columns += [Column(f"{k}_{t}", f"{k} {t}, ms", ".2f") for k in KINDS for t in trees]
    columns += [Column(k, f"times faster ({k})", ".2f") for k in KINDS]
    result["table"] = shown(rows, columns)
    console().print(table(result["table"], title=f"since {args.commit}"))
    print(keep(f"since-{args.threads}", result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--commit", default="984ec1a")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", help="default: CTRNN_DATA_DIR")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    child(args.data_dir) if args.child else main(args)
