"""Cutting of a network so small that every figure can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from regraft.errors import ImageTooSmall, StudyError, UnknownCut
from regraft.networks import body_for_cuts, build, cut, cut_points, cuts_below, describe, find_cut, resolve_cut
from regraft.networks.cuts import CutPoint, body_of, pooled_body, tail_of

TINY = "timm/test_resnet"
SIDE = 8  # pixels


class Small(nn.Module):
    """A block, a block with a free parameter after it, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6).view(6, 1, 1))
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) * self.scale
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


FIRST = 2 * 3 * 4 * 9 * SIDE**2  # a multiply-add counts 2
SECOND = 2 * 4 * 6 * 9 * (SIDE // 2) ** 2
WHOLE = FIRST + SECOND + 2 * 6 * 2
BELOW = [("first", FIRST, 3 * 4 * 9 + 2 * 4, (4, 8, 8)), ("second", FIRST + SECOND, 116 + 4 * 6 * 9 + 6, (6, 4, 4)),
         ("penultimate", FIRST + SECOND, 116 + 222 + 6, (6,))]  # fmt: skip


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_what_lies_below_a_cut_is_counted() -> None:
    points = {point.name: point for point in cut_points(small(), SIDE)}
    for name, flops, parameters, shape in BELOW:
        layout = "flat" if name == "penultimate" else "chw"
        name = {"first": "first.2", "second": "second.1"}.get(name, name)
        assert points[name] == CutPoint(name, flops / WHOLE, shape, layout, parameters, flops)  # type: ignore[arg-type]
        assert points[name].features == points[name].width("average") == shape[0]
    assert points["second.1"].width("grid-2") == 24


def test_a_parameter_that_is_used_twice_counts_once() -> None:
    network = small()
    twice = nn.Sequential(network.get_submodule("first"), nn.Conv2d(4, 3, 1, bias=False))
    shared = nn.Sequential(twice, twice, nn.Flatten(), nn.Linear(3 * SIDE**2, 2)).eval()
    assert cut_points(shared, SIDE)[-1].parameters == 116 + 12


def test_the_parts_of_a_cut_are_the_network_and_share_nothing_with_it() -> None:
    network, x = small(), images()
    body, tail = cut(network, "first.2")
    assert torch.equal(body(x), network.get_submodule("first")(x))
    assert torch.equal(tail(body(x)), network(x))
    assert torch.equal(tail(features=body(x)), network(x))
    assert torch.equal(body_of(network, "first.2")(x), body(x))
    assert torch.equal(tail_of(network, "first.2")(body(x)), network(x))
    assert type(body).__name__ == type(tail).__name__ == "Small"
    kept = network(x)
    with torch.no_grad():
        for part in (body, tail):
            for parameter in part.parameters():
                parameter.zero_()
    assert torch.equal(network(x), kept)
    assert not {id(p) for p in body.parameters()} & {id(p) for p in tail.parameters()}


@pytest.mark.parametrize("mode", [True, False])
def test_the_parts_begin_in_the_mode_of_the_network(mode: bool) -> None:
    network = small().train(mode)
    network.get_submodule("first.1").eval()
    body, tail = cut(network, "first.2")
    for part in (body, tail):
        for name, module in part.named_modules():
            assert module.training == network.get_submodule(name).training, name
    assert any(not module.training for module in body.modules())


def test_values_of_all_cuts_come_from_one_pass_and_are_not_overwritten() -> None:
    network, x = small(), images()
    names = ["first.2", "second.1", "penultimate"]
    together = body_for_cuts(network, names)(x)
    assert list(together) == names
    for name in names:
        assert torch.equal(together[name], body_of(network, name)(x))
    pooled = body_for_cuts(network, ["second.1", "first.2"], pooled=True)(x)
    assert list(pooled) == ["second.1", "first.2"]
    assert torch.equal(pooled["first.2"], together["first.2"].mean((2, 3)))


def test_a_value_is_kept_from_the_in_place_step_after_it() -> None:
    """Of a convolution taken before its in-place activation, and a pooled value of the same."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2))
            self.relu = nn.ReLU(inplace=True)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.relu(self.block(x)).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network, x = Bare().eval(), images() - 1
    before = network.get_submodule("block")(x)
    found = body_for_cuts(network, ["block.1", "relu"])(x)
    assert (before < 0).any()
    assert torch.equal(found["block.1"], before)
    assert torch.equal(found["relu"], before.clamp_min(0))
    pooled = pooled_body(network, [("block.1", "average-max"), ("relu", "average")])(x)
    assert list(pooled) == ["block.1 average-max", "relu"]
    assert torch.equal(pooled["block.1 average-max"], torch.cat([before.mean((2, 3)), before.amax((2, 3))], dim=1))
    tail = tail_of(network, "block.1")
    kept = before.clone()
    tail(before)
    assert torch.equal(before, kept)


class Vector(nn.Module):
    """A block that gives a vector, a buffer that is used, an activation in place."""

    class Doubled(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.inner = nn.Linear(before, after)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)  # type: ignore[no-any-return]

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.block = self.Doubled(3 * SIDE**2, 5)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 2)
        self.register_buffer("offset", torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(2 * self.relu(self.block(self.flatten(x)) + self.offset))  # type: ignore[no-any-return]


def test_a_buffer_is_no_parameter() -> None:
    assert cut_points(Vector(), SIDE)[-1].parameters == (3 * SIDE**2 + 1) * 5


def test_a_vector_is_kept_from_the_in_place_step_after_it() -> None:
    class Plain(Vector):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(2 * self.relu(self.block(self.flatten(x))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network, x = Plain().eval(), images()
    names = [point.name for point in cut_points(network, SIDE)]
    assert names == ["block", "relu", "penultimate"]
    before = network.get_submodule("block")(network.get_submodule("flatten")(x)).clone()
    assert (before < 0).any()
    found = pooled_body(network, [(name, "average") for name in names])(x)
    assert torch.equal(found["block"], before)
    assert torch.equal(found["relu"], before.clamp_min(0))


def test_the_same_pooling_twice_is_one_feature_and_the_layouts_may_be_given() -> None:
    network, x = small(), images()
    wanted = [("first.2", "average"), ("first.2", "average"), ("penultimate", "average")]
    found = pooled_body(network, wanted)(x)  # type: ignore[arg-type]
    assert list(found) == ["first.2", "penultimate"]
    assert torch.equal(found["penultimate"], body_of(network, "penultimate")(x))
    odd = pooled_body(network, wanted[:1], laid_out={"first.2": "hwc"})(x)  # type: ignore[arg-type]
    assert odd["first.2"].shape == (2, 8), "as it was told, the last side holds the channels"


def test_only_what_lies_below_the_deepest_cut_is_copied() -> None:
    body = body_for_cuts(small(), ["first.2"])
    assert sorted(body.state_dict()) == sorted(
        name for name in Small().state_dict() if name.startswith("first.")
    )  # fmt: skip
    tail = tail_of(small(), "first.2")
    assert not any(name.startswith("first") for name in tail.state_dict())
    assert "scale" in tail.state_dict()


def test_no_cut_is_none() -> None:
    with pytest.raises(UnknownCut, match="no cut given"):
        body_for_cuts(small(), [])
    with pytest.raises(UnknownCut, match="no cut given"):
        pooled_body(small(), [])


def test_a_cut_is_found_by_its_name_or_its_stages_and_messages_call_the_network_as_told() -> None:
    network = small()
    points = {point.name: point for point in cut_points(network, SIDE)}
    assert find_cut(network, "first.2", SIDE) == points["first.2"]
    assert find_cut(network, "second", SIDE) == points["second.1"]
    assert find_cut(network, None, SIDE) == find_cut(network, "", SIDE) == points["penultimate"]
    for name, called in (("", "Small"), ("mine", "mine")):
        with pytest.raises(UnknownCut, match=f"^{called} has no cut 'third'.*regraft cuts {called}"):
            find_cut(network, "third", SIDE, name=name)
    with pytest.raises(UnknownCut, match=r"^Small has no cut 'third'"):
        find_cut(network, "third", SIDE)
    for part in (body_of, tail_of, cut):
        with pytest.raises(UnknownCut, match=r"^Small has no cut 'third'"):
            part(network, "third")


def test_a_described_network_is_cut_by_the_same_names() -> None:
    points = describe(TINY, "imagenet", 32)
    assert isinstance(points, tuple)
    assert all(isinstance(point.shape, tuple) for point in points)
    assert list(points) == cut_points(build(TINY, seed=0, image_size=32), 32)
    names = [point.name for point in points]
    last = [name for name in names if name.startswith("layer3")][-1]
    assert resolve_cut(TINY, "layer3", 32).name == last
    assert resolve_cut(TINY, last, 32) == next(point for point in points if point.name == last)
    assert resolve_cut(TINY, None, 32) == resolve_cut(TINY, "", 32) == points[-1]
    assert cuts_below(TINY, "layer3", 32) == names[: names.index(last) + 1]
    assert cuts_below(TINY, None, 32) == names
    with pytest.raises(UnknownCut, match=f"^{TINY} has no cut 'layer9'"):
        resolve_cut(TINY, "layer9", 32)


def test_a_network_with_another_stem_has_the_cuts_of_that_stem() -> None:
    assert resolve_cut("resnet18", "maxpool", 32).name == "maxpool"
    assert resolve_cut("resnet18", "layer1", 32, stem="cifar").flops > resolve_cut("resnet18", "layer1", 32).flops
    with pytest.raises(UnknownCut) as raised:
        resolve_cut("resnet18", "maxpool", 32, stem="cifar")
    assert "not one tensor" not in str(raised.value)
    assert cuts_below("resnet18", "layer1.0", 32, stem="cifar") == ["relu", "layer1.0"]
    with pytest.raises(UnknownCut):
        cuts_below("resnet18", "maxpool", 32, stem="cifar")


class Split(nn.Module):
    """A block whose output is two tensors."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.conv(x).chunk(2, dim=1)
            return a, b

    def __init__(self) -> None:
        super().__init__()
        self.both = self.Both()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x)
        return self.fc((a + b).mean((2, 3)))  # type: ignore[no-any-return]


