"""What is known of networks and published weights: asked once, remembered on disk, told again without torch.

The keys of a study need the full names of cuts and the digests of weights. To find them a network is built and traced,
which imports torch and torchvision: seconds, where reading a finished study takes a tenth of one. The answers depend on
what is installed and on nothing else, and are kept in the home folder under just that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from regraft.data.home import home
from regraft.data.remembered import remembered
from regraft.spec import Preprocessing, Source


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

    return str(remembered(["cut", network, at, image_size, stem], ask))


@lru_cache(maxsize=4096)
def cuts_below(network: str, at: str | None, image_size: int, stem: str) -> tuple[str, ...]:
    """`regraft.networks.cuts_below`, remembered."""

    def ask() -> list[str]:
        from regraft.networks import cuts_below as ask_network

        return ask_network(network, at, image_size, stem=stem)

    return tuple(remembered(["cuts below", network, at, image_size, stem], ask))


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

    file, expects = remembered(["published", source.network, source.weights], ask)
    path = home() / "weights" / file
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as opened:
            digest = (opened.metadata() or {}).get("digest")
    except SafetensorError:
        return None
    return None if digest is None else WeightsFacts(digest, Preprocessing(**expects))
