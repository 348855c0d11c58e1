"""Global average pooling: what a network's intermediate output is, and how it becomes one vector an image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Layout = Literal["chw", "hwc", "tokens", "flat"]


def pool(features: Tensor, layout: Layout) -> Tensor:
    """One vector an image: the average over all positions.

    features: (n, c, h, w), (n, h, w, c), (n, tokens, c) or (n, c) by `layout`.  Returns (n, c). Of tokens,
    all are averaged, a class token among them: at an inner block it is one token like the others, and only
    the network's own last steps make it the summary (at `penultimate` those have run, and the layout is
    flat).
    """
    if layout == "chw":
        return features.mean(dim=(2, 3))
    if layout == "hwc":
        return features.mean(dim=(1, 2))
    return features.mean(dim=1) if layout == "tokens" else features
