"""Which cuts are offered, what is said of them, and why others are refused."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from regraft.errors import ImageTooSmall, StudyError, UnknownCut
from regraft.networks import body_for_cuts, build, cut, cut_points, describe, find_cut, resolve_cut
from regraft.networks.build import build_skeleton
from regraft.networks.probe import measure
from regraft.networks.trace import trace

PUBLISHED = [
    "resnet18", "resnet50", "vgg11_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
    "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16",
]  # fmt: skip


@pytest.mark.parametrize("network", PUBLISHED)
def test_flops_and_parameters_are_the_published_ones(network: str) -> None:
    published = torchvision.models.get_model_weights(network).DEFAULT.meta
    skeleton = build_skeleton(network)
    total = sum(node.flops for node in measure(skeleton, trace(skeleton), 224).values())
    assert total / 2e9 == pytest.approx(published["_ops"], abs=0.0006)  # published: 1e9 multiply-adds, 3 decimals
    last = describe(network)[-1]
    classifier = 1000 * (last.features + 1)
    assert last.parameters + classifier == published["num_params"]


def test_the_cuts_of_a_resnet_are_its_stem_its_blocks_and_the_penultimate_layer() -> None:
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [p.name for p in describe("resnet18")] == ["relu", "maxpool", *blocks, "penultimate"]
    assert [p.name for p in describe("resnet18", "cifar", 32)] == ["relu", *blocks, "penultimate"]


def test_the_original_study_s_cut_carries_its_name() -> None:
    aliases = {p.name: p.alias for p in describe("resnet50", "imagenet", 32) if p.alias}
    assert aliases == {"layer2.2": "first 18 layers"}
    assert not any(p.alias for p in (*describe("resnet34"), *describe("wide_resnet50_2")))


@pytest.mark.parametrize(
    ("network", "at", "shape", "layout"),
    [
        ("swin_t", "features.1.0", (56, 56, 96), "hwc"),
        ("convnext_tiny", "features.1.0", (96, 56, 56), "chw"),
        ("timm/vit_tiny_patch16_224", "blocks.0", (197, 192), "tokens"),
        ("vgg11_bn", "classifier.1", (4096,), "flat"),
        ("squeezenet1_1", "penultimate", (512, 13, 13), "chw"),  # its classifier is a convolution
    ],
)
def test_a_cut_tells_the_layout_of_its_value(network: str, at: str, shape: tuple[int, ...], layout: str) -> None:
    point = resolve_cut(network, at, 224)
    assert (point.shape, point.layout) == (shape, layout)
    assert point.features == (shape[0] if layout == "chw" else shape[-1])


def test_a_stage_stands_for_its_last_block_and_nothing_for_the_penultimate_layer() -> None:
    network = build("resnet18", seed=0)
    assert find_cut(network, "layer3", 64).name == "layer3.1"
    assert find_cut(network, None, 64) == find_cut(network, "penultimate", 64) == cut_points(network, 64)[-1]
    assert resolve_cut("resnet18", "layer3", 64) == find_cut(network, "layer3", 64)


@pytest.mark.parametrize(
    ("network", "at", "words"),
    [
        ("resnet50", "layer2.9", "no cut 'layer2.9'; did you mean 'layer2.*regraft cuts resnet50"),
        ("resnet50", "layer2.1.conv2", "inside the block 'layer2.1'.*nearest valid cut is 'layer2.1'"),
        ("resnet50", "conv1", "not the end of a block.*nearest valid cut is 'relu'"),
        ("resnet50", "fc", "belongs to the classifier.*'penultimate'"),
        ("densenet121", "features.denseblock1.denselayer2", "goes around it.*features.denseblock1'"),
        ("vit_b_16", "encoder.layers.encoder_layer_3.mlp", "inside the block.*encoder_layer_3'"),
    ],
)
def test_what_is_no_cut_is_refused_with_the_reason_and_the_nearest(network: str, at: str, words: str) -> None:
    with pytest.raises(UnknownCut, match=words):
        resolve_cut(network, at, 224)


@pytest.mark.parametrize(
    ("network", "image_size", "fits"),
    [("vgg11", 8, 32), ("inception_v3", 32, 96), ("vit_b_16", 30, 32)],
)
def test_an_image_that_does_not_fit_is_refused_with_a_size_that_does(network: str, image_size: int, fits: int) -> None:
    with pytest.raises(ImageTooSmall, match=rf"{network}: .*smallest size found to work is {fits} px"):
        describe(network, "imagenet", image_size)


class Around(nn.Module):
    """A long skip connection goes around `middle`; `end` is where the paths meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.end = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(3))
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.end(self.middle(y) + y)
        y = nn.functional.dropout(y.mean((2, 3)), 0.5, training=self.training)
        return self.fc(y)  # type: ignore[no-any-return]


