"""What a study took, by stage and by row, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from regraft.analysis.stats import binomial_error
from regraft.errors import RegraftError
from regraft.show.sections import Column, Entry, Table, brief, number
from regraft.show.text import duration, percent
from regraft.spec import Run
from regraft.study.index import Index
from regraft.study.keys import Keys, cacheable
from regraft.study.plan import plan
from regraft.study.results import Cell, Results
from regraft.study.store import Artifact, key_of

NO_POWER = "No power was measured, so no energy is given."


@dataclass(frozen=True)
class Spent:
    """One stage of one row (or of none), over all its seeds and recipes."""

    stage: str
    row: str
    steps: int
    seconds: float
    images: float  # through a network, forwards; a training image counts once an epoch


STAGES = {
    "features": "features of frozen trunks",
    "training": "training on images",
    "heads": "heads on features",
    "scoring": "scoring",
}


def spent(results: Results) -> list[Spent]:
    """What the store recorded of every training, scored or only tried; without a store, of the scored ones."""
    runs = {(run.cell, run.recipe_name): run for run in plan(results.study)}
    found = [one for cell in results.cells for one in _of_cell(cell, runs.get(((cell.row, cell.seed), cell.recipe)))]
    if results.store is not None:
        keys = Keys(tuple(runs.values()), results.store, offline=True)
        found += _tried(results, keys)
        found += _features(results, keys)
    return found


def _of_cell(cell: Cell, run: Run | None) -> Iterator[Spent]:
    """The training that was scored, and the scoring."""
    cost = cell.cost
    on_features = "features" in cost or cell.episodes is not None
    if "seconds" in cost:
        images = 0.0 if on_features else _shown(run, cell.train_images, cell.validation_images, len(cell.curve))
        yield Spent("heads" if on_features else "training", cell.row, 1, float(cost["seconds"]), images)
    if "seconds" in cost.get("score", {}):
        flips = 2 if run is not None and run.recipe.test_flip else 1
        images = 0.0 if on_features else cell.test_images * flips
        yield Spent("scoring", cell.row, 1, float(cost["score"]["seconds"]), images)


def _shown(run: Run | None, train: int, held: int, epochs: int) -> float:
    """Forward passes of images in a training on images."""
    if run is None:
        return float(epochs * (train + held))
    recipe = run.recipe
    each = (1 + (2 * recipe.ratio if recipe.semi != "none" else 0)) * (2 if recipe.sam else 1)
    return float(epochs * (train * each + held * (2 if recipe.test_flip else 1)))


def _tried(results: Results, keys: Keys) -> Iterator[Spent]:
    """Trainings of recipes that were not chosen, and those that chose a refit."""
    scored = {cell.key for cell in results.cells}
    for run in keys.runs:
        try:
            found = keys.index.get(keys.fit_key(run))
        except RegraftError:  # its source is not trained yet, or gone
            continue
        if found is None or found.key in scored:
            continue
        values, live = found.values, not cacheable(run)
        size = (values.get("train_images", 0), values.get("validation_images", 0), len(values.get("curve", [])))
        yield Spent(
            "training" if live else "heads", run.row, 1, float(found.record["seconds"]),
            _shown(run, *size) if live else 0.0,
        )  # fmt: skip


def _features(results: Results, keys: Keys) -> Iterator[Spent]:
    """Tables of features that the scored rows read: one pass fills the tables of all cuts."""
    passes: dict[str, dict[str, tuple[float, float]]] = {}  # pass -> table -> seconds, images
    seen: set[object] = set()
    for cell in results.cells:
        run = keys.by_cell[cell.row, cell.seed][0]
        reads = (run.source_name, run.seed, run.cut, run.head, run.target.data, run.recipe)
        if reads in seen or not cacheable(run):  # the same tables for every budget
            continue
        seen.add(reads)
        for name, pass_ in _tables(run, keys):
            tables = passes.setdefault(pass_, {})
            if name not in tables:
                shards = list(_shards(name, keys))
                seconds = sum(float(shard.record["seconds"]) for shard in shards)
                tables[name] = seconds, float(sum(len(shard.values["positions"]) for shard in shards))
    for tables in passes.values():
        if images := max(images for _, images in tables.values()):
            yield Spent("features", "", 1, sum(seconds for seconds, _ in tables.values()), images)


def _tables(run: Run, keys: Keys) -> Iterator[tuple[str, str]]:
    """(table, pass) of every split and view that the run's head may read."""
    for split in ("train", "validation", "test"):
        for view in range(run.recipe.views + 1):
            try:
                for cut in keys.cuts(run):
                    spec = keys.features(run, split, cut=cut, view=view)
                    yield key_of(spec), key_of({**spec, "cut": "any", "pool": "any"})
            except RegraftError:  # its source is gone
                return


def _shards(table: str, keys: Keys) -> Iterator[Artifact]:
    """The parts of a table of features that are intact."""
    for key in keys.store.linked(table):
        try:
            yield keys.store.read(key)
        except RegraftError:
            continue


# --- tables -------------------------------------------------------------------------------------------------------


