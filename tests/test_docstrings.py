"""Docstrings: every public name has an example, and all examples run."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
import torch

import ctrnn_assembly
from ctrnn_assembly import HOMES

SOURCES = Path(ctrnn_assembly.__file__).parent
TEXTS = {file: file.read_text(encoding="utf-8") for file in sorted(SOURCES.rglob("*.py"))}
WITH_EXAMPLES = [file for file, text in TEXTS.items() if ">>> " in text]
# What the page of public names says that examples begin with.
BEFORE = "import torch\nfrom ctrnn_assembly import *"


@pytest.mark.parametrize("name", HOMES)
def test_every_public_name_has_an_example(name):
    found = getattr(ctrnn_assembly, name)
    described = found if callable(found) else import_module(HOMES[name])  # a table has no docstring
    examples = doctest.DocTestParser().get_examples(described.__doc__)
    assert any(name in one.source + one.want for one in examples)


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_of_docstrings_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # as users run them; the fixture of all tests sets it back
    torch.set_printoptions(precision=4)
    place = file.relative_to(SOURCES.parent).with_suffix("")
    module = import_module(".".join(part for part in place.parts if part != "__init__"))
    texts = {"the module": module.__doc__}
    texts |= {name: one.__doc__ for name, one in vars(module).items() if defined_in(module, one)}
    names = dict(vars(module))
    exec(BEFORE, names)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name, text in texts.items():
        runner.run(doctest.DocTestParser().get_doctest(text or "", names.copy(), name, str(file), 0))
    assert not runner.failures
    assert runner.tries == TEXTS[file].count(">>> ")  # and none was missed


def defined_in(module, found):
    """Whether it is a function or class of the module; doctest's finder misses decorated ones."""
    return callable(found) and getattr(found, "__module__", None) == module.__name__
