"""Trained weights: from the library that publishes them, a mirror, or a file; never through pickle.

Whatever way they came, pretrained weights are kept as one safetensors file in home/weights, under the
network's own names and with the digest of their content, and they bring the preprocessing that they were
trained with.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

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
from regraft.spec.text import shown

# Number formats of weights. Others (complex, 8-bit floats, quantised) would be turned into numbers nobody trained.
NUMBERS = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
ZIP_START = b"PK\x03\x04"  # of files of torch.save since 1.6


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
        return _from_file(source, _path_of(detail))
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
    except (SafetensorError, OSError) as error:
        raise WeightsMismatch(f"{path} is damaged ({error}). Delete it; it is then fetched again.") from None
    if not {"digest", "origin"} <= header.keys():
        raise WeightsMismatch(f"{path} was not written by regraft. Delete it, or name it as `weights: file:{path}`.")
    return header


def _read_stored(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsMismatch(f"{path} is damaged ({error}). Delete it; it is then fetched again.") from None
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
    if not _is_file(path):
        raise WeightsUnavailable(
            f"there is no weights file {str(path)!r} for {source.network}. `weights: file:PATH` names a "
            "safetensors file or a torch state dict; a relative path counts from where regraft is started."
        )
    found = path.stat()
    size = source.image_size or source.preprocessing.image_size
    stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    digest = _file_digest(source.network, source.stem, size, path, stamp)
    return Weights(
        network=source.network,
        stem=source.stem,
        state=partial(_read_again, source.network, source.stem, size, path, digest),
        digest=digest,
        preprocessing=source.preprocessing,
        origin=f"file {path}",
        licence="not stated",
    )


@lru_cache(maxsize=64)
def _file_digest(network: str, stem: str, image_size: int, path: Path, stamp: tuple[int, int, int]) -> str:
    """Read anew only when the file's stamp (size, time of its content, time of its entry) is another."""
    return state_hash(_usable(network, stem, image_size, path))


def _read_again(network: str, stem: str, image_size: int, path: Path, digest: str) -> dict[str, Tensor]:
    """The state that `digest` was taken of. Results are stored under that digest, so no other one will do."""
    if not _is_file(path):
        raise WeightsUnavailable(f"{path} is gone; it was there when this began. Put it back, or name another file.")
    state = _usable(network, stem, image_size, path)
    if (got := state_hash(state)) != digest:
        raise WeightsMismatch(
            f"{path} was replaced since this began: its content has sha256 {got}, it was {digest}. Start again to "
            "use the new content, or put the earlier file back."
        )
    return state


def _usable(network: str, stem: str, image_size: int, path: Path) -> dict[str, Tensor]:
    state = read_state(path)
    check_names(network, stem, state, str(path), classifier_may_differ=True, image_size=image_size)
    check_finite(state, str(path))
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict out of a safetensors file or one of torch.save, read with weights_only=True and in no
    other way.

    A checkpoint that holds it under "state_dict" or "model" is opened; the "module." that DataParallel puts
    before every name is taken off. Raises WeightsMismatch.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_saved(path)
    except WeightsMismatch:
        raise
    except UnpicklingError as error:
        raise WeightsMismatch(
            f"{path} holds more than tensors, which could run code when read; not opened. Save its state "
            f"dict alone: torch.save(model.state_dict(), PATH), or as safetensors. "
            f"({_reason(error)})"
        ) from None
    except Exception as error:  # a damaged or hostile file makes torch's reader raise errors of nearly every kind
        raise WeightsMismatch(
            f"{path} is not readable as safetensors or a torch state dict: {_reason(error)}"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise WeightsMismatch(f"{path} holds a {type(content).__name__}, not a state dict (names -> tensors).")
    odd = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise WeightsMismatch(f"{path}: the entry {shown(odd[0])} is not a tensor; it is no plain state dict.")
    _check_plain(content, path)
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content


def _path_of(detail: str) -> Path:
    try:
        return Path(detail).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise WeightsUnavailable(f"there is no weights file {shown(detail)}: {error}") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system allows, a folder that may not be looked into
        return False


def _reason(error: Exception) -> str:
    """One printable line of what a reader says, which may quote the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:300])


def _read_saved(path: Path) -> Any:
    """What torch.save wrote, as tensors, lists, mappings and numbers; code in it is refused, not run."""
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_START
    if not zipped:
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise WeightsMismatch(f"{path} is a packed zip, which torch.save never writes; unpacked it could be huge")
    # Mapped, because sizes stated in the file are then bounded by the file; torch's other way trusts them.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor is an ordinary one, of numbers that the file holds: a file of some bytes can state a tensor of any
    size, by repeating one number or naming numbers that it does not have."""
    held: dict[int, int] = {}  # bytes, by where they lie
    for name, tensor in state.items():
        ordinary = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not ordinary or tensor.dtype not in NUMBERS:
            raise WeightsMismatch(
                f"{path}: {shown(name)} is a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device}; plain "
                "tensors of float32, float16, bfloat16 or float64 are taken"
            )
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.itemsize > storage.nbytes():
            raise WeightsMismatch(
                f"{path}: {shown(name)} of shape {tuple(tensor.shape)} is larger than its own numbers"
            )
        held[storage.data_ptr()] = max(storage.nbytes(), held.get(storage.data_ptr(), 0))
    if sum(held.values()) > path.stat().st_size:
        raise WeightsMismatch(f"{path} states {sum(held.values()):,} bytes of tensors, more than the file has")


def check_names(
    network: str,
    stem: str,
    state: Mapping[str, Tensor],
    origin: str,
    *,
    classifier_may_differ: bool,
    image_size: int | None = None,
) -> None:
    """Refuse a state dict of another network; the classifier's last layer may be absent or have other
    classes.

    image_size: in pixels; some networks have tensors that are made for it.
    Raises WeightsMismatch with the first names, shapes or kinds of numbers that differ.
    """
    skeleton = build_skeleton(network, stem=stem, image_size=image_size)
    classifier = f"{trace(skeleton).classifier}." if classifier_may_differ else None
    expected = skeleton.state_dict()

    def matters(name: str) -> bool:
        return classifier is None or not name.startswith(classifier)

    missing = [name for name in expected if name not in state and matters(name)]
    unexpected = [name for name in state if name not in expected and matters(name)]
    if missing or unexpected:
        parts = [f"lacks {len(missing)} tensors, first {missing[:3]}"] if missing else []
        parts += [f"has {len(unexpected)} others, first {shown(unexpected[:3], 300)}"] if unexpected else []
        raise WeightsMismatch(
            f"{origin} is not {network} with `stem: {stem}`: it {' and '.join(parts)}. Name the network "
            "that the file was saved from, or rename its tensors."
        )
    for name in filter(matters, expected):
        own, got = expected[name], state[name]
        if own.shape != got.shape or own.is_floating_point() != got.is_floating_point():
            raise WeightsMismatch(
                f"{origin}: {name!r} has shape {tuple(got.shape)} and {got.dtype}, {network} with `stem: {stem}` wants "
                f"{tuple(own.shape)} and {own.dtype}. Is the stem, the image_size or the width another one?"
            )


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsMismatch(
                f"{origin}: {shown(name)} holds NaN or infinity; the training that wrote it diverged."
            )
