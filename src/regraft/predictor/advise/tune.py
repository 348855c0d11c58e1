"""Fine-tuning of the best network, or training from scratch, where the time allows it."""

from __future__ import annotations

from regraft.errors import Diverged
from regraft.learn.hardware import choose_device
from regraft.predictor.advise.clock import TUNE, Clock, OutOfTime
from regraft.predictor.advise.explore import RECIPES, VALIDATION, Choice, Explored, Place
from regraft.show.text import duration
from regraft.spec import Row, Run, Study, Target
from regraft.study.costs import BACKWARD, measure_flops_per_second
from regraft.study.fits import FitTask, obtain_fits

RECIPE = "fast"  # the shipped preset; it knows the number of pictures
SEEDS = 3  # at most: each is a training
OVERHEAD = 1.5  # of a training step, over the forward and backward passes alone: augmentation, updates, validation


def tune(found: Explored, place: Place, pictures: int, clock: Clock) -> None:
    """Train the best network as a whole, seed by seed, while there is time; else say how long it would take.

    pictures: training pictures."""
    best = found.frozen
    study = _study(best, place)
    runs, bench = place.bench(study)
    seconds = _seconds(best, runs[0], pictures, found, place)
    what = "training from scratch" if best.source.weights == "random" else f"fine-tuning {best.trunk.name}"
    accuracies, losses, spent = [], [], 0.0
    for run in runs:
        if clock.left(TUNE) < max(seconds, spent):
            break
        began = clock.spent
        try:
            obtain_fits(FitTask((run,)), bench, clock.stops(TUNE, what), True)
            values = bench.keys.fitted(run).values
        except (OutOfTime, Diverged) as error:
            found.notes.append(str(error))
            break
        spent = clock.spent - began
        accuracies.append(float(values["validation_accuracy"]))
        losses.append(float(values["validation_loss"]))
    if accuracies:
        found.choices.append(
            Choice(study.rows[0], RECIPE, best.source, best.trunk, tuple(accuracies), tuple(losses), spent)
        )
    elif not any(note.startswith(what) for note in found.notes):
        found.notes.append(
            f"{what} was not tried: one training would take about {duration(seconds)} here. Give more time "
            f"(--minutes {max(2, round((seconds * 2 / (TUNE - 0.5)) / 60 + 1)):d}), or a machine with a GPU."
        )


def _study(best: Choice, place: Place) -> Study:
    row = Row(name="fine-tuned", source="trunk", method="finetune", target="all", recipe=(RECIPE,))
    return Study(
        study="advise", seeds=place.seeds[:SEEDS], sources={"trunk": best.source}, rows=[row], recipes=RECIPES,
        targets={"all": Target(data=place.data, validation=VALIDATION)},
    )  # fmt: skip


def _seconds(best: Choice, run: Run, pictures: int, found: Explored, place: Place) -> float:
    """Of one training, from the measured seconds of a forward pass, or from FLOPs where all features were there."""
    forward = found.seconds_a_picture.get(best.trunk.name, 0.0)
    if forward <= 0:
        forward = best.trunk.flops / measure_flops_per_second(str(choose_device(place.device)))
    steps = run.recipe.epochs * pictures * (1 - VALIDATION)
    return steps * forward * BACKWARD * OVERHEAD
