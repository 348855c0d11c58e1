"""What determines each result of a study, written down as the spec that names it in the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from regraft.data import DatasetInfo, dataset_digest, dataset_info
from regraft.errors import Diverged, RunError, StudyError, WeightsError
from regraft.spec import Head, Preprocessing, Recipe, Run, Source
from regraft.spec.models import UNTRAINED
from regraft.spec.recipe import SOLVED
from regraft.spec.tuning import OWNERS, USUAL, norms_of
from regraft.study.index import Index
from regraft.study.known import WeightsFacts, cut_name, cuts_below, weights_facts
from regraft.study.plan import Cell, cells
from regraft.study.presets import size_unknown
from regraft.study.store import Artifact, Store, key_of

if TYPE_CHECKING:  # torch is imported where weights are read: the keys of a finished study need none
    from regraft.networks import Weights

Spec = dict[str, Any]

# Raised by hand when a stage's results change on purpose; older artifacts are then no longer found.
FEATURES_VERSION = 2  # 2: BatchNorm folded into convolutions, pooling kinds, augmented views
FIT_VERSION = 2  # 2: linear heads of a cell solved together; only the fields that a head and an optimizer read
SCORE_VERSION = 2  # 2: few-shot episodes


def score_spec(fit_key: str, test_images: int | None) -> Spec:
    """Of the score of a stored fit; test_images: the target's limit."""
    return {"stage": "score", "version": SCORE_VERSION, "fit": fit_key, "test": {"images": test_images}}


class NotTrained(RunError):
    """A key cannot be known yet: it depends on a run of `row` that has no result."""

    def __init__(self, message: str, row: str = "") -> None:
        super().__init__(message)
        self.row = row


