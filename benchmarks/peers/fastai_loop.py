"""The same job with fastai: `python fastai_loop.py FOLDER`."""

from __future__ import annotations

from functools import partial

import torch
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from task import BATCH, MOMENTUM, WEIGHT_DECAY, Task, say
from torch import nn


def main() -> None:
    torch.manual_seed(0)
    task = Task()
    loaders = DataLoaders.from_dsets(
        task.train, task.test, bs=BATCH, num_workers=task.keep["num_workers"], device=torch.device("cpu")
    )
    sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    learner = Learner(
        loaders, task.model(), loss_func=nn.CrossEntropyLoss(), opt_func=sgd, metrics=accuracy,
        splitter=lambda model: list(model[1].parameters()),
    )  # fmt: skip
    with learner.no_bar(), learner.no_logging():
        learner.fit(task.epochs, task.lr, cbs=ParamScheduler({"lr": SchedCos(task.lr, 0.0)}))
    say(float(learner.recorder.values[-1][-1]))


if __name__ == "__main__":
    main()
