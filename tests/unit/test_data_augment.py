"""Laws of augmentation, and the one path from pictures to a network's input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from regraft.data.augment import VIEW_BLOCK, as_batch, augment, augment_view, channel_statistics, part_of, prepare
from regraft.errors import StudyError, UnknownName
from regraft.seeding import torch_stream
from regraft.spec import Augment, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERY = [
    Augment("flip"), Augment("crop-flip"), Augment("resized-crop-flip"), Augment(policy="color"),
    Augment(policy="trivial"), Augment(policy="rand"), Augment(cutout=0.5), Augment("crop-flip", "trivial", 0.25),
]  # fmt: skip
every = pytest.mark.parametrize("how", EVERY, ids=lambda how: f"{how.geometry}-{how.policy}-{how.cutout}")


def batch(n: int = 6, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, side, side), generator=torch_stream(0, "test")).to(torch.uint8)


def pictures(images: torch.Tensor) -> NDArray[np.uint8]:
    """(n, c, h, w) -> (n, h, w, c), as a split holds them."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def generator(seed: int = 0) -> torch.Generator:
    return torch_stream(seed, "augment")


def shifted_by_hand(image: torch.Tensor, down: int, right: int, pad: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(image[None].float(), (pad,) * 4, mode="reflect")[0].to(image.dtype)
    side = image.shape[-1]
    return padded[:, pad + down : pad + down + side, pad + right : pad + right + side]


@pytest.mark.parametrize("kind", ["none", "flip", "crop-flip", "resized-crop-flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("side", [1, 2, 8, 16])
def test_augmenting_keeps_shape_and_type(kind: str, dtype: torch.dtype, side: int) -> None:
    images = batch(side=side).to(dtype)
    changed = augment(images, Augment(kind), generator())  # type: ignore[arg-type]
    assert (changed.shape, changed.dtype) == (images.shape, dtype)


@every
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 3, 16])
def test_every_augmentation_takes_grey_and_small_pictures(how: Augment, channels: int, side: int) -> None:
    images = batch(40, channels, side)
    before = images.clone()
    changed = augment(images, how, generator())
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert augment(images[:0], how, generator()).shape == images[:0].shape


@every
def test_each_image_is_changed_in_its_own_way_and_apart_from_the_others(how: Augment) -> None:
    image = batch(n=1).expand(64, -1, -1, -1)
    changed = augment(image, how, generator())
    assert len({tuple(pixels) for pixels in changed.flatten(1).tolist()}) > (1 if how == Augment("flip") else 20)
    others = image.clone()
    others[::2] = batch(n=32)
    assert torch.equal(augment(others, how, generator())[1::2], changed[1::2])


@every
def test_the_seed_alone_decides(how: Augment) -> None:
    images, before = batch(n=40), torch.get_rng_state()
    first = augment(images, how, generator(1))
    assert torch.equal(first, augment(images, how, generator(1)))
    assert torch.equal(first, augment(images.contiguous(memory_format=torch.channels_last), how, generator(1)))
    assert not torch.equal(first, augment(images, how, generator(2)))
    assert torch.equal(torch.get_rng_state(), before)


class SmallOnTheCpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses CPU tensors of more than `most` numbers."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                assert tensor.numel() <= self.most, f"{func} makes {tuple(tensor.shape)} on the CPU"
        return made


@every
def test_on_a_device_only_small_numbers_are_made_on_the_cpu(how: Augment) -> None:
    """The meta device holds no values, so anything read back from it to decide by would be an error too."""
    images = torch.empty(256, 3, 64, 64, dtype=torch.uint8, device="meta")
    augment(images, how, generator())  # tables of strengths are made once
    with SmallOnTheCpu(most=256 * 6):  # no more than a matrix of each image
        changed = augment(images, how, generator())
    assert (changed.shape, changed.dtype, changed.device) == (images.shape, torch.uint8, images.device)


def test_a_flip_done_twice_is_the_image() -> None:
    images = batch(n=32)
    once = augment(images, Augment("flip"), generator())
    assert not torch.equal(once, images)
    assert torch.equal(augment(once, Augment("flip"), generator()), images)


def test_every_flipped_image_is_the_image_or_its_mirror() -> None:
    images = batch(n=64)
    changed = augment(images, Augment("flip"), generator())
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 16 < int(mirrored.sum()) < 48


def test_every_crop_is_a_shift_of_the_reflected_image_by_at_most_an_eighth() -> None:
    images = batch(n=40)
    changed = augment(images, Augment("crop-flip"), generator())
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    seen = set()
    for image, result in zip(images, changed, strict=True):
        candidates = {
            (down, right, flip): crop.flip(2) if flip else crop
            for down, right in shifts
            for flip in (False, True)
            for crop in [shifted_by_hand(image, down, right, pad=2)]
        }
        found = [key for key, crop in candidates.items() if torch.equal(crop, result)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 20  # of 50: images of one batch move differently


def test_every_resized_crop_is_a_part_of_the_image_at_full_size() -> None:
    images, rng = batch(n=60, side=24), generator()
    changed = augment(images, Augment("resized-crop-flip"), generator())
    draws, flipped = torch.rand(60, 4, generator=rng), torch.rand(60, 1, generator=rng) < 0.5
    (top, high), (left, wide) = part_of(draws, "rows"), part_of(draws, "columns")
    zero = torch.zeros_like(wide)
    # From the frame (-1, 1) of the result to that of the image
    across = torch.cat([torch.where(flipped, -wide, wide), zero, 2 * left + wide - 1], 1)
    down = torch.cat([zero, high, 2 * top + high - 1], 1)
    grid = torch.nn.functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    wanted = torch.nn.functional.grid_sample(images.double(), grid, padding_mode="border", align_corners=False)
    assert float((changed - wanted).abs().max()) < 0.5 + 0.2  # rounded; positions to 1/2048 of a pixel
    floats = augment(images.float(), Augment("resized-crop-flip"), generator())
    assert torch.allclose(floats, wanted.float(), atol=0.2)


def test_parts_have_35_to_100_percent_of_the_area_and_aspects_of_3_to_4_at_most() -> None:
    draws = torch.rand(5000, 4, generator=generator())
    (top, high), (left, wide) = part_of(draws, "rows"), part_of(draws, "columns")
    area, aspect = high * wide, wide / high
    assert torch.allclose(area, 0.35 + 0.65 * draws[:, :1].double())
    assert 0.75 - 1e-9 <= float(aspect.min()) < 0.76
    assert 1.32 < float(aspect.max()) <= 4 / 3 + 1e-9
    assert abs(float(aspect.log().mean())) < 4 * math.log(4 / 3) / 5000**0.5
    assert float(top.min()) >= 0 <= float(left.min())
    assert float((top + high).max()) <= 1 + 1e-9 >= float((left + wide).max())


def test_images_are_moved_then_changed_by_the_policy_then_erased() -> None:
    images, rng = batch(n=40), generator()
    changed = augment(images, Augment("crop-flip", "color", 0.5), generator())
    for part in (Augment("crop-flip"), Augment(policy="color"), Augment(cutout=0.5)):
        images = augment(images, part, rng)
    assert torch.equal(changed, images)


def test_policies_and_cutout_refuse_what_is_prepared() -> None:
    for how in (Augment(policy="trivial"), Augment(cutout=0.5)):
        with pytest.raises(StudyError, match=r"take uint8 pictures in 0\.\.255, got torch.float32"):
            augment(batch().float(), how, generator())


def test_the_same_generator_gives_the_same_result_and_another_does_not() -> None:
    images = batch()
    first = augment(images, Augment("crop-flip"), generator(1))
    assert torch.equal(first, augment(images, Augment("crop-flip"), generator(1)))
    assert not torch.equal(first, augment(images, Augment("crop-flip"), generator(2)))


def test_pictures_and_floats_move_alike() -> None:
    images = batch()
    moved = augment(images, Augment("crop-flip"), generator())
    assert torch.equal(augment(images.float(), Augment("crop-flip"), generator()), moved.float())


def test_the_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    augment(batch(), Augment("crop-flip"), generator())
    assert torch.equal(torch.get_rng_state(), before)


# --- views --------------------------------


def places(n: int = 40, start: int = VIEW_BLOCK - 20) -> NDArray[np.int64]:
    """Positions in a split, on both sides of where the next block of draws begins."""
    return np.arange(start, start + n, dtype=np.int64)


@every
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_the_same_in_any_batch_and_order(how: Augment, channels: int) -> None:
    images, at = batch(n=40, channels=channels), places()
    whole = augment_view(images, how, 2, at)
    assert (whole.shape, whole.dtype) == (images.shape, images.dtype)
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(augment_view(images[order], how, 2, at[order]), whole[order])
    parts = [augment_view(images[part], how, 2, at[part]) for part in np.array_split(order, 7)]
    assert torch.equal(torch.cat(parts), whole[order])
    apart = np.array([0, VIEW_BLOCK, 10 * VIEW_BLOCK - 1, 3], dtype=np.int64)
    alone = [augment_view(images[i : i + 1], how, 2, apart[i : i + 1]) for i in range(4)]
    assert torch.equal(augment_view(images[:4], how, 2, apart), torch.cat(alone))
    assert augment_view(images[:0], how, 2, at[:0]).shape == images[:0].shape


@every
def test_views_differ_from_each_other_and_between_positions(how: Augment) -> None:
    image = batch(n=1).expand(40, -1, -1, -1)
    views = [augment_view(image, how, view, places()) for view in (1, 2, 3)]
    others = augment_view(image, how, 1, places(start=0))
    for n, one in enumerate([*views, others]):
        kinds_of_result = {tuple(pixels) for pixels in one.flatten(1).tolist()}
        assert len(kinds_of_result) == 2 if how == Augment("flip") else len(kinds_of_result) > 10
        assert not any(torch.equal(one, other) for other in [*views, others][:n])


def test_a_view_moves_images_as_augmenting_does() -> None:
    """Every shift up to an eighth of the side, each about as often, and half the images flipped."""
    n, shifts = 4000, range(-2, 3)
    image = batch(n=1)
    moved = augment_view(image.expand(n, -1, -1, -1), Augment("crop-flip"), 1, places(n, start=0))
    crops = [shifted_by_hand(image[0], down, right, pad=2) for down in shifts for right in shifts]
    plain, flipped = (
        [int((moved == crop).flatten(1).all(1).sum()) for crop in some] for some in (crops, [c.flip(2) for c in crops])
    )
    assert sum(plain) + sum(flipped) == n
    assert abs(sum(flipped) - n / 2) < 4 * (n / 4) ** 0.5  # 4 standard deviations
    assert all(abs(count - n / 50) < 4.5 * (n / 50) ** 0.5 for count in plain + flipped)


def test_a_view_of_what_is_not_augmented_is_refused() -> None:
    with pytest.raises(StudyError, match=r"`augment: none` moves none; use flip or crop-flip"):
        augment_view(batch(), Augment("none"), 1, places(6))
    with pytest.raises(UnknownName, match="did you mean 'crop-flip'"):
        augment_view(batch(), Augment("crop_flip"), 1, places(6))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no policy 'trival'; did you mean 'trivial'"):
        augment_view(batch(), Augment(policy="trival"), 1, places(6))  # type: ignore[arg-type]


PINNED: dict[Augment, list[int]] = {
    Augment("resized-crop-flip"): [7768, 7115, 8225, 8954, 4611, 8360],
    Augment("crop-flip", "color"): [6586, 6564, 5577, 12263, 4541, 6745],
    Augment("flip", "trivial", 0.5): [6791, 3792, 7456, 8816, 4736, 8050],
    Augment("none", "rand"): [8033, 8130, 7560, 4467, 4127, 6160],
}


def test_views_are_those_of_earlier_versions() -> None:
    """Cached features of a view carry its number alone; were its moves to change, old and new would be mixed."""
    rows = torch.arange(8, dtype=torch.uint8)
    image = (rows[:, None] * 8 + rows).expand(6, 1, 8, 8)
    apart = np.array([0, 1, 1023, 1024, 49_999, 1_281_166], dtype=np.int64)
    assert augment_view(image, Augment("crop-flip"), 1, apart)[:, 0, 4, 4].tolist() == [36, 44, 35, 45, 28, 37]
    assert augment_view(image, Augment("flip"), 2, apart)[:, 0, 4, 4].tolist() == [35, 36, 36, 35, 36, 35]
    for how, sums in PINNED.items():
        assert augment_view(4 * image, how, 1, apart).sum((1, 2, 3)).tolist() == sums


@pytest.mark.gpu
@every
def test_a_gpu_changes_images_as_the_cpu_does_bit_for_bit(how: Augment) -> None:
    images = batch(n=300, side=33)
    on_gpu = augment(images.cuda(), how, generator())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), augment(images, how, generator()))


