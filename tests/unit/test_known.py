"""What is known of networks and weights, remembered on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from regraft.data.home import home as default_home
from regraft.errors import UnknownCut, WeightsUnavailable
from regraft.networks import build, cut_points, describe, obtain_weights, resolve_cut, state_hash
from regraft.networks import cuts_below as ask_network
from regraft.networks.published import published
from regraft.spec import Source
from regraft.study import known


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    known.cut_name.cache_clear()
    known.cuts_below.cache_clear()
    describe.cache_clear()
    resolve_cut.cache_clear()
    return tmp_path


def test_what_is_remembered_is_what_the_network_says(home: Path) -> None:
    for at in (None, "layer2", "layer2.0"):
        for _ in range(2):  # asked, then read
            known.cut_name.cache_clear()
            known.cuts_below.cache_clear()
            assert known.cut_name("resnet18", at, 32, "cifar") == resolve_cut("resnet18", at, 32, stem="cifar").name
            assert list(known.cuts_below("resnet18", at, 32, "cifar")) == ask_network("resnet18", at, 32, stem="cifar")
    assert len(list((home / "known").iterdir())) == 6 + 1  # and the network's cut points


def test_cut_points_read_from_disk_are_those_that_were_found(home: Path) -> None:
    describe.cache_clear()
    found = describe("resnet18", "cifar", 32)
    describe.cache_clear()
    assert describe("resnet18", "cifar", 32) == found
    assert found == tuple(cut_points(build("resnet18", stem="cifar", seed=0), 32))


def test_damage_is_asked_again_and_a_refusal_is_not_remembered(home: Path) -> None:
    known.cut_name("resnet18", "layer3", 32, "imagenet")
    kept = next(file for file in (home / "known").iterdir() if '["cut"' in file.read_text("utf-8"))
    kept.write_text(kept.read_text("utf-8")[:-5], "utf-8")
    known.cut_name.cache_clear()
    assert known.cut_name("resnet18", "layer3", 32, "imagenet") == "layer3.1"
    with pytest.raises(UnknownCut):
        known.cut_name("resnet18", "layer9", 32, "imagenet")
    assert len(list((home / "known").iterdir())) == 2


@pytest.mark.parametrize("tag", ["", ":IMAGENET1K_V1"])
def test_facts_of_weights_are_those_of_the_weights(home: Path, tag: str) -> None:
    source = Source(network="mobilenet_v3_small", weights=f"pretrained{tag}")
    with pytest.raises(WeightsUnavailable):
        known.weights_facts(source, offline=True)
    state = build("mobilenet_v3_small", seed=0).state_dict()
    path = default_home() / "weights" / published("mobilenet_v3_small", tag[1:] or None).stored_as
    path.parent.mkdir()
    save_file(state, path, {"digest": state_hash(state), "origin": "here"})
    weights = obtain_weights(source, offline=True)
    assert known.weights_facts(source, offline=True) == known.WeightsFacts(weights.digest, weights.preprocessing)
