"""No stack exceeds its bounds, and bounds that are a little too small are exceeded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ctrnn_assembly.stack import Stack
from stack_bounds import random_stack, worst


def largest(seeds):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        rng = np.random.default_rng([0, seed])
        found.append(worst(random_stack(rng), 200, rng))
    return float(np.nanmax(found))


def test_no_two_runs_exceed_the_bounds_of_a_stack():
    assert 0.99 < largest(range(6)) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("name", "share"), [("input_gain", 0.98), ("output_gain", 0.2), ("passed", 0.2)]
)
def test_bounds_that_are_too_small_are_found_out(name, share, monkeypatch):
    made = Stack.bounds

    def smaller(net, *given):
        return [replace(layer, **{name: share * getattr(layer, name)}) for layer in made(net, *given)]

    monkeypatch.setattr(Stack, "bounds", smaller)
    assert largest(range(6)) > 1 + 1e-6
