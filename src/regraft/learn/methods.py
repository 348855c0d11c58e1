"""Methods of transfer: what of a grafted network learns, at which rate, and how far from its start.

Each is a pure function of the network, its blocks and the method's details. A linear probe is a frozen trunk, and plain
fine-tuning needs nothing; LP-FT is fine-tuning with a head that starts as a probe's (`head.start: source`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from regraft.learn.batches import Batches
from regraft.learn.predict import evaluate
from regraft.networks import Grafted
from regraft.seeding import torch_stream
from regraft.spec import Method, Tuning

FACTORS = tuple(i / 10 for i in range(11))  # of mixing the start (0) with the end (1) of a fine-tuning


@dataclass(frozen=True)
class Unit:
    """A block of the trunk: what is frozen or freed together."""

    name: str
    modules: tuple[nn.Module, ...]  # that hold the parameters

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules for p in module.parameters(recurse=False)]

    def let_learn(self, learn: bool) -> None:
        """A block that does not learn keeps its BatchNorms' statistics as well."""
        for module in self.modules:
            for p in module.parameters(recurse=False):
                p.requires_grad_(learn)
            if isinstance(module, _BatchNorm) and not learn:
                module.train(False)


@dataclass
class Tuned:
    """How a method makes training different."""

    rates: dict[nn.Parameter, float] = field(default_factory=dict)  # shares of the learning rate; 1 where not named
    undecayed: frozenset[nn.Parameter] = frozenset()  # spared by weight decay
    before_epoch: Callable[[float], None] = lambda done: None  # done: share of the epochs behind; the model trains
    after_gradient: Callable[[], None] = lambda: None  # gradients of the whole batch are there
    after_training: Callable[[], None] = lambda: None  # the kept weights are in the model; its names become plain

    @property
    def fixed(self) -> bool:
        """Whether the same parameters learn in every epoch."""
        return self.before_epoch is PLAIN.before_epoch


PLAIN = Tuned()


def units_of(model: Grafted, blocks: Sequence[str]) -> list[Unit]:
    """The trunk's modules with parameters, grouped by block, from the image upwards.

    blocks: names of cuts, in order. What lies in none (a stem, a last norm) goes with the block before it in the
    network's own order, the first ones into a unit named "stem"."""
    groups: dict[str, list[nn.Module]] = {}
    current = "stem"
    for path, module in model.trunk.body.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        inside = [block for block in blocks if path == block or path.startswith(f"{block}.")]
        current = max(inside, key=len) if inside else current
        groups.setdefault(current, []).append(module)
    return [Unit(name, tuple(modules)) for name, modules in groups.items()]


def tune(model: Grafted, method: Method, tuning: Tuning, blocks: Sequence[str], *, seed: int) -> Tuned:
    """Make `model` ready for `method`, before its optimiser is made. seed: of what a method draws."""
    return METHODS[method](model, tuning, units_of(model, blocks), seed)


