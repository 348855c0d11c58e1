"""How a value becomes one vector an image, and which values cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from regraft.errors import StudyError, UnknownCut
from regraft.networks import body_for_cuts, build, cut, cut_points, describe, pool
from regraft.networks.cuts import cuts_below, feature_name, pooled_body
from regraft.networks.pooling import CELLS, POOLINGS, Layout, layouts, pooled_width, poolings
from regraft.spec.models import Pooling

CHANNELS = 6


def values(layout: Layout, side: int = 7) -> Tensor:  # (n, ...)
    shapes = {"chw": (CHANNELS, side, side), "hwc": (side, side, CHANNELS), "tokens": (side, CHANNELS)}
    return torch.randn(3, *shapes.get(layout, (CHANNELS,)), generator=torch.Generator().manual_seed(0))


def cells_by_hand(maps: Tensor, k: int) -> Tensor:
    """(n, c, h, w) -> (n, c * k * k): the mean of each cell, from floor(i * h / k) to ceil((i + 1) * h / k)."""

    def bounds(side: int) -> list[slice]:
        return [slice(i * side // k, -(-(i + 1) * side // k)) for i in range(k)]

    rows, columns = (bounds(side) for side in maps.shape[2:])
    return torch.stack([maps[:, :, r, c].mean((2, 3)) for r in rows for c in columns], dim=2).flatten(1)


def test_average_pooling_is_the_mean_over_positions() -> None:
    maps = torch.rand(2, 5, 4, 3)  # n, then three dimensions
    assert torch.equal(pool(maps, "chw"), maps.mean((2, 3)))
    assert torch.equal(pool(maps, "hwc"), maps.mean((1, 2)))
    assert torch.equal(pool(maps[0], "tokens"), maps[0].mean(1))
    assert torch.equal(pool(maps[0, 0], "flat"), maps[0, 0])


@pytest.mark.parametrize("side", [4, 5, 6, 7, 8, 13])
def test_a_grid_holds_the_mean_of_each_cell(side: int) -> None:
    maps = values("chw", side)
    for kind, k in CELLS.items():
        expected = cells_by_hand(maps, k)
        assert torch.allclose(pool(maps, "chw", kind), expected, atol=1e-6)
        assert torch.allclose(pool(maps.permute(0, 2, 3, 1), "hwc", kind), expected, atol=1e-6)
        assert torch.allclose(pool(maps.to(memory_format=torch.channels_last), "chw", kind), expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["chw", "hwc", "tokens"])
def test_average_max_is_the_average_and_then_the_maximum(layout: Layout) -> None:
    given = values(layout)
    average, most = pool(given, layout, "average-max").chunk(2, dim=1)
    channels_last = given.movedim(1, -1) if layout == "chw" else given
    assert torch.equal(average, pool(given, layout))
    assert torch.equal(most, channels_last.reshape(3, -1, CHANNELS).max(dim=1).values)


@pytest.mark.parametrize("layout", ["chw", "hwc", "tokens", "flat"])
def test_the_width_said_is_that_of_the_features(layout: Layout) -> None:
    given = values(layout, side=4)
    for kind in poolings(layout):
        assert pool(given, layout, kind).shape == (3, pooled_width(tuple(given.shape[1:]), layout, kind))


@pytest.mark.parametrize(
    ("shape", "layout", "kind", "words"),
    [
        ((197, 192), "tokens", "grid-2", r"grid-2 needs a map of at least 2 x 2.*tokens.*: average, average-max\."),
        ((512,), "flat", "grid-4", r"grid-4 needs a map.*\(512,\) \(one vector\)\. Possible here: average\. Choose"),
        ((512,), "flat", "average-max", r"average-max needs a map, or tokens.*Possible here: average\. .*regraft cuts"),
        ((2048, 1, 1), "chw", "grid-2", r"at least 2 x 2.*Possible here: average, average-max\."),
        ((512, 2, 2), "chw", "grid-3", r"at least 3 x 3.*Possible here: average, average-max, grid-2\."),
        ((3, 3, 96), "hwc", "grid-4", r"at least 4 x 4.*height, width, channels.*average-max, grid-2, grid-3\."),
    ],
)
def test_a_pooling_that_a_value_does_not_have_is_refused(
    shape: tuple[int, ...], layout: Layout, kind: Pooling, words: str
) -> None:
    with pytest.raises(StudyError, match=words):
        pooled_width(shape, layout, kind)


def test_a_cube_is_laid_out_as_the_map_nearest_to_it() -> None:
    assert layouts({"a": (96, 96, 96), "b": (48, 48, 192), "c": (768,)}) == {"a": "hwc", "b": "hwc", "c": "flat"}
    assert layouts({"a": (64, 80, 80), "b": (64, 64, 64), "c": (9, 64)}) == {"a": "chw", "b": "chw", "c": "tokens"}
    assert layouts({"only": (8, 8, 8)}) == {"only": "chw"}
    assert {p.layout for p in describe("swin_t", image_size=384) if p.shape == (96, 96, 96)} == {"hwc"}
    assert {p.layout for p in describe("resnet18", image_size=256) if p.shape == (64, 64, 64)} == {"chw"}


# --- in the body's own pass --------------------------------


class KeepingModules(fx.Tracer):
    """Traces through functions, `pool` among them, and leaves modules whole: not all can be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_mambaout", "timm/test_vit3"])
