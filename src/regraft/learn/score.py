"""Where a training is scored: with learn/episodes, which scores few-shot episodes, the only reader of test labels."""

from __future__ import annotations

from torch import Tensor

from regraft.data import Score, TestSplit


def score(test: TestSplit, logits: Tensor, *, run: str) -> Score:
    """Score the logits (n, classes) of one run, once. Raises TestLabelsClosed on a second time."""
    return test.score(logits.float().cpu().numpy(), run=run)