def plain(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """Linear probe, fine-tuning, and WiSE-FT up to its end: the trunk itself says what learns."""
    return Tuned()


def gradual(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """Gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146): first the head alone, then block after block from the
    head down, each after an equal share of the epochs."""

    def before_epoch(done: float) -> None:
        free = int(done * (len(units) + 1))  # blocks, counted from the head
        for place, unit in enumerate(reversed(units)):
            unit.let_learn(place < free)

    return Tuned(before_epoch=before_epoch)


def layerwise(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """Layer-wise decay of the learning rate: a block learns at `decay` times the rate of the block above it (Howard &
    Ruder 2018; Clark et al. 2020, arXiv:2003.10555)."""
    rates = {
        p: tuning.decay ** (place + 1) for place, unit in enumerate(reversed(units)) for p in unit.parameters()
    }  # fmt: skip
    return Tuned(rates=rates)


def l2_sp(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """L2-SP (Li et al. 2018, arXiv:1802.01483): the trunk is pulled towards its start, pull / 2 * |w - w0|^2 in the
    loss, in place of weight decay; the head decays as usual."""
    trained = [p for p in model.trunk.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]

    @torch.no_grad()
    def after_gradient() -> None:
        for p, origin in zip(trained, start, strict=True):
            if p.grad is not None:
                p.grad.add_(p - origin.to(p.device), alpha=tuning.pull)

    return Tuned(undecayed=frozenset(trained), after_gradient=after_gradient)


def norms_only(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """Of the trunk only BatchNorm's scales and shifts learn (Frankle, Schwab & Morcos 2021, arXiv:2003.00152)."""
    for unit in units:
        for module in unit.modules:
            if not isinstance(module, _BatchNorm):
                for p in module.parameters(recurse=False):
                    p.requires_grad_(False)
    return Tuned()


def surgical(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """Of the trunk only one block learns (Lee et al. 2023, arXiv:2210.11466)."""
    return _kept_still([unit for unit in units if not _within(unit.name, tuning.block)])


def first_frozen(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """The blocks up to `first` stay as they are, those above it learn (Yosinski et al. 2014, arXiv:1411.1792)."""
    last = max(place for place, unit in enumerate(units) if _within(unit.name, tuning.first))
    return _kept_still(units[: last + 1])


def lora(model: Grafted, tuning: Tuning, units: Sequence[Unit], seed: int) -> Tuned:
    """Low-rank changes (Hu et al. 2021, arXiv:2106.09685): a kernel (out, in, h, w), as a matrix (out, in * h * w),
    stays and gets a product of two thin matrices added, which alone learns; it is merged in the end."""
    generator = torch_stream(seed, "lora")
    changed: list[nn.Module] = []
    for unit in units:
        for module in unit.modules:
            weight = getattr(module, "weight", None)
            for p in module.parameters(recurse=False):
                p.requires_grad_(False)
            if isinstance(module, nn.Conv2d | nn.Linear) and isinstance(weight, Tensor):
                parametrize.register_parametrization(module, "weight", _LowRank(weight, tuning.rank, generator))
                changed.append(module)

    def after_training() -> None:
        for module in changed:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)

    return Tuned(after_training=after_training)


class _LowRank(nn.Module):
    """weight -> weight + up @ down; nothing is added at the start."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, width = weight.shape[0], weight[0].numel()
        rank = min(rank, out, width)
        down = torch.randn(rank, width, generator=generator) / width**0.5
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(torch.zeros(out, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


METHODS: dict[Method, Callable[[Grafted, Tuning, Sequence[Unit], int], Tuned]] = {
    "frozen": plain, "finetune": plain, "wise-ft": plain, "gradual": gradual, "layerwise": layerwise, "l2-sp": l2_sp,
    "norms-only": norms_only, "surgical": surgical, "first-frozen": first_frozen, "lora": lora,
}  # fmt: skip


def _within(unit: str, asked: str | None) -> bool:
    return asked is not None and (unit == asked or unit.startswith(f"{asked}."))


def _kept_still(still: Sequence[Unit]) -> Tuned:
    def before_epoch(done: float) -> None:
        for unit in still:
            unit.let_learn(False)

    before_epoch(0.0)
    return Tuned(before_epoch=before_epoch)


def wise_ft(
    model: Grafted, start: Mapping[str, Tensor], validation: Batches | None, *, flip: bool = False
) -> list[tuple[float, float, float]]:
    """WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): the weights between start and end of a fine-tuning that answer
    best on validation images; of equal ones those nearest the end. Without such images, the middle.

    start: the model's state before training, buffers included.  Leaves the model with the chosen weights; returns
    factor, validation loss and accuracy of each that was tried, 0 being the start, the chosen one first."""
    end = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def mix(factor: float) -> None:
        mixed = {
            name: torch.lerp(start[name].to(value), value, factor) if value.is_floating_point() else value
            for name, value in end.items()
        }
        model.load_state_dict(mixed)

    if validation is None:
        mix(0.5)
        return []
    curve = []
    for factor in FACTORS:
        mix(factor)
        curve.append((factor, *evaluate(model, validation, flip=flip)))
    best = max(curve, key=lambda point: (point[2], point[0]))
    mix(best[0])
    return [best, *(point for point in curve if point is not best)]
