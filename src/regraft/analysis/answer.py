"""A study's answer in about three sentences, written by rules from its numbers. Nothing is guessed,
and rows with an alarm are left out.

1. What transfer was worth where labels are fewest: the transferred row and the row from scratch on the same images
   that are best on validation. Choosing them by their test scores would flatter both.
2. What freezing cost, or how far the cuts lie apart, where the study can tell.
3. The original study's figures, and what stands in the way of trusting the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from regraft.analysis.stats import paired_difference
from regraft.analysis.table import TableRow, rows_table
from regraft.analysis.worth import labels_per_class
from regraft.study.results import Results


def answer(results: Results) -> list[str]:
    """The sentences, the most important first. Plain text; names are quoted as they are."""
    table = [row for row in rows_table(results) if row.summary and not row.alarm]
    if not table:
        return [
            sentence for sentence in ("No row of this study has a score to rely on.", _caveats(results)) if sentence
        ]
    facts = {name: _facts(results, name) for name in {cell.row for cell in results.cells}}
    sentences = [
        _transfer(table, facts),
        _freezing(table) or _cuts(table, facts),
        _original(table),
        _caveats(results),
    ]
    return [sentence for sentence in sentences if sentence]


@dataclass(frozen=True)
class _Facts:
    """Of one row, beyond what the table shows."""

    random: bool  # random weights
    images: tuple[object, ...]  # rows with equal ones learn from the same images
    labels: int  # in the budget
    validation: float  # mean accuracy over seeds; -1 without validation images


def _facts(results: Results, name: str) -> _Facts:
    cells = [cell for cell in results.cells if cell.row == name]
    first = cells[0]
    return _Facts(
        random=first.weights == "random",
        images=(first.data, first.budget, results.study.targets[first.target].classes),
        labels=round(labels_per_class(results.study, results.study.row(name), first) * first.classes),
        validation=fmean(-1.0 if c.validation_accuracy is None else c.validation_accuracy for c in cells),
    )


def _mean(row: TableRow) -> float:
    assert row.summary is not None
    return row.summary.mean


def _text(row: TableRow) -> str:
    assert row.summary is not None
    return f"“{row.name}” reaches {row.summary.text()}"


def _difference(a: TableRow, b: TableRow) -> str:
    """a - b with interval and verdict, or, with fewer than two common seeds, without either."""
    if len(a.scores.keys() & b.scores.keys()) < 2:
        points = 100 * (_mean(a) - _mean(b))
        return f"{points:+.1f} points; with fewer than two common seeds no interval can be given"
    difference = paired_difference(a.scores, b.scores)
    verdict = "more than the seeds explain" if difference.clear else "which the seeds alone could explain"
    return f"{difference.text()}, {verdict}"


def _transfer(table: list[TableRow], facts: dict[str, _Facts]) -> str:
    """Of the rows with the fewest labels, the best transferred one and the best from scratch on validation."""

    def on_validation(row: TableRow) -> float:
        return facts[row.name].validation

    pairs = []
    for images in dict.fromkeys(facts[row.name].images for row in table):
        here = [row for row in table if facts[row.name].images == images]
        transferred = [row for row in here if not facts[row.name].random]
        scratch = [row for row in here if facts[row.name].random and row.method == "finetune"]
        if transferred and scratch:
            best, other = max(transferred, key=on_validation), max(scratch, key=on_validation)
            pairs.append((best, other, len(transferred)))
    if not pairs:
        best = max(table, key=_mean)
        return (
            f"The highest accuracy: {_text(best)} on {best.target}. No target has both a transferred row and "
            "one from scratch, so this study cannot say what transfer was worth."
        )
    best, scratch_best, among = min(pairs, key=lambda pair: facts[pair[0].name].labels)
    chosen = f", the best of {among} transferred rows on validation," if among > 1 else ""
    return (
        f"On {best.target} ({best.budget}), {_both(best, scratch_best, chosen)}: "
        f"transfer was worth {_difference(best, scratch_best)}."
    )


def _both(transferred: TableRow, scratch: TableRow, chosen: str) -> str:
    """Both means with their intervals; n is said once where it is the same."""
    a, b = transferred.summary, scratch.summary
    assert a is not None
    assert b is not None
    if a.n == b.n > 1:
        return (
            f"“{transferred.name}” reaches {a.short()}{chosen} and “{scratch.name}”, from scratch, "
            f"{b.short()} (95 % t, n = {a.n} seeds each)"
        )
    return f"{_text(transferred)}{chosen} and “{scratch.name}”, from scratch, {b.text()}"


def _freezing(table: list[TableRow]) -> str:
    """Fine-tuned minus frozen for the pair that shares source, cut, head and target and differs most."""
    arms: dict[tuple[str, ...], dict[str, TableRow]] = {}
    for row in table:
        arms.setdefault((row.source, row.cut, row.head, row.target), {}).setdefault(row.method, row)
    pairs = [(pair["finetune"], pair["frozen"]) for pair in arms.values() if len(pair) == 2]
    if not pairs:
        return ""
    tuned, frozen = max(pairs, key=lambda pair: abs(_mean(pair[0]) - _mean(pair[1])))
    return (
        f"Fine-tuning “{tuned.name}” instead of keeping its trunk frozen (“{frozen.name}”) "
        f"changed accuracy by {_difference(tuned, frozen)}."
    )


def _cuts(table: list[TableRow], facts: dict[str, _Facts]) -> str:
    """Best against worst cut of the arm with most cuts; of trained sources before random ones."""
    arms: dict[tuple[str, ...], list[TableRow]] = {}
    for row in table:
        arms.setdefault((row.source, row.method, row.head, row.target), []).append(row)
    longest = max(arms.values(), key=lambda rows: (len({row.cut for row in rows}), not facts[rows[0].name].random))
    best, worst = max(longest, key=_mean), min(longest, key=_mean)
    if best.cut == worst.cut:
        return ""
    return (
        f"Of {len({row.cut for row in longest})} cuts of {best.source} ({best.method}, {best.target}), "
        f"{best.cut} is highest and {worst.cut} lowest, {_difference(best, worst)}."
    )


def _original(table: list[TableRow]) -> str:
    known = [(row, row.original) for row in table if row.original is not None]
    if not known:
        return ""
    above = sum(_mean(row) >= original for row, original in known)
    return f"{above} of the {len(known)} rows with a figure in the original study reach it (mean over seeds)."


def _caveats(results: Results) -> str:
    table = rows_table(results)
    parts = []
    if broken := sum(bool(row.alarm) for row in table):
        parts.append(f"{broken} of {len(table)} rows raised an alarm and should not be read as results")
    if gaps := len(results.missing):
        parts.append(f"{gaps} {'cell has' if gaps == 1 else 'cells have'} no score")
    if single := sum(row.n == 1 for row in table):
        parts.append(f"{single} of {len(table)} rows have one seed only, so nothing is known of their spread")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
