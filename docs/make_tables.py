"""Writes the tables of results, speed, audits and advice in README.md and docs/results.md from recorded runs:
`python docs/make_tables.py [--check]`.

A recorded run is a `results.json` of `regraft run`, kept as `docs/records/NAME.json` without its large matrices, or
what `regraft audit` or `regraft scores` print with `--json` (`science_tables.py`):
`python docs/make_tables.py --record regraft-NAME/results.json`. No number is typed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import science_tables
from blocks import REPOSITORY, table, update

from regraft.analysis.table import rows_table
from regraft.show.figures import accuracy_by_cut, save
from regraft.show.text import duration, percent
from regraft.spec import Study, presets
from regraft.study.results import Cell, Results

RECORDS = REPOSITORY / "docs" / "records"
REMARKS = REPOSITORY / "docs" / "remarks.json"  # what a reader of a record must know, by the study's name
TARGETS = REPOSITORY / "docs" / "targets.json"  # what the project asks of the rows; everything else is measured
NOT_MEASURED = "not measured"
# seconds: of the chosen trainings of all seeds
MEASURED = ("training images", "accuracy [95 % t]", "n", "device", "seconds")


def results_block() -> str:
    """A table for every record: the seven rows first (on a GPU, on a CPU), the others in the order of their names."""
    recorded = {path.stem: path for path in sorted(RECORDS.glob("*.json"))}
    first = ["cifar", "cifar-cpu"]
    names = [*first, *(name for name in recorded if name not in first)]
    tables = [_record(recorded[name]) if name in recorded else _unmeasured(name) for name in names]
    others = [f"`{name}`" for name in presets() if name.startswith("cifar") and name not in names]
    return "\n\n".join([*tables, *([f"{', '.join(others)}: {NOT_MEASURED}."] if others else [])])


def _record(path: Path) -> str:
    """The rows of a study as they were recorded."""
    results = Results.from_json(path)
    cells: dict[str, list[Cell]] = {}
    for cell in results.cells:
        cells.setdefault(cell.row, []).append(cell)
    rows = rows_table(results)
    measured = [
        [
            f"{row.train_images:,}" if row.train_images is not None else "",
            row.summary.short() if row.summary else f"missing: {'; '.join(row.missing)}",
            str(row.n),
            ", ".join(dict.fromkeys(str(cell.cost["device"]) for cell in cells.get(row.name, []))),
            _seconds(cells[row.name]) if row.name in cells else "",
        ]
        for row in rows
    ]
    chances = {row.name: row.chance for row in rows}
    return _rows(results.study, measured, chances, _where(results, path))


def _seconds(cells: list[Cell]) -> str:
    seconds = sum(cell.cost["seconds"] for cell in cells)
    return f"{seconds:,.1f}" if seconds >= 0.05 else "< 0.1"


def _unmeasured(name: str) -> str:
    """The rows of a shipped study that is not recorded: what they are to reach, and that nobody has measured it."""
    study = Study.from_yaml(name)
    measured = [[NOT_MEASURED] * len(MEASURED)] * len(study.all_rows())
    return _rows(study, measured, {}, f"{NOT_MEASURED.capitalize()}: `regraft run {name}` on one GPU does it.")


def _rows(study: Study, measured: list[list[str]], chances: dict[str, float | None], where: str) -> str:
    """One table; chances: row -> accuracy by chance, where it is known."""
    rows = study.all_rows()
    targets = _targets(study)
    columns: dict[str, list[str]] = {"row": [row.name for row in rows]}
    columns |= {title: [line[i] for line in measured] for i, title in enumerate(MEASURED)}
    if targets:
        columns["target"] = [_goal(targets.get(row.name), chances.get(row.name)) for row in rows]
    if any(row.original is not None for row in rows):
        columns["original study"] = [percent(row.original) for row in rows]
    lines = list(zip(*columns.values(), strict=True))
    return f"**{study.study}**: {study.question}\n\n{table(list(columns), lines)}\n\n{where}"


def _targets(study: Study) -> dict[str, dict[str, Any]]:
    """Row's name -> what was asked of it. `docs/targets.json` names a row by its first word, its number."""
    asked: dict[str, dict[str, Any]] = json.loads(TARGETS.read_text("utf-8")).get(study.study, {})
    by_number = {row.name.split()[0]: row.name for row in reversed(study.all_rows())}
    if lost := [number for number in asked if number not in by_number]:
        raise SystemExit(f"docs/targets.json: {study.study} has no row {', '.join(lost)}")
    return {by_number[number]: target for number, target in asked.items()}


