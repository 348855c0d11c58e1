"""`regraft scores` and `regraft similarity`: what features say before training, and what training did to them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regraft.cli_text import StoreFolder, complete_study, open_store

if TYPE_CHECKING:
    from regraft.study.scores import ScoreRow

By = StrEnum("By", ["cut", "source", "both"])
BETWEEN: dict[By, Literal["cut", "source", "both"]] = {By.cut: "cut", By.source: "source", By.both: "both"}
StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="a study file (YAML) or a preset's name", autocompletion=complete_study),
]
Device = Annotated[str, typer.Option(help="where to compute: auto, cpu, cuda or mps")]
Offline = Annotated[bool, typer.Option("--offline", help="use only data and weights already here")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output, for programs")]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of `regraft`."""
    app.command("scores")(scores)
    app.command("similarity")(similarity)


def scores(
    study: StudyName,
    by: Annotated[By, typer.Option(help="what is chosen between")] = By.cut,
    images: Annotated[
        int, typer.Option(min=50, help="training images looked at, at most; prune keeps the scores of 2,000")
    ] = 2000,
    out: Annotated[Path | None, typer.Option(help="file of the figures: .svg, .png, .pdf or .html")] = None,
    store: StoreFolder = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Score the frozen rows of a study by their features alone (LogME, LEEP, H-score, a ridge probe, ...).

    Then say how well each score would have advised: regret and rank correlation against the measured accuracies, always
    beside trivial baselines. Scores are kept in the store.
    """
    from regraft.spec import Study

    chosen = Study.from_yaml(study)
    from regraft.analysis.adviser import ADVISER, adviser_table, table_lines
    from regraft.show.text import printable
    from regraft.study.scores import scores_table

    rows = scores_table(chosen, open_store(store), device=device, offline=offline, images=images)
    table = adviser_table(rows, BETWEEN[by])
    if out is not None:
        _draw(rows, BETWEEN[by], out)
    if as_json:
        told = {"study": chosen.study, "by": by.value, "adviser": ADVISER}
        found = {**told, "rows": [asdict(row) for row in rows], "advice": [asdict(one) for one in table]}
        typer.echo(json.dumps(_without_nan(found), indent=2, allow_nan=False))
        return
    for row in rows:
        known = ", ".join(f"{name} {value:.4g}" for name, value in row.scores.items() if value == value)
        typer.echo(printable(f"{row.row} [seed {row.seed}]: {known}"))
    for line in ["", *table_lines(table)]:
        typer.echo(line)


def _without_nan(value: Any) -> Any:
    """For JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _draw(rows: list[ScoreRow], by: Literal["cut", "source", "both"], out: Path) -> None:
    from regraft.errors import StudyError
    from regraft.show.figures_save import save_figure
    from regraft.show.figures_science import advice_page

    if (chart := advice_page(rows, by)) is None:
        raise StudyError(f"no group of scored rows has two {by}s to choose between, so there is nothing to draw")
    save_figure(chart, out)


def similarity(
    study: StudyName,
    row: Annotated[str, typer.Argument(metavar="ROW", help="a trained row of the study")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="another one; default: what ROW started from")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the rows; default: the first")] = None,
    out: Annotated[Path | None, typer.Option(help="file of the heat map: .svg, .png, .pdf or .html")] = None,
    images: Annotated[int, typer.Option(min=8, help="training images looked at, at most")] = 1024,
    store: StoreFolder = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Compare the blocks of two trained networks by CKA; of one, before and after training: how far each drifted."""
    from regraft.spec import Study

    chosen = Study.from_yaml(study)
    from regraft.show.figures import save
    from regraft.show.figures_transfer import cka_map
    from regraft.study.similarity import similarity as compare

    shelf = open_store(store)
    alike = compare(chosen, row, other, shelf, seed=seed, images=images, device=device, offline=offline)
    if as_json:
        found = {"networks": alike.names, "cuts": alike.cuts, "cka": alike.matrix.tolist(), "images": alike.images}
        typer.echo(json.dumps({**found, "moved": [asdict(one) for one in alike.moved]}, indent=2))
    else:
        for i, cut in enumerate(alike.cuts[0]):
            same = alike.cuts[1].index(cut) if cut in alike.cuts[1] else None
            moved = next((one.weights for one in alike.moved if one.block == cut), None)
            cka = "–" if same is None else f"{float(alike.matrix[i, same]):.3f}"
            typer.echo(f"{cut}: CKA {cka}" + ("" if moved is None else f", weights moved by {100 * moved:.1f} %"))
    if out is not None:
        save(cka_map(alike), out)
