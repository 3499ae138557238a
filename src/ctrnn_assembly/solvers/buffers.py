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
_lock = threading.RLock()  # the garbage collector can delete one buffer while another is made


class PooledBuffer:
    """Uninitialised memory of a shape, in `tensor`; deleting this object returns it to the pool.

    Whoever keeps a view of `tensor` must keep this object too: afterwards the memory is written again.
    Not for CUDA, whose allocator keeps its memory itself.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.shape, self.memory = shape, _fitting(math.prod(shape), like)

    @property
    def tensor(self) -> Tensor:
        """A new view, which this object does not keep: it may in turn keep this object."""
        return self.memory[: math.prod(self.shape)].view(self.shape)

    def __del__(self) -> None:
        memory = getattr(self, "memory", None)  # there is none if the allocation failed
        if memory is None:
            return
        with _lock:
            _free.append(memory)
            del _free[:-KEPT]  # the newest stay: what was used last is what the next solve needs


def _fitting(size: int, like: Tensor) -> Tensor:
    """A free buffer of this dtype that fits, or a new one."""
    with _lock:
        for k, buffer in enumerate(_free):
            if size <= buffer.numel() <= 4 * size and buffer.dtype == like.dtype:
                return _free.pop(k)
    with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside it
        return torch.empty(size, dtype=like.dtype)
