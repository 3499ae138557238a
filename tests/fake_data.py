"""Small stand-ins for the real data sets, and where the real ones are."""

import hashlib
import os
import pickle
import struct
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def real_data(*needed: str) -> Path:
    """The folder with real data, from CTRNN_DATA_DIR or beside the checkout; skips without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CTRNN_DATA_DIR") or beside)
    missing = [name for name in needed if not _holds_something(folder / name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} in CTRNN_DATA_DIR ({folder})")
    return folder


def _holds_something(path: Path) -> bool:
    """Whether it is a file, or a folder with a file in it: a failed download leaves empty folders."""
    return path.is_file() or any(part.is_file() for part in path.rglob("*"))


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision's downloads fail at once, as without a network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", refuse)


def write_mnist(folder: Path, n_train: int = 100, n_test: int = 30) -> Path:
    """MNIST/raw with random images; image i starts with the bytes of i, so splits can be told."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(n)
        labels = np.arange(n, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 2051, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 2049, n)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return raw


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """cifar-10-batches-py with 100 + 20 random images, and torchvision's md5 table to match.

    Returns the training images, (100, 3, 32, 32) uint8.
    """
    from torchvision.datasets import CIFAR10

    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(1)

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (batches / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(n: int) -> dict[str, object]:
        x = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        return {"data": x, "labels": [i % 10 for i in range(n)]}

    train, test = batch(100), batch(20)
    meta = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", train)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", test)])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return np.asarray(train["data"]).reshape(100, 3, 32, 32)


def write_images(
    root: Path,
    parts: dict[str, int],
    classes: tuple[str, ...] = ("ant", "bee"),
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
) -> Path:
    """root/<part>/<class>/NN.png for each part and its count a class; '.' is no part folder."""
    rng = np.random.default_rng(2)
    for part, n in parts.items():
        for label in classes:
            (root / part / label).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                image.save(root / part / label / f"{i:02}.png")
    return root


def zip_folder(root: Path, target: Path, top: str = "") -> Path:
    """Everything below `root` as a zip, below the folder `top` if one is named."""
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, Path(top) / file.relative_to(root))
    return target
