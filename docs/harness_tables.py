"""Tables and the curve of docs/explanation/{determinism,testing}.md, from the records of `tests/harness`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from blocks import REPOSITORY, table

RECORDS = REPOSITORY / "docs" / "records" / "harness"
KINDS = (
    "features", "features of a trained trunk", "heads solved", "heads trained by steps", "networks trained by steps",
)  # fmt: skip


def determinism_blocks() -> dict[str, str]:
    record = _record("determinism")
    if record is None:
        return {"sizes": _missing("determinism"), "accuracies": _missing("determinism")}
    made = record.pop("made")
    another = f"; the other torch is {made['another torch']}" if "another torch" in made else ""
    where = f"`{made['command']}`, {made['created']}, {made['machine']}, torch {made['torch']}{another}."
    sizes = [[told, *(_size(pair["kinds"].get(kind)) for kind in KINDS)] for told, pair in record.items()]
    rows = list(next(iter(record.values()))["points of accuracy"])
    points = [
        [row, *(f"{pair['points of accuracy'][row]:g}" for pair in record.values() if not pair["same bits asked for"])]
        for row in rows
    ]
    head = ["row", *(told for told, pair in record.items() if not pair["same bits asked for"])]
    return {"sizes": f"{table(('changed', *KINDS), sizes)}\n\n{where}", "accuracies": table(head, points)}


def _size(part: dict[str, Any] | None) -> str:
    if part is None:
        return "–"
    if part["same bits"] == part["artifacts"]:
        return f"same bits ({part['artifacts']})"
    same = f", {part['same bits']} of {part['artifacts']} the same" if part["same bits"] else ""
    return f"{part['largest difference']:.1g}{same}"


def testing_blocks() -> dict[str, str]:
    mutants, long = _record("mutants"), _record("long-run")
    return {
        "lost": _lost(),
        "mutants": _missing("mutants") if mutants is None else _mutants(mutants),
        "survivors": _missing("mutants") if mutants is None else _survivors(mutants),
        "coverage": _coverage(_record("coverage")),
        "long-run": _missing("long_run") if long is None else _long_run(long),
    }


def _lost() -> str:
    """One line a harness: what it did, and what went wrong."""
    told = {
        "crash": _crashed, "writers": _written, "interrupt": _interrupted, "concurrency": _together,
        "corruption": _damaged, "fuzz-studies": _fuzzed, "hostile-files": _hostile,
    }  # fmt: skip
    lines = []
    for name, tell in told.items():
        command = f"`python -m tests.harness.{name.replace('-', '_')}`"
        record = _record(name)
        if record is None:
            lines.append([command, "not recorded yet", ""])
            continue
        parts = [part for part in record.values() if isinstance(part, dict)]
        wrong = sum(len(part.get("violations", part.get("failed", []))) for part in [record, *parts])
        lines.append([command, tell(record), str(wrong)])
    return table(("command", "what it did", "went wrong"), lines)


def _crashed(record: dict[str, Any]) -> str:
    found = []
    if part := record.get("killed"):
        found.append(f"{part['kills']:,} times `kill -9` at random moments of {part['studies']:,} studies")
    if part := record.get("crashed"):
        ways = ", ".join(f"{how} {times:,}" for how, times in part["tried"].items())
        found.append(f"ended at operations that change a file, of which there are {part['write_points']:,} ({ways})")
    if part := record.get("faulty disk"):
        found.append(f"{part['faults']:,} errors of the disk ({', '.join(part['by_error'])})")
    return "; ".join(found)


def _written(record: dict[str, Any]) -> str:
    tried = sum(sum(part["tried"].values()) for part in record.values())
    return f"{tried:,} crashes, power cuts and errors of the disk in: {', '.join(record)}"


def _interrupted(record: dict[str, Any]) -> str:
    cases = {name: part for name, part in record.items() if isinstance(part, dict)}
    times = sum(part["times"] for part in cases.values())
    slowest = max(part["seconds_most"] for part in cases.values())
    return f"{times:,} times Ctrl-C in {', '.join(cases)}; the slowest ended after {slowest:g} s (limit 2 s)"


def _together(record: dict[str, Any]) -> str:
    cases = {name: part for name, part in record.items() if isinstance(part, dict)}
    again = ", ".join(f"{name}: {part['share_computed_again']:.2f}" for name, part in cases.items())
    return f"{record['processes']} processes on one study and store; share of artifacts computed again: {again}"


def _damaged(record: dict[str, Any]) -> str:
    part = record["files"]
    return (
        f"{part['damaged']:,} flipped bytes and cut files of {len(part['kinds'])} kinds: {part['noticed']:,} noticed, "
        f"{part['harmless']:,} harmless"
    )


def _fuzzed(record: dict[str, Any]) -> str:
    refused = sum(record["refused"].values())
    return f"{record['tried']:,} study files: {record['accepted']:,} accepted, {refused:,} refused with a message"


def _hostile(record: dict[str, Any]) -> str:
    refused = sum(record["refused"].values())
    return (
        f"{record['tried']:,} files of {len(record['kinds'])} kinds: {refused:,} refused with a message, "
        f"{record['harmless']:,} harmless"
    )


def _coverage(record: dict[str, Any] | None) -> str:
    if record is None:
        return _missing("covered")
    all_of_it = record["coverage"]
    low = [
        [f"`{name}`", f"{part['percent']:g} %", part["lines not run"] or "none"]
        for name, part in record["under the limit"].items()
    ]
    said = (
        f"{all_of_it['percent of statements and branches']:g} % of {all_of_it['statements']:,} statements and "
        f"{all_of_it['branches']:,} branches in {all_of_it['files']:,} files, by the {all_of_it['tests']} tests."
    )
    if all_of_it["violations"]:
        said += f" Not all of them passed: {'; '.join(all_of_it['violations'])}."
    return f"{said}\n\n{table(('file under the limit', 'run', 'lines not run'), low)}" if low else said


def _mutants(record: dict[str, Any]) -> str:
    lines = [
        [f"`{module}`", _functions(one["functions"]), f"{one['mutants']:,}",
         f"{one['killed'] + one['killed by the time limit']:,}", f"{one['survived']:,}",
         f"{len(one['survivors explained']):,}"]
        for module, one in record.items()
    ]  # fmt: skip
    total = [sum(one[name] for one in record.values()) for name in ("mutants", "killed", "killed by the time limit")]
    survived, explained = (
        sum(one["survived"] for one in record.values()),
        sum(len(one["survivors explained"]) for one in record.values()),
    )
    lines.append(["all", "", f"{total[0]:,}", f"{total[1] + total[2]:,}", f"{survived:,}", f"{explained:,}"])
    return table(("module", "functions", "mutants", "killed", "survived", "of these explained"), lines)


def _functions(names: Sequence[str] | str) -> str:
    return names if isinstance(names, str) else ", ".join(f"`{name}`" for name in names)


def _survivors(record: dict[str, Any]) -> str:
    lines = [
        [f"`{module}`", f"`{one['mutant']}`", one["why"]]
        for module, found in record.items() for one in found["survivors explained"]
    ]  # fmt: skip
    return table(("module", "mutant", "why no test can notice"), lines)


def _long_run(record: dict[str, Any]) -> str:
    found = record["long run"]
    mean, low, high = found["bytes a run in the second half [95 % t]"]
    limit = found["limit of bytes a run"]
    level = found["least and most a study in the second half"]
    lines = [
        ["resident memory after the first study", f"{found['resident MiB, first and last study'][0]:,.1f} MiB"],
        ["after the last", f"{found['resident MiB, first and last study'][1]:,.1f} MiB"],
        ["slope over the second half, a run [95 % t]", f"{mean:,.0f} bytes [{low:,.0f}, {high:,.0f}]"],
        ["limit of the slope's upper end", f"{limit:,} bytes: {'kept' if high <= limit else 'not kept'}"],
        *([name, _range(level[key])] for key, name in (
            ("handles", "open file handles"), ("threads", "threads"), ("events", "events a study"),
            ("longest_event", "characters of the longest event"), ("written_bytes", "bytes of tables a study"),
        )),
    ]  # fmt: skip
    told = f"`{found['command']}`, {found['created']}, {found['machine']}: {found['runs']:,} runs."
    return f"{_curve(record['curve'])}\n\n{table(('of one process', 'measured'), lines)}\n\n{told}"


def _range(values: Sequence[int]) -> str:
    low, high = values
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _curve(points: list[dict[str, int]]) -> str:
    """Resident memory over runs, drawn in text, from the least to the most."""
    width, height = 60, 10
    low, top = (end(point["resident_bytes"] for point in points) for end in (min, max))
    last = points[-1]["runs"]
    cells = [[" "] * width for _ in range(height)]
    for point in points:
        column = min(width - 1, point["runs"] * width // (last + 1))
        row = (point["resident_bytes"] - low) * height // (top - low + 1)
        cells[height - 1 - row][column] = "*"
    drawn = "\n".join(f"|{''.join(line).rstrip()}" for line in cells)
    scale = f"{low / 2**20:,.0f} to {top / 2**20:,.0f} MiB of resident memory, over {last:,} runs"
    return f"```text\n{drawn}\n+{'-' * width}\n {scale}\n```"


def _record(name: str) -> dict[str, Any] | None:
    file = RECORDS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _missing(name: str) -> str:
    return f"Not recorded yet: `python -m tests.harness.{name} --record`."
