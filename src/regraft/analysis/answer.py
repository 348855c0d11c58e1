"""A study's answer in three or four sentences, written by rules from its numbers. Nothing is guessed, and rows with an
alarm are left out.

1. What transfer was worth where labels are fewest: the transferred row and the row from scratch on the same images
   that are best on validation. Choosing them by their test scores would flatter both.
2. What freezing cost, how far the cuts lie apart, or what trained weights are worth against random ones in the same
   frozen network, where the study can tell.
3. The original study's figures.
4. What stands in the way of trusting the table.

A difference is said to be more than the seeds explain where `analysis.compare` calls it clear, and nowhere else: after
Holm's correction over all comparisons of the study.
"""

from __future__ import annotations

from regraft.analysis.compare import Comparison, Comparisons, comparisons, p_text
from regraft.analysis.table import TableRow, rows_table
from regraft.analysis.worth import labels_per_class
from regraft.study.results import Results

Table = dict[str, TableRow]  # rows with a score and without an alarm, by name, in study order
MORE, WITHIN = "more than the seeds explain", "which the seeds alone could explain"


def answer(results: Results) -> list[str]:
    """The sentences, the most important first. Plain text; names are quoted as they are."""
    rows = rows_table(results)
    table = {row.name: row for row in rows if row.summary and not row.alarm}
    if not table:
        none = "No row of this study has a score to rely on."
        return [sentence for sentence in (none, _caveats(rows, len(results.missing))) if sentence]
    compared = comparisons(results)
    sentences = [
        _transfer(table, compared, _labels(results)),
        _freezing(table, compared) or _cuts(table, compared, _random(results)) or _weights(table, compared),
        _original(table),
        _caveats(rows, len(results.missing)),
    ]
    return [sentence for sentence in sentences if sentence]


def _labels(results: Results) -> dict[str, int]:
    """Row -> labelled images of its budget."""
    rows, study = {row.name: row for row in results.study.all_rows()}, results.study
    return {cell.row: round(labels_per_class(study, rows[cell.row], cell) * cell.classes) for cell in results.cells}


def _random(results: Results) -> set[str]:
    """Rows with random weights."""
    return {cell.row for cell in results.cells if cell.weights == "random"}


def _mean(row: TableRow) -> float:
    assert row.summary is not None
    return row.summary.mean


def _text(row: TableRow) -> str:
    assert row.summary is not None
    return f"“{row.name}” reaches {row.summary.text()}"


def _difference(a: TableRow, b: TableRow, compared: Comparisons) -> str:
    """a - b with interval and verdict, or, with fewer than two common seeds, without either."""
    pair = compared.of(a.name, b.name)
    if pair is None:
        points = 100 * (_mean(a) - _mean(b))
        return f"{points:+.1f} points; with fewer than two common seeds no interval can be given"
    return f"{pair.difference.text()}, {_verdict(pair)}"


def _verdict(pair: Comparison) -> str:
    """Whether the seeds explain it, by the corrected p."""
    if pair.family == 1:
        return f"{MORE if pair.clear else WITHIN} (p {p_text(pair.adjusted)})"
    correction = f"after correction for the study's {pair.family} comparisons"
    p = f"(Holm-adjusted p {p_text(pair.adjusted)})"
    if pair.clear:
        return f"{MORE}, also {correction} {p}"
    if pair.difference.clear:
        return f"{MORE} if it stood alone, but not clear {correction} {p}"
    return f"{WITHIN} {p}"


def _transfer(table: Table, compared: Comparisons, labels: dict[str, int]) -> str:
    """On the images with the fewest labels, the best transferred row and the best from scratch on validation."""
    if not compared.transfers:
        best = max(table.values(), key=_mean)
        return (
            f"The highest accuracy: {_text(best)} on {best.target}. No target has both a transferred row and "
            "one from scratch, so this study cannot say what transfer was worth."
        )
    found = min(compared.transfers, key=lambda transfer: labels[transfer.transferred])
    best, scratch = table[found.transferred], table[found.scratch]
    place = "the best" if found.validated else "the first"
    way = "on validation" if found.validated else "(there are no validation images to choose by)"
    chosen = f", {place} of {found.among} transferred rows {way}," if found.among > 1 else ""
    return (
        f"On {best.target} ({best.budget}), {_both(best, scratch, chosen)}: "
        f"transfer was worth {_difference(best, scratch, compared)}."
    )


def _both(transferred: TableRow, scratch: TableRow, chosen: str) -> str:
    """Both means with their intervals; n is said once where it is the same."""
    a, b = transferred.summary, scratch.summary
    assert a is not None
    assert b is not None
    if a.n == b.n > 1 and a.episodes is None:
        return (
            f"“{transferred.name}” reaches {a.short()}{chosen} and “{scratch.name}”, from scratch, "
            f"{b.short()} (95 % t, n = {a.n} seeds each)"
        )
    return f"{_text(transferred)}{chosen} and “{scratch.name}”, from scratch, {b.text()}"


