"""Time series classification sets of the UCR and UEA archives, read by aeon (an optional extra).

Values stay as the archive has them (most UCR sets are z-normalised per series, UEA sets are not).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ctrnn_assembly.data.task import Options, Split, Task, checked, dealt, make_task, reading
from ctrnn_assembly.errors import ConfigError, DataError


def load_series(name: str, options: Options) -> Task:
    """`series:NAME`, e.g. series:JapaneseVowels, which ships with aeon.

    Series of unequal length are padded with zeros at the end and come with `lengths`; a test
    series may then be longer than `n_steps`, which speaks of train.  Val is a fifth of the
    archive's train split, class by class, the same in every run.
    """
    if options.resize is not None:
        raise ConfigError(f"resize is for images; got {options.resize} for {name}. Leave it out.")
    dataset = name.removeprefix("series:")
    series, labels = _read(dataset, options.folder, "train")
    classes = tuple(sorted(set(labels)))
    whole = _padded(f"{name} train split", series, labels, classes)
    _, T, m = whole.x.shape

    def stored(part: str, train: Split | None) -> Split:
        if part == "train":
            return whole
        found = _padded(f"{name} test split", *_read(dataset, options.folder, part), classes, T)
        if found.x.shape[2] != m:
            raise DataError(
                f"{name} has {m} channels in train but {found.x.shape[2]} in test. "
                "Fetch its files again."
            )
        return found

    parts = dealt(np.array(labels), 5, {"val": (0,)})
    return make_task(name, options, name, classes, stored, lambda train: as_stored, parts)


def as_stored(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Series are stored as the network sees them, (B, T, m) float32; nothing is augmented."""
    return x.float()


def _padded(
    what: str, series: list[np.ndarray], labels: list[str], classes: tuple[str, ...], n_steps: int = 0
) -> Split:
    """Pad (m, T_i) series to (N, T, m), T at least `n_steps`, and number the labels."""
    if not series:
        raise DataError(f"{what} is empty. Fetch its files again.")
    if strange := set(labels) - set(classes):
        raise DataError(f"{what} has a class that train lacks: {min(strange)}. Remove it.")
    steps = torch.tensor([one.shape[1] for one in series])
    T = max(n_steps, int(steps.max()))
    columns = [torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in series]
    x = torch.stack([functional.pad(one, (0, T - one.shape[1])).T for one in columns])
    y = torch.tensor([classes.index(label) for label in labels])
    return checked(what, Split(x, y, steps if (steps < T).any() else None), len(classes))


def _read(dataset: str, folder: Path, part: str) -> tuple[list[np.ndarray], list[str]]:
    """Series (m, T_i) each, and their labels, from `folder`, aeon itself, or its download."""
    try:
        import aeon.datasets
    except ImportError as error:
        raise ConfigError(f"Series need aeon ({error}). pip install 'ctrnn-assembly[series]'") from error
    # aeon strips these endings, which choose its equal-length and imputed variants.
    base = dataset.removesuffix("_nmv").removesuffix("_eq")
    files = [f"{base}_{half}.ts" for half in ("TRAIN", "TEST")]
    home = folder / base
    bundled = Path(aeon.__file__).parent / "datasets" / "data" / base / files[0]
    # Without a path aeon looks into its own package; with one, only there, downloading if needed.
    here = all((home / file).is_file() for file in files)
    path = None if bundled.is_file() and not here else str(folder)
    advice = f"{' and '.join(files)}, as of timeseriesclassification.com, into {home}"
    with reading(f"series:{dataset}", advice, home):
        series, found, header = aeon.datasets.load_classification(
            dataset,
            split=part,
            extract_path=path,
            return_metadata=True,
            load_equal_length=False,  # lengths and gaps as published, not padded or imputed
            load_no_missing=False,
        )
    labels = [str(label) for label in found]
    # As when a file is cut short within its last label.
    if strange := set(labels) - set(header["class_values"]):
        raise DataError(
            f"series:{dataset} {part} has label {min(strange)!r}, which its header does not list. "
            f"Fetch {files[part == 'test']} again."
        )
    return list(series), labels
