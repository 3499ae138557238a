"""The machine's own rate: one (batch, n) by (n, n) product into a given tensor, as a step has it."""

from __future__ import annotations

import time

import torch

from ctrnn_assembly.benchmark.interleave import Entry
from ctrnn_assembly.benchmark.problem import Size

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
SECONDS = 0.01  # of one timing: many products


def dtypes(device: str) -> list[str]:
    """The precisions that a device has products for."""
    return [name for name in DTYPES if device == "cuda" or name != "tf32"]


def product_entry(size: Size, device: str, dtype: str) -> Entry:
    """The product, warmed up, as an entry of the rounds."""
    generator = torch.Generator().manual_seed(0)
    x, W = (
        torch.randn(rows, size.n, generator=generator, dtype=torch.float32).to(device, DTYPES[dtype])
        for rows in (size.batch, size.n)
    )
    out = torch.empty_like(x)

    def run() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        torch.mm(x, W, out=out)
        torch.backends.cuda.matmul.allow_tf32 = before

    entry = Entry(("product", dtype, device), run, device, repeats=10)
    entry.time(time.perf_counter)
    entry.repeats = max(1, round(SECONDS / max(entry.time(time.perf_counter), 1e-7)))
    return entry


def operations(size: Size) -> int:
    """Of one product."""
    return 2 * size.batch * size.n**2
