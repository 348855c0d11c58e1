"""The audit of a study finds what was planted in a folder of pictures, and counts results without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from regraft import cli_audit
from regraft.data import load_dataset
from regraft.errors import DataError
from regraft.show.audit import audit_dict, audit_section, findings, section, tables
from regraft.show.audit_page import audit_html, write_audit
from regraft.spec import Study
from regraft.study.audit import Audit, audit, audit_key, stored_audit, without_duplicates
from regraft.study.results import read_results
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import TINY
from tests.unit.test_duplicates import scenes

Images = NDArray[np.uint8]
TRAIN, TEST = 60, 20  # of each of two classes


def write(folder: Path, images: Images) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test pictures of `day`: 0-2 are in training, 3 also mirrored, 4 as `night`, 5 is 6; one is empty, one broken."""
    root = tmp_path_factory.mktemp("audit") / "pictures"
    day, night = scenes(TRAIN + TEST, seed=10), scenes(TRAIN + TEST, seed=11)
    test = day[TRAIN:].copy()
    test[:3], test[3], test[4], test[5] = day[:3], day[3, :, ::-1], night[4], test[6]
    write(root / "train" / "day", day[:TRAIN])
    write(root / "train" / "night", night[:TRAIN])
    write(root / "test" / "day", test)
    write(root / "test" / "night", night[TRAIN:])
    Image.new("RGB", (32, 32), (9, 9, 9)).save(root / "train" / "night" / "empty.png")
    (root / "train" / "night" / "broken.png").write_bytes(b"no picture")
    return root


def study_of(pictures: Path, **target: Any) -> Study:
    return Study.from_dict({
        "study": "planted",
        "seeds": [0, 1],
        "sources": {"net": {"network": TINY, "weights": "random", "image_size": 32}},
        "targets": {"sky": {"data": f"folder:{pictures}", "validation": 0.2, **target}},
        "recipes": {"ridge": {"optimizer": "ridge", "weight_decay": 0.1}},
        "rows": [
            {"name": "features", "source": "net", "method": "frozen", "target": "sky", "recipe": "ridge"},
        ],
    })  # fmt: skip


