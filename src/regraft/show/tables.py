"""Results as a table for the terminal: wide or narrow by the width there is."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from regraft.analysis.alarm import Alarm, alarms
from regraft.analysis.stats import wilson_interval
from regraft.analysis.table import TableRow, rows_table
from regraft.analysis.worth import label_worths
from regraft.show.text import percent, printable
from regraft.study.results import Results

WIDE_COLUMNS = 130  # from here on a row's parts get columns of their own
NAME_LIMIT = 80  # characters of a row's name


def results_table(results: Results) -> ResultsTable:
    """A rich renderable: print it with `console.print(results_table(results))`."""
    return ResultsTable(results)


def plain_text(results: Results, width: int = 100) -> str:
    """The same table as text without colour, for logs and files."""
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=width, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
    )
    console.print(results_table(results))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


@dataclass(frozen=True)
class ResultsTable:
    """Rows with accuracy, interval, n and label worth; below it what the numbers are of, missing rows, alarms."""

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = rows_table(self.results)
        worths = {row: worth.text() for row, worth in label_worths(self.results).items()}
        wide = options.max_width >= WIDE_COLUMNS
        yield _wide_table(rows, worths) if wide else _narrow_table(rows, worths)
        yield from _below(rows, alarms(self.results), with_worth=bool(worths))


def _new_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False, show_edge=False)


def _add_numbers(table: Table, rows: list[TableRow]) -> None:
    table.add_column("accuracy\n\\[95 % t]", no_wrap=True)
    table.add_column("n", justify="right")
    if any(row.original is not None for row in rows):
        table.add_column("original\nstudy", justify="right", no_wrap=True)


def _numbers(row: TableRow, rows: list[TableRow]) -> list[Text]:
    accuracy = row.summary.short() if row.summary else "missing"
    style = "red" if row.alarm or not row.summary else "bold"
    cells = [Text(accuracy, style=style), Text(str(row.n))]
    if any(other.original is not None for other in rows):
        cells.append(Text(percent(row.original)))
    return cells


def _narrow_table(rows: list[TableRow], worths: dict[str, str]) -> Table:
    """What a row is and its label worth go under its name, dimmed."""
    table = _new_table()
    table.add_column("row", overflow="fold")
    _add_numbers(table, rows)
    for row in rows:
        worth = f"label worth: {worths[row.name]}" if row.name in worths else ""
        details = [Text(printable(line), style="dim") for line in (row.what, row.note, worth) if line]
        name = Text(printable(row.name, NAME_LIMIT), style="bold")
        table.add_row(Group(name, Padding(Group(*details), (0, 0, 0, 2))), *_numbers(row, rows))
    return table


def _wide_table(rows: list[TableRow], worths: dict[str, str]) -> Table:
    table = _new_table()
    table.add_column("row", overflow="fold", ratio=3, min_width=16)
    for title in ("source", "cut", "method", "head"):
        table.add_column(title, overflow="fold")
    table.add_column("target (budget)", overflow="fold")
    _add_numbers(table, rows)
    with_note = any(row.note for row in rows)
    if with_note:
        table.add_column("note", overflow="fold", ratio=4, min_width=16)
    for row in rows:
        parts = [row.source, row.cut, row.method, row.head, f"{row.target} ({row.budget})"]
        table.add_row(
            _name_and_worth(row, worths),
            *(Text(printable(part, 40)) for part in parts),
            *_numbers(row, rows),
            *([Text(printable(row.note), style="dim")] if with_note else []),
        )
    return table


def _name_and_worth(row: TableRow, worths: dict[str, str]) -> Text:
    name = Text(printable(row.name, NAME_LIMIT))
    return name.append(f"\nlabel worth {worths[row.name]}", style="dim") if row.name in worths else name


def _below(rows: list[TableRow], raised: list[Alarm], *, with_worth: bool) -> list[RenderableType]:
    """What n, the accuracies and label worths are of; missing rows; alarms."""
    said = [_test_images(rows)]
    if single := [row for row in rows if row.n == 1]:
        said.append(f"n = 1: one seed, so no interval over seeds{_sample_error(single)}.")
    if with_worth:
        said.append(
            "Label worth: labelled images per class that training from scratch needs for the same accuracy "
            "[95 % t over seeds]."
        )
    lines: list[RenderableType] = [Text(line, style="dim") for line in said if line]
    for row in rows:
        for reason in row.missing:
            lines.append(Text(f"missing: {printable(row.name, NAME_LIMIT)}: {printable(reason)}", style="red"))
    for alarm in raised:
        where = f"{printable(alarm.row, NAME_LIMIT)}, seed {alarm.seed}"
        lines.append(Text(f"alarm: {where}: {printable(alarm.message)}", style="yellow"))
    return [Text(""), Group(*lines)] if lines else []


def _test_images(rows: list[TableRow]) -> str:
    """'n: seeds, each scored on 10,000 test images.', or how many for which target; "" without a score."""
    targets: dict[int, dict[str, None]] = {}
    for row in rows:
        if row.test_images is not None:
            targets.setdefault(row.test_images, {})[printable(row.target, 40)] = None
    if not targets:
        return ""
    if len(targets) == 1:
        return f"n: seeds, each scored on {next(iter(targets)):,} test images."
    parts = [f"{images:,} ({', '.join(names)})" for images, names in targets.items()]
    return f"n: seeds. Test images: {'; '.join(parts)}."


def _sample_error(single: list[TableRow]) -> str:
    """'; the test images alone leave up to ± 1.0 points open (95 % Wilson)', of the least certain of these rows."""
    halves = []
    for row in single:
        if row.summary is not None and row.summary.test_sample():
            assert row.test_images is not None
            low, high = wilson_interval(round(row.summary.mean * row.test_images), row.test_images)
            halves.append(50 * (high - low))
    return f"; the test images alone leave up to ± {max(halves):.1f} points open (95 % Wilson)" if halves else ""
