"""CUDA graphs: a function of tensors recorded once, and replayed without Python in its time loop.

A recording belongs to one function, its fixed arguments and the shapes of its tensors; new values are
copied in and results out. On a CPU a replay calls the function again.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

KEPT = 8  # recordings; each holds the states of a solve
MATMUL = torch.backends.cuda.matmul
# How products of float32 are rounded on CUDA; torch 2.9 has a new name for it.
ROUNDING = "fp32_precision" if hasattr(MATMUL, "fp32_precision") else "allow_tf32"

_lock = threading.RLock()  # two threads must not write the inputs of one recording


class Recording:
    """A recorded function of tensors, (possibly None) -> tuple of tensors (or None)."""

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor | None]) -> None:
        self.static = [None if t is None else t.detach().clone() for t in tensors]
        self.function = function
        self.device = next(t.device for t in tensors if t is not None)
        self.graph: torch.cuda.CUDAGraph | None = None
        if self.device.type != "cuda":
            return
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # CUDA graphs want two runs on a side stream first
                for _ in range(2):
                    self.run()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.run()

    def run(self) -> None:
        self.results = self.function(*self.static)

    def __call__(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        for place, tensor in zip(self.static, tensors, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        if self.graph is None:
            self.run()
        else:
            with torch.cuda.device(self.device):
                self.graph.replay()
        # Memory of their own, in the same order of axes.
        return tuple(None if r is None else torch.empty_like(r).copy_(r) for r in self.results)


_recordings: OrderedDict[Any, Recording] = OrderedDict()


def replayed(function: Any, fixed: tuple[Any, ...], tensors: Sequence[Tensor | None]) -> Any:
    """function(*fixed, *tensors), tensors or None, by a recording; `fixed` must be hashable."""
    kinds = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
    key = (function, fixed, kinds, getattr(MATMUL, ROUNDING))
    # Memory that outlives a call must not be that of inference mode, which nothing else may write to.
    with _lock, torch.inference_mode(False), torch.no_grad():
        if key not in _recordings:
            _recordings[key] = Recording(lambda *given: function(*fixed, *given), tensors)
            while len(_recordings) > KEPT:
                _recordings.popitem(last=False)
        _recordings.move_to_end(key)
        return _recordings[key](tensors)


@contextmanager
def tf32() -> Iterator[None]:
    """Round the operands of float32 products on CUDA to tf32 inside the block."""
    before = getattr(MATMUL, ROUNDING)
    setattr(MATMUL, ROUNDING, "tf32" if isinstance(before, str) else True)
    try:
        yield
    finally:
        setattr(MATMUL, ROUNDING, before)
