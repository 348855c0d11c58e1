"""Methods of transfer through the engine: spec, keys, records."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.errors import StudyError, UnknownName
from regraft.spec import Study
from regraft.study.keys import Keys
from regraft.study.plan import plan
from regraft.study.run import run_study
from regraft.study.store import Store
from tests.study.conftest import small_study

ROWS: dict[str, dict[str, Any]] = {
    "finetune": {},
    "leak": {"method": "frozen", "tuning": {"norms": "target"}},
    "affine": {"tuning": {"norms": "affine"}},
    "gradual": {"method": "gradual"},
    "layerwise": {"method": "layerwise", "tuning": {"decay": 0.5}},
    "l2-sp": {"method": "l2-sp", "tuning": {"pull": 0.1}},
    "norms": {"method": "norms-only"},
    "surgical": {"method": "surgical", "tuning": {"block": "layer1"}},
    "first": {"method": "first-frozen", "tuning": {"first": "layer1"}},
    "wise": {"method": "wise-ft"},
    "lora": {"method": "lora", "tuning": {"rank": 2}},
}


def methods_study(rows: dict[str, dict[str, Any]] = ROWS) -> Study:
    data = small_study(seeds=[0], recipes={"fast": {"epochs": 2, "batch_size": 20, "lr": 0.02}})
    del data["grid"]
    plain = {"source": "trained", "target": "few", "recipe": "fast"}
    return Study.from_dict(
        {**data, "rows": [data["rows"][0], *({"name": name, **plain, **fields} for name, fields in rows.items())]}
    )


def test_every_method_is_trained_scored_and_has_its_own_key(store: Store) -> None:
    study = methods_study()
    results = run_study(study, store, threads=1)
    assert [(gap.row, gap.reason) for gap in results.missing] == []
    cells = {cell.row: cell for cell in results.cells}
    assert len({cell.key for cell in results.cells}) == len(results.cells)
    assert cells["l2-sp"].method == "l2-sp pull=0.1"
    assert cells["leak"].method == "frozen norms=target"
    assert max(accuracy for _, _, accuracy in cells["wise"].mixing) == cells["wise"].validation_accuracy
    assert Study.from_dict(study.model_dump(mode="json", exclude_defaults=True)) == study


def test_details_change_keys_and_usual_ones_do_not(store: Store) -> None:
    def keys_of(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
        keys = Keys(plan(methods_study(rows)), store, offline=True)
        run_study(methods_study({}), store, threads=1)
        return {run.row: keys.fit_key(run) for run in keys.runs if run.row != "source"}

    base = keys_of({"a": {"method": "l2-sp"}, "b": {}, "c": {"method": "frozen"}})
    usual: dict[str, dict[str, Any]] = {
        "a": {"method": "l2-sp", "tuning": {"pull": 0.01}}, "b": {"tuning": {"norms": "all"}},
        "c": {"method": "frozen", "tuning": {"norms": "source"}},
    }  # fmt: skip
    assert keys_of(usual) == base
    other: dict[str, dict[str, Any]] = {
        "a": {"method": "l2-sp", "tuning": {"pull": 0.02}},
        "b": {"tuning": {"norms": "source"}},
    }
    assert not set(keys_of(other).values()) & set(base.values())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"method": "surgical"}, "needs `tuning.block`"),
        ({"tuning": {"pull": 0.1}}, "belongs to method l2-sp"),
        ({"method": "frozen", "tuning": {"norms": "all"}}, "norms-only"),
        ({"method": "norms-only", "tuning": {"norms": "source"}}, "leaves method norms-only nothing"),
    ],
)
def test_details_that_do_not_go_with_a_method_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        methods_study({"odd": row})


def test_a_block_that_is_none_of_the_trunks_is_refused_with_the_nearest(store: Store) -> None:
    with pytest.raises(UnknownName, match="layer1"):
        run_study(methods_study({"odd": {"method": "surgical", "tuning": {"block": "layer11"}}}), store)
    cut = {"method": "first-frozen", "cut": "layer1", "tuning": {"first": "layer3"}}
    with pytest.raises(UnknownName, match="no block 'layer3'"):
        run_study(methods_study({"odd": cut}), store)
