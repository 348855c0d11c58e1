"""Why a cell is broken: checks that measure, each naming one cause with what it found and what to do about it.

They judge what `study.diagnose` gathered from the stored fit and a few training images, the training curve and the
confusion matrix. A check that has nothing to go by says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from regraft.spec import Preprocessing
from regraft.study.diagnose import Evidence
from regraft.study.norm_fit import CLEARLY
from regraft.study.results import Cell

MOST_NAMED = 3  # causes in a message
LOW_MOVE, HIGH_MOVE = 0.01, 10.0  # |trained - start| / |start| outside which no network learns
FEW_STEPS = 40
FEW_EXAMPLES = 20  # images of a class
FEWEST_ANSWERS = 50  # test images, below which a better order may be found by luck

TRAINED_WRONG = ("learning rate too high", "constant features", "BatchNorm mode")  # how a wrong input looks later on
# cause -> others that it makes appear
FOLLOWS = {
    "images": ("normalisation", "resolution", *TRAINED_WRONG),
    "normalisation": TRAINED_WRONG,
    "resolution": TRAINED_WRONG,
}


@dataclass(frozen=True)
class Cause:
    """What is wrong, by what it was found, and what to do."""

    name: str
    found: str
    fix: str

    @property
    def text(self) -> str:
        return f"{self.name}: {self.found}. Fix: {self.fix}."


def find_causes(cell: Cell, evidence: Evidence | None) -> list[Cause]:
    """The causes that the checks find, the ones nearest to the root first: a wrong input before what it leads to."""
    found = [class_order(cell, evidence)]
    if evidence is not None:
        found += [check(cell, evidence) for check in CHECKS]
    causes = [cause for cause in found if cause is not None]
    names = {cause.name for cause in causes}
    follows = {later for first, others in FOLLOWS.items() if first in names for later in others}
    return [cause for cause in causes if cause.name not in follows]


def class_order(cell: Cell, evidence: Evidence | None) -> Cause | None:
    """Whether the answers to test images, not those to training images, are right once the classes are renamed.

    Where both are, the head was not trained: features that lie in clusters look so under any head."""
    counts = np.array(cell.confusion, dtype=np.int64)
    if counts.size == 0 or counts.sum() == 0:
        return None
    from scipy.optimize import linear_sum_assignment

    true, predicted = linear_sum_assignment(counts, maximize=True)
    renamed = counts[true, predicted].sum() / counts.sum()
    by_name = np.trace(counts) / counts.sum()
    if counts.sum() < FEWEST_ANSWERS or renamed < cell.chance + 0.3 * (1 - cell.chance) or renamed - by_name < 0.25:
        return None
    stored = None if evidence is None or evidence.probe is None else evidence.probe.stored_accuracy
    learnt = cell.train_accuracy if stored is None else stored
    if learnt is not None and learnt - cell.chance < (renamed - cell.chance) / 2:
        return None
    names = cell.class_names or tuple(map(str, range(len(counts))))
    swapped = [f"{names[p]} → {names[t]}" for t, p in zip(true, predicted, strict=True) if t != p]
    shown = ", ".join(swapped[:4]) + (", ..." if len(swapped) > 4 else "")
    return Cause(
        "class order",
        f"with the answers renamed ({shown}) {100 * renamed:.1f} % of the test images are right: classes are numbered "
        "in another order in training than in the test part",
        "give both parts the same class names in the same order, and write that order down in the target's `classes`",
    )


def pictures(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the images themselves show anything."""
    probe = evidence.probe
    if probe is None:
        return None
    if probe.pixel_std < 0.01:
        return Cause(
            "images",
            f"{probe.images} training images are nearly one colour (standard deviation {probe.pixel_std:.2g} of the "
            "range from black to white)",
            "look at the images themselves; they were probably scaled to 0..1 before they were saved as bytes",
        )
    if probe.content < 0.25:
        return Cause(
            "images",
            f"the outer {100 * (1 - probe.content):.0f} % of the area of {probe.images} training images is black "
            "padding",
            "crop the images to their content, or resize them in place of padding them",
        )
    return None


