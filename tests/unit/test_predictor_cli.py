"""`regraft predict` on real files: table, JSON, CSV, page, exit codes, and names that mean ill."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from regraft import cli_predict
from regraft.errors import PredictorError
from regraft.predictor import Predictor
from regraft.predictor.files import find_pictures
from regraft.predictor.ui import the_only_predictor
from tests.unit.deep import deepen
from tests.unit.predictor_example import tiny_predictor

COLOURS = {"cat": (200, 20, 20), "dog": (20, 200, 20), "owl": (20, 20, 200)}
HOSTILE = "<script>alert(1)<.png", "\x1b[31mred.png", "=1+1.png"


def regraft(*words: str | Path, stdin: str = "") -> Result:
    app = typer.Typer()
    cli_predict.add_to(app)
    return CliRunner().invoke(app, ["predict", "--threads", "1", *map(str, words)], input=stdin, catch_exceptions=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_predictor().save(tmp_path_factory.mktemp("model") / "tiny.regraft")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two pictures in each class folder."""
    for name, colour in COLOURS.items():
        (tmp_path / "animals" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 30 + i), colour).save(tmp_path / "animals" / name / f"{i}.png")
    return tmp_path / "animals"


def test_json_lines_are_the_predictor_s_answers(model: Path, animals: Path) -> None:
    files = sorted((animals / "cat").iterdir())
    found = regraft(model, *files, "--json", "--top", "2")
    assert found.exit_code == 0
    expected = Predictor.load(model, device="cpu").predict(files)
    for line, file, best in zip(found.stdout.splitlines(), files, expected.top(2), strict=True):
        told = json.loads(line)
        assert told["file"] == str(file)
        assert [(one["class"], one["probability"]) for one in told["top"]] == [
            (name, pytest.approx(share, abs=1e-4)) for name, share in best
        ]
        assert (told["class"], told["probability"]) == (told["top"][0]["class"], told["top"][0]["probability"])


def test_csv_has_a_row_for_each_file_and_the_reason_for_those_not_read(model: Path, animals: Path) -> None:
    (animals / "cat" / "zero.png").write_bytes(b"")
    found = regraft(model, animals / "cat", "--csv", "--top", "9")
    assert found.exit_code == 3
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "zero.png"]
    assert rows[0].keys() >= {"class", "class 3", "probability 3", "true", "error"}
    assert rows[2]["class"] == ""
    assert rows[2]["error"] == "the file is empty"


def test_class_folders_give_accuracy_with_its_interval_and_each_class(model: Path, animals: Path) -> None:
    (animals / "cow").mkdir()
    Image.new("RGB", (9, 9)).save(animals / "cow" / "a.png")
    found = regraft(model, animals)
    assert found.exit_code == 0
    assert re.search(r"Accuracy [\d.]+ % \[[\d.]+, [\d.]+\] \(95 % Wilson, n = 6 pictures", found.stdout)
    assert "calibration error over 15 bins" in found.stdout
    assert re.search(r"^owl +2 ", found.stdout, re.MULTILINE)
    assert "answered, not judged: 1 files in 'cow'" in found.stderr
    lines = regraft(model, animals, "--json").stdout.splitlines()
    assert json.loads(lines[0])["true"] == "cat"
    evaluation = json.loads(lines[-1])["evaluation"]
    assert evaluation["images"] == 6
    assert sum(map(sum, evaluation["confusion"]["counts"])) == 6


def test_a_list_on_standard_input_a_pattern_and_a_folder_name_each_file_once(model: Path, animals: Path) -> None:
    listed = f"{animals / 'cat' / '0.png'}\n\n{animals / 'dog' / '1.png'}\n"
    found = regraft(model, "-", animals / "*" / "0.png", animals / "owl", "--json", stdin=listed)
    files = [json.loads(line).get("file", "") for line in found.stdout.splitlines()]
    names = ["/".join(Path(file).parts[-2:]) for file in files]
    assert names == ["cat/0.png", "dog/1.png", "dog/0.png", "owl/0.png", "owl/1.png"]


def test_a_list_may_be_separated_by_zero_bytes(model: Path, animals: Path) -> None:
    odd = animals / "two\nlines.png"
    Image.new("RGB", (9, 9)).save(odd)
    found = regraft(model, "-", "--json", stdin=f"{odd}\0{animals / 'cat' / '0.png'}\0")
    assert [json.loads(line)["file"] for line in found.stdout.splitlines()] == [str(odd), str(animals / "cat/0.png")]


def test_exit_codes_tell_all_some_and_none(model: Path, animals: Path) -> None:
    good = animals / "cat" / "0.png"
    assert regraft(model, good).exit_code == 0
    some = regraft(model, good, "nowhere.png", animals / "*.tif")
    assert some.exit_code == 3
    assert "not read: nowhere.png: no such file or folder" in some.stderr
    assert "no file or folder fits this pattern" in some.stderr
    assert regraft(model, "nowhere.png").exit_code == 1
    assert regraft(model, good, "--json", "--csv").exit_code == 2


def test_of_many_files_without_an_answer_some_are_named_and_json_names_all(model: Path, animals: Path) -> None:
    broken = [animals / "cat" / f"broken {i:02}.png" for i in range(23)]
    for file in broken:
        file.write_bytes(b"")
    (animals / "cat" / "notes.txt").touch()
    found = regraft(model, animals / "cat", "--json")
    assert found.exit_code == 3
    told = [json.loads(line) for line in found.stdout.splitlines()]
    assert [one for one in told if "error" in one] == [
        {"file": str(file), "error": "the file is empty"} for file in broken
    ]
    assert found.stderr.count("not read: ") == 20
    assert "... and 3 more; --json and --csv name all" in found.stderr
    assert "passed over: files not named like pictures: 1\n" in found.stderr


