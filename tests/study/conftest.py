"""A small real study: digits, a tiny timm ResNet, seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.spec import Study
from regraft.study.store import Store

TINY = "timm/test_resnet"  # timm's own network for tests: real, with BatchNorm, 0.5 M parameters


def small_study(**changes: Any) -> dict[str, Any]:
    """A source trained on the digits 0-4, cut and grafted on 5-9; scratch and random features beside it."""
    return {
        "study": "small",
        "seeds": [0, 1],
        "sources": {
            "random": {"network": TINY, "weights": "random", "image_size": 32},
            "trained": {"run": "source"},
        },
        "targets": {
            "first": {"data": "digits", "classes": ["0", "1", "2", "3", "4"], "per_class": 30},
            "few": {"data": "digits", "classes": ["5", "6", "7", "8", "9"], "per_class": 10, "validation": 0.2},
            "more": {"data": "digits", "classes": ["5", "6", "7", "8", "9"], "per_class": 20, "validation": 0.2},
        },
        "recipes": {
            "fast": {"epochs": 3, "batch_size": 32, "lr": 0.05},
            "weak": {"optimizer": "lbfgs", "epochs": 100, "weight_decay": 0.01},
            "strong": {"optimizer": "lbfgs", "epochs": 100, "weight_decay": 1.0},
            "steps": {"epochs": 5, "batch_size": 16, "lr": 0.05},
        },
        "rows": [
            {"name": "source", "source": "random", "target": "first", "recipe": "fast", "seeds": [0]},
            {"name": "tuned", "source": "trained", "target": "few", "recipe": "fast"},
            {"name": "scratch", "source": "random", "target": "few", "recipe": "fast"},
            {
                "name": "steps", "source": "trained", "cut": "layer2", "method": "frozen", "target": "few",
                "recipe": "steps",
            },
        ],
        "grid": {
            "source": "trained", "cut": ["layer1", "layer3"], "method": "frozen", "target": ["few", "more"],
            "recipe": ["weak", "strong"],
        },
        **changes,
    }  # fmt: skip


@pytest.fixture
def study() -> Study:
    return Study.from_dict(small_study())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
