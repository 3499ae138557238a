"""Exported programs: the numbers of the net, without the net, for every batch and length."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from cli_tools import Cli
from cli_tools import single as single
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.export import exported, run_exported
from ctrnn_assembly.models import build_model
from ctrnn_assembly.training.run import Run
from solver_problems import one_thread as one_thread
from stored_runs import store_run

LAYERS: dict[str, dict[str, Any]] = {
    "svd-combo": {"solver": "exponential-euler", "readout_input": "rate"},
    "product": {"solver": "imex", "substeps": 2},
    "adadiag-gated": {},
    "lstm": {},
    "lipschitz": {},
}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def classifier(name: str) -> Any:
    return build_model(name, 3, 5, modules=2, units=4, **LAYERS.get(name, {})).float()


def assert_same_numbers(net: Any, content: bytes, format: Any, step: bool) -> None:
    """Ten roundings of float32, on sizes that the exporter has not seen; also one sample alone."""
    for batch, time in ((4, 9), (1, 1), (2, 40)):
        u = torch.randn(batch, time, 3, generator=torch.Generator().manual_seed(1))
        x = torch.randn(batch, net.core.state_size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            moved = net.core.step(u[:, 0], x)
            expected = (moved, net.read(moved[:, : net.core.hidden_size])) if step else (net(u),)
        found = run_exported(content, format, *((u[:, 0], x) if step else (u,)))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svd-combo", "lipschitz"])
def test_onnxruntime_has_the_numbers_of_every_kind_of_step(name: str) -> None:
    net = classifier(name)
    content, worst = exported(net, "step", "onnx", {})
    assert worst < 1e-5
    assert_same_numbers(net, content, "onnx", step=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["product", "adadiag-gated", "lstm"])
def test_onnxruntime_runs_whole_sequences_by_one_loop_operator(name: str) -> None:
    net = classifier(name)
    content, _ = exported(net, "sequence", "onnx", {})
    assert_same_numbers(net, content, "onnx", step=False)
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert kinds.count("Scan") == 1
    assert len(kinds) < 40  # and nothing is unrolled


@pytest.mark.slow
@pytest.mark.parametrize("part", ["step", "sequence"])
def test_a_program_of_torch_has_the_same_numbers_and_what_is_about_it(part: Any) -> None:
    net, about = classifier("svd-combo"), {"certified": ""}
    content, _ = exported(net, part, "torch", {"certified": "true"})
    assert_same_numbers(net, content, "torch", step=part == "step")
    torch.export.load(io.BytesIO(content), extra_files=about)
    assert about == {"certified": "true"}


def test_exporting_changes_nothing_of_the_net() -> None:
    net = classifier("svd-combo")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    exported(net, "step", "torch", {})
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_solver_that_looks_at_values_is_refused() -> None:
    net = build_model("svd-combo", 3, 5, modules=2, units=4, solver="dopri5")
    with pytest.raises(ConfigError, match=r"no value.*got 'dopri5' of Assembly\. Use solver='euler'"):
        exported(net, "step", "onnx", {})


def test_a_program_with_other_numbers_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda *_: tuple(torch.zeros(3, size) for size in (8, 5))  # noqa: E731
    monkeypatch.setattr("ctrnn_assembly.export.run_exported", wrong)
    with pytest.raises(ConfigError, match="other numbers than the net"):
        exported(classifier("svd-combo"), "step", "torch", {})


def test_the_command_writes_weights_and_verdict_into_the_onnx_file(cli: Cli, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "net.onnx"
    store_run(run, model="svd-combo")
    done = cli("export", run, "--out", file, "--step", "--json")
    assert done.code == 0, done.err
    about = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert (
        about["weights_sha256"] == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    )
    assert about["certified"] == str(Run.open(run).certificate.certified).lower() == "true"
    assert about["certificate"].startswith("certified: contracts at a rate of at least")
    shown = json.loads(done.out)
    assert shown.items() >= about.items()
    assert shown["deviation"] < 1e-5


def test_the_command_says_what_is_not_certified(cli: Cli, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "net.pt2"
    store_run(run, model="rnn")
    done = cli("export", run, "--out", file, "--step", "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["certified"] == "false"
    assert shown["certificate"].startswith("NOT certified: VanillaRNN is a baseline")


def test_the_command_refuses_a_suffix_of_no_format(cli: Cli, tmp_path: Path) -> None:
    assert ".onnx, .pt2" in cli.refuses("export", tmp_path, "--out", tmp_path / "net.txt")
