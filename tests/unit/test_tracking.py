"""What TensorBoard and MLflow get is what was measured: written, and read back with their own readers."""

from __future__ import annotations

import builtins
import warnings
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import RegraftError, UnknownName
from regraft.show import tracking
from regraft.study.results import Results
from tests.unit.show_example import hostile, seven_rows


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'mlflow'"):
        tracking.track(seven_rows(), "mlflo", place=tmp_path)


@pytest.mark.parametrize("to", tracking.TRACKERS)
def test_a_tracker_that_is_not_installed_explains_itself(
    to: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in tracking.TRACKERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(RegraftError, match=r"pip install 'regraft\[tracking\]'"):
        tracking.track(seven_rows(), to, place=tmp_path)


def test_parameters_are_what_the_study_says_of_the_chosen_recipe() -> None:
    results = seven_rows()
    rows = {row.name: row for row in results.study.all_rows()}
    told = tracking.parameters(results.study, rows, results.cells[3])
    assert told["row"] == "2 cut frozen"
    assert told["cut"] == "layer2.2"
    assert told["recipe"] == "short"
    assert told["recipe.epochs"] == told["source's recipe.epochs"] == "12"


@pytest.mark.slow
@pytest.mark.parametrize("results", [seven_rows(), hostile()], ids=["plain", "hostile"])
def test_tensorboard_reads_every_epoch_and_final_number(results: Results, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert tracking.track(results, "tensorboard", place=tmp_path) == (len(results.cells), 0)
    assert tracking.track(results, "tensorboard", place=tmp_path) == (0, len(results.cells))
    folders = sorted(path.parent for path in tmp_path.rglob("events.out.*"))
    assert len(folders) == len(results.cells)
    read = []
    for folder in folders:
        events = reader.EventAccumulator(str(folder))
        events.Reload()
        (final,) = events.Scalars("final/accuracy")
        key = events.Tensors(tracking.KEY_TAG)[0].tensor_proto.string_val[0].decode()
        curve = [(event.step, event.value) for event in events.Scalars("validation_accuracy")]
        read.append((key, final.value, curve))
    measured = [
        (f"{tracking.KEY_TAG} {cell.key}", cell.accuracy, [(e["epoch"], e["validation_accuracy"]) for e in cell.curve])
        for cell in results.cells
    ]
    for (key, final, curve), (wanted, accuracy, epochs) in zip(sorted(read), sorted(measured), strict=True):
        assert (key, final) == (wanted, pytest.approx(accuracy))
        assert [step for step, _ in curve] == [step for step, _ in epochs]
        assert [value for _, value in curve] == pytest.approx([value for _, value in epochs])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow's own, about its file store and its dependencies
@pytest.mark.parametrize("results", [seven_rows(), hostile()], ids=["plain", "hostile"])
def test_mlflow_reads_every_run_with_its_key_parameters_and_curve(results: Results, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mlflow")
    assert tracking.track(results, "mlflow", place=tmp_path) == (len(results.cells), 0)
    assert tracking.track(results, "mlflow", place=tmp_path) == (0, len(results.cells))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tmp_path.as_uri())
    experiment = client.get_experiment_by_name(results.study.study)
    assert experiment is not None
    runs = {run.data.tags["regraft.cell"]: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == len(results.cells)
    for cell in results.cells:
        run = runs[f"{cell.key} {cell.seed} {cell.row}"]
        assert run.data.tags[tracking.KEY_TAG] == cell.key
        assert run.data.metrics["final_accuracy"] == pytest.approx(cell.accuracy)
        assert run.data.params["recipe"] == cell.recipe
        history = client.get_metric_history(run.info.run_id, "validation_accuracy")
        read = {metric.step: metric.value for metric in history}
        assert read == pytest.approx({e["epoch"]: e["validation_accuracy"] for e in cell.curve})
