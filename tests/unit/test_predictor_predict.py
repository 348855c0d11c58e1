"""A predictor's answers: the same for a picture in any form, on any back end, in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regraft.data.pictures import Unreadable
from regraft.errors import StudyError, UnknownName
from regraft.predictor import Predictor
from regraft.spec import Preprocessing
from tests.unit.predictor_example import CLASSES, SIZE, pictures, tiny_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


def forms(array: np.ndarray, folder: Path) -> dict[str, Any]:
    """One picture (h, w, 3) in every form."""
    Image.fromarray(array).save(folder / "picture.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    return {
        "a path": folder / "picture.png", "a name": str(folder / "picture.png"), "PIL": Image.fromarray(array),
        "NumPy": array, "a batch": array[None], "bytes of a tensor": tensor, "a tensor": tensor / 255,
        "a half tensor": tensor.double() / 255, "a batch of tensors": tensor[None], "a list": [array],
        "transparent": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
    }  # fmt: skip


@pytest.mark.parametrize("side", [SIZE, 47])
def test_a_picture_is_answered_alike_in_every_form(predictor: Predictor, tmp_path: Path, side: int) -> None:
    given = forms(pictures(1, side)[0], tmp_path)
    answers = {name: predictor.predict(form).logits for name, form in given.items()}
    for name, logits in answers.items():
        assert np.array_equal(logits, answers["PIL"]), name
    mixed = predictor.predict([form for name, form in given.items() if "batch" not in name and name != "a list"])
    assert np.allclose(mixed.logits, answers["PIL"], atol=1e-5)


def test_a_grey_picture_is_answered_alike_in_every_form(predictor: Predictor) -> None:
    grey = pictures(1)[0, :, :, 0]
    expected = predictor.predict(np.dstack([grey] * 3)).logits
    for form in (grey, grey[:, :, None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert np.array_equal(predictor.predict(form).logits, expected)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 4, 3)), r"images: an array of float64.*uint8"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.zeros((2, 2, 5), np.uint8), r"shape \(2, 2, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), "no picture"),
        (torch.full((3, 4, 4), -1.0), r"outside of \[0, 1\]"),
        (torch.full((3, 4, 4), torch.nan), r"outside of \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32"),
        (torch.zeros(4, 4), r"\(c, h, w\)"),
        (b"bytes", "a bytes is no picture"),
        (3, "a int is no picture"),
        ([pictures(1)[0], None], r"images\[1\]: a NoneType"),
        ([pictures(2)], r"images\[0\]: holds 2 pictures"),
        ([pictures(1)[0], "nowhere.jpg"], r"images\[1\]: no such file"),
        (Image.new("F", (4, 4)), r"images\[0\]: 32-bit"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_place(predictor: Predictor, images: Any, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        predictor.predict(images)


def test_no_picture_gives_no_answer(predictor: Predictor) -> None:
    nothing = predictor.predict([])
    assert (len(nothing), nothing.probabilities.shape, nothing.labels, nothing.top()) == (0, (0, 3), [], [])


def test_probabilities_sum_to_one_and_labels_are_the_first_of_the_top(predictor: Predictor) -> None:
    found = predictor.predict(pictures(20))
    assert found.probabilities.dtype == np.float32
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    assert len(set(found.labels)) > 1  # else the rest would say little
    for label, confidence, best in zip(found.labels, found.confidences, found.top(9), strict=True):
        assert [name for name, _ in best[:1]] == [label]
        assert best[0][1] == confidence
        assert sorted(name for name, _ in best) == sorted(CLASSES)
        assert best == sorted(best, key=lambda one: -one[1])


def test_the_temperature_moves_probabilities_and_no_label() -> None:
    cold, hot = (tiny_predictor(temperature=t).predict(pictures(20)) for t in (0.5, 5.0))
    assert cold.labels == hot.labels
    assert (cold.confidences > hot.confidences).all()
    shares = np.exp(hot.logits.astype(np.float64) / 5)
    assert np.allclose(hot.probabilities, shares / shares.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_mirrored_predictor_answers_a_picture_and_its_mirror_image_alike() -> None:
    plain, mirrored = tiny_predictor(), tiny_predictor(mirrored=True)
    there, back = pictures(4), pictures(4)[:, :, ::-1]
    assert not np.allclose(plain.predict(there).logits, plain.predict(back).logits, atol=1e-3)
    assert np.allclose(mirrored.predict(there).logits, mirrored.predict(back).logits, atol=1e-4)
    mean = (plain.predict(there).logits + plain.predict(back).logits) / 2
    assert np.allclose(mirrored.predict(there).logits, mean, atol=1e-4)


def test_neither_batches_nor_parts_matter(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(37)
    seen: list[float] = []
    whole = predictor.predict(images, batch_size=64).logits
    monkeypatch.setattr("regraft.predictor.predict.AT_ONCE", (10, 10))
    parts = predictor.predict(images, batch_size=3, advance=seen.append)
    assert np.allclose(parts.logits, whole, atol=1e-4)
    assert seen == [10 / 37, 20 / 37, 30 / 37, 1.0]


def test_the_folded_back_end_agrees_with_plain_pytorch(predictor: Predictor) -> None:
    fused = tiny_predictor(backend="auto")
    there, reference = fused.predict(pictures(20)).logits, predictor.predict(pictures(20)).logits
    assert fused.backend_record["backend"] == "fused"
    assert fused.backend_record["deviation"]["fused"] <= 1e-3
    assert np.abs(there - reference).max() <= 1e-3 * reference.std()


def test_a_device_or_back_end_that_is_not_here_is_refused(predictor: Predictor) -> None:
    with pytest.raises(StudyError, match="usable"):
        Predictor(predictor.manifest, predictor.network, device="abacus")
    with pytest.raises(UnknownName, match="did you mean 'fused'"):
        Predictor(predictor.manifest, predictor.network, device="cpu", backend="fuse")


def test_pictures_become_what_the_training_images_were() -> None:
    """Trained on squares of 32 px that the network takes at 64: a photograph takes the same way."""
    expects = Preprocessing(image_size=64, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.2))
    predictor = tiny_predictor(preprocessing=expects)
    photo = Image.fromarray(pictures(1, 200)[0])
    small = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.array_equal(predictor.predict(photo).logits, predictor.predict(np.asarray(small)).logits)


def test_a_predictor_of_grey_images_takes_the_colour_out() -> None:
    predictor = tiny_predictor(grey=True)
    colours = Image.fromarray(pictures(1)[0])
    luma = np.asarray(colours.convert("L"))
    assert np.array_equal(predictor.predict(colours).logits, predictor.predict(luma).logits)
    assert predictor.squares([pictures(1)[0]])[0].shape == (SIZE, SIZE, 1)  # type: ignore[union-attr]
