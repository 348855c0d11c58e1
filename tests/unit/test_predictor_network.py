"""A predictor's network is built again for every kind of head, and what does not fit its manifest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.errors import PredictorError, PredictorMismatch
from regraft.learn.head2toe import SelectedFeatures
from regraft.learn.nearest import CosinePrototypes, NearestNeighbours
from regraft.networks import build, cut, resolve_cut
from regraft.networks.pooling import pooled_width
from regraft.predictor import Predictor
from regraft.predictor.manifest import Cut
from regraft.predictor.network import Whole, answering, empty_trunk
from regraft.seeding import torch_stream
from regraft.spec import Head
from tests.unit.predictor_example import CLASSES, SIZE, TINY, pictures, repacked, tiny_manifest


def predictor_with(kind: str, *, network: str = TINY, at: str | None = "layer1") -> Predictor:
    """Random weights, and a head of three classes of this kind."""
    point = resolve_cut(network, at, SIZE)
    head = Head.model_validate({"kind": kind, **({"neighbours": 2} if kind == "knn" else {})})
    manifest = tiny_manifest(network=network, head=head, cuts=(Cut(point.name, point.layout, point.shape),))
    if kind == "rest":
        whole = build(network, classes=len(CLASSES), seed=0, image_size=SIZE).eval()
        return Predictor(manifest, answering(manifest, Whole(*cut(whole, point.name)), nn.Identity()), device="cpu")
    trunk, state = empty_trunk(manifest), build(network, seed=0, image_size=SIZE).state_dict()
    trunk.load_state_dict({name: state[name] for name in trunk.state_dict()}, assign=True)
    classify = head_with(kind, pooled_width(point.shape, point.layout, "average"))
    return Predictor(manifest, answering(manifest, trunk, classify), device="cpu")


def head_with(kind: str, width: int) -> nn.Module:
    rng = torch_stream(0, "head")
    if kind == "linear":
        made = nn.Linear(width, 3)
        made.load_state_dict({"weight": torch.randn(3, width, generator=rng), "bias": torch.zeros(3)})
        return made
    features = torch.randn(4, width, generator=rng)
    if kind == "prototype":
        return CosinePrototypes(nn.functional.normalize(features[:3], dim=1))
    if kind == "knn":
        return NearestNeighbours(features, torch.tensor([0, 1, 2, 2]), classes=3, neighbours=2)
    selected = SelectedFeatures([width], torch.tensor([5, 0, width - 1]))
    return nn.Sequential(selected, head_with("linear", 3))


@pytest.mark.parametrize("kind", ["linear", "prototype", "knn", "head2toe", "rest"])
def test_every_kind_of_head_is_loaded_as_it_was_saved(tmp_path: Path, kind: str) -> None:
    predictor = predictor_with(kind)
    again = Predictor.load(predictor.save(tmp_path / "saved.regraft"), device="cpu")
    assert again.manifest.head == predictor.manifest.head
    assert again.network.tensors().keys() == predictor.network.tensors().keys()
    np.testing.assert_array_equal(again.predict(pictures(5)).logits, predictor.predict(pictures(5)).logits)


def test_buffers_that_are_computed_and_not_stored_are_there_again(tmp_path: Path) -> None:
    """Relative positions, of a network with attention: in no file, and not to be left empty."""
    predictor = predictor_with("linear", network="timm/test_coatnet", at=None)
    body = predictor.network.trunk.body
    assert dict(body.named_buffers()).keys() - body.state_dict().keys()
    again = Predictor.load(predictor.save(tmp_path / "saved.regraft"), device="cpu")
    np.testing.assert_array_equal(again.predict(pictures(3)).logits, predictor.predict(pictures(3)).logits)


def classes(count: int) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update(classes=[f"class {i}" for i in range(count)])


def cut_as(layout: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update(cuts=[{"name": "layer1.0", "layout": layout, "shape": list(shape)}])


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        # Refused before so many rows are built.
        ("rest", classes(10_000), "no tensor has 10,000 rows, one for each class"),
        # Widths agree, so that names and shapes are right; what comes out of the trunk is not.
        ("linear", cut_as("hwc", 8, 8, 32), "its network does not run"),
        ("linear", cut_as("tokens", 8, 32), "its network does not run"),
    ],
)
def test_a_manifest_that_does_not_fit_its_network_is_refused(
    tmp_path: Path, kind: str, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    file = predictor_with(kind).save(tmp_path / "changed.regraft")
    with pytest.raises(PredictorMismatch, match=words):
        Predictor.load(repacked(file, manifest=change))


def test_an_answer_that_is_not_one_number_a_class_is_refused(tmp_path: Path) -> None:
    """A map that is called a vector goes through a narrower head position by position."""
    file = predictor_with("linear").save(tmp_path / "changed.regraft")
    narrow = changed("head/weight", lambda weight: weight[:, :8].contiguous())
    with pytest.raises(PredictorMismatch, match=r"its network answers \(1, 32, 8, 3\) for 3 classes"):
        Predictor.load(repacked(file, manifest=cut_as("flat", 8), state=narrow))


def changed(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state[name] = value(state[name])

    return change


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        del state[name]

    return change


def glaring(name: str) -> Callable[[dict[str, Tensor]], None]:
    """Numbers near the largest that there are, and a trunk whose features of a grey picture are not all 0."""

    def change(state: dict[str, Tensor]) -> None:
        state[name] = torch.full_like(state[name], 3e38)
        state.update({key: value + 1 for key, value in state.items() if key.endswith(".bias") and "trunk" in key})

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("knn", without("head/labels"), "the tensor 'head/labels' is missing, or no list"),
        ("knn", changed("head/labels", lambda labels: labels[:, None]), "'head/labels' is missing, or no list"),
        ("knn", changed("head/labels", lambda labels: labels + 5), "its head points outside of the 3 that there are"),
        ("knn", changed("head/labels", lambda labels: labels - 1), "its head points outside of the 3 that there are"),
        ("knn", changed("head/labels", lambda labels: labels[:2]), r"'head/features' is F32 \(4, 32\)"),
        ("head2toe", changed("head/0.indices", lambda kept: kept + 30), "points outside of the 32 that there are"),
        ("head2toe", changed("head/0.indices", lambda kept: kept[0]), "'head/0.indices' is missing, or no list"),
        # Finite, and of the right shapes: only a picture shows it.
        ("linear", glaring("head/weight"), "its network answers NaN or infinity to a grey picture"),
        ("prototype", glaring("head/prototypes"), "its network answers NaN or infinity to a grey picture"),
    ],
)
def test_weights_that_do_not_fit_their_manifest_are_refused(
    tmp_path: Path, kind: str, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    file = predictor_with(kind).save(tmp_path / "changed.regraft")
    assert Predictor.load(file, device="cpu").manifest.head.kind == kind
    with pytest.raises(PredictorMismatch, match=words):
        Predictor.load(repacked(file, state=change))


def test_an_empty_memory_of_neighbours_is_refused(tmp_path: Path) -> None:
    def forget(state: dict[str, Tensor]) -> None:
        state["head/features"], state["head/labels"] = state["head/features"][:0], state["head/labels"][:0]

    file = predictor_with("knn").save(tmp_path / "empty.regraft")
    with pytest.raises(PredictorError, match="points outside"):
        Predictor.load(repacked(file, state=forget))
