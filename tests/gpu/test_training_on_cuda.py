"""Training on a CUDA device: every way to run a network learns the same, alone and with other seeds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.learn.batches import ImageBatches
from regraft.learn.fit import Fit, fit
from regraft.learn.graphs import Forward, Graphs
from regraft.learn.mechanisms import choose
from regraft.learn.precision import mixed_precision
from regraft.learn.seeds import fit_seeds, measured
from regraft.networks import build
from regraft.seeding import stream
from regraft.spec import Augment, Preprocessing, Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, on importing inductor
]

CUDA = torch.device("cuda")
PREPROCESSING = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 convolutions, so that only the order of sums differs between the ways."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(dropout)]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    return model.to(CUDA, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def images(seed: int, count: int = 64) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(CUDA)


def labels(count: int = 64) -> Tensor:
    return torch.arange(count, device=CUDA) % 2


def step(forward: Forward) -> None:
    with mixed_precision(CUDA):
        loss = cross_entropy(forward(images(0)), labels())
    loss.backward()  # type: ignore[no-untyped-call]


def train(model: nn.Module, forward: Forward, *, parts: int = 1) -> None:
    """Some steps in float32 with two batch sizes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed, count in enumerate([64, 64, 63, 63, 64, 63]):
        optimizer.zero_grad(set_to_none=True)
        for x, y in zip(images(seed, count).tensor_split(parts), labels(count).tensor_split(parts), strict=True):
            (cross_entropy(forward(x), y) / parts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def assert_close(model: nn.Module, other: nn.Module, tolerance: float = 1e-4) -> None:
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("way", ["eager", "graphs", "compile", "auto"])
def test_choosing_leaves_the_network_and_random_numbers_alone(way: str) -> None:
    model = network(dropout=0.2)
    before = copy.deepcopy(model.state_dict())
    random = torch.cuda.get_rng_state(), torch.random.get_rng_state()
    found = choose(model, images(0), steps_left=1000, step=step, device=CUDA, wish=way)
    assert found.name == way if way != "auto" else found.name in ("eager", "graphs")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.cuda.get_rng_state(), random[0])
    assert torch.equal(torch.random.get_rng_state(), random[1])
    if way == "auto":
        assert found.record["seconds_per_step"]["eager"] > 0


@pytest.mark.parametrize("way", ["graphs", "compile"])
@pytest.mark.parametrize("parts", [1, 2])
def test_every_way_learns_what_eager_learns(way: str, parts: int) -> None:
    model, eager = network(), network()
    found = choose(model, images(0), steps_left=10, step=step, device=CUDA, wish=way)
    assert found.name == way, found.record
    train(model, found.forward, parts=parts)
    train(eager, eager, parts=parts)
    assert_close(model, eager)


def test_graphs_serve_a_real_network_in_mixed_precision() -> None:
    model = build("resnet18", classes=10, stem="cifar", seed=0).to(CUDA, memory_format=torch.channels_last)  # type: ignore[call-overload]
    eager = copy.deepcopy(model)
    graphs = Graphs(model)
    for count in (64, 64, 63):
        for net, forward in ((model, graphs), (eager, eager)):
            net.zero_grad(set_to_none=True)
            with mixed_precision(CUDA):
                loss = cross_entropy(forward(images(count, count)), labels(count))
            loss.backward()  # type: ignore[no-untyped-call]
    assert len(graphs.graphs) == 2
    assert all(forward is not graphs.eager for forward in graphs.graphs.values())
    assert_close(model, eager, 0.02)  # BatchNorm's statistics, of bf16
    own, other = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (model, eager))
    assert torch.cosine_similarity(own, other, dim=0) > 0.99


def test_a_replayed_dropout_draws_anew_and_follows_the_seed() -> None:
    graphs = Graphs(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.Dropout(0.5)).to(CUDA))
    x = images(0)
    drawn = []
    for seed in (0, 1, 0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn.append([graphs(x).detach().clone() == 0 for _ in range(2)])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[2][1])


def squares(n: int, seed: int) -> ImageBatches:
    """Two classes of 32 x 32 images: red and blue, with noise."""
    rng = stream(seed, "squares")
    classes = np.arange(n) % 2
    pixels = rng.integers(0, 120, (n, 32, 32, 3))
    pixels[classes == 0, :, :, 0] += 40
    pixels[classes == 1, :, :, 2] += 40
    return ImageBatches(pixels.astype(np.uint8), classes, PREPROCESSING, augmentation=Augment("crop-flip"), device=CUDA)


def test_seeds_together_are_as_accurate_as_alone() -> None:
    recipe = Recipe(epochs=5, batch_size=64, lr=0.05, augment="crop-flip")
    seeds = (0, 1, 2)
    trains, validations = [squares(512, seed) for seed in seeds], [squares(256, seed + 10) for seed in seeds]
    models = [network(seed=seed) for seed in seeds]
    for i, own in enumerate(fit_seeds(models, trains, validations, recipe, seeds, device=CUDA)):
        alone = fit(network(seed=seeds[i]), trains[i], validations[i], recipe, seed=seeds[i], device=CUDA)
        assert isinstance(own, Fit)
        assert own.notes == ()
        for entry, other in zip(own.curve, alone.curve, strict=True):
            assert entry["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)  # in bf16
        assert own.kept["validation_accuracy"] == pytest.approx(alone.kept["validation_accuracy"], abs=0.03)


def test_a_real_network_steps_together_in_mixed_precision() -> None:
    models = [build("resnet18", classes=2, seed=seed) for seed in range(3)]
    recipe = Recipe(epochs=1, batch_size=64, lr=0.05, augment="crop-flip")
    seconds = measured(models, [squares(128, seed) for seed in range(3)], recipe, device=CUDA)
    assert seconds is not None
    assert min(seconds) > 0
