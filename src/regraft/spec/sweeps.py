"""Recipes with a list where a number stands: one recipe for each, and rows that name the list name them all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from regraft.errors import StudyError

SWEPT = ("lr", "weight_decay")
MOST = 1000  # recipes out of one; a sweep has a handful
MOST_IN_ALL = 10_000
DEEPEST = 100  # lists in lists; a study has none


def expand_sweeps(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a study with every sweep written out: {"ridge": {"weight_decay": [0.1, 1]}} becomes the recipes
    "ridge weight_decay=0.1" and "ridge weight_decay=1". What is not a study's form is left for its fields to refuse."""
    recipes = data.get("recipes")
    if not isinstance(recipes, Mapping):
        return dict(data)
    written: dict[Any, Any] = {}
    names: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        expanded = _expand(name, recipe)
        if len(written) + len(expanded) > MOST_IN_ALL:
            raise StudyError(f"recipes: more than {MOST_IN_ALL:,} once their lists are written out; split the study")
        written |= expanded
        if list(expanded) != [name]:
            names[name] = list(expanded)
    if not names:
        return dict(data)
    out = {**data, "recipes": written}
    for place in ("rows", "grid"):
        if place in data:
            out[place] = _renamed(data[place], names)
    return out


def swept_from(name: str) -> str:
    """The name that a sweep had in the study file: 'ridge' of 'ridge weight_decay=0.1'; another name as it is."""
    words = name.split(" ")
    while len(words) > 1 and words[-1].startswith(tuple(f"{field}=" for field in SWEPT)):
        words.pop()
    return " ".join(words)


def _expand(name: object, recipe: object) -> dict[Any, Any]:
    if not isinstance(name, str) or not isinstance(recipe, Mapping):
        return {name: recipe}
    lists = {field: recipe[field] for field in SWEPT if isinstance(recipe.get(field), list | tuple)}
    count = 1
    for values in lists.values():
        count *= len(values)
    numbers = all(map(_is_number, itertools.chain.from_iterable(lists.values())))
    if not lists or not numbers or not 0 < count <= MOST:
        return {name: recipe}  # an empty list, an endless one or one of words is refused as no number
    out = {}
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        words = " ".join(f"{field}={_short(value)}" for field, value in chosen.items())
        out[f"{name} {words}"] = {**recipe, **chosen}
    return out


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)


def _short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _renamed(rows: object, names: Mapping[str, list[str]], depth: int = 0) -> object:
    if isinstance(rows, Mapping):
        return {**rows, "recipe": _choices(rows["recipe"], names)} if "recipe" in rows else rows
    if isinstance(rows, list | tuple) and depth < DEEPEST:
        return [_renamed(row, names, depth + 1) for row in rows]
    return rows  # a Row made in Python names its recipes itself


def _choices(value: object, names: Mapping[str, list[str]]) -> object:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return value
    return [new for name in given for new in (names.get(name, [name]) if isinstance(name, str) else [name])]
