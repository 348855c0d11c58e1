"""Duplicates are found whatever was done to brightness, contrast, position or side; other pictures are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regraft.data import duplicates as d
from regraft.data import load_dataset
from regraft.data.likeness import CHANCE, UNCALIBRATED, Threshold
from regraft.data.registration import likeness, rough
from regraft.data.sketches import in_a_mirror, look_at, nearly_constant
from regraft.seeding import stream

Images = NDArray[np.uint8]


def scenes(n: int, seed: int, side: int = 32, channels: int = 3) -> Images:
    """(n, side, side, channels): clouds with the spectrum of photographs, amplitude 1 / frequency (Field 1987)."""
    rng = stream(seed, "scenes")
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.standard_normal((n, side, side, channels)), axes=(1, 2)) / frequency[..., None]
    grey = waves.mean(3, keepdims=True) * 3 + waves  # channels go together, as they do in photographs
    pixels = np.fft.irfft2(grey, s=(side, side), axes=(1, 2))
    low, high = (pixels.reshape(n, -1).min(1), pixels.reshape(n, -1).max(1))
    scaled = (pixels - low[:, None, None, None]) / (high - low)[:, None, None, None]
    return np.ascontiguousarray((255 * scaled).astype(np.uint8))


def resized(image: Images, width: int, height: int) -> Images:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def framed(image: Images) -> Images:
    """Smaller, on a grey page."""
    page = np.full_like(image, 120)
    page[4:28, 3:29] = resized(image, 26, 24)
    return page


def jpeg(image: Images) -> Images:
    """Compressed at quality 60, and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))


def pixels(images: Images) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


CHANGES: dict[str, Callable[[Images], Images]] = {
    "none": lambda image: image,
    "darker, less contrast": lambda image: (0.6 * image + 20).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "two pixels down": lambda image: np.roll(image, 2, axis=0),
    "two pixels to the left": lambda image: np.roll(image, -2, axis=1),
    "compressed": jpeg,
    "cropped": lambda image: resized(image[2:28, 5:30], 32, 32),
    "cropped, mirrored, darker": lambda image: (0.8 * resized(image[3:, ::-1][:, :28], 32, 32)).astype(np.uint8),
    "stretched": lambda image: resized(image, 32, 40)[4:36],
    "framed": framed,
    "mirrored, shifted, brighter": lambda image: (0.7 * np.roll(image[:, ::-1], 1, 1) + 70).astype(np.uint8),
}


@pytest.fixture(scope="module")
def gallery() -> Images:
    return scenes(300, seed=0)


@pytest.fixture(scope="module")
def threshold(gallery: Images) -> Threshold:
    return d.calibrate(look_at(gallery), np.arange(300) % 5)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found_with_the_one_that_it_was_made_from(
    change: str, gallery: Images, threshold: Threshold
) -> None:
    sources = np.array([3, 77, 250])
    queries = np.stack([*scenes(20, seed=1), *(CHANGES[change](gallery[i]) for i in sources)])
    pairs = d.find_pairs(look_at(queries), look_at(gallery), threshold.correlation)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(20, 3), (21, 77), (22, 250)]
    assert pairs.mirrored.all() == ("mirrored" in change)
    assert pairs.exact.all() == (change == "none")


def test_pictures_that_are_new_are_hardly_ever_taken_for_old_ones(gallery: Images, threshold: Threshold) -> None:
    pairs = d.find_pairs(look_at(scenes(400, seed=2)), look_at(gallery), threshold.correlation)
    assert threshold.by_chance == pytest.approx(CHANCE, rel=0.01)
    assert len(pairs) <= 1  # 0.04 are expected


def test_mirrored_pictures_are_different_ones_where_that_is_asked_for(gallery: Images, threshold: Threshold) -> None:
    queries = np.ascontiguousarray(gallery[:5, :, ::-1])
    assert len(d.find_pairs(look_at(queries), look_at(gallery), threshold.correlation)) == 5
    assert len(d.find_pairs(look_at(queries), look_at(gallery), threshold.correlation, mirrors=False)) == 0


def test_neighbours_are_the_nearest_ones_however_the_work_is_cut_up(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = look_at(scenes(30, seed=3)), look_at(scenes(70, seed=4))
    products = queries.sketches.flatten(1).numpy() @ gallery.sketches.flatten(1).numpy().T
    nearest = {(i, j) for i in range(30) for j in np.argsort(-products[i])[: d.CANDIDATES].tolist()}
    monkeypatch.setattr(d, "QUERY_BLOCK", 7)
    monkeypatch.setattr(d, "GALLERY_BLOCK", 11)
    rows, columns = d._candidates(queries, gallery, None, mirrored=False)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == nearest


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (64, 3), (8, 1)])
def test_the_sketch_of_a_mirrored_picture_is_the_sketch_in_a_mirror(side: int, channels: int) -> None:
    images = scenes(10, seed=8, side=side, channels=channels)
    mirrored = look_at(np.ascontiguousarray(images[:, :, ::-1])).sketches
    assert torch.allclose(mirrored, in_a_mirror(look_at(images).sketches), atol=1e-5)


