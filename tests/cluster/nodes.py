"""A Ray cluster on this machine: nodes as separate processes, in network namespaces (as root) with own addresses."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.study.test_ray import descendants, with_signal

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
BRIDGE, NETWORK = "regraftbr", "10.213.77"


def namespaces_can_be_made() -> bool:
    """Whether this user may make network namespaces and bridges."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        made = subprocess.run(["ip", "netns", "add", "regraft-probe"], capture_output=True)
    except FileNotFoundError:
        return False
    subprocess.run(["ip", "netns", "del", "regraft-probe"], capture_output=True)
    return made.returncode == 0


class Cluster:
    """A head without cores, and nodes of one core each."""

    def __init__(self, folder: Path, *, namespaces: bool) -> None:
        self.namespaces, self.nodes = namespaces, dict[str, subprocess.Popen[bytes]]()
        self.folder = folder
        self.environment = {
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        if namespaces:
            _ip(f"link add {BRIDGE} type bridge")
            _ip(f"addr add {NETWORK}.1/24 dev {BRIDGE}")
            _ip(f"link set {BRIDGE} up")
        host = f"{NETWORK}.1" if namespaces else "127.0.0.1"
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        self.address = f"{host}:{port}"
        words = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        self._start("head", [*words, f"--node-ip-address={host}"] if namespaces else words)

    def add(self, name: str, number: int) -> None:
        """A node with one core."""
        words = [f"--address={self.address}", "--num-cpus=1"]
        if self.namespaces:
            _ip(f"netns add regraft-{name}")
            _ip(f"link add regraft{number} type veth peer name eth0 netns regraft-{name}")
            _ip(f"link set regraft{number} master {BRIDGE} up")
            _ip(f"-n regraft-{name} addr add {NETWORK}.{number}/24 dev eth0")
            _ip(f"-n regraft-{name} link set eth0 up")
            _ip(f"-n regraft-{name} link set lo up")
            words.append(f"--node-ip-address={NETWORK}.{number}")
        self._start(name, words)

    def kill(self, name: str) -> None:
        """kill -9 for every process of a node at once."""
        process = self.nodes.pop(name)
        for pid in [process.pid, *descendants(process.pid)]:
            with_signal(pid, signal.SIGKILL)
        process.wait()

    def workers(self, name: str) -> list[int]:
        """Processes of a node that are at a step."""
        below = descendants(self.nodes[name].pid)
        return [pid for pid, title in below.items() if title.startswith("ray::_in_worker")]

    def close(self) -> None:
        for name in list(self.nodes):
            self.kill(name)
        if self.namespaces:
            listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
            for line in listed.splitlines():
                if line.startswith("regraft-"):
                    _ip(f"netns del {line.split()[0]}")
            _ip(f"link del {BRIDGE}")

    def _start(self, name: str, words: list[str]) -> None:
        enter = ["ip", "netns", "exec", f"regraft-{name}"] if self.namespaces and name != "head" else []
        log = (self.folder / f"{name}.log").open("wb")
        self.nodes[name] = subprocess.Popen(
            [*enter, *RAY, "start", "--block", "--object-store-memory=80000000", *words],
            stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True,
        )  # fmt: skip
        log.close()
        self._wait(name)

    def _wait(self, name: str) -> None:
        """Until the node is up: two that start at once on one machine may choose the same sockets."""
        end = time.monotonic() + 120
        while "Ray runtime started" not in (self.folder / f"{name}.log").read_text():
            if time.monotonic() > end or self.nodes[name].poll() is not None:
                raise RuntimeError((self.folder / f"{name}.log").read_text())
            time.sleep(0.2)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)
