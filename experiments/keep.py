"""What experiments share: one JSON file in results/ with all that a result depends on."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrnn_assembly.certificates.result import plain
from ctrnn_assembly.training.run import write
from ctrnn_cli.shared import Columns, console, table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def keep(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write FOLDER/DATE-NAME.json, whole or not at all; `result` begins with its `provenance`.

    The command is kept without a data folder of this machine.
    """
    command = re.sub(r"--data-dir([ =])('[^']*'|\S+)", r"--data-dir\1DATA", result["command"])
    path = folder / f"{result['date']}-{name}.json"
    kept = plain(result | {"command": command})
    write(path, json.dumps(kept, indent=1, allow_nan=False) + "\n")
    return path


def finish(name: str, result: dict[str, Any], columns: Columns, title: str) -> None:
    """Print the rows of a result as a table, keep them both, and say where."""
    result["table"] = shown(result["rows"], columns)
    console().print(table(result["table"], title=title))
    print(keep(name, result))


def shown(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[dict[str, str]]:
    """Rows as a table has them, which `tables.py` finds again under the key table of a result."""
    return [{column.header: column.text(row) for column in columns} for row in rows]
