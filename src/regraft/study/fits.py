"""Trainings on images as steps of a study: one by one, or the seeds of a row side by side where that pays."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from regraft.errors import Diverged, FrozenTrunkMoved
from regraft.learn.batches import ImageBatches
from regraft.learn.distributed import ALONE, Team
from regraft.learn.fit import Fit, Unlabelled, fit
from regraft.learn.methods import Tuned, tune, wise_ft
from regraft.learn.progress import Checkpoint, cpu_state
from regraft.learn.seeds import fit_seeds, measured, pays, together
from regraft.networks import Grafted
from regraft.spec import Augment, Run
from regraft.study.bench import Bench, Part
from regraft.study.devices import devices_for, train_on_devices
from regraft.study.models import grafted, image_batches
from regraft.study.payload import fit_payload
from regraft.study.store import Payload, Scratch, key_of

Advance = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class FitTask:
    """Trainings that may be done in one: those of a row and recipe, which differ in their seed."""

    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        run = self.runs[0]
        if len(self.runs) == 1:
            return run.label
        return f"{run.row} [{len(self.runs)} seeds, {run.recipe_name}{', refit' * run.refit}]"


def fit_tasks(runs: Sequence[Run], bench: Bench) -> list[FitTask]:
    """The runs, all on images, in groups that one step trains; each alone unless this device may take several."""
    wish = bench.setting.mechanism
    sharing = wish == "seeds" or (wish == "auto" and bench.device.type == "cuda" and bench.setting.devices == 1)
    groups: dict[object, list[Run]] = {}
    for run in runs:
        alike = together(run.recipe) and run.method in ("frozen", "finetune")
        kin: object = (run.row, run.recipe_name, run.refit) if sharing and alike else run
        groups.setdefault(kin, []).append(run)
    return [FitTask(tuple(members)) for members in groups.values()]


def obtain_fits(task: FitTask, bench: Bench, advance: Advance, wait: bool) -> str:
    """Train every run of the task that the store lacks."""
    if len(task.runs) == 1:
        return _obtain_fit(task.runs[0], bench, advance, wait)
    specs = [bench.keys.fit(run) for run in task.runs]
    name = hashlib.sha256("".join(map(key_of, specs)).encode()).hexdigest()
    with bench.store.locked(f"fits-{name}", wait=wait):
        todo = [run for run, spec in zip(task.runs, specs, strict=True) if bench.store.get(key_of(spec)) is None]
        if not _side_by_side(todo, bench, advance, wait):
            for i, run in enumerate(todo):

                def part(done: float, message: str, i: int = i) -> None:
                    advance((i + done) / len(todo), message)

                _obtain_fit(run, bench, part, wait)
    held = [bench.store.read(key_of(spec)).values.get("validation_accuracy") for spec in specs]
    said = ", ".join("–" if value is None else f"{100 * value:.1f}" for value in held)
    return f"validation {said} %"


def _obtain_fit(run: Run, bench: Bench, advance: Advance, wait: bool) -> str:
    def compute(scratch: Scratch) -> Payload:
        try:
            return train_alone(run, bench, scratch, advance)
        except Diverged as error:  # a result like any other: known, and not to be found out again at every start
            return Payload({"diverged": str(error)})

    artifact = bench.store.cached(bench.keys.fit(run), compute, device=bench.device_name, wait=wait)
    if "diverged" in artifact.values:
        return f"diverged: {artifact.values['diverged']}"
    held = artifact.values["validation_accuracy"]
    notes = "".join(f"; {note}" for note in artifact.values["notes"])
    return (f"validation {100 * held:.1f} %" if held is not None else "trained") + notes


@dataclass(frozen=True)
class _Job:
    """What a training takes: fine-tuning, from scratch, or with a frozen trunk that must run live."""

    run: Run
    model: Grafted
    parts: Sequence[Part]
    held: Part | None
    train: ImageBatches
    validation: ImageBatches | None
    before: str  # hash of the trunk
    start: dict[str, Tensor]  # the model's state, for methods that come back to it
    tuned: Tuned

    @classmethod
    def of(cls, run: Run, bench: Bench) -> _Job:
        model = grafted(run, bench)
        model.to(bench.device)
        parts, held = bench.training(run)
        train = image_batches(run, parts, bench, run.recipe.augmentation)
        validation = None if held is None else image_batches(run, [held], bench)
        before = model.trunk.state_hash()
        start = cpu_state(model) if run.method == "wise-ft" else {}
        tuned = tune(model, run.method, run.tuning, bench.blocks(run), seed=run.seed)
        return cls(run, model, parts, held, train, validation, before, start, tuned)

    def payload(self, found: Fit, bench: Bench) -> Payload:
        """What is kept of it. Raises FrozenTrunkMoved, Diverged."""
        run, model = self.run, self.model
        model.load_state_dict(found.state)
        self.tuned.after_training()
        mixed = self._mixed() if run.method == "wise-ft" else []
        if mixed:
            _, loss, accuracy = mixed[0]
            kept = {**found.kept, "validation_loss": loss, "validation_accuracy": accuracy}
            found = replace(found, curve=[*found.curve[: found.epoch - 1], kept, *found.curve[found.epoch :]])
        after = model.trunk.state_hash()
        if run.method == "frozen" and self.before != after:
            raise FrozenTrunkMoved(f"{run.label}: parameters or buffers of the frozen trunk changed in training")
        tensors = {f"head/{k}": v for k, v in model.head.state_dict().items()}
        if not run.still or run.head.kind == "rest":
            tensors |= {f"network/{k}": v for k, v in model.trunk.body.state_dict().items()}
        payload = fit_payload(run, bench, found, tensors, self.parts, self.held, (self.before, after))
        return replace(payload, values={**payload.values, "mixing": sorted(mixed)}) if mixed else payload

    def _mixed(self) -> list[tuple[float, float, float]]:
        return wise_ft(self.model, self.start, self.validation, flip=self.run.recipe.test_flip)


def train_alone(run: Run, bench: Bench, scratch: Scratch, advance: Advance) -> Payload:
    """One training, resumed if `scratch` holds a part of it; on one device, or on as many as it can and may take."""
    parts, _ = bench.training(run)
    size = devices_for(run, sum(map(len, parts)), bench.setting.devices)
    if size > 1:
        return train_on_devices(run, bench, scratch, advance, _train, size)
    return _train(run, bench, scratch, advance, ALONE)


def _train(run: Run, bench: Bench, scratch: Checkpoint, advance: Advance, team: Team) -> Payload:
    job = _Job.of(run, bench)
    wish = bench.setting.mechanism
    found = fit(
        job.model, job.train, job.validation, run.recipe,
        seed=run.seed, device=bench.device, unlabelled=_unlabelled(run, bench), tuned=job.tuned,
        mechanism="auto" if wish == "seeds" else wish, precision=bench.precision, checkpoint=scratch, team=team,
        advance=advance,
    )  # fmt: skip
    return job.payload(found, bench)


def _unlabelled(run: Run, bench: Bench) -> Unlabelled | None:
    """The training images outside the budget, changed as FixMatch does: a little, and a lot."""
    if run.recipe.semi == "none":
        return None
    weak = image_batches(run, [bench.unlabelled(run)], bench, Augment(run.recipe.augment))
    return Unlabelled(weak, weak.changed(run.recipe.augmentation))


def _side_by_side(runs: Sequence[Run], bench: Bench, advance: Advance, wait: bool) -> bool:
    """Train all in one step each, unless that does not pay; then nothing is done, and False."""
    if len(runs) < 2 or bench.setting.precision != "auto":  # joint steps know the device's usual precision alone
        return False
    began = time.perf_counter()
    jobs = [_Job.of(run, bench) for run in runs]
    models, trains = [job.model for job in jobs], [job.train for job in jobs]
    recipe = runs[0].recipe
    record: dict[str, Any] = {"mechanism": "seeds", "seeds": len(runs), "why": "asked for"}
    if bench.setting.mechanism == "auto":  # pragma: no cover - on a CUDA device alone, see fit_tasks
        timed = measured(models, trains, recipe, device=bench.device)
        if timed is None or not pays(*timed, len(runs)):
            return False
        single, joint = timed
        record |= {"why": "faster by measure", "seconds_per_step": {"one seed": single, "all seeds": joint}}
    validations = [job.validation for job in jobs]
    seeds = [run.seed for run in runs]
    found = fit_seeds(models, trains, validations, recipe, seeds, device=bench.device, advance=advance)
    seconds = round((time.perf_counter() - began) / len(runs), 3)
    for job, one in zip(jobs, found, strict=True):
        payload = _judged(job, one, bench)
        kept = Payload(payload.values, payload.tensors, {"mechanism": record, "seconds": seconds})
        bench.store.cached(
            bench.keys.fit(job.run), lambda _, kept=kept: kept, device=bench.device_name, wait=wait  # type: ignore[misc]
        )  # fmt: skip
    return True


def _judged(job: _Job, found: Fit | Diverged, bench: Bench) -> Payload:
    if isinstance(found, Diverged):
        return Payload({"diverged": str(found)})
    try:
        return job.payload(found, bench)
    except Diverged as error:
        return Payload({"diverged": str(error)})
