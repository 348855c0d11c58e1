"""The README's tables come from records alone, and the benchmark of training takes fair turns."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.spec import Study
from regraft.study.results import Results
from tests.unit.show_example import seven_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    return import_module("make_tables")


@pytest.fixture
def records(tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, and no targets."""
    monkeypatch.setattr(tables, "RECORDS", tmp_path)
    monkeypatch.setattr(tables, "TARGETS", tmp_path / "none" / "targets.json")
    (tmp_path / "none").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "none" / "targets.json").write_text("{}")
    return tmp_path


def lines_of(block: str, title: str) -> list[list[str]]:
    """The table below **title**, without its rule."""
    table = block.split(f"**{title}**")[1].split("\n\n")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_a_study_without_a_record_is_not_measured_in_any_cell(tables: Any, records: Path) -> None:
    head, *rows = lines_of(tables.results_block(), "cifar")
    assert [row[0] for row in rows] == [row.name for row in Study.from_yaml("cifar").all_rows()]
    measured = [head.index(title) for title in tables.MEASURED]
    assert {row[i] for row in rows for i in measured} == {"not measured"}


def test_a_recorded_row_says_its_device_and_the_seconds_of_all_its_seeds(tables: Any, records: Path) -> None:
    results = seven_rows()
    results.to_json(records / f"{results.study.study}.json")
    head, *rows = lines_of(tables.results_block(), results.study.study)
    assert len(rows) == len(results.study.all_rows())
    for row in rows:
        own = [cell for cell in results.cells if cell.row == row[0]]
        assert row[head.index("n")] == str(len(own))
        if own:
            assert row[head.index("device")] == "NVIDIA H100"
            assert row[head.index("seconds")] == f"{sum(cell.cost['seconds'] for cell in own):,.1f}"


def test_a_target_of_a_row_that_is_not_there_is_an_error(tables: Any, records: Path) -> None:
    tables.TARGETS.write_text(json.dumps({"cifar": {"1": {"accuracy": 0.97}, "77": {"accuracy": 0.5}}}))
    with pytest.raises(SystemExit, match="cifar has no row 77"):
        tables.results_block()


def test_every_kind_of_target_is_said_in_words(tables: Any) -> None:
    assert tables._goal({"accuracy": 0.97}, 0.1) == "≥ 97.0 %"
    assert tables._goal({"times_chance": 3}, 0.1) == "≥ 3 × chance (30.0 %)"
    assert tables._goal({"times_chance": 3}, None) == "≥ 3 × chance"
    assert tables._goal({"points_below": 0.015, "row": "1"}, 0.1) == "at most 1.5 points below row 1"
    assert tables._goal(None, 0.1) == "–"


def test_the_targets_name_rows_of_the_shipped_studies(tables: Any) -> None:
    for name in json.loads(tables.TARGETS.read_text("utf-8")):
        assert tables._targets(Study.from_yaml(name))


def test_the_table_of_training_shows_what_the_record_says_and_sections_only_where_recorded(
    tables: Any, records: Path
) -> None:
    speed = {"median": 500.4, "min": 480.0, "max": 510.0}
    ratio = {"median": 1.234, "min": 1.2, "max": 1.3}
    record = {
        "command": "python benchmarks/train_cpu.py", "machine": "two cores", "versions": {"torch": "2.14.1"},
        "job": "a network", "images": 2560, "rounds": 7, "threads": 2,
        "contenders": [
            {"name": "regraft", "target": None, **speed, "ratio": ratio},
            {"name": "scripts", "target": 1.15, **speed, "ratio": ratio},
        ],
    }  # fmt: skip
    place = records / "benchmarks" / "train-cpu.json"
    place.write_text(json.dumps(record))
    _, regraft, scripts = lines_of(tables.speed_block(), "Training on the CPU: a network")
    assert regraft == ["regraft", "500 (480 to 510)", "", ""]
    assert scripts == ["scripts", "500 (480 to 510)", "1.23 (1.20 to 1.30)", "≥ 1.15"]
    assert "bfloat16" not in tables.speed_block()
    order = {"network": "resnet18", "batch": 32, "channels_last": speed, "contiguous": speed, "ratio": ratio}
    place.write_text(json.dumps({**record, "memory_order": [order]}))
    _, row = lines_of(tables.speed_block(), "Memory order in training on the CPU, 32 px")
    assert row == ["resnet18, 32", "500 (480 to 510)", "500 (480 to 510)", "1.23 (1.20 to 1.30)"]


