"""Images with labels (`Split`), a test split that keeps its labels (`TestSplit`), and both as a `Dataset`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.episodes import EpisodeScore, Heads, check_enough, score_heads
from regraft.errors import Diverged, StudyError, TestLabelsClosed, TooFewImages, UnknownName, nearest
from regraft.seeding import stream


@dataclass(frozen=True, eq=False)
class Split:
    """Images with open labels.

    images: (n, h, w, c) uint8, c is 1 or 3, possibly memory-mapped.  labels: (n,) int64 into `classes`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.images.ndim == 4
        assert self.images.shape[3] in (1, 3), self.images.shape
        assert self.images.dtype == np.uint8
        assert self.labels.dtype == np.int64
        assert self.labels.shape == (len(self.images),)
        assert len(self.labels) == 0 or 0 <= self.labels.min() <= self.labels.max() < len(self.classes)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images of each class."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())

    def select_classes(self, names: Sequence[str]) -> tuple[Split, NDArray[np.int64]]:
        """Only the images of `names`, labelled by their order there; also their positions in this split."""
        indices, labels = _of_classes(self.labels, self.classes, names)
        return Split(_taken(self.images, indices), labels, tuple(names)), indices


@dataclass(frozen=True, eq=False)
class Score:
    """What one look at the test labels gave."""

    accuracy: float  # fraction of the n images
    correct: NDArray[np.bool_]  # (n,)
    confusion: NDArray[np.int64]  # (classes, classes) counts, [true][predicted]
    n: int


