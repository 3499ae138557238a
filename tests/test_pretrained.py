"""A network to pass on: a folder with weights, settings, certificate and card; the hash is checked."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from cli_tools import Cli, single  # noqa: F401
from ctrnn_assembly import from_pretrained
from ctrnn_assembly.data import Task
from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import Run, read_weights, save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of own data."""
    torch.set_default_dtype(torch.float32)
    g = np.random.default_rng(0)
    y = np.arange(40) % 2
    task = Task.from_arrays(g.normal(size=(40, 6, 2)) + y[:, None, None], y)
    config = make_config(
        {"model": "adadiag-tanh", "modules": 2, "units": 3, "epochs": 1, "device": "cpu"}
    )
    out = tmp_path_factory.mktemp("runs") / "run"
    fit(config, out, task=task, report=lambda line: None)
    return out


def test_what_is_saved_is_loaded_and_proven_of_the_same_bytes(run, tmp_path, capsys):
    cli, folder, first = Cli(capsys), tmp_path / "net", Run.open(run)
    first.save_pretrained(folder)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    then = from_pretrained(moved)
    u = torch.randn(3, 6, 2)
    assert torch.equal(then.model(u), first.model(u))
    assert then.weights.sha256 == first.weights.sha256 == first.summary["weights_sha256"]
    stored = json.loads((tmp_path / "elsewhere" / "certificate.json").read_text())
    assert stored["weights_sha256"] == then.weights.sha256
    assert stored["rate"] == then.certificate.rate == first.certificate.rate
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ctrnn-assembly\n---\n# adadiag-tanh")
    for said in (
        "certified: contracts",
        f"accuracy {first.summary['test_accuracy']:.4f}",
        then.weights.sha256,
    ):
        assert said in card
    assert str(run) not in "".join(f.read_text() for f in (tmp_path / "elsewhere").glob("*[!s]"))
    assert cli("certify", moved).code == 0
    np.savez(tmp_path / "new.npz", X=u.numpy())
    assert cli("predict", moved, "--data", tmp_path / "new.npz", "--out", tmp_path / "p.csv").code == 0


def test_other_weights_than_the_certified_are_refused(run, tmp_path):
    folder = tmp_path / "net"
    Run.open(run).save_pretrained(folder)
    other = Run.open(run).model
    with torch.no_grad():
        next(other.parameters()).mul_(1 + 1e-6)
    save_weights(folder / "model.safetensors", other)
    with pytest.raises(DataError, match="is of other weights"):
        _ = from_pretrained(folder).model
    (folder / "certificate.json").write_text("{")
    with pytest.raises(DataError, match="Use intact copies"):
        _ = from_pretrained(folder).model
    with pytest.raises(ConfigError, match="must be a new folder"):
        Run.open(run).save_pretrained(run)


def test_a_finished_run_with_other_weights_is_refused_by_every_command(run, tmp_path, capsys):
    cli, changed = Cli(capsys), tmp_path / "changed"
    shutil.copytree(run, changed)
    model = Run.open(changed).build()
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-6)
    save_weights(changed / "model.safetensors", model)
    np.savez(tmp_path / "new.npz", X=np.zeros((3, 6, 2)))
    for command in (
        ("certify", changed),
        ("predict", changed, "--data", tmp_path / "new.npz", "--out", tmp_path / "p.csv"),
        ("export", changed, "--out", tmp_path / "net.pt2"),
        ("report", changed, "--out", tmp_path / "page.html"),
    ):
        said = cli.refuses(*command)
        assert "summary.json is of other weights" in said
        for digest in (Run.open(run).weights.sha256, read_weights(changed / "model.safetensors").sha256):
            assert digest[:16] in said
    assert Run.open(changed, initial=True).build(data=False).core.state_size == 6
    (changed / "summary.json").unlink()  # a run that is not finished has no hash yet
    assert Run.open(changed).weights.kind == "trained"


def test_a_model_that_was_changed_is_saved_with_its_own_certificate_and_no_measure(run, tmp_path):
    changed = Run.open(run)
    assert changed.certificate.rate is not None
    with torch.no_grad():
        for part in changed.model.core.field.leaves():
            for parameter in part.parameters():
                parameter.mul_(0.5)
    changed.save_pretrained(tmp_path / "net")
    then = from_pretrained(tmp_path / "net")
    stored = json.loads((tmp_path / "net" / "certificate.json").read_text())
    assert stored["rate"] == then.certificate.rate != Run.open(run).certificate.rate
    assert "test: not known" in (tmp_path / "net" / "README.md").read_text()


def test_weights_before_training_are_saved_too(tmp_path):
    Run.open("digits", modules=2, units=4).save_pretrained(tmp_path / "net")
    assert from_pretrained(tmp_path / "net").model(torch.zeros(1, 5, 1)).shape == (1, 10)


def test_the_hub_gets_and_gives_what_a_folder_has(run, tmp_path, monkeypatch):
    """Of huggingface_hub only what reaches the network is replaced, by a folder."""
    import huggingface_hub

    there, asked = tmp_path / "hub", []

    def create_repo(self, repo_id, **how):
        asked.append((repo_id, how))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path):
        shutil.copytree(folder_path, there)

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision))
        shutil.copytree(there, tmp_path / revision, ignore=lambda _, f: {*f} - {*allow_patterns})
        return str(tmp_path / revision)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    first = Run.open(run)
    assert first.push_to_hub("me/arm", private=True) == "https://huggingface.co/me/arm"
    files = {"README.md", "certificate.json", "config.yaml", "data.json", "model.safetensors"}
    assert {file.name for file in there.iterdir()} == files
    then = from_pretrained("me/arm", revision="v1")
    assert asked == [("me/arm", {"private": True, "exist_ok": True}), ("me/arm", "v1")]
    u = torch.randn(3, 6, 2)
    assert torch.equal(then.model(u), first.model(u))
    assert then.certificate.rate == first.certificate.rate

    weights = first.build()
    with torch.no_grad():
        next(weights.parameters()).mul_(1 + 1e-6)
    save_weights(there / "model.safetensors", weights)
    with pytest.raises(DataError, match="is of other weights"):
        _ = from_pretrained("me/arm", revision="v2").model
    (there / "certificate.json").unlink()
    with pytest.raises(DataError, match=r"none is on the Hub: .*certificate.json"):
        from_pretrained("me/arm", revision="v3")


def test_without_the_hub_a_name_that_is_no_folder_is_one_sentence(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"there is no folder me/arm, and .*ctrnn-assembly\[hub\]"):
        from_pretrained("me/arm")
    with pytest.raises(DataError, match=r"me/arm cannot be put on the Hub: .*ctrnn-assembly\[hub\]"):
        Run.open(run).push_to_hub("me/arm")
    assert from_pretrained("digits").config.model == "svd-combo"
