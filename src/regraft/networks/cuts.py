"""Where a network can be cut in two, and the cutting.

A valid cut is a node through which every path from the image to the logits passes. Offered are the ends of
blocks that satisfy this, and `penultimate`, the input of the classifier's last layer. Cutting never touches
the network.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from torch import fx, nn

from regraft.data.remembered import remembered
from regraft.errors import ImageTooSmall, UnknownCut
from regraft.networks.build import build, build_skeleton
from regraft.networks.imports import forget_old_sources
from regraft.networks.nodes import PENULTIMATE, canonical, offered
from regraft.networks.pooling import Layout, layouts, pool, pooled_width, poolings
from regraft.networks.probe import Measured, measure, measure_at_any_size, size_that_fits
from regraft.networks.trace import Traced, ancestors, data_nodes, output_of, trace
from regraft.spec.models import Pooling


@dataclass(frozen=True)
class CutPoint:
    """One valid cut of a network for one image size. "Below" is between the image and the cut."""

    name: str
    depth: float  # share of the whole network's FLOPs that lie below, in (0, 1]
    shape: tuple[int, ...]  # of one image's output: (c, h, w), (h, w, c), (tokens, c) or (c,)
    layout: Layout
    parameters: int  # below
    flops: int  # below, for one image; a multiply-add counts 2
    alias: str = ""  # what the original study called it

    @property
    def features(self) -> int:
        """Length of the feature vector: of the average over all positions."""
        return self.width("average")

    def width(self, kind: Pooling) -> int:
        """Length of the feature vector under this pooling. Raises StudyError if the value has no such pooling."""
        return pooled_width(self.shape, self.layout, kind)


def cut_points(network: nn.Module, image_size: int) -> list[CutPoint]:
    """Every cut that is offered, from the image to the classifier.

    Raises ImageTooSmall if the network does not take square images of `image_size` pixels, and StudyError if
    it cannot be traced.
    """
    traced = trace(network)
    try:
        measured = measure(network, traced, image_size)
    except ImageTooSmall as error:
        size = size_that_fits(lambda side: measure(network, traced, side), image_size)
        raise ImageTooSmall(f"{error}. {_advice(size, image_size)}") from None
    return _points(network, traced, measured)


@lru_cache(maxsize=256)
def describe(network: str, stem: str = "imagenet", image_size: int = 224) -> tuple[CutPoint, ...]:
    """`cut_points` of a network by its name, without building its weights. Networks whose size is fixed when
    they are built (vision transformers) are built for `image_size`. Remembered on disk, as tracing a network takes
    a good part of a second. Errors as for `cut_points` and `build`.
    """
    found = remembered(
        ["points", network, stem, image_size],
        lambda: [asdict(point) for point in _described(network, stem, image_size)],
    )
    return tuple(CutPoint(**{**point, "shape": tuple(point["shape"])}) for point in found)


def _described(network: str, stem: str, image_size: int) -> list[CutPoint]:

    def points(side: int) -> list[CutPoint]:
        skeleton = build_skeleton(network, stem=stem, image_size=side)
        traced = trace(skeleton)
        try:
            return _points(skeleton, traced, measure(skeleton, traced, side))
        except NotImplementedError:  # needs real tensors
            whole = build(network, stem=stem, seed=0, image_size=side)
            return _points(whole, traced, measure(whole, traced, side))

    try:
        return points(image_size)
    except ImageTooSmall as error:
        size = size_that_fits(points, image_size)
        raise ImageTooSmall(f"{network}: {error}. {_advice(size, image_size)}") from None


def find_cut(network: nn.Module, at: str | None, image_size: int, *, name: str = "") -> CutPoint:
    """The cut point called `at`; None is the penultimate one. `name` is what messages call the network.

    A stage's name (`layer4`) stands for its last block's (`layer4.1`). Raises UnknownCut with the reason and
    the nearest valid name.
    """
    points = {point.name: point for point in cut_points(network, image_size)}
    traced = trace(network)
    called = name or type(network).__name__
    return _existing(points, canonical(network, traced, at or PENULTIMATE, called), called)


@lru_cache(maxsize=4096)
def resolve_cut(network: str, at: str | None, image_size: int, *, stem: str = "imagenet") -> CutPoint:
    """`find_cut` of a network by its name; quick, since `describe` remembers."""
    points = {point.name: point for point in describe(network, stem, image_size)}
    if (at or PENULTIMATE) in points:
        return points[at or PENULTIMATE]
    skeleton = build_skeleton(network, stem=stem, image_size=image_size)
    return _existing(points, canonical(skeleton, trace(skeleton), at or PENULTIMATE, network), network)


def _existing(points: dict[str, CutPoint], at: str, called: str) -> CutPoint:
    if at not in points:
        raise UnknownCut(
            f"{called} cannot be cut at {at!r}: its output is not one tensor. List them with: regraft cuts {called}"
        )
    return points[at]


def cut(network: nn.Module, at: str) -> tuple[nn.Module, nn.Module]:
    """(body, tail) with tail(body(x)) == network(x) exactly, in the network's present mode and after
    train/eval.

    Both are copies: they share no tensor with `network` or each other, and `network` is not touched. The keys
    of their state dicts are the network's own. Raises UnknownCut.
    """
    traced = trace(network)
    return _body(network, traced, at), _tail(network, traced, at)


def body_of(network: nn.Module, at: str) -> nn.Module:
    """The first part of `cut`: images (n, 3, h, w) -> the cut's value."""
    return _body(network, trace(network), at)


