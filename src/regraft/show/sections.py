"""Parts of a report as plain data: tables that a template writes and a script sorts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from regraft.analysis.compare import KINDS, Comparison, p_text
from regraft.analysis.table import TableRow
from regraft.analysis.variance import Spread, points
from regraft.analysis.worth import Worth, count
from regraft.show.audit import AuditSection
from regraft.show.text import percent
from regraft.study.results import Cell, Results

SHOWN_POINTS = 300  # of a figure's data, as a table under it
INSIDE = ("layer", "spec", "hconcat", "vconcat")  # where a chart holds others


@dataclass(frozen=True)
class Bar:
    """A share with its interval, all in [0, 1]."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Entry:
    """What stands in one cell of a table."""

    text: str
    value: float | None = None  # what it is sorted by, where its text is not the number
    small: str = ""  # below it
    note: str = ""  # below that
    mark: str = ""  # a warning below all
    strong: bool = False
    bar: Bar | None = None


@dataclass(frozen=True)
class Column:
    """A column's head."""

    title: str
    number: bool = False  # sorted as numbers, aligned right
    small: str = ""  # below the title
    lead: bool = False  # a line of its own on a phone
    wraps: bool = False  # long for a number


@dataclass(frozen=True)
class Table:
    """A table with its heads; the first entry of a row names it if `heads`."""

    label: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    caption: str = ""
    look: str = ""  # classes of the page's style
    heads: bool = True


def number(value: float | None, text: str | None = None, **more: Any) -> Entry:
    """An entry that is sorted by `value`; '–' for None."""
    if value is None or not math.isfinite(value):
        return Entry("–" if text is None else text, math.nan, **more)
    return Entry(f"{value:,}" if text is None else text, value, **more)


def study_table(rows: list[TableRow], results: Results, worths: dict[str, Worth]) -> Table:
    """The rows beside the original study's figures."""
    seconds = seconds_a_training(results.cells)
    columns: dict[Column, list[Entry]] = {
        Column("row"): [Entry(row.name, small=row.what, note=row.note) for row in rows],
        Column("accuracy", number=True, lead=True): [_accuracy(row) for row in rows],
        Column("n seeds", number=True): [number(row.n) for row in rows],
    }
    if any(row.original is not None for row in rows):
        column = Column("original study", number=True)
        columns[column] = [number(row.original, percent(row.original)) for row in rows]
    columns[Column("chance", number=True)] = [number(row.chance, percent(row.chance)) for row in rows]
    column = Column("training images", number=True, small="test images")
    columns[column] = [
        number(row.train_images, small="" if row.test_images is None else f"test {row.test_images:,}") for row in rows
    ]
    if worths:
        column = Column("label worth", number=True, wraps=True)
        columns[column] = [_worth(worths.get(row.name)) for row in rows]
    if seconds:
        column = Column("seconds a training", number=True)
        columns[column] = [_seconds(seconds.get(row.name)) for row in rows]
    return Table(
        "Table of rows", tuple(columns), tuple(zip(*columns.values(), strict=True)),
        "Accuracy on test images: mean over n seeds [95 % t-interval over them]; every seed below it.",
    )  # fmt: skip


def _accuracy(row: TableRow) -> Entry:
    """Below it every seed; or of a single one, what its interval is over, or which its test images alone give."""
    mark = f"alarm: {row.alarm}" if row.alarm else ""
    if row.summary is None:
        return Entry("missing", math.nan, mark=mark)
    if row.n != 1:
        below = ", ".join(f"{100 * score:.1f}" for score in row.scores.values()) + " %"
    elif row.summary.episodes is None:
        below = row.summary.test_sample()
    else:
        below = f"over {row.summary.episodes:,} episodes"
    return number(row.summary.mean, row.summary.short(), small=below, mark=mark)


def _seconds(seconds: float | None) -> Entry:
    return number(seconds, None if seconds is None else brief(seconds))


def _worth(worth: Worth | None) -> Entry:
    if worth is None:
        return number(None)
    outside = worth.last if worth.beyond else worth.first  # where every seed is beyond or below the data
    return number(outside if worth.labels is None else worth.labels, worth.text())


def seconds_a_training(cells: list[Cell]) -> dict[str, float]:
    """Row -> mean seconds of its scored trainings, of those that recorded them."""
    spent: dict[str, list[float]] = {}
    for cell in cells:
        if "seconds" in cell.cost:
            spent.setdefault(cell.row, []).append(float(cell.cost["seconds"]))
    return {row: fmean(each) for row, each in spent.items()}


def brief(seconds: float) -> str:
    """'412.5', or '< 0.1'."""
    return "< 0.1" if seconds < 0.05 else f"{seconds:,.1f}"


def worth_note(worths: dict[str, Worth]) -> str:
    """Which curves the label worths were read off; "" if there are none."""
    curves = dict.fromkeys(
        f"{worth.scratch} from {count(worth.first)} to {count(worth.last)} per class" for worth in worths.values()
    )
    return f"measured with {'; '.join(curves)}" if curves else ""


