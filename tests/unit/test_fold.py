"""Folding and fusing of bodies with steps that may not be merged: they are left as they are, and nothing changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.learn.backends import choose_backend, deviation
from regraft.networks import Trunk
from regraft.networks.fold import FusedConv, fold, fuse
from regraft.seeding import stream

ROUNDING = 2e-5  # of a standard deviation


def images(count: int = 4) -> Tensor:
    drawn = stream(count, "images").standard_normal((count, 3, 8, 8), "float32")
    return torch.from_numpy(drawn).contiguous(memory_format=torch.channels_last)


def conv(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 3, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(3)
    made.running_mean, made.running_var = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0])
    return made


def check(body: nn.Module, *, fused: int, norms: int = 0) -> None:
    """Same features from all three forms, and as many merged convolutions and norms left as stated."""
    body = body.eval().to(memory_format=torch.channels_last)
    x = images()
    with torch.inference_mode():
        folded = fold(body)
        merged = fuse(folded, x)
        expected = body(x)
        for form in (folded, merged):
            assert deviation(form(x), expected) < ROUNDING
            assert deviation(form(images(7)), body(images(7))) < ROUNDING
    assert sum(isinstance(module, FusedConv) for module in merged.modules()) == fused
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == norms


class OwnWay(nn.Module):
    """Looks at the image's values, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else -self.norm(self.conv(x))  # type: ignore[no-any-return]


class Holding(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.inner = conv(), norm(), nn.Sequential(inner)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.inner(self.norm(self.conv(x)))}


def test_a_module_that_cannot_be_followed_stays_whole_and_the_rest_is_folded() -> None:
    torch.manual_seed(0)
    check(Holding(OwnWay()), fused=1, norms=1)


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(x) if x.sum() > 0 else x}


def test_a_body_that_cannot_be_followed_at_all_runs_as_it_is_and_the_record_says_why() -> None:
    with pytest.raises(torch.fx.proxy.TraceError):
        fold(Undecided())
    backend = choose_backend(Trunk(Undecided(), frozen=True), images(), 100)
    assert backend.name == "eager"
    assert backend.record["left_out"]["fused"].startswith("failed: TraceError: ")


class Shared(nn.Module):
    """One convolution used twice, and one whose own output is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.seen, self.norms = conv(), conv(), nn.ModuleList([norm(), norm(), norm()])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.norms[1](self.twice(self.norms[0](self.twice(x))))
        seen = self.seen(first)
        return {"before": seen, "after": self.norms[2](seen)}


def test_a_convolution_that_is_needed_unscaled_keeps_its_norm() -> None:
    torch.manual_seed(0)
    check(Shared(), fused=3, norms=3)


class Sums(nn.Module):
    """Sums that look like a residual one: with a number, with itself, scaled, and with one value a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv() for _ in range(7)])
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = F.relu(self.convs[0](x) + 1.0)
        doubled = self.convs[1](first)
        second = doubled + doubled
        third = torch.add(self.convs[2](second), second, alpha=2)
        fourth = self.convs[3](third) + self.pool(third)
        fifth = self.convs[4](F.relu(self.convs[6](fourth))) + fourth  # a residual one
        return {"out": torch.relu(self.convs[5](fifth)), "fifth": fifth}


def test_only_a_residual_sum_is_merged_into_its_convolution() -> None:
    torch.manual_seed(0)
    check(Sums(), fused=7)
    merged = fuse(fold(Sums().eval()), images())
    sums = [node for node in merged.graph.nodes if node.op == "call_function" and "add" in str(node.target)]
    assert len(sums) == 4


class Activated(nn.Module):
    """Each activation that is merged, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.acts = nn.ModuleList([
            nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.ELU(),
        ])  # fmt: skip
        self.convs = nn.ModuleList([conv() for _ in self.acts])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(i): act(conv(x)) for i, (conv, act) in enumerate(zip(self.convs, self.acts, strict=True))}


def test_activations_are_merged_exactly() -> None:
    torch.manual_seed(0)
    check(Activated(), fused=8)
    merged = fuse(fold(Activated().eval()), images())
    assert [type(module) for module in merged.modules() if "activation" in type(module).__module__] == [nn.ELU]


class Padded(nn.Module):
    """Convolutions that oneDNN's operator does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm = nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.norm(self.mirrored(self.same(x).relu()))}


def test_convolutions_with_another_padding_are_folded_and_not_merged() -> None:
    torch.manual_seed(0)
    check(Padded(), fused=0)
