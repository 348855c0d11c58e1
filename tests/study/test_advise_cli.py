"""`regraft advise` on the command line, on a real small folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from regraft.cli import app
from regraft.networks import build
from regraft.predictor.predict import Predictor
from tests.study.test_advise import pictures, tuning


def said(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 1e6)  # fine-tuning would take all the time that there is


@pytest.mark.parametrize("given", ["squeezenet1_1", "=w.pth", "squeezenet1_1="])
def test_weights_that_name_no_network_or_no_file_are_refused(tmp_path: Path, given: str) -> None:
    code, _, errors = said("advise", pictures(tmp_path / "p", each=2), "--weights", given)
    assert code == 2
    assert "NETWORK=FILE" in errors


@pytest.mark.slow
def test_advice_is_said_written_as_a_page_and_kept(tmp_path: Path) -> None:
    """Asked again as JSON, it is the same, from the store."""
    root = pictures(tmp_path / "p")
    save_file(build("squeezenet1_1", seed=0).state_dict(), tmp_path / "w.safetensors")
    words: list[str | Path] = [
        "advise",
        root,
        "--minutes",
        "2",
        "--weights",
        "squeezenet1_1=w.safetensors",
        "--seeds",
        "2",
        "--offline",
    ]
    code, text, errors = said(*words)
    assert code == 0, errors
    page = tmp_path / "p-advice" / "advice.html"
    assert f"Page: {page.relative_to(tmp_path)}" in text or f"Page: {page}" in text
    assert "squeezenet1_1" in page.read_text("utf-8")
    kept = json.loads((tmp_path / "p-advice" / "advice.json").read_text("utf-8"))
    code, text, errors = said(*words, "--json")
    assert code == 0, errors
    again = json.loads(text)
    assert again["expected"] == kept["expected"]
    assert Predictor.load(str(tmp_path / "p-advice" / "p.regraft")).classes == ("<b>red", "blue", "green")
