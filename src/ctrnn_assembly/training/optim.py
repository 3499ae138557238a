"""What a step of training needs: the optimiser, the learning rate of the step, no denormals."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ctrnn_assembly.training.config import TrainConfig


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW of the trained parameters, where they are."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    trained = [p for p in model.parameters() if p.requires_grad]
    # One kernel for all parameters; it cannot clip gradients that a scaler has scaled.
    fused = trained[0].is_cuda and config.precision in ("32", "64")
    return kind(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over all epochs: resuming is exact.

    It rises linearly over the warm-up. From there on "cosine" falls to 0 at the end of the run, "steps"
    multiplies by lr_gamma at the start of each epoch in milestones, and "constant" stays.
    """
    epoch, warm = step // steps_per_epoch, config.warmup_epochs * steps_per_epoch
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    if config.schedule == "steps":
        return config.learning_rate * config.lr_gamma ** sum(epoch >= m for m in config.milestones)
    if config.schedule == "cosine":
        share = (step - warm) / (config.epochs * steps_per_epoch - warm)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 are zero in this thread, on CPUs that can do so.

    Gradients that fade through time end among them: the backward pass of `nn.LSTM` over 196 steps took
    15 s with them and 1 s without, to the same gradients.
    """
    # PyTorch sets the mode and does not tell it.
    flushed_before = torch.tensor(1e-40, dtype=torch.float32).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)
