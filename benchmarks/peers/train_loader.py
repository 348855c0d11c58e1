"""ResNet-18 fed by a DataLoader with PIL transforms, as the well-known CIFAR scripts do: run by train_cpu.py."""

from __future__ import annotations

import torch
import torchvision
from task import Images
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from turns import BATCH, LR, MOMENTUM, WEIGHT_DECAY, Turns

WORKERS = 2


def main() -> None:
    torch.manual_seed(0)
    turns = Turns()
    torch.set_num_threads(turns.threads)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(turns.mean, turns.std),
        ]
    )
    dataset = Images(turns.folder, "train", transform)
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    model = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    loss_of = nn.CrossEntropyLoss()
    model.train()
    for _ in range(turns.count):
        turns.begin()
        loss_sum, correct = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = loss_of(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == labels).sum())
        turns.end()


if __name__ == "__main__":
    main()
