"""What the scored networks answered, image by image, as the store keeps it. Reads no test label and needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.errors import ArtifactDamaged, UnknownName
from regraft.study.disk import verified
from regraft.study.keys import score_spec
from regraft.study.plan import Cell
from regraft.study.results import Results
from regraft.study.store import Artifact, key_of


@dataclass(frozen=True, eq=False)
class Answers:
    """A scored cell's answers to its n test images."""

    positions: NDArray[np.int64]  # (n,) of the images in the whole test split; the same for all cells of a target
    predicted: NDArray[np.int64]  # (n,) of the class in the cell's class_names
    correct: NDArray[np.bool_]  # (n,)
    # (n,) softmax of the predicted class, in [0, 1]. A probability for heads trained by cross-entropy; of others
    # (ridge, prototypes, neighbours) it only tells a clear answer from a close one. None: scored before it was kept.
    confidence: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.positions)


def read_answers(results: Results) -> dict[Cell, Answers]:
    """(row, seed) -> answers, of every scored cell whose store is known and has them.

    Left out: few-shot episodes, which keep accuracies of episodes; scores that are gone or damaged, which are left
    where they are."""
    if results.store is None:
        return {}
    found: dict[Cell, Answers] = {}
    for cell in results.cells:
        if cell.episodes is not None:
            continue
        try:
            artifact = results.store.read(score_key(cell.key, results.study.targets[cell.target].test_images))
            found[cell.row, cell.seed] = _answers(artifact)
        except (UnknownName, ArtifactDamaged):
            continue
    return found


def score_key(fit_key: str, test_images: int | None) -> str:
    """Key of the score of a stored fit, as `Keys.score` has it; test_images: the target's limit."""
    return key_of(score_spec(fit_key, test_images))


def _answers(artifact: Artifact) -> Answers:
    """Raises ArtifactDamaged if a byte has changed since they were written."""
    from safetensors.numpy import load

    file = artifact.path / "data.safetensors"
    tensors = load(verified(file, artifact.record["sha256"][file.name]))
    confidence = tensors.get("confidence")
    return Answers(
        positions=tensors["positions"].astype(np.int64),
        predicted=tensors["predicted"].astype(np.int64),
        correct=tensors["correct"].astype(np.bool_),
        confidence=None if confidence is None else confidence.astype(np.float32),
    )
