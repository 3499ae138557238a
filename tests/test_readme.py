"""The README: its Python runs, and it says what every dependency is for."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
