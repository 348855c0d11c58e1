"""Each check names its own cause, with what it measured and a fix, and is silent where there is nothing wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from regraft.analysis.causes import CHECKS, Cause, class_order, find_causes
from regraft.networks import build
from regraft.networks import cut as cut_at
from regraft.spec import Preprocessing, Recipe
from regraft.study.diagnose import Evidence, Probe
from regraft.study.norm_fit import FAMILIES, Misfit, Other, norm_fits
from regraft.study.results import Cell
from tests.unit.show_example import cell, confusion

OWN = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
GOOD = Misfit(scale=-0.1, shift=0.1)
PROBE = Probe(
    images=64, pixel_std=0.25, content=1.0, mean=0.1, std=1.0, spread=0.6, side=1, head_moved=0.5, trunk_moved=0.2,
    stored_accuracy=0.1, batch_accuracy=0.1, first_norm=GOOD, better=Other("ImageNet's mean and std", OWN, GOOD),
    sizes={16: 1.0, 32: 0.4, 64: 0.5},
)  # fmt: skip
FACTS = Evidence(
    weights="file", method="finetune", norms="all", head="linear", recipe=Recipe(epochs=12, lr=0.1), steps=400,
    recorded=OWN,
    published=Preprocessing(image_size=224, **FAMILIES["ImageNet's mean and std"]), trunk_same=False, probe=PROBE,
)  # fmt: skip


def facts(**changes: object) -> Evidence:
    """Nothing wrong, but for `changes` of the evidence or its probe."""
    of_probe = {name: value for name, value in changes.items() if name in Probe.__dataclass_fields__}
    rest = {name: value for name, value in changes.items() if name not in of_probe}
    return dataclasses.replace(FACTS, probe=dataclasses.replace(PROBE, **of_probe), **rest)  # type: ignore[arg-type]


def broken(**changes: object) -> Cell:
    """A cell at chance."""
    return cell(**{"accuracy": 0.1, "train_accuracy": 0.1, "validation_accuracy": 0.1, "confusion": [], **changes})


def losses(*values: float) -> list[dict[str, float]]:
    return [{"epoch": i + 1, "train_loss": value} for i, value in enumerate(values)]


def names(of: Cell, evidence: Evidence | None) -> list[str]:
    return [cause.name for cause in find_causes(of, evidence)]


def only(of: Cell, evidence: Evidence | None) -> Cause:
    (cause,) = find_causes(of, evidence)
    return cause


def test_without_anything_wrong_no_check_speaks() -> None:
    assert names(cell(), facts()) == []
    assert names(broken(), facts()) == []


def test_without_evidence_only_the_confusion_matrix_is_asked() -> None:
    assert names(broken(confusion=confusion(0.1, 10)), None) == []


def test_images_or_weights_that_have_gone_are_not_asked() -> None:
    assert names(broken(), dataclasses.replace(FACTS, probe=None)) == []


# --- class order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_answers_right_but_for_their_names_are_told_from_guesses(classes: int) -> None:
    rolled = np.roll(np.array(confusion(0.9, classes)), 1, axis=1).tolist()
    moved = broken(
        classes=classes,
        chance=1 / classes,
        confusion=rolled,
        class_names=tuple(map(str, range(classes))),
        train_accuracy=0.95,
    )
    cause = only(moved, None)
    assert cause.name == "class order"
    assert "0 → " in cause.found or "1 → 0" in cause.found
    assert f"{100 * np.diag(confusion(0.9, classes)).sum() / (100 * classes):.1f} %" in cause.found
    assert "`classes`" in cause.fix


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guesses_and_constant_answers_have_no_better_order(classes: int) -> None:
    guessed = np.random.default_rng(0).multinomial(100, np.full(classes, 1 / classes), size=classes)
    constant = np.zeros((classes, classes), int)
    constant[:, 0] = 100
    for counts in (guessed, constant):
        assert class_order(broken(chance=1 / classes, confusion=counts.tolist(), train_accuracy=0.95), None) is None
    assert class_order(cell(confusion=confusion(0.9, classes), chance=1 / classes), None) is None


def test_a_head_that_names_training_images_wrongly_too_was_not_trained_on_another_order() -> None:
    rolled = np.roll(np.array(confusion(0.9, 10)), 1, axis=1).tolist()
    assert class_order(broken(confusion=rolled, train_accuracy=0.95), facts(stored_accuracy=0.95)) is not None
    assert class_order(broken(confusion=rolled, train_accuracy=0.95), facts(stored_accuracy=0.1)) is None


# --- the input path ---------------------------------------------------------------------------------------------


def test_a_first_norm_that_gets_a_thousandth_of_its_usual_input_names_normalisation() -> None:
    cause = find_causes(broken(), facts(first_norm=Misfit(scale=-6.9, shift=0.8)))[0]
    assert cause.name == "normalisation"
    assert "0.001 times the standard deviation" in cause.found
    assert "mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]" in cause.found
    assert "ImageNet's mean and std" in cause.fix


def test_a_misfit_that_no_other_preprocessing_mends_is_not_the_normalisation() -> None:
    far = Misfit(scale=-1.5, shift=0.2)
    assert names(broken(), facts(first_norm=far, better=Other("-1 to 1", OWN, far))) == []


def test_published_and_random_weights_are_never_blamed_for_their_normalisation() -> None:
    for weights in ("pretrained", "random"):
        assert names(broken(), facts(weights=weights, mean=0.0, std=60.0, side=7)) == []


@pytest.mark.parametrize(("mean", "std"), [(120.0, 60.0), (0.002, 0.001), (-8.0, 1.0)])
def test_without_norms_the_prepared_batch_itself_tells(mean: float, std: float) -> None:
    cause = only(broken(), facts(first_norm=None, better=None, sizes={}, mean=mean, std=std))
    assert cause.name == "normalisation"
    assert "[0.485, 0.456, 0.406]" in cause.fix  # what is published for the network
    assert names(broken(), facts(first_norm=None, better=None, sizes={})) == []


def test_norms_that_fit_larger_images_name_resolution_and_the_size() -> None:
    cause = only(broken(), facts(sizes={8: 2.0, 32: 1.4, 64: 0.8, 128: 0.5}))
    assert cause.name == "resolution"
    assert "image_size: 128" in cause.fix
    assert names(broken(), facts(weights="random", sizes={32: 1.4, 128: 0.5})) == []


def test_published_weights_shrunk_to_one_position_name_resolution() -> None:
    cause = only(broken(), facts(weights="pretrained"))
    assert (cause.name, "224 px" in cause.found) == ("resolution", True)
    assert names(broken(), facts(weights="pretrained", side=7)) == []


def test_black_frames_and_images_of_one_colour_name_the_images() -> None:
    assert only(broken(), facts(content=0.02)).name == "images"
    assert "98 %" in only(broken(), facts(content=0.02)).found
    assert only(broken(), facts(pixel_std=0.001)).name == "images"


def test_a_trunk_that_gives_every_image_the_same_is_named() -> None:
    assert only(broken(), facts(spread=1e-6)).name == "constant features"


# --- training ---------------------------------------------------------------------------------------------------


def test_a_head_at_its_random_start_was_in_no_optimizer() -> None:
    cause = only(broken(), facts(head_moved=0.0))
    assert cause.name == "head missing from the optimizer"
    frozen = facts(head_moved=0.0, trunk_moved=None, method="frozen", trunk_same=True)
    assert only(broken(), frozen).name == "head missing from the optimizer"


def test_a_fine_tuned_row_that_changed_nothing_is_frozen() -> None:
    cause = only(broken(), facts(head_moved=0.0, trunk_moved=0.0, trunk_same=True))
    assert (cause.name, "400 steps" in cause.found) == ("everything is frozen", True)
    assert only(broken(), facts(trunk_moved=0.0, trunk_same=True)).name == "frozen trunk"
    # WiSE-FT may choose the weights at the start
    assert names(broken(), facts(head_moved=0.0, trunk_moved=0.0, trunk_same=True, method="wise-ft")) == []


@pytest.mark.parametrize(
    ("rate", "moved", "better"), [(1e-7, 1e-6, "0.01"), (1e-5, 1e-3, "0.001"), (1e-9, 0.0, "0.01")]
)
def test_weights_that_hardly_moved_name_a_rate_that_would_move_them(rate: float, moved: float, better: str) -> None:
    slow = facts(recipe=Recipe(lr=rate), head_moved=moved, trunk_moved=moved / 10, trunk_same=moved == 0)
    cause = only(broken(curve=losses(2.31, 2.31, 2.31)), slow)
    assert cause.name == "learning rate too low"
    assert f"`lr: {better}`" in cause.fix


@pytest.mark.parametrize(
    "signs",
    [{"curve": losses(2.4, 30.0, 800.0)}, {"curve": losses(2.2, 1.2, 2.1, 1.3, 2.0, 1.5)}, {"moved": 40.0}],
    ids=["rises", "jumps", "far"],
)
def test_a_loss_that_rises_or_jumps_or_weights_gone_far_name_a_high_rate(signs: dict[str, object]) -> None:
    cause = only(broken(curve=signs.get("curve", [])), facts(head_moved=signs.get("moved", 0.5)))
    assert cause.name == "learning rate too high"
    assert "`lr: 0.01`" in cause.fix


def test_solved_heads_have_no_learning_rate_to_blame() -> None:
    assert names(broken(curve=losses(40.0)), facts(steps=None, head_moved=None)) == []


def test_training_of_a_few_steps_is_named_with_the_epochs_it_would_take() -> None:
    cause = only(broken(curve=losses(2.4, 2.3), train_images=500), facts(steps=8))
    assert cause.name == "too few steps"
    assert "2 epochs over 500 images" in cause.found
    assert "`epochs: 50`" in cause.fix


def test_a_network_good_by_its_batches_and_bad_by_its_running_statistics_names_batchnorm() -> None:
    cause = only(broken(), facts(batch_accuracy=0.97))
    assert (cause.name, "97 %" in cause.found) == ("BatchNorm mode", True)
    assert "norms: source" in cause.fix
    assert "more steps (there were 60" in only(broken(), facts(batch_accuracy=0.97, steps=60)).fix
    assert names(broken(), facts(batch_accuracy=0.97, norms="source")) == []  # nothing moved them


def test_learnt_by_heart_is_labels_where_there_are_many_and_too_few_images_else() -> None:
    by_heart = {"train_accuracy": 0.99, "validation_accuracy": 0.1}
    learnt = facts(stored_accuracy=1.0, batch_accuracy=1.0)
    assert only(broken(**by_heart, train_images=5000), learnt).name == "labels that do not belong to the images"
    assert only(broken(**by_heart, train_images=50), learnt).name == "too few images"


def test_every_cause_comes_with_a_finding_and_a_fix_in_words() -> None:
    everything = facts(
        pixel_std=0.001, first_norm=Misfit(-6.0, 1.0), spread=0.0, head_moved=0.0, batch_accuracy=1.0, steps=5,
        sizes={32: 2.0, 64: 1.0},
    )  # fmt: skip
    asked = [check(broken(curve=losses(9.0)), everything) for check in CHECKS]
    found = [cause for cause in asked if cause is not None]
    assert len(found) == len(CHECKS) - 2  # something was trained, and no labels were learnt
    for cause in found:
        assert cause.text == f"{cause.name}: {cause.found}. Fix: {cause.fix}."
        assert len(cause.fix) > 20


def test_the_input_path_is_named_and_not_what_follows_from_it() -> None:
    found = names(broken(curve=losses(90.0, 95.0)), facts(first_norm=Misfit(5.0, 1.0)))
    assert found == ["normalisation"]
    slow = facts(first_norm=Misfit(5.0, 1.0), head_moved=1e-6, trunk_moved=1e-7, recipe=Recipe(lr=1e-7))
    assert names(broken(), slow) == ["normalisation", "learning rate too low"]


@pytest.mark.parametrize(
    ("name", "cut", "size", "looked"),
    [
        ("densenet121", "penultimate", 32, {32, 64, 128, 224}),
        ("timm/vit_tiny_patch16_224", "blocks.5", 224, set()),
    ],
)
def test_a_network_is_looked_at_with_the_sizes_that_it_takes(name: str, cut: str, size: int, looked: set[int]) -> None:
    body, _ = cut_at(build(name, seed=0).eval(), cut)
    pictures = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fits = norm_fits(body, pictures, OWN.model_copy(update={"image_size": size}), None)
    assert set(fits.sizes) == looked
