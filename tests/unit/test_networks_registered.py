"""Networks that are registered with timm, as its own are: what they need when they are built is given or told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn

from regraft.errors import ImageTooSmall
from regraft.networks import build, state_hash
from regraft.networks.build import _timm_names, build_around, build_skeleton

FIXED = {"fixed_input_size": True, "input_size": (3, 32, 32)}
default_cfgs = {f"regraft_{name}": FIXED for name in ("any_size", "wrong", "drawing")}  # read by timm


class Small(nn.Module):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean((2, 3)))  # type: ignore[no-any-return]


def regraft_any_size(pretrained: bool = False, **options: Any) -> nn.Module:
    """Its record says that its size is fixed, and it takes none."""
    return Small(**{name: value for name, value in options.items() if name in ("num_classes", "img_size")})


def regraft_wrong(pretrained: bool = False, **options: Any) -> nn.Module:
    raise TypeError("unsupported operand type(s) for +: 'int' and 'str'")


def regraft_drawing(pretrained: bool = False, **options: Any) -> nn.Module:
    """Looks at a random number while it is built, which has no value on the meta device."""
    network = Small()
    with torch.no_grad():
        network.fc.bias.fill_(torch.rand(1).item())
    return network


for _made in (regraft_any_size, regraft_wrong, regraft_drawing):
    register_model(_made)


@pytest.fixture(autouse=True)
def _listed() -> None:
    _timm_names.cache_clear()


def test_a_network_that_takes_no_size_is_built_without() -> None:
    network = build("timm/regraft_any_size", classes=5, seed=0, image_size=48)
    assert network(torch.zeros(1, 3, 48, 48)).shape == (1, 5)


def test_an_error_in_a_network_s_own_code_is_not_hidden() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        build("timm/regraft_wrong", seed=0, image_size=48)


def test_a_size_that_timm_refuses_is_told_with_its_reason() -> None:
    with pytest.raises(
        ImageTooSmall, match=r"it cannot be built for images of 60 px: .*divide image dimensions evenly"
    ):
        build("timm/xcit_nano_12_p16_224", seed=0, image_size=60)


def test_a_network_that_computes_while_it_is_built_has_a_skeleton_of_real_tensors() -> None:
    before = torch.random.get_rng_state()
    skeleton = build_skeleton("timm/regraft_drawing")
    assert not any(tensor.is_meta for tensor in skeleton.state_dict().values())
    original = build("timm/regraft_drawing", seed=3)
    assert state_hash(original.state_dict()) == state_hash(build("timm/regraft_drawing", seed=3).state_dict())
    twin = build_around(original.state_dict(), "timm/regraft_drawing")
    assert state_hash(twin.state_dict()) == state_hash(original.state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
