"""`ctrnn plot`: what it draws, in which formats, and what it refuses."""

import re
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from cli_tools import Cli
from ctrnn_assembly import AdaDiagTanh, Subnetwork
from ctrnn_assembly.diagnostics.fixed_points import find_fixed_points
from ctrnn_assembly.diagnostics.lyapunov import lyapunov_exponents
from ctrnn_assembly.figures import style
from ctrnn_assembly.figures.curves import short_names
from ctrnn_assembly.figures.diagnostics import finish_bars, fixed_points_figure, lyapunov_figure
from ctrnn_assembly.figures.style import bound_of, pooled
from ctrnn_assembly.reproduction.experiments import all_published, published_for, versionless
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from ctrnn_assembly.training.run import Run
from ctrnn_cli.files import KINDS

SETTINGS = {
    "modules": 3, "units": 4, "coupling": "chain", "epochs": 2, "batch_size": 64, "limit_train": 200,
    "limit_test": 100, "device": "cpu", "threads": 1, "dt": 0.03, "solver": "euler",
}  # fmt: skip
STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def train(run: Path, **changes: object) -> Path:
    """A tiny finished run."""
    fit(make_config(SETTINGS, changes), run, report=lambda line: None)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "lstm", model="lstm")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def rewrite(run: Path, **changes: object) -> Path:
    """Change settings in a run's config.yaml."""
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    return run


