"""Every test starts from the same seed, in float64 unless it says otherwise."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded_float64() -> Iterator[None]:
    """Seed torch and make float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
