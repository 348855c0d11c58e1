"""Writes the generated parts of docs/cli.md and docs/study-file.md: `make_reference.py [--check]`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import EnumMeta
from typing import Any, get_args

import typer
from blocks import table, update

from regraft.cli import app
from regraft.spec import Episodes, Grid, Head, Preprocessing, Recipe, Row, Source, Study, Target
from regraft.spec.recipe import SOLVED
from regraft.spec.recipes import PRESETS, Way
from regraft.spec.tuning import Tuning

MODELS = {
    "The study": Study,
    "`sources`: where the trunk comes from": Source,
    "`preprocessing`, in a source with `file:` weights": Preprocessing,
    "`targets`: data and budget": Target,
    "`episodes`, in a target": Episodes,
    "`recipes`: how to train": Recipe,
    "`rows`: named cells of the table": Row,
    "`tuning`, in a row or a grid": Tuning,
    "`head`, in a row or a grid": Head,
    "`grid`: every combination": Grid,
}


def cli_reference() -> str:
    """Every command with its help, arguments and options, read from the functions behind them."""
    assert app.registered_callback
    assert app.registered_callback.callback
    parts = [_command("regraft", app.registered_callback.callback, tail="COMMAND ...")]
    parts += [_command(f"regraft {name}", function) for name, function in commands(app)]
    return "\n".join(parts)


def commands(group: typer.Typer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """("data get", function) of every command, groups opened."""
    for command in group.registered_commands:
        assert command.callback
        yield command.name or command.callback.__name__.replace("_", "-"), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance
        for name, function in commands(inner.typer_instance):
            yield f"{inner.name} {name}", function


def _command(path: str, function: Callable[..., Any], tail: str = "") -> str:
    usage, rows = [path, "[OPTIONS]"], []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        annotation, info = get_args(parameter.annotation)[:2]
        default = "" if parameter.default in (None, False, parameter.empty) else f"`{parameter.default}`"
        choices = [f"`{name}`" for name in annotation.__members__] if isinstance(annotation, EnumMeta) else []
        meaning = f"{info.help}{_in_brackets(choices)}"
        if isinstance(info, typer.models.OptionInfo):
            given = [str(name) for name in (info.default, *(info.param_decls or ())) if name is not ...]
            names = given or [f"--{parameter.name.replace('_', '-')}"]
            rows.append((" ".join(f"`{name}`" for name in names), meaning, default))
        else:
            name = str(info.metavar)
            usage.append(name if parameter.default is parameter.empty or name.startswith("[") else f"[{name}]")
            rows.append((f"`{name.strip('[].')}`", meaning, default))
    lines = [f"## {path}\n", "```", " ".join([*usage, *([tail] if tail else [])]), "```"]
    lines += [inspect.cleandoc(function.__doc__ or ""), ""]
    return "\n".join([*lines, *([table(("argument or option", "meaning", "default"), rows), ""] if rows else [])])


def _in_brackets(words: list[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def study_reference() -> str:
    """Every field of a study file."""
    whole = Study.model_json_schema()
    schemas = {"Study": whole, **whole["$defs"]}
    return "\n".join(_model(title, schemas[model.__name__]) for title, model in MODELS.items())


def _model(title: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (f"`{name}`", _type(field), "required" if name in required else f"`{_json(field.get('default'))}`",
         field.get("description", ""))
        for name, field in schema["properties"].items()
    ]  # fmt: skip
    return f"### {title}\n\n{table(('field', 'type', 'default', 'meaning'), rows)}\n"


def _json(value: object) -> str:
    import json

    return "none" if value is None else json.dumps(value, ensure_ascii=False)


# What the presets are shown for: (in words, images, pixels, network, method)
TASKS: list[tuple[str, int, int, str, Way]] = [
    ("ResNet from scratch, 45,000 images of 32 px", 45_000, 32, "resnet18", "scratch"),
    ("ResNet from scratch, 4,500 images of 32 px", 4_500, 32, "resnet18", "scratch"),
    ("ResNet from scratch, 450 images of 32 px", 450, 32, "resnet18", "scratch"),
    ("ResNet fine-tuned, 45,000 images of 32 px", 45_000, 32, "resnet50", "finetune"),
    ("ResNet fine-tuned, 450 photographs", 450, 224, "resnet50", "finetune"),
    ("ViT fine-tuned, 450 photographs", 450, 224, "vit_b_16", "finetune"),
    ("linear head on a frozen trunk, 9,000 images", 9_000, 32, "resnet50", "frozen"),
    ("linear head on a frozen trunk, 450 photographs", 450, 224, "resnet50", "frozen"),
]


def preset_reference() -> str:
    """What each preset is for some tasks."""
    rows = []
    for words, images, image_size, network, method in TASKS:
        made = [make(images=images, image_size=image_size, network=network, method=method) for make in PRESETS.values()]
        rows.append((words, *map(_recipe, made)))
    return table(("task", *(f"`{name}`" for name in PRESETS)), rows)


def _recipe(recipe: Recipe) -> str:
    """The fields that are not as usual, the length and the rates."""
    shown = ["epochs", "weight_decay"] if recipe.optimizer in SOLVED else ["epochs", "batch_size", "lr", "weight_decay"]
    unlike = [
        name for name, field in Recipe.model_fields.items()
        if name not in ("optimizer", *shown) and getattr(recipe, name) != field.default
    ]  # fmt: skip
    fields = [f"{name} {_json(getattr(recipe, name)).strip(chr(34))}" for name in (*shown, *unlike)]
    return ", ".join([recipe.optimizer, *fields])


def _type(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).split("/")[-1].lower()
    if "enum" in field:
        return " | ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"] if part.get("type") != "null")
    if field.get("type") == "array":
        item = field.get("items") or (field.get("prefixItems") or [{}])[0]
        count = (
            f"{field['maxItems']} " if field.get("maxItems") == field.get("minItems") and "maxItems" in field else ""
        )
        return f"list of {count}{_type(item)}"
    if field.get("type") == "object":
        return f"mapping of names to {_type(field['additionalProperties'])}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words.get(str(field.get("type")), "any") + _bounds(field)


def _bounds(field: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [
        f"{sign} {field[name]:g}" if field[name] < 1e6 else f"{sign} {field[name]}"
        for name, sign in signs.items()
        if name in field
    ]
    return f" {', '.join(said)}" if said else ""


if __name__ == "__main__":
    update(
        {
            "docs/cli.md": {"commands": cli_reference()},
            "docs/study-file.md": {"fields": study_reference(), "presets": preset_reference()},
        },
        check="--check" in sys.argv[1:],
    )
