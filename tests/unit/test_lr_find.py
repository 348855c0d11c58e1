"""The learning-rate range test: what it finds, leaves alone and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import RunError, StudyError, UnknownName
from regraft.learn.batches import FeatureBatches
from regraft.learn.lr_find import LearningRates, lr_find
from regraft.seeding import stream
from regraft.spec import Recipe, Study
from regraft.study.keys import NotTrained
from regraft.study.lr_find import find_learning_rate
from regraft.study.store import Store
from tests.study.conftest import small_study

CPU = torch.device("cpu")
RECIPE = Recipe(batch_size=32, lr=0.1)


def blobs(scale: float = 1.0, n: int = 256) -> FeatureBatches:
    """Three overlapping clouds of points in 8 dimensions."""
    rng = stream(0, "blobs")
    labels = rng.integers(3, size=n)
    points = scale * (np.eye(3, 8)[labels] * 2 + rng.normal(size=(n, 8)))
    return FeatureBatches(torch.from_numpy(points).float(), labels, device=CPU)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(8, 3)


def find(model: nn.Module, train: FeatureBatches, recipe: Recipe = RECIPE, **options: Any) -> LearningRates:
    return lr_find(model, train, recipe, seed=0, device=CPU, **options)


def test_the_rate_rises_by_one_factor_and_the_suggestions_lie_below_the_lowest_loss() -> None:
    found = find(network(), blobs())
    factors = np.diff(np.log(found.rates))
    assert np.allclose(factors, factors[0])
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
    assert found.lowest == found.rates[int(np.argmin(found.smoothed))]
    assert found.tenth == found.lowest / 10
    assert found.rates[0] < found.steepest < found.lowest


def test_it_stops_at_the_first_smoothed_loss_of_four_times_the_lowest() -> None:
    found = find(linear(), blobs(scale=10), rates=(1e-6, 1e4))
    assert found.stopped
    assert len(found.rates) < 100
    risen = [loss > 4 * min(found.smoothed[: i + 1]) for i, loss in enumerate(found.smoothed)]
    assert risen[-1]
    assert not any(risen[5:-1])


def test_a_loss_that_is_no_number_ends_it_and_is_not_among_the_losses() -> None:
    class Overflowing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if float(y.detach().abs().max()) < 30 else y * math.nan

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Overflowing(8, 3)
    found = find(model, blobs(), rates=(1e-6, 1e4))
    assert found.stopped
    assert np.isfinite(found.losses).all()


def test_inputs_ten_times_as_large_want_a_smaller_rate() -> None:
    """The gradient of a linear model grows with its inputs, twice over: once itself, once through the loss."""
    small, large = (find(linear(), blobs(scale), rates=(1e-8, 1e4), steps=200) for scale in (1.0, 10.0))
    assert large.steepest < small.steepest / 10


def test_the_model_is_bit_for_bit_what_it_was() -> None:
    model = network()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    find(model, blobs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 5 + [False]
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_it_leaves_the_model_alone_even_when_it_fails() -> None:
    class Failing(FeatureBatches):
        def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
            taken.append(0)
            if len(taken) > 10:
                raise OSError("the disk is gone")
            return super().take(positions, generator)

    taken: list[int] = []
    good, model = blobs(), network()
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(OSError, match="disk"):
        find(model, Failing(good.features, good.labels.numpy(), device=CPU))
    assert torch.equal(model.state_dict()["0.weight"], before)


def test_the_same_seed_finds_the_same() -> None:
    recipe = RECIPE.model_copy(update={"mixup": 0.2, "label_smoothing": 0.1})
    assert find(network(), blobs(), recipe) == find(network(), blobs(), recipe)
    assert find(network(), blobs(), recipe) != find(network(), blobs(), RECIPE)


def test_few_images_are_shown_again_and_again() -> None:
    assert len(find(network(), blobs(n=20), steps=60, rates=(1e-5, 0.1)).rates) == 60


def test_where_no_rate_helps_it_says_so() -> None:
    with pytest.raises(RunError, match="no learning rate lowers the loss"):
        find(network(), blobs(), rates=(100.0, 1e6))


# --- for rows of a study ------------------------------------------------------------------------------------------


@pytest.fixture
def study() -> Study:
    recipes = small_study()["recipes"]
    rows = [
        *small_study()["rows"],
        {"name": "choice", "source": "random", "target": "few", "recipe": ["fast", "other"], "seeds": [7]},
        {"name": "none", "source": "random", "target": "few", "method": "frozen", "head": "prototype"},
    ]
    return Study.from_dict(
        small_study(rows=rows, recipes={**recipes, "other": {"optimizer": "adamw", "batch_size": 9}})
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_row_is_tried_as_it_would_be_trained_and_nothing_is_stored(study: Study, store: Store) -> None:
    run, found = find_learning_rate(study, "choice", store, recipe="other", steps=30)
    assert (run.row, run.recipe_name, run.seed) == ("choice", "other", 7)
    assert len(found.rates) <= 30
    assert find_learning_rate(study, "choice", store, steps=30)[0].recipe_name == "fast"
    assert not [path for path in store.root.rglob("*") if path.is_file() and path.suffix == ".safetensors"]


@pytest.mark.parametrize(
    ("row", "recipe", "kind", "message"),
    [
        ("scrath", None, UnknownName, r"no row 'scrath'; did you mean 'scratch'\?"),
        ("choice", "fats", UnknownName, r"no recipe 'fats'; did you mean 'fast'\? Its recipes: fast, other"),
        ("steps", None, StudyError, r"row 'steps': its head is trained on cached features.*`lr: \[0.01, 0.1, 1\]`"),
        ("trained | layer1 | frozen | linear | few", None, StudyError, r"lbfgs computes the optimum itself"),
        ("none", None, StudyError, r"a prototype head is not trained"),
        ("tuned", None, NotTrained, r"'tuned' starts from a row.* no network yet \(source .*`regraft run`"),
    ],
)
def test_rows_without_a_rate_to_find_are_refused(
    row: str, recipe: str | None, kind: type[Exception], message: str, study: Study, store: Store
) -> None:
    with pytest.raises(kind, match=message):
        find_learning_rate(study, row, store, recipe=recipe)


def test_the_command_prints_a_table_draws_the_figure_and_says_what_to_write(study: Study, tmp_path: Path) -> None:
    file, figure = tmp_path / "study.yaml", tmp_path / "rates.svg"
    file.write_text(study.to_yaml(), "utf-8")
    words = ["lr-find", str(file), "scratch", "--steps", "40", "--store", str(tmp_path / "store"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--out", str(figure)], catch_exceptions=False)
    assert "scratch [seed 0, fast]: " in done.output
    assert "falls fastest" in done.output
    written = yaml.safe_load(done.output.partition("Under `recipes` in the study file: ")[2].splitlines()[0])
    assert "<svg" in figure.read_text("utf-8")
    told = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert (told["row"], told["recipe"], len(told["rates"])) == ("scratch", "fast", len(told["losses"]))
    assert written == {"fast": {"...": None, "lr": float(f"{min(told['steepest'], told['tenth']):.2g}")}}


def test_a_figure_that_cannot_be_written_is_one_clear_message(study: Study, tmp_path: Path) -> None:
    from regraft.cli_text import draw_rates
    from regraft.errors import StoreError
    from regraft.study.plan import plan

    found = find(network(), blobs())
    (tmp_path / "file").write_text("where a folder would have to be")
    with pytest.raises(StoreError, match=r"cannot write .*; choose another place with --out"):
        draw_rates(plan(study)[0], found, tmp_path / "file" / "rates.svg")
