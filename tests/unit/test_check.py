"""What would fail after an hour is refused at once, with the field, what it holds and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from regraft.errors import ImageTooSmall, StudyError, TooFewImages, UnknownCut
from regraft.spec import Study
from regraft.study.check import check
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.store import Store

TINY = "timm/test_resnet"
PLAIN = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
RANDOM = {"network": TINY, "weights": "random", "image_size": 32}
ROW: dict[str, Any] = {"name": "row", "source": "random", "target": "few", "recipe": "plain"}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 1},
    "nothing": {"optimizer": "none"},
    "drawn": {"augment": "flip"},
    "guesses": {"semi": "fixmatch", "augment": "flip"},
    "views": {"optimizer": "ridge", "augment": "flip", "views": 2},
}


def checked(folder: Path, *rows: dict[str, Any], **changes: Any) -> None:
    sources = {"random": RANDOM, **changes.pop("sources", {})}
    targets = {"few": {"data": "digits", "per_class": 10}, **changes.pop("targets", {})}
    made = {"study": "odd", "seeds": [0], "sources": sources, "targets": targets, "recipes": RECIPES, "rows": rows}
    runs = plan(Study.from_dict({**made, **changes}))
    check(runs, Keys(runs, Store(folder / "store"), offline=True))


ODD: list[tuple[dict[str, Any], dict[str, Any], type[StudyError], str]] = [
    ({"recipe": "nothing"}, {}, StudyError,
     r"recipes\.nothing\.optimizer: none trains nothing, and a linear head must be trained; use sgd"),
    ({"recipe": "guesses"}, {"per_class": 10, "unlabelled": True}, StudyError,
     r"recipes\.guesses\.semi: fixmatch learns .* say how with `policy: rand` or `trivial`"),
    ({"recipe": "drawn", "method": "frozen", "head": "head2toe"}, {}, StudyError,
     r"recipes\.drawn: a head2toe head needs cached features; set `views`, or augment: none"),
    ({"recipe": "views", "method": "frozen"}, {"episodes": {"ways": 2}}, StudyError,
     r"recipes\.views\.views: few-shot episodes have no augmented views; leave it out"),
    ({}, {"per_class": 1}, TooFewImages,
     r"targets\.odd: of 1 image per class none can be kept for validation; set validation: 0, or take more"),
    ({}, {"test_images": 5000}, TooFewImages, r"targets\.odd\.test_images: 5,000 asked for, digits has \d+$"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "target", "error", "said"), ODD)
def test_what_cannot_be_done_is_refused_with_its_row_and_field(
    row: dict[str, Any], target: dict[str, Any], error: type[StudyError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"^row 'row': {said}"):
        checked(tmp_path, {**ROW, "target": "odd", **row}, targets={"odd": {"data": "digits", **target}})


def test_a_head_is_not_handed_on_to_a_frozen_trunk(tmp_path: Path) -> None:
    heir = {**ROW, "name": "heir", "source": "trained", "method": "frozen", "head": {"start": "source"}}
    with pytest.raises(StudyError, match=r"^row 'heir': head\.start: source .* set method: finetune"):
        checked(tmp_path, ROW, heir, sources={"trained": {"run": "row"}})


def test_what_is_not_known_of_absent_data_is_not_asked_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    later = {"later": {"data": "flowers102", "classes": ["no such flower", "nor this"], "test_images": 10**6}}
    checked(tmp_path, {**ROW, "target": "later"}, targets=later)
    with pytest.raises(UnknownCut, match="layer9"):
        checked(tmp_path, {**ROW, "target": "later", "cut": "layer9"}, targets=later)
    with pytest.raises(
        StudyError, match=r"^row 'row': targets\.later\.data: the number of images of flowers102 is not"
    ):
        checked(tmp_path, {**ROW, "target": "later", "recipe": "strong"}, targets=later)


def test_cuts_are_checked_while_the_weights_are_away(tmp_path: Path) -> None:
    def source(network: str, size: int = 32, **fields: int) -> dict[str, Any]:
        weights = {"network": network, "weights": f"file:{tmp_path / 'absent.pt'}", **fields}
        return {"sources": {"file": {**weights, "preprocessing": {**PLAIN, "image_size": size}}}}

    row = {**ROW, "source": "file"}
    checked(tmp_path, {**row, "cut": "layer3"}, **source(TINY))
    with pytest.raises(UnknownCut, match="layer9"):
        checked(tmp_path, {**row, "cut": "layer9"}, **source(TINY))
    checked(tmp_path, row, **source("vgg11"))
    for small in ({"size": 8}, {"image_size": 8}):  # the study says itself how large, whether or not there is a file
        with pytest.raises(ImageTooSmall, match="image_size"):
            checked(tmp_path, row, **source("vgg11", **small))


@pytest.fixture
def own_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders with a validation part of their own and without: 4 training images of each of two classes."""
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    for part in ("train", "val", "test"):
        for name in "ab":
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / "own" / part / name / f"{i}.png")
    shutil.copytree(tmp_path / "own", tmp_path / "none")
    shutil.rmtree(tmp_path / "none" / "val")
    return {name: f"folder:{tmp_path / name}" for name in ("own", "none")}


def test_one_image_a_class_suffices_where_the_data_bring_their_validation_images(
    tmp_path: Path, own_and_none: dict[str, str]
) -> None:
    row = {**ROW, "recipe": ["plain", "longer"]}
    recipes = {**RECIPES, "longer": {"epochs": 2}}
    for budget in ({"per_class": 1}, {"fraction": 0.25}):
        of = {name: {"few": {"data": data, **budget}} for name, data in own_and_none.items()}
        checked(tmp_path, row, targets=of["own"], recipes=recipes)
        with pytest.raises(TooFewImages, match="for validation"):
            checked(tmp_path, row, targets=of["none"], recipes=recipes)


def test_all_images_are_neighbours_where_the_data_bring_their_validation_images(
    tmp_path: Path, own_and_none: dict[str, str]
) -> None:
    row = {"name": "row", "source": "random", "target": "few", "method": "frozen",
           "head": {"kind": "knn", "neighbours": 8}}  # fmt: skip
    of = {name: {"few": {"data": data, "validation": 0.25}} for name, data in own_and_none.items()}
    checked(tmp_path, row, targets=of["own"])
    with pytest.raises(TooFewImages, match=r"8 asked for, but targets\.few trains on 6 images"):
        checked(tmp_path, row, targets=of["none"])
