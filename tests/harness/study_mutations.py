"""Broken study files: a shipped study with something done to it that nobody should do, and text that is no study.

Each mutation takes a generator of random numbers and the fields of a study, and gives the text of a file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import yaml

from regraft.spec import Study, presets

Random = np.random.Generator
Place = tuple[Any, ...]  # keys and indices from the top
Mutation = Callable[[Random, dict[str, Any]], str | bytes]

WORDS = (
    "", " ", "null", "~", "yes", "no", "on", "off", ".nan", ".inf", "-.inf", "1e400", "0x7f", "0o17", "1_000", "-1",
    "0", "1:30:00", "2024-01-01", "!!null x", "<<", "=", "*", "&a", "!!python/object/apply:os.system [id]", "{source}",
    "{0.__class__}", "../../etc/passwd", "file:/dev/zero", "file:~nobody/x", "folder:~nobody/x", "folder:/dev/zero",
    "folder:" + "x" * 5000, "file:" + "y" * 5000, "pretrained:" + "z" * 5000, "random", "frozen", "ridge", "fast",
)  # fmt: skip
ODD_TEXT = (
    "\u202eevil", "\u2066a\u2069", "\x1b[31mred", "\x00", "a\nb", "\ufffd", "é\u0301" * 50, "學校", "👩\u200d🏫",
    "\u200b", "\ufeff", "\u2028", "x" * 200_000, "%s%n", "<script>",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"),
    -float("inf"), 0.5, -0.0, True, False, 1e-9, 4096, 65536, 99_999,
)  # fmt: skip
TAGS = (
    "!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!python/module:os", "!!binary aGVsbG8=",
    "!!binary G1szMW0=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp x", "!!int x", "!!float ''",
    "!!bool x", "!!str 1", "!!map [1]", "!!seq {a: 1}", "!local x", "!<tag:yaml.org,2002:int> 0", "!!merge x",
)  # fmt: skip


def shipped() -> list[dict[str, Any]]:
    """The fields of every study that comes with regraft."""
    return [yaml.safe_load(Study.from_yaml(name).to_yaml()) for name in presets()]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where something stands in it, below the top."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*at, key)
        yield from places(below, (*at, key))


def dumped(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def changed(random: Random, data: dict[str, Any], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """A copy in which `change(parent, key)` was made at a random place."""
    data = copy.deepcopy(data)
    found = list(places(data))
    *way, key = found[random.integers(len(found))]
    parent: Any = data
    for step in way:
        parent = parent[step]
    change(parent, key)
    return data


def put(random: Random, data: dict[str, Any], value: Any) -> str:
    return dumped(changed(random, data, lambda parent, key: parent.__setitem__(key, value)))


def pick(random: Random, options: Any) -> Any:
    return options[int(random.integers(len(options)))]


# --- mutations of what a file says -----------------------------------------------------------------------------


def untouched(random: Random, data: dict[str, Any]) -> str:
    return dumped(data)


def without(random: Random, data: dict[str, Any]) -> str:
    return dumped(changed(random, data, lambda parent, key: parent.__delitem__(key)))


def renamed(random: Random, data: dict[str, Any]) -> str:
    def rename(parent: Any, key: Any) -> None:
        new = pick(random, ["x", str(key)[:-1], f"{key}s", str(key).upper(), *ODD_TEXT, *WORDS])
        parent.append(new) if isinstance(parent, list) else parent.update({new: parent.pop(key)})

    return dumped(changed(random, data, rename))


def of_another_type(random: Random, data: dict[str, Any]) -> str:
    kinds: list[Any] = [None, [], {}, "x", 1, 1.5, True, [[]], [{}], {"a": {}}, [None], [1, "a"], {"1": 2}, [[[1]]],
                        "", {"": ""}]  # fmt: skip
    return put(random, data, pick(random, kinds))


def number(random: Random, data: dict[str, Any]) -> str:
    value = pick(random, NUMBERS)
    value = [value] * int(random.integers(1, 4)) if random.random() < 0.3 else value
    return put(random, data, value)


def word(random: Random, data: dict[str, Any]) -> str:
    return put(random, data, "PLACE").replace("PLACE", pick(random, WORDS), 1)


def text(random: Random, data: dict[str, Any]) -> str:
    return put(random, data, pick(random, ODD_TEXT))


def swapped(random: Random, data: dict[str, Any]) -> str:
    """A part of the study stands where another one should."""
    other: list[Any] = []
    changed(random, data, lambda parent, key: other.append(parent[key]))
    return put(random, data, copy.deepcopy(other[0]))


def spliced(random: Random, data: dict[str, Any]) -> str:
    other = pick(random, shipped_once())
    field = pick(random, list(other))
    return dumped({**data, field: other[field]})


def several(random: Random, data: dict[str, Any]) -> str:
    for _ in range(int(random.integers(2, 6))):
        made = pick(random, [without, renamed, of_another_type, number, swapped])(random, data)
        data = yaml.safe_load(made) or {"study": "x"}
    return dumped(data)


def nested(random: Random, data: dict[str, Any]) -> str:
    depth = int(pick(random, [5, 50, 200, 1000, 50_000]))
    opening, closing = pick(random, [("[", "]"), ("{a: ", "}"), ("[{b: ", "}]"), ("- ", "")])
    return put(random, data, "PLACE").replace("PLACE", opening * depth + "1" + closing * depth, 1)


def cycle(random: Random, data: dict[str, Any]) -> str:
    n = int(pick(random, [1, 2, 10, 60, 1500]))
    target, start = next(iter(data["targets"])), int(random.integers(2))
    rows = [{"name": f"r{i}", "source": f"s{i}", "target": target, "recipe": "fast"} for i in range(n)]
    sources = {f"s{i}": {"run": f"r{(i + start) % n}"} for i in range(n)}
    return dumped({"study": "x", "targets": data["targets"], "sources": sources, "rows": rows})


def many(random: Random, data: dict[str, Any]) -> str:
    """More rows, seeds, recipes or names than a memory holds, in a few lines."""
    n = int(pick(random, [10, 100, 1000, 5000]))
    names = [f"n{i}" for i in range(n)]
    base: dict[str, Any] = {
        "study": "x",
        "sources": {"s": {"network": "resnet18"}},
        "targets": {"t": {"data": "digits"}},
    }
    row = {"name": "r", "source": "s", "target": "t", "recipe": "r"}
    wide = {"lr": [i / 1000 for i in range(1, 33)], "weight_decay": [i / 1000 for i in range(1, 33)]}
    options: list[dict[str, Any]] = [
        {"sources": dict.fromkeys(names, base["sources"]["s"]), "targets": dict.fromkeys(names, base["targets"]["t"]),
         "grid": {"source": names, "target": names, "recipe": "fast"}},
        {"seeds": list(range(n)), "rows": [{**row, "name": k, "recipe": "fast"} for k in names]},
        {"recipes": dict.fromkeys(names[: n // 5], wide), "rows": [{**row, "recipe": names[: n // 5]}]},
        {"rows": [{**row, "name": k, "source": f"{k}!"} for k in names]},
        {"sources": {k: {} for k in names}, "rows": [row]},
        {"grid": [{"source": "s", "target": "t", "recipe": "fast", "seeds": list(range(n))} for _ in range(20)]},
    ]  # fmt: skip
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    plain = type("Plain", (dumper,), {"ignore_aliases": lambda self, data: True})
    return str(yaml.dump({**base, **pick(random, options)}, Dumper=plain, sort_keys=False, default_flow_style=True))


# --- mutations of the text -------------------------------------------------------------------------------------


def tagged(random: Random, data: dict[str, Any]) -> str:
    return put(random, data, "PLACE").replace("PLACE", pick(random, TAGS), 1)


def line_twice(random: Random, data: dict[str, Any]) -> str:
    lines = dumped(data).splitlines(keepends=True)
    at = int(random.integers(len(lines)))
    return "".join([*lines[: at + 1], *lines[at : at + int(random.integers(1, 4))], *lines[at + 1 :]])


def line_moved(random: Random, data: dict[str, Any]) -> str:
    lines = dumped(data).splitlines(keepends=True)
    line = lines.pop(int(random.integers(len(lines))))
    lines.insert(int(random.integers(len(lines) + 1)), pick(random, ["", " ", "  ", "\t", "- "]) + line)
    return "".join(lines)


def tabbed(random: Random, data: dict[str, Any]) -> str:
    return dumped(data).replace("  ", "\t", int(random.integers(1, 10)))


def aliased(random: Random, data: dict[str, Any]) -> str:
    """Anchors and aliases, doubling each other (a "billion laughs"), in a circle, or merged."""
    levels = int(random.integers(2, 30))
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, levels))
    merged = "base: &b {lr: 1}\nrecipes: {r: {<<: *b}}\n"
    circle = "rows: &r [*r]\n"
    return dumped(data) + str(
        pick(random, [laughs, merged, circle, "x: *nowhere\n", "recipes: {r: {<<: {lr: 0.1}}}\n"])
    )


def flipped(random: Random, data: dict[str, Any]) -> bytes:
    content = bytearray(dumped(data).encode())
    for at in random.integers(len(content), size=int(random.integers(1, 8))):
        content[at] ^= 1 << int(random.integers(8))
    return bytes(content)


def cut_off(random: Random, data: dict[str, Any]) -> bytes:
    content = dumped(data).encode()
    start, end = sorted(random.integers(len(content), size=2))
    return content[:end] if random.random() < 0.7 else content[:start] + content[end:]


def punctuated(random: Random, data: dict[str, Any]) -> str:
    """Marks of YAML at random places."""
    content = dumped(data)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(len(content)))
        content = content[:at] + pick(random, [*":-?[]{},#&*!|>'\"%@`\n\t", "---\n", "...\n"]) + content[at:]
    return content


def binary(random: Random, data: dict[str, Any]) -> bytes:
    start: bytes = pick(random, [b"", b"\0", b"\xff\xfe", b"PK\x03\x04", b"\x80\x04."])
    return start + random.bytes(int(random.integers(3000)))


def long(random: Random, data: dict[str, Any]) -> str:
    n = int(pick(random, [1000, 30_000, 400_000]))
    bombs = ["a," * n, "1:" * n + "1", "9" * n, "0x" + "f" * n, "- " * 500, "'" + "x" * n, "# " + "x" * n, "? " * n,
             "1." * n, "!" * n, "%" * n, "&a" * n, "[" + "{}," * n + "]", "\n" * n,
             "a: |\n" + " x\n" * n, "é" * n]  # fmt: skip
    return put(random, data, "PLACE").replace("PLACE", pick(random, bombs), 1)


def large(random: Random, data: dict[str, Any]) -> str:
    """50 MB."""
    return dumped(data) + "#" + "x" * 50_000_000


def shipped_once() -> list[dict[str, Any]]:
    if not _SHIPPED:
        _SHIPPED.extend(shipped())
    return _SHIPPED


_SHIPPED: list[dict[str, Any]] = []

# How often each is tried, in parts.
MUTATIONS: dict[str, tuple[Mutation, int]] = {
    "untouched": (untouched, 2), "a part missing": (without, 12), "renamed": (renamed, 10),
    "another type": (of_another_type, 14), "number": (number, 12), "word": (word, 12), "odd text": (text, 8),
    "parts swapped": (swapped, 8), "spliced": (spliced, 5), "several changes": (several, 10), "nested": (nested, 5),
    "cycle": (cycle, 3), "many": (many, 3), "tag": (tagged, 8), "line twice": (line_twice, 8),
    "line moved": (line_moved, 8), "tabs": (tabbed, 3), "aliases": (aliased, 5), "bits flipped": (flipped, 6),
    "cut off": (cut_off, 5), "punctuation": (punctuated, 8), "binary": (binary, 3), "long": (long, 4),
    "50 MB": (large, 0),
}  # fmt: skip


def mutation(random: Random) -> tuple[str, str | bytes]:
    """A name of MUTATIONS and the text of a file."""
    if random.random() < 0.001:
        return "50 MB", large(random, shipped_once()[0])
    names = list(MUTATIONS)
    parts = np.array([share for _, share in MUTATIONS.values()], float)
    name = names[int(random.choice(len(names), p=parts / parts.sum()))]
    return name, MUTATIONS[name][0](random, pick(random, shipped_once()))
