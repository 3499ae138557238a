"""What the diagnostic commands share: a network under real inputs.

Every command takes a run folder, a configuration or a recipe, drives the network with samples of its
task, and answers as `outputs` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ctrnn_assembly.certificates import Certificate
    from ctrnn_assembly.layers import CTRNN, SequenceClassifier
    from ctrnn_assembly.metrics import Metric
    from ctrnn_assembly.terms import Terms
    from ctrnn_cli.sources import Source


@dataclass(frozen=True)
class Subject:
    """A network under inputs.

    Attributes:
        source: the configuration, and which weights.
        model: with these weights, in float64.
        task, split: where the inputs come from.
        u: inputs, (samples, T, m), float64. y: classes, (samples,). lengths: valid steps, or None.
    """

    source: Source
    model: SequenceClassifier
    task: str
    split: str
    u: Tensor
    y: Tensor
    lengths: Tensor | None

    def sequence(self, k: int) -> Tensor:
        """The inputs of one sample without padding, (T, m)."""
        return self.u[k] if self.lengths is None else self.u[k, : int(self.lengths[k])]

    @property
    def core(self) -> CTRNN:
        """The assembly as a layer.

        Raises:
            ConfigError: for a model that is no assembly.
        """
        from ctrnn_assembly.errors import ConfigError
        from ctrnn_assembly.layers import CTRNN

        core = self.model.core
        if not isinstance(core, CTRNN):
            raise ConfigError(
                f"this command needs an assembly; {self.source.config.model!r} has no vector field of "
                "that form. Use svd-combo, for example."
            )
        return core

    @property
    def terms(self) -> Terms:
        """The tensors of the driven field."""
        return self.core.terms().detach_cpu()

    @property
    def metric(self) -> Metric:
        """The metric of the field."""
        return self.core.field.metric().detach_cpu()

    def initial_core(self) -> CTRNN:
        """The same assembly with the weights before training."""
        from dataclasses import replace

        from ctrnn_assembly.layers import CTRNN

        sizes = self.core.input_size, self.model.readout.out_features
        core = replace(self.source, weights=None).model(*sizes).double().core
        assert isinstance(core, CTRNN)
        return core

    def certificate(self) -> Certificate:
        """The certificate of the field and of its step."""
        return self.model.core.certificate()

    def about(self) -> dict[str, Any]:
        """What was looked at, as plain values."""
        config = self.source.config
        return {
            "model": config.model,
            "units": config.modules * config.units,
            "weights": self.source.as_dict(),
            "task": self.task,
            "split": self.split,
            "samples": len(self.u),
            "steps": self.u.shape[1],
            "solver": config.solver,
            "dt": config.dt,
        }


def load_subject(
    source: str,
    *,
    initial: bool = False,
    task: str | None = None,
    split: str = "val",
    samples: int = 4,
    data_dir: str | None = None,
    dt: float | None = None,
    solver: str | None = None,
) -> Subject:
    """The network and its inputs.

    Raises:
        ConfigError, DataError: for what is not there or does not fit.
    """
    from ctrnn_assembly.errors import ConfigError
    from ctrnn_assembly.training.batches import Batches
    from ctrnn_cli.fit import load_configured
    from ctrnn_cli.sources import Source

    if samples < 1:
        raise ConfigError(f"--samples must be at least 1; got {samples}.")
    given = {"dt": dt, "solver": solver, "data_dir": data_dir, "task": task}
    found = Source.named(source, {k: v for k, v in given.items() if v is not None}, initial=initial)
    loaded = load_configured(found.config)
    part = {"train": loaded.train, "val": loaded.val}[split] if split != "test" else loaded.load_test()
    batch = Batches(loaded, part, min(samples, len(part)), whole=True)
    u, y, lengths = next(iter(batch))
    model = found.model(loaded.n_input, len(loaded.classes)).double().eval()
    return Subject(found, model, loaded.name, split, u.double(), y, lengths)
