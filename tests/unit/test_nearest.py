"""Laws of heads without training: prototypes and nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from regraft.errors import Diverged, TooFewImages
from regraft.learn import nearest
from regraft.learn.nearest import PROTOTYPE_SCALE, TEMPERATURE, CosinePrototypes, NearestNeighbours, prototypes


def digits() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 64) and labels."""
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def test_prototypes_are_the_directions_of_the_means_of_directions() -> None:
    x, y = digits()
    found = prototypes(x, y, classes=10)
    for label in range(10):
        mean = normalize(x[y == label], dim=1).mean(0)
        assert torch.allclose(found[label], mean / mean.norm(), atol=1e-6)


def test_the_length_of_features_plays_no_part() -> None:
    x, y = digits()
    lengths = 10.0 ** torch.linspace(-30, 30, len(x))[:, None]
    head, scaled = (CosinePrototypes(prototypes(f, y, classes=10)) for f in (x, x * lengths))
    assert torch.allclose(head(x), scaled(x * lengths), atol=1e-4)
    votes = NearestNeighbours(x * lengths, y, classes=10, neighbours=5)
    assert torch.allclose(
        votes(x[:50]).exp(), NearestNeighbours(x, y, classes=10, neighbours=5)(x[:50]).exp(), atol=1e-3
    )


def test_an_image_in_the_direction_of_a_prototype_gets_the_whole_scale() -> None:
    head = CosinePrototypes(torch.eye(3))
    assert torch.equal(head(torch.tensor([[0.0, 5.0, 0.0]])), torch.tensor([[0.0, PROTOTYPE_SCALE, 0.0]]))


def test_a_class_without_images_has_no_prototype() -> None:
    with pytest.raises(TooFewImages, match="1 of 3 classes, the first of them number 1"):
        prototypes(torch.rand(4, 2), torch.tensor([0, 0, 2, 2]), classes=3)


@pytest.mark.parametrize("neighbours", [1, 5, 200])
def test_votes_are_scikit_learns(neighbours: int) -> None:
    x, y = digits()
    train, queries = x[:1000].double().numpy(), x[1000:1300]
    peer = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / TEMPERATURE)
    ).fit(train, y[:1000])
    head = NearestNeighbours(x[:1000], y[:1000], classes=10, neighbours=neighbours)
    shares = torch.from_numpy(peer.predict_proba(queries.double().numpy())).float()
    assert torch.allclose(head(queries).exp(), shares, atol=1e-4)


def test_logits_of_votes_are_finite_and_sum_to_one() -> None:
    x, y = digits()
    logits = NearestNeighbours(x, y, classes=12, neighbours=3)(x[:20])  # two classes without any image
    assert torch.isfinite(logits).all()
    assert torch.allclose(logits.exp().sum(1), torch.ones(20))


def test_the_size_of_a_chunk_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits()
    head = NearestNeighbours(x[:500], y[:500], classes=10, neighbours=20)
    whole = head(x[500:700])
    monkeypatch.setattr(nearest, "CHUNK_SIMILARITIES", 500 * 7)
    assert torch.allclose(head(x[500:700]).exp(), whole.exp(), atol=1e-5)


def test_fewer_images_than_neighbours_all_vote() -> None:
    head = NearestNeighbours(torch.eye(3), torch.tensor([0, 1, 1]), classes=2, neighbours=200)
    assert torch.equal(head(torch.tensor([[1.0, 0, 0], [0, 1, 0]])).argmax(1), torch.tensor([0, 1]))


def test_a_state_brings_the_training_images_along() -> None:
    x, y = digits()
    head = NearestNeighbours(x[:100], y[:100], classes=10, neighbours=5)
    empty = NearestNeighbours(torch.empty(0, 64), torch.empty(0, dtype=torch.int64), classes=10, neighbours=5)
    empty.load_state_dict(head.state_dict())
    assert torch.equal(empty(x[100:200]), head(x[100:200]))
    prototype = CosinePrototypes(prototypes(x, y, classes=10))
    loaded = CosinePrototypes(torch.zeros(10, 64))
    loaded.load_state_dict(prototype.state_dict())
    assert torch.equal(loaded(x), prototype(x))


def test_an_image_of_zeros_is_like_none_and_gets_finite_logits() -> None:
    x, y = digits()
    zeros = torch.zeros(1, 64)
    assert torch.equal(CosinePrototypes(prototypes(x, y, classes=10))(zeros), torch.zeros(1, 10))
    assert torch.isfinite(
        NearestNeighbours(torch.cat([x, zeros]), torch.cat([y, y[:1]]), classes=10, neighbours=5)(zeros)
    ).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    x, y = digits()
    broken = x.clone()
    broken[3, 4] = bad
    for attempt in (
        lambda: prototypes(broken, y, classes=10),
        lambda: NearestNeighbours(broken, y, classes=10, neighbours=5),
        lambda: CosinePrototypes(torch.eye(64))(broken),
    ):
        with pytest.raises(Diverged, match="NaN or infinity"):
            attempt()
