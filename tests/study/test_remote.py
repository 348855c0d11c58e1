"""A study on a store behind a URL: what one machine left there, another one uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.spec import Study
from regraft.study.events import Event, StepDone
from regraft.study.executors import Processes
from regraft.study.results import Results
from regraft.study.run import run_study
from regraft.study.store import Store, store_at
from tests.study.conftest import small_study


def csv(results: Results, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    results.to_csv(folder / "results.csv")
    return (folder / "results.csv").read_text()


@pytest.mark.slow
def test_two_machines_with_a_common_url_compute_a_study_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, url = Study.from_dict(small_study()), f"file://{tmp_path}/shared"
    alone = csv(run_study(study, Store(tmp_path / "alone"), threads=1), tmp_path)

    def computed_by(machine: str) -> tuple[str, int]:
        monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / machine))
        events: list[Event] = []
        results = run_study(study, store_at(url), Processes(2), report=events.append, threads=1)
        assert results.missing == []
        return csv(results, tmp_path / machine), sum(isinstance(event, StepDone) for event in events)

    first, steps = computed_by("one")
    second, again = computed_by("two")
    assert first == second == alone
    assert steps > 0
    assert again == 0
    assert not (tmp_path / "shared" / "tmp").exists()
    assert list((tmp_path / "two" / "remote-stores").glob("*/objects/??/*/record.json"))
