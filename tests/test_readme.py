"""The README and docstrings: their Python runs, and the README says what every dependency is for."""

import doctest
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sorted((ROOT / "src").rglob("*.py"))
WITH_EXAMPLES = [f for f in SOURCES if ">>>" in f.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_of_docstrings_run(file):
    torch.set_default_dtype(torch.float32)  # as users run them; the fixture of all tests sets it back
    module = import_module(".".join(file.relative_to(ROOT / "src").with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_the_python_of_the_readme_runs(capsys):
    together: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), together)
    assert "certified: contracts" in capsys.readouterr().out  # the first network is certified


def test_every_dependency_has_a_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README[README.index("## What it stands on") : README.index("## Licence")]
    for requirement in project["dependencies"]:
        assert re.split(r"[<>=]", requirement)[0] in table
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in table


def test_every_file_that_it_names_exists():
    named = re.findall(r"\]\(([\w/.-]+)\)", README)
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
