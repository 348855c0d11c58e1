"""Results as tables for other programs: csv, parquet, LaTeX (booktabs), Markdown; and two studies side by side.

Names are the users': each format escapes what would be read as its own syntax.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from regraft.analysis.between import Between, Match
from regraft.analysis.compare import p_text
from regraft.analysis.table import rows_table
from regraft.analysis.worth import label_worths
from regraft.errors import RegraftError, UnknownName, nearest
from regraft.show.text import percent, printable
from regraft.study.files import write_bytes, write_text
from regraft.study.results import CSV_FIELDS, Results

Row = dict[str, Any]
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "→": r"$\to$", "–": "--", "…": r"\ldots{}",
    "×": r"$\times$", "≥": r"$\ge$", "≤": r"$\le$",
}  # fmt: skip
BESIDE = ("row", "accuracy [95 % t]", "n", "training images", "label worth", "original")  # of tables for people


def summary_rows(results: Results) -> list[Row]:
    """One plain dictionary per row of the study, unscored ones included; fractions, not percent."""
    worths = {name: worth.text() for name, worth in label_worths(results).items()}
    seconds: dict[str, list[float]] = {}
    for cell in results.cells:
        if "seconds" in cell.cost:
            seconds.setdefault(cell.row, []).append(float(cell.cost["seconds"]))
    return [
        {
            "row": row.name, "source": row.source, "cut": row.cut, "method": row.method, "head": row.head,
            "target": row.target, "budget": row.budget, "train_images": row.train_images,
            "test_images": row.test_images, "n": row.n, "mean": row.summary.mean if row.summary else None,
            "low": row.summary.low if row.summary else None, "high": row.summary.high if row.summary else None,
            "scores": " ".join(repr(score) for score in row.scores.values()),
            "seeds": " ".join(str(seed) for seed in row.scores), "chance": row.chance, "original": row.original,
            "label_worth": worths.get(row.name, ""),
            "seconds": fmean(seconds[row.name]) if row.name in seconds else None, "note": row.note,
            "alarm": row.alarm, "missing": "; ".join(row.missing),
        }
        for row in rows_table(results)
    ]  # fmt: skip


def table(results: Results, form: str, *, cells: bool = False) -> bytes:
    """The table as a file's content; `cells`: a line for every seed instead of every row.

    csv and parquet hold all fields, LaTeX and Markdown what a reader wants beside each other.
    Raises UnknownName for a format that is not in FORMATS."""
    if form not in FORMATS:
        raise UnknownName(f"there is no table format {form!r}{nearest(form, FORMATS)} Formats: {', '.join(FORMATS)}")
    if form in ("csv", "parquet"):
        rows = results.rows if cells else summary_rows(results)
    else:
        rows = [_told_cell(cell) for cell in results.rows] if cells else _told_rows(results)
    return FORMATS[form](rows)


def write_table(results: Results, path: str | Path, form: str | None = None, *, cells: bool = False) -> Path:
    """Write the table whole or not at all; without `form`, by the name's ending. Returns the path."""
    file = Path(path)
    form = form or {".csv": "csv", ".parquet": "parquet", ".tex": "latex", ".md": "markdown"}.get(file.suffix.lower())
    if form is None:
        raise UnknownName(f"no format for {file.name!r}; name one of {', '.join(FORMATS)} with --format")
    write_bytes(file, table(results, form, cells=cells))
    return file


def _told_rows(results: Results) -> list[Row]:
    worths = {name: worth.text() for name, worth in label_worths(results).items()}
    told = [
        {
            "row": row.name, "accuracy [95 % t]": row.summary.short() if row.summary else "missing", "n": str(row.n),
            "training images": "–" if row.train_images is None else f"{row.train_images:,}",
            "label worth": worths.get(row.name, "–"), "original": percent(row.original),
        }
        for row in rows_table(results)
    ]  # fmt: skip
    empty = {name for name in ("label worth", "original") if all(row[name] == "–" for row in told)}
    return [{name: value for name, value in row.items() if name not in empty} for row in told]


def _told_cell(cell: Row) -> Row:
    return {
        "row": cell["row"], "seed": str(cell["seed"]), "accuracy": percent(cell["accuracy"], 2),
        "validation": percent(cell["validation_accuracy"], 2), "training images": f"{cell['train_images']:,}",
        "recipe": cell["recipe"],
    }  # fmt: skip


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: repr(v) if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise RegraftError(
            "writing parquet needs pyarrow, which is not installed; install it with: pip install 'regraft[parquet]', "
            "or take --format csv"
        ) from error
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else CSV_FIELDS)}
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def latex_text(text: str) -> str:
    """`text` as LaTeX sets it: nothing in it is a command."""
    return "".join(LATEX.get(character, character) for character in printable(text))


