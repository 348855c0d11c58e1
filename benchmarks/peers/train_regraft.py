"""ResNet-18 with regraft's own training loop and data path, as a study trains it: run by train_cpu.py."""

from __future__ import annotations

import numpy as np
from turns import BATCH, LR, MOMENTUM, WEIGHT_DECAY, Turns

# Before torch: it sets how torch's threads wait.
import regraft  # noqa: F401

# isort: split
import torch

from regraft.learn.batches import ImageBatches
from regraft.learn.fit import fit
from regraft.learn.hardware import set_threads
from regraft.networks import graft
from regraft.spec import Head, Preprocessing, Recipe


def main() -> None:
    turns = Turns()
    set_threads(turns.threads)
    cpu = torch.device("cpu")
    recipe = Recipe(
        epochs=turns.count, batch_size=BATCH, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, augment="crop-flip"
    )
    train = ImageBatches(
        np.load(turns.folder / "train_images.npy"),
        np.load(turns.folder / "train_labels.npy"),
        Preprocessing.model_validate({"image_size": 32, "mean": turns.mean, "std": turns.std}),
        augmentation=recipe.augmentation,
        device=cpu,
    )
    model = graft("resnet18", "imagenet", None, None, Head(), 10, frozen=False, seed=0, image_size=32)

    def advance(done: float, message: str) -> None:
        """An epoch, which is a turn, ends with a message."""
        if message:
            turns.end()
            if turns.done < turns.count:
                turns.begin()

    turns.begin()
    fit(model, train, None, recipe, seed=0, device=cpu, advance=advance)


if __name__ == "__main__":
    main()
