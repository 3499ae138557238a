"""torch's own recurrent networks behind the convention of `Recurrent` (cuDNN on a GPU)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def run_packed(rnn: nn.RNNBase, u: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """Outputs (batch, time, n) of an nn.RNN or nn.LSTM with batch_first, and its last valid state.

    Packed, because torch returns only the last LSTM cell state: c at a sequence's own end could not
    be picked from a full run.
    """
    if lengths is None:
        return rnn(u, state)
    packed = pack_padded_sequence(u, lengths.cpu(), batch_first=True, enforce_sorted=False)
    packed, last = rnn(packed, state)
    output, _ = pad_packed_sequence(packed, batch_first=True, total_length=u.shape[1])
    time = torch.arange(u.shape[1], device=u.device).minimum(lengths[:, None] - 1)  # (batch, time)
    return output.gather(1, time[..., None].expand_as(output)), last
