"""Measuring configurations on validation pictures: features of one network after another, and heads on them.

No test label is read here, and no test picture is looked at: the steps are the engine's own, without its last one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from regraft.analysis.findings import Candidate
from regraft.errors import Diverged, RegraftError
from regraft.predictor.advise.clock import MEASURE, TUNE, Clock, OutOfTime
from regraft.predictor.advise.sources import SIZES, Trunk
from regraft.spec import Head, Recipe, Row, Run, Source, Study, Target
from regraft.study.bench import Bench, Setting
from regraft.study.features import FeatureTask, feature_tasks, obtain_features
from regraft.study.heads import Advance, obtain_heads, together
from regraft.study.plan import plan
from regraft.study.store import Store
from regraft.study.tables import Positions

# One pass each, and heads together, so many values cost little. Of a mean loss on standardised features.
RIDGE = (0.01, 0.1, 1.0, 10.0, 100.0)
LOGISTIC = (0.01, 0.05, 0.2, 1.0)
ITERATIONS = 300
RECIPES: dict[str, Recipe] = {
    **{f"ridge {v:g}": Recipe(optimizer="ridge", weight_decay=v, refit=True) for v in RIDGE},
    **{f"logistic {v:g}": Recipe(optimizer="lbfgs", epochs=ITERATIONS, weight_decay=v, refit=True) for v in LOGISTIC},
}
VALIDATION = 0.2  # of the labels; which ones, differs from seed to seed
FIRST_SLICE = 16  # pictures, by which a network's speed is measured
SLICE_SECONDS = 5.0  # of work between two looks at the clock; what is finished is kept
WIDEST_GRID = 8192  # features


@dataclass(frozen=True)
class Choice:
    """A configuration with the numbers that it is chosen by."""

    row: Row
    recipe: str  # "" for a head without one
    source: Source
    trunk: Trunk
    accuracies: tuple[float, ...]  # on validation pictures, one per seed
    losses: tuple[float, ...]
    seconds: float

    @property
    def merit(self) -> tuple[float, float]:
        """The larger, the better."""
        return fmean(self.accuracies), -fmean(self.losses)

    def candidate(self) -> Candidate:
        """For people."""
        cut = self.row.cut or "all but the classifier"
        deviation = stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0
        return Candidate(
            self.trunk.name, cut, self.row.method, self.row.head.label, self.recipe, fmean(self.accuracies), deviation,
            len(self.accuracies), self.seconds,
        )  # fmt: skip


@dataclass
class Explored:
    """What was measured."""

    choices: list[Choice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds_a_picture: dict[str, float] = field(default_factory=dict)  # by the name of a trunk
    seconds_a_cell: float = 0.0  # the most that the heads of one row and seed took, all recipes together

    @property
    def frozen(self) -> Choice:
        """The best frozen trunk on validation; of equal ones, the one of lower loss."""
        return max((c for c in self.choices if c.row.method == "frozen"), key=lambda choice: choice.merit)

    @property
    def best(self) -> Choice:
        """The best of all. A fine-tuned network may have fewer seeds; it must be better on those."""
        best = self.frozen
        for choice in self.choices:
            if choice.row.method != "frozen" and fmean(choice.accuracies) > fmean(
                best.accuracies[: len(choice.accuracies)]
            ):
                best = choice
        return best


@dataclass(frozen=True)
class Place:
    """Where and on what is computed."""

    store: Store
    data: str
    seeds: tuple[int, ...]
    device: str
    offline: bool

    def bench(self, study: Study) -> tuple[list[Run], Bench]:
        """The runs of a study, and a worker's place for them."""
        runs = plan(study)
        return runs, Bench(Setting(self.store.location, tuple(runs), self.device, None, self.offline, "fused"))


def explore(trunks: Sequence[Trunk], place: Place, clock: Clock) -> Explored:
    """Measure one network after another, each with its share of the time that is left for it.

    Raises OutOfTime if nothing could be measured."""
    found = Explored()
    for i, trunk in enumerate(trunks):
        share = clock.left(MEASURE) / (len(trunks) - i)
        if share <= 0 and (found.choices or clock.left(TUNE) <= 0):
            found.notes.append(f"{trunk.network}: not measured, the time was used up")
            continue
        _measure_one(trunk, place, share, clock, found)
    if found.choices and (own := found.frozen.trunk.preprocessing.image_size) > found.frozen.trunk.image_size:
        # Small pictures, or little time: the best network again, at the size that its weights were made for.
        larger = replace(found.frozen.trunk, image_size=own)
        if larger.weights != "random" and clock.left(MEASURE) > 0:
            _measure_one(larger, place, clock.left(MEASURE), clock, found, smaller=())
    if not found.choices:
        raise OutOfTime(
            f"no network could be measured in {clock.minutes:g} minutes: {'; '.join(found.notes)}. Give more time "
            "(--minutes), or a smaller network (--network mobilenet_v2)."
        )
    return found


def study_of(trunk: Trunk, place: Place) -> Study:
    """The rows that are measured of a network at one image size."""
    rows: list[Row] = []

    def add(name: str, cut: str | None, head: Head, recipes: tuple[str, ...]) -> None:
        rows.append(Row(name=name, source="trunk", cut=cut, method="frozen", target="all", head=head, recipe=recipes))

    every, ridge = tuple(RECIPES), tuple(name for name in RECIPES if name.startswith("ridge"))
    add("prototype", None, Head(kind="prototype"), ())
    for cut in trunk.cuts():
        add(f"linear at {cut or 'the end'}", cut, Head(), every)
    last = trunk.last_map()
    if last is not None and _grid_width(trunk, last) <= WIDEST_GRID:
        add("linear on a grid", last, Head(pool="grid-2"), ridge)
    return Study(
        study="advise", seeds=place.seeds, sources={"trunk": trunk.source}, recipes=RECIPES, rows=rows,
        targets={"all": Target(data=place.data, validation=VALIDATION)},
    )  # fmt: skip


