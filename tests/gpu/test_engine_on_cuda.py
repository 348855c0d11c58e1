"""The engine on a CUDA device: the same study, the same results within the tolerance of bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.spec import Study
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import small_study

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOLERANCE = 0.15  # of accuracy, for trainings of a few steps; solved heads differ far less


def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    study = Study.from_dict(small_study())
    on_cpu = run_study(study, Store(tmp_path / "cpu"), device="cpu")
    on_gpu = run_study(study, Store(tmp_path / "gpu"), device="cuda")
    assert on_gpu.missing == []
    for a, b in zip(on_cpu.cells, on_gpu.cells, strict=True):
        assert a.key == b.key or a.weights not in ("random", "pretrained")  # an heir's key holds its source's bits
        assert b.accuracy == pytest.approx(a.accuracy, abs=TOLERANCE), a.row
