"""What the peers have in common: the images, the frozen trunk, the recipe, and the line that they end with.

`task.json` in the folder that a peer is given says cut, normalisation, epochs and learning rate; beside it lie
train_images.npy, train_labels.npy, test_images.npy, test_labels.npy and weights.safetensors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

CLASSES = 10
BATCH = 128
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
# First part of the network by the cut's name; layer2.2 is what the original study called the first 18 layers.
STAGES = ("layer1", "layer2", "layer3", "layer4")


class Images(Dataset[tuple[Tensor, int]]):
    """As torchvision.datasets.CIFAR10: an array in memory, a PIL image for each item, transforms."""

    def __init__(self, folder: Path, part: str, transform: transforms.Compose) -> None:
        self.images = np.load(folder / f"{part}_images.npy")  # (n, 32, 32, 3) uint8
        self.labels = np.load(folder / f"{part}_labels.npy").tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class FrozenTrunk(nn.Module):
    """ResNet-50 up to a cut, pooled. Stays in eval mode, or its BatchNorm statistics would move."""

    def __init__(self, weights: Path, cut: str) -> None:
        super().__init__()
        network = torchvision.models.resnet50()
        for stage in STAGES[1:]:  # these weights have the original network's strides (He et al. 2015)
            first = getattr(network, stage)[0]
            first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
        network.load_state_dict(load_file(weights))
        parts = [network.conv1, network.bn1, network.relu, network.maxpool]
        for stage in STAGES:
            blocks = getattr(network, stage)
            if cut.startswith(stage):
                parts.append(blocks[: int(cut.partition(".")[2]) + 1])
                break
            parts.append(blocks)
        self.body = nn.Sequential(*parts)
        self.features = parts[-1][-1].conv3.out_channels
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTrunk:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:  # (n, 3, 32, 32) -> (n, features)
        with torch.no_grad():
            maps: Tensor = self.body(images)
        return maps.mean((2, 3))


class Task:
    """Reads `task.json`; options of the command line are --epochs and --workers."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", type=Path)
        parser.add_argument("--epochs", type=int)
        parser.add_argument("--workers", type=int, default=0)
        options = parser.parse_args()
        self.folder: Path = options.folder
        words = json.loads((self.folder / "task.json").read_text())
        self.epochs: int = options.epochs or words["epochs"]
        self.lr: float = words["lr"]
        normalise = transforms.Normalize(words["mean"], words["std"])
        transform = transforms.Compose([transforms.ToTensor(), normalise])
        self.train, self.test = (Images(self.folder, part, transform) for part in ("train", "test"))
        self.keep = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
        self.cut: str = words["cut"]

    def model(self) -> nn.Sequential:
        """Frozen trunk and a new linear head."""
        trunk = FrozenTrunk(self.folder / "weights.safetensors", self.cut)
        return nn.Sequential(trunk, nn.Linear(trunk.features, CLASSES))

    def train_loader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.train, BATCH, shuffle=True, **self.keep)

    def test_loader(self) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(self.test, 500, **self.keep)


def say(accuracy: float, **more: object) -> None:
    """The last line of a peer: its result as JSON."""
    print(json.dumps({"accuracy": accuracy, **more}))
