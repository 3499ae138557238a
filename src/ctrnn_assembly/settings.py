"""Settings as fields that are checked, and those that decide which data a run sees.

Read without torch, as configurations are. `training.config` has the rest of a run's.
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctrnn_assembly.errors import ConfigError, unknown

M = TypeVar("M", bound=BaseModel)
Group = Literal["data", "network", "solver", "training", "certificate", "machine"]


def setting(group: Group, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, title=group, **bounds)


data = partial(setting, "data")


class Part(BaseModel):
    """What a file may say: no key beside its own, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Part):
    """Which data, in what form; the seed draws the samples that limits leave."""

    task: str = data("digits", "task; see `ctrnn list`")
    data_dir: str | None = data(None, "where the data are; else CTRNN_DATA_DIR")
    resize: int | None = data(None, "side of the images, for small machines", ge=1)
    limit_train: int | None = data(None, "use this many training samples", ge=1)
    limit_test: int | None = data(None, "use this many test samples", ge=1)
    val_fraction: float = data(0.15, "of your series; 0: training data serve", ge=0, lt=1)
    test_fraction: float = data(0.15, "of your series; 0: there is no test", ge=0, lt=1)
    split_by: str | None = data(None, "column or array of groups; no group is in two parts")
    missing: Literal["refuse", "hold", "mask"] = data(
        "refuse", "gaps in your series; hold: fill them; mask: 0, and a channel that says so"
    )
    target: Literal["class", "regression", "per-step", "forecast"] = data(
        "class", "what is said of your series, at their end or at each step"
    )
    ahead: int = data(1, "steps from an input to the one that a forecast is of", ge=1)
    warm_up: int = data(0, "first steps without loss, of per-step and forecast", ge=0)
    class_weights: Literal["none", "balanced"] = data("none", "balanced: rare ones count more")
    augment: bool = data(True, "crop and flip where the task's recipe does")
    input_noise: float = data(0.0, "noise on training inputs, in std of each channel", ge=0)
    fit_all: bool = data(False, "train on validation data too, and keep the last epoch")
    seed: int = data(0, "of weights, topology, batches, limits", ge=0, lt=2**32)

    @model_validator(mode="after")
    def _some_train(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            got = f"{self.val_fraction:g} and {self.test_fraction:g}"
            raise ConfigError(f"val_fraction and test_fraction must leave a part for train; got {got}.")
        return self

    @property
    def of_data(self) -> dict[str, Any]:
        """These settings alone, by name."""
        return self.model_dump(include={*DataConfig.model_fields})

    @property
    def folder(self) -> Path:
        """Where the data are; by default ~/.cache/ctrnn."""
        return Path(self.data_dir or os.environ.get("CTRNN_DATA_DIR") or "~/.cache/ctrnn").expanduser()


def parsed(kind: type[M], given: dict[str, Any], file: str = "") -> M:
    """The pydantic model of what was given, perhaps in a file; a ConfigError names what is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # a kind of a union
        where, kind_of_error = f"{file}: " if file else "", first["type"]
        if kind_of_error == "extra_forbidden" and key in given:
            raise unknown(f"{where}setting", key, kind.model_fields) from None
        if kind_of_error == "value_error":
            raise first["ctx"]["error"] from None
        known = {"missing": "be there", "extra_forbidden": "be left out"}
        must = (
            known.get(kind_of_error)
            or re.split(", (?:unable|got) ", first["msg"].partition(" should ")[2])[0]
        )
        raise ConfigError(f"{where}{key} must {must}; got {first['input']!r}.") from None
