"""Damaged and tampered files: refused with one sentence or certified "no", never a traceback."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from cli_tools import Cli, Outcome
from ctrnn_assembly import SingularValueBounded, Subnetwork, Symmetric, couple
from ctrnn_assembly.certificates import certify
from ctrnn_assembly.metrics import Factor, Metric
from ctrnn_assembly.terms import Terms
from ctrnn_assembly.training.run import write
from stored_runs import store_run, strict_json

WEIGHTS = "model.safetensors"
LAST = Path("checkpoints") / "last.ckpt"
COMMANDS = ("certify", "evaluate")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small run that is certified as it is."""
    folder = tmp_path / "run"
    store_run(folder)
    return folder


def refused(done: Outcome) -> str:
    """The one sentence of an error, or the reason of a certificate that says no."""
    assert "Traceback" not in done.err + done.out
    if done.code in (1, 3):
        found = strict_json(done.out)
        assert not found["certified"]
        assert found["reasons"]
        return found["reasons"][0]
    assert done.code == 2, done
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def both_refuse(cli: Cli, run: Path) -> list[str]:
    """What certify and evaluate say of a run that neither may accept."""
    return [refused(cli("certify", run, "--json")), refused(cli("evaluate", run))]


def change(run: Path, part: str, edit: Callable[[Tensor], Tensor]) -> None:
    """Replace the tensors whose name holds `part`."""
    state = load_file(run / WEIGHTS)
    chosen = [name for name in state if part in name]
    assert chosen, list(state)
    for name in chosen:
        state[name] = edit(state[name].clone()).contiguous()
    save_file(state, run / WEIGHTS)


def test_the_run_is_certified_before_it_is_touched(cli: Cli, run: Path) -> None:
    assert cli("certify", run, "--require-step").code == 0
    assert cli("evaluate", run).code == 0


