"""Advice on a real small folder: told within its time, with test labels apart, and again from the store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import regraft.predictor.advise as advising
from regraft.errors import DataUnavailable, Diverged, RegraftError, StudyError, UnknownName, WeightsMismatch
from regraft.networks import build
from regraft.predictor.advise import Advice, advise
from regraft.predictor.advise.clock import Clock, OutOfTime, usual_minutes
from regraft.predictor.advise.explore import RECIPES, Explored
from regraft.predictor.advise.judge import k_center
from regraft.predictor.advise.sources import image_sizes
from regraft.predictor.predict import Predictor
from regraft.show.advice import text_lines
from regraft.spec import Recipe

# Not the function of that name in the package.
tuning = sys.modules["regraft.predictor.advise.tune"]
COLOURS = ((200, 60, 60), (60, 170, 60), (70, 70, 200))


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 1e6)  # fine-tuning would take all the time that there is


def pictures(root: Path, *, each: int = 20, wrong: int = 0, first: int = 0) -> Path:
    """Noisy colours: classes red, green and blue; the first `wrong` files of red are green. first: number of a file."""
    for label, name in enumerate(("<b>red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for i in range(first, first + each):
            rng = np.random.default_rng([label, i])
            colour = COLOURS[1 if label == 0 and i < wrong else label]
            noise = rng.integers(-60, 61, (8, 8, 3))
            values = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(values).resize((70, 64), Image.Resampling.NEAREST).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    """A small network's file."""
    file = tmp_path / "squeezenet1_1.safetensors"
    save_file(build("squeezenet1_1", seed=0).state_dict(), file)
    return {"squeezenet1_1": file}


def test_the_clock_stops_a_step_when_its_share_is_used_up() -> None:
    clock = Clock(minutes=1.0)
    clock.stops(0.5, "a step")(0.1, "")
    clock.began -= 31
    with pytest.raises(OutOfTime, match="a step"):
        clock.stops(0.5, "a step")(0.2, "")
    assert clock.left() > 0
    assert usual_minutes(10) < usual_minutes(10_000) <= usual_minutes(10**7)


def test_small_pictures_are_enlarged_to_a_moderate_size_first() -> None:
    assert image_sizes(224, 500)[0] == 224
    assert image_sizes(224, 32)[0] == 128
    assert image_sizes(224, 500) == sorted(image_sizes(224, 500), reverse=True)


def test_k_center_takes_one_of_each_heap() -> None:
    import torch

    heaps = torch.tensor([[0.0, 0], [0.1, 0], [9, 9], [9.1, 9], [0, 9], [0.1, 9]])
    assert {i // 2 for i in k_center(heaps, 3)} == {0, 1, 2}
    assert k_center(heaps, 0) == []


def test_a_folder_inside_the_pictures_is_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p", each=2)
    with pytest.raises(StudyError, match="inside the pictures' folder"):
        advise(root, out=root / "out")


def test_a_home_of_nobody_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "p", each=2)
    with pytest.raises(StudyError, match=r"--out ~nobody-of-this-name.*name another folder"):
        advise(tmp_path / "p", out="~nobody-of-this-name/x")


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(StudyError, match="above 0"):
        advise(tmp_path, minutes=minutes)


def test_a_missing_folder_of_more_pictures_is_told_before_anything_is_done(tmp_path: Path) -> None:
    done: list[str] = []
    with pytest.raises(DataUnavailable, match=r"--unlabelled .*there is no folder"):
        advise(pictures(tmp_path / "p", each=2), unlabelled=tmp_path / "none", tell=lambda what, _: done.append(what))
    assert not done


@pytest.mark.slow
def test_unknown_networks_and_files_that_hold_none_are_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p", each=4)
    with pytest.raises(UnknownName, match="resnet18"):
        advise(root, networks=["resnet81"], offline=True)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(WeightsMismatch):
        advise(root, weights={"resnet18": tmp_path / "junk.safetensors"}, offline=True)


@pytest.mark.slow
def test_advice_is_whole_and_its_predictor_answers(tmp_path: Path, weights: dict[str, Path]) -> None:
    root = pictures(tmp_path / "p", wrong=2)
    (tmp_path / "more").mkdir()
    for i, file in enumerate(sorted(root.rglob("*.png"))[::6]):
        (tmp_path / "more" / f"{i}.png").write_bytes(file.read_bytes())
    advice = ask(root, tmp_path, weights, unlabelled=tmp_path / "more")
    low, high = advice.interval
    assert 0.7 < advice.accuracy <= 1.0
    assert low <= advice.accuracy <= high
    assert advice.seconds <= 66 * advice.minutes
    assert {one.file for one in advice.mislabelled} & {"<b>red/0.png", "<b>red/1.png"}
    assert advice.trained_on == 60
    assert len(advice.next_labels.pictures) == 10
    assert json.loads(advice.to_json())["expected"]["test_images"] == 12
    loaded = Predictor.load(str(advice.predictor_file))
    answers = loaded.predict([root / "green" / f"{i}.png" for i in range(10)])
    assert answers.labels.count("green") >= 8
    page = advice.write_page(tmp_path / "advice.html").read_text("utf-8")
    assert "<b>red" not in page
    assert "&lt;b&gt;red" in page
    assert any("expect" in line for line in text_lines(advice))
    assert "<b>" not in advice._repr_html_()