def as_if_whole(run: Path, tmp_path: Path, task: str) -> Path:
    """A copy of a run that says it was made on the whole of another task."""
    copy = tmp_path / f"whole-{task}"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    return rewrite(copy, task=task, limit_train=None, limit_test=None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_in_three_formats(cli: Cli, run: Path, tmp_path: Path, kind: str) -> None:
    for suffix, start in STARTS.items():
        out = tmp_path / f"new folder/{kind}{suffix}"
        done = cli("plot", run, "--kind", kind, "--out", out)
        assert done.code == 0, done.err
        assert done.err == ""  # matplotlib has nothing to complain of
        assert str(out) in done.out
        content = out.read_bytes()
        assert content.startswith(start)
        assert len(content) > 8000


@pytest.mark.parametrize("kind", ["curves", "certificate"])
def test_several_runs_are_named_in_one_picture(
    cli: Cli, run: Path, lstm: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "both.svg"
    assert cli("plot", run, lstm, "--kind", kind, "--out", out).code == 0
    drawn = out.read_text()
    assert ">first" in drawn
    assert ">lstm" in drawn


def test_a_plot_is_the_same_file_again(cli: Cli, run: Path, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        assert cli("plot", run, "--kind", "weights", "--out", tmp_path / name).code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_baseline_has_curves_only(cli: Cli, lstm: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    assert cli("plot", lstm, "--kind", "curves", "--out", out).code == 0
    assert "got LSTM, a baseline" in cli.refuses("plot", lstm, "--kind", "weights", "--out", out)


def test_an_unfinished_run_is_drawn_from_its_checkpoint(cli: Cli, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in ("summary.json", "model.safetensors"):
        (copy / name).unlink()
    out = tmp_path / "x.svg"
    assert cli("plot", copy, "--kind", "weights", "--out", out).code == 0
    assert "last epoch so far" in out.read_text()
    assert cli("plot", copy, "--kind", "weights", "--initial", "--out", out).code == 0
    assert "before training" in out.read_text()


def test_names_of_folders_are_no_formulas(cli: Cli, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "$x_{1}$ <b>"
    shutil.copytree(run, copy)
    out = tmp_path / "x.svg"
    assert cli("plot", copy, "--kind", "curves", "--out", out).code == 0
    assert "$x_{1}$ &lt;b&gt;" in out.read_text()


@pytest.mark.parametrize("task", ["smnist", "psmnist", "scifar10"])
def test_every_task_of_the_papers_has_an_accuracy_with_its_source(task: str) -> None:
    rows = [row for row in all_published().values() if row.task == task]
    assert any(not row.models for row in rows)
    for row in rows:
        assert 0 < row.value < 100
        assert re.search(r"et al\. 20\d\d, \w+", row.source)
        assert row.note
        assert row.network


def test_the_published_file_is_in_the_package() -> None:
    assert (resources.files("ctrnn_assembly") / "published.yaml").is_file()


def test_versions_of_a_task_are_stripped_but_other_tasks_are_not_matched() -> None:
    names = ["psmnist", "psmnist-12008", "psmnist-7-raw", "scifar10-rgb", "scifar10-planar", "digits"]
    plain = ["psmnist", "psmnist", "psmnist", "scifar10", "scifar10-planar", "digits"]
    assert [versionless(name) for name in names] == plain


def test_published_accuracies_are_drawn_for_the_whole_task_only(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    whole = as_if_whole(run, tmp_path, "psmnist-12008")
    out = tmp_path / "x.svg"
    assert cli("plot", whole, "--kind", "curves", "--out", out).code == 0
    assert "Sparse Combo Net: 96.94 %" in out.read_text()
    assert "Kozachkov et al. 2022, arXiv 2106.08928" in out.read_text()
    other = as_if_whole(run, tmp_path, "smnist")
    assert cli("plot", whole, other, "--kind", "curves", "--out", out).code == 0
    assert "Kozachkov" not in out.read_text()
    for change in ({"resize": 14}, {"limit_train": 10}, {"limit_test": 10}):
        other = Run.open(rewrite(as_if_whole(run, tmp_path / str(change), "psmnist"), **change))
        assert published_for([other]) == []


def test_a_models_own_accuracy_is_drawn_beside_that_model_only(run: Path, tmp_path: Path) -> None:
    whole = as_if_whole(run, tmp_path, "psmnist")
    for model, expected in (("svd-combo", [96.94]), ("adadiag-clip", [96.94, 89.63])):
        again = Run.open(rewrite(whole, model=model))
        assert [row.value for row in published_for([again])] == expected


def test_a_large_sparse_matrix_keeps_its_entries_when_it_is_shrunk() -> None:
    A = np.zeros((1000, 1000))
    A[3, 501], A[999, 0], A[10, 11] = 2.0, -3.0, 0.5
    small = pooled(A, 128)
    assert max(small.shape) <= 128
    assert sorted(small[small != 0]) == [-3.0, 0.5, 2.0]
    np.testing.assert_array_equal(pooled(A[:100, :100], 128), A[:100, :100])


def test_outliers_do_not_leave_the_rest_white() -> None:
    A = np.concatenate([np.linspace(-1, 1, 1000), [1e6]])
    assert 0.9 < bound_of(A) < 1.1
    assert bound_of(np.zeros(3)) == 1.0


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    assert short_names([tmp_path / "a", tmp_path / "a"]) == ["a", "a"]


def test_what_cannot_be_drawn_is_refused_in_one_sentence(cli: Cli, run: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "x.png", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").touch()
    for kind in KINDS:
        assert "holds no run" in cli.refuses("plot", empty, "--kind", kind, "--out", out)
    none = tmp_path / "none"
    assert "here is no run folder" in cli.refuses("plot", none, "--kind", "weights", "--out", out)
    drawn = ("plot", run, "--kind")
    assert "one of curves, certificate" in cli.refuses(*drawn, "nope", "--out", out)
    assert "must end in .png, .svg, .pdf" in cli.refuses(*drawn, "weights", "--out", tmp_path / "x.gif")
    assert "not a writable folder" in cli.refuses(
        *drawn, "weights", "--out", tmp_path / "file" / "x.png"
    )
    assert "draws one run; got 2" in cli.refuses("plot", run, run, "--kind", "weights", "--out", out)
    assert "Did you mean 'weights'?" in cli.refuses(*drawn, "weigths", "--out", out)
    assert "Drop --initial" in cli.refuses(*drawn, "curves", "--initial", "--out", out)


def test_a_damaged_table_is_named(cli: Cli, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    out = tmp_path / "x.png"
    text = (copy / "metrics.csv").read_text()
    (copy / "metrics.csv").write_text(re.sub(r"\n0,[^,]*", "\n0,many", text))
    error = cli.refuses("plot", copy, "--kind", "curves", "--out", out)
    assert "must hold numbers in 'train_loss'" in error
    (copy / "metrics.csv").unlink()
    for kind in ("curves", "certificate"):
        error = cli.refuses("plot", copy, "--kind", kind, "--out", out)
        assert "no metrics.csv with an epoch" in error
    assert not out.exists()


def test_help_names_every_kind(cli: Cli) -> None:
    text = cli("plot", "--help").out
    assert all(kind in text for kind in KINDS)
    assert {"plot", "report"} <= set(cli("--help").out.split())


def test_lines_of_bounds_are_not_labelled_beyond_them() -> None:
    """A rate of .12396 is no ".124", nor is an exponent of at most -.12396 one of at most -.124."""
    net, rate = Subnetwork(AdaDiagTanh(), 2), 0.12396
    exponents = lyapunov_exponents(net, torch.zeros(1, 20, 2), k=2, steps=20, dt=0.1)
    figures = [
        fixed_points_figure([find_fixed_points(net, starts=2)], rate=rate, title="x"),
        lyapunov_figure(exponents, bound=-rate, title="x"),
    ]
    axes = [one for figure in figures for one in figure.axes]
    labels = {label for one in axes for label in one.get_legend_handles_labels()[1]}
    assert {"-rate = -0.123, certified", "certified in the long run: -0.123"} <= labels


@pytest.mark.parametrize("failing", [False, True])
def test_the_legend_of_bars_stays_off_the_tick_labels(failing: bool) -> None:
    def draw() -> Figure:
        figure, (axes, _) = style.new_figure(3.3, "deep", (1, 2))
        axes.bar(range(4), [9.0] * 4, label="layer alone")
        if failing:
            axes.bar(range(4), [1.0] * 4, label="layer that fails")
        finish_bars(axes, 4, "layer", "samples", 10.0, "the whole, proven: more than 10^12")
        return figure

    figure = style.printed(draw)()
    figure.canvas.draw()
    axes = figure.axes[0]
    box, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    assert box.x0 <= legend.x0 < legend.x1 <= box.x1
    assert legend.y0 > axes.transData.transform((0.0, 10.0))[1]
