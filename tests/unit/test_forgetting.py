"""Laws of what a process does not keep while it goes on for days."""

from __future__ import annotations

import linecache
from pathlib import Path

import pytest
import torch
from torch import fx

from regraft.errors import ArtifactDamaged
from regraft.networks import body_for_cuts, build
from regraft.networks.imports import KEPT_SOURCES
from regraft.study.disk import READ_AT_ONCE, load_tensors, save_tensors, sha256_of


def test_the_code_of_old_graphs_is_let_go_and_they_work_on() -> None:
    def made() -> torch.nn.Module:
        return body_for_cuts(build("timm/test_resnet", seed=0, image_size=32), ["layer2.0"]).eval()

    def sources() -> int:
        return len(fx.graph_module._loader.eval_cache)

    images = torch.zeros(1, 3, 32, 32)
    first = made()
    before = first(images)["layer2.0"]
    for _ in range(KEPT_SOURCES + 1):
        made()
    level = sources()
    lines = len(linecache.cache)
    for _ in range(10):
        made()
    assert sources() == level <= KEPT_SOURCES
    assert len(linecache.cache) <= lines
    assert torch.equal(first(images)["layer2.0"], before)


@pytest.mark.parametrize("at_once", [True, False])
def test_tensors_are_read_whole_or_refused(at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.study.disk.READ_AT_ONCE", READ_AT_ONCE if at_once else 0)
    kept = {
        "plain": torch.randn(3, 5), "none": torch.zeros(0, 4), "one": torch.tensor(7), "half": torch.ones(3).bfloat16(),
        "yes": torch.tensor([True, False]),
    }  # fmt: skip
    file = tmp_path / "data.safetensors"
    save_tensors(file, kept)
    digest = sha256_of(file)
    found = load_tensors(file, digest)
    assert found.keys() == kept.keys()
    for name, value in kept.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    with pytest.raises(ArtifactDamaged, match="does not have the digest"):
        load_tensors(file, "0" * 64)
    file.unlink()
    with pytest.raises(ArtifactDamaged, match="is gone"):
        load_tensors(file, digest)
