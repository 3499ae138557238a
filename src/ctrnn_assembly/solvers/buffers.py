"""Large CPU buffers that are used again.

torch gives big CPU tensors back to the system, and the first touch of fresh pages costs more than the
arithmetic on them: a third of the time of a sparsely coupled forward pass on a virtual machine.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

KEPT = 2  # buffers that wait for the next use
_free: list[Tensor] = []
_lock = threading.RLock()  # a loan can end, by the garbage collector, while another one begins


class Loan:
    """Uninitialised memory of a shape, in `tensor`, lent until this object is deleted.

    Whoever keeps a view of `tensor` must keep the loan: afterwards the memory is written again.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.reused = like.device.type == "cpu"  # CUDA's allocator keeps its memory itself
        size = math.prod(shape)
        self.memory = _fitting(size, like) if self.reused else like.new_empty(size)
        self.tensor = self.memory[:size].view(shape)

    def __del__(self) -> None:
        if self.reused:
            with _lock:
                _free.append(self.memory)
                _free.sort(key=torch.Tensor.numel)
                del _free[:-KEPT]


def _fitting(size: int, like: Tensor) -> Tensor:
    """A free buffer of at least this size and of this kind, the smallest one, or a new one."""
    with _lock:
        for k, buffer in enumerate(_free):
            if buffer.numel() >= size and buffer.dtype == like.dtype:
                return _free.pop(k)
    return like.new_empty(size)
