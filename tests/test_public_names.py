"""What `import ctrnn_assembly` offers: every name, imported when it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ctrnn_assembly


def test_type_checkers_and_the_interpreter_see_the_same_names():
    tree = ast.parse(Path(ctrnn_assembly.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        (node.module.removeprefix("ctrnn_assembly."), alias.asname)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert typed == {(module, name) for module, names in ctrnn_assembly.PUBLIC.items() for name in names}


@pytest.mark.parametrize("name", ctrnn_assembly.HOMES)
def test_every_public_name_is_there(name):
    assert getattr(ctrnn_assembly, name) is not None
    assert name in dir(ctrnn_assembly)


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
