"""Everything that needs a GPU, once: the CUDA backends are checked, then timed, then a net is trained.

    python experiments/on_gpu.py --out FOLDER        FOLDER is $OUT, else the current one

Writes FOLDER/DATE-on-gpu.json after each part. It has not run yet.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from keep import HERE, about, keep

TESTS = ["pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--tb=short", str(HERE.parent / "tests")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--recipe", default="digits", help="of the training")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this script needs a CUDA device, and torch finds none on this machine.")
    on_gpu, result, failed = ["--device", "cuda", "--json"], about(__file__), []
    train = ["train", "--recipe", args.recipe, "--out", str(args.out / "run"), *on_gpu]
    parts = {
        "check": TESTS,
        "bench": ["ctrnn_cli.main", "bench", "--steps", "1024", *on_gpu],
        "train": ["ctrnn_cli.main", *train],
    }
    for name, command in parts.items():
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        result[name] = {
            "exit_code": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr[-4000:],
        }
        keep("on-gpu", result, args.out)
        failed += [name] if done.returncode else []
    if failed:
        sys.exit(f"{', '.join(failed)} failed; the file in {args.out} has what they said.")
