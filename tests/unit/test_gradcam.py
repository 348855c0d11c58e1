"""Grad-CAM lights what a class depends on, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, fx, nn

from regraft.data.augment import prepare
from regraft.errors import PredictorError
from regraft.learn.nearest import NearestNeighbours
from regraft.networks import Trunk, build, cut, pooled_body
from regraft.predictor.gradcam import class_map, grad_cam
from regraft.predictor.network import Answering, Whole, answering
from regraft.predictor.predict import Predictor
from regraft.predictor.ui import look, overlaid
from regraft.seeding import torch_stream
from tests.unit.predictor_example import SIZE, TINY, pictures, tiny_predictor

SIDE = 8
CORNERS = {"top left": (0, 0), "top right": (0, 4), "bottom left": (4, 0), "bottom right": (4, 4)}


class CornerWatcher(nn.Module):
    """Four channels of which each sees brightness in one corner only; class i is channel i."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 4, 1, bias=False)
        nn.init.ones_(self.see.weight)
        self.masks: Tensor
        masks = torch.zeros(4, SIDE, SIDE)
        for mask, (row, column) in zip(masks, CORNERS.values(), strict=True):
            mask[row : row + 4, column : column + 4] = 1
        self.register_buffer("masks", masks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = torch.relu(self.see(images)) * self.masks
        return {"all": maps.mean(dim=(2, 3))}


def watching(weight: Tensor) -> Answering:
    """weight: (classes, 4), of the classes on the corners."""
    head = nn.Linear(4, len(weight), bias=False)
    head.load_state_dict({"weight": weight})
    return Answering(Trunk(fx.symbolic_trace(CornerWatcher()), frozen=True), head)


@pytest.mark.parametrize("corner", CORNERS)
def test_a_class_that_depends_on_one_corner_lights_that_corner_alone(corner: str) -> None:
    found = grad_cam(watching(torch.eye(4)), torch.ones(1, 3, SIDE, SIDE), list(CORNERS).index(corner))
    row, column = CORNERS[corner]
    expected = np.zeros((SIDE, SIDE), np.float32)
    expected[row : row + 4, column : column + 4] = 1
    np.testing.assert_array_equal(found, expected)


def test_what_speaks_against_a_class_is_dark() -> None:
    """Class 0 grows with the first corner and shrinks with the second."""
    found = grad_cam(watching(torch.tensor([[1.0, -1.0, 0, 0], [0, 0, 1, 1]])), torch.ones(1, 3, SIDE, SIDE), 0)
    assert found[:4, :4].min() == 1
    assert found[:4, 4:].max() == found[4:].max() == 0
    nothing = grad_cam(watching(-torch.ones(2, 4)), torch.ones(1, 3, SIDE, SIDE), 0)
    assert nothing.shape == (SIDE, SIDE)
    assert not nothing.any()


def test_a_map_lies_between_0_and_1_and_does_not_change_with_the_size_of_the_logits() -> None:
    values, gradients = torch.rand(2, 5, 3, 3, generator=torch_stream(0, "maps"))
    found = class_map(values, gradients)
    assert 0 <= found.min() < found.max() == 1
    np.testing.assert_allclose(class_map(10 * values, 3 * gradients), found, rtol=1e-6)


def test_a_predictor_is_looked_through_and_stays_as_it_was() -> None:
    predictor = tiny_predictor()
    before = predictor.network.trunk.state_hash()
    image = prepare(torch.from_numpy(pictures(1)), predictor.manifest.preprocessing)
    found = grad_cam(predictor.network, image, 2)
    assert found.shape == predictor.manifest.cuts[0].shape[1:]
    assert found.max() in (0, 1)
    assert predictor.network.trunk.state_hash() == before
    assert all(weight.grad is None for weight in predictor.network.parameters())
    with pytest.raises(PredictorError, match="no class 3; classes are 0 to 2"):
        grad_cam(predictor.network, image, 3)


@pytest.mark.parametrize(
    ("network", "size", "side"), [(TINY, 64, 2), ("timm/vit_tiny_patch16_224", 64, 4), ("swin_t", 64, 2)]
)
def test_maps_of_whole_networks_have_the_size_of_their_last_map(network: str, size: int, side: int) -> None:
    """Channels first or last, tokens with one for the class before them; all in two parts."""
    whole = build(network, classes=3, seed=0, image_size=size).eval()
    image = torch.rand(1, 3, size, size, generator=torch_stream(0, "image"))
    body, rest = cut(whole, "penultimate")
    found = grad_cam(Answering(Trunk(Whole(body, rest), frozen=True), nn.Identity()), image, 1)
    assert found.shape == (side, side)
    assert found.max() == 1


def test_a_map_with_its_channels_last_is_seen_as_it_lies() -> None:
    """Swin's blocks hand on (n, h, w, c); here the head sits on one of them."""
    body = pooled_body(build("swin_t", seed=0, image_size=64).eval(), [("features.3.1", "average")])
    image = torch.rand(1, 3, 64, 64, generator=torch_stream(0, "image"))
    width = body(image)["features.3.1"].shape[1]
    head = nn.Linear(width, 2)
    head.load_state_dict({"weight": torch.randn(2, width, generator=torch_stream(0, "head")), "bias": torch.zeros(2)})
    found = grad_cam(Answering(Trunk(body, frozen=True), head), image, 1)
    assert found.shape == (8, 8)
    # A linear head on an average: each place speaks by its own values, or not at all.
    with torch.no_grad():
        assert isinstance(body, fx.GraphModule)
        recorder = Recorder(body)
        recorder.run(image)
        expected = torch.relu(recorder.values["features_3_1"][0] @ head.weight[1])  # (8, 8, c) -> (8, 8)
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-5)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the values on the way by their names."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def test_a_class_that_nothing_speaks_for_or_against_is_dark_everywhere() -> None:
    """A head whose weights are all 0: the last map that there is, without a light in it."""
    found = grad_cam(watching(torch.zeros(2, 4)), torch.ones(1, 3, SIDE, SIDE), 0)
    assert found.shape == (SIDE, SIDE)
    assert not found.any()


