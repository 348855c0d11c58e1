"""Recipes made for a task: pure functions of the number and size of its images, the network and the method.

In the manner of BiT's hyper-rule (Kolesnikov et al. 2020, arXiv:1912.11370): the number of images sets the length,
counted in steps, and whether images are blended; their size sets how they are cropped. `keep` is always "last":
nothing is picked, so that a preset needs no validation images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from regraft.errors import StudyError
from regraft.spec.recipe import SOLVED, Augmentation, Optimizer, Recipe

Way = Literal["scratch", "finetune", "frozen"]

FEW, SOME, MANY = 1_000, 20_000, 500_000  # images, at most, of the first three columns below
PHOTOGRAPH = 96  # pixels: BiT's border between small images and photographs
# Steps by number of images. From scratch, 200 epochs of CIFAR (Zagoruyko & Komodakis 2016, arXiv:1605.07146) and 90 of
# ImageNet (Goyal et al. 2017, arXiv:1706.02677), and hundreds of epochs of a few images; fine-tuning as in BiT (500
# steps of 512 images below 20,000, then 10,000 and more), in smaller batches. Fast: minutes on two CPU cores.
STEPS: dict[tuple[str, Way], tuple[int, int, int, int]] = {
    ("fast", "scratch"): (800, 2_000, 3_000, 20_000),
    ("fast", "finetune"): (200, 500, 1_000, 5_000),
    ("standard", "scratch"): (15_000, 20_000, 70_000, 450_000),
    ("standard", "finetune"): (1_000, 3_000, 10_000, 20_000),
    ("strong", "scratch"): (25_000, 40_000, 140_000, 900_000),
    ("strong", "finetune"): (2_000, 6_000, 20_000, 40_000),
}
BATCH = (32, 64, 128, 256)  # few images want small batches: tuned among other things by Brigato et al. (below)
# Of sgd from scratch. 5e-4 on CIFAR (Zagoruyko & Komodakis), 1e-4 on ImageNet (Goyal et al.). With 50 images a class
# a decay ten times as strong, with a tuned rate and plain cross-entropy, is worth most specialised methods: 58.2 % on
# ciFAIR-10 (Brigato et al. 2021, arXiv:2108.13122).
DECAY = (5e-3, 1e-3, 5e-4, 1e-4)

# Networks without BatchNorm, and ConvNeXt, are trained by AdamW: names and beginnings of names of torchvision and timm.
ADAPTIVE = re.compile(
    r"(^|[/_])(vit|deit|beit|eva|swin|cait|xcit|mixer|gmlp|resmlp|convnext|convit|crossvit|maxvit|maxxvit|coatnet|coat|"
    r"mobilevit|fastvit|levit|davit|hiera|pvt|pit|tnt|nest|twins|volo|visformer|poolformer|caformer|convformer|"
    r"efficientformer|sequencer|mambaout|samvit|flexivit|naflexvit)"
)


class Maker(Protocol):
    """A preset.

    images: that are trained on.  image_size: side in pixels, as the data set has them.  network: as in a source.
    method: scratch is a fine-tuned source with random weights."""

    def __call__(self, *, images: int, image_size: int, network: str, method: Way) -> Recipe: ...


def fast(*, images: int, image_size: int, network: str, method: Way) -> Recipe:
    """For a first look on a laptop: few steps of one cycle (Smith & Topin 2018, arXiv:1708.07120), mild augmentation.

    image_size plays no part: a shifted crop suits any."""
    if method == "frozen":
        return _solved(images, iterations=100)
    return Recipe(**_stepped("fast", images, network, method), schedule="one-cycle", augment="crop-flip")


def standard(*, images: int, image_size: int, network: str, method: Way) -> Recipe:
    """What the field calls a baseline: cosine with warm-up, crop and flip, label smoothing 0.1 from scratch
    (Szegedy et al. 2016, arXiv:1512.00567; He et al. 2019, arXiv:1812.01187), averaged weights in fine-tuning."""
    if method == "frozen":
        return _solved(images, iterations=500)
    scratch = method == "scratch"
    return Recipe(
        **_stepped("standard", images, network, method), schedule="cosine", warmup=0.05 if scratch else 0.1,
        augment=_geometry(image_size), label_smoothing=0.1 if scratch else 0.0, ema=0.0 if scratch else 0.99,
    )  # fmt: skip


def strong(*, images: int, image_size: int, network: str, method: Way) -> Recipe:
    """Longer, with TrivialAugment (Müller & Hutter 2021, arXiv:2103.10158), averaged weights and mirrored answers.

    From scratch also a square erased from each image: half the side of small images, as for CIFAR-10 by DeVries &
    Taylor (2017, arXiv:1708.04552), a quarter of photographs; from 20,000 images on CutMix in its place (Yun et al.
    2019, arXiv:1905.04899). In fine-tuning mixup 0.1 from 20,000 images on (BiT). A frozen trunk's head learns from
    eight augmented views of each image where there are few."""
    if method == "frozen":
        solved = _solved(images, iterations=500)
        views = {"augment": _geometry(image_size), "views": 8} if images <= FEW else {}
        return solved.model_copy(update=views)
    scratch, many = method == "scratch", images >= SOME
    erased = 0.5 if image_size < PHOTOGRAPH else 0.25
    return Recipe(
        **_stepped("strong", images, network, method), schedule="cosine", warmup=0.05 if scratch else 0.1,
        augment=_geometry(image_size), policy="trivial", cutout=erased if scratch and not many else 0.0,
        cutmix=1.0 if scratch and many else 0.0, mixup=0.1 if many and not scratch else 0.0,
        label_smoothing=0.1 if scratch else 0.0, ema=0.999, test_flip=True,
    )  # fmt: skip


PRESETS: dict[str, Maker] = {"fast": fast, "standard": standard, "strong": strong}


def _stepped(preset: str, images: int, network: str, method: Way) -> dict[str, Any]:
    """Optimizer, length, batch and rates; rates grow with the batch (Goyal et al. 2017).

    sgd from scratch: 0.1 for 128 images, the rate of ResNets on CIFAR (He et al. 2016, arXiv:1512.03385). AdamW: 5e-4
    for 128, decay 0.05 (of the order of DeiT, Touvron et al. 2021, arXiv:2012.12877, and ConvNeXt, Liu et al. 2022,
    arXiv:2201.03545). Fine-tuning: a tenth of the rate, hardly any decay (BiT: none)."""
    column = sum(images > limit for limit in (FEW, SOME - 1, MANY))
    batch = max(1, min(BATCH[column], images))
    steps = STEPS[preset, method][column]
    epochs = min(100_000, max(1, round(steps / math.ceil(images / batch))))
    adaptive = is_adaptive(network)
    optimizer: Optimizer = "adamw" if adaptive else "sgd"
    rate, decay = (5e-4, 0.05) if adaptive else (0.1, DECAY[column])
    if method == "finetune":
        rate, decay = rate / 10, 0.01 if adaptive else 1e-4
    return {
        "optimizer": optimizer, "epochs": epochs, "batch_size": batch, "lr": _short(rate * batch / 128),
        "weight_decay": decay,
    }  # fmt: skip


def _solved(images: int, *, iterations: int) -> Recipe:
    """A linear head on a frozen trunk, solved to its optimum. The best penalty on a mean loss falls with the number of
    images, as a prior's share does. 60 / images lies between those that validation preferred on CIFAR: 0.2 (of 0.02 to
    0.6, by loss) for ImageNet features of 500 images, 0.001 (not 0.01) for a middle layer's of 9,000."""
    return Recipe(optimizer="lbfgs", epochs=iterations, weight_decay=_short(min(1.0, max(1e-5, 60 / max(1, images)))))


