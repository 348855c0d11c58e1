"""Heads, and grafting one on a trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.errors import UnknownCut, WeightsMismatch
from regraft.networks.build import build
from regraft.networks.cuts import CutPoint, body_of, describe, resolve_cut, tail_of
from regraft.networks.nodes import PENULTIMATE
from regraft.networks.pooling import Layout, pool
from regraft.networks.trunk import Trunk
from regraft.seeding import derive
from regraft.spec import Head
from regraft.spec.models import Pooling
from regraft.spec.tuning import Norms


@dataclass(frozen=True)
class NetworkSpec:
    """The plain network that a trunk is cut from; with a partial state by its own names, all that a source
    is."""

    network: str
    stem: str = "imagenet"
    image_size: int | None = None  # pixels


class Pool(nn.Module):
    """`pool` as a layer. Features that are already pooled, (n, d), pass."""

    def __init__(self, layout: Layout, kind: Pooling) -> None:
        super().__init__()
        self.layout = layout
        self.kind: Pooling = kind

    def forward(self, features: Tensor) -> Tensor:  # (n, ...) -> (n, d)
        return features if features.ndim == 2 else pool(features, self.layout, self.kind)

    def extra_repr(self) -> str:
        return f"{self.layout}, {self.kind}"


class PooledHead(nn.Module):
    """Pool, then classify. `.classify` alone takes features that were pooled and cached before."""

    def __init__(self, layout: Layout, kind: Pooling, classify: nn.Module) -> None:
        super().__init__()
        self.pool = Pool(layout, kind)
        self.classify = classify

    def forward(self, features: Tensor) -> Tensor:  # (n, ...) or pooled (n, d) -> logits (n, classes)
        return self.classify(self.pool(features))  # type: ignore[no-any-return]


class RestHead(nn.Module):
    """The network's remaining blocks, and a new classifier."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, features: Tensor) -> Tensor:  # the cut's value (n, ...) -> logits (n, classes)
        return self.rest(features)  # type: ignore[no-any-return]


def linear_head(head: Head, point: CutPoint, classes: int, spec: NetworkSpec, seed: int) -> nn.Module:
    return PooledHead(point.layout, head.pool, nn.Linear(point.width(head.pool), classes))


def mlp_head(head: Head, point: CutPoint, classes: int, spec: NetworkSpec, seed: int) -> nn.Module:
    first, last = nn.Linear(point.width(head.pool), head.hidden), nn.Linear(head.hidden, classes)
    return PooledHead(point.layout, head.pool, nn.Sequential(first, nn.ReLU(), nn.Dropout(head.dropout), last))


def rest_head(head: Head, point: CutPoint, classes: int, spec: NetworkSpec, seed: int) -> nn.Module:
    fresh = build(spec.network, classes=classes, stem=spec.stem, seed=seed, image_size=spec.image_size)
    return RestHead(tail_of(fresh, point.name))


# Heads that are built before they are trained. The others (prototype, knn, head2toe) are made of training features.
HEADS: dict[str, Callable[[Head, CutPoint, int, NetworkSpec, int], nn.Module]] = {
    "linear": linear_head,
    "mlp": mlp_head,
    "rest": rest_head,
}


def make_head(
    head: Head, point: CutPoint, classes: int, *, spec: NetworkSpec, seed: int, generation: int = 0
) -> nn.Module:
    """A head for the trunk's raw output at `point`: (n, ...) -> logits (n, classes).

    Its weights depend on `seed` and `generation` alone; as in `build`, torch's global generator is seeded for them and
    put back. generation: how many trainings the trunk has behind it. A head, or blocks, that began as those which the
    trunk once learned under would find the trunk fitted to them: training moves weights little from where they began.
    Raises StudyError if the value at `point` has no pooling `head.pool`.
    """
    assert head.kind in HEADS, f"a {head.kind} head is read off training features; see regraft.learn"
    own = derive(seed, "head", *([generation] if generation else []))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        return HEADS[head.kind](head, point, classes, spec, own)


class Grafted(nn.Module):
    """head(trunk(x)): images (n, 3, h, w) -> logits (n, classes)."""

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))  # type: ignore[no-any-return]


def graft(
    network: str,
    stem: str,
    weights: Mapping[str, Tensor] | None,
    at: str | None,
    head: Head,
    classes: int,
    *,
    frozen: bool,
    seed: int,
    image_size: int,
    norms: Norms | None = None,
    generation: int = 0,
    source_classes: int | None = None,
) -> Grafted:
    """Cut `network` at `at` (None: penultimate), give the trunk `weights`, graft a fresh head on it.

    weights: a state dict by the plain network's names, of which those below the cut are used; None leaves the
    random weights of `seed`. norms: as in `Trunk`. generation: as in `make_head`. source_classes: of the network that
    is cut; changes nothing below a cut, and with it the random weights are those of `build(classes=source_classes)`.
    Raises UnknownCut, WeightsMismatch, ImageTooSmall.
    """
    point = resolve_cut(network, at, image_size, stem=stem)
    plain = build(network, classes=source_classes, stem=stem, seed=seed, image_size=image_size)
    body = body_of(plain, point.name)
    if weights is not None:
        load_body(body, weights, origin=network)
    spec = NetworkSpec(network, stem, image_size)
    return Grafted(
        Trunk(body, frozen=frozen, norms=norms),
        make_head(head, point, classes, spec=spec, seed=seed, generation=generation),
    )


def load_body(body: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy into `body` its tensors out of `state`, which may hold more (what lies beyond the cut).

    Raises WeightsMismatch if one is missing or has another shape.
    """
    own = body.state_dict()
    if missing := [name for name in own if name not in state]:
        raise WeightsMismatch(
            f"{origin}: the weights lack {len(missing)} of the {len(own)} tensors below the cut, first "
            f"{missing[0]!r}. They hold {_some(state)}. "
            "Give weights of this very network and stem, or cut earlier."
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise WeightsMismatch(
                f"{origin}: {name!r} has shape {tuple(state[name].shape)}, the network wants "
                f"{tuple(tensor.shape)}. Is the stem, the image_size or the width another one?"
            )
    body.load_state_dict({name: state[name] for name in own})


def trunk_state(grafted: Grafted) -> dict[str, Tensor]:
    """The trained tensors by the plain network's own names: the trunk's, and those of a `rest` head.

    A run is thereby a source like any other: its network and stem, with this (partial) state.
    """
    state = dict(grafted.trunk.body.state_dict())
    if isinstance(grafted.head, RestHead):
        state |= grafted.head.rest.state_dict()
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def check_within(
    network: str, stem: str, image_size: int, at: str | None, *, source_cut: str | None, source_head: Head
) -> None:
    """Refuse a cut of another run's network beyond what that run kept of it; for the plan, before any
    training.

    Raises UnknownCut: a run whose head is not `rest` holds the network only up to its own cut.
    """
    names = [point.name for point in describe(network, stem, image_size)]
    wanted = resolve_cut(network, at, image_size, stem=stem).name
    held = PENULTIMATE if source_head.kind == "rest" else resolve_cut(network, source_cut, image_size, stem=stem).name
    if names.index(wanted) > names.index(held):
        raise UnknownCut(
            f"cannot cut at {wanted!r}: the source run kept {network} only up to {held!r} and put a "
            f"{source_head.kind} head there. Cut at {held!r} or before, or give the source run `head: rest`."
        )


def _some(state: Mapping[str, Tensor]) -> str:
    names = list(state)
    return f"{len(names)} tensors ({', '.join(names[:3])}, ...)" if names else "no tensors"
