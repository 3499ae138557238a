"""Where a number comes from: date, command, commit, hardware, versions, threads, seed.

`summary.json` of a finished run is a flat object of these keys, so that the run folder is the result:

    date, command, commit, modified, hardware, threads, versions, seed   as `provenance` says
    task, model         canonical name of the task, name of the model
    data                what was read, e.g. CIFAR-10 (JPEG)
    note                on data that are not what the task's name promises; empty otherwise
    parameters          number of trained parameters
    epochs, seconds     epochs that were trained, and their duration
    weights_sha256, proof   of model.safetensors; file and sha256 of the last --write-proof
    best_epoch          epoch of these weights, counted from 0
    val_*, test_*       accuracy, f1, r2, mse of these weights; null where there is none, as with fit_all
    chance              test accuracy up to which they may have learnt nothing; null of values
    best_epoch_accuracy, final_epoch_accuracy
                        test accuracy of the best and of the last epoch; null without test_every_epoch
    certificate_initial, certificate
                        before training, and of these weights (`Certificate.as_dict`)
    config              the configuration, without data_dir
    curve               the columns of metrics.csv, a list of numbers (or null) each

Where training had to stop, `reproduction.run` keeps `stopped`, the reason, instead of an outcome.

The columns of metrics.csv are epoch (from 0), train_loss, train_accuracy, val_loss, val_accuracy,
learning_rate, seconds, certified, rate, step_certified, step_factor, max_dt, and
test_accuracy with test_every_epoch.
"""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("ctrnn-assembly", "torch", "lightning-fabric", "torchdiffeq", "torchdyno", "triton")


def provenance(
    *, command: str | None = None, seed: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """What a result depends on besides its settings, as plain values.

    The commit, and whether code has been changed since, are None for an installed package. `command`
    makes the result, by default the command line of this process; `device` is "auto", "cpu", "cuda", ...
    """
    here = Path(__file__).resolve()
    commit = git(here.parent, "rev-parse", "HEAD") if git(here.parent, "ls-files", here.name) else None
    code = (":/src", ":/cli", ":/experiments/*.py")
    changed = None if commit is None else bool(git(here.parent, "status", "--porcelain", "--", *code))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit,
        "modified": changed,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "seed": seed,
    }


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that are installed, and of CUDA where it is there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def hardware(device: str = "auto") -> str:
    """The graphics card if the device can be one, else the processor with its number of cores."""
    if device.split(":")[0] in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def git(folder: Path, *arguments: str) -> str | None:
    """What git says there; None if it is not there, or refuses."""
    asked = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.check_output(asked, text=True, stderr=subprocess.DEVNULL).strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
