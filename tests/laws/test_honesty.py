"""What must never look like learning: labels without meaning give chance accuracy, from a folder of real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from torch import nn

from regraft.data import load_dataset
from regraft.errors import TestLabelsClosed
from regraft.networks import Grafted, Trunk
from regraft.seeding import stream
from regraft.spec import Run, Study
from regraft.study.bench import Bench
from regraft.study.models import grafted
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import small_study

TINY = "timm/test_resnet"
CLASSES = ("ash", "birch", "cedar", "daphne")


def write_folder(root: Path, *, shuffled: bool, images: int = 240) -> Path:
    """Digits 0 to 3 as PNG files in a folder per class; `shuffled` puts each into a folder by chance."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 4)[:images]
    labels = digits.target[chosen]
    if shuffled:
        labels = stream(0, "shuffled").permutation(labels)
    for i, label in zip(chosen, labels, strict=True):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    return root


def study_of(folder: Path) -> Study:
    return Study.from_dict(
        {
            "study": "folder",
            "seeds": [0, 1],
            "sources": {"random": {"network": TINY, "weights": "random", "image_size": 32}},
            "targets": {"mine": {"data": f"folder:{folder}", "fraction": 1.0}},
            "recipes": {
                "train": {"epochs": 12, "batch_size": 32, "lr": 0.05, "schedule": "one-cycle"},
                "weak": {"optimizer": "lbfgs", "epochs": 200, "weight_decay": 0.01},
                "strong": {"optimizer": "lbfgs", "epochs": 200, "weight_decay": 0.3},
            },
            "rows": [
                {"name": "scratch", "source": "random", "target": "mine", "recipe": "train"},
                {
                    "name": "frozen", "source": "random", "method": "frozen", "cut": "layer1", "target": "mine",
                    "recipe": ["weak", "strong"],
                },
            ],
        }
    )  # fmt: skip


def test_labels_without_meaning_give_chance(tmp_path: Path) -> None:
    results = run_study(study_of(write_folder(tmp_path / "f", shuffled=True)), Store(tmp_path / "s"), threads=1)
    assert len(results.cells) == 4
    for cell in results.cells:
        hits = round(cell.accuracy * cell.test_images)
        assert binomtest(hits, cell.test_images, cell.chance).pvalue > 1e-4, cell


def test_the_same_pictures_with_their_labels_are_learned(tmp_path: Path) -> None:
    results = run_study(study_of(write_folder(tmp_path / "f", shuffled=False)), Store(tmp_path / "s"), threads=1)
    assert all(cell.accuracy > 0.7 for cell in results.cells), [c.accuracy for c in results.cells]
    assert results.cells[0].class_names == CLASSES


def test_one_changed_byte_in_one_picture_is_another_data_set(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", shuffled=False, images=40)
    before = load_dataset(f"folder:{folder}", 16, tmp_path / "home").digest
    picture = next(folder.rglob("*.png"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    assert load_dataset(f"folder:{folder}", 16, tmp_path / "home").digest != before


def test_scoring_twice_reads_test_labels_once() -> None:
    test = load_dataset("digits").test
    logits = np.zeros((len(test), 10))
    test.score(logits, run="a")
    with pytest.raises(TestLabelsClosed):
        test.score(logits, run="a")
    assert test.scored == 1


def test_a_frozen_trunk_that_moves_fails_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original study's mistake, made on purpose: no gradients, but BatchNorm in training mode."""

    class Leaky(Trunk):
        def train(self, mode: bool = True) -> Leaky:
            return nn.Module.train(self, mode)

    def leaky(run: Run, bench: Bench) -> Grafted:
        model = grafted(run, bench)
        model.trunk = Leaky(model.trunk.body, frozen=True)
        return model

    monkeypatch.setattr("regraft.study.fits.grafted", leaky)
    data = small_study(grid=[], rows=[{**small_study()["rows"][3], "source": "random", "recipe": "fast"}])
    data["sources"].pop("trained")
    data["recipes"]["fast"]["augment"] = "flip"  # so that the trunk runs live
    results = run_study(Study.from_dict(data), Store(tmp_path), threads=1)
    assert results.cells == []
    assert all("frozen trunk changed" in gap.reason for gap in results.missing)
