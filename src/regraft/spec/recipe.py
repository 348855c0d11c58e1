"""The recipe: how to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from regraft.spec.base import Model

Augmentation = Literal["none", "flip", "crop-flip", "resized-crop-flip"]
Policy = Literal["none", "color", "trivial", "rand"]
Semi = Literal["none", "fixmatch", "flexmatch"]
Preset = Literal["fast", "standard", "strong"]
Optimizer = Literal["sgd", "sgdw", "adamw", "lbfgs", "ridge", "none"]
SOLVED = ("lbfgs", "ridge")  # optimizers that need no learning rate: a linear head's optimum is computed


@dataclass(frozen=True)
class Augment:
    """How an image is changed each time that it is shown in training."""

    geometry: Augmentation = "none"
    policy: Policy = "none"
    cutout: float = 0.0  # side of the erased square, as a share of the image's side

    @property
    def still(self) -> bool:
        """Whether nothing is changed."""
        return self == AS_IS


AS_IS = Augment()


class Recipe(Model):
    """How to train."""

    preset: Preset | None = Field(
        default=None,
        description="a recipe made for the number and size of the images, the network and the method; the fields "
        "given beside it replace its own",
    )
    optimizer: Optimizer = Field(
        default="sgd",
        description="sgdw: sgd with weight decay outside the gradient; for linear heads on a frozen trunk also lbfgs "
        "(logistic regression to its optimum) and ridge (least squares, closed form); none: for heads without "
        "training (prototype, knn)",
    )
    epochs: int = Field(
        default=10,
        ge=1,
        le=100_000,
        description="passes over the training images; for lbfgs, iterations at most",
    )
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="images a step")
    lr: float = Field(default=0.1, gt=0, le=1000, description="peak learning rate; a list is one recipe for each")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd, with Nesterov's correction")
    weight_decay: float = Field(
        default=5e-4,
        ge=0,
        le=1000,
        description="pulls kernels and matrices towards 0; vectors (biases, norms' scales) are spared; the penalty of "
        "lbfgs and ridge; a list is one recipe for each",
    )
    schedule: Literal["cosine", "constant", "one-cycle"] = Field(
        default="cosine",
        description="of the learning rate; one-cycle: a quarter of the steps up, then down to 0",
    )
    warmup: float = Field(default=0.0, ge=0, le=0.9, description="share of all steps with a rising learning rate")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of each label spread evenly")
    augment: Augmentation = Field(
        default="none",
        description="crop-flip: reflect-pad by 1/8 of the side, random crop, horizontal flip; resized-crop-flip: a "
        "random part of 35 to 100 % of the area at full size, flip (for photographs)",
    )
    policy: Policy = Field(
        default="none",
        description="color: brightness, contrast, saturation; trivial: TrivialAugment (one random change of random "
        "strength); rand: RandAugment (two changes of fixed strength)",
    )
    cutout: float = Field(
        default=0.0, ge=0, le=1, description="side of the square erased from each image, as a share of its side"
    )
    mixup: float = Field(
        default=0.0, ge=0, le=100, description="alpha of mixup: images and labels blended in pairs; 0 is off"
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="alpha of CutMix: a box pasted from another image; with mixup, each batch gets one of the two",
    )
    views: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="augmented views of each image whose features a frozen trunk caches, in place of running live in "
        "every epoch (0)",
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay, per step, of the moving average of the weights that is kept in place of the last ones; "
        "0 is off",
    )
    sam: float = Field(
        default=0.0, ge=0, le=10, description="radius of sharpness-aware minimisation (two passes a step); 0 is off"
    )
    semi: Semi = Field(
        default="none",
        description="learning from the target's `unlabelled` images: FixMatch, or FlexMatch (thresholds by class)",
    )
    threshold: float = Field(
        default=0.95, gt=0, lt=1, description="of fixmatch and flexmatch: confidence from which a guess is a label"
    )
    ratio: int = Field(
        default=7,
        ge=1,
        le=100,
        description="of fixmatch and flexmatch: unlabelled images for each labelled one; an epoch is one pass over the "
        "labelled images",
    )
    test_flip: bool = Field(
        default=False, description="answers are the mean over an image and its mirror image, in validation and test"
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="epoch to keep; best is chosen on validation only"
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="with `keep: best`: stop after so many epochs without a better one on validation; 0: never",
    )
    refit: bool = Field(
        default=False,
        description="once chosen on validation, train again on training and validation images together",
    )

    @model_validator(mode="after")
    def _fitting(self) -> Recipe:
        if self.preset is not None:
            return self  # judged when the preset's own fields are known
        if self.views and self.augmentation.still:
            raise ValueError("`views` are augmented views; say how with `augment`, or remove `views`")
        if self.refit and self.keep == "best":
            raise ValueError("`refit` leaves no validation images to keep the best epoch by; use `keep: last`")
        if self.patience and self.keep != "best":
            raise ValueError("`patience` waits for a better epoch on validation; it needs `keep: best`")
        if self.semi != "none" and (self.mixup or self.cutmix or self.sam):
            raise ValueError(f"`semi: {self.semi}` has its own augmentation and steps; remove mixup, cutmix and sam")
        return self

    @model_serializer(mode="wrap")
    def _said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Beside a preset, a field that was given counts even where it equals the general default."""
        written: dict[str, Any] = write(self)
        if self.preset is None:
            return written
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @property
    def augmentation(self) -> Augment:
        return Augment(self.augment, self.policy, self.cutout)

    @property
    def live(self) -> bool:
        """Whether training by it needs images, even on a frozen trunk."""
        blended = self.mixup > 0 or self.cutmix > 0
        drawn = not self.augmentation.still and self.views == 0
        stepped = self.ema > 0 or self.sam > 0 or self.patience > 0 or self.optimizer == "sgdw"
        return blended or drawn or stepped or self.test_flip or self.semi != "none"
