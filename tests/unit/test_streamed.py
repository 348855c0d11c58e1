"""Laws of heads on features in files: the same as in memory, from blocks no larger than allowed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from regraft.errors import Diverged, TooFewImages
from regraft.learn.batches import FeatureBatches
from regraft.learn.feature_rows import StreamedBatches, in_turn
from regraft.learn.fit import fit
from regraft.learn.logistic import logistic
from regraft.learn.nearest import prototypes
from regraft.learn.predict import evaluate
from regraft.learn.ridge import ridge
from regraft.learn.solve import Solved, scaling_of
from regraft.learn.streamed import Stream, logistic_streamed, moments_of, prototypes_streamed, ridge_streamed
from regraft.learn.together import fit_together
from regraft.seeding import torch_stream
from regraft.spec import Recipe

CPU = torch.device("cpu")
PENALTIES = [0.0, 1e-3, 0.1, 10.0]


@dataclass
class Filed:
    """Rows that notice how many are asked for at a time."""

    features: Tensor
    block: int = 37
    asked: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.features.shape[1]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, places: Tensor) -> Tensor:
        self.asked.append(len(places))
        return self.features[places]


def some_images(n: int, d: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Features of very different means and scales, one of them constant, classes one after the other as in a folder."""
    rng = torch_stream(0, "images")
    labels = torch.arange(n) * classes // n
    x = torch.randn(n, d, generator=rng) + torch.randn(classes, d, generator=rng)[labels]
    x = x * torch.logspace(-1, 1, d) + torch.logspace(-1, 1, d).flip(0)
    x[:, 1] = 7.3
    return x, labels


def stream_of(x: Tensor, labels: Tensor) -> tuple[Stream, Filed]:
    rows = Filed(x)
    return Stream(rows, labels, CPU), rows


def assert_alike(one: Solved, other: Solved, x: Tensor, *, within: float) -> None:
    """Weights for standardised features, and logits."""
    weights = [head.weight.double() * x.double().std(0) for head in (one, other)]
    torch.testing.assert_close(*weights, rtol=0, atol=within)
    logits = [x.double() @ head.weight.double().T + head.bias.double() for head in (one, other)]
    torch.testing.assert_close(*logits, rtol=0, atol=10 * within)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 90), (38, 38)])
def test_streamed_ridge_is_ridge_in_memory(n: int, d: int) -> None:
    x, labels = some_images(n, d)
    stream, rows = stream_of(x, labels)
    found = ridge_streamed(stream, classes=3, penalties=PENALTIES)
    for one, known in zip(found, ridge(x, labels, classes=3, penalties=PENALTIES), strict=True):
        assert_alike(one, known, x, within=1e-6)
        assert torch.equal(one.weight[:, 1], torch.zeros(3)), "a constant feature has no weight"
    assert max(rows.asked) <= rows.block


def test_ridge_for_all_penalties_reads_each_image_once() -> None:
    stream, rows = stream_of(*some_images(300, 20))
    ridge_streamed(stream, classes=3, penalties=PENALTIES)
    assert sum(rows.asked) == 300


def test_the_scaling_from_one_pass_is_that_of_two() -> None:
    x, labels = some_images(500, 30)
    found = moments_of(stream_of(x, labels)[0], classes=3, products=True).scaling
    known = scaling_of(x)
    torch.testing.assert_close(found.mean, known.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.scale, known.scale, rtol=1e-10, atol=0)
    assert found.scale[0, 1] == torch.inf


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 90)])
def test_streamed_logistic_regression_has_the_optimum_of_the_one_in_memory(n: int, d: int) -> None:
    x, labels = some_images(n, d)
    options = {"classes": 3, "penalties": [1e-2, 1.0], "max_iterations": 500, "tolerance": 1e-7}
    stream, rows = stream_of(x, labels)
    found, known = logistic_streamed(stream, **options), logistic(x, labels, **options)  # type: ignore[arg-type]
    for one, other in zip(found, known, strict=True):
        assert one.converged
        assert_alike(one, other, x, within=1e-5)
    assert max(rows.asked) <= rows.block