class Flat(nn.Module):
    """A network that has no map: pixels side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(3 * SIDE * SIDE, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"all": self.see(images.flatten(1))}


def test_a_network_without_a_map_and_more_than_one_picture_are_refused_in_words() -> None:
    flat = Answering(Trunk(fx.symbolic_trace(Flat()), frozen=True), nn.Linear(4, 2))
    with pytest.raises(PredictorError, match="no map of more than one position"):
        grad_cam(flat, torch.ones(1, 3, SIDE, SIDE), 0)
    for shape in ((2, 3, SIDE, SIDE), (3, SIDE, SIDE)):
        with pytest.raises(
            PredictorError, match=rf"looks at one picture, \(1, 3, s, s\); got \({shape[0]}, {shape[1]}"
        ):
            grad_cam(watching(torch.eye(4)), torch.ones(*shape), 0)


def test_a_head_without_a_gradient_is_refused_in_words() -> None:
    body = pooled_body(build(TINY, seed=0, image_size=SIZE).eval(), [("layer1", "average")])
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch_stream(0, "image"))
    width = body(image)["layer1"].shape[1]
    labels = torch.tensor([0, 1])
    votes = NearestNeighbours(torch.eye(2, width), labels, classes=2, neighbours=2)
    flat = nn.Sequential(votes, _Rounded())
    with pytest.raises(PredictorError, match="has no gradient"):
        grad_cam(Answering(Trunk(body, frozen=True), flat), image, 0)


def test_a_picture_without_a_map_still_gets_its_classes() -> None:
    plain = tiny_predictor()
    rounded = nn.Sequential(plain.network.classify, _Rounded())
    network = answering(plain.manifest, plain.network.trunk.body, rounded)
    picture = pictures(1)[0]
    found = look(Predictor(plain.manifest, network, device="cpu", backend="eager"), Image.fromarray(picture))
    assert [name for name, _ in found.top] and "no gradient" in found.unmapped
    np.testing.assert_array_equal(found.overlay, overlaid(picture, np.zeros((1, 1), np.float32)))
    assert look(plain, Image.fromarray(picture)).unmapped == ""


class _Rounded(nn.Module):
    """Whole numbers, as a vote gives them."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.long().float()
