"""The import layers: a file imports only lower layers, or its own package; nothing imports the CLI."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ctrnn_assembly

ROOT = Path(ctrnn_assembly.__file__).parent
LAYERS = {
    "errors": 0,
    "config": 1,
    "activations": 1,
    "data": 1,
    "linalg": 1,
    "topology": 1,
    "metrics": 2,
    "terms": 2,
    "inputs": 2,
    "certificates": 3,
    "contracting": 3,
    "coupling": 4,
    "hierarchy": 5,
    "subnetwork": 5,
    "assembly": 6,
    "baselines": 6,
    "solvers": 6,
    "benchmark": 7,
    "gated": 7,
    "measure": 7,
    "recurrent": 7,
    "architectures": 8,
    "diagnostics": 8,
    "theorem6": 8,
    "runs": 9,
    "batches": 10,
    "callbacks": 10,
    "projection": 10,
    "training": 11,
}
# These prove or solve from plain tensors: they must not see how the weights were made.
BLIND = {
    "certificates": {"contracting"},
    "solvers": {"contracting", "subnetwork", "assembly", "coupling", "hierarchy"},
}


def imported(file: Path) -> set[str]:
    """The parts of this package that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    assert not any(name.startswith("ctrnn_cli") for name in names), file
    return {name.split(".")[1] for name in names if name.startswith("ctrnn_assembly.")}


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_only_lower_layers(file):
    if file == ROOT / "__init__.py":
        return
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported(file) - {part}:
        assert LAYERS[other] < LAYERS[part], f"{part} imports {other}"
        assert other not in BLIND.get(part, set()), f"{part} imports {other}"


def test_the_package_imports_no_heavy_library():
    heavy = "lightning", "torchvision", "matplotlib", "triton", "aeon", "PIL"
    code = f"import sys, ctrnn_assembly; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
