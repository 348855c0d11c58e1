"""Keeps account while a study runs: which steps are left, what they weigh, what has failed and why."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from regraft.errors import RegraftError
from regraft.spec import Run, Study
from regraft.study.bench import Bench
from regraft.study.costs import Costs
from regraft.study.events import PlanReady, Report, StepDone, StudyDone
from regraft.study.executors import Outcome
from regraft.study.features import FeatureTask, feature_tasks
from regraft.study.fits import fit_tasks
from regraft.study.heads import together
from regraft.study.keys import Keys, cacheable
from regraft.study.plan import Cell
from regraft.study.results import Results
from regraft.study.steps import Step


class Account:
    """The steps of one study, stage by stage, less what the store has and what cannot go on."""

    def __init__(self, study: Study, keys: Keys, bench: Bench, report: Report) -> None:
        self.study, self.keys, self.bench, self.report = study, keys, bench, report
        self.costs = Costs(keys)
        self.failed: dict[Cell, str] = {}
        self.started = time.perf_counter()
        self._begun = False

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Whoever cannot go on without a failed step is marked with its reason."""
        for outcome in outcomes:
            if outcome.error is not None:
                for run in outcome.item.runs:
                    self.failed.setdefault(run.cell, str(outcome.error))

    def data_steps(self) -> list[Step]:
        users: dict[tuple[str, int | None], list[Run]] = {}
        for run in self.keys.runs:
            if run.cell in self.failed:
                continue
            try:
                users.setdefault((run.target.data, self.keys.decoded_size(run)), []).append(run)
            except RegraftError as error:  # a folder that is away, weights whose image size nobody knows
                self.failed[run.cell] = str(error)
        return [
            Step("data", name if size is None else f"{name} at {size} px", group[0], tuple(group), 0.0)
            for (name, size), group in users.items()
        ]

    def weights_steps(self) -> list[Step]:
        users: dict[Any, list[Run]] = {}
        for run in self.keys.runs:
            source = self.keys.root(run).source
            if source.weights != "random":
                users.setdefault(source, []).append(run)
        return [
            Step("weights", f"{source.network} {source.weights}", source, tuple(group), 0.0)
            for source, group in users.items()
        ]

    def begin(self) -> None:
        """Report how much there is to do, data and weights being here. Budgets that the data cannot meet fail now."""
        for cell, members in self.keys.by_cell.items():
            if cell in self.failed:
                continue
            try:
                self.bench.parts(members[0])
                test = self.bench.test(members[0])
                if (asked := members[0].target.episodes) is not None:
                    test.check_queries(asked.queries)
            except RegraftError as error:
                self.failed[cell] = str(error)
        todo = [run for run in self.keys.runs if run.cell not in self.failed and not self._known(run)]
        flops = sum(self.costs.fit(run).flops + self.costs.score(run).flops for run in todo)
        flops += self._feature_flops(todo)
        count = len(self.keys.runs)
        self.report(PlanReady(self.study.study, count, count - len(todo), flops))
        self._begun = True

    def feature_steps(self, wave: Sequence[Run]) -> list[Step]:
        todo = [run for run in self._able(wave) if not self._known(run)]
        return [self._feature_step(task) for task in feature_tasks(todo, self.bench)]

    def fit_steps(self, wave: Sequence[Run]) -> list[Step]:
        """Trainings on images, one by one, or the seeds of a row together."""
        todo = []
        for run in self._able(wave):
            if cacheable(run):
                continue
            if self._known(run):
                self.report(StepDone(f"fit:{run.label}", True, 0.0))
            else:
                todo.append(run)
        steps = []
        for task in fit_tasks(todo, self.bench):
            flops = sum(self.costs.fit(run).flops for run in task.runs)
            steps.append(Step("fit", task.label, task, task.runs, flops, fits=len(task.runs)))
        return steps

    def head_steps(self, wave: Sequence[Run]) -> list[Step]:
        """Heads on cached features, those of a cell together."""
        steps = []
        for task in together([run for run in self._able(wave) if cacheable(run)]):
            new = [run for run in task.runs if not self._known(run)]
            if new:
                flops = sum(self.costs.fit(run).flops for run in task.runs)
                steps.append(Step("fit", task.label, task, tuple(new), flops, fits=len(new)))
            for run in task.runs:
                if run not in new:
                    self.report(StepDone(f"fit:{run.label}", True, 0.0))
        return steps

    def refits(self, wave: Sequence[Run]) -> list[Run]:
        """The chosen runs of the wave that are to be trained again with their validation images."""
        again = []
        for cell in dict.fromkeys(run.cell for run in wave):
            if cell in self.failed or not any(run.recipe.refit for run in self.keys.by_cell[cell]):
                continue
            try:
                final = self.keys.final(cell)
            except RegraftError as error:
                self.failed[cell] = str(error)
                continue
            if final.refit:
                again.append(final)
        return again

    def score_steps(self) -> list[Step]:
        steps = []
        for cell in self.keys.by_cell:
            if cell in self.failed:
                continue
            try:
                chosen = self.keys.final(cell)
                self.keys.fitted(chosen)
            except RegraftError as error:
                self.failed[cell] = str(error)
                continue
            if self.keys.store.get(self.keys.score_key(chosen)) is None:  # absent, or damaged
                flops = self.costs.score(chosen).flops
                steps.append(Step("score", f"{chosen.row} [seed {chosen.seed}]", chosen, (chosen,), flops))
        return steps

    def end(self, results: Results) -> None:
        if not self._begun:  # all was there
            count = len(self.keys.runs)
            self.report(PlanReady(self.study.study, count, count, 0.0))
        seconds = time.perf_counter() - self.started
        self.report(StudyDone(seconds, len(results.cells), len(results.missing)))

    def _known(self, run: Run) -> bool:
        """Whether the run's fit is in the store."""
        try:
            return self.keys.index.get(self.keys.fit_key(run)) is not None
        except RegraftError:
            return False

    def _able(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that have not failed, and whose source has a result."""
        able = []
        for run in runs:
            if run.cell in self.failed:
                continue
            try:
                parent = self.keys.parent(run)
                if parent is not None and parent.cell in self.failed:
                    raise RegraftError(self.failed[parent.cell])
                if parent is not None:
                    self.keys.fitted(parent)
                self.keys.fit_key(run)
            except RegraftError as error:
                self.failed[run.cell] = f"its source is missing: {error}"
                continue
            able.append(run)
        return able

    def _feature_step(self, task: FeatureTask) -> Step:
        first, (split, view) = task.run, task.place
        names = [column.name for column in task.columns]
        cuts = f"{len(names)} cuts" if len(names) > 1 else f"cut {names[0]}"
        viewed = f", view {view} of {first.recipe.views}" if view else ""
        label = f"{first.source_name} on {first.target.data} {split}{viewed}, {cuts} [seed {first.seed}]"
        return Step("features", label, task, task.users, self.costs.features(task.columns, len(task.positions)).flops)

    def _feature_flops(self, todo: Sequence[Run]) -> float:
        return sum(self.costs.features(group.columns, group.images).flops for group in self.costs.passes(todo))