def test_names_that_mean_ill_are_only_text(model: Path, animals: Path, tmp_path: Path) -> None:
    (animals / "<img src=x onerror=alert(1)>").mkdir()
    for i, name in enumerate(HOSTILE):
        Image.new("RGB", (12, 12), (i, 9, 9)).save(animals / "cat" / name)
        Image.new("RGB", (12, 12), (i, 9, 9)).save(animals / "<img src=x onerror=alert(1)>" / name)
    page = tmp_path / "page.html"
    found = regraft(model, animals, "--report", page)
    assert found.exit_code == 0
    assert "\x1b" not in found.stdout
    html = page.read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;.png" in html
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "default-src &#39;none&#39;; script-src &#39;none&#39;" in html


def test_the_page_shows_the_worst_pictures_and_loads_nothing(model: Path, animals: Path, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    assert regraft(model, animals, "--report", page, "--csv").exit_code == 0
    html = page.read_text("utf-8")
    for words in ("Highest losses", "Class by class", "Which classes are taken for which", "Reliability diagram", "F1"):
        assert words in html
    assert html.count('src="data:image/jpeg') == 6
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    alone = tmp_path / "alone.html"
    assert regraft(model, animals / "cat", "--report", alone).exit_code == 0
    assert "Least certain" in alone.read_text("utf-8")


@pytest.mark.slow
def test_a_thousand_classes_have_no_matrix_but_pairs(tmp_path: Path) -> None:
    from regraft.predictor.answers import Answer
    from regraft.predictor.report import page_of
    from regraft.seeding import stream
    from tests.unit.predictor_example import tiny_manifest

    names = tuple(f"class {i}" for i in range(1000))
    shares = stream(0, "answers").dirichlet([0.01] * 1000, 300).astype("float32")
    answers = [Answer(f"{i}.png", names[i], row, None) for i, row in enumerate(shares)]
    page = page_of(answers, tiny_manifest(classes=names), model="m")
    assert page.matrix is None
    assert {table.title for table in page.tables} >= {"Most often confused", "Class by class"}


def test_a_page_says_of_a_predictor_that_was_not_calibrated_that_it_was_not() -> None:
    from regraft.predictor.answers import Answer
    from regraft.predictor.report import page_of
    from tests.unit.predictor_example import CLASSES, tiny_manifest

    answers = [Answer("a.png", "cat", np.array([0.8, 0.1, 0.1], np.float32), None)]
    plain = tiny_manifest().metrics
    for metrics, said in ((plain, "not calibrated"), ({**plain, "calibration": {}}, "fitted on validation images")):
        assert said in page_of(answers, tiny_manifest(metrics=metrics, classes=CLASSES), model="m").diagram_caption


def test_hidden_files_links_to_folders_and_other_files_are_passed_over_and_counted(animals: Path) -> None:
    (animals / "cat" / ".hidden.png").write_bytes(b"x")
    (animals / ".git").mkdir()
    (animals / "cat" / "notes.txt").write_text("x")
    (animals / "cat" / "again").symlink_to(animals, target_is_directory=True)
    search = find_pictures([str(animals)], COLOURS)
    assert len(search.found) == 6
    assert {one.label for one in search.found} == set(COLOURS)
    assert search.passed_over == {
        "hidden files and folders": 2, "links to folders": 1, "files not named like pictures": 1
    }  # fmt: skip


def test_a_pattern_names_files_and_the_pictures_in_folders_each_once(animals: Path) -> None:
    (animals / "notes.txt").write_text("x")
    (animals / "cat" / "notes.txt").write_text("x")
    everything = sorted(str(file) for file in animals.rglob("*.png"))

    def found(pattern: str) -> list[str]:
        return sorted(one.path for one in find_pictures([str(animals / pattern)], COLOURS).found)

    assert found("*") == sorted([*everything, str(animals / "notes.txt")])  # a file that is named is taken
    assert found("**") == everything  # at any depth, where files are not named one by one
    assert found("d*/1.*") == [str(animals / "dog" / "1.png")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs paths of a POSIX system")
def test_a_folder_that_cannot_be_opened_is_passed_over_and_counted(animals: Path) -> None:
    """Its path is longer than the system takes, which holds for the superuser as well."""
    deepen(animals / "cat")
    search = find_pictures([str(animals)], COLOURS)
    assert len(search.found) == 6
    assert search.passed_over == {
        "hidden files and folders": 0, "links to folders": 0, "folders that cannot be opened (File name too long)": 1
    }  # fmt: skip


def test_a_folder_without_pictures_says_so(tmp_path: Path) -> None:
    (only,) = find_pictures([str(tmp_path)]).found
    assert only.reason is not None
    assert "no picture in this folder" in only.reason


def test_class_folders_are_told_by_unicode_s_normal_form(tmp_path: Path) -> None:
    (tmp_path / "e\u0301cole").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "e\u0301cole" / "a.png")
    assert [one.label for one in find_pictures([str(tmp_path)], ["\u00e9cole"]).found] == ["\u00e9cole"]


def test_the_only_predictor_of_a_folder_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match=r"has no predictor.*regraft ui NAME\.regraft"):
        the_only_predictor(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "mine.regraft").touch()
    assert the_only_predictor(tmp_path) == tmp_path / "mine.regraft"
    (tmp_path / "yours.regraft").touch()
    with pytest.raises(PredictorError, match=r"has 2 predictors: mine\.regraft, yours\.regraft\. Name one"):
        the_only_predictor(tmp_path)
