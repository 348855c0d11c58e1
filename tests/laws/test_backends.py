"""Every back end gives the features of plain eager PyTorch, and none touches the trunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from regraft.learn.backend_table import PREPARE, absent
from regraft.learn.backends import Backend, choose_backend, deviation
from regraft.networks import Trunk, body_for_cuts, build
from regraft.networks.cuts import pooled_body
from regraft.networks.fold import FusedConv, fold, fuse, norms
from regraft.spec.models import Pooling

ROUNDING = 2e-5  # of a standard deviation: float32 added up in another order
SHAPES = ("timm/test_resnet", "timm/vit_tiny_patch16_224", "shufflenet_v2_x0_5")  # compute with shapes, but the first
QUICK = [name for name in PREPARE if name not in ("eager", "inductor")]


@dataclass(frozen=True)
class Case:
    network: str
    image_size: int  # pixels
    cuts: tuple[str, ...]
    norms_left: int = 0  # BatchNorms that follow no convolution


CASES = [
    Case("resnet18", 32, ("maxpool", "layer2.0", "penultimate")),
    Case("timm/test_resnet", 32, ("layer1.0", "layer3.0", "penultimate")),
    Case("mobilenet_v2", 32, ("features.0", "features.7", "penultimate")),
    Case("shufflenet_v2_x0_5", 32, ("stage2.1", "stage3.3", "penultimate")),
    Case("timm/test_efficientnet", 32, ("blocks.1.0", "penultimate")),  # BatchNormAct2d
    Case("timm/resnetv2_50", 32, ("stages.1.blocks.0", "stages.2.blocks.1"), norms_left=9),  # BatchNorm first
    Case("timm/vit_tiny_patch16_224", 32, ("blocks.5", "penultimate")),
]


def images(count: int, size: int, *, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


def trained_looking(network: nn.Module) -> nn.Module:
    """BatchNorms that do something: fresh ones are the identity, and would hide a wrong folding."""
    generator = torch.Generator().manual_seed(1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            count = norm.num_features
            norm.running_mean = torch.randn(count, generator=generator) * 0.1
            norm.running_var = torch.rand(count, generator=generator) + 0.5
            norm.weight.data = torch.rand(count, generator=generator) * 0.6 + 0.4
            norm.bias.data = torch.randn(count, generator=generator) * 0.1
    return network


def trunk_of(case: Case, cuts: tuple[str, ...] = ()) -> Trunk:
    network = trained_looking(build(case.network, seed=0, image_size=case.image_size))
    trunk = Trunk(body_for_cuts(network, cuts or case.cuts, pooled=True), frozen=True)
    return trunk.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.network)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trunk(case: Case) -> Iterator[Trunk]:
    """The tests of a case share it, since no back end may change it; that is checked at the end."""
    trunk = trunk_of(case)
    before, strides = trunk.state_hash(), [tensor.stride() for tensor in trunk.state_dict().values()]
    yield trunk
    assert trunk.state_hash() == before
    assert [tensor.stride() for tensor in trunk.state_dict().values()] == strides
    assert not any(module.training for module in trunk.modules())


def prepared(trunk: Trunk, name: str, sample: Tensor) -> Backend:
    if reason := absent(name, sample.device):
        pytest.skip(reason)
    backend = choose_backend(trunk, sample, 1, prefer=name)
    assert backend.name == name, backend.record["left_out"]
    return backend


def test_folding_and_fusing_change_no_feature(case: Case, trunk: Trunk) -> None:
    x = images(5, case.image_size)
    with torch.inference_mode():
        folded = fold(trunk.body)
        fused = fuse(folded, x)
        expected = trunk(x)
        assert deviation(folded(x), expected) < ROUNDING
        assert deviation(fused(x), expected) < ROUNDING
        assert deviation(fused(x), expected) < ROUNDING  # nothing was written over that is needed again
        other = images(3, case.image_size, seed=1)  # another batch size than it was made with
        assert deviation(fused(other), trunk(other)) < ROUNDING


def test_every_norm_after_a_convolution_is_folded(case: Case, trunk: Trunk) -> None:
    assert sum(isinstance(module, norms()) for module in fold(trunk.body).modules()) == case.norms_left


@pytest.mark.parametrize("name", QUICK)
def test_all_cuts_together_are_each_cut_alone(name: str) -> None:
    """A value that is taken at a cut must not be written over by the sum that comes after it."""
    case = Case("timm/test_resnet", 32, ("layer1.0", "layer2.0", "layer3.0", "penultimate"))
    x = images(4, case.image_size)
    together = prepared(trunk_of(case), name, x)(x)
    for cut in case.cuts:
        alone = prepared(trunk_of(case, (cut,)), name, x)(x)
        assert deviation({cut: together[cut]}, alone) < ROUNDING


@pytest.mark.parametrize("name", QUICK)
def test_a_head_predicts_the_same_from_every_back_end(name: str) -> None:
    """On at least 99.9 % of images (here: on all but one in 1,000), with ten random linear classes."""
    case = Case("timm/test_resnet", 32, ("penultimate",))
    trunk = trunk_of(case)
    x = images(1000, case.image_size)
    head = torch.randn(trunk(x[:1])["penultimate"].shape[1], 10, generator=torch.Generator().manual_seed(2))
    expected = (trunk(x)["penultimate"] @ head).argmax(dim=1)
    got = (prepared(trunk, name, x[:8])(x)["penultimate"] @ head).argmax(dim=1)
    assert (got == expected).float().mean() >= 0.999


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("case", [case for case in CASES if case.network in SHAPES], ids=lambda case: case.network)
def test_every_back_end_takes_any_number_of_images(case: Case, name: str) -> None:
    trunk = trunk_of(case)
    backend = prepared(trunk, name, images(2, case.image_size))
    for count in (1, 7):
        x = images(count, case.image_size, seed=count)
        assert deviation(backend(x), trunk(x)) < ROUNDING


@pytest.mark.parametrize("name", QUICK)
def test_every_pooling_is_the_same_on_every_back_end(name: str) -> None:
    network = trained_looking(build("timm/test_resnet", seed=0, image_size=32))
    kinds: tuple[Pooling, ...] = ("average", "average-max", "grid-2")
    trunk = Trunk(
        pooled_body(network, [(cut, kind) for cut in ("layer1.0", "layer2.0") for kind in kinds]), frozen=True
    )
    x = images(3, 32)
    assert deviation(prepared(trunk, name, x)(x), trunk(x)) < ROUNDING


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about what it is made of
def test_the_compiled_trunk_gives_the_same_features() -> None:
    case = Case("timm/test_resnet", 32, ("layer1.0", "penultimate"))
    trunk = trunk_of(case)
    before = trunk.state_hash()
    backend = prepared(trunk, "inductor", images(4, case.image_size))
    x = images(150, case.image_size, seed=1)  # two whole batches and a part
    assert deviation(backend(x), trunk(x)) < ROUNDING
    assert trunk.state_hash() == before


def test_convolution_sum_and_activation_are_one_operator() -> None:
    """All of a ResNet's, and each sum is written over the branch it adds, unless a cut takes that branch later."""
    x = images(2, 32)
    trunk = trunk_of(Case("resnet18", 32, ("layer4.1",)))
    fused = [module for module in fuse(fold(trunk.body), x).modules() if isinstance(module, FusedConv)]
    assert len(fused) == 20
    assert sum(module.in_place for module in fused) == 8
    assert not any(isinstance(module, nn.Conv2d | nn.ReLU) for module in fuse(fold(trunk.body), x).modules())
