"""What is known of networks and published weights: asked once, remembered on disk, told again without torch.

The keys of a study need the full names of cuts and the digests of weights. To find them a network is built and traced,
which imports torch and torchvision: seconds, where reading a finished study takes a tenth of one. The answers depend on
what is installed and on nothing else, and are kept in the home folder under just that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from regraft.data.home import home, write_file
from regraft.spec import Preprocessing, Source

DECIDING = ("regraft", "torch", "torchvision", "timm")  # packages whose versions decide the answers


@dataclass(frozen=True)
class WeightsFacts:
    """What determines results about weights that are on this machine."""

    digest: str  # of their content
    preprocessing: Preprocessing


@lru_cache(maxsize=4096)
def cut_name(network: str, at: str | None, image_size: int, stem: str) -> str:
    """`resolve_cut(...).name`: the full name of a cut. Errors as there; they are not remembered."""

    def ask() -> str:
        from regraft.networks import resolve_cut

        return resolve_cut(network, at, image_size, stem=stem).name

    return str(_remembered(["cut", network, at, image_size, stem], ask))


@lru_cache(maxsize=4096)
def cuts_below(network: str, at: str | None, image_size: int, stem: str) -> tuple[str, ...]:
    """`regraft.networks.cuts_below`, remembered."""

    def ask() -> list[str]:
        from regraft.networks import cuts_below as ask_network

        return ask_network(network, at, image_size, stem=stem)

    return tuple(_remembered(["cuts below", network, at, image_size, stem], ask))


def weights_facts(source: Source, *, offline: bool) -> WeightsFacts:
    """Digest and preprocessing of a source's weights. Fetches and raises as `obtain_weights` does."""
    if source.weights.startswith("pretrained") and source.stem == "imagenet":
        found = _of_pretrained(source)
        if found is not None:
            return found
    from regraft.networks import obtain_weights

    weights = obtain_weights(source, offline=offline)
    return WeightsFacts(weights.digest, weights.preprocessing)


def _of_pretrained(source: Source) -> WeightsFacts | None:
    """From the header of the converted file; None if it is not here, or not in order: obtain_weights sees to that."""
    from safetensors import SafetensorError, safe_open

    def ask() -> list[Any]:
        from regraft.networks.published import published

        assert source.network is not None
        known = published(source.network, source.weights.partition(":")[2] or None)
        return [known.stored_as, known.preprocessing.model_dump(mode="json")]

    file, expects = _remembered(["published", source.network, source.weights], ask)
    path = home() / "weights" / file
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as opened:
            digest = (opened.metadata() or {}).get("digest")
    except SafetensorError:
        return None
    return None if digest is None else WeightsFacts(digest, Preprocessing(**expects))


def _remembered(question: list[Any], ask: Callable[[], Any]) -> Any:
    """The answer (JSON) kept for `question`, or that of `ask`, which is then kept."""
    whole = [question, *_installed()]
    name = hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]
    file = home() / "known" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: asked again
        kept = json.loads(file.read_text("utf-8"))
        if kept["question"] == whole:
            return kept["answer"]
    answer = ask()
    with contextlib.suppress(OSError):  # a home folder that cannot be written costs time, nothing else
        write_file(file, json.dumps({"question": whole, "answer": answer}).encode())
    return answer


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