def _freezing(table: Table, compared: Comparisons) -> str:
    """Fine-tuned minus frozen, of the pair that shares source, cut, head and images and differs most."""
    judged = [pair for pair in compared.family if pair.kind == "frozen"]
    pairs = [(pair.a, pair.b) for pair in judged] + [(a, b) for kind, a, b in compared.unjudged if kind == "frozen"]
    if not pairs:
        return ""
    tuned, frozen = max(((table[a], table[b]) for a, b in pairs), key=lambda pair: abs(_mean(pair[0]) - _mean(pair[1])))
    of = f", the most of {len(pairs)} such pairs" if len(pairs) > 1 else ""
    clear = f"; {sum(pair.clear for pair in judged)} of the {len(pairs)} are clear" if len(judged) > 1 else ""
    return (
        f"Fine-tuning “{tuned.name}” instead of keeping its trunk frozen (“{frozen.name}”) changed accuracy{of}: "
        f"{_difference(tuned, frozen, compared)}{clear}."
    )


def _cuts(table: Table, compared: Comparisons, random: set[str]) -> str:
    """The highest and the lowest cut of the arm with most cuts; of trained sources before random ones.

    The two are named by their test scores, so that their difference is described and not judged: of several equal
    cuts the highest and the lowest lie apart as well. Judged are the steps from cut to cut, which are all compared."""
    arms: dict[tuple[str, ...], list[TableRow]] = {}
    for row in table.values():
        arms.setdefault((row.source, row.method, row.head, row.target), []).append(row)
    longest = max(arms.values(), key=lambda rows: (len({row.cut for row in rows}), rows[0].name not in random))
    best, worst = max(longest, key=_mean), min(longest, key=_mean)
    if best.cut == worst.cut:
        return ""
    assert best.summary is not None
    assert worst.summary is not None
    names = {row.name for row in longest}
    steps = [pair for pair in compared.family if pair.kind == "cut" and {pair.a, pair.b} <= names]
    clear = (
        f"of the {len(steps)} steps from one cut to the next {sum(pair.clear for pair in steps)} are clear after "
        f"correction for the study's {compared.family[0].family} comparisons"
        if steps
        else "with fewer than two common seeds no step between cuts can be judged"
    )
    return (
        f"Of {len({row.cut for row in longest})} cuts of {best.source} ({best.method}, {best.target}), {best.cut} is "
        f"highest, {best.summary.text()}, and {worst.cut} lowest, {worst.summary.text()}; {clear}."
    )


def _weights(table: Table, compared: Comparisons) -> str:
    """Trained minus random weights, of the pair of frozen networks that differs most."""
    pairs = [pair for pair in compared.family if pair.kind == "weights" and {pair.a, pair.b} <= table.keys()]
    if not pairs:
        return ""
    most = max(pairs, key=lambda pair: abs(pair.difference.mean))
    of = f", the most of {len(pairs)} such pairs" if len(pairs) > 1 else ""
    clear = f"; {sum(pair.clear for pair in pairs)} of the {len(pairs)} are clear" if len(pairs) > 1 else ""
    return (
        f"Trained weights (“{most.a}”) instead of random ones (“{most.b}”) changed accuracy{of}: "
        f"{_difference(table[most.a], table[most.b], compared)}{clear}."
    )


def _original(table: Table) -> str:
    """How many reach the original figure, and how many surely: with the whole interval."""
    known = [(row.summary, row.original) for row in table.values() if row.summary and row.original is not None]
    if not known:
        return ""
    above = sum(summary.mean >= original for summary, original in known)
    surely = sum(summary.low is not None and summary.low >= original for summary, original in known)
    numbers = sorted({summary.n for summary, _ in known})
    n = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    means = "n = 1 seed" if n == "1" else f"means over n = {n} seeds"
    whole = f"; {surely} of them with the whole 95 % interval" if numbers[-1] > 1 and above else ""
    rows = "row" if len(known) == 1 else "rows"
    reach = "reaches" if len(known) == 1 else "reach"
    return f"{above} of the {len(known)} {rows} with a figure in the original study {reach} it ({means}){whole}."


def _caveats(rows: list[TableRow], gaps: int) -> str:
    parts = []
    if broken := sum(bool(row.alarm) for row in rows):
        parts.append(f"{broken} of {len(rows)} rows raised an alarm and should not be read as results")
    if gaps:
        parts.append(f"{gaps} {'cell has' if gaps == 1 else 'cells have'} no score")
    if single := sum(row.n == 1 for row in rows):
        parts.append(f"{single} of {len(rows)} rows have one seed only, so nothing is known of their spread")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