def normalisation(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the weights from a file were trained on inputs of another mean or scale.

    Published weights bring their own preprocessing, and random ones expect none."""
    probe = evidence.probe
    if probe is None or evidence.weights != "file":
        return None
    recorded, first, better = evidence.recorded, probe.first_norm, probe.better
    prepared = (
        f"prepared with {_written(recorded)}, a batch has mean {probe.mean:.3g} and standard deviation {probe.std:.3g}"
    )
    if first is not None and better is not None:
        if first.total < CLEARLY or better.misfit.total > first.total - CLEARLY:
            return None
        return Cause(
            "normalisation",
            f"the inputs of the weights' first BatchNorm have {_times(math.exp(first.scale))} the standard deviation "
            f"that they had in training, and means {first.shift:.2g} standard deviations away; {prepared}",
            f"set the source's `preprocessing` to what fits best of the usual ones, {better.name} "
            f"({_written(better.preprocessing)}), or to what the weights' author states",
        )
    if abs(probe.mean) < 3 and 0.1 < probe.std < 5:
        return None
    return Cause(
        "normalisation",
        f"{prepared}, where networks are trained on about 0 and 1",
        "set the source's `preprocessing` to the mean and std that the weights were trained with, in 0..1 units"
        + (f"; published for this network: {_written(evidence.published)}" if evidence.published else ""),
    )


def resolution(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the weights were trained on larger images."""
    probe, size = evidence.probe, evidence.recorded.image_size
    if probe is None or evidence.weights == "random":
        return None
    fits = min(probe.sizes, key=probe.sizes.__getitem__, default=size)
    own = evidence.published.image_size if evidence.published is not None else None
    maps = "" if probe.side is None else f"; the last maps are {probe.side} x {probe.side} at this size"
    usual = own is not None and own >= 4 * size  # then less is enough to say so
    if fits >= 2 * size and probe.sizes[size] - probe.sizes[fits] > (0.1 if usual else 0.25):
        return Cause(
            "resolution",
            f"images go in at {size} px, but the statistics of the weights' BatchNorms fit {fits} px better (misfit "
            f"{probe.sizes[size]:.2f} against {probe.sizes[fits]:.2f}){maps}",
            f"set `image_size: {fits}`, or the size that the weights were trained at"
            + (f" ({own} px is what is published for this network)" if usual else ""),
        )
    if evidence.weights == "pretrained" and usual and (probe.side or 1) <= 1:
        return Cause(
            "resolution",
            f"images go in at {size} px, the weights were trained at {own} px{maps}",
            f"remove the source's `image_size`, so that images are enlarged to {own} px, or cut the network earlier",
        )
    return None


def constant_trunk(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the head can tell the images apart at all."""
    probe = evidence.probe
    if probe is None or probe.spread >= 1e-3:
        return None
    return Cause(
        "constant features",
        f"the trunk gives {probe.images} different images nearly the same value (they differ by {probe.spread:.1g} of "
        "its length)",
        "look at the preprocessing and at the images; if both are right, the network is dead: other weights, or a "
        "lower `lr` in the run that trained it",
    )


def nothing_trained(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether a row that fine-tunes has changed nothing."""
    probe = evidence.probe
    if probe is None or evidence.steps is None or _hopeless_rate(evidence) or evidence.method in ("frozen", "wise-ft"):
        return None  # weights mixed with those at the start may be those at the start
    if probe.head_moved == 0 and evidence.trunk_same:
        return Cause(
            "everything is frozen",
            f"after {evidence.steps:,} steps trunk and head are, bit for bit, what they were before",
            "leave at least the head out of what is frozen: `method: frozen` freezes the trunk alone, "
            "`method: finetune` nothing",
        )
    if evidence.trunk_same and probe.head_moved:
        return Cause(
            "frozen trunk",
            f"the row fine-tunes, but after {evidence.steps:,} steps the trunk is, bit for bit, what it was before",
            "unfreeze the trunk: its parameters need `requires_grad` and a place in the optimizer",
        )
    return None


def head_untrained(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the new head is in no group of the optimizer."""
    probe = evidence.probe
    if probe is None or evidence.steps is None or _hopeless_rate(evidence) or probe.head_moved != 0:
        return None
    if evidence.method == "wise-ft" or (evidence.method != "frozen" and evidence.trunk_same):
        return None  # see nothing_trained
    return Cause(
        "head missing from the optimizer",
        f"after {evidence.steps:,} steps the head's weights equal, bit for bit, their random start",
        "make the optimizer after the head is grafted, or add the head's parameters to it",
    )


def learning_rate(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the weights moved too little or too far, or the loss rose or jumped."""
    probe, rate = evidence.probe, evidence.recipe.lr
    if evidence.steps is None:
        return None
    losses = [epoch["train_loss"] for epoch in cell.curve if "train_loss" in epoch]
    moves = [] if probe is None else [move for move in (probe.head_moved, probe.trunk_moved) if move is not None]
    if moves and max(moves) < LOW_MOVE and (max(moves) > 0 or _hopeless_rate(evidence)):
        return _too_low(max(moves), losses, evidence)
    guess = math.log(cell.classes)
    signs = []
    if moves and max(moves) > HIGH_MOVE:
        signs.append(f"the weights moved by {_times(max(moves))} their own length")
    if lost := next((i + 1 for i, loss in enumerate(losses) if not math.isfinite(loss)), None):
        signs.append(f"the training loss was no finite number in epoch {lost}")
    if losses and losses[-1] > 1.2 * guess:
        signs.append(f"the training loss ended at {losses[-1]:.3g}, where guessing gives {guess:.3g}")
    if losses and not signs and losses[0] > 2 * guess and cell.accuracy < 3 * cell.chance:
        signs.append(f"the training loss of the first epoch was {losses[0]:.3g}, where guessing gives {guess:.3g}")
    if jumps := _jumps(losses):
        signs.append(f"the training loss rose in {jumps} of {len(losses) - 1} epochs by more than a tenth")
    if not signs:
        return None
    return Cause(
        "learning rate too high",
        f"at `lr` {rate:g} {' and '.join(signs)}",
        f"`lr: {_round(rate / 10)}` and `warmup: 0.1`; `regraft lr-find` measures a good one",
    )


def _too_low(moved: float, losses: list[float], evidence: Evidence) -> Cause:
    rate, flat = evidence.recipe.lr, ""
    if losses:
        flat = f"; the training loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
    # A step's length is proportional to the rate: the one by which the weights would move by a tenth.
    better = min(0.1, rate * 0.1 / moved) if moved > 0 else 0.01
    return Cause(
        "learning rate too low",
        f"{evidence.steps:,} steps at `lr` {rate:g} moved the weights by {100 * moved:.2g} % of their length{flat}",
        f"about `lr: {_round(better)}` would move them by a tenth; `regraft lr-find` measures a good one",
    )


def too_few_steps(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether training ended before it could do anything."""
    if evidence.steps is None or evidence.steps >= FEW_STEPS or _memorised(cell):
        return None
    recipe = evidence.recipe
    return Cause(
        "too few steps",
        f"{len(cell.curve)} epochs over {cell.train_images:,} images in batches of {recipe.batch_size} are "
        f"{evidence.steps} steps",
        f"`epochs: {math.ceil(len(cell.curve) * 5 * FEW_STEPS / max(1, evidence.steps))}`, or a smaller `batch_size`",
    )


def batchnorm_mode(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the network is good by its batches' statistics, and bad by the running ones that it answers with."""
    probe = evidence.probe
    if probe is None or probe.stored_accuracy is None or probe.batch_accuracy is None:
        return None
    if evidence.norms in ("source", "affine"):  # statistics that stay
        return None
    if probe.batch_accuracy - probe.stored_accuracy < 0.3:
        return None
    few = evidence.steps is not None and evidence.steps < 5 * FEW_STEPS
    return Cause(
        "BatchNorm mode",
        f"{probe.images} training images are answered right to {100 * probe.batch_accuracy:.0f} % by the statistics "
        f"of their batch, to {100 * probe.stored_accuracy:.0f} % by the stored running ones",
        f"more steps (there were {evidence.steps}, and running statistics follow by a tenth a step) or a lower `lr`"
        if few
        else "`tuning: {norms: source}` or `{norms: affine}`, by which the statistics stay with the weights, or a "
        "lower `lr`",
    )


def labels(cell: Cell, evidence: Evidence) -> Cause | None:
    """Whether the training images were learnt by heart, and nothing from them."""
    probe = evidence.probe
    if not _memorised(cell) or probe is None or probe.stored_accuracy is None:
        return None
    if probe.stored_accuracy < (1 + cell.chance) / 2:
        return None  # not learnt by the network that answers: see batchnorm_mode
    each = cell.train_images / cell.classes
    if each < FEW_EXAMPLES:
        return Cause(
            "too few images",
            f"the network answers {100 * probe.stored_accuracy:.0f} % of its training images right, {each:.0f} of each "
            "class, and no others",
            "more labelled images, a frozen trunk with pretrained weights, or augmentation",
        )
    return Cause(
        "labels that do not belong to the images",
        f"the network answers {100 * probe.stored_accuracy:.0f} % of its training images right and has learnt nothing "
        f"that holds for others, though there are {each:.0f} of each class",
        "look at a few images with their labels: were images or labels sorted or shuffled without the other?",
    )


# Nearest to the root first; a wrong input path comes before what follows from it.
CHECKS: tuple[Callable[[Cell, Evidence], Cause | None], ...] = (
    pictures, normalisation, resolution, nothing_trained, head_untrained, learning_rate, batchnorm_mode, labels,
    too_few_steps, constant_trunk,
)  # fmt: skip


def _memorised(cell: Cell) -> bool:
    """Training images learnt at least half-way from chance to perfect, validation images hardly."""
    if cell.train_accuracy is None or cell.validation_accuracy is None:
        return False
    learnt, held = (
        (accuracy - cell.chance) / (1 - cell.chance) for accuracy in (cell.train_accuracy, cell.validation_accuracy)
    )
    return learnt >= 0.5 and held < 0.2


def _hopeless_rate(evidence: Evidence) -> bool:
    """A rate by which float32 weights may not move at all."""
    return evidence.recipe.lr < 1e-6


def _jumps(losses: list[float]) -> int:
    """Epochs whose loss is more than a tenth above the one before, if they are a third of all; else 0."""
    risen = sum(after > 1.1 * before for before, after in pairwise(losses))
    return risen if len(losses) >= 4 and 3 * risen >= len(losses) - 1 else 0


def _times(factor: float) -> str:
    """0.004 -> '0.004 times', 1234.5 -> '1,230 times'."""
    return f"{float(f'{factor:.3g}'):,.0f} times" if factor >= 100 else f"{factor:.2g} times"


def _round(rate: float) -> str:
    """To one digit: 0.00123 -> '0.001'."""
    return f"{float(f'{rate:.0e}'):g}"


def _written(how: Preprocessing) -> str:
    """As a study says it."""
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (how.mean, how.std))
    return f"mean [{mean}], std [{std}]" + (", channels bgr" if how.channels == "bgr" else "")
