"""Which image files a folder or zip holds, and which split and class each one belongs to."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctrnn_assembly.errors import DataError

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_DEPTH = 4  # top/train/class/file: nothing deeper is looked at, so a big home folder stays cheap
_LAYOUT = (
    "Wanted: a zip or folder with train/<class>/*.png|jpg|jpeg|bmp (and, if there are, test and "
    "val) or <class>/*, possibly below one top-level folder. Name it with --data-dir."
)


@dataclass(frozen=True)
class Archive:
    """The images below one folder or zip.

    Args:
        path: the folder or zip.
        files: split name -> (file name inside `path`, class name), sorted; without splits on disk
            the only key is ''.
    """

    path: Path
    files: dict[str, list[tuple[str, str]]]

    def read(self, names: list[str]) -> Iterator[bytes]:
        """The bytes of each file.

        Raises:
            DataError: if one cannot be read, naming it.
        """
        name = ""
        try:
            if self.path.is_dir():
                for name in names:
                    yield (self.path / name).read_bytes()
                return
            with zipfile.ZipFile(self.path) as stored:
                for name in names:
                    yield stored.read(name)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as err:
            raise DataError(
                f"{name or 'archive'} in {self.path} cannot be read ({err}). Replace or remove it."
            ) from err


def find_archive(path: Path) -> Archive:
    """The image data set at `path`: a zip, an image folder, or a folder with exactly one of them.

    Raises:
        DataError: if there is none, more than one, or its folders fit no layout.
    """
    if not path.exists():
        raise DataError(f"No image data at {path}: it does not exist. {_LAYOUT}")
    if path.is_file():
        names = _names_in_zip(path)
        if names is None:
            raise DataError(f"{path} is not a zip file, or is cut short. {_LAYOUT}")
        return Archive(path, _sorted_by_split(path, names))
    zips = {file: _names_in_zip(file) for file in sorted(path.glob("*.zip"))}
    sets = {path: _names_in_folder(path), **zips}
    found = {where: names for where, names in sets.items() if names}
    if not found:
        broken = [str(file) for file, names in zips.items() if names is None]
        because = f" ({', '.join(broken)}: not a zip file, or cut short)" if broken else ""
        raise DataError(f"No images in {path}{because}. {_LAYOUT}")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise DataError(f"{path} holds several image sets: {listed}. Name one with --data-dir.")
    ((where, names),) = found.items()
    return Archive(where, _sorted_by_split(where, names))


def _is_image(name: str) -> bool:
    # Names that start with a dot, and __MACOSX, are what macOS adds to folders and zips.
    hidden = any(p.startswith(".") or p == "__MACOSX" for p in PurePosixPath(name).parts)
    return name.lower().endswith(_ENDINGS) and not hidden


def _names_in_zip(path: Path) -> list[str] | None:
    try:
        with zipfile.ZipFile(path) as stored:
            return [name for name in stored.namelist() if _is_image(name)]
    except (zipfile.BadZipFile, OSError):
        return None


def _names_in_folder(path: Path) -> list[str]:
    names = []
    for folder, below, files in os.walk(path):
        inside = Path(folder).relative_to(path)
        if len(inside.parts) >= _DEPTH - 1:
            below.clear()
        if inside.parts:  # images that lie loose in the folder have no class
            names += [(inside / file).as_posix() for file in files]
    return [name for name in names if _is_image(name)]


def _sorted_by_split(path: Path, names: list[str]) -> dict[str, list[tuple[str, str]]]:
    parts = {name: PurePosixPath(name).parts for name in sorted(names)}
    if not parts:
        raise DataError(f"No images in {path}. {_LAYOUT}")
    for depth in (0, 1):
        tops = {p[:depth] for p in parts.values()}
        split_of = {n: _SPLITS.get(p[depth]) for n, p in parts.items() if len(p) == depth + 3}
        if len(tops) == 1 and "train" in split_of.values():
            files: dict[str, list[tuple[str, str]]] = {}
            for name, split in split_of.items():
                if split:
                    files.setdefault(split, []).append((name, parts[name][depth + 1]))
            return files
        if len(tops) == 1 and {len(p) for p in parts.values()} == {depth + 2}:
            return {"": [(name, p[depth]) for name, p in parts.items()]}
    raise DataError(f"{path} fits no known layout, e.g. {next(iter(parts))}. {_LAYOUT}")
