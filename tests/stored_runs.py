"""Run folders as training leaves them, without training: configuration and initial weights."""

import json
from pathlib import Path
from typing import Any

from ctrnn_assembly.training.config import TrainConfig, make_config, to_yaml
from ctrnn_assembly.training.run import model_from, save_weights, write

SMALL = {"modules": 2, "units": 4, "density": 0.4, "limit_test": 20}


def store_run(folder: Path, **settings: Any) -> TrainConfig:
    """config.yaml and model.safetensors of a small network for the task digits."""
    deep = {"depth": 2, "width": 8} if "deep" in settings.get("model", "") else {}
    config = make_config(SMALL, deep | settings)
    write(folder / "config.yaml", to_yaml(config))
    save_weights(folder / "model.safetensors", model_from(config, 1, 10))
    return config


def strict_json(text: str) -> Any:
    """JSON as its standard has it, in which NaN and Infinity are no numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
