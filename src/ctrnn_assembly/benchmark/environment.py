"""What a timing depends on besides the code: hardware, versions, threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("ctrnn-assembly", "torch", "torchdiffeq", "torchdyno", "triton")


def environment() -> dict[str, Any]:
    """Hardware, versions and threads, as plain values."""
    found = {"python": platform.python_version(), **_versions()}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return {"hardware": hardware(), "versions": found, "threads": torch.get_num_threads()}


def hardware() -> str:
    """The processor, and the GPU where there is one."""
    cpu = f"{os.cpu_count()} cores of {processor()}"
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cpu


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