def compared_table(pairs: Sequence[Comparison]) -> Table:
    """The pairs that are shown, each with what its line says."""
    columns = (
        Column("rows"), Column("difference", number=True, lead=True), Column("n seeds", number=True),
        Column("p", number=True), Column("p adjusted", number=True), Column("verdict"),
        Column("seeds for 1 point", number=True, wraps=True),
    )  # fmt: skip
    rows = []
    for pair in pairs:
        seeds = pair.seeds_needed()
        rows.append((
            Entry(f"{pair.a} − {pair.b}", small=KINDS[pair.kind]),
            number(pair.difference.mean, pair.difference.text().partition(" (")[0]),
            number(pair.difference.n),
            number(pair.difference.p, p_text(pair.difference.p).removeprefix("= ")),
            number(pair.adjusted, p_text(pair.adjusted).removeprefix("= ")),
            Entry(pair.verdict, strong=pair.clear),
            number(1e9 if seeds.seeds is None else seeds.seeds, seeds.short()),
        ))  # fmt: skip
    return Table(
        "Table of comparisons", columns, tuple(rows),
        "First row minus second on the same images: mean over their common seeds [95 % paired t-interval].",
    )  # fmt: skip


def spreads_table(found: list[tuple[TableRow, Spread]]) -> Table:
    """How far the seeds of each row lie apart, and the parts of it."""
    columns = (
        Column("row"), Column("between seeds", number=True), Column("n seeds", number=True),
        Column("from the test sample", number=True), Column("test images", number=True),
        Column("left for the training"),
    )  # fmt: skip
    rows = tuple(
        (
            Entry(row.name), number(spread.total, spread.text()), number(spread.n),
            number(spread.test, f"{'' if spread.measured else 'at most '}{points(spread.test)} points"),
            number(spread.test_images), Entry(spread.told()),
        )
        for row, spread in found
    )  # fmt: skip
    return Table("Table of spreads", columns, rows, look="compact")


def audit_tables(audited: AuditSection) -> list[dict[str, Any]]:
    """Title and table of each part of an audit."""
    made = []
    for of in audited.tables:
        columns = tuple(Column(name, number=name in of.numbers) for name in of.columns)
        rows = tuple(
            tuple(_read(text) if column.number else Entry(text) for text, column in zip(row, columns, strict=True))
            for row in of.rows
        )
        table = Table(of.title, columns, rows, of.caption, look="compact", heads=False)
        made.append({"title": of.title, "table": table})
    return made


def _read(text: str) -> Entry:
    """A number as it was written; of several the first."""
    found = re.match(r"[+−-]?[\d,]*\.?\d+", text)
    return Entry(text, float(found[0].replace(",", "").replace("−", "-")) if found else math.nan)


# --- figures as tables --------------------------------------------------------------------------------------------


def figure_table(spec: dict[str, Any]) -> Table | None:
    """The data of a chart's Vega-Lite `spec` with the titles that its axes, legends and tooltips give them."""
    titles = _titles(spec)
    numbers = {name: title for name, title in titles.items() if title}
    data = max(_data(spec), key=lambda values: (len(numbers.keys() & values[0].keys()), len(values)), default=[])
    names = [name for name in numbers if any(name in point for point in data)]
    names.sort(key=lambda name: numbers[name] not in ("row", "pair"))  # what a line is of comes first
    if not names:
        return None
    columns = tuple(Column(numbers[n], number=all(_is_number(p.get(n)) for p in data)) for n in names)
    shown = tuple(tuple(_value(point.get(name)) for name in names) for point in data[:SHOWN_POINTS])
    more = f"The first {SHOWN_POINTS} of {len(data):,} points; results.json has all." * (len(data) > SHOWN_POINTS)
    title = spec["title"]["text"] if isinstance(spec["title"], dict) else spec["title"]
    return Table(f"Data of the figure: {title}", columns, shown, more, look="compact", heads=False)


def _data(spec: Any) -> Iterator[list[dict[str, Any]]]:
    """Every set of entries that a chart or a layer of it draws."""
    if isinstance(spec, list):
        for inner in spec:
            yield from _data(inner)
    elif isinstance(spec, dict):
        sets = [*spec.get("datasets", {}).values(), spec.get("data", {}).get("values")]
        yield from (values for values in sets if values)
        for name in INSIDE:
            yield from _data(spec.get(name))


def _titles(spec: Any) -> dict[str, str]:
    """Field -> title, from all encodings; a field with neither title nor axis is not for reading."""
    found: dict[str, str] = {}
    if isinstance(spec, list):
        for inner in spec:
            found = {**_titles(inner), **{name: title for name, title in found.items() if title}}
    elif isinstance(spec, dict):
        for channel, encoded in spec.get("encoding", {}).items():
            for one in encoded if isinstance(encoded, list) else [encoded]:
                if isinstance(one, dict) and isinstance(name := one.get("field"), str):
                    found[name] = _title(one, channel) or found.get(name, "")
        for name in INSIDE:
            inner = _titles(spec.get(name))
            found.update({field: title for field, title in inner.items() if title or field not in found})
    return found


def _title(encoded: dict[str, Any], channel: str) -> str:
    """The title that a reader sees; "" where there is none."""
    for part in ("axis", "legend", "header"):
        if isinstance(encoded.get(part), dict) and encoded[part].get("title"):
            return str(encoded[part]["title"])
    if encoded.get("title"):
        return str(encoded["title"])
    hidden = any(part in encoded and encoded[part] is None for part in ("axis", "legend"))
    return "" if hidden or channel in ("detail", "order", "text", "xOffset") else str(encoded["field"])


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _value(value: object) -> Entry:
    if isinstance(value, float):
        return number(value, f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}")
    return Entry("–" if value is None else str(value))