@pytest.fixture(scope="module")
def scored(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    study, store = study_of(pictures), Store(tmp_path_factory.mktemp("audit") / "store")
    assert not run_study(study, store, threads=1, device="cpu").missing
    return study, store


@pytest.fixture(scope="module")
def audited(scored: tuple[Study, Store]) -> Audit:
    return audit(*scored)


def test_all_that_was_planted_is_found_and_nothing_else(audited: Audit) -> None:
    pairs = {(p.first.split, p.first.position, p.second.split, p.second.position): p for p in audited.pairs}
    planted = {("test", i, "train", i) for i in range(4)} | {("test", 4, "train", TRAIN + 4), ("test", 5, "test", 6)}
    assert set(pairs) == planted
    assert [key[1] for key, pair in pairs.items() if pair.mirrored] == [3]
    assert [key[1] for key, pair in pairs.items() if not pair.exact] == [3]
    (found_set,) = audited.sets
    assert [(place.split, place.position) for place in found_set.constant] == [("train", 2 * TRAIN)]
    assert len(found_set.unreadable) == 1
    assert "broken.png" in found_set.unreadable[0]
    assert found_set.classes["train"] == {"day": TRAIN, "night": TRAIN + 1}
    assert found_set.classes["test"] == {"day": TEST, "night": TEST}  # as the stored scores tell


def test_crossings_are_counted_for_the_budget_of_each_seed(audited: Audit) -> None:
    for seed in (0, 1):
        learned = {(c.part, c.other): c.images for c in audited.crossings if c.seed == seed}
        assert learned["test", "training"] + learned["test", "validation"] == 5
        assert learned["test", "test"] == 2
        assert len(audited.flagged["features", seed]) == learned["test", "training"]
    assert {c.of for c in audited.crossings if c.part == "test"} == {2 * TEST}


def test_results_without_duplicates_are_those_of_the_other_test_images(
    audited: Audit, scored: tuple[Study, Store]
) -> None:
    study, store = scored
    results = read_results(study, store)
    for cell, row in zip(results.cells, without_duplicates(results, audited), strict=True):
        (artifact,) = [a for a in map(store.read, store.keys()) if a.spec.get("fit") == cell.key]
        right = artifact.tensors()["correct"].bool().tolist()
        out = set(audited.flagged[cell.row, cell.seed].tolist())
        left = [r for i, r in enumerate(right) if i not in out]
        assert row.without == pytest.approx(sum(left) / len(left))
        assert (row.accuracy, row.flagged, row.test_images) == (cell.accuracy, len(out), 2 * TEST)
        assert row.accuracy * row.test_images == pytest.approx(
            row.without * (row.test_images - row.flagged) + (row.on_flagged or 0.0) * row.flagged
        )


def test_test_labels_are_told_by_stored_scores_only(pictures: Path, audited: Audit, tmp_path: Path) -> None:
    unscored = audit(study_of(pictures), Store(tmp_path))
    assert all(pair.labels[0] is None for pair in unscored.pairs)
    assert "test" not in unscored.sets[0].classes
    assert len(unscored.pairs) == len(audited.pairs)
    told = {pair.first.position: pair.labels for pair in audited.pairs if pair.labels[0] is not None}
    assert all(labels[0] == "day" for labels in told.values())
    assert [pair.first.position for pair in audited.pairs if pair.labels_differ] == [4] * (4 in told)


def test_images_of_a_source_row_are_compared_with_the_test_images_of_the_rows_cut_from_it(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    zeros, ones = (digits.train.images[digits.train.labels == label] for label in (0, 1))
    large = [images[:, :, :, 0].repeat(4, 1).repeat(4, 2) for images in (zeros, ones)]
    blurs = scenes(40, seed=12)[..., 0]
    write(tmp_path / "own" / "train" / "a", blurs[:10])
    write(tmp_path / "own" / "train" / "b", blurs[10:20])
    write(tmp_path / "own" / "test" / "a", np.concatenate([large[0][:4], blurs[20:26]]))
    write(tmp_path / "own" / "test" / "b", np.concatenate([large[1][:1], blurs[30:]]))
    study = Study.from_dict({
        "study": "two-sets",
        "seeds": [0],
        "sources": {
            "net": {"network": TINY, "weights": "random", "image_size": 32}, "trained": {"run": "source"},
        },
        "targets": {
            "digits": {"data": "digits", "classes": ["0", "1"], "validation": 0.0},
            "own": {"data": f"folder:{tmp_path / 'own'}", "validation": 0.2},
        },
        "recipes": {"once": {"epochs": 1, "keep": "last"}},
        "rows": [
            {"name": "source", "source": "net", "target": "digits", "recipe": "once"},
            {"name": "cut", "source": "trained", "target": "own", "recipe": "once"},
        ],
    })  # fmt: skip
    found = audit(study, Store(tmp_path / "store"))
    (crossing,) = [c for c in found.crossings if "source row source" in c.other]
    assert (crossing.target, crossing.images, crossing.of) == ("own", 5, 21)
    assert found.flagged["cut", 0].tolist() == [0, 1, 2, 3, 10]
    assert not any(pair.labels_differ for pair in found.pairs if pair.first.data != pair.second.data)


def test_the_page_names_what_was_found_and_loads_nothing(
    audited: Audit, scored: tuple[Study, Store], tmp_path: Path
) -> None:
    study, store = scored
    without = without_duplicates(read_results(study, store), audited)
    page = write_audit(audited, without, tmp_path / "new" / "audit.html", command="regraft audit <b>").read_text()
    assert page == audit_html(audited, without, command="regraft audit <b>")
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;" in page
    assert page.count("data:image/png;base64,") == 2 * 6
    assert page.count("alt=") == 2 * 6
    for table in tables(audited, without):
        assert table.title in page
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert any("40 test images (" in sentence for sentence in findings(audited, without))
    assert any("among the training images" in sentence for sentence in findings(audited, without))
    told = json.loads(json.dumps(audit_dict(audited, without)))
    assert len(told["pairs"]) == 6


def test_the_command_prints_tables_or_json_and_writes_the_page(scored: tuple[Study, Store], tmp_path: Path) -> None:
    study, store = scored
    app = typer.Typer()
    cli_audit.add_to(app)
    file = tmp_path / "study.yaml"
    file.write_text(study.to_yaml())
    words = [str(file), "--store", str(store.root), "--out", str(tmp_path / "page.html"), "--offline"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "Results with and without duplicated test images" in shown.output
    assert (tmp_path / "page.html").is_file()
    printed = CliRunner().invoke(app, [*words[:3], "--json"])
    assert len(json.loads(printed.stdout)["pairs"]) == 6


def test_of_a_long_table_the_command_shows_the_first_rows_and_says_how_many_more(tmp_path: Path) -> None:
    for name in ("day", "night"):  # every test picture is a training picture
        for split in ("train", "test"):
            write(tmp_path / "sky" / split / name, scenes(12, seed=len(name)))
    app = typer.Typer()
    cli_audit.add_to(app)
    (tmp_path / "study.yaml").write_text(study_of(tmp_path / "sky").to_yaml())
    words = [str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store"), "--offline"]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert len(json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["pairs"]) == 24
    assert "... and 4 more; --out FILE.html or --json shows them" in shown
    assert "Written to" not in shown


def test_an_audit_is_searched_once_and_read_from_then_on(
    audited: Audit, scored: tuple[Study, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = scored
    monkeypatch.setattr("regraft.study.audit_search.Search.found", None)  # whoever calls it fails
    kept, again = stored_audit(read_results(study, store)), audit(study, store)
    assert kept is not None
    for found in (kept, again):
        assert (found.sets, found.pairs, found.crossings) == (audited.sets, audited.pairs, audited.crossings)
        assert found.pictures == audited.pictures
        assert {cell: list(at) for cell, at in found.flagged.items()} == {
            cell: list(at) for cell, at in audited.flagged.items()
        }


def test_names_play_no_part_in_what_an_audit_is_kept_under(pictures: Path, scored: tuple[Study, Store]) -> None:
    store = scored[1]
    other = study_of(pictures).model_dump(mode="json", exclude_defaults=True)
    other["study"] = "renamed"
    other["targets"] = {"dawn": other["targets"]["sky"]}
    other["rows"] = [{**other["rows"][0], "name": "other", "target": "dawn"}]
    found = stored_audit(Study.from_dict(other), store)
    assert found is not None
    assert {crossing.target for crossing in found.crossings} == {"dawn"}
    assert set(found.flagged) == {("other", 0), ("other", 1)}
    key = audit_key(study_of(pictures), store)
    assert key == audit_key(Study.from_dict(other), store)
    for changed in ({"per_class": 20}, {"validation": 0.3}, {"test_images": 10}):
        assert audit_key(study_of(pictures, **changed), store) != key


def test_what_a_report_shows_is_there_once_the_audit_is_kept(
    audited: Audit, scored: tuple[Study, Store], tmp_path: Path
) -> None:
    study, store = scored
    results = read_results(study, store)
    shown = audit_section(results)
    assert shown is not None
    assert shown == section(audited, without_duplicates(results, audited))
    assert len(shown.closest) == len(audited.pictures) == 6
    assert all(one.first.startswith("data:image/png;base64,") and all(one.alt) for one in shown.closest)
    assert audit_section(read_results(study, Store(tmp_path / "empty"))) is None


def test_images_that_were_learned_from_without_their_labels_count(pictures: Path, tmp_path: Path) -> None:
    few = study_of(pictures, per_class=5).model_dump(mode="json", exclude_defaults=True)
    few["recipes"]["fix"] = {"semi": "fixmatch", "epochs": 1}
    few["rows"].append({"name": "semi", "source": "net", "method": "finetune", "target": "sky", "recipe": "fix"})
    found = audit(Study.from_dict(few), Store(tmp_path / "store"))
    for seed in (0, 1):
        assert len(found.flagged["features", seed]) < 5  # not all of them are in 2 x 4 training images
        held = {(c.part, c.other): c.images for c in found.crossings if c.seed == seed}["test", "validation"]
        assert len(found.flagged["semi", seed]) == 5 - held


def test_data_that_cannot_be_had_is_named(pictures: Path, tmp_path: Path) -> None:
    study = study_of(pictures).model_dump(mode="json", exclude_defaults=True)
    study["targets"]["gone"] = {"data": f"folder:{tmp_path / 'gone'}"}
    study["rows"].append({**study["rows"][0], "name": "other", "target": "gone"})
    found = audit(Study.from_dict(study), Store(tmp_path / "store"))
    assert list(found.unavailable) == [f"folder:{tmp_path / 'gone'}"]
    assert len(found.pairs) == 6
    study["rows"] = study["rows"][1:]
    with pytest.raises(DataError, match="gone"):
        audit(Study.from_dict(study), Store(tmp_path / "store"))


def test_two_spellings_of_a_data_set_are_one(tmp_path: Path) -> None:
    study = Study.from_dict({
        "study": "spelt", "seeds": [0],
        "sources": {"net": {"network": TINY, "weights": "random", "image_size": 32}},
        "targets": {"a": {"data": "digits", "per_class": 5}, "b": {"data": "DIGITS", "per_class": 5}},
        "recipes": {"ridge": {"optimizer": "ridge", "weight_decay": 0.1}},
        "grid": {"source": "net", "method": "frozen", "target": ["a", "b"], "recipe": "ridge"},
    })  # fmt: skip
    store = Store(tmp_path)
    assert not run_study(study, store, threads=1, device="cpu").missing
    found = audit(study, store)
    assert [one.data for one in found.sets] == ["digits"]
    assert len(without_duplicates(read_results(study, store), found)) == 2
