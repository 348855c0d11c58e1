"""Refuse, before anything starts, what would fail after an hour."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.data import DatasetInfo
from regraft.errors import DataError, StudyError, TooFewImages, UnknownName, WeightsError, nearest
from regraft.networks import check_within, cuts_below, resolve_cut
from regraft.spec import Run, Target
from regraft.spec.models import UNTRAINED
from regraft.spec.recipe import SOLVED
from regraft.study.keys import Keys, cacheable
from regraft.study.presets import has_own_validation, size_unknown

FALLBACK_SIZE = 224  # to name a network's cuts while its weights, which know their size, are not here


def check(runs: Sequence[Run], keys: Keys) -> None:
    """Raises StudyError for unknown networks, cuts and classes, images too small or too few, and recipes that
    do not fit their method. Data and weights may still be absent: only what is known of them is used."""
    seen: set[tuple[str, str]] = set()
    for run in runs:
        if (run.row, run.recipe_name) in seen:  # seeds do not matter here
            continue
        seen.add((run.row, run.recipe_name))
        try:
            info = keys.info(run.target.data)
            if run.recipe.preset is not None:
                raise size_unknown(run)
            _check_recipe(run)
            _check_images(run, info, choices=len(keys.by_cell[run.cell]))
            _check_cut(run, keys)
        except DataError:
            continue  # a folder that is away: its rows will be missing, the others are run
        except StudyError as error:
            raise type(error)(f"row {run.row!r}: {error}") from None


def image_size(run: Run, keys: Keys) -> int:
    """Side of the network's input; a stand-in while the weights that would tell are not here."""
    try:
        return keys.preprocessing(run).image_size
    except WeightsError:
        source = keys.root(run).source
        said = source.preprocessing  # of a file, the study says it itself
        return source.image_size or (said.image_size if said else FALLBACK_SIZE)


def _check_recipe(run: Run) -> None:
    """What head, method, recipe and target can go together."""
    recipe, head, where = run.recipe, run.head, f"recipes.{run.recipe_name}"
    if run.method != "frozen" and head.kind in (*UNTRAINED, "head2toe"):
        raise StudyError(
            f"a {head.kind} head is read off the features of a frozen trunk; this row is {run.method}. "
            "Set method: frozen, or take a linear head."
        )
    if recipe.optimizer == "none" and head.kind not in UNTRAINED:
        raise StudyError(f"{where}.optimizer: none trains nothing, and a {head.kind} head must be trained; use sgd")
    if recipe.optimizer in SOLVED and (
        run.method != "frozen" or head.kind not in ("linear", "head2toe") or not cacheable(run)
    ):
        raise StudyError(
            f"{where}.optimizer: {recipe.optimizer} solves a linear head on a frozen trunk, without augmentation or "
            f"with a number of augmented `views`; this row is {run.method}, head {head.kind}, augment "
            f"{recipe.augment}, views {recipe.views}. Use sgd or adamw, or set `views`."
        )
    if (recipe.semi != "none") != run.target.unlabelled:
        raise StudyError(
            f"targets.{run.target_name}.unlabelled: {str(run.target.unlabelled).lower()}, but {where}.semi is "
            f"{recipe.semi}. A recipe with `semi` learns from unlabelled images, and a target with `unlabelled` is "
            "for such recipes alone, so that no row uses them unseen. Set both, or neither."
        )
    if recipe.semi != "none" and recipe.policy == "none" and not recipe.cutout:
        raise StudyError(
            f"{where}.semi: {recipe.semi} learns the label that it guesses of a little-changed image on the same image "
            "changed a lot; say how with `policy: rand` or `trivial`, best with a `cutout`"
        )
    if head.kind == "head2toe" and not cacheable(run):
        raise StudyError(f"{where}: a head2toe head needs cached features; set `views`, or augment: none")
    if recipe.views and not cacheable(run):
        raise StudyError(
            f"{where}.views: features of augmented views are cached for a frozen trunk and a head on pooled features; "
            f"this row is {run.method}, head {head.kind}. Leave `views` out: it is then augmented in every epoch."
        )
    if run.target.episodes is not None:
        _check_episodes(run)


def _check_block(run: Run, blocks: list[str]) -> None:
    """The block that a method names must be one of the trunk's."""
    asked = run.tuning.block or run.tuning.first
    if asked is None or any(block == asked or block.startswith(f"{asked}.") for block in blocks):
        return
    name = "block" if run.tuning.block else "first"
    raise UnknownName(
        f"tuning.{name}: the trunk has no block {asked!r}{nearest(asked, blocks)} Blocks: {', '.join(blocks)}, or what "
        "several of them begin with (layer1)."
    )


def _check_start(run: Run, parent: Run | None, keys: Keys) -> None:
    """A head that is handed on must fit where it is put."""
    if parent is None:
        raise StudyError(f"head.start: source, but source {run.source_name!r} is no run; name a source with `run:`")
    if run.method == "frozen":
        raise StudyError("head.start: source continues a head while the trunk learns too; set method: finetune")
    theirs, ours = parent.head, run.head
    same = (
        (theirs.kind, theirs.pool, theirs.hidden) == (ours.kind, ours.pool, ours.hidden)
        and (parent.target.data, parent.target.classes) == (run.target.data, run.target.classes)
        and parent.target.episodes is None
        and _resolved_cut(parent, keys) == _resolved_cut(run, keys)
    )
    if not same:
        raise StudyError(
            f"head.start: source, but the head of row {parent.row!r} ({theirs.label}, cut {parent.cut or 'all'}, "
            f"{parent.target.data}) does not fit here ({ours.kind}, cut {run.cut or 'all'}, {run.target.data}); give "
            "both rows the same kind of head, cut, data and classes"
        )


