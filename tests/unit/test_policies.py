"""Laws of the policies of colour and shape: each operation is torchvision's; each image is changed on its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from regraft.data import policies
from regraft.data.augment import augment
from regraft.data.policies import OPERATIONS, SHAPES
from regraft.seeding import torch_stream
from regraft.spec import Augment

LEVELS = range(31)
EXACT = {"identity", *SHAPES, "posterize", "solarize", "equalize"}  # whole numbers in torchvision too

TURNED = ("shear-x", "shear-y", "rotate")


def batch(n: int = 8, channels: int = 3, side: int = 16) -> Tensor:
    """Pictures with smooth parts and edges: each has its own range of values."""
    generator = torch_stream(0, "test")
    noise = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic")
    fine = 0.1 * torch.rand(n, channels, side, side, generator=generator)
    reach = torch.rand(n, 1, 1, 1, generator=generator)
    return ((smooth + fine) * (55 + 200 * reach)).clamp(0, 255).to(torch.uint8)


def published(policy: str, name: str, level: int, sign: int, side: int) -> float:
    """Magnitudes as the papers and torchvision have them, but for `trivial`'s translation of small images."""
    share, wide = level / 30, policy == "trivial"
    farthest = 150 / 331 * side
    most = {
        "shear-x": 0.99 if wide else 0.3,
        "shear-y": 0.99 if wide else 0.3,
        "translate-x": min(32.0, farthest) if wide else farthest,
        "translate-y": min(32.0, farthest) if wide else farthest,
        "rotate": 135.0 if wide else 30.0,
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9),
    }
    if name in most:
        return sign * most[name] * share
    return {"posterize": 8 - round((6 if wide else 4) * share), "solarize": 255 - 255 * share}.get(name, 0.0)


def by_torchvision(image: Tensor, name: str, strength: float) -> Tensor:
    slope = math.degrees(math.atan(strength))
    shears = {"shear-x": [slope, 0.0], "shear-y": [0.0, slope]}
    moves = {"translate-x": [int(strength), 0], "translate-y": [0, int(strength)]}
    changes: dict[str, Callable[[], Tensor]] = {
        "identity": lambda: image,
        **{
            axis: partial(tv.affine, image, 0.0, [0, 0], 1.0, shear, center=[0, 0])  # about the corner
            for axis, shear in shears.items()
        },
        **{axis: partial(tv.affine, image, 0.0, move, 1.0, [0.0, 0.0]) for axis, move in moves.items()},
        "rotate": lambda: tv.rotate(image, strength),
        "brightness": lambda: tv.adjust_brightness(image, 1 + strength),
        "color": lambda: tv.adjust_saturation(image, 1 + strength),
        "contrast": lambda: tv.adjust_contrast(image, 1 + strength),
        "sharpness": lambda: tv.adjust_sharpness(image, 1 + strength),
        "posterize": lambda: tv.posterize(image, int(strength)),
        "solarize": lambda: tv.solarize(image, strength),
        "autocontrast": lambda: tv.autocontrast(image),
        "equalize": lambda: tv.equalize(image),
    }
    return changes[name]()


@pytest.mark.parametrize(("policy", "channels", "side"), [("trivial", 3, 32), ("trivial", 1, 75), ("rand", 3, 17)])
def test_every_operation_of_every_strength_is_torchvisions(policy: str, channels: int, side: int) -> None:
    """All in one batch, shuffled, so that images of all operations are sorted apart and put back."""
    signs = (-1, 1) if policy == "trivial" else (1,)
    draws = torch.tensor([(o, level, sign) for o in range(len(OPERATIONS)) for level in LEVELS for sign in signs])
    draws = draws[torch.randperm(len(draws), generator=torch_stream(1, "test"))]
    images = batch(8, channels, side)[torch.arange(len(draws)) % 8]
    changed = policies.apply(images, policy, draws[:, None, :])
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    for image, result, (operation, level, sign) in zip(images, changed, draws.tolist(), strict=True):
        name = OPERATIONS[operation]
        strength = published(policy, name, level, sign, side)
        # Half-way between two pixels (a shear of 0.04 does it in row 12), rounding errors choose for torchvision
        close = (strength, strength * (1 + 1e-5), strength * (1 - 1e-5)) if name in TURNED else (strength,)
        apart = [(result.int() - by_torchvision(image, name, this).int()).abs() for this in close]
        worst = int(torch.stack(apart).amin(0).max())
        assert worst <= (0 if name in EXACT else 1), (name, level, sign, worst)