def tail_of(network: nn.Module, at: str) -> nn.Module:
    """The second part of `cut`: the cut's value -> logits (n, classes)."""
    return _tail(network, trace(network), at)


def body_for_cuts(network: nn.Module, cuts: Iterable[str], *, pooled: bool = False) -> nn.Module:
    """A copy of the network up to the deepest of `cuts`, whose forward gives every cut's value in one pass.

    forward: images (n, 3, h, w) -> {cut: value}, each equal to what `cut` gives for it alone; with `pooled`,
    `pooled_body` of averages. Raises UnknownCut.
    """
    if pooled:
        return pooled_body(network, [(at, "average") for at in cuts])
    traced = trace(network)
    nodes = _wanted(network, traced, cuts)
    graph, copies = _below(traced, list(nodes.values()))
    graph.output({at: _kept(graph, copies[node]) for at, node in nodes.items()})
    return _part(network, graph)


def pooled_body(
    network: nn.Module, wanted: Iterable[tuple[str, Pooling]], *, laid_out: Mapping[str, Layout] | None = None
) -> nn.Module:
    """A copy of the network up to the deepest cut, whose forward gives each (cut, pooling) in one pass.

    forward: images (n, 3, h, w) -> {feature_name(cut, pooling): (n, d)}, each equal to `pool` of what `cut`
    gives alone. Values are pooled where they arise, so that no large map is kept. Raises UnknownCut; which
    pooling a cut has for the images at hand, `CutPoint.width` says. laid_out: layout of each cut's value, as the
    cut points say; where it is not known, images are put through an empty copy of the network.
    """
    wanted = list(dict.fromkeys(wanted))
    traced = trace(network)
    nodes = _wanted(network, traced, [at for at, _ in wanted])
    if laid_out is None:
        of_nodes = _layouts(offered(network, traced), measure_at_any_size(network, traced))
        laid_out = {at: of_nodes[node] for at, node in nodes.items()}
    graph, copies = _below(traced, list(nodes.values()))
    results: dict[str, fx.Node] = {}
    for at, kind in wanted:
        value, layout = copies[nodes[at]], laid_out[at]
        assert kind in poolings(layout), f"no {kind} pooling of {layout} values; ask CutPoint.width first"
        if layout == "flat":
            results[feature_name(at, kind)] = _kept(graph, value)
        else:
            with graph.inserting_after(value):
                results[feature_name(at, kind)] = graph.call_function(pool, (value, layout, kind))
    graph.output(results)
    return _part(network, graph)


def feature_name(cut: str, kind: Pooling) -> str:
    """What `pooled_body` calls its output: "layer2.2", "layer2.2 grid-2"."""
    return cut if kind == "average" else f"{cut} {kind}"


def cuts_below(network: str, at: str | None, image_size: int, *, stem: str = "imagenet") -> list[str]:
    """Names of all cut points from the image up to and with `at` (None: penultimate), in order. Errors as for
    `resolve_cut`."""
    names = [point.name for point in describe(network, stem, image_size)]
    return names[: names.index(resolve_cut(network, at, image_size, stem=stem).name) + 1]


# --- what lies below a cut --------------------------------