@pytest.mark.slow
def test_advice_asked_again_comes_from_the_store_and_is_the_same(tmp_path: Path, weights: dict[str, Path]) -> None:
    root = pictures(tmp_path / "p")
    first = ask(root, tmp_path, weights)
    objects = {path.name for path in (tmp_path / "store" / "objects").rglob("spec.json")}
    again = ask(root, tmp_path, weights)
    assert {path.name for path in (tmp_path / "store" / "objects").rglob("spec.json")} == objects
    assert again.chosen.what == first.chosen.what
    assert again.expected == first.expected
    assert again.mislabelled == first.mislabelled


@pytest.mark.slow
def test_the_chosen_row_is_scored_once_and_not_by_test_pictures_it_learned(
    tmp_path: Path, weights: dict[str, Path]
) -> None:
    advice = ask(pictures(tmp_path / "p"), tmp_path, weights)
    chosen = [cell for cell in advice.results.cells if cell.row == "chosen"]
    assert len(chosen) == 1
    assert chosen[0].test_images == advice.pictures.test == 12
    assert chosen[0].train_images == advice.pictures.training == 48


@pytest.mark.slow
def test_a_fine_tuned_network_that_is_chosen_is_scored_and_handed_over(
    tmp_path: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "fast", Recipe(optimizer="sgd", epochs=2, lr=0.001))
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 0.0)
    monkeypatch.setattr(Explored, "best", property(lambda self: self.choices[-1]))
    advice = ask(pictures(tmp_path / "p", each=8), tmp_path, weights)
    assert advice.best.method == "finetune"
    chosen = [cell for cell in advice.results.cells if cell.row == "chosen"]
    assert [cell.method for cell in chosen] == ["finetune"] * advice.best.n
    assert advice.expected.n == advice.best.n
    assert advice.trained_on > chosen[0].train_images
    assert len(Predictor.load(str(advice.predictor_file)).predict(tmp_path / "p" / "blue" / "0.png")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("error", [OutOfTime, Diverged])
def test_a_fine_tuned_network_whose_training_on_all_pictures_fails_is_handed_over_as_it_was_scored(
    tmp_path: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: type[RegraftError]
) -> None:
    monkeypatch.setitem(RECIPES, "fast", Recipe(optimizer="sgd", epochs=2, lr=0.001))
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 0.0)
    monkeypatch.setattr(Explored, "best", property(lambda self: self.choices[-1]))
    stops, met = Clock.stops, []

    def failing(self: Clock, share: float, what: str) -> Callable[[float, str], None]:
        def advance(done: float, message: str) -> None:
            met.append(what)
            raise error("within the training")

        return advance if what == "training on all pictures" else stops(self, share, what)

    monkeypatch.setattr(Clock, "stops", failing)
    advice = ask(pictures(tmp_path / "p", each=8), tmp_path, weights)
    assert met
    assert advice.best.method == "finetune"
    (scored,) = {cell.train_images for cell in advice.results.cells if cell.row == "chosen"}
    assert advice.trained_on == scored
    assert len(Predictor.load(str(advice.predictor_file)).predict(tmp_path / "p" / "blue" / "0.png")) == 1


@pytest.mark.slow
def test_a_test_part_of_the_folder_s_own_is_tested_with_and_never_learned(
    tmp_path: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "p" / "train", each=12)
    pictures(tmp_path / "p" / "test", each=5, first=100)
    more = pictures(tmp_path / "more", each=3, first=200)
    monkeypatch.setattr(advising, "MOST_UNLABELLED", 4)
    advice = ask(tmp_path / "p", tmp_path, weights, unlabelled=more)
    assert advice.best.method == "frozen"
    assert (advice.trained_on, advice.pictures.training, advice.pictures.test) == (36, 36, 15)
    stated = Predictor.load(str(advice.predictor_file)).manifest
    assert stated.metrics["test"]["n"] == 15
    assert stated.provenance["train_images"] == 36
    assert len(advice.next_labels.pictures) == 4
    assert any("4 of 9 pictures" in note for note in advice.notes)


@pytest.mark.slow
def test_too_little_time_says_what_would_help(tmp_path: Path, weights: dict[str, Path]) -> None:
    with pytest.raises(OutOfTime, match="--minutes"):
        advise(pictures(tmp_path / "p"), minutes=0.0001, weights=weights, offline=True, store=tmp_path / "store")


@pytest.mark.slow
def test_without_any_trained_network_random_trunks_are_compared_and_ways_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no hub"))
    advice = ask(pictures(tmp_path / "p", each=8), tmp_path, {})
    assert "random weights" in advice.best.source
    assert any("--weights" in note for note in advice.notes)


def ask(root: Path, place: Path, weights: dict[str, Path], unlabelled: Path | None = None) -> Advice:
    return advising.advise(
        root, minutes=5, out=place / "out", weights=weights, store=place / "store", offline=True, seeds=(0, 1, 2),
        unlabelled=unlabelled,
    )  # fmt: skip
