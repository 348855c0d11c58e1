"""The same job with Lightning: `python lightning_loop.py FOLDER`."""

from __future__ import annotations

import logging
import warnings

import lightning
import torch
from task import MOMENTUM, WEIGHT_DECAY, Task, say
from torch import Tensor, nn

warnings.filterwarnings("ignore", module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Probe(lightning.LightningModule):  # type: ignore[misc]
    """A linear head on a frozen trunk."""

    def __init__(self, model: nn.Sequential, lr: float) -> None:
        super().__init__()
        self.model = model
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right, batch_size=len(labels))

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(
            self.model[1].parameters(), lr=self.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    task = Task()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=task.epochs, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Probe(task.model(), task.lr), task.train_loader(), task.test_loader())
    say(float(trainer.callback_metrics["accuracy"]))


if __name__ == "__main__":
    main()
