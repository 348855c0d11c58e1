"""Trained weights: from the library that publishes them, a mirror, or a file; never through pickle.

Whatever way they came, pretrained weights are kept as one safetensors file in home/weights, under the
network's own names and with the digest of their content, and they bring the preprocessing that they were
trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from regraft.data.home import home as default_home
from regraft.data.home import write_file
from regraft.errors import WeightsMismatch, WeightsUnavailable
from regraft.networks.build import build_skeleton
from regraft.networks.fetch import fetch
from regraft.networks.published import Published, published
from regraft.networks.trace import trace
from regraft.networks.trunk import state_hash
from regraft.spec import Preprocessing, Source


@dataclass(frozen=True)
class Weights:
    """Trained weights of a network, read when they are needed."""

    network: str
    stem: str
    state: Callable[[], dict[str, Tensor]]  # reads them: the network's own names -> tensors on the CPU
    digest: str  # `state_hash` of the state: of the content, however it is stored
    preprocessing: Preprocessing
    origin: str  # where they came from, in words
    licence: str


def obtain_weights(source: Source, home: Path | None = None, offline: bool = False) -> Weights:
    """The weights of a source with `weights: pretrained[:TAG]` or `file:PATH`, fetched if they are not here.

    home: where they are kept; None is $REGRAFT_HOME or the user's cache folder. offline: fetch nothing.
    Raises WeightsUnavailable, with every way to get them; WeightsMismatch if they are not of this network,
    damaged or not finite; UnknownName for a tag or network that does not exist.
    """
    assert source.network is not None, "a source that is a run has no weights before that run is trained"
    kind, _, detail = source.weights.partition(":")
    if kind == "file":
        return _from_file(source, Path(detail).expanduser())
    assert kind == "pretrained", "random weights are not obtained but built from a seed"
    if source.stem != "imagenet":
        raise WeightsMismatch(
            f"{source.network}: pretrained weights have the ImageNet stem, not `stem: {source.stem}`. "
            "Remove `stem`, or use `weights: random`."
        )
    return _pretrained(published(source.network, detail or None), home or default_home(), offline)


def _pretrained(known: Published, home: Path, offline: bool) -> Weights:
    path = home / "weights" / known.stored_as
    if not path.is_file():
        state, origin = fetch(known, path.parent, offline)
        check_names(known.network, "imagenet", state, str(known.file), classifier_may_differ=False)
        check_finite(state, origin)
        digest = _checked_digest(state, known.digest, origin)
        write_file(path, save(state, {"digest": digest, "origin": origin, "network": known.network}))
    header = _header(path)
    return Weights(
        network=known.network,
        stem="imagenet",
        state=partial(_read_stored, path, header["digest"]),
        digest=header["digest"],
        preprocessing=known.preprocessing,
        origin=header["origin"],
        licence=known.licence,
    )


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise WeightsMismatch(f"{path} is damaged ({error}). Delete it; it is then fetched again.") from None
    if not {"digest", "origin"} <= header.keys():
        raise WeightsMismatch(f"{path} was not written by regraft. Delete it, or name it as `weights: file:{path}`.")
    return header


def _read_stored(path: Path, digest: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_file(path)
    _checked_digest(state, digest, str(path))
    return state


def _checked_digest(state: Mapping[str, Tensor], expected: str | None, origin: str) -> str:
    digest = state_hash(state)
    if expected is not None and digest != expected:
        raise WeightsMismatch(
            f"{origin}: content has sha256 {digest}, expected {expected}: damaged or another version. "
            "Delete the file; it is then fetched again."
        )
    return digest


# --- from a file --------------------------------


def _from_file(source: Source, path: Path) -> Weights:
    assert source.network is not None
    assert source.preprocessing is not None, "the spec demands it of `file:` weights"
    if not path.is_file():
        raise WeightsUnavailable(
            f"there is no weights file {str(path)!r} for {source.network}. `weights: file:PATH` names a "
            "safetensors file or a torch state dict; a relative path counts from where regraft is started."
        )
    found = path.stat()
    digest = _file_digest(source.network, source.stem, path, (found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return Weights(
        network=source.network,
        stem=source.stem,
        state=partial(_read_again, source.network, source.stem, path, digest),
        digest=digest,
        preprocessing=source.preprocessing,
        origin=f"file {path}",
        licence="not stated",
    )


@lru_cache(maxsize=64)
def _file_digest(network: str, stem: str, path: Path, stamp: tuple[int, int, int]) -> str:
    """Read anew only when the file's stamp (size, time of its content, time of its entry) is another."""
    return state_hash(_usable(network, stem, path))


def _read_again(network: str, stem: str, path: Path, digest: str) -> dict[str, Tensor]:
    """The state that `digest` was taken of. Results are stored under that digest, so no other one will do."""
    if not path.is_file():
        raise WeightsUnavailable(f"{path} is gone; it was there when this began. Put it back, or name another file.")
    state = _usable(network, stem, path)
    if (got := state_hash(state)) != digest:
        raise WeightsMismatch(
            f"{path} was replaced since this began: its content has sha256 {got}, it was {digest}. Start again to "
            "use the new content, or put the earlier file back."
        )
    return state


def _usable(network: str, stem: str, path: Path) -> dict[str, Tensor]:
    state = read_state(path)
    check_names(network, stem, state, str(path), classifier_may_differ=True)
    check_finite(state, str(path))
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict out of a safetensors file or one of torch.save, read with weights_only=True and in no
    other way.

    A checkpoint that holds it under "state_dict" or "model" is opened; the "module." that DataParallel puts
    before every name is taken off. Raises WeightsMismatch.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(
            path, map_location="cpu", weights_only=True
        )  # fmt: skip
    except UnpicklingError as error:
        raise WeightsMismatch(
            f"{path} holds more than tensors, which could run code when read; not opened. Save its state "
            f"dict alone: torch.save(model.state_dict(), PATH), or as safetensors. "
            f"({str(error).splitlines()[0]})"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsMismatch(f"{path} is not readable as safetensors or a torch state dict: {error}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise WeightsMismatch(f"{path} holds a {type(content).__name__}, not a state dict (names -> tensors).")
    odd = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise WeightsMismatch(f"{path}: the entry {str(odd[0])!r} is not a tensor; it is no plain state dict.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content


def check_names(
    network: str, stem: str, state: Mapping[str, Tensor], origin: str, *, classifier_may_differ: bool
) -> None:
    """Refuse a state dict of another network; the classifier's last layer may be absent or have other
    classes.

    Raises WeightsMismatch with the first names that differ.
    """
    skeleton = build_skeleton(network, stem=stem)
    classifier = f"{trace(skeleton).classifier}." if classifier_may_differ else None
    expected = skeleton.state_dict()

    def matters(name: str) -> bool:
        return classifier is None or not name.startswith(classifier)

    missing = [name for name in expected if name not in state and matters(name)]
    unexpected = [name for name in state if name not in expected and matters(name)]
    if missing or unexpected:
        parts = [f"lacks {len(missing)} tensors, first {missing[:3]}"] if missing else []
        parts += [f"has {len(unexpected)} others, first {unexpected[:3]}"] if unexpected else []
        raise WeightsMismatch(
            f"{origin} is not {network} with `stem: {stem}`: it {' and '.join(parts)}. Name the network "
            "that the file was saved from, or rename its tensors."
        )


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsMismatch(f"{origin}: {name!r} holds NaN or infinity; the training that wrote it diverged.")
