"""Laws of heads whose features stay in the store: the heads of a study that has all of them in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.spec import Run
from regraft.study.bench import Bench, Setting
from regraft.study.heads import _compute, together
from regraft.study.keys import cacheable
from regraft.study.plan import plan
from regraft.study.run import run_study
from regraft.study.stages import logits_of_test
from regraft.study.store import Scratch, Store, key_of
from regraft.study.streams import is_streamed, training_rows
from tests.study.test_heads import HEADS, heads_study

MORE = ("ridge", "logistic", "mlp", "prototype", "augmented", "augmented mlp", "augmented ridge")
FEW_BYTES = 4 * 128 * 8 * 6  # of features: blocks of six images of 128 features


@pytest.mark.parametrize("names", [("refit", "swept"), pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "all"])
def test_heads_streamed_from_the_store_are_those_in_memory(names: tuple[str, ...], tmp_path: Path) -> None:
    study = heads_study([row for row in HEADS if row["name"] in names], seeds=[0])
    store = Store(tmp_path / "store")
    results = run_study(study, store, threads=1)
    assert not results.missing
    bench = Bench(Setting(str(store.root), tuple(plan(study)), "cpu", 1, feature_bytes=FEW_BYTES))
    runs = [run for run in plan(study) if cacheable(run)]
    runs += [run.model_copy(update={"refit": True}) for run in runs if run.recipe.refit]
    compared = set()
    for task in together(runs):
        run = task.runs[0]
        assert is_streamed(run, training_rows(run, bench.training(run)[0]), bench)
        for run, found in zip(task.runs, _compute(task, bench, Scratch(tmp_path / "s"), lambda *_: None), strict=True):
            if store.has(key_of(bench.keys.fit(run))):  # only what was chosen has been trained again
                assert found.record["streamed"] is True
                assert_same(found.values, found.tensors, run, store, bench)
                compared.add((run.row, run.refit))
    assert {row for row, refit in compared if not refit} == set(names)
    for run in runs:
        if store.has(key_of(bench.keys.score(run))):
            correct = store.tensors(store.read(key_of(bench.keys.score(run))))["predicted"]
            assert torch.equal(logits_of_test(run, bench, lambda *_: None).argmax(1).int(), correct), run.label
    assert "refit" not in names or ("refit", True) in compared


def assert_same(
    values: dict[str, object], tensors: dict[str, torch.Tensor], run: Run, store: Store, bench: Bench
) -> None:
    """Stepped heads bit for bit, solved ones up to rounding."""
    known = store.read(key_of(bench.keys.fit(run)))
    for name in ("trunk_sha256", "validation_accuracy", "train_accuracy", "train_images", "epoch", "notes"):
        assert values[name] == known.values[name], name
    within = 0.0 if run.recipe.optimizer == "sgd" else 2e-6
    for name, value in store.tensors(known).items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=within)
