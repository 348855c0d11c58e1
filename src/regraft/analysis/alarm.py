"""Alarms: trained cells that are likely broken, what was seen, and the causes that checks find."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special  # scipy.stats takes half a second to import

from regraft.analysis.causes import MOST_NAMED, Cause, find_causes
from regraft.study.diagnose import Evidence, gather
from regraft.study.results import Cell, Results
from regraft.study.store import Store

CHANCE_LEVEL = 0.01  # p above this: accuracy is not clearly above chance
MOSTLY_RIGHT = 0.8  # of the training images
MIN_VALIDATION_IMAGES = 50  # with fewer, "not above chance" says nothing about a network


@dataclass(frozen=True)
class Alarm:
    """Something about one cell that makes its number doubtful."""

    row: str
    seed: int
    kind: str  # a key of SEEN
    message: str
    causes: tuple[Cause, ...] = ()  # that the checks found, as the message tells them


# kind -> what was seen. Filled with the cell's numbers.
SEEN = {
    "nan": "not-a-number or infinity in {where}.",
    "diverged": (
        "training loss went from {first:.3g} to {last:.3g}, where guessing among {classes} classes gives {guess:.3g}."
    ),
    "flat": (
        "training loss stayed at {last:.3g} for {epochs} epochs, where guessing among {classes} classes "
        "gives {guess:.3g}: it never started learning."
    ),
    "chance": (
        "accuracy {accuracy:.1f} % of {test_images:,} test images is not clearly above chance, "
        "{chance:.1f} % ({test} p = {p:.2g})."
    ),
    "memorised": (
        "accuracy on training images is {train:.1f} %, on validation {validation:.1f} %, which is not above "
        "chance, {chance:.1f} %."
    ),
}

# kind -> what it usually is, where no check found a cause or the fit is not at hand.
USUAL = {
    "nan": (
        "Likely causes: learning rate too high, reduced precision overflowing. Check: lower `lr` (now recipe "
        "{recipe!r}) by 10 times, add `warmup`."
    ),
    "diverged": (
        "Likely causes: learning rate too high, no warm-up. Check: lower `lr` (now recipe {recipe!r}) by 3 to 10 "
        "times, add `warmup`."
    ),
    "flat": (
        "Likely causes: learning rate far too low or too high, trunk output constant. Check: a recipe with another "
        "`lr`, and the input's normalisation."
    ),
    "chance": (
        "Likely causes: wrong normalisation or resolution for the weights, labels in another order, a recipe that "
        "never started learning. Check: image size {image_size} px against what the weights expect, the loss curve, "
        "and more epochs or another `lr`."
    ),
    "memorised": (
        "Likely causes: labels do not belong to the images, or too few images ({train_images:,}) for training this "
        "many layers. Check: labels of a few images, a frozen trunk, augmentation."
    ),
}


def chance_p(accuracy: float, n: int, chance: float) -> float:
    """One-sided exact binomial test: probability of at least this accuracy on n images by guessing."""
    return float(special.bdtrc(round(accuracy * n) - 1, n, chance))


def _p_of_guessing(cell: Cell) -> float:
    if cell.episodes is None or not cell.episode_deviation:
        return chance_p(cell.accuracy, cell.test_images, cell.chance)
    error = cell.episode_deviation / math.sqrt(cell.episodes)
    return float(special.stdtr(cell.episodes - 1, -(cell.accuracy - cell.chance) / error))


def alarm_kinds(results: Results) -> dict[tuple[str, int], tuple[str, ...]]:
    """(row, seed) -> kinds of its alarms, of the cells that have any, in their order. From the cells' numbers alone:
    cheap, where `alarms` looks for causes in the store."""
    found = {(cell.row, cell.seed): tuple(kind for kind, _ in _findings(cell)) for cell in results.cells}
    return {cell: kinds for cell, kinds in found.items() if kinds}


def alarms(results: Results, store: Store | None = None) -> list[Alarm]:
    """Every alarm of every cell with its causes, in the order of the cells: those of `alarm_kinds`.

    store: where the fits are, of which the causes are found; default: the one that the results were read from."""
    raised = [(cell, findings) for cell in results.cells if (findings := _findings(cell))]
    place = store or results.store
    evidence = gather(results, [cell for cell, _ in raised], place) if place is not None else {}
    return [
        _alarm(cell, kind, facts, evidence.get((cell.row, cell.seed)), first=i == 0)
        for cell, findings in raised
        for i, (kind, facts) in enumerate(findings)
    ]


def _alarm(cell: Cell, kind: str, facts: dict[str, object], evidence: Evidence | None, *, first: bool) -> Alarm:
    """The alarm with its message. A cell's causes are told in full with its first alarm, by name with the others."""
    causes = tuple(find_causes(cell, evidence)[:MOST_NAMED])
    if not causes:
        why = USUAL[kind].format(**facts)
        if evidence is not None:
            why = f"No check of input, weights and steps found a cause. {why}"
    elif first:
        why = f"Likely cause: {causes[0].text}" + "".join(f" Also found: {cause.text}" for cause in causes[1:])
    else:
        why = f"Likely cause, as above: {causes[0].name}."
    return Alarm(cell.row, cell.seed, kind, f"{SEEN[kind].format(**facts)} {why}", causes)


