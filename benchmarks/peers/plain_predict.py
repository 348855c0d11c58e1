"""The loop that people write to classify a folder: `python plain_predict.py FOLDER PICTURES [--workers N]`.

FOLDER holds task.json (network, mean, std, image_size, classes) with trunk.safetensors and head.safetensors; PICTURES
is a folder of class folders. A DataLoader over torchvision's ImageFolder with its usual transforms, the network in
eager mode without gradients, batches of 64. Writes predictions.csv beside task.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from task import FrozenTrunk
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

BATCH = 64


def network(folder: Path, name: str) -> nn.Module:
    """The trunk, pooled, with its linear head."""
    if name.startswith("resnet50"):
        trunk: nn.Module = FrozenTrunk(folder / "trunk.safetensors", "layer4.2")
    else:
        whole = torchvision.models.mobilenet_v2()
        whole.load_state_dict(load_file(folder / "trunk.safetensors"))
        trunk = nn.Sequential(whole.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    weights = load_file(folder / "head.safetensors")
    classes, width = weights["weight"].shape
    head = nn.Linear(width, classes)
    head.load_state_dict(weights)
    return nn.Sequential(trunk, head).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    task = json.loads((options.folder / "task.json").read_text())
    size = task["image_size"]
    prepare = transforms.Compose([
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size),
        transforms.ToTensor(), transforms.Normalize(task["mean"], task["std"]),
    ])  # fmt: skip
    pictures = torchvision.datasets.ImageFolder(options.pictures, prepare)
    loader = DataLoader(pictures, batch_size=BATCH, num_workers=options.workers)
    model, answers = network(options.folder, task["network"]), []
    with torch.no_grad():
        for images, _ in loader:
            answers += model(images).argmax(1).tolist()
    with (options.folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for (path, _), answer in zip(pictures.samples, answers, strict=True):
            writer.writerow([path, task["classes"][answer]])
    right = sum(answer == label for answer, label in zip(answers, pictures.targets, strict=True))
    print(json.dumps({"accuracy": right / len(answers), "pictures": len(answers)}))


if __name__ == "__main__":
    main()
