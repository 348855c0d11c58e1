"""The law of training over several devices: two processes give the weights that one gives, in float64 to 1e-9.

In float32 rounding alone moves a network as far as a different order of sums does on one device: where a ReLU's input
is all but 0, on a flat background for thousands of pixels at once, its last bit decides about a gradient."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regraft.learn.distributed import ALONE, Team, joined
from regraft.learn.fit import fit
from regraft.seeding import torch_stream
from regraft.spec import Recipe
from regraft.study.store import Scratch

CPU = torch.device("cpu")
# 57 images in batches of 15, 14, 14 and 14: uneven shares of uneven batches
RECIPES = {
    "plain": Recipe(epochs=3, batch_size=16, lr=0.05, keep="best"),
    "mixup": Recipe(epochs=2, batch_size=16, lr=0.05, mixup=0.4, label_smoothing=0.1),
    "cutmix": Recipe(epochs=2, batch_size=16, lr=0.05, cutmix=1.0, ema=0.9),
    "sam": Recipe(epochs=2, batch_size=16, lr=0.02, sam=0.05, optimizer="adamw"),
    "resumed": Recipe(epochs=3, batch_size=16, lr=0.05, keep="best", ema=0.8),
    "flip": Recipe(epochs=2, batch_size=16, lr=0.05, test_flip=True, optimizer="sgdw"),
}


class Pictures:
    """Float64 images, with noise where augmentation is asked for."""

    def __init__(self, count: int, name: str) -> None:
        rng = torch_stream(0, name)
        self.labels = torch.arange(count) % 3
        self.images = torch.randn(count, 3, 9, 9, generator=rng, dtype=torch.float64) + self.labels.view(-1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor, generator: torch.Generator | None) -> Tensor:
        images = self.images[positions]
        if generator is None:
            return images
        return images + 0.3 * torch.randn(images.shape, generator=generator, dtype=torch.float64)


def network() -> nn.Module:
    """With a BatchNorm that learns, one that does not learn and has no momentum of its own, and a frozen one."""
    frozen = nn.BatchNorm2d(3)
    model = nn.Sequential(
        frozen, nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6, affine=False, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 12),
        nn.BatchNorm1d(12), nn.Linear(12, 3),
    ).double()  # fmt: skip
    rng = torch_stream(0, "start")
    for p in model.parameters():
        p.data = torch.rand(p.shape, generator=rng, dtype=torch.float64) * 0.2 - (0.1 if p.ndim > 1 else -0.9)
    frozen.requires_grad_(False)
    frozen.train = lambda mode=True: frozen  # type: ignore[method-assign]  # as networks.Trunk keeps it
    frozen.training = False
    return model


def train(team: Team, folder: Path) -> None:
    for name, recipe in RECIPES.items():
        # On two, one of them goes on where one process was stopped
        checkpoint = Stopped(folder) if name == "resumed" and not team.alone else None
        found = fit(
            network(), Pictures(57, "training"), Pictures(31, "validation"), recipe,
            seed=1, device=CPU, team=team, checkpoint=checkpoint,
        )  # fmt: skip
        curve = {f"curve/{k}": torch.tensor([entry[k] for entry in found.curve]) for k in found.curve[0]}
        save_file({**found.state, **curve}, folder / f"{name} {team.rank} of {team.size}.safetensors")


class Stopped(Scratch):
    """Keeps what it has."""

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        return


def stop_in_third_epoch(done: float, message: str) -> None:
    if done > 0.7:
        raise KeyboardInterrupt


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(rank, 2, folder / "meeting", CPU) as team:
        train(team, folder)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.learn.fit.CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        fit(
            network(), Pictures(57, "training"), Pictures(31, "validation"), RECIPES["resumed"],
            seed=1, device=CPU, checkpoint=Scratch(tmp_path), advance=stop_in_third_epoch,
        )  # fmt: skip
    loaded = Scratch(tmp_path).load()
    assert loaded is not None
    assert len(loaded[0]["curve"]) == 2
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    train(ALONE, tmp_path)
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    for name in RECIPES:
        alone, *both = (load_file(tmp_path / f"{name} {who}.safetensors") for who in ("0 of 1", "0 of 2", "1 of 2"))
        for key, value in alone.items():
            assert torch.equal(both[0][key], both[1][key]), (name, key)
            within = 1e-5 if key.startswith("curve") else 1e-9  # losses are summed in float32
            assert torch.allclose(both[0][key], value, rtol=0, atol=within), (name, key, both[0][key] - value)
