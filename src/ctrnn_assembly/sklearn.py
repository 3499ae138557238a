"""Series by scikit-learn's rules: `AssemblyClassifier` and `AssemblyRegressor`.

X is (n, channels, time) as in aeon; a table (n, time) is of one channel, and its columns are the times;
a list of (channels, time) may hold unequal lengths. The extra ctrnn-assembly[sklearn].
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctrnn_assembly.certificates import Certificate
from ctrnn_assembly.data import Task
from ctrnn_assembly.data.own import Preparation, of_arrays
from ctrnn_assembly.errors import DataError
from ctrnn_assembly.training.batches import outputs_of
from ctrnn_assembly.training.config import TrainConfig, make_config, recommended
from ctrnn_assembly.training.fit import fit, say
from ctrnn_assembly.training.run import Run

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f"{error}: pip install 'ctrnn-assembly[sklearn]'") from error

Array = NDArray[Any]


@dataclass(eq=False, repr=False)
class Assembly(BaseEstimator):
    """What classifier and regressor share.

    Args:
        model, ...: settings of `TrainConfig` by name; None is what is recommended for series.
        validation_fraction: share of each class that chooses the epoch whose weights are kept.
        random_state: of the weights, the batches, and what is held out for validation.
        config: other settings of `TrainConfig`, such as {"pool": "mean", "weight_decay": 0.01}.
        run_dir: folder in which each fit leaves its run folder, `run_`; None leaves nothing.
        verbose: speak of each epoch on stderr.
    """

    model: str = "deep-adadiag"
    modules: int | None = None
    units: int | None = None
    depth: int | None = None
    width: int | None = None
    solver: str | None = None
    dt: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    missing: str = "refuse"
    device: str | None = None
    validation_fraction: float = 0.15
    random_state: Any = None
    config: dict[str, Any] | None = None
    run_dir: str | Path | None = None
    verbose: bool = False

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self.missing != "refuse"
        return tags

    @property
    def certificate_(self) -> Certificate:
        """What is proven of the net as it was trained, and of its step."""
        check_is_fitted(self)
        return self.network_.core.certificate()

    def _checked(self, X: Any, **checks: Any) -> tuple[Array, Any, Array | None]:
        """X, (n, T, m), y if it is among `checks`, and lengths or None, as `validate_data` has them."""
        lengths = None
        if isinstance(X, list | tuple) and len(X) and np.ndim(X[0]) == 2:
            columns, m = [np.asarray(one, dtype=np.float64) for one in X], len(X[0])
            if odd := [one.shape for one in columns if one.ndim != 2 or len(one) != m]:
                raise DataError(f"series must all be ({m} channels, time) as the first; got {odd[0]}.")
            lengths = np.array([one.shape[1] for one in columns])
            X = np.stack([np.pad(x, ((0, 0), (0, lengths.max() - x.shape[1]))) for x in columns])
        flat = (np.ndim(X) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)) != 3
        finite = "allow-nan" if self.missing != "refuse" else True
        checks |= {"ensure_2d": flat, "allow_nd": True, "ensure_all_finite": finite}
        found = validate_data(self, X, dtype=np.float64, **checks)
        x, y = found if "y" in checks else (found, None)
        if y is not None:
            self.n_features_in_ = x.shape[1]  # scikit-learn counts the columns of tables alone
        return x[..., None] if x.ndim == 2 else x.swapaxes(1, 2), y, lengths

    def _fitted(self, X: Array, y: Array, lengths: Array | None, kinds: Array, target: str) -> Self:
        """Train on X and y; of each of the classes `kinds`, (n,), a share is held out for validation."""
        random = check_random_state(self.random_state)
        given = {k: x for k, x in vars(self).items() if k in TrainConfig.model_fields and x is not None}
        others, best = self.config or {}, recommended("own", self.model, target)
        if "require_certificate" not in others:
            best["certify_every"] = 10**9  # at the end alone
        best |= {"test_fraction": 0, "val_fraction": self.validation_fraction}
        config = make_config(best, {"seed": int(random.randint(2**31))}, given, others)
        split, order = np.full(len(X), "train"), random.permutation(len(X))
        for kind in np.unique(kinds):
            mine = order[kinds[order] == kind]
            split[mine[: int(self.validation_fraction * len(mine))]] = "val"
        chosen = config.of_data | {"target": target, "val_fraction": 0}
        task = Task.from_arrays(X, y, lengths, split=split, **chosen)
        Path(self.run_dir or ".").mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(), ExitStack() as end:
            end.callback(torch.set_num_threads, torch.get_num_threads())
            out = mkdtemp(dir=self.run_dir) if self.run_dir else end.enter_context(TemporaryDirectory())
            report: Any = say if self.verbose else str
            self.summary_ = fit(config, Path(out), task=task, report=report)
            self.network_ = Run.open(out).build(double=True)  # predictions do not depend on their batch
            self.preparation_ = cast(Preparation, task.sequence)
        self.run_ = Path(out) if self.run_dir else None
        return self

    def _outputs(self, X: Any) -> Tensor:
        """What the net puts out, (n, k) float64."""
        check_is_fitted(self)
        x, _, lengths = self._checked(X, reset=False)
        series = of_arrays("X", x, None, lengths, None, None, None, target=None)
        return outputs_of(self.network_, self.preparation_.split(series, answered=False))


class AssemblyClassifier(ClassifierMixin, Assembly):
    """Classes of series; settings of `Assembly`. Fitted: `classes_`, `certificate_`, `summary_`."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train on series X and classes y, (n,), numbers or texts."""
        X, y, lengths = self._checked(X, y=y)
        check_classification_targets(y)
        self.classes_, kinds = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y must hold at least 2 classes; got 1 class, {self.classes_[0]}.")
        return self._fitted(X, kinds, lengths, kinds, "class")

    def predict_proba(self, X: Any) -> Array:
        """Shares of the classes in the order of `classes_`, (n, k)."""
        return self._outputs(X).softmax(-1).numpy()

    def predict(self, X: Any) -> Array:
        """The most probable classes, (n,)."""
        found = self._outputs(X).argmax(-1)  # first: it refuses what is not fitted
        return self.classes_[found.numpy()]


class AssemblyRegressor(RegressorMixin, Assembly):
    """Values of series; settings of `Assembly`. Fitted: `certificate_`, and of training `summary_`."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on series X and values y, (n,) or (n, k)."""
        X, y, lengths = self._checked(X, y=y, multi_output=True, y_numeric=True)
        return self._fitted(X, y.astype(np.float64), lengths, np.zeros(len(X)), "regression")

    def predict(self, X: Any) -> Array:
        """Values in the unit of y, (n,) or (n, k)."""
        found = self._outputs(X).numpy()
        mean, std = np.array([*self.preparation_.values.values()]).T
        return (mean + std * found).squeeze(1) if len(mean) == 1 else mean + std * found