def _grid_width(trunk: Trunk, cut: str) -> int:
    from regraft.networks import resolve_cut

    return resolve_cut(trunk.network, cut, trunk.image_size).width("grid-2")


def _measure_one(
    trunk: Trunk, place: Place, share: float, clock: Clock, found: Explored,
    *, smaller: Sequence[int] = SIZES,
) -> None:  # fmt: skip
    """Features and heads of one network, at its image size or the largest `smaller` one that `share` seconds allow."""
    until = clock.spent + share
    limit = MEASURE if found.choices else TUNE  # something must be known of one network at least
    sizes = [trunk.image_size, *(size for size in smaller if size < trunk.image_size)]
    try:
        seconds, tried = 0.0, trunk.image_size  # of a pass at the size that was tried
        for size in sizes:
            last = size == sizes[-1] and not found.choices
            # To try a size takes time itself: none is tried that cannot be expected to fit.
            if not last and seconds * (size / tried) ** 2 > until - clock.spent:
                continue
            taken = _measured_at(replace(trunk, image_size=size), place, until, clock, limit, found, last=last)
            if taken is None:
                return
            seconds, tried = taken, size
        found.notes.append(f"{trunk.name}: not measured, it would take longer than the time that was left for it")
    except (OutOfTime, Diverged) as error:
        found.notes.append(f"{trunk.name}: {error}")


def _measured_at(
    trunk: Trunk, place: Place, until: float, clock: Clock, limit: float, found: Explored, *, last: bool
) -> float | None:
    """None if it was measured, else the seconds that it would have taken, too many. last: try it all the same."""
    runs, bench = place.bench(study_of(trunk, place))
    tasks = [task for task in feature_tasks(runs, bench) if task.place[0] == "train"]
    left, rate = sum(len(task.positions) for task in tasks), 0.0  # rate: seconds a picture
    stops = clock.stops(limit, trunk.name)
    if left:
        rate = _first_slice(tasks[0], bench, stops)
        if rate * left > max(0.0, until - clock.spent) and not last:
            return rate * left
    began = clock.spent
    for task in tasks:
        _pass(task, bench, rate, stops)
    _heads(runs, bench, trunk, clock, limit, found, clock.spent - began)
    found.seconds_a_picture[trunk.name] = rate
    return None


def _first_slice(task: FeatureTask, bench: Bench, stops: Advance) -> float:
    """Seconds a picture, by a few of them; the first few prepare the network and are not counted. 0: not known."""
    seconds = 0.0
    for start in (0, FIRST_SLICE):
        part = task.positions[start : start + FIRST_SLICE]
        if len(part):
            began = time.perf_counter()
            obtain_features(_sliced(task, part), bench, stops, True)
            seconds = (time.perf_counter() - began) / len(part) if start else 0.0
    return seconds


def _pass(task: FeatureTask, bench: Bench, rate: float, stops: Advance) -> None:
    """All pictures of a task, in slices, so that what is finished is kept whenever it is stopped."""
    size = max(FIRST_SLICE, int(SLICE_SECONDS / max(rate, 1e-4)))
    for start in range(0, len(task.positions), size):
        stops(start / len(task.positions), "")
        obtain_features(_sliced(task, task.positions[start : start + size]), bench, lambda done, said: None, True)


def _sliced(task: FeatureTask, positions: Positions) -> FeatureTask:
    return FeatureTask(task.columns, task.place, positions, task.users)


def _heads(
    runs: Sequence[Run], bench: Bench, trunk: Trunk, clock: Clock, limit: float, found: Explored, seconds: float
) -> None:
    """Solve the heads of every row and seed; rows that time does not allow are left out, whole."""
    done: dict[tuple[str, str], list[Run]] = {}
    seeds, whole = {run.seed for run in runs}, False
    for task in together(runs):
        if clock.left(MEASURE if whole else limit) < 0:
            found.notes.append(f"{trunk.name}: not all heads were measured, the time was used up")
            break
        clock.says(f"{trunk.name}: heads")
        began = clock.spent
        obtain_heads(task, bench, lambda done, said: None, True)
        found.seconds_a_cell = max(found.seconds_a_cell, clock.spent - began)
        for run in task.runs:
            members = done.setdefault((run.row, run.recipe_name if run.row != "prototype" else ""), [])
            members.append(run)
            whole = whole or len(members) == len(seeds)
    for (_, recipe), members in done.items():
        if {run.seed for run in members} == seeds:
            with_values = _validated(members, bench)
            if with_values is not None:
                run = members[0]
                found.choices.append(Choice(_row(run), recipe, run.source, trunk, *with_values, seconds))


def _validated(members: Sequence[Run], bench: Bench) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Accuracies and losses on validation, by seed; None where a training diverged."""
    try:
        values = [bench.keys.fitted(run).values for run in members]
    except RegraftError:
        return None
    accuracies = tuple(float(value["validation_accuracy"]) for value in values)
    return accuracies, tuple(float(value["validation_loss"]) for value in values)


def _row(run: Run) -> Row:
    recipe = () if run.recipe.optimizer == "none" else (run.recipe_name,)
    return Row(name=run.row, source="trunk", cut=run.cut, method=run.method, head=run.head, target="all", recipe=recipe)
