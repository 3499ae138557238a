"""What experiments share: one JSON file in results/ with all that a result depends on; a table."""

import json
import math
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ctrnn_assembly.training import provenance
from ctrnn_assembly.training.run import write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def about(
    script: str, arguments: Sequence[str] | None = None, *, seed: int | None = None
) -> dict[str, Any]:
    """What the result of a script (`__file__`) depends on; the default arguments are the command line's.

    As `provenance` says, but without a data folder of this machine.
    """
    name = Path(script).resolve().relative_to(HERE.parent)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", str(name), *given])
    command = re.sub(r"--data-dir([ =])('[^']*'|\S+)", r"--data-dir\1DATA", command)
    return provenance.provenance(command=command, seed=seed)


def keep(name: str, result: dict[str, Any], folder: Path = RESULTS, digits: int = 17) -> Path:
    """Write FOLDER/DATE-NAME.json, whole or not at all; `result` begins with what `about` says."""
    path = folder / f"{result['date']}-{name}.json"
    write(path, json.dumps(plain(result, digits), indent=1, allow_nan=False) + "\n")
    return path


def plain(value: Any, digits: int) -> Any:
    """Values of standard JSON: numbers of so many digits; NaN and infinity become null."""
    if isinstance(value, dict):
        return {key: plain(v, digits) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def table(title: str, rows: Sequence[Mapping[str, str]], words: Collection[str] = ()) -> Group:
    """A title and a narrow table of text by column; columns of `words` stand left."""
    shown = Table(box=SIMPLE, padding=0, pad_edge=False)
    for column in rows[0]:
        shown.add_column(column, justify="left" if column in words else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    return Group(Text(title, style="bold"), shown)