def _goal(target: dict[str, Any] | None, chance: float | None) -> str:
    if target is None:
        return "–"
    if "points_below" in target:
        return f"at most {100 * target['points_below']:g} points below row {target['row']}"
    if "times_chance" in target:
        goal = f"≥ {target['times_chance']} × chance"
        return goal if chance is None else f"{goal} ({percent(target['times_chance'] * chance)})"
    return f"≥ {percent(target['accuracy'])}"


def _where(results: Results, path: Path) -> str:
    """Command, device, threads, versions and time, as recorded with the results."""

    def distinct(field: str) -> str:
        return ", ".join(dict.fromkeys(str(cell.cost[field]) for cell in results.cells))

    torch_versions = ", ".join(dict.fromkeys(cell.cost["versions"]["torch"] for cell in results.cells))
    seconds = sum(cell.cost["seconds"] for cell in results.cells)
    name = results.study.study
    command = f"regraft run {name}" if name in presets() else f"regraft run {name}.yaml"
    remark = json.loads(REMARKS.read_text("utf-8")).get(name)
    return (
        f"`{command}`; device {distinct('device')}, {distinct('threads')} threads, torch {torch_versions}; "
        f"{duration(seconds)} of training for the scored cells (seconds: all seeds of a row; a frozen trunk's pass "
        f"over the images, shared by rows, is not in them); recorded in `docs/records/{path.name}`."
        + (f" {remark}" if remark else "")
    )


def speed_block() -> str:
    """Tables of the benchmarks from their records; what is not recorded is left out."""
    parts = []
    for name, tables in SPEED.items():
        path = RECORDS / "benchmarks" / f"{name}.json"
        if not path.is_file():
            continue
        content = json.loads(path.read_text("utf-8"))
        for part, told in tables.items():
            if part and part not in content:  # a section that was not asked for
                continue
            title, lines, where = told(content)
            commands = " and ".join(f"`{one}`" for one in content.get("commands") or [content["command"]])
            parts.append(f"**{title}**\n\n{table(lines[0], lines[1:])}\n\n{commands}; {where}; recorded in "
                         f"`docs/records/benchmarks/{path.name}`.")  # fmt: skip
    return "\n\n".join(parts)


Lines = list[list[str]]


