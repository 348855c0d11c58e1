"""Tables and texts of the small commands, as rich renderables. No computation beyond counting."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from regraft.errors import UnknownName, nearest
from regraft.show.text import printable

if TYPE_CHECKING:
    from regraft.data import DatasetInfo
    from regraft.doctor import Finding
    from regraft.learn.lr_find import LearningRates
    from regraft.networks import CutPoint
    from regraft.spec import Run, Study
    from regraft.study.results import Results
    from regraft.study.store import Artifact, Store


StoreFolder = Annotated[
    str | None,
    typer.Option(
        "--store", help="folder of the results store, or a URL such as s3://...; default: the user's cache folder"
    ),
]


def complete_study(incomplete: str) -> list[str]:
    """Presets and study files that begin with what has been typed, for the shell's completion."""
    from regraft.spec import presets

    folder = os.path.dirname(incomplete)
    files = [os.path.join(folder, path.name) for path in Path(folder or ".").glob("*.y*ml")]
    return sorted(name for name in [*presets(), *files] if name.startswith(incomplete))


def show(content: RenderableType) -> None:
    """Print; wide tables are not squeezed when the output is a file or a pipe."""
    console = Console()
    Console(width=None if console.is_terminal else 200).print(content)


def open_store(place: str | None) -> Store:
    """The store in a folder or behind a URL; None: the user's own."""
    from regraft.study.store import default_store, store_at

    return store_at(place) if place else default_store()


def this_command() -> str:
    """What was typed, for a message that says how to go on."""
    return shlex.join(["regraft", *map(utf8, sys.argv[1:])])


def utf8(name: str) -> str:
    """A name whose bytes are no UTF-8 can be written nowhere: its odd bytes become \\x.. ."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """`right`: the columns to align right. Names and paths are printed as text, without markup or escape sequences."""
    made = Table(title=escape(title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(str(value))) for value in row))
    return made


def size(count: float, unit: str = "B") -> str:
    """1234567 -> '1.2 MB'."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(count) < 1000 or prefix == "T":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if prefix == "" else f"{count:.1f} {prefix}{unit}"


def progress_table(results: Results) -> Group:
    """Row by row: how many cells are scored, and why the others are not."""
    scored: dict[str, list[float]] = {}
    reasons: dict[str, set[str]] = {}
    for cell in results.cells:
        scored.setdefault(cell.row, []).append(cell.accuracy)
    for gap in results.missing:
        reasons.setdefault(gap.row, set()).add(gap.reason)
    lacking = Counter(gap.row for gap in results.missing)
    rows = []
    for name in dict.fromkeys(row.name for row in results.study.all_rows()):
        done = len(scored.get(name, []))
        rows.append((name, f"{done} of {done + lacking[name]}", "; ".join(sorted(reasons.get(name, set())))))
    total = len(results.cells) + len(results.missing)
    head = Text(f"{results.study.study}: {len(results.cells)} of {total} cells scored")
    return Group(head, table("", ("row", "scored", "why not"), rows))


def artifact_text(artifact: Artifact) -> Group:
    """An artifact for people: spec, values (shortened), tensors, record."""
    tensors = tensor_shapes(artifact.path / "data.safetensors")
    return Group(
        Text(f"{artifact.spec['stage']} {artifact.key}", style="bold"),
        Text(f"{artifact.path}  ({size(artifact.size_bytes())})\n"),
        table("determined by", ("field", "value"), _fields(artifact.spec)),
        table("\nvalues", ("field", "value"), _fields(artifact.values)),
        table("\ntensors", ("name", "shape", "type"), tensors),
        table("\nrecord", ("field", "value"), _fields(artifact.record)),
    )


def show_json(artifact: Artifact) -> None:
    """The whole artifact but its tensors' numbers, as JSON."""
    tensors = [
        {"name": name, "shape": shape, "dtype": dtype}
        for name, shape, dtype in tensor_shapes(artifact.path / "data.safetensors")
    ]
    content = {
        "key": artifact.key,
        "path": str(artifact.path),
        "spec": artifact.spec,
        "values": artifact.values,
        "tensors": tensors,
        "record": artifact.record,
    }
    print(json.dumps(content, indent=2))


def tensor_shapes(file: Path) -> list[tuple[str, list[int], str]]:
    """(name, shape, dtype) of every tensor; reads the header only."""
    with file.open("rb") as f:  # safetensors: 8 bytes of length, then that much JSON
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    return [(name, t["shape"], t["dtype"]) for name, t in sorted(header.items()) if name != "__metadata__"]


def _fields(mapping: dict[str, object], longest: int = 160) -> list[tuple[str, str]]:
    lines = []
    for name, value in mapping.items():
        text = json.dumps(value, ensure_ascii=False)
        lines.append((name, text if len(text) <= longest else f"{text[:longest]}... ({len(text):,} characters)"))
    return lines


def pruned_table(removed: Sequence[tuple[str, int, str]], *, dry_run: bool) -> Group:
    freed = size(sum(n_bytes for _, n_bytes, _ in removed))
    verb = "would be removed" if dry_run else "removed"
    rows = [(key[:16], size(n_bytes), reason) for key, n_bytes, reason in removed]
    return Group(
        Text(f"{len(removed)} artifacts {verb}, {freed}"),
        *([table("", ("key", "size", "why"), rows, right=("size",))] if removed else []),
    )


def presets_table() -> Table:
    from regraft.spec import Study, presets

    studies = [(name, Study.from_yaml(name)) for name in presets()]
    return table("", ("preset", "question", "cost"), [(name, s.question, s.cost) for name, s in studies])


