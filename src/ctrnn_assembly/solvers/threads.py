"""Parts of a batch on as many threads as torch has, for compiled loops, which do not hold Python's lock.

Sums over parts have as many terms as the size of the problem says, in their order: results are the same,
bit for bit, whatever the number of threads.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

GRAIN = 2**19  # numbers: for fewer a second part takes longer than it saves


def in_parts(work: Callable[[int, int], Any], count: int, numbers: int, most: int = 0) -> list[Any]:
    """[work(start, stop), ...] of consecutive parts of range(count), about equal, in order.

    Args:
        numbers: of the whole, of which a part has GRAIN, or more where there would be too many parts.
        most: the largest number of parts, by default one for each thread.
    """
    threads = torch.get_num_threads()
    parts = max(1, min(most or threads, count, 1 + numbers // GRAIN))
    edges = [count * k // parts for k in range(parts + 1)]
    if threads == 1 or parts == 1:
        return [work(*part) for part in pairwise(edges)]
    flushed = sys.float_info.min / 2 == 0  # denormal numbers: each thread has a setting of its own

    def alike(part: tuple[int, int]) -> Any:
        torch.set_flush_denormal(flushed)
        return work(*part)

    return [*_pool(threads, os.getpid()).map(alike, pairwise(edges))]


def summed(work: Callable[[int, int], list[Any]], count: int, numbers: int) -> list[Any]:
    """The sums of the first, second, ... array that the work on each part makes, of so many numbers."""
    found = in_parts(work, count, numbers, most=8)
    return [sum(arrays[1:], arrays[0]) for arrays in zip(*found, strict=True)]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Of this process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads)
