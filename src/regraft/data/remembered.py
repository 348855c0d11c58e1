"""Answers about networks that are found once and kept on disk: to find them, a network is built and traced.

They depend on what is installed and on nothing else, and are kept in the home folder under just that. Nothing here
imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from regraft.data.home import home, write_file

DECIDING = ("regraft", "torch", "torchvision", "timm")  # packages whose versions decide the answers


def remembered(question: list[Any], ask: Callable[[], Any]) -> Any:
    """The answer (JSON) kept for `question`, or that of `ask`, which is then kept."""
    whole = [question, *_installed()]
    name = hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]
    file = home() / "known" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: asked again
        kept = json.loads(file.read_text("utf-8"))
        if kept["question"] == whole and kept["sha256"] == _digest(kept["answer"]):
            return kept["answer"]
    answer = ask()
    with contextlib.suppress(OSError):  # a home folder that cannot be written costs time, nothing else
        write_file(file, json.dumps({"question": whole, "answer": answer, "sha256": _digest(answer)}).encode())
    return answer


def _digest(answer: Any) -> str:
    """A changed answer would be a wrong cut, or a wrong normalisation."""
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()


@cache
def _installed() -> tuple[list[str], list[list[Any]]]:
    """Versions, and for those who change regraft itself the stamps of the files that would answer."""
    versions = []
    for name in DECIDING:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} without version")
    sources = sorted((Path(__file__).parents[1] / "networks").glob("*.py"))
    return versions, [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sources]
