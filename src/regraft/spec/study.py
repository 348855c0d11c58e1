"""The study: what to compare. Names are resolved and cross-checked here, before anything heavy is imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator

from regraft.errors import StudyCycle, StudyError, UnknownName, nearest
from regraft.spec.base import Model
from regraft.spec.explain import explain, shown_key
from regraft.spec.models import UNTRAINED, Grid, Row, Seeds, Source, Target
from regraft.spec.recipe import Recipe
from regraft.spec.recipes import PRESETS
from regraft.spec.sweeps import expand_sweeps
from regraft.spec.text import Name, Text, shown
from regraft.spec.tuning import tuning_of

# A study is written by hand. What is larger than this is not one, and would take its reader more than a second or two.
MAX_FILE_BYTES = 1_000_000
MAX_NODES = 50_000  # values and keys of a file; rows written one by one have about ten each
MOST_SIXTIETHS = 9  # of a number in base 60, 1:30:00: reading very many takes the square of their count
MAX_ROWS = 20_000  # of all grids and rows together
MAX_RUNS = 100_000  # rows x seeds x recipes
MOST_NAMED = 500  # names among which the nearest is sought
MAX_CHAIN = 50  # runs that a run may stand on; a study of repeated transfer has a handful


class Study(Model):
    """What to compare: sources, targets, recipes, and the rows and grids that combine them."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="name, used for folders")
    question: Text = Field(default="", description="what the study asks, in a sentence; heads the report")
    seeds: Seeds = Field(
        default=(0, 1, 2),
        description="each seed is one repetition: its own subset, initialisation and order; 0 to 4294967295",
    )
    sources: dict[Name, Source] = Field(min_length=1, description="by name: where trunks come from")
    targets: dict[Name, Target] = Field(min_length=1, description="by name: data set and budget of labels")
    recipes: dict[Name, Recipe] = Field(
        default={}, description="by name: how to train; fast, standard and strong are there without being written"
    )
    rows: tuple[Row, ...] = Field(default=(), description="named rows, one by one")
    grid: tuple[Grid, ...] = Field(default=(), description="rows as combinations; one grid or a list of them")
    cost: Text = Field(default="", description="what a run of it takes, in words")

    _expanded: tuple[object, object, tuple[Row, ...]] | None = PrivateAttr(default=None)  # rows, grid, all rows

    @field_validator("grid", mode="before")
    @classmethod
    def _one_grid(cls, value: object) -> object:
        return [value] if isinstance(value, Mapping | Grid) else value

    def __init__(self, /, **data: Any) -> None:
        """Raises StudyError with the path of every wrong field, from Python as from YAML."""
        try:
            super().__init__(**expand_sweeps(data))
        except ValidationError as error:
            raise explain(error, list(type(self).model_fields)) from None
        _check_size(self)
        rows = self.all_rows()
        _check_names(self, rows)
        _check_cycles(self, rows)

    def all_rows(self) -> tuple[Row, ...]:
        """The explicit rows, then every combination of every grid."""
        if self._expanded is None or self._expanded[0] is not self.rows or self._expanded[1] is not self.grid:
            expanded = [row for i, grid in enumerate(self.grid) for row in _expand(grid, f"grid[{i}]")]
            self._expanded = (self.rows, self.grid, (*self.rows, *expanded))
        return self._expanded[2]

    def row(self, name: str) -> Row:
        return next(row for row in self.all_rows() if row.name == name)

    def recipe(self, name: str) -> Recipe:
        """The study's own recipe of that name, else the preset."""
        return self.recipes[name] if name in self.recipes else Recipe.model_validate({"preset": name})

    @classmethod
    def from_dict(cls, data: object, where: str = "study") -> Study:
        """Raises StudyError with the path of every wrong field."""
        if not isinstance(data, dict):
            raise StudyError(f"{where}: a study is a mapping of fields, got {type(data).__name__}")
        if odd := [key for key in data if not isinstance(key, str)]:
            raise UnknownName(f"{where}: unknown field {shown(odd[0])}. Fields: {', '.join(cls.model_fields)}.")
        try:
            return cls(**data)
        except StudyError as error:
            raise type(error)(f"{where}: {error}") from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study from a YAML file, or a shipped preset by its name (`quickstart`, `cifar-cpu`, ...)."""
        text, where = _read(path)
        try:
            data = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise StudyError(f"{where}: not valid YAML: {_short(error)}") from None
        except (RecursionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # What a tag's reader in PyYAML happens to raise: `!!timestamp x`, `!!bool x`, `!!int ""`.
            raise StudyError(f"{where}: not readable as YAML: {_short(error)}") from None
        return cls.from_dict(data, where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=100)


class _Loader(yaml.SafeLoader):
    """Safe, and stricter: a key given twice, an alias (the way to a YAML bomb), a merge key, or more than anybody
    writes by hand is refused."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1}: anchors and aliases are not used in study files")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES:,} values; use a grid, or split the study")
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag == "tag:yaml.org,2002:int" and node.value.count(":") > MOST_SIXTIETHS:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters")
        return super().construct_object(node, deep=deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: merge keys (<<) are not used in study files")
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: key {shown(key.value)} is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def presets() -> list[str]:
    """Names of the shipped studies."""
    files = resources.files("regraft.studies").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def _read(path: str | Path) -> tuple[str, str]:
    file = Path(path)
    if str(path) in presets() and not file.is_file():
        return resources.files("regraft.studies").joinpath(f"{path}.yaml").read_text("utf-8"), str(path)
    try:
        if not file.is_file():
            hint = nearest(str(path), presets())
            raise UnknownName(f"no study file or preset {str(path)!r}{hint} Presets: {', '.join(presets())}.")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise StudyError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; not a study file")
        return file.read_text("utf-8"), str(path)
    except StudyError:
        raise
    except UnicodeDecodeError:
        raise StudyError(f"{path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot read study file {str(path)!r}: {error}") from None


def _check_size(study: Study) -> None:
    """Before any row of a grid is made: a few lines of lists can ask for more rows than a memory holds."""
    rows, runs = len(study.rows), sum(len(r.seeds or study.seeds) * max(1, len(r.recipe)) for r in study.rows)
    for i, grid in enumerate(study.grid):
        size = len(grid.source) * len(grid.cut) * len(grid.method) * len(grid.head) * len(grid.target)
        if size > MAX_ROWS:
            raise StudyError(f"grid[{i}]: {size:,} combinations, more than {MAX_ROWS:,}; split the study")
        rows, runs = rows + size, runs + size * len(grid.seeds or study.seeds) * max(1, len(grid.recipe))
    if not rows:
        raise StudyError(f"study {study.study!r} has no rows: add `rows:` or a `grid:`.")
    if rows > MAX_ROWS or runs > MAX_RUNS:
        raise StudyError(
            f"{rows:,} rows with {runs:,} runs (rows x seeds x recipes), at most {MAX_ROWS:,} and {MAX_RUNS:,} are "
            "possible; split the study"
        )


def _expand(grid: Grid, where: str) -> Iterator[Row]:
    cells = itertools.product(grid.source, grid.cut, grid.method, grid.head, grid.target)
    for source, cut, method, head, target in cells:
        words = {"source": source, "cut": cut or "all", "method": method, "head": head.label, "target": target}
        try:
            row = Row(
                name=grid.name.format(**words), source=source, cut=cut, method=method,
                tuning=tuning_of(method, grid.tuning), head=head, target=target,
                recipe=() if head.kind in UNTRAINED else grid.recipe, seeds=grid.seeds, note=grid.note,
            )  # fmt: skip
        except ValidationError as error:  # of the name alone: all else was checked in the grid
            raise StudyError(f"{where}.{explain(error, [])}") from None
        yield row


def _check_names(study: Study, rows: tuple[Row, ...]) -> None:
    names: dict[str, str] = {}
    recipes = {**dict.fromkeys(PRESETS), **study.recipes}
    for i, row in enumerate(rows):
        where = f"rows[{i}]" if i < len(study.rows) else f"grid row {row.name!r}"
        if row.name in names:
            raise StudyError(
                f"{where}.name: {row.name!r} is already the name of {names[row.name]}; row names must differ "
                "(in a grid, put every varying field into `name`)"
            )
        names[row.name] = where
        used: list[tuple[str, str, Mapping[str, object]]] = [
            ("source", row.source, study.sources),
            ("target", row.target, study.targets),
            *(("recipe", name, recipes) for name in row.recipe),
        ]
        for field, name, table in used:
            if name not in table:
                raise UnknownName(f"{where}.{field}: no {field} {shown(name)}{_known(name, table)}")
        _check_choices(study, row, where)
    for name, source in study.sources.items():
        if source.run is not None and source.run not in names:
            raise UnknownName(f"sources.{shown_key(name)}.run: no row {shown(source.run)}{_known(source.run, names)}")


def _known(name: str, table: Mapping[str, object]) -> str:
    """The end of a message about a name that is not in `table`: what comes near, and some that are there."""
    some = list(table)[:MOST_NAMED]  # the nearest of thousands of names takes seconds
    listed = ", ".join(map(shown_key, sorted(some)[:20])) + (", ..." if len(table) > 20 else "")
    return f"{nearest(name, some) if len(name) <= 200 else '.'} Known: {listed}."


def _short(error: Exception) -> str:
    """A reader's message, which may quote the file."""
    text = str(error)
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def _check_choices(study: Study, row: Row, where: str) -> None:
    """Recipes and epochs are chosen on validation images, so there must be some."""
    target = study.targets[row.target]
    if target.holds_out:
        return
    refits = [name for name in row.recipe if study.recipe(name).refit]
    best = [name for name in row.recipe if study.recipe(name).keep == "best"]
    if len(row.recipe) > 1:
        choice, way = f"{len(row.recipe)} recipes to choose from", "Give one recipe"
    elif best:
        choice, way = f"{best[0]!r} keeps the best epoch on validation", "Use a recipe with `keep: last`"
    elif refits:
        choice, way = f"{refits[0]!r} trains again with the validation images", "Use a recipe without `refit`"
    else:
        return
    why, other = _no_validation(target)
    raise StudyError(
        f"{where}.recipe: {choice}, but target {row.target!r} keeps no images for validation ({why}). "
        f"{way}, or {other}."
    )


def _no_validation(target: Target) -> tuple[str, str]:
    """Why a target keeps no images for validation, and what would help."""
    if target.episodes is not None:
        return "few-shot episodes", "give the target a budget"
    if target.validation == 0:
        return "validation: 0", "set validation above 0"
    return "per_class: 1, which trains", "raise per_class"


def _check_cycles(study: Study, rows: tuple[Row, ...]) -> None:
    source_of = {row.name: row.source for row in rows}
    depths: dict[str, int] = {}  # sources below each row that ends well: each is followed once
    for start in source_of:
        path: dict[str, None] = {}  # in order
        row: str | None = start
        while row is not None and row not in depths:
            if row in path:
                passed = list(path)
                cycle = [*passed[passed.index(row) :], row]
                said = [repr(name) for name in cycle]
                if len(said) > 12:
                    said[6:-6] = [f"... ({len(said) - 12:,} more) ..."]
                raise StudyCycle(
                    f"sources.{shown_key(source_of[cycle[-2]])}.run: a cycle: {' <- '.join(said)}. "
                    "A source must, in the end, be a network with weights."
                )
            path[row] = None
            row = study.sources[source_of[row]].run
        below = 0 if row is None else depths[row] + 1
        for i, passed_row in enumerate(reversed(path)):
            depths[passed_row] = below + i
        if path and depths[start] > MAX_CHAIN:
            raise StudyError(
                f"sources.{shown_key(source_of[start])}.run: row {start!r} stands on {depths[start]:,} runs, one cut "
                f"from the other; at most {MAX_CHAIN} are possible. Let it start from an earlier one."
            )
