"""Laws of a study on a cluster: nodes and drivers die, the result is that of one machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster, namespaces_can_be_made
from tests.study.test_ray import PROGRAM, artifacts, assert_same, command, longer_study, said, start, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    said(start(PROGRAM, json.dumps(longer_study()), folder / "store", folder / "results.csv", "serial"))
    return folder


@pytest.fixture(scope="module", params=["one address", "namespaces"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one core, `a` and `b`, and a head with none."""
    pytest.importorskip("ray")
    namespaces = request.param == "namespaces"
    if namespaces and not namespaces_can_be_made():
        pytest.skip("making network namespaces needs root")
    made = Cluster(tmp_path_factory.mktemp("logs"), namespaces=namespaces)
    try:
        made.add("a", 2)
        made.add("b", 3)
        yield made
    finally:
        made.close()


def run(cluster: Cluster, folder: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, "--address", cluster.address, "--quiet"), stderr=subprocess.PIPE, text=True,
        env={**cluster.environment, **more}, start_new_session=True,
    )  # fmt: skip


def test_a_wrong_token_is_refused_and_said(cluster: Cluster, tmp_path: Path) -> None:
    process = run(cluster, tmp_path, RAY_AUTH_TOKEN="0" * 64)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 1
    assert f"no Ray answers at {cluster.address}" in told
    assert "token" in told
    assert artifacts(tmp_path) == 0


def at_work(cluster: Cluster) -> list[str]:
    """Nodes that are at a step."""
    return [name for name in ("a", "b") if name in cluster.nodes and cluster.workers(name)]


def test_a_killed_driver_and_a_killed_node_change_no_byte(cluster: Cluster, serial: Path, tmp_path: Path) -> None:
    first = run(cluster, tmp_path)
    until(lambda: at_work(cluster), 120)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    until(lambda: not at_work(cluster), 30)  # Ray ends a dead driver's workers, and their locks with them
    for left in (tmp_path / "store" / "tmp").glob("cluster-*"):
        left.unlink()
    second = run(cluster, tmp_path)
    until(lambda: artifacts(tmp_path) >= 1 and at_work(cluster), 240)
    before = artifacts(tmp_path)
    cluster.kill(at_work(cluster)[0])
    _, told = second.communicate(timeout=300)
    assert second.returncode == 0, told
    assert before < artifacts(tmp_path)
    assert_same(tmp_path, serial)