def _geometry(image_size: int) -> Augmentation:
    return "crop-flip" if image_size < PHOTOGRAPH else "resized-crop-flip"


def is_adaptive(network: str) -> bool:
    """Whether a network of this name is trained by AdamW rather than sgd."""
    return ADAPTIVE.search(network.lower()) is not None


def _short(value: float) -> float:
    """To two figures, since it is read by people."""
    return float(f"{value:.2g}")


def resolved(
    recipe: Recipe,
    *,
    images: int,
    image_size: int,
    network: str,
    method: Way,
    instead: Mapping[str, object] | None = None,
) -> Recipe:
    """`recipe` with its preset made out; the fields given beside the preset replace its own.

    instead: fields that the data set wants otherwise; what is given comes before them.
    Raises StudyError for fields that do not go together."""
    if recipe.preset is None:
        return recipe
    made = PRESETS[recipe.preset](images=images, image_size=image_size, network=network, method=method)
    given = {name: getattr(recipe, name) for name in recipe.model_fields_set if name != "preset"}
    _check_rates(recipe.preset, made, given)
    fields = {**made.model_dump(), **(instead or {})}
    if given.get("semi", "none") != "none":  # it has its own augmentation
        fields |= {"mixup": 0.0, "cutmix": 0.0}
    try:
        return Recipe(**{**fields, **given})
    except ValidationError as error:
        reasons = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise StudyError(f"with the fields of preset {recipe.preset!r}: {reasons}") from None


def _check_rates(preset: str, made: Recipe, given: Mapping[str, object]) -> None:
    """Rates and decays of one optimizer mean nothing to another."""
    chosen = given.get("optimizer", made.optimizer)
    wanted = ("weight_decay",) if chosen in SOLVED else ("lr", "weight_decay", "epochs")
    if chosen != made.optimizer and (lacking := [name for name in wanted if name not in given]):
        raise StudyError(
            f"preset {preset!r} is made for {made.optimizer} here, and `optimizer` is {chosen}: "
            f"give {', '.join(lacking)} for it as well"
        )
