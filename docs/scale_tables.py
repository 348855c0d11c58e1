"""The tables of docs/explanation/scale.md, from the records of `benchmarks/planner.py` and `benchmarks/simulate.py`."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from blocks import REPOSITORY, table

RECORDS = REPOSITORY / "docs" / "records" / "benchmarks"


def blocks() -> dict[str, str]:
    """{block: content}; what nobody has recorded is said to be so."""
    simulated, planned = _record("simulate"), _record("planner")
    made = {
        "units": _units, "images": _images, "cluster": _cluster, "runs": _runs, "breaks": _breaks,
    }  # fmt: skip
    found = {
        name: make(simulated) if simulated else _missing("python benchmarks/simulate.py") for name, make in made.items()
    }
    scaled = _record("scaleout")
    found["scaleout"] = _scaleout(scaled) if scaled else _missing("python benchmarks/scaleout.py")
    found["planner"] = _planner(planned) if planned else _missing("python benchmarks/planner.py")
    return found


def _record(name: str) -> dict[str, Any] | None:
    file = RECORDS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _missing(command: str) -> str:
    return f"Not recorded yet: `{command}`."


def _scaleout(record: dict[str, Any]) -> str:
    names = {"serial": "one process", "processes 2": "two processes", "ray 1": "Ray, one worker", "ray 2": "Ray, two"}
    lines = []
    for one in record["contenders"]:
        ratios = record["speedups"].get(one["name"], [])
        told = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "1"
        lines.append([names[one["name"]], str(len(one["seconds"])), told])
    same = "The results were the same bytes everywhere." if not record["differing"] else "Results differed."
    head = ("trainings run in", "rounds", "times as fast as one process, median (range)")
    return (
        f"{table(head, lines)}\n\n{record['job']}; the start of workers and of Ray counts. {same} Asked for: "
        f"{record['target']} times with two. {_where(record)}"
    )


def _units(record: dict[str, Any]) -> str:
    lines = [
        [one["stage"], _number(one["bytes"]) if one["bytes"] else "–", one["where"], str(one["passes"]),
         _seconds(one.get("seconds"))]
        for one in record["per_image"]
    ]  # fmt: skip
    head = ("one image", "bytes", "where", "passes over the images", "seconds")
    return f"{table(head, lines)}\n\n{_where(record)}"


def _images(record: dict[str, Any]) -> str:
    lines = [
        [f"{one['images']:,}", _tib(one["decoded_tib"]), _tib(one["features_tib"]), f"{one['shards']:,}",
         f"{one['memory_gib']:,.1f} GiB", *(_hours(one[name]) for name in
         ("decode_hours", "extract_hours", "open_table_hours", "sums_hours"))]
        for one in record["images"]
    ]  # fmt: skip
    head = ("images", "decoded", "features", "shards", "positions in memory", "decoding, one core", "extraction",
            "opening the table", "sums of a ridge head")  # fmt: skip
    return table(head, lines)


def _cluster(record: dict[str, Any]) -> str:
    lines = [
        [f"{one['workers']:,}", f"{one['days']:,.2f}", _percent(one["efficiency"]),
         _percent(one["share_waiting_for_the_store"]), _percent(one["share_lost_to_failures"])]
        for one in record["cluster"]
    ]  # fmt: skip
    head = ("workers", "days", "of the ideal speed", "waiting for the store", "lost to failures")
    assumed = record["assumed"]
    return (
        f"{table(head, lines)}\n\nAssumed: a worker fails every {assumed['worker_hours_between_failures']:g} hours and "
        f"is back after {assumed['restart_seconds']:g} seconds; a shard takes its mean time give or take "
        f"{100 * assumed['variation']:g} %; the store takes one write after the other, each as long as here."
    )


def _runs(record: dict[str, Any]) -> str:
    lines = [
        [f"{one['runs']:,}{'' if one['allowed'] else ' (refused)'}", f"{one['files']:,}",
         f"{one['store_gib']:,.1f} GiB",
         _hours(one["write_hours"]), _seconds(one["plan_seconds"]), _seconds(one["status_seconds"]),
         "–" if one["status_gib"] is None else f"{one['status_gib']:,.2f} GiB"]
        for one in record["runs"]
    ]  # fmt: skip
    head = ("runs", "files and folders", "store", "writing it", "`plan`", "`status`", "its memory")
    return table(head, lines)


def _breaks(record: dict[str, Any]) -> str:
    lines = [[one["what"], f"{_number(one['at'])} {one['unit']}"] for one in record["breaks"]]
    assumed = record["assumed"]
    return (
        f"{table(('limit', 'met at about'), lines)}\n\nAssumed: {assumed['memory_gib']:g} GiB of memory, "
        f"{_number(assumed['files'])} files on a file system, {assumed['patience_days']:g} days for a machine's work, "
        f"{assumed['patience_seconds']:g} seconds for `regraft status`."
    )


def _planner(record: dict[str, Any]) -> str:
    names = list(record["studies"][0]["commands"])
    lines = [
        [f"{one['runs']:,}", *(f"{timed['seconds']:,.1f} s, {timed['peak_gib']:.2f} GiB" for timed in
         one["commands"].values()), f"{one['report_bytes'] / 1e6:,.1f} MB"]
        for one in record["studies"]
    ]  # fmt: skip
    limits = record["limits"]
    asked = f"Asked for: {limits['seconds']:g} s and {limits['gib']:g} GiB with {limits['runs']:,} runs."
    return f"{table(('runs', *(f'`{name}`' for name in names), 'report'), lines)}\n\n{asked} {_where(record)}"


def _where(record: dict[str, Any]) -> str:
    load = record["load_before"]
    busy = "" if load is None or load < 0.3 else f", beside other work (load {load:g}): its seconds say little"
    return f"`{record['command']}`, {record['created']}, {record['machine']}{busy}."


def _number(value: float) -> str:
    """'8,212', '6.7e7'."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f} s" if value >= 0.1 else f"{value:.1e} s" if value else "in the same pass"


def _hours(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 24:,.0f} days" if value > 72 else f"{value:,.1f} h" if value >= 0.1 else f"{3600 * value:,.1f} s"


def _tib(value: float) -> str:
    return f"{value:,.1f} TiB" if value >= 1 else f"{1024 * value:,.0f} GiB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"