class Keys:
    """Specs and keys of the runs of one plan. Reads digests and validation accuracies, never an image."""

    def __init__(self, runs: Sequence[Run], store: Store, *, offline: bool) -> None:
        self.store, self.offline = store, offline
        self.runs = tuple(runs)
        self._facts: dict[Source, WeightsFacts | WeightsError] = {}
        self._fit_keys: dict[Run, str] = {}
        self._infos: dict[str, DatasetInfo] = {}
        self._digests: dict[tuple[str, int | None], str] = {}
        self._preprocessing: dict[tuple[Source, str], Preprocessing] = {}
        self._chosen: dict[Cell, Run] = {}  # of cells whose recipes are all trained: a result never changes
        self.index = Index(store)

    @cached_property
    def by_cell(self) -> dict[Cell, list[Run]]:
        return cells(self.runs)

    @cached_property
    def _cells_of_row(self) -> dict[str, list[Cell]]:
        found: dict[str, list[Cell]] = {}
        for cell in self.by_cell:
            found.setdefault(cell[0], []).append(cell)
        return found

    # --- where the trunk comes from -------------------------------------------------------------------------

    def source_cell(self, run: Run) -> Cell | None:
        """The cell whose network is the source of `run`: same seed, or the source row's only seed."""
        row = run.source.run
        if row is None:
            return None
        of_row = self._cells_of_row[row]
        return (row, run.seed) if (row, run.seed) in self.by_cell else of_row[0]

    def parent(self, run: Run) -> Run | None:
        """The final run whose network is the source of `run`; None if the source is a network with weights.

        Raises NotTrained while its recipes are not all trained."""
        cell = self.source_cell(run)
        return None if cell is None else self.final(cell)

    def root(self, run: Run) -> Run:
        """The run at the start of the chain of sources: it names the network. Needs no result."""
        cell = self.source_cell(run)
        return run if cell is None else self.root(self.by_cell[cell][0])

    def generation(self, run: Run) -> int:
        """How many runs of the study the trunk has been through."""
        cell = self.source_cell(run)
        return 0 if cell is None else 1 + self.generation(self.by_cell[cell][0])

    def bearer(self, run: Run) -> Run:
        """The run whose source gave the trunk its weights: a frozen parent hands on the trunk it was given."""
        parent = self.parent(run)
        if parent is not None and parent.still and parent.head.kind != "rest":
            return self.bearer(parent)
        return run

    def network(self, run: Run) -> tuple[str, str]:
        """(network name, stem)."""
        source = self.root(run).source
        assert source.network is not None
        return source.network, source.stem

    def facts(self, source: Source) -> WeightsFacts:
        """Of pretrained weights or those of a file; fetched if need be and not offline. A failure is remembered."""
        if source not in self._facts:
            try:
                self._facts[source] = weights_facts(source, offline=self.offline)
            except WeightsError as error:
                self._facts[source] = error
        found = self._facts[source]
        if isinstance(found, WeightsError):
            raise found
        return found

    def weights(self, source: Source) -> Weights:
        """The weights themselves, read when they are needed."""
        from regraft.networks import obtain_weights

        self.facts(source)
        return obtain_weights(source, offline=self.offline)

    def trunk(self, run: Run) -> Spec:
        """What determines the trunk's weights at the start: a seed, a digest, or the fit it is cut from."""
        bearer = self.bearer(run)
        parent = self.parent(bearer)
        if parent is not None:
            return {"fit": self.fit_key(parent)}
        if bearer.source.weights == "random":
            return {"random": bearer.seed}
        return {"weights": self.facts(bearer.source).digest}

    def preprocessing(self, run: Run) -> Preprocessing:
        """The weights' own; for random weights a fixed one, which takes nothing from any data set."""
        root = self.root(run)
        at = root.source, root.target.data
        if at not in self._preprocessing:
            self._preprocessing[at] = self._preprocessing_of(root)
        return self._preprocessing[at]

    def _preprocessing_of(self, root: Run) -> Preprocessing:
        size = root.source.image_size
        if root.source.weights == "random":
            size = size or self.info(root.target.data).image_size
            if size is None:
                raise StudyError(
                    f"sources.{root.source_name}.image_size: needed, since {root.target.data!r} has pictures of many "
                    "sizes and random weights know no size of their own (e.g. image_size: 128)"
                )
            return Preprocessing(image_size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        own = self.facts(root.source).preprocessing
        return own.model_copy(update={"image_size": size}) if size else own

    def cut(self, run: Run) -> str:
        """The cut's full name: `layer4` stands for `layer4.1`, none for everything but the classifier."""
        network, stem = self.network(run)
        return cut_name(network, run.cut, self.preprocessing(run).image_size, stem)

    def cuts(self, run: Run) -> list[str]:
        """The cuts whose features the run's head takes: one, or for head2toe all up to the run's own."""
        if run.head.kind != "head2toe":
            return [self.cut(run)]
        network, stem = self.network(run)
        return list(cuts_below(network, self.cut(run), self.preprocessing(run).image_size, stem))

    # --- what is known of the data without reading an image ---------------------------------------------------

    def info(self, name: str) -> DatasetInfo:
        if name not in self._infos or not self._infos[name].known:  # known once it has been fetched
            self._infos[name] = dataset_info(name)
        return self._infos[name]

    def digest(self, name: str, size: int | None) -> str:
        if (name, size) not in self._digests:
            self._digests[name, size] = dataset_digest(name, size)
        return self._digests[name, size]

    def data_digest(self, run: Run) -> str:
        return self.digest(run.target.data, self.decoded_size(run))

    def decoded_size(self, run: Run) -> int | None:
        """Side that pictures of many sizes are decoded to; None for sets with one size, resized on the device."""
        fixed = self.info(run.target.data).image_size
        return None if fixed is not None else self.preprocessing(run).image_size

    # --- specs ----------------------------------------------------------------------------------------------

    def features(self, run: Run, split: str, *, cut: str | None = None, view: int = 0) -> Spec:
        """Of the table of pooled features at a cut (default: the run's own); one row an image of the whole split.

        view: 0 for the images as they are, else of which augmented view."""
        network, stem = self.network(run)
        return {
            "stage": "features", "version": FEATURES_VERSION, "trunk": self.trunk(run), "network": network,
            "stem": stem, "cut": cut or self.cut(run), "pool": run.head.pool, "data": self.data_digest(run),
            "split": split, "preprocessing": self.preprocessing(run).model_dump(mode="json"),
            "augment": {**_augment(run.recipe), "view": view} if view else None,
        }  # fmt: skip

    def fit(self, run: Run) -> Spec:
        if run.recipe.preset is not None:
            raise size_unknown(run)
        network, stem = self.network(run)
        target = run.target
        return {
            "stage": "fit", "version": FIT_VERSION, "trunk": self.trunk(run), "network": network, "stem": stem,
            "cut": self.cut(run), "method": run.method, "head": _read_fields(run.head, HEAD_FIELDS[run.head.kind]),
            "preprocessing": self.preprocessing(run).model_dump(mode="json"),
            "data": {
                "digest": self.data_digest(run), "classes": target.classes, "per_class": target.per_class,
                "fraction": None if target.fraction == 1.0 else target.fraction, "validation": target.validation,
                "episodes": None if target.episodes is None else target.episodes.model_dump(mode="json"),
                **({"unlabelled": True} if run.recipe.semi != "none" else {}),
            },
            "recipe": _read_fields(run.recipe, RECIPE_FIELDS[run.recipe.optimizer]), "seed": run.seed,
            "refit": run.refit, **self._head_start(run), **_tuning(run),
        }  # fmt: skip

    def _head_start(self, run: Run) -> Spec:
        """Where the head begins: with the head of a fit, or drawn anew for a trunk that other runs have trained."""
        if run.head.start == "source":
            parent = self.parent(run)
            return {} if parent is None else {"head_start": self.fit_key(parent)}
        drawn = run.head.kind not in UNTRAINED and run.recipe.optimizer not in SOLVED  # others have an optimum
        generation = self.generation(run)
        return {"generation": generation} if drawn and generation else {}

    def fit_key(self, run: Run) -> str:
        if run not in self._fit_keys:
            self._fit_keys[run] = key_of(self.fit(run))
        return self._fit_keys[run]

    def score(self, run: Run) -> Spec:
        return score_spec(self.fit_key(run), run.target.test_images)

    def score_key(self, run: Run) -> str:
        return key_of(self.score(run))

    # --- selection ------------------------------------------------------------------------------------------

    def fitted(self, run: Run) -> Artifact:
        """The stored fit. Raises NotTrained, or Diverged if that is how its training ended."""
        artifact = self.index.get(self.fit_key(run))
        if artifact is None:
            raise NotTrained(f"{run.label} has not been trained", run.row)
        if "diverged" in artifact.values:
            raise Diverged(artifact.values["diverged"])
        return artifact

    def chosen(self, cell: Cell) -> Run:
        """The cell's run with the best accuracy on validation; the lower loss, then the earlier recipe, on a tie.

        Recipes that diverged are out of the choice. Raises Diverged if all did, NotTrained if one is not trained."""
        candidates = self.by_cell[cell]
        if len(candidates) == 1:
            return candidates[0]
        if cell in self._chosen:
            return self._chosen[cell]
        merits: dict[Run, tuple[float, float]] = {}
        reason = ""
        for run in candidates:
            try:
                values = self.fitted(run).values
            except Diverged as error:
                reason = str(error)
                continue
            merits[run] = values["validation_accuracy"], -values["validation_loss"]
        if not merits:
            raise Diverged(f"all {len(candidates)} recipes diverged; the last: {reason}")
        self._chosen[cell] = max(merits, key=merits.__getitem__)
        return self._chosen[cell]

    def final(self, cell: Cell) -> Run:
        """The run that is scored for the cell: the chosen one, refitted if its recipe says so. Errors as `chosen`."""
        chosen = self.chosen(cell)
        return chosen.model_copy(update={"refit": True}) if chosen.recipe.refit else chosen


POOLED = ("kind", "pool")
HEAD_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": POOLED, "mlp": (*POOLED, "hidden", "dropout"), "rest": ("kind",), "prototype": POOLED,
    "knn": (*POOLED, "neighbours"), "head2toe": (*POOLED, "share", "lasso"),
}  # fmt: skip
STEPPED = tuple(name for name in Recipe.model_fields if name not in ("refit", "preset"))
CHANGED = ("augment", "policy", "cutout")
RECIPE_FIELDS: dict[str, tuple[str, ...]] = {
    "sgd": STEPPED, "sgdw": STEPPED, "adamw": tuple(name for name in STEPPED if name != "momentum"),
    "lbfgs": ("optimizer", "epochs", "weight_decay", *CHANGED, "views"),
    "ridge": ("optimizer", "weight_decay", *CHANGED, "views"), "none": ("optimizer",),
}  # fmt: skip
# Fields younger than version 2 of the fit: named only where they are used, so that they change no older key.
YOUNGER = ("policy", "cutout", "mixup", "cutmix", "ema", "sam", "semi", "threshold", "ratio", "test_flip", "patience")