def test_an_unknown_augmentation_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'crop-flip'"):
        augment(batch(), Augment("crop_flip"), generator())  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [16, 32, 10])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_prepare_is_the_plain_torchvision_computation(side: int, interpolation: str) -> None:
    images = batch()
    wanted = Preprocessing(image_size=side, mean=MEAN, std=STD, interpolation=interpolation)  # type: ignore[arg-type]
    plain = tv.to_dtype(images, torch.float32, scale=True)
    plain = tv.resize(plain, [side, side], tv.InterpolationMode(interpolation), antialias=True).clamp(0, 1)
    plain = tv.normalize(plain, list(MEAN), list(STD))
    assert torch.allclose(prepare(images, wanted), plain, atol=1e-5)


def test_prepare_takes_both_layouts() -> None:
    images = batch()
    wanted = Preprocessing(image_size=16, mean=MEAN, std=STD)
    assert torch.equal(prepare(images.permute(0, 2, 3, 1), wanted), prepare(images, wanted))


def test_grey_pictures_become_three_equal_channels_before_normalising() -> None:
    images = batch(channels=1)
    wanted = Preprocessing(image_size=24, mean=MEAN, std=STD)
    assert torch.equal(prepare(images, wanted), prepare(images.expand(-1, 3, -1, -1), wanted))


