"""What a study may say: frozen, validated models. YAML and Python give the same object and the same checks."""

from __future__ import annotations

from collections.abc import Hashable
from string import Formatter
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from regraft.spec.base import Model, as_number
from regraft.spec.text import ClassName, Name, Text, shown
from regraft.spec.tuning import USUAL, Method, Tuning, check_tuning

Pooling = Literal["average", "average-max", "grid-2", "grid-3", "grid-4"]
UNTRAINED = ("prototype", "knn")  # heads that are read off the training features
MOST_IMAGES = 10**9
MOST_DRAWN = 10**8  # images of all episodes of a seed: their positions are held in memory
GRID_FIELDS = ("source", "cut", "method", "head", "target")
H = TypeVar("H", bound=Hashable)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | int | float | dict) or value is None else value


def _distinct(values: tuple[H, ...]) -> tuple[H, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"these must differ from each other, got {shown(list(values))}")
    return values


Distinct = AfterValidator(_distinct)
Seed = Annotated[int, BeforeValidator(as_number), Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_as_list), Field(min_length=1), Distinct]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Field(min_length=1), Distinct]
Share = Annotated[float, BeforeValidator(as_number)]
Choices = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Distinct]


class Preprocessing(Model):
    """What a set of weights expects of an image: travels with the weights, so that it cannot be mismatched."""

    image_size: int = Field(ge=1, le=4096, description="side of the square input in pixels")
    mean: tuple[Share, Share, Share] = Field(description="per channel, in [0, 1] units, subtracted")
    std: tuple[Share, Share, Share] = Field(description="per channel, in [0, 1] units, divided by")
    channels: Literal["rgb", "bgr"] = Field(default="rgb", description="order the network expects")
    interpolation: Literal["bilinear", "bicubic"] = Field(default="bilinear", description="when images are resized")

    @model_validator(mode="after")
    def _positive(self) -> Preprocessing:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self


