"""docs/contributing.md: a theorem, a solver, a task, a diagnostic and a gate are added by their
rows."""

from dataclasses import replace
from importlib import import_module
from typing import Literal

import pytest
import torch

from ctrnn_assembly import AdaDiagTanh, Contracting, Subnetwork, build_model, certify, load_task
from ctrnn_assembly import schemes as rows
from ctrnn_assembly.contracting import CONSTRAINTS
from ctrnn_assembly.data import TASKS, Entry, arrays
from ctrnn_assembly.diagnostics.linearise import behaviour
from ctrnn_assembly.models import MODELS, Model
from ctrnn_assembly.terms import Terms


class Bounded(Contracting):
    """||W||_F < 1 / g."""

    theorem = "norm of W below 1 / g"

    def weight(self, E):
        return self.radius / self.phi.g * E / (1 + E.norm())

    def raw(self, W):
        V = self.phi.g / self.radius * W
        return V / (1 - V.norm())


def test_a_theorem_needs_its_set_and_a_row(monkeypatch):
    monkeypatch.setitem(CONSTRAINTS, "bounded", Bounded)
    monkeypatch.setitem(MODELS, "bounded", Model("norm of W below 1 / g", Bounded))
    model = build_model("bounded", 1, 3, modules=2, units=4)
    assert model.core.certificate().certified


def test_a_solver_needs_its_row_and_without_a_proof_it_is_refused(monkeypatch):
    twin = rows.Scheme("twin", "imex by another name", rows.SCHEMES["imex"].pair)
    monkeypatch.setitem(rows.SCHEMES, "twin", twin)
    certifying = import_module("ctrnn_assembly.certificates.certify")
    monkeypatch.setattr(certifying, "SOLVERS", (*rows.SOLVERS, "twin"))
    field = Subnetwork(AdaDiagTanh("tanh"), 4)
    terms: Terms = field.terms()
    x = torch.randn(3, 4)
    step = [rows.affine_step(rows.SCHEMES[name], terms, 0.1)(None, x) for name in ("twin", "imex")]
    torch.testing.assert_close(*step)
    proven = certify(field, dt=0.1, solver="twin")
    assert proven.certified
    assert proven.step is not None
    assert not proven.step.certified
    assert "no proof is known for steps of twin" in proven.step.reason


def test_a_task_needs_a_loader_and_its_row(monkeypatch):
    monkeypatch.setitem(TASKS, "twin", Entry("digits by another name", "twin", arrays.load_digits))
    task = load_task("twin", limit_train=20)
    assert (task.name, len(task.train)) == ("twin", 20)


@pytest.mark.parametrize("net", [Subnetwork(AdaDiagTanh("tanh"), 4), torch.nn.GRU(2, 4)])
def test_a_diagnostic_takes_any_net_by_its_behaviour(net):
    known = behaviour(net)
    u = None if known.input_size is None else torch.zeros(5, known.input_size).double()
    step = known.step_map(0.1 if known.flow else None)
    assert step(u, torch.randn(5, known.size).double()).shape == (5, 4)


def test_a_gate_needs_its_name_and_without_a_bound_it_is_refused(monkeypatch):
    for module in ("ctrnn_assembly.gates", "ctrnn_assembly.certificates.gates"):
        monkeypatch.setattr(import_module(module), "Gate", Literal["constant", "input", "own"])
    monkeypatch.setitem(MODELS, "adadiag-own", replace(MODELS["adadiag-gated-input"], gate="own"))
    twins = [
        build_model(f"adadiag-{name}", 1, 3, modules=2, units=4, seed=0)
        for name in ("own", "gated-input")
    ]
    x = torch.rand(2, 5, 1)
    torch.testing.assert_close(*(twin(x) for twin in twins))
    refused, proven = (twin.core.certificate() for twin in twins)
    assert proven.certified
    assert not refused.certified
    assert refused.reasons[0] == "no bound is known for own gates"