def test_a_node_with_a_path_around_it_is_no_cut() -> None:
    network = Around()
    assert [p.name for p in cut_points(network, 8)] == ["first.1", "end.1", "penultimate"]
    with pytest.raises(UnknownCut, match=r"path from 'first.1' goes around it"):
        cut(network, "middle.1")


def test_dropout_as_a_function_follows_train_and_eval() -> None:
    """torch.fx would write the mode of the moment of tracing into the graph."""
    torch.manual_seed(0)  # of other seeds, some leave nothing alive to drop
    network = Around().eval()
    x = torch.rand(64, 3, 8, 8)
    for at, part in (("first.1", 1), ("penultimate", 0)):
        half = cut(network, at)[part]
        given = x if part == 0 else cut(network, at)[0](x)
        still, moved = [[half.train(mode)(given) for _ in range(2)] for mode in (False, True)]
        assert torch.equal(*still)
        assert not torch.equal(*moved)
        assert torch.equal(half.eval()(given), still[0])


class Overwriting(nn.Module):
    """An in-place activation outside any block changes what `block` returned."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv2d(3, 3, 1)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.pool(self.block(x)), inplace=True)
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


def test_an_in_place_activation_changes_neither_other_cuts_nor_cached_features() -> None:
    torch.manual_seed(0)
    network = Overwriting().eval()
    x = torch.randn(4, 3, 8, 8)
    body, tail = cut(network, "pool")
    features = body(x)
    assert (features < 0).any(), "else this test shows nothing"
    assert torch.equal(body_for_cuts(network, ["pool", "penultimate"])(x)["pool"], features)
    kept = features.clone()
    assert torch.equal(tail(features), network(x))
    assert torch.equal(features, kept)


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) if x.sum() > 0 else self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_followed_is_refused_with_the_reason() -> None:
    with pytest.raises(StudyError, match=r"Undecided cannot be cut.*control flow"):
        cut_points(Undecided(), 8)


class Stage(nn.Sequential):
    """Blocks of one kind, entered one after the other but on the first image's say."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x) if x[0].sum() > 0 else x
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())  # type: ignore[no-any-return]


class Staged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(Block(), Block())
        self.last = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.stage(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_stage_that_cannot_be_followed_is_one_block() -> None:
    network = Staged().eval()
    assert trace(network).closed == ("stage",)
    assert [p.name for p in cut_points(network, 8)] == ["stage", "last.0", "last.1", "penultimate"]
    body, tail = cut(network, "stage")
    for x in (torch.rand(2, 3, 8, 8), -torch.rand(2, 3, 8, 8)):
        assert torch.equal(tail(body(x)), network(x))
    with pytest.raises(UnknownCut, match="inside the block 'stage'"):
        cut(network, "stage.0")


class Grouped(nn.Module):
    """Between its blocks: a slice, a list, a mapping, and arguments that are not asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        x = self.first(x)[:, :, 1:, ::2] * scale
        x = torch.cat([x, nn.functional.dropout(self.second(x), p=0.9, training=self.training)], dim=1)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_steps_between_blocks_are_those_of_the_network_in_both_modes() -> None:
    network = Grouped().eval()
    x = torch.rand(4, 3, 8, 8)
    body, tail = cut(network, "first")
    assert torch.equal(tail(body(x)), network(x))
    torch.manual_seed(1)
    expected = network.train()(x)
    torch.manual_seed(1)
    assert torch.equal(tail.train()(body.train()(x)), expected)
    assert not torch.equal(expected, network.eval()(x))


class ByMode(nn.Module):
    """Computes something else in training: as many steps, or one more."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.more, self.block, self.fc = more, Block(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        x = (x.tanh().relu() if self.more else x.tanh()) if self.training else x.relu()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("more", [True, False])
def test_a_network_that_takes_other_steps_in_training_is_refused(more: bool) -> None:
    with pytest.raises(StudyError, match=r"ByMode cannot be cut: .*other steps in training than in evaluation"):
        cut_points(ByMode(more), 8)


class NoClassifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_a_network_without_a_last_layer_is_refused() -> None:
    with pytest.raises(StudyError, match=r"NoClassifier cannot be cut: no Linear or Conv2d layer ends it\."):
        cut_points(NoClassifier(), 8)
