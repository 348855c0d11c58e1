"""Presets made out: what a preset has to know of a run, found without reading an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from regraft.data import dataset_info
from regraft.data.converted import BY_FILES
from regraft.data.folders import list_folder
from regraft.data.streams import find_stream, is_stream
from regraft.errors import DataError, StudyError
from regraft.spec import Recipe, Run, Study, Target
from regraft.spec.models import UNTRAINED
from regraft.spec.recipes import Way, resolved

__all__ = ["Task", "has_own_validation", "resolved", "size_unknown", "told", "with_presets"]

USUAL_SIZE = 224  # pixels, of pictures of any size where nothing else is said
# A mirrored 2 or arrow is another class, or none. Few-shot episodes have no augmented views, and the same fields off.
HANDED = frozenset({"digits", "mnist", "emnist", "kmnist", "qmnist", "usps", "svhn", "gtsrb"})
STILL: Mapping[str, object] = {"augment": "none", "views": 0, "test_flip": False}


@dataclass(frozen=True)
class Task:
    """What a preset is made for."""

    images: int  # that are trained on
    image_size: int  # side in pixels, as the data set has them
    network: str
    method: Way
    still: bool  # neither mirrored nor cropped

    @property
    def text(self) -> str:
        """For people: '450 images of 32 px, resnet18 from scratch'."""
        how = {"scratch": "from scratch", "finetune": "fine-tuned", "frozen": "frozen"}[self.method]
        return f"{self.images:,} images of {self.image_size} px, {self.network} {how}"


def with_presets(runs: Sequence[Run]) -> list[Run]:
    """The runs with their recipes made out. Where the number of images is not known yet, the preset stays.

    Raises StudyError for fields beside a preset that do not go with its own."""
    task_of = tasks(runs)
    made: dict[tuple[str, Recipe, Task], Recipe] = {}
    out = []
    for run in runs:
        task = task_of(run) if run.recipe.preset is not None else None
        if task is None:
            out.append(run)
            continue
        key = (run.recipe_name, run.recipe, task)
        if key not in made:
            made[key] = _made(run, task)
        out.append(run.model_copy(update={"recipe": made[key]}))
    return out


def _made(run: Run, task: Task) -> Recipe:
    try:
        return resolved(
            run.recipe, images=task.images, image_size=task.image_size, network=task.network, method=task.method,
            instead=STILL if task.still else None,
        )  # fmt: skip
    except StudyError as error:
        raise StudyError(f"row {run.row!r}: recipes.{run.recipe_name}: {error}") from None


def size_unknown(run: Run) -> StudyError:
    """The error for a run whose preset cannot be made out: the number of its images is not known."""
    name = run.target.data
    return StudyError(
        f"targets.{run.target_name}.data: the number of images of {name} is not known yet, and recipe "
        f"{run.recipe_name!r} (preset {run.recipe.preset}) is made for it; fetch it with `regraft data get {name}`, "
        "or write the recipe out"
    )


def told(study: Study, runs: Sequence[Run]) -> list[str]:
    """For people: each recipe that was made from a preset, what it was made for, and for which rows.

    runs: of `plan(study)`."""
    from regraft.study.keys import RECIPE_FIELDS

    task_of = tasks(runs)
    rows: dict[tuple[str, Recipe, Task], dict[str, None]] = {}
    for run in runs:
        if run.head.kind in UNTRAINED or study.recipe(run.recipe_name).preset is None or run.recipe.preset is not None:
            continue
        if (task := task_of(run)) is not None:
            rows.setdefault((run.recipe_name, run.recipe, task), {})[run.row] = None
    lines = ["", "Recipes made from presets:"] if rows else []
    for (name, recipe, task), users in rows.items():
        first, others = next(iter(users)), len(users) - 1
        lines.append(f"  {name} for {first!r}{f' and {others} more' if others else ''} ({task.text}):")
        usual = {"optimizer", "epochs", "batch_size", "lr", "weight_decay"}
        fields = [
            f"{field} {_value(getattr(recipe, field))}"
            for field in RECIPE_FIELDS[recipe.optimizer]
            if field in usual or getattr(recipe, field) != Recipe.model_fields[field].default
        ]
        lines.append(f"    {', '.join(fields)}")
    return lines


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else {True: "yes", False: "no"}.get(value, str(value))  # type: ignore[call-overload]


def tasks(runs: Sequence[Run]) -> Callable[[Run], Task | None]:
    """What tells the task of each of `runs`, or None where the number of its images is not known."""
    by_row = {run.row: run for run in runs}
    count = lru_cache(maxsize=None)(training_images)
    facts = lru_cache(maxsize=None)(_name_and_size)

    def task_of(run: Run) -> Task | None:
        images = count(run.target)
        if images is None:
            return None
        root = run
        while root.source.run is not None:
            root = by_row[root.source.run]
        source = root.source
        assert source.network is not None
        own = source.image_size or (source.preprocessing.image_size if source.preprocessing else None)
        name, size = facts(run.target.data)
        still = run.target.episodes is not None or name in HANDED
        return Task(images, size or own or USUAL_SIZE, source.network, _way(run), still)

    return task_of


def _way(run: Run) -> Way:
    """Blocks that start anew, with random weights below them or not, are trained as from scratch."""
    if run.still:
        return "scratch" if run.head.kind == "rest" else "frozen"
    return "scratch" if run.source.run is None and run.source.weights == "random" else "finetune"


def training_images(target: Target) -> int | None:
    """Images that a budget trains on: those that `split_budget` does not keep for validation. None: not known yet.

    Of a folder the files are counted, whether or not all of them turn out to be pictures, so that the same folder
    always gives the same recipe."""
    if target.episodes is not None:  # each head learns from these
        return target.episodes.ways * target.episodes.shots
    try:
        counts, own_validation = _counts(target.data)
    except (DataError, StudyError):  # `check` says why
        return None
    if not counts:
        return None
    share = 0.0 if own_validation else target.validation
    total = 0
    for name in target.classes or counts:  # `check` refuses a class that there is not
        size = target.per_class or max(1, round((target.fraction or 1.0) * counts.get(name, 0)))
        total += size - (0 if size == 1 or share == 0 else max(1, round(share * size)))
    return total


def _counts(name: str) -> tuple[dict[str, int], bool]:
    """Training images of each class, and whether the set has its own validation part."""
    if name.startswith("folder:"):
        listing = list_folder(name.removeprefix("folder:"))
        return dict(zip(listing.classes, listing.counts("train"), strict=True)), "validation" in listing.parts
    info = dataset_info(name)
    return dict(zip(info.classes, info.train_counts, strict=True)), has_own_validation(name)


def has_own_validation(name: str) -> bool:
    """Whether a data set, which is here, brings a validation part: none is then carved out of the budget."""
    if name.startswith("folder:"):
        return "validation" in list_folder(name.removeprefix("folder:")).parts
    return is_stream(name) and "validation" in find_stream(name).parts


def _name_and_size(name: str) -> tuple[str, int | None]:
    """Of a data set: the name it goes by, and the side of its images if they have one."""
    if name.startswith(BY_FILES):
        return name, None
    try:
        info = dataset_info(name)
    except StudyError:  # no such set
        return name, None
    return info.name, info.image_size
