"""Each packing of a published set gives its arrays, and is refused where it is not what the format says."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from regraft.data.formats import READERS
from regraft.errors import DataDamaged

Files = dict[str, bytes]
ROWS = 10_000  # of a mosaic: one image of 32 x 32 a row


def batch(start: int, count: int, key: str) -> bytes:
    """As CIFAR's authors pack it: a row has 1024 red, 1024 green, 1024 blue values."""
    colours = np.arange(start, start + count, dtype=np.uint8)[:, None] + np.array([0, 50, 100], np.uint8)
    labels = [i % 10 for i in range(start, start + count)]
    return pickle.dumps({"data": np.repeat(colours, 1024, axis=1), key: labels}, protocol=2)


def cifar10() -> Files:
    files = {f"data_batch_{i}": batch(2 * i, 2, "labels") for i in range(1, 6)}
    return {**files, "test_batch": batch(100, 3, "labels")}


def read(reader: str, files: Files) -> list[NDArray[np.uint8] | NDArray[np.int64]]:
    content = READERS[reader](files.__getitem__)
    return [content.train.images, content.train.labels, content.test.images, content.test.labels]


def test_cifar10s_batches_are_joined_in_their_order_and_their_planes_are_colours() -> None:
    images, labels, test_images, test_labels = read("cifar10-batches", cifar10())
    assert images.shape == (10, 32, 32, 3)
    assert images[:, 31, 0].tolist() == [[i, i + 50, i + 100] for i in range(2, 12)]
    assert labels.tolist() == [i % 10 for i in range(2, 12)]
    assert test_images[:, 0, 31].tolist() == [[i, i + 50, i + 100] for i in range(100, 103)]
    assert test_labels.tolist() == [0, 1, 2]


def test_of_cifar100_the_fine_labels_are_taken() -> None:
    both = pickle.loads(batch(7, 2, "fine_labels")) | {"coarse_labels": [1, 1]}
    _, labels, _, test_labels = read(
        "cifar100-batches", {"train": pickle.dumps(both, protocol=2), "test": batch(3, 1, "fine_labels")}
    )
    assert (labels.tolist(), test_labels.tolist()) == ([7, 8], [3])


@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (np.zeros((2, 3071), np.uint8), [0, 1], r"without its \(n, 3072\) array; fields: .*labels"),
        (np.zeros(3072, np.uint8), [0], r"without its \(n, 3072\) array"),
        ([0] * 3072, [0], r"without its \(n, 3072\) array"),
        (np.zeros((2, 3072), np.uint8), [0], "without a list of 2 labels"),
        (np.zeros((2, 3072), np.uint8), [0, -1], "without a list of 2 labels"),
        (np.zeros((2, 3072), np.uint8), [0, "1"], "without a list of 2 labels"),
    ],
)
def test_a_cifar_batch_of_another_form_is_refused(data: object, labels: list[object], said: str) -> None:
    with pytest.raises(DataDamaged, match=said):
        read("cifar10-batches", {**cifar10(), "data_batch_3": pickle.dumps({"data": data, "labels": labels})})


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.mark.parametrize("images", [(3, 4, 4), (2, 16)])
def test_idx_files_that_do_not_go_together_are_refused(images: tuple[int, ...]) -> None:
    files = {
        f"{part}-{kind}": idx(np.zeros(shape, np.uint8))
        for part in ("train", "t10k")
        for kind, shape in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", (2,)))
    }
    with pytest.raises(DataDamaged, match=r"train: images of shape .* do not go with labels \(2,\)"):
        read("mnist-files", files)


# --- mosaics ------------------------------------------------------------------------------------------------------


def mosaic(red: int, size: tuple[int, int] = (1024, ROWS), mode: str = "RGB") -> bytes:
    """Every image of one colour, but for its number in the first pixel's green and blue."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = red
    pixels[:, 0, 1:] = np.stack([np.arange(size[1]) // 256, np.arange(size[1]) % 256], axis=1)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture(scope="module")
def mosaics() -> Files:
    same = mosaic(1)
    return {
        **{f"data_batch_{i}.png": same for i in range(1, 5)},
        "data_batch_5.png": mosaic(5),
        "test_batch.png": mosaic(9),
        "train_lables.json": json.dumps([i % 10 for i in range(5 * ROWS)]).encode(),
        "test_lables.json": json.dumps([9 - i % 10 for i in range(ROWS)]).encode(),
    }


def test_a_mosaics_rows_are_its_images(mosaics: Files) -> None:
    images, labels, test_images, test_labels = read("cifar10-mosaics", mosaics)
    assert images.shape == (5 * ROWS, 32, 32, 3)
    assert images[[0, 4 * ROWS - 1, 4 * ROWS], 0, 0].tolist() == [[1, 0, 0], [1, 39, 15], [5, 0, 0]]
    assert images[7, 31, 31].tolist() == [1, 0, 0]
    assert test_images[ROWS - 1, 0, 0].tolist() == [9, 39, 15]
    assert labels[:11].tolist() == [*range(10), 0]
    assert test_labels[:3].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("data_batch_1.png", lambda _: mosaic(0, (32, 5)), r"\(32, 5\) RGB instead of \(1024, 10000\) RGB"),
        ("data_batch_1.png", lambda _: mosaic(0, mode="L"), "L instead of"),
        ("data_batch_1.png", lambda whole: whole[: len(whole) // 2], "a mosaic that cannot be read"),
        ("data_batch_1.png", lambda _: b"GIF89a", "a mosaic that cannot be read"),
        ("train_lables.json", lambda _: b"[" * 100_000, "labels that are no JSON"),
        ("test_lables.json", lambda _: b"[1.5]", "no list of whole numbers"),
    ],
)
def test_a_mosaic_or_labels_of_another_form_are_refused(
    mosaics: Files, file: str, change: Callable[[bytes], bytes], said: str
) -> None:
    with pytest.raises(DataDamaged, match=said):
        read("cifar10-mosaics", {**mosaics, file: change(mosaics[file])})
