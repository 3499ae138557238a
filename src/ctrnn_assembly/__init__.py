"""Continuous-time RNNs coupled into assemblies whose stability is proven.

The public names, those that the stub beside this file imports, are imported when they are first used
(PEP 562): a program that only reads configurations, or prints a help text, need not wait for torch.
Their docstrings have examples, to be run after `import torch` and `from ctrnn_assembly import *`.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_stub = ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
HOMES = {
    alias.name: node.module
    for node in _stub.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = [*HOMES]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
