"""Recipes made for a task: what holds for every task, and what grows or shrinks with it."""

from __future__ import annotations

import itertools
import math

import pytest

from regraft.errors import StudyError
from regraft.spec import Recipe
from regraft.spec.recipe import SOLVED
from regraft.spec.recipes import PRESETS, Way, is_adaptive, resolved

IMAGES = (1, 2, 20, 450, 1_000, 1_001, 4_500, 19_999, 20_000, 45_000, 500_000, 500_001, 1_281_167, 14_000_000)
SIZES = (8, 32, 95, 96, 224)
NETWORKS = ("resnet18", "vit_b_16")
WAYS: tuple[Way, ...] = ("scratch", "finetune", "frozen")
TASKS = list(itertools.product(IMAGES, SIZES, NETWORKS, WAYS))


def made(preset: str, images: int, image_size: int = 32, network: str = "resnet18", method: Way = "scratch") -> Recipe:
    return PRESETS[preset](images=images, image_size=image_size, network=network, method=method)


def steps(recipe: Recipe, images: int) -> int:
    return recipe.epochs * math.ceil(images / recipe.batch_size)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_whole_recipe_that_picks_nothing_for_every_task(preset: str) -> None:
    for task in TASKS:
        recipe = made(preset, *task)
        Recipe(**recipe.model_dump())  # within all bounds, and its fields go together
        assert recipe.preset is None
        assert (recipe.keep, recipe.patience, recipe.refit, recipe.semi) == ("last", 0, False, "none")
        assert recipe == made(preset, *task)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_batch_is_larger_than_the_training_set(preset: str) -> None:
    for images, size, network, method in TASKS:
        recipe = made(preset, images, size, network, method)
        assert recipe.optimizer in SOLVED or recipe.batch_size <= images


@pytest.mark.parametrize("method", ["scratch", "finetune"])
def test_stronger_presets_take_more_steps_and_so_do_more_images(method: Way) -> None:
    for images in IMAGES[2:]:
        fast, standard, strong = (steps(made(preset, images, method=method), images) for preset in PRESETS)
        assert fast <= standard <= strong
    for preset in PRESETS:
        counts = [steps(made(preset, images, method=method), images) for images in (450, 4_500, 45_000, 1_281_167)]
        assert counts == sorted(counts)


def test_few_images_are_shown_for_many_epochs_in_small_batches_with_a_strong_decay() -> None:
    few, many = made("standard", 450), made("standard", 45_000)
    assert few.epochs > 4 * many.epochs
    assert few.batch_size < many.batch_size
    assert few.weight_decay >= 5 * many.weight_decay
    assert few.lr / few.batch_size == pytest.approx(many.lr / many.batch_size)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("network", NETWORKS)
def test_fine_tuning_is_shorter_at_a_tenth_of_the_rate(preset: str, network: str) -> None:
    for images in IMAGES[2:]:
        scratch, tuned = (made(preset, images, 32, network, way) for way in ("scratch", "finetune"))
        assert tuned.lr == pytest.approx(scratch.lr / 10, rel=0.05)
        assert tuned.epochs <= scratch.epochs
        assert tuned.weight_decay <= scratch.weight_decay


@pytest.mark.parametrize("preset", PRESETS)
def test_a_head_on_a_frozen_trunk_is_solved_and_needs_no_image_in_each_epoch(preset: str) -> None:
    penalties = []
    for images in IMAGES:
        recipe = made(preset, images, method="frozen")
        assert recipe.optimizer in SOLVED
        assert not recipe.live
        penalties.append(recipe.weight_decay)
    assert penalties == sorted(penalties, reverse=True)


@pytest.mark.parametrize("method", ["scratch", "finetune"])
def test_images_are_blended_only_where_there_are_many(method: Way) -> None:
    for preset, images in itertools.product(PRESETS, IMAGES):
        recipe = made(preset, images, method=method)
        assert (recipe.mixup > 0 or recipe.cutmix > 0) == (preset == "strong" and images >= 20_000)


