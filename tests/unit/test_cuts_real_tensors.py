"""A network with an operator that tells nothing without values is built for real, and described like any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn

from regraft.errors import ImageTooSmall
from regraft.networks import build, cut_points, describe
from regraft.networks.build import _timm_names, build_skeleton
from regraft.networks.probe import measure
from regraft.networks.trace import trace

NAME = "regraft_needs_values"


class NeedsValues(nn.Module):
    """For images of one size, with `torch.unique`, which the meta device does not have."""

    def __init__(self, num_classes: int = 1000, img_size: int = 32) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.place = nn.Parameter(torch.zeros(4, img_size, img_size))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x) + self.place
        x = x + 0 * torch.unique(x).sum()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def regraft_needs_values(pretrained: bool = False, **options: Any) -> nn.Module:
    known = {name: value for name, value in options.items() if name in ("num_classes", "img_size")}
    return NeedsValues(**known)


default_cfgs = {NAME: {"fixed_input_size": True, "input_size": (3, 32, 32)}}  # read by timm
register_model(regraft_needs_values)


@pytest.fixture(autouse=True)
def _listed() -> None:
    _timm_names.cache_clear()


def test_the_meta_device_does_not_do_for_it() -> None:
    skeleton = build_skeleton(f"timm/{NAME}", image_size=32)
    with pytest.raises(NotImplementedError, match="needs real tensors"):
        measure(skeleton, trace(skeleton), 32)


@pytest.mark.parametrize("side", [32, 48])
def test_it_is_described_as_it_is_measured(side: int) -> None:
    described = describe(f"timm/{NAME}", "imagenet", side)
    assert list(described) == cut_points(build(f"timm/{NAME}", seed=3, image_size=side), side)
    assert [point.shape for point in described] == [(4, side, side), (4,)]
    assert described[-1].parameters == 4 * 28 + 4 * side**2


def test_a_size_that_it_cannot_take_is_refused_by_its_name() -> None:
    with pytest.raises(ImageTooSmall, match=f"^timm/{NAME}: "):
        describe(f"timm/{NAME}", "imagenet", 0)
