"""Tables of audits and of advice from recorded commands, for `make_tables.py`.

A record is what `regraft audit STUDY --json` or `regraft scores STUDY --json` printed, in small: of an audit the counts
and thresholds, of scores everything. Pictures of other people's data sets are not kept here.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

from blocks import REPOSITORY, table

from regraft.analysis.adviser import adviser_table, table_cells
from regraft.analysis.stats import t_interval
from regraft.show.figures_save import save_figure
from regraft.show.figures_science import advice_page
from regraft.show.text import percent
from regraft.study.provenance import versions
from regraft.study.scores import ScoreRow

RECORDS = REPOSITORY / "docs" / "records" / "science"
FIGURES = REPOSITORY / "docs" / "figures"


def is_science(content: dict[str, Any]) -> bool:
    """Whether a JSON file is of an audit or of scores."""
    return "crossings" in content or "advice" in content


def record(content: dict[str, Any]) -> Path:
    """Keep what a command printed."""
    audit = "crossings" in content
    by = "" if content.get("by", "cut") == "cut" else f" --by {content['by']}"
    command = f"regraft {'audit' if audit else 'scores'} {content['study']}{by} --json"
    kept = _counts(content) if audit else content
    ran = content.get("record") or {
        "versions": versions(), "machine": f"{platform.system()} {platform.machine()}",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    path = RECORDS / f"{'audit' if audit else 'scores'}-{content['study']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"command": command, **kept, "record": ran}, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    return path


def _counts(content: dict[str, Any]) -> dict[str, Any]:
    """An audit without its pairs, places and pictures."""
    pairs = content["pairs"]
    sets = [
        {name: one[name] for name in ("data", "image_size", "threshold", "images")}
        | {"constant": len(one["constant"]), "unreadable": len(one["unreadable"])}
        for one in content["sets"]
    ]
    return {
        "study": content["study"], "findings": content["findings"], "sets": sets, "crossings": content["crossings"],
        "pairs": {
            "all": len(pairs), "same_bytes": sum(pair["exact"] for pair in pairs),
            "mirrored": sum(pair["mirrored"] for pair in pairs),
            "labels_differ": sum(pair["labels_differ"] for pair in pairs),
        },
        "without_duplicates": content["without_duplicates"],
    }  # fmt: skip


def audit_block() -> str:
    """Every recorded audit: thresholds, and how many images are there twice."""
    parts = []
    for path in sorted(RECORDS.glob("audit-*.json")):
        content = json.loads(path.read_text("utf-8"))
        sets = [["data", "images", "threshold", "of calibration images, with one of another class that close"]]
        for one in content["sets"]:
            of, images = one["threshold"], ", ".join(f"{n:,} {name}" for name, n in one["images"].items())
            sets.append([one["data"], images, f"{of['correlation']:.3f}", f"{of['other_class']} of {of['images']:,}"])
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for one in content["crossings"]:
            found.setdefault((one["target"], one["part"], one["other"]), []).append(one)
        lines = [["target", "images of", "that are in", "images, by seed", "of", "share"]]
        for (target, part, other), seeds in found.items():
            counts = ", ".join(f"{one['images']:,}" for one in seeds)
            share = percent(sum(one["share"] for one in seeds) / len(seeds), 2)
            lines.append([target, part, other, counts, f"{seeds[0]['of']:,}", share])
        pairs = content["pairs"]
        parts += [
            f"**{content['study']}**: {pairs['all']:,} pairs, {pairs['same_bytes']:,} of them with the same bytes, "
            f"{pairs['mirrored']:,} mirrored; {pairs['labels_differ']:,} under two labels as far as these are known.",
            table(sets[0], sets[1:]), table(lines[0], lines[1:]), *_without(content), _where(content, path),
        ]  # fmt: skip
    return "\n\n".join(parts)


def _without(content: dict[str, Any]) -> list[str]:
    """Each row with and without the duplicated test images: means over seeds, the change with its interval."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in content["without_duplicates"]:
        rows.setdefault(one["row"], []).append(one)
    if not rows:
        return []
    lines = []
    for name, seeds in rows.items():
        changes = [100 * one["change"] for one in seeds]
        points = f"{sum(changes) / len(changes):+.2f}"
        if len(changes) > 1:
            points += " [{:+.2f}, {:+.2f}]".format(*t_interval(changes))
        flagged = ", ".join(f"{one['flagged']:,}" for one in seeds)
        mean = [percent(sum(one[key] for one in seeds) / len(seeds), 2) for key in ("accuracy", "without")]
        lines.append([name, *mean, points, flagged, f"{seeds[0]['test_images']:,}", str(len(seeds))])
    head = ["row", "accuracy", "without them", "points (95 % t)", "left out, by seed", "of test images", "n"]
    return ["Results with and without the test images that are like one a network learned from:", table(head, lines)]


def advice_block() -> str:
    """Every recorded table of scores: what their advice on the cut was worth."""
    parts = []
    for path in sorted(RECORDS.glob("scores-*.json")):
        content = json.loads(path.read_text("utf-8"))
        name = content["study"]
        advice = table_cells(adviser_table(rows_of(content), content["by"]))
        parts += [
            f"**{name}**: what was to be chosen is the {content['by']}.",
            table(advice[0], advice[1:]),
            f"![{name}: accuracy of every candidate against the adviser's score, and the regret of every score]"
            f"(figures/advice-{name}.svg)",
            _where(content, path),
        ]  # fmt: skip
    return "\n\n".join(parts)


def rows_of(content: dict[str, Any]) -> list[ScoreRow]:
    """The recorded scores; JSON has null for NaN."""
    return [
        ScoreRow(**{**row, "scores": {k: float("nan") if v is None else v for k, v in row["scores"].items()}})
        for row in content["rows"]
    ]


def draw() -> None:
    """The figures of recorded advice."""
    for path in sorted(RECORDS.glob("scores-*.json")):
        content = json.loads(path.read_text("utf-8"))
        chart = advice_page(rows_of(content), content["by"])
        assert chart is not None, path
        save_figure(chart, FIGURES / f"advice-{content['study']}.svg")


def _where(content: dict[str, Any], path: Path) -> str:
    ran = content["record"]
    seconds = f", {ran['seconds']:,.0f} s of wall time beside other work" if "seconds" in ran else ""
    return (
        f"`{content['command']}`; {ran['machine']}, torch {ran['versions']['torch']}, {ran['created'][:10]}{seconds}; "
        f"recorded in `docs/records/science/{path.name}`."
    )
