"""Laws of mixup and CutMix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regraft.learn.mixing import Mixed, mix
from regraft.seeding import torch_stream

KINDS = [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)]


def constant_images(n: int = 12, side: int = 8) -> tuple[Tensor, Tensor]:
    """Image i holds the value i everywhere, and has the label 100 + i."""
    labels = torch.arange(100, 100 + n)
    return (labels - 100.0).view(n, 1, 1, 1).expand(n, 3, side, side).contiguous(), labels


def generator(seed: int = 0) -> torch.Generator:
    return torch_stream(seed, "mix")


def test_nothing_is_drawn_and_nothing_changed_when_off() -> None:
    images, labels = constant_images()
    rng = generator()
    before = rng.get_state()
    mixed = mix(images, labels, 0.0, 0.0, rng)
    assert mixed.inputs is images
    assert mixed.labels is labels
    assert mixed.others is labels
    assert mixed.share == 1.0
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("seed", range(8))
def test_mixup_blends_an_image_and_another_by_the_share_of_their_labels(seed: int) -> None:
    images, labels = constant_images()
    mixed = mix(images, labels, 1.0, 0.0, generator(seed))
    assert 0 <= mixed.share <= 1
    assert torch.equal(mixed.labels, labels)
    assert sorted(mixed.others.tolist()) == labels.tolist()  # each image is blended in once
    own, other = mixed.labels - 100.0, mixed.others - 100.0
    wanted = mixed.share * own + (1 - mixed.share) * other
    assert torch.allclose(mixed.inputs, wanted.view(-1, 1, 1, 1).expand_as(images), atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_one_box_of_the_area_that_the_share_leaves(seed: int) -> None:
    images, labels = constant_images(side=16)
    mixed = mix(images, labels, 0.0, 1.0, generator(seed))
    own, other = (those.view(-1, 1, 1, 1) - 100.0 for those in (mixed.labels, mixed.others))
    assert torch.all((mixed.inputs == own) | (mixed.inputs == other))
    told = mixed.others != mixed.labels
    pasted = (mixed.inputs == other)[told]  # (m, 3, 16, 16)
    assert torch.all(pasted == pasted[:1, :1])  # the same box everywhere
    box = pasted[0, 0]
    assert int(box.sum()) == int(box.any(0).sum()) * int(box.any(1).sum())  # filled, without gaps
    for line in (box.any(0), box.any(1)):
        at = line.nonzero().flatten()
        assert len(at) == 0 or int(at[-1] - at[0]) + 1 == len(at)
    assert mixed.share == pytest.approx(1 - int(box.sum()) / 256)


@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_shape_and_type_stay_and_the_batch_given_is_not_changed(mixup: float, cutmix: float) -> None:
    images, labels = constant_images()
    for dtype in (torch.float32, torch.bfloat16):
        given = images.to(dtype)
        mixed = mix(given, labels, mixup, cutmix, generator(3))
        assert (mixed.inputs.shape, mixed.inputs.dtype) == (images.shape, dtype)
        assert torch.equal(given, images.to(dtype))


def same(one: Mixed, other: Mixed) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.others, other.others) and one.share == other.share


@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_the_same_seed_mixes_alike_and_another_does_not(mixup: float, cutmix: float) -> None:
    images, labels = constant_images()
    before = torch.get_rng_state()
    first = mix(images, labels, mixup, cutmix, generator(1))
    assert same(first, mix(images, labels, mixup, cutmix, generator(1)))
    assert not same(first, mix(images, labels, mixup, cutmix, generator(2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_features_can_be_mixed_up() -> None:
    features, labels = torch.eye(6), torch.arange(6)
    mixed = mix(features, labels, 1.0, 0.0, generator())
    wanted = mixed.share * features + (1 - mixed.share) * features[mixed.others]
    assert torch.allclose(mixed.inputs, wanted)


def test_with_both_each_batch_gets_one_by_a_fair_coin() -> None:
    images, labels = constant_images()
    rng, boxed = generator(), 0
    for _ in range(400):
        mixed = mix(images, labels, 1.0, 1.0, rng)
        boxed += bool(torch.all(mixed.inputs == mixed.inputs.round()))
    assert abs(boxed - 200) < 4 * 10  # 4 standard deviations


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 30.0])
def test_shares_have_the_moments_of_their_beta_distribution(alpha: float) -> None:
    """Of mean 1/2 and variance 1 / (4 (2 alpha + 1)): nearly a coin for a small alpha, nearly 1/2 for a large one."""
    images, labels = torch.zeros(2, 1), torch.zeros(2)
    rng, n = generator(), 3000
    shares = torch.tensor([mix(images, labels, alpha, 0.0, rng).share for _ in range(n)], dtype=torch.float64)
    variance = 1 / (4 * (2 * alpha + 1))
    assert torch.all((shares >= 0) & (shares <= 1))
    assert abs(float(shares.mean()) - 0.5) < 4 * (variance / n) ** 0.5
    assert float(shares.var()) == pytest.approx(variance, rel=0.12)


@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_one_image_is_mixed_with_itself(mixup: float, cutmix: float) -> None:
    images, labels = constant_images(n=1)
    mixed = mix(images, labels, mixup, cutmix, generator())
    assert torch.equal(mixed.inputs, images)
    assert torch.equal(mixed.others, labels)


@pytest.mark.gpu
@pytest.mark.parametrize(("mixup", "cutmix"), KINDS)
def test_a_gpu_mixes_as_the_cpu_does(mixup: float, cutmix: float) -> None:
    images, labels = constant_images()
    on_cpu = mix(images, labels, mixup, cutmix, generator())
    on_gpu = mix(images.cuda(), labels.cuda(), mixup, cutmix, generator())
    assert on_gpu.inputs.is_cuda
    assert on_gpu.share == on_cpu.share
    assert torch.equal(on_gpu.others.cpu(), on_cpu.others)
    assert torch.allclose(on_gpu.inputs.cpu(), on_cpu.inputs)
