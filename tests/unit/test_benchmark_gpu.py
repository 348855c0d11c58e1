"""The arithmetic of benchmarks/gpu.py, and that all of it runs where no GPU is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_speeds_and_shares_are_what_they_say(gpu: ModuleType) -> None:
    assert gpu.images_per_second(3000, [0.1, 0.05, 2.0]) == 30_000
    assert gpu.matrix_flops(10) == 2000
    assert gpu.share_of_ceiling(60_000, 3.3e9, 660e12) == pytest.approx(0.3)


def test_training_costs_three_forward_passes(gpu: ModuleType) -> None:
    # He et al. 2015 give 1.8e9 multiply-adds at 224 px, of which 2e-2 of the side squared is left at 32 px.
    assert gpu.training_flops("resnet18", "imagenet") == pytest.approx(3 * 2 * 1.82e9 * (32 / 224) ** 2, rel=0.03)
    assert gpu.training_flops("resnet18", "cifar") == pytest.approx(3 * 2 * 0.556e9, rel=0.01)


def test_nothing_is_begun_that_would_end_after_the_time_box(gpu: ModuleType) -> None:
    box = gpu.TimeBox(minutes=1)
    assert box.room_for(50)
    assert not box.room_for(61)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_what_can_be_done(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "--device cpu --smoke" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_through_on_a_cpu(tmp_path: Path) -> None:
    record = tmp_path / "gpu.json"
    subprocess.run([sys.executable, SCRIPT, "--device", "cpu", "--smoke", "--record", record], check=True)
    found = json.loads(record.read_text())
    assert found["left_out"] == []
    assert [row["mechanism"] for row in found["throughput"]] == ["eager"] * 4
    assert all(row["images_per_second"] > 0 for row in found["throughput"] + found["accuracy"])
    assert found["accuracy"][0]["scored_on"] == "test"