def markdown_text(text: str) -> str:
    """`text` inside a cell of a Markdown table: neither markup, nor HTML, nor the end of the cell."""
    line = escape(printable(text), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", line)


def _latex(rows: Sequence[Row]) -> bytes:
    heads = list(rows[0]) if rows else list(BESIDE)
    kinds = "".join("l" if name in ("row", "recipe") else "r" for name in heads)
    lines = [
        "% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{kinds}}}", "\\toprule",
        " & ".join(latex_text(name) for name in heads) + r" \\", "\\midrule",
        # Braces: "[" after a line's end would be read as the distance to the next.
        *(" & ".join(f"{{{latex_text(str(row[name]))}}}" for name in heads) + r" \\" for row in rows),
        "\\bottomrule", "\\end{tabular}",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


def _markdown(rows: Sequence[Row]) -> bytes:
    heads = list(rows[0]) if rows else list(BESIDE)
    return (markdown_table(heads, [[str(row[name]) for name in heads] for row in rows])).encode()


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a table with every cell escaped; all columns but the first are aligned right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    lines = [list(map(markdown_text, heads)), rule, *(list(map(markdown_text, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


FORMATS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "csv": _csv,
    "parquet": _parquet,
    "latex": _latex,
    "markdown": _markdown,
}
BETWEEN_COLUMNS = ("row", "first", "second", "first − second", "p (Holm)", "", "differs in")


def between_lines(found: Between) -> list[list[str]]:
    """A line for every matched row, as texts."""
    return [_line(match) for match in found.matches]


def _line(match: Match) -> list[str]:
    name = match.first if match.first == match.second else f"{match.first} / {match.second}"
    p = "–" if match.adjusted is None else p_text(match.adjusted).removeprefix("= ")
    differs = "; ".join(one.text() for one in match.differs) or "–"
    return [name, match.means[0].short(), match.means[1].short(), match.text(), p, match.verdict, differs]


def between_dict(found: Between) -> dict[str, Any]:
    """As plain data for JSON; fractions, first minus second."""
    return {
        "studies": list(found.names),
        "summary": found.summary(),
        "rows": [
            {
                "first": match.first, "second": match.second, "means": [one.mean for one in match.means],
                "n": [one.n for one in match.means], "difference": match.gap.mean, "low": match.gap.low,
                "high": match.gap.high, "p": match.gap.p, "holm": match.adjusted, "kind": match.kind,
                "why": match.why, "verdict": match.verdict,
                "differs": {one.what: [one.first, one.second] for one in match.differs},
            }
            for match in found.matches
        ],
        "only_first": list(found.only[0]),
        "only_second": list(found.only[1]),
        "differs": {one.what: [one.first, one.second] for one in found.shared},
        "machines": {one.what: [one.first, one.second] for one in found.machines},
    }  # fmt: skip


def write_between(found: Between, path: str | Path) -> Path:
    """Write the comparison as a page (.html, which loads nothing and runs nothing) or Markdown (.md)."""
    file, title = Path(path), f"{found.names[0]} and {found.names[1]}"
    rows = between_lines(found)
    match file.suffix.lower():
        case ".md":
            said = "\n".join(f"- {markdown_text(sentence)}" for sentence in found.summary())
            text = f"# {markdown_text(title)}\n\n{said}\n\n{markdown_table(BETWEEN_COLUMNS, rows)}"
        case ".html" | ".htm":
            text = _page(title, found.summary(), rows)
        case ending:
            raise UnknownName(f"cannot write a comparison as {ending!r}. Endings: .html, .md.")
    write_text(file, text)
    return file


def _page(title: str, said: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def told(text: str) -> str:
        return escape(printable(text))

    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    style = (
        ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;"
        "padding:0 1em}table{border-collapse:collapse}th,td{padding:.3em .7em;border-bottom:1px solid #8886;"
        "text-align:left;vertical-align:top;overflow-wrap:anywhere}div{overflow-x:auto}"
    )
    heads = "".join(f'<th scope="col">{told(name)}</th>' for name in BETWEEN_COLUMNS)
    body = "".join("<tr>" + "".join(f'<td dir="auto">{told(value)}</td>' for value in row) + "</tr>\n" for row in rows)
    listed = "".join(f'<li dir="auto">{told(sentence)}</li>' for sentence in said)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{told(title)}</title><style>{style}</style></head>\n<body><h1 dir=\"auto\">{told(title)}</h1>"
        f"<ul>{listed}</ul><div><table><thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div></body></html>\n"
    )  # fmt: skip
