"""pydantic's errors in the words of a study file."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from regraft.errors import StudyError, UnknownName, nearest
from regraft.spec.models import Episodes, Grid, Head, Preprocessing, Row, Source, Target
from regraft.spec.recipe import Recipe
from regraft.spec.text import shown
from regraft.spec.tuning import Tuning

MOST_ERRORS = 20
PARTS: dict[str, type[BaseModel]] = {
    "sources": Source, "targets": Target, "recipes": Recipe, "rows": Row, "grid": Grid,
}  # fmt: skip
WITHIN: dict[str, type[BaseModel]] = {
    "tuning": Tuning,
    "head": Head,
    "preprocessing": Preprocessing,
    "episodes": Episodes,
}
Place = tuple[int | str, ...]


def explain(error: ValidationError, top: Sequence[str]) -> StudyError:
    """One StudyError: for each wrong field its YAML path, what was got, what is allowed.

    top: the field names of the whole study.
    """
    items = _without_echoes(error.errors(include_url=False))[:MOST_ERRORS]
    lines = [_line(item, top) for item in items]
    kind = UnknownName if [item["type"] for item in items] == ["extra_forbidden"] else StudyError
    return kind("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])


# What other tools call a field
ELSEWHERE = {
    "learning_rate": "lr", "wd": "weight_decay", "l2": "weight_decay", "bs": "batch_size", "batch": "batch_size",
    "num_epochs": "epochs", "n_epochs": "epochs", "max_epochs": "epochs", "smoothing": "label_smoothing",
    "scheduler": "schedule", "augmentation": "augment", "ema_decay": "ema",
    "model": "network", "arch": "network", "backbone": "network",
    "pretrained": "weights", "checkpoint": "weights", "dataset": "data", "shots": "per_class", "layer": "cut",
    "seed": "seeds", "name": "study", "title": "study", "classifier": "head",
}  # fmt: skip


def path_of(place: Place) -> str:
    """("rows", 1, "name") -> rows[1].name"""
    said = [part for part in place if part != "[key]"]  # pydantic's mark for "the key itself"
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shown_key(part)}" for part in said)
    return text.lstrip(".") or "(top level)"


def shown_key(part: str) -> str:
    """A name as it stands, or quoted and shortened where it cannot be printed or is long."""
    return part if part.isprintable() and len(part) <= 80 else shown(part)


def _without_echoes(items: list[ErrorDetails]) -> list[ErrorDetails]:
    """A list whose only item is wrong is, to pydantic, also too short: the item's error says all."""
    places = [item["loc"] for item in items]

    def echoes(item: ErrorDetails) -> bool:
        depth = len(item["loc"])
        return item["type"] == "too_short" and any(p[:depth] == item["loc"] and len(p) > depth for p in places)

    return [item for item in items if not echoes(item)]


def _line(item: ErrorDetails, top: Sequence[str]) -> str:
    path, kind = path_of(item["loc"]), item["type"]
    if kind == "extra_forbidden":
        fields = _fields_at(item["loc"], top)
        name = str(item["loc"][-1])
        ours = ELSEWHERE.get(name.lower())
        hint = f"; here it is {ours!r}." if ours in fields else nearest(name, fields)
        return f"{path}: unknown field{hint} Fields: {', '.join(fields)}."
    if kind == "missing":
        return f"{path}: required, but missing."
    if kind == "value_error":
        return f"{path}: {item['msg'].removeprefix('Value error, ')}.{_hint(item)}"
    return f"{path}: {item['msg']}, got {shown(item['input'])}.{_hint(item)}"


def _hint(item: ErrorDetails) -> str:
    got, place = item["input"], item["loc"]
    if "method" in place and got == "scratch":
        return " Training from scratch is `method: finetune` with a source whose `weights` are random."
    if "method" in place and got in ("linear-probe", "probe", "linear"):
        return " A linear probe is `method: frozen` with `head: linear`."
    if len(place) == 2 and place[0] == "recipes" and isinstance(got, str):
        return f" A preset is named in the row itself, or here as {{preset: {shown(got)}}}."
    if item["type"] == "string_type" and got is not None and not isinstance(got, list | tuple | dict):
        return " In YAML, put it in quotes."
    if place == ("study",) and item["type"] == "string_pattern_mismatch":
        return " Letters, digits and . _ - are allowed, at most 80, the first a letter or digit."
    return ""


def _fields_at(place: Place, top: Sequence[str]) -> list[str]:
    """The field names allowed where `place` points; walks the models, through dicts and lists."""
    model: type[BaseModel] | None = None
    for part in place[:-1]:
        model = PARTS[str(part)] if model is None else WITHIN.get(str(part), model)
    return list(top if model is None else model.model_fields)
