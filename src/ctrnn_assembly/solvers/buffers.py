"""Large CPU buffers that are used again.

torch gives big CPU tensors back to the system, and the first touch of fresh pages costs more than the
arithmetic on them: a third of the time of a sparsely coupled forward pass on a virtual machine. Not for
CUDA, whose allocator keeps its memory itself.
"""

from __future__ import annotations

import math
import threading
from typing import Any, cast

import torch
from torch import Tensor

KEPT = 2  # buffers that wait for the next use
_free: list[Tensor] = []
_lock = threading.RLock()  # the garbage collector can delete one buffer while another is made


class PooledBuffer:
    """Uninitialised `memory`; deleting this object returns it to the pool, to be written again."""

    def __init__(self, size: int, like: Tensor) -> None:
        with _lock:
            for k, buffer in enumerate(_free):
                if size <= buffer.numel() <= 4 * size and buffer.dtype == like.dtype:
                    self.memory = _free.pop(k)
                    return
        with torch.inference_mode(
            False
        ):  # a tensor of inference mode could not be written to outside it
            self.memory = torch.empty(size, dtype=like.dtype)

    def __del__(self) -> None:
        if hasattr(self, "memory"):  # there is none if the allocation failed
            with _lock:
                _free.append(self.memory)
                del _free[:-KEPT]  # the newest stay: what was used last is what the next solve needs


def pooled(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor whose memory returns to the pool when it is freed, by autograd too.

    Whoever keeps a view of it must keep the tensor itself.
    """
    buffer = PooledBuffer(math.prod(shape), like)
    tensor: Any = buffer.memory[: math.prod(shape)].view(shape)
    tensor.buffer = buffer  # a new view each time: the buffer does not keep what keeps the buffer
    return cast(Tensor, tensor)