def test_operations_do_what_their_names_say_to_any_values() -> None:
    """White noise, flat images and two values: what the smooth pictures above do not reach."""
    noise = torch.randint(0, 256, (4, 3, 16, 16), generator=torch_stream(2, "test")).to(torch.uint8)
    flat = torch.tensor([0, 77, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    images = torch.cat([noise, flat, torch.where(noise < 128, 3, 250).to(torch.uint8)])
    n = len(images)
    for name, change in policies.COLOURS.items():
        for strength in (0.0, 0.01, 1.0, 1.99) if name in policies.SIGNED else (0.0, 1.0, 7.0):
            changed = change(images, torch.full((n,), strength))
            for image, result in zip(images, changed, strict=True):
                wanted = by_torchvision(image, name, strength - 1 if name in policies.SIGNED else strength)
                assert int((result.int() - wanted.int()).abs().max()) <= (0 if name in EXACT else 1), (name, strength)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("policy", ["color", "trivial", "rand"])
def test_the_smallest_images_can_be_changed(policy: str, side: int) -> None:
    images = batch(60, 3, side)
    draws = policies.drawn(policy, 60, torch_stream(0, "augment"))
    assert policies.apply(images, policy, draws).shape == images.shape


def test_factors_of_1_change_nothing() -> None:
    images, ones = batch(), torch.ones(8)
    for change in (policies.brightness, policies.contrast, policies.saturation, policies.sharpness):
        assert torch.equal(change(images, ones), images)


def test_factors_cut_off_at_black_and_white() -> None:
    images = batch()
    brighter = policies.brightness(images, torch.full((8,), 1.9))
    assert torch.all(brighter >= images)
    assert int(brighter.max()) == 255
    assert not policies.brightness(images, torch.zeros(8)).any()


def test_grey_images_have_no_saturation_to_change() -> None:
    images = batch(channels=1)
    assert torch.equal(policies.saturation(images, torch.full((8,), 0.2)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_is_brightness_then_contrast_then_saturation_by_factors_about_1(channels: int) -> None:
    images, draws = batch(channels=channels), policies.drawn("color", 8, torch_stream(0, "augment"))
    one = policies.brightness(images, draws[:, 0])
    two = policies.contrast(one, draws[:, 1])
    changed = policies.apply(images, "color", draws)
    assert torch.equal(changed, policies.saturation(two, draws[:, 2]))
    backwards = policies.brightness(policies.contrast(images, draws[:, 1]), draws[:, 0])
    assert not torch.equal(policies.saturation(backwards, draws[:, 2]), changed)
    many = policies.drawn("color", 4000, torch_stream(0, "augment"))
    assert 0.6 <= float(many.min()) < 0.61
    assert 1.39 < float(many.max()) <= 1.4


def test_rand_is_two_operations_of_level_9_one_after_the_other() -> None:
    images, draws = batch(60), policies.drawn("rand", 60, torch_stream(0, "augment"))
    assert draws.shape == (60, 2, 3)
    assert set(draws[..., 1].flatten().tolist()) == {9}
    once = policies.apply(images, "rand", draws[:, :1])
    changed = policies.apply(images, "rand", draws)
    assert torch.equal(policies.apply(once, "rand", draws[:, 1:]), changed)
    assert not torch.equal(policies.apply(images, "rand", draws.flip(1)), changed)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_operations_levels_and_signs_are_drawn_evenly(policy: str) -> None:
    n = 14_000
    draws = policies.drawn(policy, n, torch_stream(0, "augment"))
    for place, values in ((0, 14), (1, 31), (2, 2)):
        if place == 1 and policy == "rand":
            continue
        counts, mean = Counter(draws[:, 0, place].tolist()), n / values
        assert len(counts) == values
        assert all(abs(count - mean) < 4.5 * mean**0.5 for count in counts.values())


@pytest.mark.parametrize("policy", ["color", "trivial", "rand"])
def test_an_image_is_changed_alike_in_any_batch(policy: str) -> None:
    images, draws = batch(60), policies.drawn(policy, 60, torch_stream(0, "augment"))
    whole = policies.apply(images, policy, draws)
    order = torch.randperm(60, generator=torch_stream(1, "test"))
    assert torch.equal(policies.apply(images[order], policy, draws[order]), whole[order])
    alone = [policies.apply(images[i : i + 1], policy, draws[i : i + 1]) for i in range(60)]
    assert torch.equal(torch.cat(alone), whole)


def test_a_batch_is_not_changed_in_place_and_its_layout_does_not_matter() -> None:
    images, draws = batch(60), policies.drawn("rand", 60, torch_stream(0, "augment"))
    before, last = images.clone(), images.contiguous(memory_format=torch.channels_last)
    changed = policies.apply(images, "rand", draws)
    assert torch.equal(images, before)
    assert torch.equal(policies.apply(last, "rand", draws), changed)


@pytest.mark.parametrize("side", [16, 15])
@pytest.mark.parametrize("cutout", [0.0, 0.3, 0.5, 1.0])
def test_cutout_makes_one_square_of_each_image_mid_grey(side: int, cutout: float) -> None:
    images, size = batch(n=400, side=side) // 2, round(cutout * side)  # values below 128
    changed = augment(images, Augment(cutout=cutout), torch_stream(0, "augment"))
    erased = (changed == 128).all(1)
    assert torch.equal(changed, torch.where(erased[:, None], 128, images))
    rows, columns = erased.any(2), erased.any(1)
    assert torch.equal(erased, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        length = line.sum(1)
        edge = line[:, 0] | line[:, -1]
        assert torch.all(length[~edge] == size)  # whole inside, cut off at the border, never away
        assert torch.all((length <= size) & (length >= min(size, (size + 1) // 2)))
        assert torch.all(line.diff(dim=1).sum(1) <= 2)  # one piece
    if 0 < cutout < 1:
        assert torch.all(erased.any(0))  # anywhere
    if size == 0:
        assert torch.equal(changed, images)
