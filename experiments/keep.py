"""What experiments share: one JSON file in results/ with all that a result depends on."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrnn_assembly.certificates.result import plain
from ctrnn_assembly.training import provenance
from ctrnn_assembly.training.run import write
from ctrnn_cli.shared import Columns

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


def keep(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write FOLDER/DATE-NAME.json, whole or not at all; `result` begins with what `about` says."""
    path = folder / f"{result['date']}-{name}.json"
    write(path, json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
    return path


def shown(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[dict[str, str]]:
    """Rows as a table has them, which `tables.py` finds again under the key table of a result."""
    return [
        {c.header: "-" if row.get(c.key) is None else format(row[c.key], c.form) for c in columns}
        for row in rows
    ]
