"""`regraft run` around the engine, and the process that it runs in."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import regraft
from regraft.cli import app
from regraft.errors import PredictorError, StudyError
from regraft.spec import Study
from regraft.study.store import Store
from tests.study.conftest import TINY
from tests.study.test_audit import write
from tests.unit.predictor_example import pictures, tiny_predictor
from tests.unit.test_duplicates import scenes


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The file of a study on a folder of 24 pictures that are trained on and 8 that test."""
    for i, name in enumerate(("day", "night")):
        images = scenes(16, seed=i)
        write(tmp_path / "sky" / "train" / name, images[:12])
        write(tmp_path / "sky" / "test" / name, images[12:])
    content: dict[str, Any] = {
        "study": "small", "seeds": [0],
        "sources": {"net": {"network": TINY, "weights": "random", "image_size": 32}},
        "targets": {"sky": {"data": f"folder:{tmp_path / 'sky'}"}},
        "recipes": {"ridge": {"optimizer": "ridge", "weight_decay": 0.1}},
        "rows": [{"name": "probe", "source": "net", "method": "frozen", "target": "sky", "recipe": "ridge"}],
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(Study.from_dict(content).to_yaml())
    return tmp_path / "study.yaml"


def test_an_address_is_rays_alone_and_a_refused_run_leaves_no_folder_of_its_own(study: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for executor in ("serial", "processes"):
        for out in (tmp_path / "new", mine):
            words = ("--address", "127.0.0.1:6379", "--executor", executor, "--store", tmp_path / "store")
            error = run("run", study, "--out", out, *words).exception
            assert isinstance(error, StudyError)
            assert str(error) == f"--address is for --executor ray, got --executor {executor}"
    assert not (tmp_path / "new").exists()
    assert mine.is_dir()


def test_an_audit_that_fails_costs_the_report_its_audit_and_nothing_else(study: Path, tmp_path: Path) -> None:
    words = ("run", study, "--out", tmp_path / "out", "--device", "cpu", "--threads", "1", "--store")
    whole = run(*words, tmp_path / "store")
    assert (whole.exit_code, "Not audited" in whole.stderr) == (0, False), whole.output
    results = (tmp_path / "out" / "results.csv").read_bytes()
    store = Store(tmp_path / "store")
    for artifact in map(store.read, store.keys()):
        if artifact.spec["stage"] == "audit":
            shutil.rmtree(artifact.path)
    shutil.rmtree(store.root / "tmp", ignore_errors=True)
    (store.root / "tmp").touch()  # nothing can be written into the store
    again = run(*words, tmp_path / "store")
    assert again.exit_code == 0
    assert "Not audited: " in again.stderr
    assert "Audit it with: regraft audit STUDY" in again.stderr
    assert (tmp_path / "out" / "results.csv").read_bytes() == results
    assert (tmp_path / "out" / "report.html").is_file()


def test_results_of_before_are_kept_where_the_data_have_gone(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("run", study, "--out", out, "--device", "cpu", "--threads", "1", "--store", tmp_path / "store")
    assert run(*words).exit_code == 0
    before = {name: (out / name).read_bytes() for name in ("results.csv", "results.json", "report.html")}
    (tmp_path / "sky").rename(tmp_path / "unmounted")
    for _ in range(2):  # what is empty itself replaces nothing
        gone = run(*words)
        assert gone.exit_code == 3
        assert f"there is no folder {tmp_path / 'sky'}" in gone.stderr
        for name, content in before.items():
            kept = (out / name).with_stem(Path(name).stem + "-before")
            assert kept.read_bytes() == content
        assert len((out / "results.csv").read_text().splitlines()) == 1
    assert "the results of before are kept" not in gone.stderr
    (tmp_path / "unmounted").rename(tmp_path / "sky")
    assert run(*words).exit_code == 0
    assert (out / "results.csv").read_bytes() == before["results.csv"]


# --- the process --------------------------------------------------------------------------------------------


def process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "regraft", *words]
    return subprocess.run(command, text=True, timeout=60, check=False, **options)


def test_the_module_is_the_command_and_all_that_it_printed_arrives() -> None:
    done = process("schema", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == Study.model_json_schema()
    wrong = process("presets", "quickstrat", capture_output=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no preset 'quickstrat'; did you mean 'quickstart'?")


def test_a_worker_that_imports_the_main_module_does_not_run_the_command_again() -> None:
    """As processes that are spawned do, under another name."""
    code = "import runpy; runpy.run_module('regraft.__main__', run_name='__mp_main__'); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_whoever_reads_the_output_may_go() -> None:
    """As `regraft schema | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = process("schema", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.stderr == ""


def test_the_package_offers_its_names_and_says_them_where_there_is_no_such_name() -> None:
    assert dir(regraft) == sorted(regraft.__all__)
    assert regraft.__version__ == importlib.metadata.version("regraft")
    with pytest.raises(AttributeError, match=r"no attribute 'run_studdy'; it has Advice, .*, run_study, write_report"):
        _ = regraft.run_studdy


# --- regraft export and ui ----------------------------------------------------------------------------------


def test_ui_without_a_predictor_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = run("ui", "--no-browser").exception
    assert isinstance(error, PredictorError)
    assert "`regraft bundle STUDY`" in str(error)


@pytest.mark.slow
def test_a_push_that_is_refused_leaves_what_was_exported(tmp_path: Path) -> None:
    """In a process of its own: the Hub's library reads its settings when it is imported."""
    model = tiny_predictor().save(tmp_path / "tiny.regraft")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "one.png")
    nowhere = {"HF_HOME": str(tmp_path), "HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = process(
        "export", str(model), "--format", "torch-export", "--images", "one.png", "--push", "owner/name",
        capture_output=True, cwd=tmp_path, env={**settings, **nowhere},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Parity: n = " in done.stdout
    assert "On the Hub" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: nobody is logged in to the Hub on this machine")
    assert (tmp_path / "tiny.pt2").is_file()
