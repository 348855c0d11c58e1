"""The audit of a study's images as sentences, tables, and the closest pairs: for a terminal, a page, and the report."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regraft.show.text import TextTable, percent
from regraft.study.audit import Audit, Crossing, Pair, Place, Without, stored_audit, without_duplicates
from regraft.study.results import Results

SHOWN_ROWS = 100  # of a table of pairs or images


@dataclass(frozen=True)
class Thumbnails:
    """The two pictures of a pair. Pictures are data: addresses of PNG files."""

    first: str
    second: str
    caption: str
    alt: tuple[str, str]


@dataclass(frozen=True)
class AuditSection:
    """What a report shows of an audit: plain data for a template, which has to escape it."""

    sentences: tuple[str, ...]  # the worst first
    tables: tuple[TextTable, ...]
    closest: tuple[Thumbnails, ...]  # numbered as in the table of pairs


def audit_section(results: Results) -> AuditSection | None:
    """The audit that the store has of these results' study; None if it has none, or the results know no store.
    Needs no torch."""
    found = None if results.store is None else stored_audit(results)
    return None if found is None else section(found, without_duplicates(results, found))


def section(audit: Audit, without: Sequence[Without]) -> AuditSection:
    """All that is shown of an audit."""
    return AuditSection(tuple(findings(audit, without)), tuple(tables(audit, without)), tuple(_closest(audit)))


def _closest(audit: Audit) -> Iterator[Thumbnails]:
    for number, (pair, pictures) in enumerate(zip(audit.pairs, audit.pictures, strict=False), 1):
        first, second = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pictures)
        places = [
            f"{place}, {label or 'class not told'}" for place, label in zip(_ends(pair), pair.labels, strict=True)
        ]
        yield Thumbnails(first, second, f"{number}: {how_alike(pair)}", (places[0], places[1]))


def _ends(pair: Pair) -> tuple[Place, Place]:
    return pair.first, pair.second


def how_alike(pair: Pair) -> str:
    """'0.9312, mirrored'"""
    words = [word for word, so in (("same bytes", pair.exact), ("mirrored", pair.mirrored)) if so]
    return ", ".join([f"{pair.correlation:.4f}", *words])


def findings(audit: Audit, without: Sequence[Without]) -> list[str]:
    """What was found, in sentences; the worst first."""
    said = [f"{name} could not be looked at: {why}" for name, why in audit.unavailable.items()]
    worst: dict[tuple[str, str], Crossing] = {}  # of all targets and seeds
    for crossing in audit.crossings:
        parts = (crossing.part, crossing.other)
        if crossing.images and (parts not in worst or crossing.share > worst[parts].share):
            worst[parts] = crossing
    for (part, other), crossing in worst.items():
        where = "among themselves" if part == other else f"among the {_images_of(other)}"
        said.append(
            f"{crossing.images:,} of {crossing.of:,} {part} images ({percent(crossing.share, 2)}) have a near "
            f"duplicate {where} (target {crossing.target}, seed {crossing.seed}, where it is the largest share)."
        )
    if not worst:
        said.append("No image was found a second time.")
    differing = sum(pair.labels_differ for pair in audit.pairs)
    if differing:
        said.append(f"{differing:,} of {len(audit.pairs):,} pairs carry different labels.")
    for found in audit.sets:
        if found.threshold.blunt:
            said.append(
                f"{found.data}: different pictures are so alike that hardly more than copies can be told from them "
                f"(threshold {found.threshold.correlation:.3f})."
            )
        if found.constant:
            said.append(f"{found.data}: {len(found.constant):,} images are nearly constant.")
        if found.unreadable:
            said.append(f"{found.data}: {len(found.unreadable):,} files could not be read as pictures.")
    if any(cell.flagged for cell in without):
        most = max(without, key=lambda cell: abs(cell.change))
        said.append(
            "Leaving out the test images that are like one a network learned from changes accuracies by at most "
            f"{100 * abs(most.change):.2f} points ({most.row}, seed {most.seed}: {100 * most.change:+.2f})."
        )
    if audit.unseen:
        said.append(
            "Not compared, because they are not here: the images that these weights were trained on: "
            f"{'; '.join(audit.unseen)}."
        )
    return said


def tables(audit: Audit, without: Sequence[Without]) -> list[TextTable]:
    """All tables that have rows."""
    made = [
        _crossings(audit), _without(without), _balance(audit), _pairs("Pairs, the closest first", audit.pairs, audit),
        _pairs("The same picture under two labels", [p for p in audit.pairs if p.labels_differ], audit),
        _odd(audit), _methods(audit),
    ]  # fmt: skip
    return [table for table in made if table.rows]


def _images_of(part: str) -> str:
    """ "training" -> "training images", "training, of source row x" -> "training images of source row x"."""
    name, _, whose = part.partition(",")
    return f"{name} images{whose}"


def _grouped(crossings: Sequence[Crossing]) -> dict[tuple[str, str, str], list[Crossing]]:
    """By target and parts: one of each seed."""
    found: dict[tuple[str, str, str], list[Crossing]] = {}
    for crossing in crossings:
        found.setdefault((crossing.target, crossing.part, crossing.other), []).append(crossing)
    return found


def _crossings(audit: Audit) -> TextTable:
    rows = []
    for (target, part, other), of_seeds in _grouped(audit.crossings).items():
        counts = ", ".join(f"{crossing.images:,}" for crossing in of_seeds)
        seeds = ", ".join(str(crossing.seed) for crossing in of_seeds)
        share = sum(crossing.share for crossing in of_seeds) / len(of_seeds)
        rows.append((target, part, other, counts, seeds, f"{of_seeds[0].of:,}", percent(share, 2)))
    return TextTable(
        "Images of one part that are in another",
        "How many images of the first part have the same bytes as one of the second, or are a near duplicate of it.",
        ("target", "images of", "that are in", "images", "of seeds", "of", "share"), tuple(rows),
        ("images", "of", "share"),
    )  # fmt: skip


def _without(without: Sequence[Without]) -> TextTable:
    rows = [
        (
            cell.row, str(cell.seed), percent(cell.accuracy, 2), f"{cell.flagged:,} of {cell.test_images:,}",
            percent(cell.without, 2), f"{100 * cell.change:+.2f}", percent(cell.on_flagged, 1),
        )
        for cell in without if cell.flagged
    ]  # fmt: skip
    clean = len(without) - len(rows)
    unchanged = f" {clean:,} scores have no such image and are not shown." if clean else ""
    return TextTable(
        "Results with and without duplicated test images",
        "Left out are the test images that are like one that the row's network learned from, in this row or in one "
        f"that it was cut from. Read from stored scores: no test label is read again.{unchanged}",
        ("row", "seed", "accuracy", "left out", "without them", "points", "on them alone"), tuple(rows),
        ("seed", "accuracy", "left out", "without them", "points", "on them alone"),
    )  # fmt: skip


def _balance(audit: Audit) -> TextTable:
    rows = []
    for found in audit.sets:
        for split, count in found.images.items():
            classes = found.classes.get(split)
            if classes is None:
                rows.append((found.data, split, f"{count:,}", "labels closed", "", "", ""))
                continue
            least, most = min(classes, key=lambda name: classes[name]), max(classes, key=lambda name: classes[name])
            ratio = f"{classes[most] / classes[least]:.2f}" if classes[least] else "–"
            ends = (f"{least} ({classes[least]:,})", f"{most} ({classes[most]:,})")
            if classes[least] == classes[most]:
                ends = (f"all ({classes[most]:,})", "")
            rows.append((found.data, split, f"{count:,}", str(len(classes)), *ends, ratio))
    return TextTable(
        "Images of each class",
        "Of test images as stored scores tell: their labels are not read for this.",
        ("data", "split", "images", "classes", "fewest", "most", "ratio"), tuple(rows),
        ("images", "classes", "ratio"),
    )  # fmt: skip


def _pairs(title: str, pairs: Sequence[Pair], audit: Audit) -> TextTable:
    numbers = {id(pair): str(i) for i, pair in enumerate(audit.pairs, 1)}
    rows = [
        (
            numbers[id(pair)], str(pair.first), pair.labels[0] or "?", str(pair.second), pair.labels[1] or "?",
            f"{pair.correlation:.4f}",
            ", ".join(word for word, so in (("same bytes", pair.exact), ("mirrored", pair.mirrored)) if so),
        )
        for pair in pairs[:SHOWN_ROWS]
    ]  # fmt: skip
    shown = f"The first {SHOWN_ROWS} of {len(pairs):,}. " if len(pairs) > SHOWN_ROWS else ""
    return TextTable(
        title, f"{shown}A test image's class is known where a stored score was right about it.",
        ("no.", "image", "class", "is like", "of class", "correlation", ""), tuple(rows), ("no.", "correlation"),
    )  # fmt: skip


def _odd(audit: Audit) -> TextTable:
    rows = [(str(place), "nearly constant") for found in audit.sets for place in found.constant]
    rows += [(name, "unreadable") for found in audit.sets for name in found.unreadable]
    shown = f"The first {SHOWN_ROWS} of {len(rows):,}." if len(rows) > SHOWN_ROWS else ""
    return TextTable("Empty and unreadable images", shown, ("image", "what"), tuple(rows[:SHOWN_ROWS]))


def _methods(audit: Audit) -> TextTable:
    rows = tuple((found.data, f"{found.image_size} px", found.threshold.text) for found in audit.sets)
    caption = (
        "Nearest neighbours by edges and colours, also mirrored; then the correlation of the pictures' detail, one "
        "laid over the other: shifted, cropped and stretched to be most like it. The threshold is where pictures that "
        "are not the same come by chance once in 10,000, judged by how alike pictures of the data set are, of other "
        "classes and of their own."
    )
    return TextTable("From which correlation on two pictures are called the same", caption,
                   ("data", "images", "correlation"), rows)  # fmt: skip


def audit_dict(audit: Audit, without: Sequence[Without]) -> dict[str, Any]:
    """All of it but the pictures, as plain data for JSON."""
    return {
        "study": audit.study.study,
        "findings": findings(audit, without),
        "sets": [asdict(found) for found in audit.sets],
        "crossings": [{**asdict(crossing), "share": crossing.share} for crossing in audit.crossings],
        "pairs": [{**asdict(pair), "labels_differ": pair.labels_differ} for pair in audit.pairs],
        "without_duplicates": [{**asdict(cell), "change": cell.change} for cell in without],
        "flagged": [
            {"row": row, "seed": seed, "test_positions": found.tolist()} for (row, seed), found in audit.flagged.items()
        ],
        "unavailable": audit.unavailable,
        "unseen": list(audit.unseen),
        "record": audit.record,
    }
