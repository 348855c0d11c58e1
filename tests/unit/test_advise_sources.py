"""Networks that `regraft advise` compares: those whose weights are on this machine, given or fetched before."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from regraft.networks import build
from regraft.networks.published import published
from regraft.networks.weights import obtain_weights
from regraft.predictor.advise.sources import trunks
from regraft.spec import Source

TINY = "timm/test_resnet.r160_in1k"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and no cache of anybody else's."""
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    (tmp_path / "home" / "weights").mkdir(parents=True)
    return tmp_path / "home"


def test_networks_fetched_before_are_found_again_and_damaged_files_are_passed_over(home: Path) -> None:
    save_file(build(TINY, seed=0).state_dict(), home / "weights" / published(TINY, None).file)
    obtain_weights(Source(network=TINY, weights="pretrained", image_size=160), home, offline=True)
    (home / "weights" / "damaged-one.safetensors").write_bytes(b"no header")
    found, missing = trunks((), {}, side=64, offline=True)
    assert [trunk.network for trunk in found] == [TINY]
    assert found[0].weights.startswith("pretrained")
    assert found[0].image_size == 128  # small pictures are enlarged to a moderate size
    assert missing
    assert not [reason for reason in missing if reason.startswith(TINY)]


def test_a_network_whose_file_is_given_is_not_looked_for(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(build("squeezenet1_1", seed=0).state_dict(), file)
    found, missing = trunks(["squeezenet1_1", "resnet18"], {"squeezenet1_1": file}, side=500, offline=True)
    assert [(trunk.network, trunk.weights) for trunk in found] == [("squeezenet1_1", f"file:{file}")]
    assert found[0].image_size == 224
    assert len(missing) == 1
    assert missing[0].startswith("resnet18: ")