def test_the_warp_that_is_found_is_the_one_that_was_applied(gallery: Images) -> None:
    """A crop of columns 4 to 29 and rows 2 to 27: scale 26 / 32, the middle 1 pixel to the right and 1 up."""
    crops = np.stack([resized(image[2:28, 4:30], 32, 32) for image in gallery[:50]])
    warps, values = rough(pixels(crops), pixels(gallery[:50]))
    across, right, down, below = warps.median(0).values.tolist()
    assert (across, down) == (pytest.approx(26 / 32, abs=0.02), pytest.approx(26 / 32, abs=0.02))
    assert (32 * right, 32 * below) == (pytest.approx(1, abs=0.3), pytest.approx(-1, abs=0.3))
    assert values.min() > 0.9


def test_within_a_split_each_pair_is_found_once_and_no_image_with_itself(gallery: Images) -> None:
    images = np.concatenate([gallery[:50], gallery[10:13], gallery[20:21, :, ::-1]])
    seen = look_at(images)
    pairs = d.find_pairs(seen, seen, 0.99, same_split=True)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (10, 50),
        (11, 51),
        (12, 52),
        (20, 53),
    ]
    part = d.find_pairs(seen.part(np.array([10, 50, 52])), seen, 0.99, same_split=True)
    assert sorted(zip(part.first.tolist(), part.second.tolist(), strict=True)) == [(10, 50), (12, 52)]


def test_positions_are_those_in_the_whole_split(gallery: Images) -> None:
    pairs = d.find_pairs(look_at(gallery, np.array([5, 90])), look_at(gallery, np.array([7, 90, 290])), 0.99)
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([90], [90])


def test_likeness_knows_neither_brightness_nor_contrast_and_is_the_same_in_a_mirror() -> None:
    images = scenes(20, seed=5)
    ours = pixels(images)
    theirs = pixels(np.stack([resized(image[2:28, 5:30], 32, 32) for image in images]))

    def alike(one: Tensor, other: Tensor) -> Tensor:
        return likeness(one, other, rough(one, other)[0])

    assert torch.allclose(alike(ours, ours), torch.ones(20), atol=1e-4)
    assert torch.allclose(alike(ours, 0.5 * ours + 30), torch.ones(20), atol=1e-3)
    assert torch.allclose(alike(ours, theirs), alike(ours, 0.3 * theirs + 9), atol=0.02)
    assert torch.allclose(alike(ours.flip(3), theirs.flip(3)), alike(ours, theirs), atol=0.02)


def test_empty_pictures_are_named_and_taken_for_nothing_else(gallery: Images) -> None:
    flat = np.full((4, 32, 32, 3), 128, np.uint8)
    flat[2] += scenes(1, seed=7)[0] // 200  # one level here and there
    flat[3] = (flat[3] + np.array([0, 40, 80])).astype(np.uint8)  # one colour
    images = np.concatenate([gallery[:10], flat])
    assert nearly_constant(images, np.arange(14)).tolist() == [10, 11, 12, 13]
    seen = look_at(images)
    assert len(d.find_pairs(seen, seen, 0.9, same_split=True)) == 0
    numbers = d.contents(images, np.arange(14))
    assert numbers[10] == numbers[11]
    assert len(set(numbers.tolist())) == 13


def test_a_few_duplicates_hardly_move_the_threshold(gallery: Images, threshold: Threshold) -> None:
    images = gallery.copy()
    images[:15] = images[150:165]  # 5 % of all have a twin
    moved = d.calibrate(look_at(images), np.arange(300) % 5)
    assert moved.correlation == pytest.approx(threshold.correlation, abs=0.06)
    assert moved.other_class == 0  # 150 is 0 modulo 5: twins share their class


def test_pictures_that_are_alike_without_being_the_same_raise_the_threshold(threshold: Threshold) -> None:
    digits = load_dataset("digits").train
    of_digits = d.calibrate(look_at(digits.images), digits.labels, mirrors=False)
    assert threshold.correlation < of_digits.correlation < 1
    assert of_digits.other_class == 0
    assert (threshold.blunt, of_digits.blunt) == (False, True)


def test_too_few_images_say_nothing_of_chance(gallery: Images) -> None:
    found = d.calibrate(look_at(gallery[:99]), np.arange(99) % 5)
    assert (found.correlation, found.by_chance) == (UNCALIBRATED, None)
    assert "not calibrated" in found.text


def test_pictures_of_other_size_and_without_colour_are_compared(gallery: Images) -> None:
    large = gallery[:8].repeat(2, axis=1).repeat(2, axis=2)
    grey = gallery.astype(np.float64).mean(3, keepdims=True).round().astype(np.uint8)
    pairs = d.find_pairs(look_at(large, side=32, grey=True), look_at(grey, side=32, grey=True), 0.99)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(i, i) for i in range(8)]
