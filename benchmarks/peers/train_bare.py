"""ResNet-18 on one batch that is there already: forward, backward, optimiser and no data path. Run by train_cpu.py."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import nn
from turns import BATCH, LR, MOMENTUM, WEIGHT_DECAY, Turns


def main() -> None:
    torch.manual_seed(0)
    turns = Turns()
    torch.set_num_threads(turns.threads)
    every = np.load(turns.folder / "train_images.npy")
    pixels = torch.from_numpy(every[:BATCH]).permute(0, 3, 1, 2).float() / 255  # (128, 3, 32, 32)
    images = (pixels - torch.tensor(turns.mean).view(3, 1, 1)) / torch.tensor(turns.std).view(3, 1, 1)
    labels = torch.from_numpy(np.load(turns.folder / "train_labels.npy")[:BATCH])
    model = torchvision.models.resnet18(num_classes=10)
    order = torch.channels_last if turns.as_regraft else torch.contiguous_format
    model.to(memory_format=order)
    images = images.contiguous(memory_format=order)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY,
        fused=turns.as_regraft or None,
    )  # fmt: skip
    loss_of = nn.CrossEntropyLoss()
    model.train()
    for _ in range(turns.count):
        turns.begin()
        for _ in range(len(every) // BATCH):
            optimizer.zero_grad()
            loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
        turns.end()


if __name__ == "__main__":
    main()