def test_bgr_weights_get_their_channels_in_their_order() -> None:
    """Keras' ResNet50: BGR, mean in BGR order."""
    images = batch()
    bgr = Preprocessing(image_size=16, mean=MEAN, std=STD, channels="bgr")
    rgb = Preprocessing(image_size=16, mean=MEAN, std=STD)
    assert torch.equal(prepare(images, bgr), prepare(images.flip(1), rgb))


def test_a_picture_is_not_prepared_twice() -> None:
    wanted = Preprocessing(image_size=16, mean=MEAN, std=STD)
    with pytest.raises(StudyError, match="takes uint8"):
        prepare(prepare(batch(), wanted), wanted)


def test_what_is_prepared_first_without_gradients_can_be_trained_on_later() -> None:
    wanted = Preprocessing(image_size=16, mean=(0.1, 0.2, 0.3), std=STD)
    with torch.inference_mode():
        first = prepare(batch(), wanted)
    weight = torch.ones((), requires_grad=True)
    again = prepare(batch(), wanted)
    (again * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(first, again)
    assert weight.grad is not None


def test_pictures_that_are_not_square_are_refused() -> None:
    wanted = Preprocessing(image_size=16, mean=MEAN, std=STD)
    with pytest.raises(StudyError, match="square"):
        prepare(torch.zeros(2, 3, 16, 12, dtype=torch.uint8), wanted)


def test_channel_statistics_are_those_of_all_pixels() -> None:
    images = pictures(batch(n=50))
    mean, std = channel_statistics(images)
    assert np.allclose(mean, (images / 255).mean(axis=(0, 1, 2)), atol=1e-12)
    assert np.allclose(std, (images / 255).std(axis=(0, 1, 2)), atol=1e-12)


def test_grey_statistics_are_three_times_the_same_and_a_flat_channel_can_be_divided_by() -> None:
    mean, std = channel_statistics(np.full((4, 8, 8, 1), 51, np.uint8))
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == (1 / 255,) * 3


def test_statistics_in_parts_are_the_statistics_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(batch(n=50))
    whole = channel_statistics(images)
    monkeypatch.setattr("regraft.data.augment.CHUNK_BYTES", 3000)
    assert channel_statistics(images) == whole


def test_prepared_pictures_with_their_own_statistics_have_mean_0_and_std_1() -> None:
    images = batch(n=50)
    mean, std = channel_statistics(pictures(images))
    ready = prepare(images, Preprocessing(image_size=16, mean=mean, std=std))
    assert torch.allclose(ready.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(ready.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_a_batch_is_a_copy_with_channels_first() -> None:
    images = pictures(batch())
    images.flags.writeable = False  # as a memory-mapped split's are
    made = as_batch(images[2:5])
    assert torch.equal(made, batch()[2:5])
    assert made.is_contiguous()