def _tuning(run: Run) -> Spec:
    """What of the method's details determines a result; nothing where they are the usual ones."""
    own = {name: getattr(run.tuning, name) for name, owner in OWNERS.items() if owner == run.method}
    usual = norms_of(run.method, USUAL)
    found = {**own, **({"norms": run.norms} if run.norms != usual else {})}
    return {"tuning": found} if found else {}


@lru_cache(maxsize=4096)
def _read_fields(part: Head | Recipe, names: tuple[str, ...]) -> Spec:
    """What of a head or recipe determines a result: the others are never read, and change no key. Not to be changed."""
    fields = type(part).model_fields
    unused = {name for name in YOUNGER if name in fields and getattr(part, name) == fields[name].default}
    if isinstance(part, Recipe) and part.semi == "none":
        unused |= {"threshold", "ratio"}
    return part.model_dump(mode="json", include=set(names) - unused)


def _augment(recipe: Recipe) -> Spec:
    """Of an augmented view."""
    younger = {"policy": recipe.policy, "cutout": recipe.cutout}
    return {"kind": recipe.augment, **{name: value for name, value in younger.items() if value not in ("none", 0.0)}}


def cacheable(run: Run) -> bool:
    """Whether the head can be trained on cached features: nothing random happens before or in a frozen trunk, or
    only a number of augmented views."""
    return run.still and run.head.pools and not run.recipe.live