# --- files that are no weights ------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8, 1000])
def test_random_bytes_are_refused(cli: Cli, run: Path, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    noise = torch.randint(0, 256, (size,), generator=generator).tolist()
    (run / WEIGHTS).write_bytes(bytes(noise))
    for error in both_refuse(cli, run):
        assert str(run / WEIGHTS) in error
        assert "not a readable safetensors file" in error


def test_truncated_weights_are_refused_at_every_length(cli: Cli, run: Path) -> None:
    content = (run / WEIGHTS).read_bytes()
    for size in [1, 7, 8, 9, *range(100, len(content), 331), len(content) - 1]:
        (run / WEIGHTS).write_bytes(content[:size])
        assert "not a readable safetensors file" in refused(cli("certify", run, "--json"))
    (run / WEIGHTS).write_bytes(content + b"\0")
    assert "not a readable safetensors file" in both_refuse(cli, run)[0]


def test_no_bit_of_the_header_can_be_flipped(cli: Cli, run: Path) -> None:
    content = (run / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text_end = content[:end].rstrip(b" ").rfind(b"}") + 1
    for bit in [*range(0, 64, 5), *range(64, 8 * text_end, 97)]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (run / WEIGHTS).write_bytes(damaged)
        assert str(run / WEIGHTS) in refused(cli("certify", run, "--json")), bit


@pytest.mark.parametrize("model", ["sparse-combo", "svd-combo", "symmetric"])
def test_a_bit_flipped_in_the_values_is_refused_or_judged(cli: Cli, tmp_path: Path, model: str) -> None:
    """Nothing marks an exponent as damaged: what is certified then is the network in the file."""
    run = tmp_path / "run"
    store_run(run, model=model)
    content = (run / WEIGHTS).read_bytes()
    start = 8 * (8 + int.from_bytes(content[:8], "little"))
    for bit in range(start + 30, 8 * len(content), 1021):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (run / WEIGHTS).write_bytes(damaged)
        done = cli("certify", run, "--json")
        if done.code == 0:
            assert strict_json(done.out)["rate"] > 0
        else:
            refused(done)


def test_a_pickle_is_not_unpickled(cli: Cli, run: Path) -> None:
    content = pickle.dumps(Touch(run / "ran"))
    (run / WEIGHTS).write_bytes(content)
    both_refuse(cli, run)
    torch.save({"model": Touch(run / "ran")}, run / WEIGHTS)
    both_refuse(cli, run)
    assert not (run / "ran").exists()
    pickle.loads(content)  # it would have run
    assert (run / "ran").exists()


def test_a_checkpoint_is_not_unpickled(cli: Cli, run: Path) -> None:
    (run / WEIGHTS).unlink()
    (run / LAST).parent.mkdir()
    for content in (Touch(run / "ran"), {"model": Touch(run / "ran")}):
        torch.save(content, run / LAST)
        assert "not a readable checkpoint" in refused(cli("certify", run, "--json"))
    (run / LAST).write_bytes(pickle.dumps(Touch(run / "ran")))
    assert "not a readable checkpoint" in refused(cli("certify", run, "--json"))
    assert not (run / "ran").exists()


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "list", "tensor", "number", "other"])
def test_a_damaged_checkpoint_is_refused(cli: Cli, run: Path, damage: str) -> None:
    state = load_file(run / WEIGHTS)
    (run / WEIGHTS).unlink()
    (run / LAST).parent.mkdir()
    rows = [{"val_accuracy": 0.5, "val_loss": 1.0}]
    intact = {"task": "digits", "rows": rows, "model": state, "optimizer": {}, "scaler": {}}
    torch.save(intact, run / LAST)
    assert cli("certify", run, "--json").code == 0
    content = (run / LAST).read_bytes()
    raw = {"empty": b"", "cut": content[: len(content) // 2], "noise": b"x" * 999}
    other = {"list": [1], "tensor": torch.ones(3), "number": {**intact, "model": {"a": 1}}}
    other["other"] = {name: x for name, x in intact.items() if name != "rows"}
    if damage in raw:
        (run / LAST).write_bytes(raw[damage])
    elif damage in other:
        torch.save(other[damage], run / LAST)
    assert "not a readable checkpoint" in refused(cli("certify", run, "--json"))


def test_a_folder_in_the_place_of_a_file_is_refused(cli: Cli, run: Path) -> None:
    (run / WEIGHTS).unlink()
    (run / WEIGHTS).mkdir()
    both_refuse(cli, run)


# --- weights that are not those of the run --------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["weight.original", "coupling", "tau", "encoder", "readout"])
def test_weights_that_are_not_finite_are_refused(cli: Cli, run: Path, part: str, bad: float) -> None:
    def spoil(x: Tensor) -> Tensor:
        if x.is_floating_point() and x.numel():
            x.view(-1)[-1] = bad
        return x

    change(run, part, spoil)
    for error in both_refuse(cli, run):
        assert "holds NaN or infinite values" in error


@pytest.mark.parametrize("part", ["parts.0.parametrizations", "tau", "encoder", "coupling"])
def test_wrong_shapes_are_refused(cli: Cli, run: Path, part: str) -> None:
    change(run, part, lambda x: x[:-1])
    for error in both_refuse(cli, run):
        assert "does not fit the model of its config.yaml" in error
    change(run, part, lambda x: x[:0])
    both_refuse(cli, run)


def test_only_the_data_tell_that_a_class_is_missing(cli: Cli, run: Path) -> None:
    """certify reads no data, and the readout is no part of what it proves."""
    change(run, "readout", lambda x: x[:-1])
    assert cli("certify", run).code == 0
    assert "does not fit the model" in refused(cli("evaluate", run))
    change(run, "readout", lambda x: x[:0])
    both_refuse(cli, run)


def test_a_shape_that_no_memory_could_hold_is_refused(cli: Cli, run: Path) -> None:
    """[0, 2^40] has no element, so no file is too small for it."""
    state = load_file(run / WEIGHTS)
    state["core.encoder.weight"] = torch.zeros(0, 2**40)
    save_file(state, run / WEIGHTS)
    assert "does not fit the model" in both_refuse(cli, run)[0]


def test_missing_and_further_names_are_refused(cli: Cli, run: Path) -> None:
    intact = load_file(run / WEIGHTS)
    for name in intact:
        save_file({key: x for key, x in intact.items() if key != name}, run / WEIGHTS)
        assert "does not fit the model" in refused(cli("certify", run, "--json")), name
    save_file({**intact, "core.field.extra": torch.ones(1)}, run / WEIGHTS)
    assert "does not fit the model" in both_refuse(cli, run)[0]
    save_file({}, run / WEIGHTS)
    assert "does not fit the model" in both_refuse(cli, run)[0]


@pytest.mark.parametrize(
    "other", [{"units": 5}, {"modules": 3}, {"model": "symmetric"}, {"coupling": "none"}]
)
def test_a_configuration_of_another_run_is_refused(
    cli: Cli, run: Path, tmp_path: Path, other: dict
) -> None:
    store_run(tmp_path / "other", **other)
    (run / "config.yaml").write_bytes((tmp_path / "other" / "config.yaml").read_bytes())
    for error in both_refuse(cli, run):
        assert "does not fit the model" in error


@pytest.mark.parametrize(
    "content",
    [b"", b"epochs: [", b"\xff\xfe", b"- a\n- b", b"epoks: 3", b"model: nope", b"dt: .nan",
     b"units: 0", b"modules: -1", b"tau: 0", b"solver: nope", b"!!python/object/apply:os.getcwd []",
     b"coupling: random:99", b"units: 1000000\nmodules: 1000000"],
)  # fmt: skip
def test_a_damaged_configuration_is_refused(cli: Cli, run: Path, content: bytes) -> None:
    (run / "config.yaml").write_bytes(content)
    both_refuse(cli, run)


# --- weights that were changed with care ----------------------------------------------------------


def test_a_frozen_weight_that_was_scaled_is_refused(cli: Cli, tmp_path: Path) -> None:
    store_run(tmp_path / "run", model="sparse-combo", units=8)
    change(tmp_path / "run", "weight.original0", lambda x: 10 * x)
    for error in both_refuse(cli, tmp_path / "run"):
        assert "Theorem 1" in error


@pytest.mark.parametrize("scale", [-1e4, 50.0, 1e30])
def test_a_metric_that_does_not_fit_its_frozen_weight_is_refused(
    cli: Cli, tmp_path: Path, scale: float
) -> None:
    store_run(tmp_path / "run", model="sparse-combo", units=8, seed=1)
    change(tmp_path / "run", "weight.original1", lambda x: x + scale * torch.arange(len(x)))
    for error in both_refuse(cli, tmp_path / "run"):
        assert "Theorem 1" in error


def test_a_fixed_tau_agrees_with_the_configuration(cli: Cli, run: Path):
    """A larger one would be certified at a rate that no configuration tells; a trained one may move."""
    change(run, "tau", lambda x: 2 * x)
    for error in both_refuse(cli, run):
        assert "time constants [2.0, 2.0, 2.0]" in error
        assert "must agree" in error
    store_run(run, train_tau=True)
    change(run, "tau", lambda x: x + 0.1)
    assert "tau trained" in cli("certify", run).out


@pytest.mark.parametrize("model", ["svd-combo", "sparse-combo", "symmetric", "unconstrained"])
@pytest.mark.parametrize("tau", [-1.0, 0.0])
def test_time_constants_that_are_not_positive_are_refused(
    cli: Cli, tmp_path: Path, model: str, tau: float
) -> None:
    store_run(tmp_path / "run", model=model)
    change(tmp_path / "run", "tau", lambda x: torch.full_like(x, tau))
    for error in both_refuse(cli, tmp_path / "run"):
        assert "tau must be positive and finite" in error


def test_unequal_time_constants_are_refused_under_a_dense_metric(cli: Cli, tmp_path: Path) -> None:
    store_run(tmp_path / "run", model="symmetric")
    change(tmp_path / "run", "tau", lambda x: x + torch.arange(len(x)))
    assert "commutes with tau only if" in both_refuse(cli, tmp_path / "run")[0]


@pytest.mark.parametrize("model", ["unconstrained", "published-sparse-combo"])
def test_an_unconstrained_weight_that_was_scaled_is_not_certified(
    cli: Cli, tmp_path: Path, model: str
) -> None:
    store_run(tmp_path / "run", model=model)
    change(tmp_path / "run", "weight.original", lambda x: x + 30 * torch.eye(len(x)))
    done = cli("certify", tmp_path / "run", "--json")
    assert done.code in (1, 3)
    assert "module 0 is not shown to contract" in refused(done)


@pytest.mark.parametrize("scale", [3.0, 1e4, 1e30])
@pytest.mark.parametrize(
    "model", ["svd-combo", "absolute", "symmetric", "product", "triangular", "adadiag-tanh"]
)
def test_a_trained_set_cannot_be_left(cli: Cli, tmp_path: Path, model: str, scale: float) -> None:
    """Whatever the raw tensors are, the weight is in the set or the certificate says no."""
    store_run(tmp_path / "run", model=model)
    change(tmp_path / "run", "parametrizations.weight", lambda x: scale * x)
    done = cli("certify", tmp_path / "run", "--json")
    assert done.code in (0, 1, 3)
    found = strict_json(done.out)
    assert found["certified"] == (not found["reasons"])
    if found["certified"]:
        assert found["rate"] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_weights_of_another_type_are_judged_as_they_are(cli: Cli, run: Path, dtype: torch.dtype) -> None:
    state = load_file(run / WEIGHTS)
    (run / WEIGHTS).write_bytes(save({name: x.to(dtype) for name, x in state.items()}))
    done = cli("certify", run, "--json")
    if done.code == 0:
        assert strict_json(done.out)["certified"]
    else:
        refused(done)


# --- metrics that are none, in Python -------------------------------------------------------------


def assembled() -> tuple[Terms, Metric]:
    generator = torch.Generator().manual_seed(0)
    field = couple([Subnetwork(Symmetric("tanh"), 3, generator=generator) for _ in range(2)])
    field = field.double()
    return field.terms().detach_cpu(), field.metric().detach_cpu()


def with_factor(metric: Metric, factor: Factor) -> Metric:
    return Metric((factor, *metric.factors[1:]))


BROKEN = {
    "zero": torch.zeros(3, 3),
    "singular": torch.ones(3, 3),
    "nan": torch.full((3, 3), float("nan")),
    "infinite": torch.full((3, 3), float("inf")),
    "nearly singular": torch.diag(torch.tensor([1.0, 1.0, 1e-12])),
    "diagonal zero": torch.tensor([1.0, 0.0, 1.0]),
    "diagonal negative": torch.tensor([1.0, -1.0, 1.0]),
    "diagonal nan": torch.tensor([1.0, float("nan"), 1.0]),
    "another size": torch.eye(4),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_factor_of_no_metric_proves_nothing(kind: str) -> None:
    terms, metric = assembled()
    assert certify(terms, metric, search="none").certified
    theta = BROKEN[kind].double()
    found = certify(terms, with_factor(metric, Factor(theta, theta)), dt=0.01, search="none")
    assert not found.certified
    assert found.step is not None
    assert not found.step.certified
    assert len(found.reasons) == 1
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_wrong_inverse_is_not_believed() -> None:
    """The proof inverts Theta itself; and a coupling made with the wrong inverse costs what it costs."""
    terms, metric = assembled()
    wrong = [Factor(f.theta, 3 * f.theta_inv + 1) for f in metric.factors]
    assert (
        certify(terms, Metric(tuple(wrong)), search="none").rate
        == certify(terms, metric, search="none").rate
    )

    field = couple([Subnetwork(Symmetric("tanh"), 3) for _ in range(2)], init_scale=20.0).double()
    terms, metric = field.terms().detach_cpu(), field.metric().detach_cpu()
    assert certify(terms, metric, search="none").certified
    wrong_first = [Metric((Factor(f.theta, -f.theta_inv),)) for f in metric.factors[:1]]
    assert field.coupling is not None
    L = field.coupling.matrix([*wrong_first, Metric(metric.factors[1:])])
    assert L is not None
    found = certify(replace(terms, L=L.detach() + terms.L), metric, search="none")
    exact = certify(terms, metric, search="none").coupling.residual
    assert found.coupling.residual > 1 > exact
    assert not found.certified


def test_a_metric_of_another_net_proves_no_more_than_is_true() -> None:
    terms, metric = assembled()
    other = [Subnetwork(SingularValueBounded("tanh"), 3).double().metric() for _ in range(2)]
    theta = torch.tensor([[1.0, 0.0, 0.0], [40.0, 1.0, 0.0], [0.0, 40.0, 1.0]]).double()
    skewed = with_factor(metric, Factor(theta, torch.linalg.inv(theta)))
    best = certify(terms, metric, search="none").rate
    assert certify(terms, Metric.join(other), search="none").rate <= best + 1e-6
    assert not certify(terms, skewed, search="none").certified


def test_a_field_that_lies_about_its_metric_is_found_out() -> None:
    terms, metric = assembled()

    class Liar:
        def terms(self) -> Terms:
            return replace(terms, blocks=tuple(3 * torch.eye(3).double() for _ in terms.blocks))

        def metric(self) -> Metric:
            return metric

    assert not certify(Liar(), dt=0.01).certified


def test_a_damaged_file_leaves_everything_as_it_was(cli: Cli, run: Path) -> None:
    write(run / WEIGHTS, b"noise")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    both_refuse(cli, run)
    refused(cli("certify", run, "--plot", run / "f.png"))
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
