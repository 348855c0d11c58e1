"""What the start of a process does not import. Each heavy library costs from a quarter of a second to two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process is asked at its end; what it printed before is its own.
TELL = "import sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
COMMAND = f"""
import sys
sys.argv = ["regraft", *{{arguments!r}}]
from regraft.cli import app
try:
    app()
except SystemExit:
    pass
{TELL}
"""


def modules_after(code: str, home: Path) -> set[str]:
    """Names of the modules that a new process has loaded once it has run `code`."""
    environment = {**os.environ, "REGRAFT_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_libraries_are_imported_where_a_study_uses_them_and_not_before(home: Path) -> None:
    """The engine needs torch; a network of torchvision needs torchvision; the rest is not touched."""
    build = "from regraft.networks import describe\ndescribe('resnet18', image_size=32)"
    loaded = modules_after(
        f"import sys, regraft.study.run\nassert 'torchvision' not in sys.modules\n{build}\n{TELL}", home
    )
    assert not {"timm", "sklearn", "altair", "vl_convert", "jinja2", "scipy.optimize", "scipy.stats"} & loaded


@pytest.mark.parametrize("arguments", [["--help"], ["presets"], ["run", "--help"]], ids=" ".join)
def test_a_question_that_needs_no_network_needs_no_torch(arguments: list[str], home: Path) -> None:
    assert "torch" not in modules_after(COMMAND.format(arguments=arguments), home)


def test_the_state_of_a_study_is_told_without_torch_once_its_networks_are_known(home: Path) -> None:
    status = COMMAND.format(arguments=["status", "quickstart", "--store", str(home / "store")])
    modules_after(status, home)
    assert not {"torch", "torchvision", "timm", "scipy", "altair"} & modules_after(status, home)
