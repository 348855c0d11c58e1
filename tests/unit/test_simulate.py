"""The simulation of a cluster, at its ends where the answer is known; and the page that is written from it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
UNITS = {
    "shard_images": 2048.0, "shard_write_seconds": 0.0, "extract_seconds_per_image": 0.01,
    "shard_bytes_beside_features": 4e4, "jpeg_bytes": 1e5, "decode_seconds_per_image": 0.005,
    "split_memory_bytes_per_image": 50.0, "split_seconds_per_image": 1e-7, "table_memory_bytes_per_image": 60.0,
    "table_open_seconds_per_shard": 1e-3, "sums_seconds_per_image": 1e-4, "run_write_seconds": 0.05, "run_bytes": 1e5,
    "run_files": 10.0, "plan_seconds_per_run": 1e-3, "status_seconds_per_run": 1e-3, "status_gib_per_run": 1e-5,
}  # fmt: skip


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    module = importlib.import_module("simulate")
    monkeypatch.setitem(module.ASSUMED, "variation", 1e-9)
    monkeypatch.setitem(module.ASSUMED, "worker_hours_between_failures", 1e12)
    return module


def test_without_failures_and_waiting_workers_share_the_work(simulate: ModuleType) -> None:
    days = 10**8 * UNITS["extract_seconds_per_image"] / 86400
    for workers in (1, 10, 100):
        found = simulate.cluster(workers, 10**8, UNITS)
        assert found["days"] == pytest.approx(days / workers, rel=0.01)
        assert found["efficiency"] == pytest.approx(1, abs=0.01)


def test_a_slow_store_bounds_the_speed_whatever_the_workers(simulate: ModuleType) -> None:
    slow = {**UNITS, "shard_write_seconds": 1.0}
    shards = -(-(10**7) // 2048)
    for workers in (200, 1000):
        assert simulate.cluster(workers, 10**7, slow)["days"] == pytest.approx(shards / 86400, rel=0.02)


def test_failures_cost_restarts_and_half_a_shard_each(simulate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulate.ASSUMED, "worker_hours_between_failures", 1.0)
    each = 2048 * UNITS["extract_seconds_per_image"]
    expected = 1 / (1 + (simulate.ASSUMED["restart_seconds"] + each / 2) / 3600)
    assert simulate.cluster(8, 10**8, UNITS)["efficiency"] == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_the_page_is_written_from_the_record(simulate: ModuleType, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    tables = importlib.import_module("scale_tables")
    monkeypatch.setattr(tables, "RECORDS", tmp_path)
    assert all("Not recorded yet" in block for block in tables.blocks().values())
    record = {"command": "x", "created": "2026-11-24", "machine": "m", "load_before": 0.0, "measured": UNITS,
              "assumed": simulate.ASSUMED, **simulate.scaled(UNITS)}  # fmt: skip
    (tmp_path / "simulate.json").write_text(json.dumps(record))
    made = tables.blocks()
    assert made["images"].splitlines()[-1].startswith("| 1,000,000,000 | 136.9 TiB")
    assert "(refused)" in made["runs"]


def test_unit_costs_are_measured_with_the_real_code(simulate: ModuleType) -> None:
    found = importlib.import_module("unit_costs").measure(quick=True)
    assert found.keys() <= UNITS.keys() | {"eigen_seconds"}
    assert all(value > 0 for value in found.values()), found