class Source(Model):
    """Where the trunk comes from: a network with weights, or another run of the same study."""

    network: Name | None = Field(default=None, description="torchvision or timm name; see `regraft cuts NAME`")
    weights: Name = Field(
        default="random",
        pattern=r"^(random|pretrained(:.+)?|file:.+)$",
        description="random | pretrained | pretrained:TAG | file:PATH (safetensors or a state dict)",
    )
    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet", description="cifar: 3x3 stride-1 first convolution, no max-pooling (ResNets only)"
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="default: the weights' own; for random weights the data set's own",
    )
    preprocessing: Preprocessing | None = Field(
        default=None, description="what `file:` weights expect; pretrained weights bring their own"
    )
    run: Name | None = Field(
        default=None, description="name of a row of this study whose trained network is the source"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        if (self.network is None) == (self.run is None):
            raise ValueError("give exactly one of `network` (with weights) or `run` (a row of this study)")
        if self.run is not None and self.model_fields_set - {"run"}:
            extra = ", ".join(sorted(self.model_fields_set - {"run"}))
            raise ValueError(f"a source that is a run takes network and preprocessing from it; remove {extra}")
        if self.preprocessing is not None and not self.weights.startswith("file:"):
            raise ValueError("`preprocessing` belongs to `file:` weights; other weights bring their own")
        if self.weights.startswith("file:") and self.preprocessing is None:
            raise ValueError(
                "weights from a file need `preprocessing` (image_size, mean, std): "
                "the wrong normalisation is the most common cause of chance-level accuracy"
            )
        return self


class Episodes(Model):
    """Few-shot episodes: in each, a head learns `shots` images of each of `ways` classes and answers `queries` of each.

    Support images come out of the training split, queries out of the test split."""

    ways: int = Field(default=5, ge=2, le=1000, description="classes of an episode, drawn anew for each")
    shots: int = Field(default=5, ge=1, le=1000, description="labelled training images of each of its classes")
    queries: int = Field(default=15, ge=1, le=1000, description="test images of each of its classes")
    count: int = Field(default=1000, ge=2, le=1_000_000, description="episodes a seed")

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Episodes:
        if (images := self.ways * max(self.shots, self.queries) * self.count) > MOST_DRAWN:
            raise ValueError(
                f"{self.count:,} episodes of {self.ways} ways draw {images:,} images, more than {MOST_DRAWN:,}; "
                "take fewer episodes: a thousand give an interval of about half a point"
            )
        return self


class Target(Model):
    """A data set and a budget of labelled images; the validation part is carved out of that budget."""

    data: Name = Field(
        description="cifar10, cifar100, digits, any torchvision set, folder:PATH, "
        "parquet:PATH, webdataset:PATTERN, or hf:OWNER/NAME"
    )
    per_class: int | None = Field(default=None, ge=1, le=MOST_IMAGES, description="labelled images per class")
    fraction: float | None = Field(default=None, gt=0, le=1, description="share of each class of the training split")
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2), Distinct] | None = Field(
        default=None, description="only these classes, in this order"
    )
    validation: float = Field(default=0.1, ge=0, le=0.5, description="share of the budget kept for validation")
    test_images: int | None = Field(
        default=None,
        ge=1,
        le=MOST_IMAGES,
        description="score only this many test images (stratified, the same for every run)",
    )
    episodes: Episodes | None = Field(
        default=None, description="few-shot episodes instead of one budget: ways, shots, queries, count"
    )
    unlabelled: bool = Field(
        default=False,
        description="training images outside the budget may be used without their labels, by recipes with "
        "`semi: fixmatch` or `flexmatch`",
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Target:
        if self.per_class is not None and self.fraction is not None:
            raise ValueError("give `per_class` or `fraction`, not both (neither means all images)")
        if self.episodes is not None and (given := {"per_class", "fraction", "test_images"} & self.model_fields_set):
            raise ValueError(f"`episodes` say themselves how many images they take; remove {', '.join(sorted(given))}")
        return self

    @model_validator(mode="after")
    def _unlabelled_rest(self) -> Target:
        if self.unlabelled and (self.budget == "all" or self.episodes is not None):
            raise ValueError("`unlabelled` images are those outside the budget; give `per_class` or `fraction`")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether any image is kept for validation. A folder's own validation part is not known here."""
        if self.episodes is not None:
            return False
        return self.validation > 0 and (
            self.per_class != 1 or self.data.startswith(("folder:", "parquet:", "webdataset:", "hf:"))
        )

    @property
    def budget(self) -> str:
        """For tables: 'all', '10 %', '50 per class', '5-way 1-shot'."""
        if self.episodes is not None:
            return f"{self.episodes.ways}-way {self.episodes.shots}-shot"
        if self.per_class is not None:
            return f"{self.per_class} per class"
        return "all" if self.fraction in (None, 1.0) else f"{100 * self.fraction:g} %"


class Head(Model):
    """What is grafted on the trunk."""

    kind: Literal["linear", "mlp", "rest", "prototype", "knn", "head2toe"] = Field(
        default="linear",
        description="rest: the network's remaining blocks, re-initialised, and a new classifier; prototype: cosine to "
        "the classes' mean features; knn: cosine nearest neighbours; head2toe: a linear head on features selected "
        "from all cuts up to this one (Evci et al. 2022)",
    )
    pool: Pooling = Field(
        default="average",
        description="how a map becomes a vector: its average; average and maximum; averages over a grid of cells",
    )
    hidden: int = Field(default=256, ge=1, le=65536, description="width of the mlp's hidden layer")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the last layer of the mlp")
    neighbours: int = Field(default=10, ge=1, le=100_000, description="of the knn head")
    share: float = Field(default=0.1, gt=0, le=1, description="of all features that the head2toe head keeps at most")
    lasso: float = Field(
        default=1e-3, ge=0, le=1000, description="group penalty by which the head2toe head ranks features"
    )

    start: Literal["random", "source"] = Field(
        default="random",
        description="source: begin with the head of the source run (the same classes and cut); fine-tuned after a "
        "linear probe, this is LP-FT (Kumar et al. 2022)",
    )

    @model_validator(mode="after")
    def _own_fields(self) -> Head:
        owners = {"hidden": "mlp", "dropout": "mlp", "neighbours": "knn", "share": "head2toe", "lasso": "head2toe"}
        for field in sorted(self.model_fields_set & owners.keys()):
            if self.kind != owners[field] and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"`{field}` belongs to the {owners[field]} head, not to {self.kind}; remove it")
        if self.kind == "rest" and self.pool != "average":
            raise ValueError("a rest head takes the trunk's maps as they are; remove `pool`")
        if self.start == "source" and self.kind not in ("linear", "mlp"):
            raise ValueError(f"`start: source` hands on a linear or mlp head, this one is {self.kind}; remove it")
        return self

    @property
    def pools(self) -> bool:
        """Whether it sees the trunk's maps only through pooling, so that it can be trained on cached features."""
        return self.kind != "rest"

    @property
    def label(self) -> str:
        """For tables and names: 'linear', 'linear grid-2', 'knn 5'; the kind alone where all else is the default."""
        words: list[str] = [self.kind]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name != "kind" and value != field.default:
                shown = f"{value:g}" if isinstance(value, float) else str(value)
                words.append(shown if name in ("pool", "neighbours") else f"{name}={shown}")
        return " ".join(words)