def test_a_record_is_read_back_as_it_was_written(tables: Any, records: Path, tmp_path: Path) -> None:
    """`--record` leaves out confusion matrices, and nothing that a table shows."""
    results = seven_rows()
    tables.record(results.to_json(tmp_path / "none" / "results.json"))
    kept = Results.from_json(records / f"{results.study.study}.json")
    assert [(cell.row, cell.seed, cell.accuracy, cell.cost) for cell in kept.cells] == [
        (cell.row, cell.seed, cell.accuracy, cell.cost) for cell in results.cells
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the benchmark's peers' libraries
def test_every_contender_trains_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    benchmark = import_module("train_cpu")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "train_images.npy", rng.integers(0, 256, (128, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "train_labels.npy", rng.integers(0, 10, 128))
    (tmp_path / "task.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    found = benchmark.take_turns(tmp_path, images=128, rounds=2, threads=1)
    speeds = {row["name"]: row["values"] for row in found}
    for row in found:
        assert row["n"] == 2
        ratios = [a / b for a, b in zip(speeds["regraft"], row["values"], strict=True)]
        assert row["ratio"]["values"] == pytest.approx(ratios, rel=1e-2)
    assert sys.modules["before"].ENVIRONMENT is benchmark.ENVIRONMENT


def test_an_audit_is_recorded_by_its_counts_alone(tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    science = import_module("science_tables")
    monkeypatch.setattr(science, "RECORDS", tmp_path / "science")
    threshold = {"correlation": 0.7, "by_chance": 1e-4, "images": 150, "other_class": 1}
    place = {"data": "cats", "size": 32, "split": "test", "position": 7}
    one = {"data": "cats", "image_size": 32, "threshold": threshold, "images": {"train": 900, "test": 80},
           "classes": {"train": {"tabby": 900}}, "constant": [place], "unreadable": []}  # fmt: skip
    pair = {"first": place, "second": place, "exact": True, "mirrored": False, "labels_differ": False}
    crossings = [
        {"target": "all", "seed": seed, "part": "test", "other": "training", "images": n, "of": 80, "share": n / 80}
        for seed, n in ((0, 4), (1, 8))
    ]
    ran = {"machine": "Linux", "versions": {"torch": "2"}, "created": "2026-11-24T10:00:00Z", "seconds": 3.2}
    printed = {
        "study": "felines", "findings": ["x"], "sets": [one], "crossings": crossings, "pairs": [pair],
        "without_duplicates": [], "record": ran,
    }  # fmt: skip
    (tmp_path / "printed.json").write_text(json.dumps(printed))
    tables.record(tmp_path / "printed.json")
    kept = json.loads((tmp_path / "science" / "audit-felines.json").read_text())
    assert (kept["command"], kept["record"]) == ("regraft audit felines --json", ran)
    assert kept["pairs"] == {"all": 1, "same_bytes": 1, "mirrored": 0, "labels_differ": 0}
    assert "classes" not in kept["sets"][0]
    block = science.audit_block()
    assert "| all | test | training | 4, 8 | 80 | 7.50 % |" in block
    assert "1 of 150" in block


def test_recorded_scores_give_the_table_that_the_command_printed(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    science = import_module("science_tables")
    monkeypatch.setattr(science, "RECORDS", tmp_path)
    rows = [
        {"row": f"{cut} {seed}", "seed": seed, "source": "net", "cut": cut, "target": "few", "head": "linear",
         "optimizer": "ridge", "images": 50, "accuracy": accuracy - seed / 50,
         "scores": {"LogME": accuracy, "LEEP": None, "depth": depth, "ridge probe": -accuracy}}
        for cut, depth, accuracy in (("a", 0.2, 0.5), ("b", 0.6, 0.7), ("c", 0.9, 0.6))
        for seed in (0, 1)
    ]  # fmt: skip
    (tmp_path / "printed.json").write_text(json.dumps({"study": "x", "by": "cut", "rows": rows, "advice": []}))
    tables.record(tmp_path / "printed.json")
    lines = lines_of(science.advice_block(), "x")
    assert [line[0] for line in lines[1:]] == ["LogME", "depth", "(any candidate)", "ridge probe"]
    assert [line[2].split()[0] for line in lines[1:]] == ["0.0", "10.0", "10.0", "20.0"]