def test_a_laptop_is_done_with_fast_in_minutes() -> None:
    """At 460 images a second, measured for ResNet-18 at 32 pixels on two CPU cores."""
    for images, minutes in ((450, 1.5), (4_500, 5), (45_000, 16)):
        recipe = made("fast", images)
        assert recipe.schedule == "one-cycle"
        assert recipe.epochs * images / 460 / 60 < minutes


@pytest.mark.parametrize(
    "name",
    ["vit_b_16", "swin_t", "swin_v2_b", "convnext_tiny", "maxvit_t", "timm/deit_small_patch16_224", "deit3_base",
     "timm/mixer_b16_224", "beitv2_base_patch16_224", "timm/test_vit", "eva02_tiny", "ViT_B_16"],
)  # fmt: skip
def test_transformers_mixers_and_convnexts_are_trained_by_adamw(name: str) -> None:
    assert made("standard", 4_500, network=name).optimizer == "adamw"


@pytest.mark.parametrize(
    "name", ["resnet50_v1", "wide_resnet50_2", "shufflenet_v2_x0_5", "timm/test_resnet", "densenet121",
             "mobilenet_v3_small", "efficientnet_b0", "timm/ghostnet_100", "regnet_y_400mf", "vgg11_bn"],
)  # fmt: skip
def test_convolutional_networks_with_batchnorm_are_trained_by_sgd(name: str) -> None:
    assert not is_adaptive(name)


def make_out(instead: dict[str, object] | None = None, images: int = 45_000, method: Way = "scratch",
             **fields: object) -> Recipe:  # fmt: skip
    recipe = Recipe.model_validate(fields)
    return resolved(recipe, images=images, image_size=32, network="resnet18", method=method, instead=instead)


def test_what_is_given_beside_a_preset_replaces_its_own_even_by_the_general_default() -> None:
    own = made("strong", 45_000)
    usual = Recipe.model_fields["augment"].default
    found = make_out(preset="strong", epochs=7, cutmix=0, augment=usual)
    assert (found.epochs, found.cutmix, found.augment) == (7, 0.0, usual)
    assert found == own.model_copy(update={"epochs": 7, "cutmix": 0.0, "augment": usual})


def test_a_recipe_without_a_preset_stays_itself() -> None:
    recipe = Recipe(epochs=3)
    assert resolved(recipe, images=1, image_size=1, network="", method="scratch", instead={"epochs": 9}) is recipe


def test_the_data_set_comes_before_the_preset_and_after_what_is_given() -> None:
    assert make_out({"augment": "none", "test_flip": False}, preset="strong", test_flip=True) == made(
        "strong", 45_000
    ).model_copy(update={"augment": "none"})


def test_learning_from_unlabelled_images_leaves_blending_out() -> None:
    found = make_out(preset="strong", semi="fixmatch")
    assert (found.semi, found.mixup, found.cutmix) == ("fixmatch", 0.0, 0.0)
    with pytest.raises(StudyError, match=r"preset 'strong'.*own augmentation"):
        make_out(preset="strong", semi="fixmatch", cutmix=1)


def test_fields_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(StudyError, match=r"with the fields of preset 'fast': `views`"):
        make_out(preset="fast", method="frozen", views=3)


def test_another_optimizer_needs_its_own_rates() -> None:
    with pytest.raises(StudyError, match=r"made for sgd here, and `optimizer` is adamw: give lr, weight_decay, epochs"):
        make_out(preset="standard", optimizer="adamw")
    with pytest.raises(StudyError, match=r"made for lbfgs .* is ridge: give weight_decay for it"):
        make_out(preset="standard", method="frozen", optimizer="ridge")
    assert make_out(preset="standard", optimizer="adamw", lr=1e-3, weight_decay=0, epochs=5).optimizer == "adamw"
    assert make_out(preset="standard", optimizer="sgd") == made("standard", 45_000)