def test_a_body_gives_every_pooling_and_survives_being_traced_anew(name: str) -> None:
    network = build(name, seed=0, image_size=160).eval()
    points = cut_points(network, 160)
    # of (c, h, w) and (h, w, c) alike, the first two sides hold one of the map's
    wanted = [(p.name, kind) for p in points for kind in poolings(p.layout) if CELLS.get(kind, 1) <= min(p.shape[:2])]
    assert {kind for _, kind in wanted} == set(POOLINGS[:2] if name == "timm/test_vit3" else POOLINGS)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    body = pooled_body(network, wanted)
    anew = fx.GraphModule(body, KeepingModules().trace(body))
    assert not any(node.target is pool for node in anew.graph.nodes)
    layout = {point.name: point.layout for point in points}
    with torch.no_grad():
        raw, features, again = (module(x) for module in (body_for_cuts(network, layout), body, anew))
    assert list(features) == list(again) == [feature_name(at, kind) for at, kind in wanted]
    at, kind = wanted[-1]
    with torch.no_grad():
        alone = pooled_body(network, [(at, kind)])(x)
    assert torch.equal(alone[feature_name(at, kind)], features[feature_name(at, kind)])
    for at, kind in wanted:
        assert torch.equal(features[feature_name(at, kind)], pool(raw[at], layout[at], kind))
        assert torch.equal(features[feature_name(at, kind)], again[feature_name(at, kind)])


class Overwriting(nn.Module):
    """An in-place activation changes what `first` returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2))
        self.last = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.first(x), inplace=True).mean((2, 3))
        return self.fc(nn.functional.relu(self.last(y), inplace=True))  # type: ignore[no-any-return]


def test_pooling_comes_before_an_in_place_activation() -> None:
    torch.manual_seed(0)
    network = Overwriting().eval()
    x = torch.randn(4, 3, 8, 8)
    value = cut(network, "first.1")[0](x)
    assert (value < 0).any(), "else this test shows nothing"
    features = pooled_body(network, [("first.1", kind) for kind in POOLINGS] + [("penultimate", "average")])(x)
    for kind in POOLINGS:
        assert torch.equal(features[feature_name("first.1", kind)], pool(value, "chw", kind))


def test_features_carry_the_cut_s_name_and_the_pooling_s_where_it_is_not_the_average() -> None:
    assert feature_name("layer2.2", "average") == "layer2.2"
    assert feature_name("layer2.2", "grid-2") == "layer2.2 grid-2"


def test_the_cuts_below_a_cut_are_all_up_to_and_with_it() -> None:
    assert cuts_below("resnet18", "layer1", 32) == ["relu", "maxpool", "layer1.0", "layer1.1"]
    assert cuts_below("resnet18", "layer1.0", 32, stem="cifar") == ["relu", "layer1.0"]
    assert cuts_below("resnet18", None, 32) == [point.name for point in describe("resnet18", "imagenet", 32)]
    with pytest.raises(UnknownCut, match="did you mean"):
        cuts_below("resnet18", "layer1.7", 32)
