"""Laws of the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.errors import Diverged
from regraft.learn.batches import FeatureBatches, ImageBatches
from regraft.learn.fit import fit
from regraft.learn.optimizers import learning_rate
from regraft.learn.predict import predict
from regraft.seeding import stream
from regraft.spec import Augment, Preprocessing, Recipe

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def squares(n: int, seed: int = 0) -> ImageBatches:
    """Two classes of 8 x 8 images: red and blue, with noise."""
    rng = stream(seed, "squares")
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, 8, 8, 3))
    images[labels == 0, :, :, 0] += 40
    images[labels == 1, :, :, 2] += 40
    return ImageBatches(images.astype(np.uint8), labels, PREPROCESSING, augmentation=Augment("crop-flip"), device=CPU)


def network() -> nn.Module:
    torch_rng = torch.random.get_rng_state()
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    torch.random.set_rng_state(torch_rng)
    return model


class Memory:
    """A checkpoint kept in memory; stops the training after `stop` saves."""

    def __init__(self, stop: int = 10**9) -> None:
        self.saved: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        self.stop = stop

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.saved = state, {k: v.clone() for k, v in tensors.items()}
        self.stop -= 1
        if self.stop == 0:
            raise KeyboardInterrupt

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        return self.saved


def train(recipe: Recipe, checkpoint: Memory | None = None) -> Any:
    return fit(network(), squares(50), squares(20, seed=1), recipe, seed=3, device=CPU, checkpoint=checkpoint)


def test_training_learns() -> None:
    found = train(Recipe(epochs=15, batch_size=16, lr=0.1))
    assert found.curve[-1]["validation_accuracy"] > 0.9
    assert len(found.curve) == found.epoch == 15


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_resumed_is_bit_equal_to_uninterrupted(optimizer: str, keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.learn.fit.CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(epochs=6, batch_size=16, lr=0.01, optimizer=optimizer, keep=keep, augment="crop-flip")  # type: ignore[arg-type]
    whole = train(recipe)
    memory = Memory(stop=3)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, memory)
    memory.stop = 10**9
    resumed = train(recipe, memory)
    assert resumed.curve == whole.curve
    assert all(torch.equal(resumed.state[k], v) for k, v in whole.state.items())


def test_the_same_seed_gives_the_same_bits_and_the_global_generator_is_left_alone() -> None:
    recipe = Recipe(epochs=2, batch_size=16)
    before = torch.random.get_rng_state()
    a, b = train(recipe), train(recipe)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)


def test_keep_best_keeps_the_epoch_best_on_validation() -> None:
    found = train(Recipe(epochs=8, batch_size=16, lr=0.3, keep="best"))
    accuracies = [entry["validation_accuracy"] for entry in found.curve]
    assert found.epoch == int(np.argmax(accuracies)) + 1


def test_a_diverging_learning_rate_is_named() -> None:
    recipe = Recipe(epochs=200, lr=1000, momentum=0.99, weight_decay=100, schedule="constant")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(Diverged, match="learning rate"):
        fit(model, squares(20), None, recipe, seed=0, device=CPU)


def test_out_of_memory_halves_the_batch_accumulates_and_says_so() -> None:
    class Small(nn.Module):
        """A network on a device with room for ten images."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 10:
                raise torch.OutOfMemoryError("no room")
            out: Tensor = self.inner(x)
            return out

    recipe = Recipe(epochs=2, batch_size=32, lr=0.01)
    models = [Small(), Small()]
    models[1].load_state_dict(models[0].state_dict())
    tight = fit(models[0], squares(50), None, recipe, seed=0, device=CPU)
    roomy = fit(models[1].inner, squares(50), None, recipe, seed=0, device=CPU)
    assert [note for note in tight.notes if "out of memory" in note]
    assert torch.allclose(tight.state["inner.1.weight"], roomy.state["1.weight"], atol=1e-6)


def test_schedules_start_and_end_where_they_should() -> None:
    cosine = Recipe(lr=1.0, schedule="cosine", warmup=0.1)
    assert learning_rate(0.0, cosine) < 0.02
    assert learning_rate(0.1, cosine) == pytest.approx(1.0)
    assert learning_rate(0.999, cosine) < 0.001
    cycle = Recipe(lr=1.0, schedule="one-cycle")
    assert learning_rate(0.25, cycle) == pytest.approx(1.0)
    assert learning_rate(0.625, cycle) == pytest.approx(0.5)
    assert learning_rate(0.9, Recipe(lr=1.0, schedule="constant")) == 1.0


def test_batches_of_features_are_the_features() -> None:
    features = torch.arange(12.0).view(4, 3)
    batches = FeatureBatches(features, np.array([0, 1, 0, 1]), device=CPU)
    assert torch.equal(batches.take(torch.tensor([2, 0]), None), features[[2, 0]])


def test_evaluation_goes_on_in_smaller_chunks_when_memory_does_not_suffice() -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 7:
                raise torch.OutOfMemoryError("no room")
            return x.mean((2, 3))[:, :2]

    data = squares(50)
    whole = data.take(torch.arange(50), None).mean((2, 3))[:, :2]
    assert torch.equal(predict(Small(), data), whole)


def test_a_validation_loss_that_is_not_finite_is_named() -> None:
    class Odd(nn.Linear):
        """Finite in training, infinite in evaluation."""

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x.flatten(1))
            return out if self.training else out * float("inf")

    with pytest.raises(Diverged, match="validation loss"):
        fit(Odd(192, 2), squares(20), squares(10), Recipe(epochs=1, lr=0.01), seed=0, device=CPU)