NO_RECIPE = "none"  # name of the recipe of heads without training


def _short_head(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


HeadField = Annotated[Head, BeforeValidator(_short_head)]


class Row(Model):
    """One named cell of the table: run once per seed and recipe."""

    name: Name = Field(min_length=1, max_length=200, description="in tables, figures and files")
    source: Name = Field(description="name of a source")
    cut: Name | None = Field(default=None, description="last layer of the trunk; none: all but the classifier")
    method: Method = Field(
        default="finetune",
        description="frozen: only the head learns (linear probe); finetune: everything does; gradual: block after "
        "block from the head down; layerwise: lower blocks at lower rates; l2-sp: pulled towards the start; "
        "norms-only: BatchNorms and head; surgical: one block and head; first-frozen: not the first blocks; wise-ft: "
        "fine-tuned, then mixed with the start; lora: low-rank changes",
    )
    tuning: Tuning = Field(default=USUAL, description="details of the method")
    head: HeadField = Field(default=Head(), description="linear, mlp or rest; or a mapping with `kind`")
    target: Name = Field(description="name of a target")
    recipe: Choices = Field(
        default=(),
        description="one or several recipes; the best on validation is scored on test. None for prototype and knn",
    )
    seeds: Seeds | None = Field(default=None, description="instead of the study's seeds; 0 to 4294967295")
    note: Text = Field(default="", description="shown in the table: what the row is, what was made smaller")
    original: float | None = Field(default=None, ge=0, le=1, description="accuracy the original study reported")

    @model_validator(mode="after")
    def _learns_by_a_recipe(self) -> Row:
        untrained = self.head.kind in UNTRAINED
        if untrained and self.recipe:
            raise ValueError(f"a {self.head.kind} head is not trained; remove `recipe`")
        if not untrained and not self.recipe:
            raise ValueError(f"a {self.head.kind} head is trained; name one recipe or several in `recipe`")
        check_tuning(self.method, self.tuning)
        return self


def _head_list(value: object) -> object:
    return [_short_head(v) for v in value] if isinstance(value, list | tuple) else [_short_head(value)]


class Grid(Model):
    """Every combination of the lists, each a row; `name` is filled with the combination's values."""

    name: Name = Field(
        min_length=1,
        default="{source} | {cut} | {method} | {head} | {target}",
        description="fields in braces: source, cut, method, head, target",
    )
    source: Names = Field(description="one source or a list")
    cut: Annotated[tuple[Name | None, ...], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default=(None,), description="one cut or a list"
    )
    method: Annotated[tuple[Method, ...], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default=("finetune",), description="one method or a list"
    )
    tuning: Tuning = Field(default=USUAL, description="details of the method; of each only its own are used")
    head: Annotated[tuple[Head, ...], BeforeValidator(_head_list), Field(min_length=1)] = Field(
        default=(Head(),), description="one head or a list"
    )
    target: Names = Field(description="one target or a list")
    recipe: Choices = Field(
        default=(),
        description="choices for every combination with a head that learns; the best on validation is scored",
    )
    seeds: Seeds | None = Field(default=None, description="instead of the study's seeds; 0 to 4294967295")
    note: Text = Field(default="", description="shown in the table beside each of the rows")

    @field_validator("name")
    @classmethod
    def _plain_fields(cls, name: str) -> str:
        """`{source:>9}` or `{source[0]}` is a program in Python's format language; only `{source}` is a name."""
        known = f"fields: {', '.join(GRID_FIELDS)}"
        try:
            parts = list(Formatter().parse(name))
        except ValueError as error:
            raise ValueError(f"cannot fill {shown(name)} ({error}); {known}") from None
        for _, field, form, conversion in parts:
            if field is not None and field not in GRID_FIELDS:
                raise ValueError(f"cannot fill {shown(name)}: no field {shown(field)}; {known}")
            if form or conversion:
                raise ValueError(
                    f"cannot fill {shown(name)}: a field stands alone in its braces, as {{{field}}}; {known}"
                )
        return name
