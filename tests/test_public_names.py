"""What `import ctrnn_assembly` offers: every name, imported when it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import ctrnn_assembly


def test_what_type_checkers_read_is_what_the_interpreter_finds():
    """Both read one file, `__init__.pyi`, whose names are exported by their alias only."""
    stub = Path(ctrnn_assembly.__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
    lines = [f"from {home} import {name} as {name}" for name, home in ctrnn_assembly.HOMES.items()]
    assert [line for line in stub.splitlines() if line.startswith("from")] == lines
    assert {"CTRNN", "certify", "solve"} <= ctrnn_assembly.HOMES.keys()


@pytest.mark.parametrize("name", ctrnn_assembly.HOMES)
def test_every_public_name_is_there(name):
    assert getattr(ctrnn_assembly, name) is not None
    assert name in dir(ctrnn_assembly)


def test_a_star_import_has_every_public_name():
    found: dict[str, object] = {}
    exec("from ctrnn_assembly import *", found)
    assert ctrnn_assembly.HOMES.keys() <= found.keys()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'certfy'"):
        ctrnn_assembly.certfy  # noqa: B018


def test_a_configuration_is_read_without_torch():
    code = (
        "import sys; from ctrnn_assembly.training.config import make_config; make_config({}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
