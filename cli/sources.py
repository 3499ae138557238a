"""What a command line names: a run with its weights, or a configuration with its initial ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ctrnn_assembly.errors import ConfigError, DataError
from ctrnn_assembly.layers import SequenceClassifier
from ctrnn_assembly.models import find_model
from ctrnn_assembly.training.config import TrainConfig, make_config, read_yaml, recipe, recipes
from ctrnn_assembly.training.run import load_checkpoint, load_weights, model_from, read_config

ANY = (1, 2)  # inputs and classes where no data are read; the field does not depend on them


@dataclass(frozen=True)
class Source:
    """A configuration, and the file with the weights to use; None for the initial weights."""

    config: TrainConfig
    weights: Path | None

    @classmethod
    def named(cls, name: str, changes: dict[str, Any], *, initial: bool = False) -> Source:
        """A run folder, a YAML file or a recipe, with some settings changed.

        Raises:
            ConfigError: if it is none of these; DataError: if a run has no weights yet.
        """
        path = Path(name)
        if path.is_dir():
            config = make_config(read_config(path).model_dump(), changes)
            keep = None if initial or find_model(config.model).is_baseline else weights_of(path)
            return cls(config, keep)
        if not path.exists() and name in recipes():
            return cls(make_config(recipe(name), changes), None)
        if not path.exists():
            raise ConfigError(
                f"there is no run folder, configuration file or recipe {name!r}. Recipes: "
                f"{', '.join(recipes())}."
            )
        return cls(make_config(read_yaml(path), changes), None)

    @property
    def kind(self) -> str:
        """trained, checkpoint (of a run that is not finished) or initial; none of a baseline."""
        if find_model(self.config.model).is_baseline:
            return "none"
        if self.weights is None:
            return "initial"
        return "checkpoint" if self.weights.suffix == ".ckpt" else "trained"

    def model(self, n_input: int = ANY[0], n_class: int = ANY[1]) -> SequenceClassifier:
        """The model, with these weights; initial weights for so many inputs and classes.

        Raises:
            DataError: if the file is damaged, or not of this configuration.
        """
        if self.weights is None:
            return model_from(self.config, n_input, n_class)
        if self.kind == "checkpoint":
            model = model_from(self.config, *_sizes(_checkpoint_shapes(self.weights), self.config))
            load_checkpoint(self.weights, model)
            return model
        model = model_from(self.config, *_sizes(_safetensors_shapes(self.weights), self.config))
        load_weights(self.weights, model)
        return model

    def as_dict(self) -> dict[str, Any]:
        """Plain values: which weights, their file and its sha256."""
        if self.weights is None:
            return {"kind": self.kind, "file": None, "sha256": None}
        digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        return {"kind": self.kind, "file": str(self.weights), "sha256": digest}


def weights_of(run: Path) -> Path:
    """The trained weights of a run; those of its last epoch if it is not finished."""
    trained, last = run / "model.safetensors", run / "checkpoints" / "last.ckpt"
    if trained.exists() or (run / "summary.json").exists():
        return trained
    if last.exists():
        return last
    raise DataError(
        f"{run} has no weights yet: no epoch has ended. `ctrnn train --resume {run}` goes on; --initial "
        "takes the weights that it starts from."
    )


def _sizes(shapes: dict[str, tuple[int, ...]], config: TrainConfig) -> tuple[int, int]:
    """Inputs and classes from the shapes in a file; any where they make no sense, for loading to say."""
    encoder, readout = (shapes.get(f"{name}.weight", ()) for name in ("core.encoder", "readout"))
    n = config.modules * config.units
    if len(encoder) != 2 or len(readout) != 2 or encoder[0] != n or readout[1] != n:
        return ANY
    return max(1, encoder[1]), max(1, readout[0])


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor; nothing from a file that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _checkpoint_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The same for a checkpoint, without running any code that it may carry."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in state.items()}
    except Exception:  # torch raises many kinds; load_checkpoint names them
        return {}
