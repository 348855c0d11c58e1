"""What the package asks of others: bounded on both sides, and held by the lock file of development."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ASKED = [Requirement(text) for text in [*PROJECT["dependencies"], *(one for some in EXTRAS.values() for one in some)]]


def locked() -> dict[str, list[Version]]:
    """Versions by package; several where they differ from system to system."""
    found: dict[str, list[Version]] = {}
    for line in (REPOSITORY / "requirements-dev.lock").read_text("utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==([^ ;\\]+)", line):
            found.setdefault(canonicalize_name(match[1]), []).append(Version(match[2]))
    return found


@pytest.mark.parametrize("one", ASKED, ids=str)
def test_each_has_a_lowest_and_a_highest_version(one: Requirement) -> None:
    signs = {part.operator for part in one.specifier}
    assert signs == {">=", "<"}


@pytest.mark.parametrize("one", ASKED, ids=str)
def test_the_lock_file_holds_a_version_that_is_asked_for(one: Requirement) -> None:
    versions = locked().get(canonicalize_name(one.name), [])
    assert versions, "run tools/lock"
    assert all(one.specifier.contains(version, prereleases=True) for version in versions)


def test_the_lock_file_has_hashes_and_names_no_host() -> None:
    text = (REPOSITORY / "requirements-dev.lock").read_text("utf-8")
    assert text.count("--hash=sha256:") >= len(locked()) > len({one.name for one in ASKED})
    assert "://" not in text
    assert "index-url" not in text
