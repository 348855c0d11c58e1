"""Laws of the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regraft.errors import Diverged
from regraft.learn.batches import FeatureBatches, ImageBatches
from regraft.learn.fit import Fit, Unlabelled, fit
from regraft.learn.mixing import mix
from regraft.learn.optimizers import learning_rate
from regraft.learn.predict import predict
from regraft.networks import Trunk
from regraft.seeding import stream, torch_stream
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


def network(dropout: float = 0.2) -> nn.Sequential:
    torch_rng = torch.random.get_rng_state()
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)]
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


def train(recipe: Recipe, checkpoint: Memory | None = None, model: nn.Module | None = None, **given: Any) -> Fit:
    given = {"unlabelled": None if recipe.semi == "none" else unlabelled(), **given}
    return fit(
        model or network(), squares(50), squares(20, seed=1), recipe, seed=3, device=CPU, checkpoint=checkpoint, **given
    )


def unlabelled(label: int = -1) -> Unlabelled:
    weak = squares(30, seed=2)
    weak.labels.fill_(label)
    return Unlabelled(weak, weak.changed(Augment("crop-flip", cutout=0.5)))


def same(a: Fit, b: Fit) -> bool:
    return a.curve == b.curve and a.epoch == b.epoch and same_state(a, b)


def same_state(a: Fit, b: Fit) -> bool:
    return a.state.keys() == b.state.keys() and all(torch.equal(a.state[k], v) for k, v in b.state.items())


def test_training_learns() -> None:
    found = train(Recipe(epochs=15, batch_size=16, lr=0.1))
    assert found.curve[-1]["validation_accuracy"] > 0.9
    assert len(found.curve) == found.epoch == 15


WAYS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd, best epoch": {"keep": "best"},
    "adamw": {"optimizer": "adamw", "keep": "best"},
    "sgdw": {"optimizer": "sgdw"},
    "ema": {"ema": 0.9},
    "sam": {"sam": 0.05},
    "mixed": {"mixup": 0.4, "cutmix": 1.0},
    "patience": {"epochs": 30, "keep": "best", "patience": 4},
    "mirrored": {"test_flip": True, "keep": "best"},
    "fixmatch": {"semi": "fixmatch", "threshold": 0.6, "ratio": 2},
    "flexmatch": {"semi": "flexmatch", "threshold": 0.8, "ratio": 2, "ema": 0.9, "keep": "best"},
    "together": {"optimizer": "sgdw", "ema": 0.9, "sam": 0.05, "mixup": 0.4, "cutmix": 1.0, "test_flip": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_resumed_is_bit_equal_to_uninterrupted(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.learn.fit.CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(**{"epochs": 6, "batch_size": 16, "lr": 0.02, "augment": "crop-flip", **WAYS[way]})
    whole = train(recipe)
    memory = Memory(stop=3)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, memory)
    memory.stop = 10**9
    resumed = train(recipe, memory)
    assert same(resumed, whole)
    assert resumed.notes == whole.notes
    assert bool(whole.notes) == (way == "patience")


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


# --- averaged weights, sharpness-aware steps --------------------------------------------------------------------


def test_an_average_that_forgets_at_once_is_plain_training() -> None:
    assert same(train(Recipe(epochs=3, batch_size=16, ema=1e-12)), train(Recipe(epochs=3, batch_size=16)))


def test_the_state_kept_is_the_average_over_all_steps_of_weights_that_train_as_without_it() -> None:
    model = network()
    steps: list[dict[str, Tensor]] = []

    def advance(done: float, message: str) -> None:
        if not message:  # after a step
            steps.append({k: v.double() for k, v in model.state_dict().items()})

    by_hand = {k: v.double() for k, v in model.state_dict().items()}
    recipe = Recipe(epochs=5, batch_size=16)
    averaged = train(recipe.model_copy(update={"ema": 0.8}), model=model, advance=advance)
    for step, weights in enumerate(steps):
        decay = min(0.8, (1 + step) / (10 + step))
        by_hand = {k: decay * v + (1 - decay) * weights[k] for k, v in by_hand.items()}
    for name, value in averaged.state.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-4, atol=1e-5)
    plain = train(recipe)
    assert [e["train_loss"] for e in averaged.curve] == [e["train_loss"] for e in plain.curve]
    assert not same_state(averaged, plain)


def test_a_sharpness_aware_step_takes_the_gradient_found_uphill() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    other.load_state_dict(model.state_dict())
    data = squares(20)
    inputs = data.changed(Augment()).take(torch.arange(20), None)

    def gradient(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at, other.parameters())
        other.zero_grad()
        cross_entropy(other(inputs), data.labels).backward()  # type: ignore[no-untyped-call]
        return nn.utils.parameters_to_vector([p.grad for p in other.parameters() if p.grad is not None]).clone()

    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    first = gradient(start)
    expected = start - 0.1 * gradient(start + 0.5 * first / first.norm())
    recipe = Recipe(epochs=1, batch_size=20, lr=0.1, momentum=0, weight_decay=0, sam=0.5, schedule="constant")
    fit(model, data.changed(Augment()), None, recipe, seed=0, device=CPU)
    torch.testing.assert_close(nn.utils.parameters_to_vector(model.parameters()).detach(), expected)


def test_a_radius_near_0_is_plain_training() -> None:
    recipe = Recipe(epochs=4, batch_size=16, lr=0.02)
    flat, plain = (
        train(r, model=network(dropout=0.0)) for r in (recipe.model_copy(update={"sam": 1e-20}), recipe)
    )  # fmt: skip
    for name, value in plain.state.items():
        torch.testing.assert_close(flat.state[name], value, rtol=1e-4, atol=1e-5)
    assert flat.state["1.num_batches_tracked"] == plain.state["1.num_batches_tracked"]


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_training_changes_a_frozen_trunk(way: str) -> None:
    body = network(dropout=0.0)[:3]
    with torch.no_grad():
        for p in body.parameters():
            p.view(-1)[0] = -0.0  # averaged with itself it would be 0.0
    trunk = Trunk(body, frozen=True)
    before = trunk.state_hash()
    model = nn.Sequential(trunk, network()[4:])
    model.load_state_dict(train(Recipe(**{"batch_size": 16, **WAYS[way], "epochs": 4}), model=model).state)
    assert trunk.state_hash() == before


# --- blended images, mirrored answers, patience -----------------------------------------------------------------


@pytest.mark.parametrize("blend", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}], ids=str)
def test_the_loss_of_blended_images_is_weighted_by_their_shares(blend: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    data = squares(20).changed(Augment())
    order = torch.from_numpy(stream(0, "order", 0).permutation(20))
    mixed = mix(
        data.take(order, None), data.labels[order], blend.get("mixup", 0), blend.get("cutmix", 0),
        torch_stream(0, "mix", 0),
    )  # fmt: skip
    with torch.no_grad():
        logits = model(mixed.inputs)
        own, other = (float(cross_entropy(logits, y, label_smoothing=0.1)) for y in (mixed.labels, mixed.others))
    recipe = Recipe(epochs=1, batch_size=20, label_smoothing=0.1, **blend)
    found = fit(model, data, None, recipe, seed=0, device=CPU)
    assert found.curve[0]["train_loss"] == pytest.approx(mixed.share * own + (1 - mixed.share) * other, rel=1e-5)


def test_a_mirrored_answer_is_the_mean_of_both() -> None:
    model, data = network().eval(), squares(20)
    images = data.take(torch.arange(20), None)
    with torch.no_grad():
        by_hand = (model(images) + model(images.flip(3))) / 2
    assert torch.equal(predict(model, data, flip=True), by_hand)


def test_a_mirrored_answer_does_not_see_which_of_the_two_it_was_asked_about() -> None:
    rng = stream(0, "pictures")
    pictures = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    data, mirrored = (
        ImageBatches(x, np.zeros(20, np.int64), PREPROCESSING, device=CPU) for x in (pictures, pictures[:, :, ::-1])
    )
    model = network()
    assert torch.equal(predict(model, data, flip=True), predict(model, mirrored, flip=True))
    assert not torch.equal(predict(model, data), predict(model, mirrored))


def test_mirrored_answers_are_those_judged_on_validation() -> None:
    recipe = Recipe(epochs=2, batch_size=16, test_flip=True)
    model = network()
    found = train(recipe, model=model)
    model.load_state_dict(found.state)
    held = squares(20, seed=1)
    loss = float(cross_entropy(predict(model, held, flip=True), held.labels))
    assert found.kept["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_patience_stops_says_so_and_keeps_the_best() -> None:
    still = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))  # learns nothing at such a rate: the first epoch is best
    found = train(Recipe(epochs=50, lr=1e-30, weight_decay=0, keep="best", patience=3), model=still)
    assert len(found.curve) == 4
    assert found.epoch == 1
    assert len(found.notes) == 1
    assert "stopped after epoch 4" in found.notes[0]
    assert "epoch 1" in found.notes[0]


def test_patience_that_does_not_end_changes_nothing() -> None:
    recipe = Recipe(epochs=5, batch_size=16, keep="best")
    patient = train(recipe.model_copy(update={"patience": 100}))
    assert same(patient, train(recipe))
    assert patient.notes == ()


# --- unlabelled images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semi", ["fixmatch", "flexmatch"])
def test_the_curve_tells_how_many_guesses_were_learned_from(semi: Any) -> None:
    found = train(Recipe(epochs=8, batch_size=16, semi=semi, threshold=0.7, ratio=2))
    shares = [entry["guessed"] for entry in found.curve]
    assert all(0 <= share <= 1 for share in shares)
    assert shares[-1] > 0
    assert "guessed" not in train(Recipe(epochs=1)).curve[0]


@pytest.mark.parametrize("semi", ["fixmatch", "flexmatch"])
def test_labels_of_unlabelled_images_are_never_read(semi: Any) -> None:
    recipe = Recipe(epochs=3, batch_size=16, semi=semi, threshold=0.6, ratio=2)
    assert same(train(recipe, unlabelled=unlabelled(-1)), train(recipe, unlabelled=unlabelled(1)))


def test_guesses_survive_a_batch_that_goes_through_in_parts() -> None:
    class Small(nn.Linear):
        """A network on a device with room for thirty images."""

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 30:
                raise torch.OutOfMemoryError("no room")
            return super().forward(x.flatten(1))

    recipe = Recipe(epochs=3, batch_size=16, lr=0.01, semi="fixmatch", threshold=0.55, ratio=1)
    tight = Small(192, 2)
    roomy = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    roomy[1].load_state_dict(tight.state_dict())
    found = [
        fit(model, squares(32), None, recipe, seed=0, device=CPU, unlabelled=unlabelled()) for model in (tight, roomy)
    ]
    assert len(found[0].notes) == 1
    assert found[0].curve[-1]["guessed"] > 0
    torch.testing.assert_close(found[0].state["weight"], found[1].state["1.weight"], rtol=1e-4, atol=1e-6)
