"""What a report is about: a run, its network, and what is proven of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.certificates.wording import verdict
from ctrnn_assembly.models import find_model
from ctrnn_assembly.training.run import Run
from ctrnn_cli.certify import certificate_of
from ctrnn_cli.history import History
from ctrnn_cli.page import paragraph
from ctrnn_cli.portraits import one_thread


@dataclass(frozen=True)
class Reported:
    """A run folder as it is now.

    Attributes:
        source: the configuration, and which weights.
        core: the recurrent layer with these weights. certificate: of it, as `ctrnn certify` proves it.
    """

    history: History
    source: Run
    core: nn.Module
    certificate: Certificate

    @classmethod
    def read(cls, run: Path) -> Reported:
        """The trained weights, else those of the last epoch, else the initial ones.

        Raises:
            ConfigError: if it is no run; DataError: if a file in it is damaged.
        """
        history = History.read(run)
        started = (run / "checkpoints" / "last.ckpt").exists() or history.finished
        source = Run.open(run, initial=not started)
        one_thread(history.config.modules * history.config.units)
        core = source.network().core
        certificate = certificate_of(core, "fast")
        return cls(history, source, core, certificate)

    @property
    def name(self) -> str:
        """Model, task, and which weights."""
        return self.source.title

    @property
    def baseline(self) -> bool:
        """Whether there are no modules and no certificate."""
        return find_model(self.history.config.model).is_baseline

    def verdict(self) -> str:
        """The certificate in one sentence, coloured; the words say the same as the colour."""
        kind = "yes" if self.certificate.certified else "no"
        return paragraph(verdict(self.certificate), f"verdict {kind}")
