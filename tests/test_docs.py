"""The pages of docs/: their Python runs, their links lead somewhere, and what they name exists."""

import re
from pathlib import Path

import click
import pytest
import torch

from ctrnn_cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "generated" not in page.parts]
TEXTS = {str(page.relative_to(ROOT / "docs")): page.read_text(encoding="utf-8") for page in PAGES}
WITH_PYTHON = [name for name, text in TEXTS.items() if "```python" in text]


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_the_python_of_a_page_runs(name):
    torch.set_default_dtype(torch.float32)  # as users run them; the fixture of all tests sets it back
    together: dict = {}
    for block in re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL):
        exec(compile(block, name, "exec"), together)


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_page_names_exists(name):
    text = TEXTS[name]
    here = (ROOT / "docs" / name).parent
    linked = re.findall(r"\]\(((?!http)[\w./-]+)", text)
    assert not [link for link in linked if not (here / link).exists() and "generated" not in link]
    places = (ROOT, ROOT / "src/ctrnn_assembly", here)
    files = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text)) - {"net.py"}
    assert not {file for file in files if not any((place / file).exists() for place in places)}
    assert set(re.findall(r"`ctrnn ([a-z][a-z-]*)", text)) <= COMMANDS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_the_options_that_a_page_names_are_those_of_the_command(name):
    text = TEXTS[name].replace("\\\n", " ")
    for command, rest in re.findall(r"(?:^|`)ctrnn ([a-z][a-z-]*)([^`#\n]*)", text, re.MULTILINE):
        context = click.Context(main)
        known = main.get_command(context, command)
        options = {flag for p in known.params for flag in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= options