def test_an_output_of_several_tensors_is_no_cut() -> None:
    assert [point.name for point in cut_points(Split(), SIDE)] == ["penultimate"]
    found = pooled_body(Split().eval(), [("penultimate", "average")])(images())
    assert found["penultimate"].shape == (2, 2), "and does not stand in the way of others"
    with pytest.raises(UnknownCut, match=r"^Split cannot be cut at 'both'.*penultimate|its output is not one tensor"):
        find_cut(Split(), "both", SIDE)


class Sized(nn.Module):
    """Takes images of 32 pixels and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(2 * 32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (16, r"\. The smallest size found to work is 32 px: set the source's image_size to it\.$"),
        (40, r"\. It works with 32 px: set the source's image_size\.$"),
    ],
)
def test_an_image_of_another_size_is_refused_with_the_size_that_works(size: int, told: str) -> None:
    assert [point.name for point in cut_points(Sized(), 32)] == ["penultimate"]
    with pytest.raises(ImageTooSmall, match=told):
        cut_points(Sized(), size)


def test_a_network_that_takes_no_usual_size_says_so() -> None:
    network = Sized()
    network.fc = nn.Linear(2 * 19 * 19, 2)
    with pytest.raises(
        ImageTooSmall, match=r"No usual image size fits; give the image_size the network was made for\.$"
    ):
        cut_points(network, 32)


@pytest.mark.parametrize("network", ["resnet50", "resnext50_32x4d", "resnet34", "resnet101", "wide_resnet50_2"])
def test_the_original_studys_name_belongs_to_resnet50_alone(network: str) -> None:
    aliases = {point.name: point.alias for point in describe(network, "imagenet", 64) if point.alias}
    assert aliases == ({"layer2.2": "first 18 layers"} if network == "resnet50" else {})


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


@pytest.mark.parametrize("blocks", [{2: 4}, {1: 3, 2: 4}, {1: 3, 2: 4, 3: 6, 4: 3}])
def test_stages_of_those_names_and_lengths_alone_make_no_resnet50(blocks: dict[int, int]) -> None:
    network = nn.Sequential()
    for stage, count in blocks.items():
        network.add_module(f"layer{stage}", nn.Sequential(*(Rectified() for _ in range(count))))
    network.add_module("flatten", nn.Flatten())
    network.add_module("fc", nn.Linear(3 * SIDE**2, 2))
    found = {point.name: point.alias for point in cut_points(network.eval(), SIDE)}
    assert found["layer2.2"] == ""


def test_a_grouped_resnet_as_narrow_is_no_resnet50() -> None:
    network = ResNet(Bottleneck, [3, 4, 6, 3], groups=2, width_per_group=32).eval()
    assert network.layer1[0].conv2.out_channels == 64
    assert not any(point.alias for point in cut_points(network, 32))


def test_a_value_without_such_a_pooling_says_so() -> None:
    (last,) = (point for point in cut_points(small(), SIDE) if point.name == "penultimate")
    with pytest.raises(StudyError, match="grid-2 needs a map"):
        last.width("grid-2")
