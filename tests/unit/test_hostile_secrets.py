"""What a study writes carries nothing of the environment, and no path of a person's home that was not asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.study.conftest import TINY

pytestmark = pytest.mark.slow  # a whole run in a process of its own, with its report

SECRET = "canary-5f2c-of-the-environment"
NAME = "CANARY_OF_A_TOKEN"


def small(folder: Path) -> Path:
    study = {
        "study": "secrets", "seeds": [0, 1], "sources": {"s": {"network": TINY, "image_size": 32}},
        "targets": {"t": {"data": "digits", "classes": ["0", "1"], "per_class": 6, "test_images": 20}},
        "recipes": {"ridge": {"optimizer": "ridge", "weight_decay": 0.1}},
        "rows": [
            {"name": "probe", "source": "s", "cut": "layer1", "method": "frozen", "target": "t", "recipe": "ridge"},
        ],
    }  # fmt: skip
    file = folder / "secrets.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def written(folder: Path) -> dict[Path, bytes]:
    """All that was written, what is in zips as well."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in [p for p in found if zipfile.is_zipfile(p)]:
        with zipfile.ZipFile(path) as archive:
            found |= {path / name: archive.read(name) for name in archive.namelist()}
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study of a person whose home folder and environment can be told; all that it printed."""
    root = tmp_path_factory.mktemp("run")
    home = root / "home-of-a-person"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")}
    environment = {**kept, "HOME": str(home), NAME: SECRET, "REGRAFT_HOME": str(root / "kept"), "USER": "a-person-x7"}
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise SystemExit('a server or a connection')\n"
        "socket.socket.listen = socket.socket.connect = refuse\n"
        "sys.argv = ['regraft', *sys.argv[1:]]\n"
        "from regraft.cli import main\nmain()\n"
    )
    words = ["run", str(small(home)), "--store", str(root / "store"), "--out", str(root / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--threads", "1", "--offline"],
        env=environment, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root, done.stdout + done.stderr


def test_nothing_of_the_environment_is_written_or_printed(run: tuple[Path, str]) -> None:
    root, printed = run
    found = written(root)
    assert {"results.json", "results.csv", "report.html"} <= {path.name for path in found}
    assert any(path.name == "record.json" for path in found)
    for word in (SECRET, NAME, "a-person-x7"):
        assert word not in printed
        assert [path for path, content in found.items() if word.encode() in content] == []


def test_no_path_of_a_home_folder_is_written(run: tuple[Path, str]) -> None:
    root, _ = run
    outside = {path: content for path, content in written(root).items() if "home-of-a-person" not in path.parts}
    assert [path for path, content in outside.items() if b"home-of-a-person" in content] == []


def test_a_host_s_name_is_not_written(run: tuple[Path, str]) -> None:
    name = socket.gethostname()
    if len(name) < 6 or name == "localhost":
        pytest.skip("this machine's name could stand there by chance")
    assert [path for path, content in written(run[0]).items() if name.encode() in content] == []