def _check_episodes(run: Run) -> None:
    """Thousands of heads on a few images each: those that are solved at once, on cached features."""
    solved = run.head.kind == "linear" and run.recipe.optimizer in SOLVED
    if run.method != "frozen" or not (solved or run.head.kind == "prototype"):
        raise StudyError(
            f"targets.{run.target_name}.episodes: few-shot episodes are answered by prototype heads, or linear heads "
            f"with optimizer ridge or lbfgs, on a frozen trunk; this row is {run.method}, head {run.head.kind}, "
            f"optimizer {run.recipe.optimizer}"
        )
    if run.recipe.views:
        raise StudyError(f"recipes.{run.recipe_name}.views: few-shot episodes have no augmented views; leave it out")


def _check_images(run: Run, info: DatasetInfo, *, choices: int) -> None:
    target, where = run.target, f"targets.{run.target_name}"
    if not info.classes:
        return  # not here yet; checked when it is
    counts = dict(zip(info.classes, info.train_counts, strict=True))
    for name in target.classes or ():
        if name not in counts:
            some = ", ".join(info.classes[:12])
            raise UnknownName(
                f"{where}.classes: {target.data} has no class {name!r}{nearest(name, counts)} "
                f"Classes: {some}{', ...' if len(counts) > 12 else ''}."
            )
    used = target.classes or info.classes
    if target.episodes is not None:
        _check_draws(target, {name: counts[name] for name in used}, where)
    if run.head.kind == "knn" and 0 < (most := _most_images(target, [counts[n] for n in used])) < run.head.neighbours:
        raise TooFewImages(
            f"head.neighbours: {run.head.neighbours} asked for, but {where} trains on {most} images; take fewer"
        )
    if target.per_class is not None:
        scarce = min(used, key=lambda name: counts[name])
        if counts[scarce] < target.per_class:
            raise TooFewImages(
                f"{where}.per_class: {target.per_class} asked for, but class {scarce!r} of {target.data} has "
                f"{counts[scarce]:,} training images; ask for at most that, or leave the class out with `classes`"
            )
        if target.per_class == 1 and target.validation > 0 and not has_own_validation(target.data):
            raise TooFewImages(
                f"{where}: of 1 image per class none can be kept for validation; set validation: 0, or take more"
            )
    chooses = choices > 1 or run.recipe.keep == "best"
    single = target.per_class is None and _labels_of_largest(target, [counts[name] for name in used]) < 2
    if chooses and single and not has_own_validation(target.data):
        raise TooFewImages(
            f"{where}: one image per class leaves none for validation, by which {choices} recipe(s) or the best epoch "
            "are to be chosen. Take a larger fraction, or one recipe with `keep: last`."
        )
    if target.test_images is not None and info.test_images and target.test_images > info.test_images:
        raise TooFewImages(
            f"{where}.test_images: {target.test_images:,} asked for, {target.data} has {info.test_images:,}"
        )


def _check_draws(target: Target, counts: dict[str, int], where: str) -> None:
    asked = target.episodes
    assert asked is not None
    if len(counts) < asked.ways:
        raise TooFewImages(
            f"{where}.episodes.ways: {asked.ways} asked for, but there are {len(counts)} classes; take fewer ways"
        )
    scarce = min(counts, key=lambda name: counts[name])
    if counts[scarce] < asked.shots:
        raise TooFewImages(
            f"{where}.episodes.shots: {asked.shots} asked for, but class {scarce!r} of {target.data} has "
            f"{counts[scarce]:,} training images; take fewer, or leave the class out with `classes`"
        )


def _most_images(target: Target, counts: Sequence[int]) -> int:
    """Training images that the budget has at most."""
    if target.per_class is not None:
        counts = [min(target.per_class, count) for count in counts]
    total = sum(round((target.fraction or 1.0) * count) for count in counts)
    return total if has_own_validation(target.data) else total - int(target.validation * total)


def _labels_of_largest(target: Target, counts: Sequence[int]) -> int:
    """Labelled images of the class that has most in the budget."""
    share = 1.0 if target.fraction is None else target.fraction
    return max(max(1, round(share * count)) for count in counts)


def _resolved_cut(run: Run, keys: Keys) -> str:
    network, stem = keys.network(run)
    return resolve_cut(network, run.cut, image_size(run, keys), stem=stem).name


def _check_cut(run: Run, keys: Keys) -> None:
    network, stem = keys.network(run)
    size = image_size(run, keys)
    point = resolve_cut(network, run.cut, size, stem=stem)
    cuts = [point.name] if run.head.kind != "head2toe" else cuts_below(network, point.name, size, stem=stem)
    for cut in cuts if run.head.pools else ():
        try:
            resolve_cut(network, cut, size, stem=stem).width(run.head.pool)
        except StudyError as error:
            raise StudyError(f"at cut {cut!r}: {error}") from None
    cell = keys.source_cell(run)
    parent = None if cell is None else keys.by_cell[cell][0]
    if run.head.start == "source":
        _check_start(run, parent, keys)
    _check_block(run, cuts_below(network, point.name, size, stem=stem))
    if parent is not None:
        check_within(network, stem, size, run.cut, source_cut=parent.cut, source_head=parent.head)
