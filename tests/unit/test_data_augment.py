"""Laws of augmentation, and the one path from pictures to a network's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray

from regraft.data.augment import VIEW_BLOCK, as_batch, augment, augment_view, channel_statistics, prepare
from regraft.errors import StudyError, UnknownName
from regraft.seeding import torch_stream
from regraft.spec import Augment, Preprocessing
from regraft.spec.recipe import Augmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


@pytest.mark.parametrize("kind", ["none", "flip", "crop-flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("side", [1, 2, 8, 16])
def test_augmenting_keeps_shape_and_type(kind: str, dtype: torch.dtype, side: int) -> None:
    images = batch(side=side).to(dtype)
    changed = augment(images, Augment(kind), generator())  # type: ignore[arg-type]
    assert (changed.shape, changed.dtype) == (images.shape, dtype)


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


@pytest.mark.parametrize("kind", ["flip", "crop-flip"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_the_same_in_any_batch_and_order(kind: Augmentation, channels: int) -> None:
    images, at = batch(n=40, channels=channels), places()
    whole = augment_view(images, Augment(kind), 2, at)
    assert (whole.shape, whole.dtype) == (images.shape, images.dtype)
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(augment_view(images[order], Augment(kind), 2, at[order]), whole[order])
    parts = [augment_view(images[part], Augment(kind), 2, at[part]) for part in np.array_split(order, 7)]
    assert torch.equal(torch.cat(parts), whole[order])
    apart = np.array([0, VIEW_BLOCK, 10 * VIEW_BLOCK - 1, 3], dtype=np.int64)
    alone = [augment_view(images[i : i + 1], Augment(kind), 2, apart[i : i + 1]) for i in range(4)]
    assert torch.equal(augment_view(images[:4], Augment(kind), 2, apart), torch.cat(alone))
    assert augment_view(images[:0], Augment(kind), 2, at[:0]).shape == images[:0].shape


@pytest.mark.parametrize("kind", ["flip", "crop-flip"])
def test_views_differ_from_each_other_and_between_positions(kind: Augmentation) -> None:
    image = batch(n=1).expand(40, -1, -1, -1)
    views = [augment_view(image, Augment(kind), view, places()) for view in (1, 2, 3)]
    others = augment_view(image, Augment(kind), 1, places(start=0))
    for n, one in enumerate([*views, others]):
        kinds_of_result = {tuple(pixels) for pixels in one.flatten(1).tolist()}
        assert len(kinds_of_result) == 2 if kind == "flip" else len(kinds_of_result) > 10
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


def test_views_are_those_of_earlier_versions() -> None:
    """Cached features of a view carry its number alone; were its moves to change, old and new would be mixed."""
    rows = torch.arange(8, dtype=torch.uint8)
    image = (rows[:, None] * 8 + rows).expand(6, 1, 8, 8)
    apart = np.array([0, 1, 1023, 1024, 49_999, 1_281_166], dtype=np.int64)
    assert augment_view(image, Augment("crop-flip"), 1, apart)[:, 0, 4, 4].tolist() == [36, 44, 35, 45, 28, 37]
    assert augment_view(image, Augment("flip"), 2, apart)[:, 0, 4, 4].tolist() == [35, 36, 36, 35, 36, 35]


@pytest.mark.gpu
def test_a_gpu_moves_images_as_the_cpu_does() -> None:
    images = batch()
    on_gpu = augment(images.cuda(), Augment("crop-flip"), generator())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), augment(images, Augment("crop-flip"), generator()))


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
