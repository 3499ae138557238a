"""What experiments share: one JSON file in results/ with all that a result depends on; a table."""

import json
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

from ctrnn_assembly.certificates.result import plain
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
    known = json.dumps(plain(result))  # NaN and infinity become null
    rounded = json.loads(known, parse_float=lambda number: float(f"{float(number):.{digits}g}"))
    write(path, json.dumps(rounded, indent=1, allow_nan=False) + "\n")
    return path


def table(title: str, rows: Sequence[Mapping[str, str]], words: Collection[str] = ()) -> Group:
    """A title and a narrow table of text by column; columns of `words` stand left."""
    shown = Table(box=SIMPLE, padding=0, pad_edge=False)
    for column in rows[0]:
        shown.add_column(column, justify="left" if column in words else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    return Group(Text(title, style="bold"), shown)
