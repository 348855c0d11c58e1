"""The plan of a study, before anything starts: how many steps, what is shared, what is there, what it will take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from regraft.errors import DataError, RunError, WeightsError
from regraft.spec import Run, Study
from regraft.study.check import check
from regraft.study.costs import Cost, Costs, measure_flops_per_second
from regraft.study.features import Column, table_name, training_views
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.store import Store
from regraft.study.tables import FeatureTable

EFFICIENCY = 0.5  # of a bare convolution's speed that whole networks reach


@dataclass(frozen=True)
class Steps:
    """The steps of one stage."""

    stage: str
    count: int
    cached: int | None  # None: not known, since data or weights are not here
    cost: Cost  # of all of them, the cached ones too
    left: Cost  # of those not in the store


@dataclass(frozen=True)
class Estimate:
    """What `regraft plan` shows."""

    study: Study
    runs: int
    cells: int
    steps: list[Steps]
    images: float  # through networks, still to do
    images_unshared: float  # the same if every run extracted its own features and trained its own source
    flops: float
    disk_bytes: float
    seconds: float | None
    absent: list[str] = field(default_factory=list)  # data and weights that are not on this machine yet
    graph: list[str] = field(default_factory=list)  # one line a row, indented below its source row

    def lines(self) -> list[str]:
        """The plan in plain text."""
        out = [f"{self.study.study}: {self.study.question}".rstrip(": "), ""]
        out += [*self.graph, ""]
        out.append(f"{self.runs:,} trainings for {self.cells:,} cells (row x seed):")
        for step in self.steps:
            there = "in the store: not known yet" if step.cached is None else f"{step.cached:,} in the store"
            out.append(f"  {step.stage:<9} {step.count:>7,} step{'s' * (step.count != 1)}, {there}")
        saved = f" ({self.images_unshared:,.0f} if nothing were shared)" if self.images_unshared else ""
        out.append(f"Still to do: {self.images:,.0f} images through networks{saved}, {self.flops:.2g} FLOPs,")
        time = "time not estimated" if self.seconds is None else f"about {duration(self.seconds)} on this machine"
        out.append(f"  {self.disk_bytes / 1e6:,.0f} MB in the store, {time} (a rough figure).")
        out += [f"Not here yet: {line}" for line in self.absent]
        return out


def estimate(study: Study, store: Store, *, offline: bool = True, device: str = "cpu") -> Estimate:
    """Plan and check `study`; look up what the store has. Reads no image and fetches nothing while `offline`."""
    runs = plan(study)
    keys = Keys(runs, store, offline=offline)
    check(runs, keys)
    costs = Costs(keys)
    absent = _absent(runs, keys)
    features, unshared_images = _features(runs, keys, costs)
    fits = _steps("fit", runs, keys, lambda r: store.has(keys.fit_key(r)), costs.fit)
    firsts = {run.cell: run for run in runs}
    scores = _steps(
        "score", list(firsts.values()), keys,
        lambda r: store.has(keys.score_key(keys.final(r.cell))), costs.score,
    )  # fmt: skip
    steps = [features, fits, scores]
    flops = sum(step.left.flops for step in steps)
    keys.index.save()
    speed = measure_flops_per_second(device) * EFFICIENCY
    return Estimate(
        study=study,
        runs=len(runs),
        cells=len(firsts),
        steps=steps,
        images=sum(step.left.images for step in steps),
        images_unshared=fits.cost.images + scores.cost.images + unshared_images,
        flops=flops,
        disk_bytes=sum(step.left.disk_bytes for step in steps),
        seconds=flops / speed if all(costs.known(run) for run in runs) else None,
        absent=absent,
        graph=_graph(study, runs, keys),
    )


def _steps(stage: str, runs: list[Run], keys: Keys, there, cost) -> Steps:  # type: ignore[no-untyped-def]
    cached: int | None = 0
    total, left = [], []
    for run in runs:
        total.append(cost(run))
        try:
            have = there(run)
        except RunError:  # not trained, or diverged: no score to come
            have = False
        except (DataError, WeightsError):
            have, cached = False, None
        if have and cached is not None:
            cached += 1
        if not have:
            left.append(cost(run))
    return Steps(stage, len(runs), cached, _sum(total), _sum(left))


def _features(runs: list[Run], keys: Keys, costs: Costs) -> tuple[Steps, float]:
    """Feature tables, by passes; also the images if every run extracted its own."""
    total, left, cached, unshared = [], [], 0, 0.0
    known = True
    passes = costs.passes(runs)
    for group in passes:
        cost = costs.features(group.columns, group.images)
        total.append(cost)
        unshared += sum(sum(costs.budget(run)) + costs.test_images(run) for run in group.members)
        try:
            share = min(_covered(column, keys) for column in group.columns) / max(1.0, group.images)
        except RunError:
            share = 0.0
        except (DataError, WeightsError):
            share, known = 0.0, False
        cached += share >= 0.999
        left.append(_scaled(cost, max(0.0, 1.0 - share) if share < 0.999 else 0.0))
    return Steps("features", len(passes), cached if known else None, _sum(total), _sum(left)), unshared


def _covered(column: Column, keys: Keys) -> int:
    """Images whose features the store has: each augmented view of an image counts."""
    places = [("test", 0), *(("train", view) for view in {0, *training_views(column.run)})]
    tables = [table_name(column.run, place, keys, column.cut) for place in places]
    return sum(len(FeatureTable(keys.store, table).positions) for table in tables)


def _absent(runs: Iterable[Run], keys: Keys) -> list[str]:
    lines = {}
    for run in runs:
        try:
            info = keys.info(run.target.data)
            if not info.available:
                lines[run.target.data] = f"{run.target.data}: {info.ways}"
            if not info.known:
                lines[run.target.data] = f"{run.target.data} (not counted above): {info.ways}"
        except DataError as error:
            lines[run.target.data] = f"{run.target.data} (not counted above): {error}"
        source = run.source
        if source.network is not None and source.weights != "random":
            try:
                keys.weights(source)
            except WeightsError as error:
                lines[run.source_name] = f"weights of source {run.source_name!r}: {error}"
    return list(lines.values())


def _graph(study: Study, runs: list[Run], keys: Keys) -> list[str]:
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.row, []).append(run)
    children: dict[str | None, list[str]] = {}
    for row, members in cells.items():
        children.setdefault(members[0].source.run, []).append(row)

    def lines(parent: str | None, indent: int) -> Iterable[str]:
        for row in children.get(parent, []):
            run = cells[row][0]
            network, _ = keys.network(run)
            source = f"from {run.source.run!r}" if run.source.run else f"{network}, {run.source.weights} weights"
            recipes = len({r.recipe_name for r in cells[row]})
            what = f"{source}, cut {run.cut or 'before the classifier'}, {run.method}, head {run.head.kind}"
            times = f"{len({r.seed for r in cells[row]})} seeds" + (f" x {recipes} recipes" if recipes > 1 else "")
            yield f"{'  ' * indent}- {row}"
            yield f"{'  ' * indent}    {what}; {run.target.data}, {run.target.budget}; {times}"
            yield from lines(row, indent + 1)

    return list(lines(None, 0))


def _sum(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return Cost(sum(c.flops for c in costs), sum(c.images for c in costs), sum(c.disk_bytes for c in costs))


def _scaled(cost: Cost, share: float) -> Cost:
    return Cost(cost.flops * share, cost.images * share, cost.disk_bytes * share)


def duration(seconds: float) -> str:
    """For people: '40 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
