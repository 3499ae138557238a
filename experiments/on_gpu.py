"""Everything that needs a GPU, in one call: CUDA backends are checked, then timed, then a net trains.

    python experiments/on_gpu.py --minutes 9 --out FOLDER [--data-dir DIR]

FOLDER is $OUT, else results/. Each part ends within its share of the time, after which
FOLDER/DATE-on-gpu.json is written. The same command, with what FOLDER holds, goes on: parts that
succeeded at this commit are not run again, and the training resumes. It has not run yet on a GPU;
`--device cpu --fast` shows that it would.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from keep import HERE, RESULTS, keep

from ctrnn_assembly.training.provenance import provenance

TESTS = ["pytest", "-q", "-n0", "-p", "no:cacheprovider", "--tb=short"]
SHARES = {"check": 0.35, "bench": 0.65, "train": 1.0}  # of the time that is left
SMALL = ["dense", "--n", "8", "--units", "4", "--batch", "2", "--steps", "4"]
LARGE = ["dense", "c20", "c5", "deep", "--steps", "1024"]
ENDING = 30  # seconds for a part to write what it has, after it was interrupted


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Of each part, as `python -m` takes them."""
    run, fast = args.out / "run", ["--fast"] * args.fast
    train = ["--resume", str(run)]
    if not (run / "config.yaml").exists():
        train = ["--task", args.task, "--out", str(run), "--device", args.device, *fast]
    bench = ["--device", args.device, *(SMALL if args.fast else LARGE)]
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    found = {
        "check": [*TESTS, str(HERE.parent / "tests" / "test_on_gpu.py"), "-m", "gpu"],
        "bench": ["ctrnn_cli.main", "bench", *bench, "--json"],
    }
    if not (run / "summary.json").exists():  # else it is finished
        found["train"] = ["ctrnn_cli.main", "train", *train, *data, "--json"]
    return found


def timed(command: list[str], seconds: float) -> dict[str, Any]:
    """What a command said; it is interrupted, as by Ctrl-C, when its time is over."""
    started = time.monotonic()
    limit = ["timeout", "--preserve-status", "--signal=INT", f"--kill-after={ENDING}", str(seconds)]
    done = subprocess.run([*limit, sys.executable, "-m", *command], capture_output=True, text=True)
    took = {"seconds": time.monotonic() - started, "limit": seconds}
    return {"exit_code": done.returncode, **took, "stdout": done.stdout, "stderr": done.stderr[-4000:]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", RESULTS)))
    parser.add_argument("--task", default="scifar10", help="of the training, in its recommended recipe")
    parser.add_argument("--data-dir", help="where the data are; else CTRNN_DATA_DIR")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--fast", action="store_true", help="small, to see that it runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this script needs a CUDA device, and torch finds none on this machine.")
    until, result, failed = time.monotonic() + 60 * args.minutes, provenance(), []
    before = [json.loads(file.read_text()) for file in sorted(args.out.glob("*-on-gpu.json"))[-1:]]
    known = before[0] if before and before[0]["commit"] == result["commit"] else {}
    for name, command in commands(args).items():
        if name != "train" and known.get(name, {}).get("exit_code") == 0:
            result[name] = known[name]
            continue
        result[name] = timed(command, max(1.0, SHARES[name] * (until - time.monotonic() - ENDING)))
        failed += [name] if result[name]["exit_code"] not in (0, 130) else []
        print(f"{name}: exit code {result[name]['exit_code']} after {result[name]['seconds']:.0f} s")
        print(keep("on-gpu", result, args.out), flush=True)
    if failed:
        sys.exit(f"{', '.join(failed)} failed; the file in {args.out} has what they said.")
