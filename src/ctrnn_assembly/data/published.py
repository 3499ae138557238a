"""The train/validation split of the published sMNIST and sCIFAR10 experiments."""

import numpy as np
import torch
from torch import Tensor

from ctrnn_assembly.data.task import SPLIT_SEED, Options, first

N_VAL = 2000


def hold_out(n: int, options: Options) -> tuple[Tensor, Tensor]:
    """Indices of train and val, int64: the last 2,000 of RandomState(1234)'s permutation are val.

    Both are then cut to `limit_train`. A set of fewer than 20,000 samples gives a tenth instead, so
    that copies cut down for a trial still load. Source: Erichson et al. 2021; Kozachkov et al. 2022
    made the split, and did not use val.
    """
    n_val = min(N_VAL, n // 10)
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(n))
    train, val = order[: n - n_val], order[n - n_val :]
    return (
        train[first(len(train), options.limit_train, options.seed)],
        val[first(len(val), options.limit_train, options.seed)],
    )
