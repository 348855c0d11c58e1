"""The plan of a study on a machine that lacks things: what is there is counted, what is not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.spec import Study
from regraft.study.planning import Estimate, duration, estimate
from regraft.study.store import Store

TINY = "timm/test_resnet"
FROZEN: dict[str, Any] = {"method": "frozen", "target": "few", "recipe": "ridge"}
PLAIN = {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REGRAFT_DATA", raising=False)
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    return tmp_path


def planned(folder: Path, *rows: dict[str, Any]) -> Estimate:
    study = {
        "study": "planned", "seeds": [0, 1], "question": "What will it take?",
        "sources": {
            "random": {"network": TINY, "image_size": 32}, "trained": {"run": "chooses"},
            "file": {"network": TINY, "weights": f"file:{folder / 'absent.pt'}", "preprocessing": PLAIN},
        },
        "targets": {
            "few": {"data": "digits", "per_class": 10}, "elsewhere": {"data": "cifar10", "per_class": 5},
            "unknown": {"data": "flowers102"}, "unplugged": {"data": f"folder:{folder / 'usb'}"},
        },
        "recipes": {"ridge": {"optimizer": "ridge"}, "slow": {"epochs": 2}, "quick": {"epochs": 1}},
        "rows": [{"name": "chooses", "source": "random", "target": "few", "recipe": ["slow", "quick"]}, *rows],
    }  # fmt: skip
    return estimate(Study.from_dict(study), Store(folder / "store"))


def cached(found: Estimate) -> dict[str, int | None]:
    return {step.stage: step.cached for step in found.steps}


def test_what_waits_for_a_choice_is_planned_as_still_to_do(tmp_path: Path) -> None:
    found = planned(tmp_path, {"name": "heir", "source": "trained", **FROZEN})
    assert cached(found) == {"features": 0, "fit": 0, "score": 0}
    assert found.steps[0].count == 2  # the trunk of each seed
    assert found.seconds is not None
    assert found.absent == []
    lines = found.lines()
    assert lines[0] == "planned: What will it take?"
    assert "- chooses" in lines
    assert "  - heir" in lines  # below the row that it is cut from
    assert any("2 seeds x 2 recipes" in line for line in lines)


def test_weights_that_are_away_are_named_and_nothing_is_said_of_their_steps(tmp_path: Path) -> None:
    found = planned(tmp_path, {"name": "away", "source": "file", **FROZEN})
    assert cached(found) == {"features": None, "fit": None, "score": None}
    (line,) = found.absent
    assert line.startswith("weights of source 'file': ")
    assert "absent.pt" in line
    assert f"Not here yet: {line}" in found.lines()
    assert "  fit             6 steps, in the store: not known yet" in found.lines()


def test_data_that_is_away_is_named_with_the_ways_to_it(tmp_path: Path) -> None:
    rows = [
        {"name": target, "source": "random", "target": target, "recipe": "quick"}
        for target in ("elsewhere", "unknown", "unplugged")
    ]
    found = planned(tmp_path, *rows)
    assert found.seconds is None
    assert any("time not estimated" in line for line in found.lines())
    elsewhere, unknown, unplugged = found.absent
    assert elsewhere.startswith("cifar10: ")
    assert unknown.startswith("flowers102 (not counted above): ")
    assert unplugged.startswith(f"folder:{tmp_path / 'usb'} (not counted above): ")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")]
)
def test_a_duration_is_told_in_the_unit_that_people_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said
