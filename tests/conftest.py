"""Every test starts from the same seed; the tests of theory run in float64."""

import os
from collections.abc import Iterator

# The matrices are small: a second thread costs more than it gives, most of all on a busy machine; nor
# do the processes take more that tests start. NumPy reads it when it is imported.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# What users load and compare with is float32, and these tests say so.
SINGLE = ("test_data_", "test_baselines", "test_cli", "test_training", "test_runs")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seed torch and make float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    monkeypatch.delenv("COLUMNS", raising=False)  # the width of whose terminal the tests are started in
    if not request.path.name.startswith(SINGLE):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
