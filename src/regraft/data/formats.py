"""Published files -> arrays, one reader per way in which the data sets are packed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.data.archive import read_cifar_pickle, read_idx
from regraft.errors import DataDamaged, shown

MOST_CLASSES = 1_000_000

Read = Callable[[str], bytes]  # name of a published file -> its content, checked against the published md5


@dataclass(frozen=True, eq=False)
class Arrays:
    """One split: images (n, h, w, c) uint8, labels (n,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Content:
    """Both splits of a published data set."""

    train: Arrays
    test: Arrays


def read_cifar10_batches(read: Read) -> Content:
    """CIFAR-10's Python version (Krizhevsky 2009): five training batches and a test batch."""
    batches = [read_cifar_pickle(read(f"data_batch_{i}")) for i in range(1, 6)]
    return Content(_from_batches(batches, "labels"), _from_batches([read_cifar_pickle(read("test_batch"))], "labels"))


def read_cifar100_batches(read: Read) -> Content:
    """CIFAR-100's Python version, with its 100 fine labels."""
    train, test = read_cifar_pickle(read("train")), read_cifar_pickle(read("test"))
    return Content(_from_batches([train], "fine_labels"), _from_batches([test], "fine_labels"))


def _from_batches(batches: list[dict[str, object]], key: str) -> Arrays:
    planes, labels = [], []
    for batch in batches:
        data, names = batch.get("data"), batch.get(key)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
            raise DataDamaged(f"a CIFAR batch without its (n, 3072) array; fields: {shown(list(batch), 200)}")
        if not isinstance(names, list) or len(names) != len(data) or not all(map(_is_label, names)):
            raise DataDamaged(f"a CIFAR batch without a list of {len(data)} {key}; fields: {shown(list(batch), 200)}")
        planes.append(data)
        labels.extend(names)
    images = np.concatenate(planes).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # planes -> (n, 32, 32, 3)
    return Arrays(np.ascontiguousarray(images), np.array(labels, np.int64))


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST_CLASSES


def read_mnist_files(read: Read) -> Content:
    """MNIST and the sets that share its four IDX files."""
    return Content(*(_from_idx(read, prefix) for prefix in ("train", "t10k")))


def _from_idx(read: Read, prefix: str) -> Arrays:
    images = read_idx(read(f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(read(f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != (len(images),):
        raise DataDamaged(f"{prefix}: images of shape {images.shape} do not go with labels {labels.shape}")
    return Arrays(images[..., None], labels.astype(np.int64))


def read_cifar10_mosaics(read: Read) -> Content:
    """The mirror's packing of CIFAR-10: PNGs with one image a row, labels as JSON lists."""
    train = [_mosaic(read(f"data_batch_{i}.png")) for i in range(1, 6)]
    train_labels, test_labels = (_labels(read(f"{part}_lables.json")) for part in ("train", "test"))
    return Content(Arrays(np.concatenate(train), train_labels), Arrays(_mosaic(read("test_batch.png")), test_labels))


def _labels(data: bytes) -> NDArray[np.int64]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataDamaged(f"labels that are no JSON ({error})") from None
    if not isinstance(values, list) or not all(map(_is_label, values)):
        raise DataDamaged("labels that are no list of whole numbers")
    return np.array(values, np.int64)


def _mosaic(data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.size != (1024, 10_000) or picture.mode != "RGB":
                raise DataDamaged(f"a mosaic of {picture.size} {picture.mode} instead of (1024, 10000) RGB")
            return np.asarray(picture).reshape(10_000, 32, 32, 3)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataDamaged(f"a mosaic that cannot be read ({error})") from None


def read_digits() -> Content:
    """scikit-learn's digits (Alpaydin and Kaynak, UCI): 8 x 8 grey, 0..16 scaled to 0..255.

    There is no official split of these 1,797 images, so this one is fixed here: of each class the last fifth
    in published order is the test part. No seed moves it.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        is_test[members[len(members) - len(members) // 5 :]] = True
    return Content(Arrays(images[~is_test], labels[~is_test]), Arrays(images[is_test], labels[is_test]))


READERS: dict[str, Callable[[Read], Content]] = {
    "cifar10-batches": read_cifar10_batches,
    "cifar100-batches": read_cifar100_batches,
    "cifar10-mosaics": read_cifar10_mosaics,
    "mnist-files": read_mnist_files,
}
