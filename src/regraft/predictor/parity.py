"""Whether an exported file answers as the predictor does: on real pictures, read back from the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data import dataset_info, load_dataset
from regraft.errors import DataError, PredictorError, StudyError
from regraft.predictor.files import find_pictures
from regraft.predictor.manifest import Manifest
from regraft.predictor.predict import Predictor
from regraft.seeding import stream

PICTURES = 200
SMALLEST_PART = 64  # pixels a side, of a photograph
# Of probabilities, and of logits in standard deviations of all logits: float32 rounded in another order stays well
# below. Equal answers follow from it but for ties; that they are told is for people.
TOLERANCE = 1e-3
BATCHES = (1, 7, 32)  # a file must take any number of pictures, one among them

Answers = tuple[NDArray[np.float32], NDArray[np.float32]]  # probabilities, logits: (n, k) each


@dataclass(frozen=True)
class Parity:
    """An exported file beside the predictor."""

    images: int
    origin: str  # of the pictures, in words
    probabilities: float  # largest deviation
    logits: float  # largest deviation, in standard deviations of all logits
    equal_answers: float  # share of pictures with the same most probable class

    @property
    def passed(self) -> bool:
        return self.probabilities <= TOLERANCE and self.logits <= TOLERANCE  # not so for NaN

    def told(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "tolerance": TOLERANCE}

    def sentence(self) -> str:
        return (
            f"n = {self.images:,} pictures ({self.origin}): the same answer to {100 * self.equal_answers:.2f} %, "
            f"largest deviation of a probability {self.probabilities:.1e} (allowed: {TOLERANCE:g})"
        )


def some_pictures(predictor: Predictor, paths: Sequence[str] = ()) -> tuple[NDArray[np.uint8], str]:
    """At most PICTURES real pictures as `Predictor.squares` makes them, (n, s, s, c), and what they are.

    paths: files, folders, patterns. Without: test images of the data set that the predictor was trained on, where it is
    on this machine; else parts of the two photographs that scikit-learn brings along.
    Raises PredictorError if none of the paths can be read."""
    if paths:
        found = [one.path for one in find_pictures(paths).found if one.reason is None]
        chosen = [found[i] for i in _spread(len(found))]
        squares = [one for one in predictor.squares([Path(one) for one in chosen]) if not isinstance(one, str)]
        if not squares:
            raise PredictorError(f"no picture to compare answers on in {', '.join(map(repr, paths))}; name others")
        return np.stack(squares), "of the paths given"
    images = _of_its_data(predictor.manifest)
    origin = f"test images of {predictor.manifest.provenance.get('data')}"
    if images is None:
        images, origin = _photographs(), "parts of two photographs"
    made = [one for one in predictor.squares(list(images)) if not isinstance(one, str)]
    return np.stack(made), origin


def compare(
    run: Callable[[NDArray[np.uint8]], Answers], predictor: Predictor, squares: NDArray[np.uint8], origin: str
) -> Parity:
    """run: the exported file, (b, s, s, c) -> its answers.  predictor: with plain PyTorch as its back end."""
    assert predictor.backend == "eager"
    logits = predictor.logits(squares)
    expected = predictor.answers(logits).probabilities
    parts: list[Answers] = []
    start = 0
    while start < len(squares):
        size = BATCHES[min(len(parts), len(BATCHES) - 1)]
        parts.append(run(squares[start : start + size]))
        start += size
    probabilities, found = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if probabilities.shape != expected.shape or found.shape != logits.shape:
        return Parity(len(squares), origin, np.inf, np.inf, 0.0)
    scale = max(float(logits.std()), float(np.finfo(np.float32).tiny))
    return Parity(
        len(squares), origin, _largest(probabilities - expected), _largest(found - logits) / scale,
        float(np.mean(probabilities.argmax(1) == expected.argmax(1))),
    )  # fmt: skip


def _largest(difference: NDArray[np.float32]) -> float:
    return float(np.abs(difference).max())


def _spread(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, PICTURES)).astype(np.int64))


def _of_its_data(manifest: Manifest) -> list[NDArray[np.uint8]] | None:
    """Images of its data set, if that is here; of a person's folder only the name is known."""
    name, digest = manifest.provenance.get("data"), manifest.provenance.get("data_sha256")
    if not isinstance(name, str) or name.startswith("folder:"):
        return None
    try:
        if not dataset_info(name).available:
            return None
        data = load_dataset(name, manifest.picture_size, offline=True)
    except (StudyError, DataError):  # a name of another version's, or images that are no longer whole
        return None
    if data.digest != digest:
        return None
    return [np.array(data.test.images[i]) for i in _spread(len(data.test))]


def _photographs() -> list[NDArray[np.uint8]]:
    """Parts of all sizes, each about a place of its own."""
    from sklearn.datasets import load_sample_images

    random, made = stream(0, "parts of photographs"), []
    photographs = load_sample_images().images
    for i in range(PICTURES):
        whole = photographs[i % len(photographs)]
        height, width = whole.shape[:2]
        side = int(random.integers(SMALLEST_PART, min(height, width)))
        top, left = (int(random.integers(0, free - side + 1)) for free in (height, width))
        made.append(whole[top : top + side, left : left + side])
    return made
