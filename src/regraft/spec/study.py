"""The study: what to compare. Names are resolved and cross-checked here, before anything heavy is imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from regraft.errors import StudyCycle, StudyError, UnknownName, nearest
from regraft.spec.models import Grid, Model, Recipe, Row, Seed, Source, Target

MAX_FILE_BYTES = 4_000_000  # a study is written by hand; anything larger is not one
MAX_ROWS = 200_000


class Study(Model):
    """What to compare: sources, targets, recipes, and the rows and grids that combine them."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="name, used for folders")
    question: str = Field(default="", description="what the study asks, in a sentence; heads the report")
    seeds: tuple[Seed, ...] = Field(
        default=(0, 1, 2),
        min_length=1,
        description="each seed is one repetition: its own subset, initialisation and order",
    )
    sources: dict[str, Source] = Field(min_length=1, description="by name: where trunks come from")
    targets: dict[str, Target] = Field(min_length=1, description="by name: data set and budget of labels")
    recipes: dict[str, Recipe] = Field(min_length=1, description="by name: how to train")
    rows: tuple[Row, ...] = Field(default=(), description="named rows, one by one")
    grid: tuple[Grid, ...] = Field(default=(), description="rows as combinations; one grid or a list of them")
    cost: str = Field(default="", description="what a run of it takes, in words")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ from each other, got {list(seeds)}")
        return seeds

    @field_validator("grid", mode="before")
    @classmethod
    def _one_grid(cls, value: object) -> object:
        return [value] if isinstance(value, Mapping) else value

    def __init__(self, **data: Any) -> None:
        """Raises StudyError with the path of every wrong field, from Python as from YAML."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _explain(error) from None
        rows = self.all_rows()
        if not rows:
            raise StudyError(f"study {self.study!r} has no rows: add `rows:` or a `grid:`.")
        _check_names(self, rows)
        _check_cycles(self, rows)

    def all_rows(self) -> tuple[Row, ...]:
        """The explicit rows, then every combination of every grid."""
        expanded = [row for i, grid in enumerate(self.grid) for row in _expand(grid, f"grid[{i}]")]
        return (*self.rows, *expanded)

    def row(self, name: str) -> Row:
        return next(row for row in self.all_rows() if row.name == name)

    @classmethod
    def from_dict(cls, data: object, where: str = "study") -> Study:
        """Raises StudyError with the path of every wrong field."""
        if not isinstance(data, dict):
            raise StudyError(f"{where}: a study is a mapping of fields, got {type(data).__name__}")
        if odd := [key for key in data if not isinstance(key, str)]:
            raise UnknownName(f"{where}: unknown field {odd[0]!r}. Fields: {', '.join(cls.model_fields)}.")
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
            raise StudyError(f"{where}: not valid YAML: {error}") from None
        except (RecursionError, ValueError) as error:
            raise StudyError(f"{where}: not readable as YAML: {error}") from None
        return cls.from_dict(data, where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=100)


class _Loader(yaml.SafeLoader):
    """Safe, and stricter: a key given twice, or an alias (the way to a YAML bomb), is refused."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1}: anchors and aliases are not used in study files")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
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


def _expand(grid: Grid, where: str) -> Iterator[Row]:
    size = len(grid.source) * len(grid.cut) * len(grid.method) * len(grid.head) * len(grid.target)
    if size > MAX_ROWS:
        raise StudyError(f"{where}: {size:,} combinations, more than {MAX_ROWS:,}; split the study")
    cells = itertools.product(grid.source, grid.cut, grid.method, grid.head, grid.target)
    for source, cut, method, head, target in cells:
        words = {"source": source, "cut": cut or "all", "method": method, "head": head.kind, "target": target}
        try:
            name = grid.name.format(**words)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise StudyError(f"{where}.name: cannot fill {grid.name!r} ({error}); fields: {', '.join(words)}") from None
        yield Row(
            name=name, source=source, cut=cut, method=method, head=head, target=target,
            recipe=grid.recipe, seeds=grid.seeds, note=grid.note,
        )  # fmt: skip


def _check_names(study: Study, rows: tuple[Row, ...]) -> None:
    names: dict[str, str] = {}
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
            *(("recipe", name, study.recipes) for name in row.recipe),
        ]
        for field, name, table in used:
            if name not in table:
                known = ", ".join(sorted(table))
                raise UnknownName(f"{where}.{field}: no {field} {name!r}{nearest(name, table)} Known: {known}.")
        if len(row.recipe) > 1 and study.targets[row.target].validation == 0:
            raise StudyError(
                f"{where}.recipe: {len(row.recipe)} recipes to choose from, but target {row.target!r} keeps no "
                "images for validation (validation: 0). Give one recipe, or set validation above 0."
            )
    for name, source in study.sources.items():
        if source.run is not None and source.run not in names:
            raise UnknownName(
                f"sources.{name}.run: no row {source.run!r}{nearest(source.run, names)} "
                f"Rows: {', '.join(list(names)[:20])}."
            )


def _check_cycles(study: Study, rows: tuple[Row, ...]) -> None:
    source_of = {row.name: row.source for row in rows}
    for start in source_of:
        path, row = [start], start
        while (next_row := study.sources[source_of[row]].run) is not None:
            path.append(next_row)
            if next_row in path[:-1]:
                chain = " <- ".join(repr(name) for name in path)
                raise StudyCycle(
                    f"sources.{source_of[row]}.run: a cycle: {chain}. "
                    "A source must, in the end, be a network with weights."
                )
            row = next_row


def _explain(error: ValidationError) -> StudyError:
    """pydantic's errors as one StudyError: the YAML path, what was got, what is allowed."""
    lines, unknown = [], False
    for item in error.errors(include_url=False)[:20]:
        path = _path(item["loc"])
        if item["type"] == "extra_forbidden":
            unknown = True
            fields = _fields_at(item["loc"])
            name = str(item["loc"][-1])
            lines.append(f"{path}: unknown field{nearest(name, fields)} Fields: {', '.join(fields)}.")
        elif item["type"] == "missing":
            lines.append(f"{path}: required, but missing.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = repr(item["input"])
            got = got if len(got) <= 80 else got[:77] + "..."
            suffix = "" if item["type"] == "value_error" else f", got {got}"
            lines.append(f"{path}: {message}{suffix}.{_hint(item['loc'], item['input'])}")
    kind = UnknownName if unknown and len(lines) == 1 else StudyError
    return kind("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])


def _hint(loc: tuple[int | str, ...], got: object) -> str:
    if "method" in loc and got == "scratch":
        return " Training from scratch is `method: finetune` with a source whose `weights` are random."
    if "method" in loc and got in ("linear-probe", "probe", "linear"):
        return " A linear probe is `method: frozen` with `head: linear`."
    return ""


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "(top level)"


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """The field names allowed where `loc` points; walks the models, through dicts and lists."""
    tables: dict[str, type[BaseModel]] = {
        "sources": Source, "targets": Target, "recipes": Recipe, "rows": Row, "grid": Grid,
    }  # fmt: skip
    from regraft.spec.models import Head, Preprocessing

    model: type[BaseModel] = Study
    for part in loc[:-1]:
        if model is Study and part in tables:
            model = tables[str(part)]
        elif part == "head":
            model = Head
        elif part == "preprocessing":
            model = Preprocessing
    return list(model.model_fields)
