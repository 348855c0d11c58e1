"""What each method of transfer lets learn, and what it leaves as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.learn.batches import ImageBatches
from regraft.learn.fit import Fit, fit
from regraft.learn.methods import FACTORS, tune, units_of, wise_ft
from regraft.learn.predict import evaluate
from regraft.networks import Grafted, cuts_below, graft
from regraft.seeding import stream
from regraft.spec import Head, Method, Preprocessing, Recipe, Tuning
from regraft.spec.tuning import norms_of

CPU = torch.device("cpu")
TINY = "timm/test_resnet"
SIZE = 32
BLOCKS = cuts_below(TINY, None, SIZE)
RECIPE = Recipe(epochs=2, batch_size=10, lr=0.05)
State = dict[str, Tensor]


def pictures() -> ImageBatches:
    rng = stream(0, "pictures")
    labels = np.arange(20) % 2
    images = rng.integers(0, 150, (20, SIZE, SIZE, 3))
    images[labels == 0, :, :, 0] += 100
    preprocessing = Preprocessing(image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    return ImageBatches(images.astype(np.uint8), labels, preprocessing, device=CPU)


DATA = pictures()


def network(method: Method = "finetune", tuning: Tuning | None = None) -> Grafted:
    return graft(
        TINY, "imagenet", None, None, Head(), 2,
        frozen=method == "frozen", norms=norms_of(method, tuning or Tuning()), seed=0, image_size=SIZE,
    )  # fmt: skip


def trained(method: Method, recipe: Recipe = RECIPE, **details: Any) -> tuple[State, State, Grafted, Fit]:
    """The trunk's state before and after, the model, and how it went."""
    tuning = Tuning(**details)
    model = network(method, tuning)
    before = {k: v.clone() for k, v in model.trunk.body.state_dict().items()}
    tuned = tune(model, method, tuning, BLOCKS, seed=0)
    found = fit(model, DATA, DATA, recipe, seed=0, device=CPU, tuned=tuned)
    model.load_state_dict(found.state)
    tuned.after_training()
    return before, model.trunk.body.state_dict(), model, found


def changed(before: State, after: State) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def statistics(names: set[str]) -> set[str]:
    return {name for name in names if "running_" in name or "num_batches" in name}


def test_units_hold_every_parameter_once_in_the_order_of_the_network() -> None:
    model = network()
    units = units_of(model, BLOCKS)
    held = [p for unit in units for p in unit.parameters()]
    assert len(held) == len({id(p) for p in held}) == len(list(model.trunk.parameters()))
    names = [unit.name for unit in units]
    assert names[0] == "stem"
    assert [name for name in names if name in BLOCKS] == sorted(names[1:], key=BLOCKS.index)


def test_fine_tuning_changes_everything_and_a_frozen_trunk_nothing() -> None:
    before, after, _, _ = trained("finetune")
    assert changed(before, after) == set(before)
    before, after, _, _ = trained("frozen")
    assert changed(before, after) == set()


def test_the_leak_moves_statistics_and_nothing_else() -> None:
    """requires_grad_(False) in training mode, as the original study did it: `norms: target`, by name."""
    before, after, model, _ = trained("frozen", norms="target")
    assert changed(before, after) == statistics(set(before)) != set()
    assert not any(p.requires_grad for p in model.trunk.parameters())


