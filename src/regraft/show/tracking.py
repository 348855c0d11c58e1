"""Results for TensorBoard and MLflow: curves by epoch, parameters, final metrics, and the key of every fit.

A fit is named by its key and never changes, so what was written once is not written again. Both need the extra
`tracking`.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from regraft.analysis.between import made_by
from regraft.errors import RegraftError, UnknownName, nearest
from regraft.show.text import printable
from regraft.spec import Row, Study
from regraft.study.results import Cell, Results

KEY_TAG, CELL_TAG = "regraft.key", "regraft.cell"
METRICS = ("accuracy", "validation_accuracy", "train_accuracy", "train_images", "test_images")
MOST_METRICS, MOST_PARAMS = 1000, 100  # that MLflow takes at once
PARAM_LIMIT, NAME_LIMIT = 500, 80  # characters


def track(results: Results, to: str, *, place: str | Path) -> tuple[int, int]:
    """Write every scored cell as a run: `to` is a key of TRACKERS, `place` a folder or, of mlflow, a tracking URI.

    Returns how many were written, and how many were there already. Raises UnknownName for another tracker,
    RegraftError without its package."""
    if to not in TRACKERS:
        raise UnknownName(f"there is no tracker {to!r}{nearest(to, TRACKERS)} Trackers: {', '.join(TRACKERS)}")
    try:
        return TRACKERS[to](results, place)
    except OSError as error:
        raise RegraftError(f"cannot write to {place}: {error.strerror or error}; name another --folder") from error


def final_metrics(cell: Cell) -> dict[str, float]:
    """Numbers of a finished cell."""
    found = {name: float(value) for name in METRICS if (value := getattr(cell, name)) is not None}
    if "seconds" in cell.cost:
        found["seconds"] = float(cell.cost["seconds"])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def curve_metrics(cell: Cell) -> list[tuple[int, dict[str, float]]]:
    """(epoch, numbers of that epoch)."""
    return [
        (int(epoch["epoch"]), {name: float(v) for name, v in epoch.items() if name != "epoch" and math.isfinite(v)})
        for epoch in cell.curve
    ]


def parameters(study: Study, rows: Mapping[str, Row], cell: Cell) -> dict[str, str]:
    """What the study says of the cell: source, cut, method, head, target, the recipe that was chosen, seed.

    rows: of the study by name."""
    known = made_by(study, rows, cell.row, usual=False)
    chosen = f"recipe {cell.recipe}."
    told = {
        name.replace(chosen, "recipe."): value for name, value in known.items()
        if not name.startswith("recipe ") or name.startswith(chosen)
    }  # fmt: skip
    del told["seeds"]
    named = {name: str(getattr(cell, name)) for name in ("row", "seed", "recipe", "source", "network", "weights")}
    return {"study": study.study, **named, **told, "cut": cell.cut}


def _seconds(cell: Cell) -> float:
    """When the fit was made, in seconds since 1970; 0 where it is not recorded."""
    made = str(cell.cost.get("created", ""))
    return datetime.fromisoformat(made.replace("Z", "+00:00")).timestamp() if made else 0.0


def _absent(package: str, error: ModuleNotFoundError) -> RegraftError:
    return RegraftError(
        f"{package} is not installed ({error}); install it with: pip install 'regraft[tracking]'. "
        "The same numbers without it: regraft table STUDY --cells"
    )


def _to_tensorboard(results: Results, place: str | Path) -> tuple[int, int]:
    """One folder per cell with its curves and final numbers as scalars, parameters for the HPARAMS tab, the key as
    text."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import summary_v2 as hparams
        from tensorboard.plugins.text import metadata as text
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ModuleNotFoundError as error:
        raise _absent("tensorboard", error) from error
    from tensorboard.util.tensor_util import make_tensor_proto

    rows = {row.name: row for row in results.study.all_rows()}
    written = there = 0
    for cell in results.cells:
        name = f"{_folder_name(cell.row)} seed {cell.seed} {cell.key[:12]}"
        folder = Path(place) / _folder_name(results.study.study) / name
        if folder.is_dir():
            there += 1
            continue
        unfinished = folder.with_name(f".{name}.unfinished")  # renamed once whole: a stop leaves nothing that counts
        shutil.rmtree(unfinished, ignore_errors=True)
        at = _seconds(cell)
        writer = EventFileWriter(str(unfinished))
        given: dict[str, Any] = dict(parameters(results.study, rows, cell).items())
        session = hparams.hparams_pb(given, trial_id=cell.key, start_time_secs=at)
        writer.add_event(Event(wall_time=at, summary=session))
        note = make_tensor_proto(f"{KEY_TAG} {cell.key}")
        told = Summary.Value(tag=KEY_TAG, tensor=note, metadata=text.create_summary_metadata(KEY_TAG, ""))
        writer.add_event(Event(wall_time=at, summary=Summary(value=[told])))
        finals = [(0, {f"final/{name}": value for name, value in final_metrics(cell).items()})]
        for step, numbers in [*curve_metrics(cell), *finals]:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
            writer.add_event(Event(wall_time=at, step=step, summary=Summary(value=values)))
        writer.close()
        unfinished.rename(folder)
        written += 1
    return written, there


