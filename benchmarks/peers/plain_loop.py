"""The plain PyTorch loop: `python plain_loop.py FOLDER`. The frozen trunk is computed anew for every batch."""

from __future__ import annotations

import time

import torch
from task import MOMENTUM, WEIGHT_DECAY, Task, say
from torch import nn


def main() -> None:
    torch.manual_seed(0)
    task = Task()
    model = task.model()
    head = model[1]
    train, test = task.train_loader(), task.test_loader()
    optimizer = torch.optim.SGD(
        head.parameters(), lr=task.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs * len(train))
    loss_of = nn.CrossEntropyLoss()
    train_seconds = test_seconds = 0.0
    for epoch in range(task.epochs):
        start = time.perf_counter()
        model.train()
        for images, labels in train:
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        middle = time.perf_counter()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in test:
                correct += int((model(images).argmax(1) == labels).sum())
        train_seconds += middle - start
        test_seconds += time.perf_counter() - middle
        accuracy = correct / len(task.test)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test {100 * accuracy:.1f} %", flush=True)
    say(accuracy, train_seconds=train_seconds, test_seconds=test_seconds, epochs=task.epochs)


if __name__ == "__main__":
    main()