def stages_table(found: Iterable[Spent]) -> Table:
    """Steps, seconds and images of each stage."""
    rows = []
    whole = list(found)
    for stage, title in STAGES.items():
        if of := [one for one in whole if one.stage == stage]:
            rows.append(_line(title, of))
    if len(rows) > 1:
        rows.append(_line("all", whole))
    columns = (
        Column("stage"), Column("steps", number=True), Column("seconds", number=True),
        Column("images through networks", number=True),
    )  # fmt: skip
    return Table("Cost by stage", columns, tuple(rows), look="compact narrow")


def rows_costs(found: Iterable[Spent]) -> Table:
    """Mean seconds of one training and one scoring of each row, and its images, over all seeds and recipes."""
    rows: dict[str, list[Spent]] = {}
    for one in found:
        if one.row:
            rows.setdefault(one.row, []).append(one)
    lines = []
    for row, of in rows.items():
        trained = [one.seconds for one in of if one.stage != "scoring"]
        scored = [one.seconds for one in of if one.stage == "scoring"]
        images = sum(one.images for one in of)
        lines.append((
            Entry(row), number(len(trained)), _seconds(trained), _seconds(scored),
            number(sum(trained) + sum(scored), brief(sum(trained) + sum(scored))), number(images, f"{images:,.0f}"),
        ))  # fmt: skip
    columns = (
        Column("row"), Column("trainings", number=True), Column("seconds a training", number=True),
        Column("seconds a scoring", number=True), Column("seconds in all", number=True),
        Column("images through networks", number=True),
    )  # fmt: skip
    return Table("Cost by row", columns, tuple(lines), look="compact")


def _line(title: str, of: list[Spent]) -> tuple[Entry, ...]:
    seconds, images = sum(one.seconds for one in of), sum(one.images for one in of)
    return (
        Entry(title),
        number(sum(one.steps for one in of)),
        number(seconds, brief(seconds)),
        number(images, f"{images:,.0f}"),
    )


def _seconds(each: list[float]) -> Entry:
    return number(fmean(each), brief(fmean(each))) if each else number(None)


# --- provenance ---------------------------------------------------------------------------------------------------


def provenance(results: Results, command: str) -> list[tuple[str, str]]:
    """Name and value of what a reader needs to judge and repeat the study."""
    costs = [cost for cell in results.cells for cost in (cell.cost, cell.cost.get("score", {})) if cost]
    seconds = sum(float(cell.cost.get("seconds", 0)) for cell in results.cells)
    dates = sorted(str(cost["created"]) for cost in costs if "created" in cost)
    facts = [
        ("Command", command),
        ("Test scores taken", f"{results.scores_taken}; test labels were read once for each"),
        ("Test set's own error", test_errors(results.cells)),
        ("Computing time", f"{duration(seconds)} for the scored fits"),
        ("Computed", "" if not dates else " to ".join(dict.fromkeys((dates[0], dates[-1])))),
    ]
    for name, title in (
        ("device", "Device"),
        ("threads", "Threads"),
        ("precision", "Precision"),
        ("machine", "Machine"),
    ):
        facts.append((title, ", ".join(dict.fromkeys(str(cost[name]) for cost in costs if cost.get(name)))))
    facts.append(
        ("Back end of features", ", ".join(dict.fromkeys(str(c["features"]) for c in costs if c.get("features"))))
    )
    versions = dict.fromkeys(f"{name} {one}" for cost in costs for name, one in cost.get("versions", {}).items())
    facts.append(("Versions", ", ".join(versions)))
    facts += _digests(results)
    if results.store is not None:
        facts.append(("Store", f"{results.store.root}, {2 * len(results.cells):,} results of this study"))
    return [(name, value) for name, value in facts if value]


def _digests(results: Results) -> list[tuple[str, str]]:
    """SHA-256 of the data and of the weights that were read, as the fits in the store name them."""
    if results.store is None:
        return []
    data: dict[str, None] = {}
    weights: dict[str, None] = {}
    index = Index(results.store)
    for cell in results.cells:
        if (found := index.get(cell.key)) is None:
            continue
        spec = found.spec
        data[f"{cell.data}: {spec['data']['digest']}"] = None
        if "weights" in spec["trunk"]:
            weights[f"{cell.source} ({cell.network}): {spec['trunk']['weights']}"] = None
    return [("Data, SHA-256", "; ".join(data)), ("Weights, SHA-256", "; ".join(weights))]


def test_errors(cells: list[Cell]) -> str:
    """Binomial standard error of the best accuracy on each test set."""
    best: dict[tuple[str, int], float] = {}
    for cell in cells:
        key = (cell.data, cell.test_images)
        best[key] = max(best.get(key, 0.0), cell.accuracy)
    return "; ".join(
        f"± {100 * binomial_error(accuracy, n):.2f} points "
        f"(standard error at {percent(accuracy)}, {n:,} images of {data})"
        for (data, n), accuracy in best.items()
    )


def study_file(results: Results) -> list[tuple[Markup, str]]:
    """The lines of the study's YAML: (indentation, text)."""
    lines = results.study.to_yaml().splitlines()
    return [(Markup(" " * (len(line) - len(line.lstrip(" ")))), line.lstrip(" ")) for line in lines]
