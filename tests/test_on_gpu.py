"""The CUDA backends against the fused loop in float64, on a machine with a GPU: `pytest -m gpu`.

One network of 16 blocks of 32 units, in both forms, with three couplings and a diagonal W, is solved by
the graph backend, and where all blocks are coupled by the persistent one, in all precisions of products.
Repeated runs of a persistent kernel that differ in one bit have raced.
"""

import json
import runpy
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch

from ctrnn_assembly import AdaDiagTanh, SingularValueBounded, Subnetwork, couple
from ctrnn_assembly.solvers import solve
from ctrnn_assembly.solvers.cuda.persistent import PHIS
from ctrnn_assembly.solvers.fused import MatmulPrecision

DEVICE = "cuda"
BLOCKS, UNITS, STEPS, DT = 16, 32, 64, 0.03
REPEATS = {"graph": 2, "persistent": 20}
# Relative norms against float64, of 64 steps: a sum over time and batch loses a digit more than a state.
LIMITS = {"full": 1e-4, "tf32": 1e-3, "bf16": 1e-2}

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "on_gpu.py"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def driven(coupling, form, diagonal, phi="tanh", blocks=BLOCKS, units=UNITS):
    """A driven assembly in float64 on the CPU."""
    g = torch.Generator().manual_seed(0)
    # A relu whose argument rounds across zero changes a gradient by far more than the rounding: tanh.
    kind = AdaDiagTanh if diagonal else SingularValueBounded
    parts = [Subnetwork(kind(phi), units, form=form, generator=g) for _ in range(blocks)]
    terms = couple(parts, coupling, generator=g).double().terms().detach_cpu()
    return terms.driven(torch.randn(terms.n, 1, generator=g, dtype=torch.float64))


def states_and_gradients(terms, batch, dtype, **settings):
    """States of all steps, and the gradients of the mean of their squares."""
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(batch, terms.n, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    u = torch.randn(batch, STEPS, 1, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    copy = terms.mapped(lambda tensor: tensor.to(DEVICE, dtype).requires_grad_())
    leaves = [x0.requires_grad_(), u.requires_grad_(), *copy.tensors()]
    x = solve(copy, x0, u=u, dt=DT, **settings).x
    return [x.detach(), *torch.autograd.grad(x.square().mean(), leaves)]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("phi", [phi.name for phi in PHIS if phi.name != "relu"])
@pytest.mark.parametrize(("blocks", "units"), [(3, 13), (16, 32)])
def test_every_activation_and_odd_sizes(phi, blocks, units):
    terms = driven("all", "x", False, phi, blocks, units)
    exact = states_and_gradients(terms, 9, torch.float64, backend="fused")
    for backend in REPEATS:
        found = states_and_gradients(terms, 9, torch.float32, backend=backend)
        for a, b in zip(found, exact, strict=True):
            assert float((a.double() - b).norm()) < LIMITS["full"] * float(b.norm())


@pytest.mark.slow
def test_the_script_runs_and_goes_on_without_a_gpu(tmp_path, monkeypatch, capsys):
    asked = ["--device", "cpu", "--fast", "--task", "digits", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *asked])
    monkeypatch.syspath_prepend(SCRIPT.parent)
    for said in (True, False):  # the second call has nothing left to do
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert bool(capsys.readouterr().out) is said
    (file,) = tmp_path.glob("*-on-gpu.json")
    found = json.loads(file.read_text())
    assert all(found[part]["exit_code"] == 0 for part in ("check", "bench", "train"))
    assert "skipped" in found["check"]["stdout"] or torch.cuda.is_available()
    assert json.loads(found["bench"]["stdout"])["rows"]
    assert json.loads(found["train"]["stdout"])["epochs"] == 2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("batch", [128, 17])
@pytest.mark.parametrize(("form", "diagonal"), [("x", False), ("r", False), ("x", True)])
@pytest.mark.parametrize("coupling", ["all", "random:20", "random:5"])
def test_every_backend_agrees_with_the_fused_loop(coupling, form, diagonal, batch):
    terms, wrong = driven(coupling, form, diagonal), []
    exact = states_and_gradients(terms, batch, torch.float64, backend="fused")
    # The persistent kernels refuse couplings of few blocks.
    backends = ("graph", "persistent") if coupling == "all" else ("graph",)
    for backend, precision in product(backends, get_args(MatmulPrecision)):
        settings, repeats = {"backend": backend, "matmul_precision": precision}, REPEATS[backend]
        runs = [states_and_gradients(terms, batch, torch.float32, **settings) for _ in range(repeats)]
        pairs = zip(runs[0], exact, strict=True)
        error = max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
        # The states and the gradient of x0 come from the kernels alone.
        kernels = zip(*(run[:2] for run in runs), strict=True)
        same = all(torch.equal(first, other) for first, *rest in kernels for other in rest)
        if not (error < LIMITS[precision] and same):
            wrong.append({**settings, "error": error, "same_bits": same})
    assert not wrong