def _findings(cell: Cell) -> list[tuple[str, dict[str, object]]]:
    """(kind, numbers for its message) of one cell."""
    losses = [epoch["train_loss"] for epoch in cell.curve if "train_loss" in epoch]
    if where := _not_finite(cell, losses):
        return [("nan", {"where": where, "recipe": cell.recipe})]
    found: list[tuple[str, dict[str, object]]] = []
    guess = math.log(cell.classes)  # cross-entropy of guessing evenly, nats
    of_loss = {"epochs": len(losses), "classes": cell.classes, "guess": guess, "recipe": cell.recipe}
    if losses and _diverged(cell, losses, guess):
        found.append(("diverged", {**of_loss, "first": losses[0], "last": losses[-1]}))
    elif len(losses) >= 3 and losses[-1] > 0.97 * losses[0] and losses[-1] > 0.9 * guess:
        found.append(("flat", {**of_loss, "last": losses[-1]}))
    chance = 100 * cell.chance
    if (p := _p_of_guessing(cell)) > CHANCE_LEVEL:
        facts = {"accuracy": 100 * cell.accuracy, "test_images": cell.test_images, "chance": chance, "p": p}
        test = "exact binomial" if cell.episodes is None else f"t over {cell.episodes:,} episodes"
        found.append(("chance", {**facts, "test": test, "image_size": cell.image_size}))
    if _memorised(cell):
        assert cell.train_accuracy is not None
        assert cell.validation_accuracy is not None
        train, validation = 100 * cell.train_accuracy, 100 * cell.validation_accuracy
        facts = {"train": train, "validation": validation, "chance": chance}
        found.append(("memorised", {**facts, "train_images": cell.train_images}))
    return found


def _not_finite(cell: Cell, losses: list[float]) -> str:
    """Names the first number that is NaN or infinite; "" if none is."""
    named = [("accuracy", cell.accuracy), ("validation accuracy", cell.validation_accuracy)]
    named += [("train accuracy", cell.train_accuracy)]
    named += [(f"the training loss of epoch {i + 1}", loss) for i, loss in enumerate(losses)]
    return next((name for name, value in named if value is not None and not math.isfinite(value)), "")


def _diverged(cell: Cell, losses: list[float], guess: float) -> bool:
    """Whether the loss rose above that of guessing, or never came down from far above it.

    A head that is right but for a few far misses has a high loss too, and a high accuracy."""
    rose = len(losses) >= 2 and losses[-1] > max(1.2 * losses[0], 1.2 * guess)
    wrong = cell.train_accuracy is not None and cell.train_accuracy < MOSTLY_RIGHT
    return rose or (wrong and losses[-1] > 2 * guess)


def _memorised(cell: Cell) -> bool:
    """Training images learnt at least half-way from chance to perfect, validation not above chance."""
    if cell.train_accuracy is None or cell.validation_accuracy is None:
        return False
    high = cell.train_accuracy >= (1 + cell.chance) / 2
    return (
        high
        and cell.validation_images >= MIN_VALIDATION_IMAGES
        and chance_p(cell.validation_accuracy, cell.validation_images, cell.chance) > CHANCE_LEVEL
    )