def preset_yaml(name: str) -> str:
    """The preset's file as shipped, comments included."""
    from regraft.spec import presets

    if name not in presets():
        raise UnknownName(f"no preset {name!r}{nearest(name, presets())} Presets: {', '.join(presets())}.")
    return resources.files("regraft.studies").joinpath(f"{name}.yaml").read_text("utf-8")


def cuts_table(network: str, points: Sequence[CutPoint], image_size: int) -> Table:
    """Where a network can be cut; all numbers are for what lies below the cut."""
    rows = [
        (
            point.name,
            f"{point.depth:.3f}",
            " x ".join(map(str, point.shape)),
            point.layout,
            f"{point.parameters:,}",
            size(point.flops, "FLOP"),
            point.alias,
        )
        for point in points
    ]
    columns = ("cut", "depth", "shape", "layout", "parameters", "for one image", "also called")
    title = f"{network} on {image_size} x {image_size} pixels (depth: share of the FLOPs below the cut)"
    return table(title, columns, rows, right=("depth", "parameters"))


def data_table(infos: Sequence[DatasetInfo]) -> Table:
    rows = [
        (
            info.name,
            len(info.classes) if info.known else "?",
            f"{sum(info.train_counts):,}" if info.known else "?",
            "?" if info.test_images is None else f"{info.test_images:,}",
            info.image_size or "any",
            "yes" if info.available else "no",
        )
        for info in infos
    ]
    columns = ("name", "classes", "training", "test", "pixels", "here")
    return table("Images; `regraft data info NAME` tells more", columns, rows, right=columns[1:5])


def data_text(info: DatasetInfo) -> Table:
    """What is known of one data set."""
    low, high = min(info.train_counts, default=0), max(info.train_counts, default=0)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    names = ", ".join(info.classes[:100]) + (", ..." if len(info.classes) > 100 else "")
    rows = [
        ("here", "yes" if info.available else "no"),
        ("classes", f"{len(info.classes)} classes: {names}" if info.known else "known once it is here"),
        ("training images", f"{sum(info.train_counts):,} ({each} of each class)" if info.known else "?"),
        ("test images", "?" if info.test_images is None else f"{info.test_images:,}"),
        ("pixels", f"{info.image_size} x {info.image_size}" if info.image_size else "any size"),
        ("channels", {1: "1 (grey)", 3: "3 (colour)"}[info.channels]),
        ("content digest", info.digest or "none published"),
        ("how to get it", info.ways),
    ]
    return table(info.name, ("", ""), rows)


@contextmanager
def transfer_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields report(done, total) that moves a bar in a terminal and is silent elsewhere."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)

        def report(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def share_bar(name: str) -> Iterator[Callable[[float, str], None]]:
    """The same for advance(share done, message)."""
    with transfer_bar(name) as report:
        yield lambda done, message: report(round(1000 * done), 1000)


def rates_text(study: Study, run: Run, found: LearningRates) -> Group:
    """What the learning rates of a range test are worth, which ones it suggests, and what to write."""
    last = len(found.rates) - 1
    shown = sorted({*range(0, last, max(1, last // 12)), last, *map(found.rates.index, (found.steepest, found.lowest))})
    marks = {found.steepest: "falls fastest", found.lowest: "lowest: too high to train with"}
    rows = [(f"{found.rates[i]:.2g}", f"{found.smoothed[i]:.3f}", marks.get(found.rates[i], "")) for i in shown]
    low, high = sorted((found.steepest, found.tenth))
    chooses = run.target.holds_out and f"{low:.2g}" != f"{high:.2g}"
    end = "stopped: the loss rose to four times its lowest" if found.stopped else "up to the highest rate"
    return Group(
        table(f"{run.label}: {len(found.rates)} mini-batches, {end}", ("lr", "smoothed loss", ""), rows,
              right=("lr", "loss")),
        Text(f"\nSuggested: {found.steepest:.2g} (the loss falls fastest), {found.tenth:.2g} (a tenth of the rate at "
             "the lowest loss)."),
        Text(f"Under `recipes` in the study file: {_with_rate(study, run, f'{low:.2g}')}"),
        *([Text(f"To let validation choose: {_with_rate(study, run, f'[{low:.2g}, {high:.2g}]')}")] if chooses else []),
    )  # fmt: skip


def _with_rate(study: Study, run: Run, rate: str) -> str:
    """`fast: {preset: fast, lr: 0.01}`, or `mine: {..., lr: 0.01}` for a recipe that is written out."""
    own = "..." if run.recipe_name in study.recipes else f"preset: {run.recipe_name}"
    return f"{run.recipe_name}: {{{own}, lr: {rate}}}"


def show_rates_json(run: Run, found: LearningRates) -> None:
    """Every step of a range test, and what it suggests, as JSON."""
    told = {"row": run.row, "seed": run.seed, "recipe": run.recipe_name, **asdict(found), "tenth": found.tenth}
    print(json.dumps(told, indent=2))


def draw_rates(run: Run, found: LearningRates, file: Path) -> None:
    """Write the figure of a range test. Raises StoreError where nothing can be written."""
    from regraft.show.figures import lr_curve, save

    save(lr_curve(found, run.label), file)


def doctor_table(findings: Sequence[Finding]) -> Table:
    marks = {"ok": "ok", "note": "--", "problem": "!!"}
    return table("", ("", "what", "found", "advice"), [(marks[f.state], f.what, f.found, f.advice) for f in findings])
