"""The import layers: a file imports only lower layers or its own; heavy libraries have one place."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ctrnn_assembly

LIBRARY = Path(ctrnn_assembly.__file__).parent
CHECKOUT = Path(__file__).resolve().parents[1]
# The library is the installed one; the command line and the experiments are read in the checkout.
FILES = {
    **{f"{f.relative_to(LIBRARY)}": f for f in sorted(LIBRARY.rglob("*.py"))},
    **{
        f"{f.relative_to(CHECKOUT)}": f
        for d in ("cli", "experiments")
        for f in (CHECKOUT / d).rglob("*.py")
    },
}
LAYERS = {
    "errors": 0,
    "activations": 1,
    "linalg": 1,
    "settings": 1,
    "topology": 1,
    "transforms": 0,
    "calls": 3,
    "fields": 3,
    "recurrent": 4,
    "inputs": 2,
    "metrics": 2,
    "terms": 2,
    "schemes": 3,
    "certificates": 5,
    "contracting": 4,
    "data": 4,
    "solvers": 4,
    "coupling": 5,
    "subnetwork": 5,
    "pairs": 6,
    "block": 7,
    "stack": 8,
    "assembly": 6,
    "gates": 7,
    "layers": 8,
    "baselines": 9,
    "diagnostics": 10,
    "export": 10,
    "robustness": 10,
    "models": 10,
    "training": 11,
    "witness": 11,
    "testing": 12,
    "benchmark": 12,
    "reproduction": 12,
    "sklearn": 12,
    "figures": 13,
    "cli": 14,
    "experiments": 15,
}
# Each of these is imported in one part only.
PLACES = {
    "lightning": {"training"},
    "lightning_fabric": {"training"},
    "matplotlib": {"figures"},
    "click": {"cli"},
    "rich_click": {"cli"},
    "triton": {"solvers"},
}


def part_of(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


def imports(file: Path) -> list[str]:
    """The full names of the modules that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "ctrnn_assembly"
            names += [f"{node.module}.{a.name}" for a in node.names] if inside else [node.module]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def parts_imported(file: Path) -> set[str]:
    """The parts of this project that a file imports; what the package itself offers counts as none."""
    found = set()
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "ctrnn_assembly" and rest and rest[0] in LAYERS:
            found.add(rest[0])
        elif top == "ctrnn_assembly" and rest and (LIBRARY / rest[0]).is_dir():
            raise AssertionError(f"{file} imports {name}, which has no layer")
        elif top in ("ctrnn_cli", "ctrnn_experiments"):
            found.add("cli" if top == "ctrnn_cli" else "experiments")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_lower_layers(name):
    part = part_of(name)
    if part == "__init__":
        return
    wrong = {
        f"{part} imports {other}"
        for other in parts_imported(FILES[name]) - {part}
        if LAYERS[other] >= LAYERS[part]
    }
    assert not wrong


def test_diagnostics_see_callables_only():
    """They import the ground and solvers; a net is what it does, so no layer is known to them."""
    seen = {"errors", "activations", "linalg", "inputs", "metrics", "terms", "schemes", "solvers"}
    for name, file in FILES.items():
        if part_of(name) == "diagnostics":
            assert parts_imported(file) - {"diagnostics"} <= seen, name


@pytest.mark.parametrize("name", FILES)
def test_heavy_libraries_are_imported_in_their_place_only(name):
    part = part_of(name)
    found = {library.split(".")[0] for library in imports(FILES[name])} & PLACES.keys()
    wrong = {f"{part} imports {library}" for library in found if part not in PLACES[library]}
    assert not wrong


def test_the_library_alone_needs_neither_training_nor_drawing_nor_the_command_line():
    code = (
        "import sys, ctrnn_assembly; heavy = ('lightning', 'lightning_fabric', 'torchvision', 'click', "
        "'matplotlib', 'triton', 'aeon', 'PIL'); print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_layers_need_nothing_of_the_cuda_solvers():
    code = "import sys, ctrnn_assembly.layers; print('ctrnn_assembly.solvers.cuda' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_wheel_has_every_package():
    named = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {
        ".".join(("ctrnn_assembly", *file.parent.relative_to(CHECKOUT / "src/ctrnn_assembly").parts))
        for file in (CHECKOUT / "src/ctrnn_assembly").rglob("__init__.py")
    }
    assert set(named["tool"]["setuptools"]["packages"]) == {*found, "ctrnn_cli", "ctrnn_experiments"}
