"""NaN and infinity are named where they first appear, and never reach a result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regraft.errors import Diverged
from regraft.learn.batches import ImageBatches
from regraft.learn.features import extract
from regraft.learn.fit import fit
from regraft.networks import Trunk
from regraft.spec import Recipe, Study
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import TINY
from tests.unit.test_fit import CPU, squares


class Poisoned(nn.Module):
    """Gives NaN or infinity to one picture in each batch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.linear = nn.Linear(192, 2)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(images.flatten(1))
        spoilt = torch.zeros(len(out), 1)
        spoilt[0] = self.value
        return out + spoilt


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training_in_its_first_epoch(value: float) -> None:
    done: list[float] = []
    with pytest.raises(Diverged, match=r"training loss became .* in epoch 1 "):
        fit(Poisoned(value), squares(20), None, Recipe(epochs=50, lr=0.01), seed=0, device=CPU,
            advance=lambda share, _: done.append(share))  # fmt: skip
    assert max(done, default=0.0) < 2 / 50


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_no_numbers_are_named_with_their_cut(value: float) -> None:
    class Spoilt(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"layer3": torch.full((len(images), 4), value)}

    batches: ImageBatches = squares(20)
    with pytest.raises(Diverged, match="features at cut 'layer3' hold NaN or infinity"):
        extract(Trunk(Spoilt(), frozen=True), batches)


def test_a_run_that_diverges_is_missing_with_the_reason_and_the_others_are_scored(tmp_path: Path) -> None:
    target = {"data": "digits", "classes": ["0", "1"], "per_class": 10, "test_images": 40}
    wild = {"epochs": 60, "lr": 1000, "momentum": 0.99, "weight_decay": 1000, "schedule": "constant", "batch_size": 4}
    study = Study.from_dict({
        "study": "wild", "seeds": [0], "targets": {"t": target},
        "sources": {"s": {"network": TINY, "image_size": 32}},
        "recipes": {"wild": wild, "ridge": {"optimizer": "ridge", "weight_decay": 0.1}},
        "rows": [
            {"name": "wild", "source": "s", "cut": "layer1", "method": "frozen", "target": "t", "recipe": "wild"},
            {"name": "calm", "source": "s", "cut": "layer1", "method": "frozen", "target": "t", "recipe": "ridge"},
        ],
    })  # fmt: skip
    results = run_study(study, Store(tmp_path / "store"), device="cpu", threads=1, offline=True)
    assert [cell.row for cell in results.cells] == ["calm"]
    (missing,) = results.missing
    assert missing.row == "wild" and "learning rate" in missing.reason
    text = results.to_json(tmp_path / "results.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in results.json"))
    assert Results.from_json(tmp_path / "results.json").missing == results.missing
