"""What determines each result of a study, written down as the spec that names it in the store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from regraft.data import DatasetInfo, dataset_digest, dataset_info
from regraft.errors import Diverged, RunError, StudyError, WeightsError
from regraft.networks import Weights, head_on_pooled, obtain_weights, resolve_cut
from regraft.spec import Preprocessing, Run, Source
from regraft.study.plan import Cell, cells
from regraft.study.store import Artifact, Store, key_of

Spec = dict[str, Any]

# Raised by hand when a stage's results change on purpose; older artifacts are then no longer found.
FEATURES_VERSION = 1
FIT_VERSION = 1
SCORE_VERSION = 1


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
        self._weights: dict[Source, Weights | WeightsError] = {}
        self._fit_keys: dict[Run, str] = {}
        self._infos: dict[str, DatasetInfo] = {}
        self._digests: dict[tuple[str, int | None], str] = {}

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
        """The chosen run whose network is the source of `run`; None if the source is a network with weights.

        Raises NotTrained while its recipes are not all trained."""
        cell = self.source_cell(run)
        return None if cell is None else self.chosen(cell)

    def root(self, run: Run) -> Run:
        """The run at the start of the chain of sources: it names the network. Needs no result."""
        cell = self.source_cell(run)
        return run if cell is None else self.root(self.by_cell[cell][0])

    def bearer(self, run: Run) -> Run:
        """The run whose source gave the trunk its weights: a frozen parent hands on the trunk it was given."""
        parent = self.parent(run)
        if parent is not None and parent.method == "frozen" and parent.head.kind != "rest":
            return self.bearer(parent)
        return run

    def network(self, run: Run) -> tuple[str, str]:
        """(network name, stem)."""
        source = self.root(run).source
        assert source.network is not None
        return source.network, source.stem

    def weights(self, source: Source) -> Weights:
        """Pretrained weights or those of a file; fetched if need be and not offline. A failure is remembered."""
        if source not in self._weights:
            try:
                self._weights[source] = obtain_weights(source, offline=self.offline)
            except WeightsError as error:
                self._weights[source] = error
        found = self._weights[source]
        if isinstance(found, WeightsError):
            raise found
        return found

    def trunk(self, run: Run) -> Spec:
        """What determines the trunk's weights at the start: a seed, a digest, or the fit it is cut from."""
        bearer = self.bearer(run)
        parent = self.parent(bearer)
        if parent is not None:
            return {"fit": self.fit_key(parent)}
        if bearer.source.weights == "random":
            return {"random": bearer.seed}
        return {"weights": self.weights(bearer.source).digest}

    def preprocessing(self, run: Run) -> Preprocessing:
        """The weights' own; for random weights a fixed one, which takes nothing from any data set."""
        root = self.root(run)
        size = root.source.image_size
        if root.source.weights == "random":
            size = size or self.info(root.target.data).image_size
            if size is None:
                raise StudyError(
                    f"sources.{root.source_name}.image_size: needed, since {root.target.data!r} has pictures of many "
                    "sizes and random weights know no size of their own (e.g. image_size: 128)"
                )
            return Preprocessing(image_size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        own = self.weights(root.source).preprocessing
        return own.model_copy(update={"image_size": size}) if size else own

    def cut(self, run: Run) -> str:
        """The cut's full name: `layer4` stands for `layer4.1`, none for everything but the classifier."""
        network, stem = self.network(run)
        return resolve_cut(network, run.cut, self.preprocessing(run).image_size, stem=stem).name

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

    def features(self, run: Run, split: str) -> Spec:
        """Of the table of pooled features at the run's cut; one row an image of the whole split."""
        network, stem = self.network(run)
        return {
            "stage": "features", "version": FEATURES_VERSION, "trunk": self.trunk(run), "network": network,
            "stem": stem, "cut": self.cut(run), "pool": "average", "data": self.data_digest(run),
            "split": split, "preprocessing": self.preprocessing(run).model_dump(mode="json"),
        }  # fmt: skip

    def fit(self, run: Run) -> Spec:
        network, stem = self.network(run)
        target = run.target
        return {
            "stage": "fit", "version": FIT_VERSION, "trunk": self.trunk(run), "network": network, "stem": stem,
            "cut": self.cut(run), "method": run.method, "head": run.head.model_dump(mode="json"),
            "preprocessing": self.preprocessing(run).model_dump(mode="json"),
            "data": {
                "digest": self.data_digest(run), "classes": target.classes, "per_class": target.per_class,
                "fraction": None if target.fraction == 1.0 else target.fraction, "validation": target.validation,
            },
            "recipe": run.recipe.model_dump(mode="json"), "seed": run.seed,
        }  # fmt: skip

    def fit_key(self, run: Run) -> str:
        if run not in self._fit_keys:
            self._fit_keys[run] = key_of(self.fit(run))
        return self._fit_keys[run]

    def score(self, run: Run) -> Spec:
        return {
            "stage": "score", "version": SCORE_VERSION, "fit": self.fit_key(run),
            "test": {"images": run.target.test_images},
        }  # fmt: skip

    def score_key(self, run: Run) -> str:
        return key_of(self.score(run))

    # --- selection ------------------------------------------------------------------------------------------

    def fitted(self, run: Run) -> Artifact:
        """The stored fit. Raises NotTrained, or Diverged if that is how its training ended."""
        artifact = self.store.get(self.fit_key(run))
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
        return max(merits, key=merits.__getitem__)


def cacheable(run: Run) -> bool:
    """Whether the head can be trained on cached features: nothing random happens before or in a frozen trunk."""
    return run.method == "frozen" and head_on_pooled(run.head) and run.recipe.augment == "none"
