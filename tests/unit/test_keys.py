"""The specs of a plan's runs: all that determines a result is in them, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regraft.data import converted, dataset_digest
from regraft.errors import Diverged, StudyError, WeightsError
from regraft.spec import Run, Study
from regraft.study.keys import Keys, NotTrained, cacheable, score_spec
from regraft.study.plan import plan
from regraft.study.store import Payload, Store, key_of

TINY = "timm/test_resnet"
CUT = "layer3.0"  # what `layer3` stands for
PLAIN = {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
ORDER = {"channels": "rgb", "interpolation": "bilinear"}
SOURCES: dict[str, Any] = {"random": {"network": TINY, "weights": "random", "image_size": 32}}
CHAIN = {"trained": {"run": "source"}, "tuned": {"run": "tuned"}, "probed": {"run": "probe"}}
RECIPES: dict[str, Any] = {
    "fast": {"epochs": 3, "lr": 0.05},
    "slow": {"epochs": 3, "lr": 0.01},
    "weak": {"optimizer": "ridge", "weight_decay": 0.01},
    "strong": {"optimizer": "ridge", "weight_decay": 1.0},
    "again": {"optimizer": "ridge", "weight_decay": [0.1, 1.0], "refit": True},
}
ROWS: list[dict[str, Any]] = [
    {"name": "source", "source": "random", "target": "first", "recipe": "fast", "seeds": [4]},
    {"name": "tuned", "source": "trained", "target": "few", "recipe": ["fast", "slow"]},
    {"name": "probe", "source": "tuned", "method": "frozen", "cut": "layer3", "target": "few",
     "recipe": ["weak", "strong"]},
    {"name": "third", "source": "probed", "target": "few", "recipe": "fast"},
    {"name": "again", "source": "random", "method": "frozen", "target": "few", "recipe": "again"},
]  # fmt: skip


def study_of(rows: list[dict[str, Any]] | None = None, **changes: Any) -> Study:
    return Study.from_dict({
        "study": "keys", "seeds": [0, 1],
        "sources": SOURCES if rows else {**SOURCES, **CHAIN},
        "targets": {
            "first": {"data": "digits", "classes": ["0", "1"], "per_class": 30},
            "few": {"data": "digits", "classes": ["5", "6"], "per_class": 10, "validation": 0.2, "test_images": 9},
        },
        "recipes": RECIPES, "rows": ROWS if rows is None else rows, **changes,
    })  # fmt: skip


class Plan:
    """Runs of a study and their keys, over an empty store."""

    def __init__(self, folder: Path, study: Study | None = None) -> None:
        self.store = Store(folder / "store")
        self.keys = Keys(plan(study or study_of()), self.store, offline=True)

    def run(self, row: str, seed: int | None = None, recipe: str | None = None) -> Run:
        return next(
            run for run in self.keys.runs
            if run.row == row and seed in (None, run.seed) and recipe in (None, run.recipe_name)
        )  # fmt: skip

    def train(self, run: Run, accuracy: float = 0.5, loss: float = 1.0, diverged: str = "") -> None:
        values = {"diverged": diverged} if diverged else {"validation_accuracy": accuracy, "validation_loss": loss}
        self.store.cached(self.keys.fit(run), lambda scratch: Payload(values))


@pytest.fixture
def of(tmp_path: Path) -> Plan:
    return Plan(tmp_path)


# --- what is in a spec --------------------------------------------------------------------------------------------


def test_the_spec_of_a_fit_says_all_that_determines_it(of: Plan) -> None:
    assert of.keys.fit(of.run("source")) == {
        "stage": "fit", "version": 2, "trunk": {"random": 4}, "network": TINY, "stem": "imagenet",
        "cut": "penultimate", "method": "finetune", "head": {"kind": "linear", "pool": "average"},
        "preprocessing": {**PLAIN, **ORDER},
        "data": {
            "digest": dataset_digest("digits"), "classes": ("0", "1"), "per_class": 30, "fraction": None,
            "validation": 0.1, "episodes": None,
        },
        "recipe": {
            "optimizer": "sgd", "epochs": 3, "batch_size": 128, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005,
            "schedule": "cosine", "warmup": 0.0, "label_smoothing": 0.0, "augment": "none", "views": 0, "keep": "last",
        },
        "seed": 4, "refit": False,
    }  # fmt: skip


def test_the_spec_of_features_says_all_that_determines_them(of: Plan) -> None:
    run = of.run("again")
    assert of.keys.features(run, "test") == {
        "stage": "features", "version": 2, "trunk": {"random": 0}, "network": TINY, "stem": "imagenet",
        "cut": "penultimate", "pool": "average", "data": dataset_digest("digits"), "split": "test",
        "preprocessing": {**PLAIN, **ORDER}, "augment": None,
    }  # fmt: skip
    assert of.keys.features(run, "train", cut="layer1.0")["cut"] == "layer1.0"


def test_the_spec_of_a_score_names_its_fit_and_the_test_images(of: Plan) -> None:
    run = of.run("source")
    fit = of.keys.fit_key(run)
    assert fit == key_of(of.keys.fit(run)) == of.keys.fit_key(run)
    assert of.keys.score(run) == score_spec(fit, None)
    assert score_spec(fit, 9) == {"stage": "score", "version": 2, "fit": fit, "test": {"images": 9}}
    assert of.keys.score_key(run) == key_of(score_spec(fit, None))


def test_an_augmented_view_names_its_number_and_only_the_changes_that_it_makes(tmp_path: Path) -> None:
    viewed = {"optimizer": "ridge", "augment": "flip", "views": 2}
    recipes = {"plain": viewed, "more": {**viewed, "policy": "color", "cutout": 0.5}}
    rows = [{**ROWS[4], "name": name, "recipe": name} for name in recipes]
    of = Plan(tmp_path, study_of(rows, recipes={**RECIPES, **recipes}))
    assert of.keys.features(of.run("plain"), "train", view=2)["augment"] == {"kind": "flip", "view": 2}
    more = of.keys.features(of.run("more"), "train", view=1)["augment"]
    assert more == {"kind": "flip", "policy": "color", "cutout": 0.5, "view": 1}
    assert of.keys.features(of.run("more"), "train")["augment"] is None


def test_a_fraction_of_one_is_the_whole_budget(tmp_path: Path) -> None:
    targets = {
        "first": {"data": "digits"}, "few": {"data": "digits", "fraction": 1.0},
        "half": {"data": "digits", "fraction": 0.5, "unlabelled": True},
    }  # fmt: skip
    rows = [{**ROWS[0], "name": name, "target": name} for name in targets]
    of = Plan(tmp_path, study_of(rows, targets=targets))
    assert of.keys.fit_key(of.run("first")) == of.keys.fit_key(of.run("few"))
    assert of.keys.fit(of.run("half"))["data"]["fraction"] == 0.5
    assert "unlabelled" not in of.keys.fit(of.run("half"))["data"], "no recipe of this run reads them"


def test_a_preset_that_is_not_made_out_has_no_spec(of: Plan) -> None:
    run = of.run("source")
    with pytest.raises(StudyError, match="recipe 'fast' \\(preset fast\\) is made for it"):
        of.keys.fit(run.model_copy(update={"recipe": run.recipe.model_copy(update={"preset": "fast"})}))


# --- where the trunk comes from -----------------------------------------------------------------------------------


def test_a_source_is_the_run_of_the_same_seed_or_the_only_one(of: Plan) -> None:
    keys = of.keys
    assert keys.source_cell(of.run("source")) is None
    assert keys.source_cell(of.run("tuned", 1)) == ("source", 4)
    assert keys.source_cell(of.run("probe", 1)) == ("tuned", 1)
    assert keys.root(of.run("probe", 1)) == keys.root(of.run("source")) == of.run("source")
    assert [keys.generation(of.run(row)) for row in ("source", "tuned", "probe", "third")] == [0, 1, 2, 3]
    assert keys.parent(of.run("source")) is None
    assert keys.parent(of.run("tuned", 1)) == of.run("source")


def test_a_trunk_is_named_by_the_fit_that_it_is_cut_from(of: Plan) -> None:
    tuned = of.run("tuned", 0, "slow")
    assert of.keys.trunk(tuned) == {"fit": of.keys.fit_key(of.run("source"))}
    for recipe, accuracy in (("fast", 0.5), ("slow", 0.7)):
        of.train(of.run("tuned", 0, recipe), accuracy)
    assert of.keys.parent(of.run("probe", 0)) == tuned
    assert of.keys.trunk(of.run("probe", 0)) == {"fit": of.keys.fit_key(tuned)}


def test_a_frozen_parent_hands_on_the_trunk_that_it_was_given(of: Plan) -> None:
    for seed in (0, 1):
        for recipe in ("fast", "slow"):
            of.train(of.run("tuned", seed, recipe))
        for recipe in ("weak", "strong"):
            of.train(of.run("probe", seed, recipe))
    third = of.run("third", 1)
    assert of.keys.bearer(third) == of.keys.parent(third)
    assert of.keys.trunk(third) == of.keys.trunk(of.run("probe", 1)) == {"fit": of.keys.fit_key(of.run("tuned", 1))}
    assert of.keys.bearer(of.run("tuned", 1)) == of.run("tuned", 1), "a parent that was trained is itself the source"


def test_a_parent_with_remaining_blocks_hands_on_those_that_it_trained(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "name": "source", "cut": "layer2", "method": "frozen", "head": "rest"}, ROWS[1]]
    of = Plan(tmp_path, study_of(rows, sources={**SOURCES, "trained": {"run": "source"}}))
    assert of.keys.trunk(of.run("tuned")) == {"fit": of.keys.fit_key(of.run("source"))}


def test_a_key_that_depends_on_an_untrained_run_is_not_known_and_says_of_which_row(of: Plan) -> None:
    with pytest.raises(NotTrained, match=r"tuned \[seed 0, fast\] has not been trained") as raised:
        of.keys.fit(of.run("probe", 0))
    assert (raised.value.row, str(raised.value)) == ("tuned", "tuned [seed 0, fast] has not been trained")
    assert NotTrained("x").row == ""


def test_a_head_is_drawn_by_how_many_trainings_its_trunk_has_behind_it(of: Plan) -> None:
    """A solved head has an optimum, wherever it begins."""
    assert "generation" not in of.keys.fit(of.run("source"))
    assert of.keys.fit(of.run("tuned"))["generation"] == 1
    for recipe in ("fast", "slow"):
        of.train(of.run("tuned", 0, recipe))
    assert "generation" not in of.keys.fit(of.run("probe", 0))


@pytest.mark.parametrize("kind", ["prototype", "knn"])
def test_a_head_that_is_read_off_its_images_is_not_drawn(tmp_path: Path, kind: str) -> None:
    near = {"name": "near", "source": "trained", "method": "frozen", "target": "few", "head": kind}
    of = Plan(tmp_path, study_of([ROWS[0], near], sources={**SOURCES, "trained": {"run": "source"}}))
    found = of.keys.fit(of.run("near"))
    assert "generation" not in found
    assert found["recipe"] == {"optimizer": "none"}
    assert found["trunk"] == {"fit": of.keys.fit_key(of.run("source"))}


def test_episodes_are_told_whole(tmp_path: Path) -> None:
    shots = {"ways": 2, "shots": 3, "queries": 4, "count": 50}
    row = {"name": "few", "source": "random", "method": "frozen", "target": "first", "head": "prototype"}
    of = Plan(tmp_path, study_of([row], targets={"first": {"data": "digits", "episodes": shots}}))
    assert of.keys.fit(of.run("few"))["data"]["episodes"] == shots


def test_a_head_handed_on_is_named_by_the_fit_that_it_comes_from(tmp_path: Path) -> None:
    handed = {"kind": "linear", "start": "source"}
    tuned = {**ROWS[1], "seeds": [4]}
    rows = [{**ROWS[0], "target": "few"}, {**tuned, "name": "lp-ft", "head": handed}, tuned,
            {**ROWS[0], "name": "from nothing", "head": handed}]  # fmt: skip
    of = Plan(tmp_path, study_of(rows, sources={**SOURCES, "trained": {"run": "source"}}))
    assert of.keys.fit(of.run("lp-ft"))["head_start"] == of.keys.fit_key(of.run("source"))
    assert "generation" not in of.keys.fit(of.run("lp-ft"))
    assert "head_start" not in of.keys.fit(of.run("from nothing"))
    assert of.keys.fit_key(of.run("lp-ft")) != of.keys.fit_key(of.run("tuned"))


# --- networks, cuts, images -----------------------------------------------------------------------------------------


def test_a_cut_has_its_full_name_and_a_head_on_all_cuts_names_them(tmp_path: Path) -> None:
    rows = [
        {**ROWS[4], "name": kind, "cut": "layer3", "head": kind, "recipe": "weak"} for kind in ("linear", "head2toe")
    ]
    of = Plan(tmp_path, study_of(rows))
    assert of.keys.network(of.run("linear")) == (TINY, "imagenet")
    assert of.keys.cut(of.run("linear")) == CUT
    assert of.keys.cuts(of.run("linear")) == [CUT]
    names = of.keys.cuts(of.run("head2toe"))
    assert names[-1] == CUT
    assert len(names) > 2
    assert isinstance(names, list)


def pictures(folder: Path) -> str:
    """A folder of pictures of two sizes."""
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                size = (20 + number % 2, 16)
                Image.fromarray(np.full((*size, 3), 40 * number, np.uint8)).save(
                    folder / split / name / f"{number}.png"
                )
    return f"folder:{folder}"


def test_random_weights_take_a_fixed_preprocessing_and_the_size_of_the_images(tmp_path: Path) -> None:
    targets = {"first": {"data": "digits"}, "few": {"data": pictures(tmp_path / "pictures")}}
    sources = {"random": SOURCES["random"], "any": {"network": TINY, "weights": "random"}}
    rows = [
        {**ROWS[0], "name": f"{source} {target}", "source": source, "target": target}
        for source in sources for target in targets
    ]  # fmt: skip
    keys = (of := Plan(tmp_path, study_of(rows, targets=targets, sources=sources))).keys
    found = keys.preprocessing(of.run("random first"))
    assert (found.image_size, found.mean, found.std) == (32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert keys.preprocessing(of.run("any first")).image_size == 8, "digits have 8 pixels"
    assert keys.preprocessing(of.run("random few")).image_size == 32
    assert keys.preprocessing(of.run("random few")) is keys.preprocessing(of.run("random few")), "made out once"
    with pytest.raises(StudyError, match=r"sources.any.image_size: needed, since 'folder:.*many sizes"):
        keys.preprocessing(of.run("any few"))
    assert keys.decoded_size(of.run("random first")) is None
    assert keys.decoded_size(of.run("random few")) == 32
    assert keys.data_digest(of.run("random few")) == dataset_digest(targets["few"]["data"], 32)
    assert keys.data_digest(of.run("random few")) != dataset_digest(targets["few"]["data"], 16)


def test_weights_of_a_file_bring_their_own_preprocessing_and_are_named_by_their_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from regraft.networks import build

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_file(build(TINY, stem="imagenet", seed=seed, image_size=32).state_dict(), tmp_path / f"{name}.safetensors")
    own = {"image_size": 48, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    sources: dict[str, Any] = {
        name: {"network": TINY, "weights": f"file:{tmp_path / name}.safetensors", "preprocessing": own}
        for name in "abc"
    }
    sources["sized"] = {**sources["a"], "image_size": 32}
    rows = [{**ROWS[4], "name": name, "source": name, "recipe": "weak"} for name in sources]
    of = Plan(tmp_path, study_of(rows, sources=sources))
    digests = {name: of.keys.trunk(of.run(name))["weights"] for name in sources}
    assert digests["a"] == digests["b"] == digests["sized"] != digests["c"]
    assert of.keys.preprocessing(of.run("a")).model_dump(mode="json") == {**own, **ORDER}
    assert of.keys.preprocessing(of.run("sized")).model_dump(mode="json") == {**own, **ORDER, "image_size": 32}
    assert of.keys.weights(of.run("a").source).digest == digests["a"]


def test_weights_that_are_not_there_are_looked_for_once(tmp_path: Path) -> None:
    source = {"network": TINY, "weights": f"file:{tmp_path / 'absent'}", "preprocessing": PLAIN}
    of = Plan(tmp_path, study_of([ROWS[4]], sources={"random": source}))
    errors = []
    for ask in (of.keys.facts, of.keys.facts, of.keys.weights):
        with pytest.raises(WeightsError, match="absent") as raised:
            ask(of.run("again").source)
        errors.append(raised.value)
    assert errors[0] is errors[1] is errors[2]


def test_what_is_not_known_of_a_data_set_is_asked_again_and_what_is_known_is_remembered(
    of: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    assert not of.keys.info("gtsrb").known
    entry = {"shape": [2, 64, 64, 3], "sha256": "0"}
    arrays = {f"{part}_{kind}": entry for part in ("train", "test") for kind in ("images", "labels")}
    info = {
        "version": converted.VERSION, "name": "gtsrb", "digest": "d", "origin": "", "unreadable": [],
        "classes": ["a", "b"], "train_counts": [1, 1], "arrays": arrays,
    }  # fmt: skip
    file = tmp_path / "data" / "gtsrb-64" / "info.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(info))
    assert of.keys.info("gtsrb").classes == ("a", "b")
    assert of.keys.digest("gtsrb", 64) == "d"
    file.unlink()
    assert of.keys.info("gtsrb").known
    assert of.keys.digest("gtsrb", 64) == "d"


# --- selection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fast", "slow", "best"),
    [
        ((0.6, 1.0), (0.7, 9.0), "slow"),
        ((0.7, 9.0), (0.6, 1.0), "fast"),
        ((0.7, 1.1), (0.7, 1.0), "slow"),  # as accurate, with a lower loss
        ((0.7, 1.0), (0.7, 1.0), "fast"),  # the earlier one
    ],
)
def test_the_best_on_validation_is_chosen(
    of: Plan, fast: tuple[float, float], slow: tuple[float, float], best: str
) -> None:
    of.train(of.run("tuned", 0, "fast"), *fast)
    with pytest.raises(NotTrained, match="slow"):
        of.keys.chosen(("tuned", 0))
    of.train(of.run("tuned", 0, "slow"), *slow)
    assert of.keys.chosen(("tuned", 0)) == of.run("tuned", 0, best)
    assert of.keys.final(("tuned", 0)) == of.run("tuned", 0, best)
    assert of.keys.chosen(("tuned", 0)) is of.keys.chosen(("tuned", 0))


def test_a_recipe_that_diverged_is_out_of_the_choice(of: Plan) -> None:
    of.train(of.run("tuned", 0, "fast"), diverged="the loss is infinite")
    of.train(of.run("tuned", 0, "slow"), 0.1)
    assert of.keys.chosen(("tuned", 0)).recipe_name == "slow"
    with pytest.raises(Diverged, match=r"^the loss is infinite$"):
        of.keys.fitted(of.run("tuned", 0, "fast"))


def test_where_all_recipes_diverged_there_is_none_to_choose(of: Plan) -> None:
    for recipe in ("fast", "slow"):
        of.train(of.run("tuned", 0, recipe), diverged=f"{recipe} is infinite")
    with pytest.raises(Diverged, match="all 2 recipes diverged; the last: slow is infinite"):
        of.keys.chosen(("tuned", 0))


def test_a_single_recipe_is_chosen_without_a_result(of: Plan) -> None:
    assert of.keys.chosen(("source", 4)) == of.keys.final(("source", 4)) == of.run("source")


def test_the_chosen_recipe_is_refitted_if_it_says_so(of: Plan) -> None:
    for run, accuracy in zip(of.keys.by_cell["again", 0], (0.9, 0.8), strict=True):
        of.train(run, accuracy)
    chosen, final = of.keys.chosen(("again", 0)), of.keys.final(("again", 0))
    assert (chosen.refit, final.refit) == (False, True)
    assert final.model_copy(update={"refit": False}) == chosen
    assert of.keys.fit(final) == {**of.keys.fit(chosen), "refit": True}


def test_a_head_can_be_trained_on_cached_features_if_nothing_is_random_before_it(tmp_path: Path) -> None:
    recipes = {**RECIPES, "live": {"epochs": 1, "augment": "flip"}}
    frozen = {**ROWS[0], "method": "frozen"}
    rows = [
        {**frozen, "name": "cached"}, {**frozen, "name": "live", "recipe": "live"}, ROWS[0],
        {**frozen, "name": "rest", "head": "rest", "cut": "layer2"},
        {**frozen, "name": "moving", "tuning": {"norms": "target"}},
    ]  # fmt: skip
    of = Plan(tmp_path, study_of(rows, recipes=recipes, sources=SOURCES))
    assert [cacheable(of.run(row)) for row in ("cached", "live", "source", "rest", "moving")] == [True, *[False] * 4]