class TestSplit:
    """Test images. The labels never leave: they are met in `score` and `score_episodes` alone, and once per run.

    Python cannot hide an attribute from somebody determined; what this class does is to have no accessor, no
    `__dict__`, no pickle and no copy, so that test labels reach no training by accident.

    indices: (n,) positions of these images in the data set's whole test split, so that features
    computed for the whole split serve a part of it.
    """

    __test__ = False  # not a pytest class
    __slots__ = ("__labels", "__scored", "classes", "images", "indices")

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
        indices: NDArray[np.int64] | None = None,
    ) -> None:
        split = Split(images, labels, classes)  # the same checks
        self.images = split.images
        self.classes = split.classes
        self.indices = np.arange(len(split)) if indices is None else indices
        self.__labels = split.labels
        self.__scored: set[str] = set()

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<TestSplit: {len(self)} images, {len(self.classes)} classes, {len(self.__scored)} scores taken>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TestLabelsClosed(
            "a test split is not copied or pickled: its labels would leave with it. "
            "Load the data set again where it is needed (load_dataset)."
        )

    @property
    def scored(self) -> int:
        """How often these labels were read."""
        return len(self.__scored)

    def score(self, logits: NDArray[np.floating], run: str) -> Score:
        """Compare with the labels.  logits: (n, classes), the largest one is the prediction.

        Raises Diverged for NaN, infinity or a wrong shape (before any label is read), TestLabelsClosed when
        `run` was scored here before.
        """
        expected = (len(self), len(self.classes))
        if logits.shape != expected:
            raise Diverged(
                f"run {run!r}: logits of shape {logits.shape}, but the test split needs {expected} "
                "(images, classes); give one row of logits per test image, in order"
            )
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise Diverged(
                f"run {run!r}: NaN or infinity in the logits of {bad} of {len(self)} test images; "
                "the training diverged (a lower lr or a warm-up usually helps)"
            )
        self.__refuse_a_second_time(run)
        self.__scored.add(run)
        predicted = logits.argmax(axis=1)  # (n, classes) -> (n,)
        correct = predicted == self.__labels
        confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(confusion, (self.__labels, predicted), 1)
        return Score(float(correct.mean()), correct, confusion, len(self))

    def score_episodes(
        self,
        features: NDArray[np.floating[Any]],
        ways: NDArray[np.int64],
        heads: Iterable[Heads],
        *,
        queries: int,
        run: str,
        seed: int,
    ) -> EpisodeScore:
        """Ask the head of each few-shot episode about `queries` test images of each of its classes.

        features: (n, d), one row per test image, in order.  ways: (episodes, ways) labels.  heads: weights and biases
        of all episodes, in order, in parts (`Heads`).

        The heads come in and the queries are drawn here, so nothing goes out before the score. To hand out the
        queries and take predictions back would hand out labels: an image is asked about only in episodes that
        have its class, and a few dozen episodes have no other class in common.

        Raises TooFewImages when a class has fewer than `queries` test images, Diverged for NaN, infinity or a wrong
        shape, TestLabelsClosed when `run` was scored here before. A run whose heads fail half-way is not scored.
        """
        if features.ndim != 2 or len(features) != len(self):
            raise Diverged(
                f"run {run!r}: features of shape {features.shape}, but the test split has {len(self)} images; "
                "give one row of features per test image, in order"
            )
        self.__refuse_a_second_time(run)
        found = score_heads(self.__labels, features, ways, heads, queries=queries, classes=self.classes, seed=seed)
        self.__scored.add(run)
        return found

    def check_queries(self, queries: int) -> None:
        """Raises TooFewImages, as scoring would, when a class has fewer than `queries` test images."""
        check_enough(self.__labels, queries, classes=self.classes, name="queries")

    def __refuse_a_second_time(self, run: str) -> None:
        if run in self.__scored:
            raise TestLabelsClosed(
                f"run {run!r} was scored on these test labels before; a run is scored once. "
                "Keep the Score, or choose between runs on validation images."
            )

    def limited(self, n: int, seed: int) -> TestSplit:
        """A stratified part of `n` images, the same for the same seed; parts are nested over n.

        Raises TooFewImages if there are fewer than n."""
        if n > len(self):
            raise TooFewImages(
                f"{n:,} test images asked for, but the test split has {len(self):,}; "
                "leave `test_images` out to score all of them"
            )
        # Each image's place within its class, as a fraction: taking the n smallest takes the same share of
        # every class, and a larger n only adds.
        place = np.empty(len(self))
        for label in range(len(self.classes)):
            members = np.flatnonzero(self.__labels == label)
            order = stream(seed, "test-part", label).permutation(len(members))
            place[members[order]] = (np.arange(len(members)) + 0.5) / max(1, len(members))
        ties = stream(seed, "test-part-ties").permutation(len(self))
        kept = np.sort(np.lexsort((ties, place))[:n])
        return TestSplit(_taken(self.images, kept), self.__labels[kept], self.classes, self.indices[kept])

    def with_classes(self, names: Sequence[str]) -> TestSplit:
        """Only the images of the classes `names`, labelled by their order there."""
        kept, labels = _of_classes(self.__labels, self.classes, names)
        return TestSplit(_taken(self.images, kept), labels, tuple(names), self.indices[kept])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on this machine. Validation images are carved out of `train` unless a folder brings its own.

    digest: sha256 over the content that images, labels and class names are determined by.
    image_size: side of the square images in pixels.
    train_indices: (n,) positions of `train`'s images in the data set's whole training split; the same for
    validation_indices (empty without a validation split) and `test.indices`.
    unreadable: files of a folder that could not be read as pictures, each with the reason.
    """

    name: str
    train: Split
    test: TestSplit
    validation: Split | None
    digest: str
    image_size: int
    train_indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    validation_indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    unreadable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, split in (("train_indices", self.train), ("validation_indices", self.validation)):
            n = 0 if split is None else len(split)
            if len(getattr(self, name)) == 0:
                object.__setattr__(self, name, np.arange(n))
            assert len(getattr(self, name)) == n
        assert self.train.classes == self.test.classes

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[3])

    def with_classes(self, names: Sequence[str]) -> Dataset:
        """Only these classes, labelled by their order in `names`.

        Raises UnknownName for a class that is not there, StudyError for fewer than two or one named twice."""
        names = tuple(names)
        for name in names:
            if name not in self.classes:
                known = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
                raise UnknownName(f"{self.name} has no class {name!r}{nearest(name, self.classes)} Classes: {known}.")
        if len(names) < 2 or len(set(names)) < len(names):
            raise StudyError(f"{self.name}: `classes` must name two or more different classes, got {names}")
        train, indices = self.train.select_classes(names)
        test, validation, validation_indices = self.test.with_classes(names), None, self.validation_indices
        if self.validation is not None:
            validation, kept = self.validation.select_classes(names)
            validation_indices = self.validation_indices[kept]
        for part, split in (("test", test), ("validation", validation)):
            if split is not None and len(split) == 0:
                raise TooFewImages(f"{self.name}: its {part} part has no image of the classes {', '.join(names)}")
        words = json.dumps([self.digest, names])
        return replace(
            self,
            train=train,
            test=test,
            validation=validation,
            digest=hashlib.sha256(words.encode()).hexdigest(),
            train_indices=self.train_indices[indices],
            validation_indices=validation_indices,
        )


def _taken(images: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """images[indices] for sorted distinct indices: a view, not a copy, where they are one run (a folder's
    neighbouring classes, or all classes in another order)."""
    if len(indices) > 0 and indices[-1] - indices[0] + 1 == len(indices):
        return images[indices[0] : indices[-1] + 1]
    return images[indices]


def _of_classes(
    labels: NDArray[np.int64], classes: tuple[str, ...], names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the images of `names`, in order, and their new labels."""
    new = np.full(len(classes), -1)
    for label, name in enumerate(names):
        new[classes.index(name)] = label
    indices = np.flatnonzero(new[labels] >= 0)
    return indices, new[labels[indices]]
