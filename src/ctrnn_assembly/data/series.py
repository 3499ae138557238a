"""Time series classification sets of the UCR and UEA archives: their files, or those of aeon, an extra.

Values stay as the archive has them (most UCR sets are z-normalised per series, UEA sets are not).
"""

from pathlib import Path
from typing import Any

from ctrnn_assembly.data.own import Preparation, Series, of_table
from ctrnn_assembly.data.tables import ts_table
from ctrnn_assembly.data.task import Split, Task, dealt, make_task, reading
from ctrnn_assembly.errors import ConfigError
from ctrnn_assembly.settings import DataConfig


def load_series(name: str, options: DataConfig) -> Task:
    """`series:NAME`, e.g. series:JapaneseVowels, which ships with aeon.

    Series of unequal length are padded with zeros at the end and come with `lengths`; a test series may
    then be longer than `n_steps`, which speaks of train, and a test split shorter. Val is a fifth of the
    archive's train split, class by class, the same in every run.
    """
    if options.resize is not None:
        raise ConfigError(f"resize is for images; got {options.resize} for {name}. Leave it out.")
    # aeon strips these endings, which choose its equal-length and imputed variants.
    base = name.removeprefix("series:").removesuffix("_nmv").removesuffix("_eq")
    files = {part: f"{base}_{part.upper()}.ts" for part in ("train", "test")}
    home = home_of(base, options.folder, [*files.values()])

    def read(part: str) -> Series:
        return of_table(f"{name} {part} split", ts_table([home / files[part]]), "class")

    series = read("train")
    y: Any = series.y
    m, said = len(series.channels), y[:, 0]
    given: Any = {"channels": series.channels, "missing": options.missing, "spacing": None}
    given |= {"mean": (0.0,) * m, "std": (1.0,) * m}
    as_stored = Preparation(classes=(classes := tuple(sorted(set(said.tolist())))), **given)
    whole = as_stored.split(series)

    def stored(part: str, train: Split | None) -> Split:
        return whole if part == "train" else as_stored.split(read(part))

    parts = dealt(said, 5, {"val": (0,)})
    return make_task(name, options, name, classes, stored, lambda train: as_stored, parts)


def home_of(base: str, folder: Path, files: list[str]) -> Path:
    """Where the files of a set are: below `folder`, or in aeon, which downloads them if it must."""
    home = folder / base
    if all((home / file).is_file() for file in files):
        return home
    try:
        import aeon.datasets
    except ImportError as error:
        raise ConfigError(f"Series need aeon ({error}). pip install 'ctrnn-assembly[series]'") from error
    bundled = Path(aeon.__file__).parent / "datasets" / "data" / base
    if (bundled / files[0]).is_file():
        return bundled
    advice = f"{' and '.join(files)}, as of timeseriesclassification.com, into {home}"
    with reading(f"series:{base}", advice, home):
        # Lengths and gaps as published, not padded or imputed.
        kept = {"load_equal_length": False, "load_no_missing": False}
        aeon.datasets.load_classification(base, extract_path=str(folder), **kept)
    return home