def _contenders(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Whole processes: seconds, and how many times as fast as the plain loop."""
    rows = content["contenders"]
    plain = next(row for row in rows if row["name"].startswith("plain"))["median"]
    lines = [["contender", "seconds (range, n)", "times as fast as the plain loop", "test accuracy"]]
    for row in rows:
        if row["median"] is None:
            lines.append([row["name"], row["note"], "", ""])
            continue
        n, low, high = len(row["seconds"]), min(row["seconds"]), max(row["seconds"])
        spread = f" ({low:.1f} to {high:.1f}, n = {n})" if n > 1 else f" (n = {n})"
        accuracy = "" if row["accuracy"] is None else percent(row["accuracy"])
        lines.append([row["name"], f"{row['median']:,.1f}{spread}", f"{plain / row['median']:.1f}", accuracy])
    scaled = "; the plain loop is scaled from a part (its arithmetic is in the record)" if "scaling" in content else ""
    return content["job"], lines, f"{content['machine']}, torch {content['versions']['torch']}{scaled}"


def _rates(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Images a second of what regraft chose, and ratios in the same run."""
    lines = [["network", "chosen", "images/s", "x eager PyTorch", "x ONNX Runtime called directly"]]
    for job in content["results"]:
        name = job["chosen"]
        rate, ratios = job["images_per_second"][name]["median"], job["ratios"][name]
        ours = [f"{rate:,.0f}", f"{ratios['eager PyTorch']:.2f}", f"{ratios['ONNX Runtime']:.2f}"]
        lines.append([job["job"], name.removeprefix("regraft "), *ours])
    where = f"{content['device']}, torch {content['versions']['torch']}, medians of {content['rounds']} rounds"
    return "Extraction of features", lines, where


def _peaks(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Peak resident memory of the whole process, stage by stage."""
    lines = [["stage", "peak memory"], *([stage, f"{gib:.2f} GiB"] for stage, gib in content["peak_gib"].items())]
    return f"Memory: {content['images']:,} images", lines, f"{content['machine']}, {content['cores']} cores"


def _training(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Images a second of whole training, and how many times as fast regraft was in the same round."""
    lines = [["contender", "images/s (range)", "regraft is × times as fast (range)", "target"]]
    for row in content["contenders"]:
        ratio = "" if row["name"] == "regraft" else _spread(row["ratio"], 2)
        target = "" if row["target"] is None else f"≥ {row['target']:.2f}"
        lines.append([row["name"], _spread(row, 0), ratio, target])
    where = (
        f"{_machine(content)}, {content['threads']} threads, medians of {content['rounds']} rounds of "
        f"{content['images']:,} images"
    )
    return f"Training on the CPU: {content['job']}", lines, where


def _precision(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """float32 and bfloat16 on the CPU."""
    found = content["bf16"]
    lines = [["ResNet-18, 32 px, batch 128", "float32, images/s", "bfloat16, images/s", "bfloat16 is × times as fast"]]
    for kind in ("training", "answers"):
        row = found[kind]
        lines.append([kind, *(_spread(row[name], 0) for name in ("float32", "bfloat16")), _spread(row["ratio"], 2)])
    hardware = ", ".join(found["bf16_in_hardware"]) or "none"
    where = (
        f"{_machine(content)}, bfloat16 in hardware: {hardware}; logits at most {found['max_deviation']:.3f} of their "
        f"standard deviation apart, the same answer for {percent(found['same_answer'])}"
    )
    return "bfloat16 on the CPU", lines, where


def _orders(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Steps of training in both memory orders."""
    names = ("channels_last", "contiguous")
    lines = [["network, batch", *(f"{name}, images/s" for name in names), "channels_last is × times as fast"]]
    for row in content["memory_order"]:
        speeds = [_spread(row[name], 0) for name in names]
        lines.append([f"{row['network']}, {row['batch']}", *speeds, _spread(row["ratio"], 2)])
    return "Memory order in training on the CPU, 32 px", lines, _machine(content)


def _predicted(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """Pictures a minute, files read and network run, whole processes."""
    rows, count = content["contenders"], content["pictures"]
    plain = {row["name"].partition(":")[0]: row["median"] for row in rows if row["name"].endswith("plain loop")}
    lines = [["contender", "pictures a minute (n)", "times as fast as the plain loop", "same answers as it"]]
    for row in rows:
        network, _, kind = row["name"].partition(":")
        same = percent(content["same_answer"][network]) if kind == " regraft predict" else ""
        speed = f"{60 * count / row['median']:,.0f} (n = {len(row['seconds'])})"
        lines.append([row["name"], speed, f"{plain[network] / row['median']:.2f}", same])
    return f"`regraft predict` of {count:,} picture files at 224 pixels", lines, _machine(content)


def _advice_kept(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """How often advice kept what it promised."""
    lines = [["pictures of each class", "draws", "promised, mean", "came, mean", "inside the 95 % interval",
              "within 110 % of the time"]]  # fmt: skip
    by_size: dict[int, list[dict[str, Any]]] = {}
    for one in content["draws"]:
        by_size.setdefault(one["per_class"], []).append(one)
    for size, found in by_size.items():
        mean = [percent(sum(one[key] for one in found) / len(found)) for key in ("promised", "came")]
        kept = [f"{sum(one[key] for one in found)} of {len(found)}" for key in ("inside", "in_110_percent_of_time")]
        lines.append([str(size), str(len(found)), *mean, *kept])
    told = content["summary"]
    where = _machine(content)
    if told["draws_with_right_labels"]:
        low, high = told["inside_wilson"]
        where += f"; all draws: {told['inside_interval']} of {told['draws_with_right_labels']} inside "
        where += f"[{percent(low)}, {percent(high)}]"
    if told["forecasts_checked"]:
        low, high = told["forecasts_wilson"]
        where += (
            f"; forecasts for twice and four times the pictures: {told['forecasts_inside']} of "
            f"{told['forecasts_checked']} inside their interval [{percent(low)}, {percent(high)}]"
        )
    return f"Does advice keep its word? Pictures: {content['pictures']}", lines, where


def _labels_found(content: dict[str, Any]) -> tuple[str, Lines, str]:
    """How many labels that were changed on purpose advice doubts. Only those of training pictures can be."""
    lines = [
        [
            "pictures of each class",
            "labels changed, of training pictures",
            "doubted",
            "right to doubt",
            "right among as many first ones as were changed",
            "wrong labels estimated",
            "within 110 % of the time",
        ]
    ]
    for one in content["draws"]:
        found = one["labels_changed"]
        lines.append([
            str(one["per_class"]), str(found["among_training_about"]), str(found["doubted"]), str(found["found"]),
            f"{found['found_among_first']} of {found['first']}", f"{one['wrong_labels_estimated']:.0f}",
            "yes" if one["in_110_percent_of_time"] else "no",
        ])  # fmt: skip
    return f"Labels changed on purpose. Pictures: {content['pictures']}", lines, _machine(content)


def _machine(content: dict[str, Any]) -> str:
    return f"{content['machine']}, torch {content['versions']['torch']}"


def _spread(values: dict[str, Any], digits: int) -> str:
    return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f} to {values['max']:,.{digits}f})"


# record -> section of it ("": the whole) -> its table
SPEED = {
    "frozen-job": {"": _contenders},
    "frozen-study": {"": _contenders},
    "extract": {"": _rates},
    "memory": {"": _peaks},
    "predict": {"": _predicted},
    "advise": {"": _advice_kept},
    "advise-cifar10": {"": _advice_kept},
    "advise-flipped": {"": _labels_found},
    "train-cpu": {"contenders": _training, "bf16": _precision, "memory_order": _orders},
}


def record(path: Path) -> None:
    """Keep a run's results for the README: all scores, curves and costs; not the confusion matrices."""
    content = json.loads(path.read_text("utf-8"))
    if science_tables.is_science(content):
        science_tables.record(content)
        return
    for cell in content["cells"]:
        cell |= {"confusion": [], "class_names": []}
    name = content["study"]["study"]
    (RECORDS / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def draw() -> None:
    """The README's figure, from the recorded quickstart."""
    chart = accuracy_by_cut(Results.from_json(RECORDS / "quickstart.json"))
    assert chart is not None
    save(chart, REPOSITORY / "docs" / "figures" / "quickstart.svg")
    science_tables.draw()


if __name__ == "__main__":
    if "--record" in sys.argv[1:]:
        record(Path(sys.argv[-1]))
        draw()
    measured = {"results": results_block(), "speed": speed_block()}
    science = {"audit": science_tables.audit_block(), "advice": science_tables.advice_block()}
    update({"README.md": measured, "docs/results.md": {**measured, **science}}, check="--check" in sys.argv[1:])
