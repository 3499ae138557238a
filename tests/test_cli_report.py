"""`ctrnn report`: one page that needs nothing but itself, and says what certify says."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from cli_tools import Cli
from ctrnn_assembly.training.config import make_config
from ctrnn_assembly.training.fit import fit
from ctrnn_cli.main import main

SETTINGS = {
    "modules": 3, "units": 4, "epochs": 2, "batch_size": 64, "limit_train": 200, "limit_test": 100,
    "device": "cpu", "threads": 1,
}  # fmt: skip
CHAPTERS = [
    "Summary", "Certificate", "Training curves", "Certificate over epochs", "Weights",
    "Configuration", "Versions and hardware",
]  # fmt: skip
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, headings and text; a tag left open is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data

    def values(self, *names: str) -> list[str]:
        """The values of attributes."""
        return [value or "" for _, found in self.tags for key, value in found.items() if key in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs") / "run"
    fit(make_config(SETTINGS, {"solver": "euler"}), made, report=lambda line: None)
    return made


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of that run."""
    out = tmp_path_factory.mktemp("pages") / "r.html"
    main(["report", str(run), "--out", str(out)], standalone_mode=False)
    return out.read_text(encoding="utf-8")


def report(cli: Cli, run: Path, out: Path) -> str:
    """The page of a run."""
    done = cli("report", run, "--out", out)
    assert done.code == 0, done.err
    assert done.err == ""
    assert str(out) in done.out
    return out.read_text(encoding="utf-8")


def copied(run: Path, tmp_path: Path, *without: str) -> Path:
    """A copy of a run, with some files missing."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in without:
        (copy / name).unlink()
    return copy


def test_the_page_has_every_chapter_and_picture(page: str) -> None:
    seen = Page(page)
    assert seen.headings == CHAPTERS
    assert sum(tag == "img" for tag, _ in seen.tags) == 3
    for said in ("reads", "euler", "torch", "hardware"):
        assert said in seen.text


def test_the_page_needs_nothing_but_itself(page: str, run: Path) -> None:
    seen = Page(page)
    assert not re.search(r"https?:|//[a-z]", page.replace(str(run), ""))
    assert "@import" not in page
    assert "@font-face" not in page
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    for value in seen.values("src", "href", "xlink:href"):
        assert value.startswith(("#", "data:image/svg+xml;base64,"))
    assert "default-src 'none'" in page


def test_every_picture_is_a_whole_document_that_loads_nothing(page: str) -> None:
    seen = Page(page)
    ids = seen.values("id")
    assert len(ids) == len(set(ids))
    for value in seen.values("src"):
        picture = base64.b64decode(value.removeprefix("data:image/svg+xml;base64,")).decode()
        ElementTree.fromstring(picture)
        links = re.findall(r'(?:href|src)="([^"]*)"', picture)
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_the_page_says_what_certify_says(cli: Cli, run: Path, tmp_path: Path) -> None:
    text = Page(report(cli, run, tmp_path / "r.html")).text
    proven = json.loads(cli("certify", run, "--json").out)
    for number in (proven["rate"], proven["metric"]["condition_number"], proven["coupling"]["norm"],
                   proven["discrete"]["contraction_factor"], proven["weights"]["sha256"]):  # fmt: skip
        assert json.dumps(number) in text
    for module in proven["modules"]:
        assert json.dumps(module["rate"]) in text
        assert module["theorem"] in text
    verdict = cli("certify", run).out.splitlines()[0]
    assert text.count(verdict) == 3  # table, summary, certificate


def test_text_from_the_run_is_escaped(cli: Cli, run: Path, tmp_path: Path) -> None:
    bad = '</title><script>alert("1")</script>&amp;<img src=x onerror=alert(1)>'
    copy = copied(run, tmp_path)
    config, summary = copy / "config.yaml", copy / "summary.json"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "task": bad}))
    versions = {"<script>": '"><script>'}
    summary.write_text(
        json.dumps({**json.loads(summary.read_text()), "task": bad, "versions": versions})
    )
    text = report(cli, copy, tmp_path / "r.html")
    page = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(value.startswith("data:") for value in page.values("src"))
    assert bad in page.text
    assert not page.values("onerror")


def test_an_unfinished_run_says_so(cli: Cli, run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path, "summary.json", "model.safetensors")
    text = Page(report(cli, copy, tmp_path / "r.html")).text
    assert "not finished: 2 of 2 epochs" in text
    assert "last.ckpt" in text
    assert "test accuracy" not in text


def test_a_run_killed_before_its_first_epoch_ended_shows_its_start(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    copy = copied(run, tmp_path, "summary.json", "model.safetensors", "metrics.csv")
    shutil.rmtree(copy / "checkpoints")
    text = Page(report(cli, copy, tmp_path / "r.html")).text
    assert "not finished: 0 of 2 epochs" in text
    assert "initial, before training" in text
    assert text.count("No epoch has ended yet.") == 2


@pytest.mark.parametrize(
    ("model", "pictures"),
    [("lstm", 1), ("unconstrained", 3), ("symmetric", 3), ("adadiag-gated-constant", 3)],
)
def test_other_models_have_a_page(cli: Cli, tmp_path: Path, model: str, pictures: int) -> None:
    changes = {"model": model, "epochs": 1, "solver": "euler", "dt": 0.03}
    fit(make_config(SETTINGS, changes), tmp_path / "run", report=lambda line: None)
    page = Page(report(cli, tmp_path / "run", tmp_path / "r.html"))
    assert sum(tag == "img" for tag, _ in page.tags) == pictures
    if model == "lstm":
        assert page.headings == [name for name in CHAPTERS if name not in CHAPTERS[3:5]]
        assert "is a baseline: no certificate is defined" in page.text


def test_what_cannot_be_reported_is_refused_in_one_sentence(cli: Cli, run: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "r.html", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").touch()
    assert "holds no run" in cli.refuses("report", empty, "--out", out)
    assert "here is no run folder" in cli.refuses("report", tmp_path / "none", "--out", out)
    assert "must end in .html" in cli.refuses("report", run, "--out", tmp_path / "r.pdf")
    below = tmp_path / "file" / "r.html"
    assert "not a writable folder" in cli.refuses("report", run, "--out", below)
    (tmp_path / "folder.html").mkdir()
    assert "is a folder" in cli.refuses("report", run, "--out", tmp_path / "folder.html")
    copy = copied(run, tmp_path)
    for damaged in ("[1]", "{"):
        (copy / "summary.json").write_text(damaged)
        assert "or damaged" in cli.refuses("report", copy, "--out", out)
    assert not out.exists()


def test_what_a_command_writes_has_its_place_in_the_run_folder(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctrnn_assembly.export.exported", lambda *_: (b"of ONNX", 0.0))  # seconds
    own = Path(shutil.copytree(run, tmp_path / "own"))
    for command in (["plot", own, "--kind", "curves"], ["report", own], ["export", own]):
        assert cli(*command).code == 0
    assert all((own / name).stat().st_size for name in ("curves.png", "report.html", "model.onnx"))
    said = cli.refuses("plot", "digits", "--kind", "weights")
    assert "digits is no run folder that weights.png could be written into. Use --out FILE." in said
