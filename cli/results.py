"""Results: one JSON file a run, one line a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctrnn_assembly.errors import DataError
from ctrnn_assembly.training.config import TrainConfig, make_config
from ctrnn_assembly.training.run import write


def brief(certificate: dict[str, Any]) -> dict[str, Any]:
    """A certificate without its many modules and pairs."""
    kept = {name: certificate.get(name) for name in ("certified", "rate", "discrete")}
    metric, coupling = certificate.get("metric") or {}, certificate.get("coupling") or {}
    return {
        **kept,
        "condition_number": metric.get("condition_number"),
        "coupling_norm": coupling.get("norm"),
        "reasons": certificate.get("reasons", []),
    }


def keep_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result, one line a key, whole or not at all."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
    write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(path: Path) -> dict[str, Any]:
    """A result.

    Raises:
        DataError: if the file is damaged.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result["experiment"], result["row"], result["seed"], result["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the result of a run: {error}. Delete it to run again.") from None
    return result


def config_of(result: dict[str, Any]) -> TrainConfig:
    """The configuration in a result; settings that are gone by now are left out."""
    known = {key: value for key, value in result["config"].items() if key in TrainConfig.model_fields}
    return make_config(known)
