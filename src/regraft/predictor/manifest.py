"""What a predictor's file says of itself: network, cut, head, preprocessing, classes, calibration, metrics, origin."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, TypeGuard

from regraft.analysis.stats import wilson_interval
from regraft.errors import PredictorDamaged, PredictorMismatch
from regraft.show.text import printable
from regraft.spec import Head, Preprocessing

FORMAT = 1  # raised when an older regraft would misread a newer file
MOST_CLASSES = 1_000_000
DRAWN = "none: all weights were drawn at random and trained here"  # the licence of such
LONGEST_SIDE = 4096  # of a picture, in pixels


@dataclass(frozen=True)
class Cut:
    """A place where the trunk's value is taken: one, or for a head2toe head several."""

    name: str  # as `regraft cuts` lists it; "penultimate" for all but the classifier
    layout: str  # "chw", "hwc", "tokens" or "flat"
    shape: tuple[int, ...]  # of one image's value, before it is pooled


@dataclass(frozen=True)
class Member:
    """A file in the zip."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of a predictor but its weights."""

    network: str  # torchvision or timm name
    stem: str  # "imagenet" or "cifar"
    cuts: tuple[Cut, ...]
    head: Head  # with its pooling
    preprocessing: Preprocessing  # what the network expects
    # Pictures become squares of this many pixels a side, as the training images were; then `preprocessing` resizes them
    # to its image_size. CIFAR's are 32 px whatever the network takes; those of a folder are decoded to the image_size.
    picture_size: int
    grey: bool  # whether the training images had one channel: colours are then taken out of pictures
    mirrored: bool  # whether it answers for each picture and its mirror image together (`test_flip` of a recipe)
    classes: tuple[str, ...]  # k of them, in the order of the logits
    temperature: float = 1.0  # probabilities are softmax(logits / temperature)
    # JSON. "validation", "test": {accuracy, n, low, high}, 95 % Wilson intervals; "calibration": see `calibrate`
    metrics: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "not stated"  # of the weights that it started from
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON: source weights and digest, study, row, data
    members: Mapping[str, Member] = field(default_factory=dict)  # of the file that it was read from; else empty
    regraft: str = field(default_factory=lambda: metadata.version("regraft"))  # that wrote it

    def sealed(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        """As JSON, with size and digest of the other members and its own digest."""
        plain = {
            **asdict(self),
            "format": FORMAT,
            "head": self.head.model_dump(mode="json", exclude_defaults=True, exclude={"start"}),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "members": {name: asdict(_member(content)) for name, content in contents.items()},
        }
        return {**plain, "sha256": _digest(plain)}


def measured(accuracy: float, images: int) -> dict[str, Any]:
    """An accuracy as `Manifest.metrics` states it."""
    low, high = wilson_interval(round(accuracy * images), images)
    return {"accuracy": accuracy, "n": images, "low": low, "high": high, "interval": "95 % Wilson"}


def is_measure(one: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is what `measured` gives: a manifest may come from anywhere."""
    return (
        isinstance(one, Mapping)
        and all(isinstance(one.get(key), int | float) for key in ("accuracy", "low", "high"))
        and isinstance(one.get("n"), int)
    )


def canonical(value: object) -> str:
    """JSON with one spelling only: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def read_manifest(content: bytes, origin: str) -> Manifest:
    """What `Manifest.sealed` gave, checked field by field; origin: the file, for messages.

    Raises PredictorMismatch for a newer format, PredictorDamaged for anything else that is not as it was written."""
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PredictorDamaged(f"{origin}: its manifest is not readable: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("format"), int):
        raise PredictorDamaged(f"{origin} is no predictor: its manifest states no format")
    _check_format(given, origin)
    try:
        if given.pop("sha256", None) != _digest(given):
            raise ValueError("it does not have the digest that it was written with")
        return _parsed(given)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = printable(str(error), 300) or type(error).__name__
        raise PredictorDamaged(f"{origin}: its manifest is not as one is written: {what}") from None


def _check_format(given: Mapping[str, Any], origin: str) -> None:
    version = given["format"]
    if version > FORMAT:
        wrote = given.get("regraft")
        by = printable(wrote, 40) if isinstance(wrote, str) else "?"
        raise PredictorMismatch(
            f"{origin} has format {version}, this regraft ({metadata.version('regraft')}) reads up to {FORMAT}. It was "
            f"written by regraft {by}: install that one or a newer one."
        )
    if version < 1:
        raise PredictorDamaged(f"{origin}: there is no format {version}; formats count from 1")


def _parsed(given: Mapping[str, Any]) -> Manifest:
    """Raises ValueError, KeyError or TypeError for what does not fit."""
    fields = {**given}
    fields.pop("format")
    cuts = tuple(
        Cut(_text(one["name"]), _text(one["layout"]), tuple(_count(side, 10**9) for side in one["shape"]))
        for one in fields.pop("cuts")
    )
    members = {
        _text(name): Member(_count(one["bytes"], 2**50), _text(one["sha256"]))
        for name, one in fields.pop("members").items()
    }
    manifest = Manifest(
        **{
            **fields, "cuts": cuts, "members": members, "head": Head(**fields["head"]),
            "preprocessing": Preprocessing(**fields["preprocessing"]),
            "classes": tuple(_text(name) for name in fields["classes"]),
        }
    )  # fmt: skip
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    for name in ("network", "stem", "licence", "regraft"):
        _text(getattr(manifest, name))
    for name in ("grey", "mirrored"):
        if not isinstance(getattr(manifest, name), bool):
            raise ValueError(f"{name} must be true or false")
    for name in ("metrics", "provenance"):
        if not isinstance(getattr(manifest, name), dict):
            raise ValueError(f"{name} must be a mapping")
    _count(manifest.picture_size, LONGEST_SIDE)
    if not 2 <= len(manifest.classes) <= MOST_CLASSES or len(set(manifest.classes)) < len(manifest.classes):
        raise ValueError(f"{len(manifest.classes)} classes; two or more are needed, each named once")
    if not manifest.cuts or (len(manifest.cuts) > 1 and manifest.head.kind != "head2toe"):
        raise ValueError(f"{len(manifest.cuts)} cuts for a {manifest.head.kind} head")
    temperature = manifest.temperature
    if not isinstance(temperature, float | int) or not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"text is needed, got {value!r:.80}")
    return value


def _count(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"a whole number from 1 to {most:,} is needed, got {value!r:.80}")
    return value


def _member(content: bytes) -> Member:
    return Member(len(content), hashlib.sha256(content).hexdigest())


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(plain).encode()).hexdigest()