def _folder_name(name: str) -> str:
    """A name that can be a folder's on every system."""
    return re.sub(r"[^\w .,=%+-]", "_", printable(name, NAME_LIMIT)).strip(" .") or "_"


def _to_mlflow(results: Results, place: str | Path) -> tuple[int, int]:
    """One MLflow run per cell, in an experiment with the study's name."""
    # Read when it is imported. Nobody asked for a message to its makers; and a plain folder is all that the skinny
    # package can write to without a server.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as error:
        raise _absent("mlflow", error) from error
    rows = {row.name: row for row in results.study.all_rows()}
    where = str(place) if "://" in str(place) else Path(place).resolve().as_uri()
    try:
        client = MlflowClient(tracking_uri=where, registry_uri=None if where.startswith("sqlite") else where)
        experiment = client.get_experiment_by_name(results.study.study)
        number = experiment.experiment_id if experiment else client.create_experiment(results.study.study)
        there = _cells_in(client, number)
        new = [cell for cell in results.cells if _cell_tag(cell) not in there]
        for cell in new:
            _write_run(client, number, cell, parameters(results.study, rows, cell))
    except MlflowException as error:
        raise RegraftError(
            f"mlflow cannot write to {where}: {error}; a folder and a server's http address need mlflow-skinny alone, "
            "a database the whole of mlflow"
        ) from error
    return len(new), len(results.cells) - len(new)


def _write_run(client: Any, experiment: str, cell: Cell, told: Mapping[str, str]) -> None:
    """One cell as a finished MLflow run. told: its parameters."""
    from mlflow.entities import Metric, Param

    made = round(1000 * _seconds(cell))
    tags = {
        "mlflow.runName": printable(f"{cell.row}, seed {cell.seed}", 200), KEY_TAG: cell.key,
        CELL_TAG: _cell_tag(cell), "regraft.note": cell.note,
    }  # fmt: skip
    run = client.create_run(experiment, start_time=made, tags=tags).info.run_id
    finals = {f"final_{name}": value for name, value in final_metrics(cell).items()}
    steps = [*curve_metrics(cell), (0, finals)]
    metrics = [Metric(name, value, made, step) for step, numbers in steps for name, value in numbers.items()]
    params = [Param(_param_name(name), value[:PARAM_LIMIT]) for name, value in told.items()]
    for i in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run, metrics=metrics[i : i + MOST_METRICS])
    for i in range(0, len(params), MOST_PARAMS):
        client.log_batch(run, params=params[i : i + MOST_PARAMS])
    client.set_terminated(run, end_time=made)


def _cell_tag(cell: Cell) -> str:
    return f"{cell.key} {cell.seed} {cell.row}"


def _cells_in(client: Any, experiment: str) -> set[str]:
    """Tags of the cells that an MLflow experiment holds, whole: a run that was cut off is written anew."""
    found: set[str] = set()
    token = None
    while True:
        runs = client.search_runs([experiment], max_results=1000, page_token=token)
        found |= {run.data.tags.get(CELL_TAG, "") for run in runs if run.info.status == "FINISHED"}
        token = runs.token
        if not token:
            return found


def _param_name(name: str) -> str:
    """MLflow's names are letters, digits, and _ - . : / and blanks."""
    return re.sub(r"[^\w .:/-]", "_", name)[:250]


TRACKERS: dict[str, Callable[[Results, str | Path], tuple[int, int]]] = {
    "tensorboard": _to_tensorboard,
    "mlflow": _to_mlflow,
}