def test_streamed_prototypes_are_those_in_memory() -> None:
    x, labels = some_images(300, 20)
    stream, rows = stream_of(x, labels)
    torch.testing.assert_close(
        prototypes_streamed(stream, classes=3), prototypes(x, labels, classes=3), rtol=0, atol=1e-6
    )
    assert sum(rows.asked) == 300
    with pytest.raises(TooFewImages, match="2 of 5 classes"):
        prototypes_streamed(stream, classes=5)


@pytest.mark.parametrize("solver", [ridge_streamed, logistic_streamed])
def test_features_that_are_not_finite_are_refused(solver: object) -> None:
    x, labels = some_images(100, 5)
    x[70, 2] = torch.nan
    more = {"max_iterations": 5} if solver is logistic_streamed else {}
    with pytest.raises(Diverged, match="NaN or infinity"):
        solver(stream_of(x, labels)[0], classes=3, penalties=[0.1], **more)  # type: ignore[operator]


@pytest.mark.parametrize("views", [0, 3])
def test_heads_stepped_on_files_are_bit_for_bit_those_in_memory(views: int) -> None:
    n, d = 110, 8
    x, labels = some_images(n, d)
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-3)
    shown = x if not views else torch.stack([x + 0.1 * view for view in range(views)])
    recipes = [Recipe(epochs=3, batch_size=16, lr=lr, optimizer=o) for lr, o in ((0.1, "sgd"), (0.01, "adamw"))]  # type: ignore[arg-type]
    start = [(torch.zeros(3, d), torch.zeros(3))] * 2
    rows, held = Filed(shown.flatten(0, -2)), Filed(x[:50])
    known = fit_together(shown, labels, (x[:50], labels[:50]), recipes, start=start, seed=4, device=CPU)
    found = fit_together(rows, labels, (held, labels[:50]), recipes, start=start, seed=4, device=CPU)
    for one, other in zip(found, known, strict=True):
        assert not isinstance(one, Diverged)
        assert not isinstance(other, Diverged)
        assert one.curve == other.curve
        assert all(torch.equal(one.state[k], other.state[k]) for k in other.state)
    assert max(rows.asked) <= rows.block


@pytest.mark.parametrize("views", [1, 2])
def test_a_network_fitted_on_files_is_bit_for_bit_that_in_memory(views: int) -> None:
    x, labels = some_images(110, 8)
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-3)
    shown = x if views == 1 else torch.stack([x, x + 0.1])
    found = []
    rows = Filed(shown.flatten(0, -2), block=50)
    for train in (FeatureBatches(shown, labels.numpy(), device=CPU), StreamedBatches(rows, labels, device=CPU)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        found.append(fit(model, train, None, Recipe(epochs=2, batch_size=16, lr=0.1), seed=1, device=CPU))
    assert all(torch.equal(found[0].state[k], found[1].state[k]) for k in found[0].state)
    assert max(rows.asked) <= rows.block
    # Announced batches are read for several steps at a time
    assert views > 1 or len(rows.asked) < 2 * 7


def test_evaluation_reads_files_in_blocks() -> None:
    x, labels = some_images(600, 8)
    rows, head = Filed(x, block=300), nn.Linear(8, 3)
    found = evaluate(head, StreamedBatches(rows, labels, device=CPU))
    assert found == evaluate(head, FeatureBatches(x, labels.numpy(), device=CPU))
    assert rows.asked == [300, 300, 88]


def test_steps_are_read_in_groups_and_keep_their_order() -> None:
    rows = Filed(torch.arange(20.0)[:, None], block=6)
    steps = [torch.tensor([3, 1]), torch.tensor([2, 9, 5]), torch.tensor([0]), torch.tensor([7] * 8)]
    assert [x[:, 0].tolist() for x in in_turn(rows, steps)] == [[3, 1], [2, 9, 5], [0], [7] * 8]
    assert rows.asked == [6, 8]
