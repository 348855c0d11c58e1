"""Building networks by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regraft.errors import ImageTooSmall, StudyError, UnknownName
from regraft.networks import body_for_cuts, build, network_names, state_hash
from regraft.networks.build import build_around, build_skeleton


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = build("resnet18", seed=5)
    torch.manual_seed(2)
    assert state_hash(build("resnet18", seed=5).state_dict()) == state_hash(first.state_dict())
    assert state_hash(build("resnet18", seed=6).state_dict()) != state_hash(first.state_dict())


@pytest.mark.parametrize("network", ["resnet18", "timm/resnet18"])
def test_building_leaves_the_global_generator_alone(network: str) -> None:
    before = torch.random.get_rng_state()
    build(network, seed=0)
    build_skeleton(network)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("network", "stem"), [("resnet18", "cifar"), ("timm/vit_tiny_patch16_224", "imagenet"), ("googlenet", "imagenet")]
)
def test_a_network_built_around_a_state_is_the_one_that_the_state_is_of(network: str, stem: str) -> None:
    original = build(network, stem=stem, seed=3, image_size=64)
    twin = build_around(original.state_dict(), network, stem=stem, image_size=64)
    assert state_hash(twin.state_dict()) == state_hash(original.state_dict())
    assert all(parameter.requires_grad for parameter in twin.parameters())
    assert twin.training
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), original.eval()(x))


def test_a_network_built_around_part_of_a_state_can_be_cut_below_the_rest() -> None:
    original = build("resnet18", seed=3)
    below = {name: tensor.half() for name, tensor in original.state_dict().items() if not name.startswith("layer4")}
    below["fc.weight"] = torch.zeros(7, 512)  # of another number of classes
    built = build_around(below, "resnet18")
    held = {name: parameter for name, parameter in built.named_parameters() if not parameter.is_meta}
    assert held.keys() == {name for name, _ in original.named_parameters()} & below.keys() - {"fc.weight"}
    for name, parameter in held.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, below[name].float())
    body = body_for_cuts(built, ["layer2.0"], pooled=True).eval()
    assert not any(tensor.is_meta for tensor in body.state_dict().values())
    assert body(torch.zeros(1, 3, 64, 64))["layer2.0"].shape == (1, 128)


def test_a_cifar_stem_keeps_the_resolution_and_every_name() -> None:
    cifar, imagenet = build("resnet18", stem="cifar", seed=0), build("resnet18", seed=0)
    assert cifar.state_dict().keys() == imagenet.state_dict().keys()
    stem = cifar.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert stem(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert isinstance(cifar.get_submodule("maxpool"), nn.Identity)


def test_the_original_resnet50_strides_in_its_first_convolutions() -> None:
    original, later = build("resnet50_v1", classes=2, seed=0), build("resnet50", classes=2, seed=0)
    assert original.state_dict().keys() == later.state_dict().keys()
    for stage in (2, 3, 4):
        strides = [original.get_submodule(f"layer{stage}.0.conv{i}").stride for i in (1, 2, 3)]
        assert strides == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize("network", ["timm/resnet18", "vgg11", "swin_t"])
def test_a_stem_that_a_network_does_not_have_is_refused(network: str) -> None:
    with pytest.raises(StudyError, match="no `stem: cifar`"):
        build(network, stem="cifar", seed=0)
    with pytest.raises(StudyError, match="there is no stem 'tiny'; there are imagenet and cifar"):
        build(network, stem="tiny", seed=0)


@pytest.mark.parametrize("network", ["googlenet", "timm/vit_tiny_patch16_224"])
def test_any_network_gives_logits_of_the_asked_number_of_classes(network: str) -> None:
    model = build(network, classes=7, seed=0, image_size=64).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_an_image_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ImageTooSmall, match="multiple of 32 px, got 40"):
        build("vit_b_32", seed=0, image_size=40)


@pytest.mark.parametrize(
    ("typed", "meant"), [("resnet19", "resnet1"), ("timm/vit_tiny_patch16_22", "vit_tiny_patch16_224")]
)
def test_an_unknown_network_is_refused_with_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=f"{typed}.*did you mean .*{meant}"):
        build(typed, seed=0)


def test_every_library_is_listed() -> None:
    names = network_names()
    assert {"resnet50", "resnet50_v1", "swin_t", "timm/vit_tiny_patch16_224"} <= set(names)
    assert len(names) == len(set(names))
