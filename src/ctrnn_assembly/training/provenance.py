"""Where a number comes from: date, command, commit, hardware, versions, threads, seed."""

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
    """What a result depends on besides its settings, as plain values; no commit of an installed package.

    `command` makes the result, by default the command line of this process.
    """
    here = Path(__file__).resolve()
    commit = git(here.parent, "rev-parse", "HEAD") if git(here.parent, "ls-files", here.name) else None
    program, *arguments = sys.argv
    called = ["python", program] if program.endswith(".py") else [Path(program).name]
    code = (":/src", ":/cli", ":/experiments/*.py")
    changed = None if commit is None else bool(git(here.parent, "status", "--porcelain", "--", *code))
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    if torch.cuda.is_available():
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command or shlex.join([*called, *arguments]),
        "commit": commit,
        "modified": changed,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "seed": seed,
    }


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
