"""In which numbers a training multiplies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.errors import StudyError, UnknownName
from regraft.learn.batches import ImageBatches
from regraft.learn.fit import fit
from regraft.learn.precision import choose_precision, has_bfloat16, memory_order, mixed_precision
from regraft.learn.predict import predict
from regraft.seeding import stream
from regraft.spec import Preprocessing, Recipe

CPU = torch.device("cpu")


def test_a_cpu_multiplies_in_float32_unless_it_is_asked_for_bfloat16() -> None:
    assert choose_precision("auto", CPU) == torch.float32
    a = torch.ones(2, 2)
    with mixed_precision(CPU):
        assert (a @ a).dtype == torch.float32
    with mixed_precision(CPU, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with mixed_precision(CPU, torch.float32):
        assert (a @ a).dtype == torch.float32


def test_a_precision_that_is_none_or_slow_here_is_refused() -> None:
    with pytest.raises(UnknownName, match="float32"):
        choose_precision("float23", CPU)
    if has_bfloat16(CPU):
        assert choose_precision("bfloat16", CPU) == torch.bfloat16
    else:
        with pytest.raises(StudyError, match="slower"):
            choose_precision("bfloat16", CPU)
    with pytest.raises(StudyError, match="this mps does not compute in it and would be slower; use float32"):
        choose_precision("bfloat16", torch.device("mps"))


def test_a_training_in_bfloat16_keeps_weights_in_float32_and_answers_nearly_the_same() -> None:
    rng = stream(0, "pictures")
    labels = np.arange(40) % 2
    images = rng.integers(0, 150, (40, 8, 8, 3))
    images[labels == 0, :, :, 0] += 100
    data = ImageBatches(
        images.astype(np.uint8), labels, Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3), device=CPU
    )
    found = {}
    for precision in (torch.float32, torch.bfloat16):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        recipe = Recipe(epochs=3, batch_size=20, lr=0.01)
        state = fit(model, data, data, recipe, seed=0, device=CPU, precision=precision).state
        assert all(value.dtype != torch.bfloat16 for value in state.values())
        found[precision] = predict(model, data, precision=precision)
    deviation = (found[torch.bfloat16] - found[torch.float32]).abs().max() / found[torch.float32].std()
    assert 0 < deviation < 0.1


def test_small_batches_on_a_cpu_lie_in_the_plain_order() -> None:
    assert memory_order(CPU, 32) == torch.contiguous_format
    assert memory_order(CPU, 128) == torch.channels_last
    assert memory_order(torch.device("cuda"), 32) == torch.channels_last