def _points(network: nn.Module, traced: Traced, measured: dict[str, Measured]) -> list[CutPoint]:
    total = sum(measured[node.name].flops for node in data_nodes(traced.graph) if node.name in measured)
    aliases = {"layer2.2": "first 18 layers"} if _is_resnet50(network) else {}
    nodes = {name: n for name, n in offered(network, traced).items() if n.name in measured}  # not several tensors
    laid_out = _layouts(nodes, measured)
    points = []
    for name, node in nodes.items():
        below = ancestors(node)
        flops = sum(measured[n.name].flops for n in below if n.name in measured)
        points.append(
            CutPoint(
                name=name,
                depth=flops / total,
                shape=measured[node.name].shape,
                layout=laid_out[node],
                parameters=_parameters(network, below),
                flops=flops,
                alias=aliases.get(name, ""),
            )
        )
    return points


def _parameters(network: nn.Module, nodes: set[fx.Node]) -> int:
    """Parameters that the nodes use, each counted once."""
    found: dict[int, int] = {}
    for node in nodes:
        if node.op == "call_module":
            found.update((id(p), p.numel()) for p in network.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr" and node.target != "training":
            owner, _, leaf = str(node.target).rpartition(".")
            value = getattr(network.get_submodule(owner), leaf)
            if isinstance(value, nn.Parameter):
                found[id(value)] = value.numel()
    return sum(found.values())


def _layouts(nodes: dict[str, fx.Node], measured: dict[str, Measured]) -> dict[fx.Node, Layout]:
    """How the value of each offered node is laid out."""
    shapes = {name: measured[node.name].shape for name, node in nodes.items() if node.name in measured}
    return {nodes[name]: layout for name, layout in layouts(shapes).items()}


def _is_resnet50(network: nn.Module) -> bool:
    stages = [getattr(network, f"layer{i}", None) for i in (1, 2, 3, 4)]
    if not all(isinstance(stage, nn.Sequential) for stage in stages):
        return False
    blocks = [len(stage) for stage in stages if isinstance(stage, nn.Sequential)]
    first = getattr(stages[0][0], "conv2", None)  # type: ignore[index]
    return (
        blocks == [3, 4, 6, 3]
        and isinstance(first, nn.Conv2d)
        and first.out_channels == 64
        and (
            first.groups == 1 and hasattr(stages[0][0], "conv3")  # type: ignore[index]
        )
    )


def _advice(size: int | None, wanted: int) -> str:
    if size is None:
        return "No usual image size fits; give the image_size the network was made for."
    if size > wanted:
        return f"The smallest size found to work is {size} px: set the source's image_size to it."
    return f"It works with {size} px: set the source's image_size."


# --- the parts --------------------------------


def _wanted(network: nn.Module, traced: Traced, cuts: Iterable[str]) -> dict[str, fx.Node]:
    nodes = offered(network, traced)
    names = {at: nodes[canonical(network, traced, at, type(network).__name__)] for at in cuts}
    if not names:
        raise UnknownCut("no cut given; name at least one, for example 'penultimate'")
    return names


def _kept(graph: fx.Graph, value: fx.Node) -> fx.Node:
    """`value` as an output. What follows may be an in-place activation, which would change the value taken here."""
    if not value.users:
        return value
    with graph.inserting_after(value):
        return graph.call_method("clone", (value,))


def _body(network: nn.Module, traced: Traced, at: str) -> nn.Module:
    node = offered(network, traced)[canonical(network, traced, at, type(network).__name__)]
    graph, copies = _below(traced, [node])
    graph.output(copies[node])
    return _part(network, graph)


def _tail(network: nn.Module, traced: Traced, at: str) -> nn.Module:
    node = offered(network, traced)[canonical(network, traced, at, type(network).__name__)]
    return _part(network, _above(traced, node))


def _below(traced: Traced, wanted: list[fx.Node]) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """The graph from the image to `wanted`, still without output, and its copy of each node."""
    keep = set().union(*(ancestors(node) for node in wanted))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node in keep:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return graph, copies


def _above(traced: Traced, start: fx.Node) -> fx.Graph:
    """The graph from `start` to the output."""
    graph = fx.Graph()
    # The first step may be an in-place activation; it must not write into the caller's (cached) features.
    copies = {start: graph.call_method("clone", (graph.placeholder("features"),))}
    needed = ancestors(output_of(traced.graph), stop=start)
    for node in traced.graph.nodes:
        if node in needed and node is not start:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return graph


def _part(network: nn.Module, graph: fx.Graph) -> nn.Module:
    """Copies of the modules that `graph` uses, under the network's own names, with the graph as forward."""
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    used = {target: operator.attrgetter(target)(network) for target in targets}
    part = fx.GraphModule(copy.deepcopy(used), graph, class_name=type(network).__name__)
    for name, module in part.named_modules():
        module.training = network.get_submodule(name).training
    forget_old_sources()
    return part