@pytest.mark.parametrize(
    ("norms", "affine", "moved"), [("source", False, False), ("target", False, True), ("affine", True, False)]
)
def test_norms_say_what_of_batchnorm_changes_in_fine_tuning(norms: str, affine: bool, moved: bool) -> None:
    before, after, model, _ = trained("finetune", norms=norms)
    layers = {n for n, m in model.trunk.body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    scales = {name for name in before if name.rpartition(".")[0] in layers} - statistics(set(before))
    found = changed(before, after)
    assert bool(scales & found) == affine
    assert bool(statistics(found)) == moved
    assert found - scales - statistics(set(before))  # kernels learn


def test_norms_only_trains_the_norms_alone() -> None:
    before, after, model, _ = trained("norms-only", norms="affine")
    layers = {n for n, m in model.trunk.body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name.rpartition(".")[0] for name in changed(before, after)} == layers


def test_surgery_changes_one_block_and_first_frozen_those_above() -> None:
    blocks = [unit.name for unit in units_of(network(), BLOCKS)]
    before, after, _, _ = trained("surgical", block=blocks[2])
    assert {name for name in changed(before, after) if not name.startswith(f"{blocks[2]}.")} == set()
    assert changed(before, after)
    before, after, _, _ = trained("first-frozen", first=blocks[2])
    held = [name for name in before if any(name.startswith(f"{block}.") for block in blocks[1:3])]
    assert held
    assert not set(held) & changed(before, after)
    assert {name for name in before if name.startswith(f"{blocks[3]}.")} <= changed(before, after)


def test_gradual_unfreezing_frees_the_head_first_then_blocks_from_above() -> None:
    model = network()
    units = units_of(model, BLOCKS)
    tuned = tune(model, "gradual", Tuning(), BLOCKS, seed=0)
    model.train()
    for epoch in range(len(units) + 1):
        tuned.before_epoch(epoch / (len(units) + 1))
        learning = [all(p.requires_grad for p in unit.parameters()) for unit in units]
        assert learning == [False] * (len(units) - epoch) + [True] * epoch
        assert all(p.requires_grad for p in model.head.parameters())
    before, after, _, _ = trained("gradual", Recipe(epochs=1, batch_size=10))
    assert changed(before, after) == set()  # a single epoch is the head's: statistics of what does not learn stay too


def test_layerwise_rates_fall_from_the_head_to_the_image() -> None:
    model = network()
    units = units_of(model, BLOCKS)
    rates = tune(model, "layerwise", Tuning(decay=0.5), BLOCKS, seed=0).rates
    falling = [rates[unit.parameters()[0]] for unit in units]
    assert falling == [0.5 ** (len(units) - i) for i in range(len(units))]
    assert not any(p in rates for p in model.head.parameters())
    slow = trained("layerwise", Recipe(epochs=1, batch_size=20, weight_decay=0.0), decay=0.01)
    full = trained("finetune", Recipe(epochs=1, batch_size=20, weight_decay=0.0))
    first = next(name for name, _ in model.trunk.body.named_parameters())
    assert (slow[1][first] - slow[0][first]).norm() < 1e-3 * (full[1][first] - full[0][first]).norm()


def test_l2_sp_stays_near_its_start_and_its_gradient_is_that_of_the_penalty() -> None:
    def distance(before: State, after: State) -> float:
        names = [name for name in before if name not in statistics(set(before))]
        return sum(float((after[name] - before[name]).square().sum()) for name in names)

    held, loose = trained("l2-sp", pull=5.0), trained("l2-sp", pull=0.0)
    assert distance(*held[:2]) < 0.7 * distance(*loose[:2])
    model = network()
    tuned = tune(model, "l2-sp", Tuning(pull=0.5), BLOCKS, seed=0)
    kernel = next(model.trunk.parameters())
    with torch.no_grad():
        kernel.add_(0.25)
    kernel.grad = torch.zeros_like(kernel)
    tuned.after_gradient()
    torch.testing.assert_close(kernel.grad, torch.full_like(kernel, 0.125))
    assert all(p in tuned.undecayed for p in model.trunk.parameters())


def test_low_rank_changes_are_of_low_rank_and_leave_plain_names() -> None:
    before, after, model, _ = trained("lora", rank=2)
    parameters = {name for name, _ in model.trunk.body.named_parameters()}
    moved = changed(before, after) & parameters
    assert moved
    for name in moved:
        difference = (after[name] - before[name]).flatten(1)
        assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) <= 2, name
    start = network("lora")
    x = DATA.take(torch.arange(4), None)
    unchanged = start.eval()(x)
    tune(start, "lora", Tuning(rank=2), BLOCKS, seed=0)
    torch.testing.assert_close(start.eval()(x), unchanged)  # nothing is added at the start


def test_wise_ft_keeps_the_mixture_that_is_best_on_validation() -> None:
    model = network()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    found = fit(model, DATA, DATA, RECIPE, seed=0, device=CPU)
    model.load_state_dict(found.state)
    tried = wise_ft(model, start, DATA)
    assert sorted(factor for factor, _, _ in tried) == list(FACTORS)
    assert tried[0][2] == max(accuracy for _, _, accuracy in tried)
    assert evaluate(model, DATA) == pytest.approx(tried[0][1:])
    by_factor = {factor: (loss, accuracy) for factor, loss, accuracy in tried}
    model.load_state_dict(found.state)
    assert evaluate(model, DATA) == pytest.approx(by_factor[1.0])
    model.load_state_dict(start)
    assert evaluate(model, DATA) == pytest.approx(by_factor[0.0])


@pytest.mark.parametrize("method", ["gradual", "l2-sp", "layerwise", "lora", "surgical"])
def test_resumed_is_uninterrupted_for_every_method(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.learn.fit.CHECKPOINT_SECONDS", 0.0)
    details: dict[str, Any] = {"block": units_of(network(), BLOCKS)[1].name} if method == "surgical" else {}
    recipe = Recipe(epochs=4, batch_size=10, lr=0.02)

    class Memory:
        saved: tuple[dict[str, Any], State] | None = None

        def save(self, state: dict[str, Any], tensors: State) -> None:
            Memory.saved = state, {k: v.clone() for k, v in tensors.items()}
            if len(state["curve"]) == 2:
                raise KeyboardInterrupt

        def load(self) -> tuple[dict[str, Any], State] | None:
            return Memory.saved

    def run(checkpoint: Memory | None) -> Fit:
        tuning = Tuning(**details)
        model = network(method, tuning)
        tuned = tune(model, method, tuning, BLOCKS, seed=0)
        return fit(model, DATA, None, recipe, seed=0, device=CPU, tuned=tuned, checkpoint=checkpoint)

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(Memory())
    resumed = run(Memory())
    assert resumed.curve == whole.curve
    assert all(torch.equal(resumed.state[name], value) for name, value in whole.state.items())
