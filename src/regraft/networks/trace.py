"""A network as a graph of blocks.

torch.fx follows one image from input to output, but a block (a residual block, an encoder layer, a plain
convolution) stays one node. So a part cut out of the graph runs the source's own block modules, and whatever
a block does differently in training (dropout, stochastic depth) it keeps doing. Only what a network computes
between its blocks is written into the graph; where that depends on the mode, the graph asks `self.training`
(`by_mode`).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from regraft.errors import StudyError
from regraft.networks.imports import import_torchvision

WEIGHT_LAYERS = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Traced:
    """The graph of a network. Names are the network's own; the graph holds no tensor."""

    graph: fx.Graph
    exits: dict[str, fx.Node]  # module name -> the node whose value is the module's output
    classifier: str  # name of the last Linear or Conv2d that runs
    closed: tuple[str, ...]  # modules that could not be traced through and stay one node


def trace(network: nn.Module) -> Traced:
    """Trace `network`, which is left as it was: the tracing works on a copy that shares its tensors.

    Raises StudyError, with fx's reason, for a network whose own forward cannot be followed.
    """
    twin = structural_copy(network, same)
    arguments = _defaults(twin)
    closed: set[str] = set()
    while True:
        tracers = {mode: _BlockTracer(twin, closed) for mode in (False, True)}
        try:
            graphs = {mode: tracer.trace(twin.train(mode), arguments) for mode, tracer in tracers.items()}
            for graph in graphs.values():
                _drop_defaults(graph)
            _follow_training_mode(graphs[False], graphs[True])
            break
        except Exception as error:  # fx raises many kinds; each means that this module cannot be followed
            inside = next((t.failed_in for t in tracers.values() if t.failed_in), "")
            if not inside or inside in closed:
                reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                raise StudyError(
                    f"{type(network).__name__} cannot be cut: its forward depends on the image's values or "
                    f"shape in a way torch.fx cannot follow ({reason}). "
                    "Choose another network."
                ) from error
            closed.add(inside)
    graph, tracer = graphs[False], tracers[False]
    return Traced(graph, tracer.exits, _classifier(graph, twin), tuple(sorted(closed)))


def structural_copy(network: nn.Module, twin_of: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy with modules of its own, whose parameters and buffers are `twin_of` the network's."""
    memo: dict[int, Any] = {id(tensor): twin_of(tensor) for tensor in _tensors(network)}
    return copy.deepcopy(network, memo)


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def by_mode(training: bool, in_training: Any, otherwise: Any) -> Any:
    """The value that the network's forward would have used in the present mode."""
    return in_training if training else otherwise


def ancestors(node: fx.Node, stop: fx.Node | None = None) -> set[fx.Node]:
    """`node` and everything it is computed from; with `stop`, what is computed from `stop` onwards."""
    found, stack = {node}, [node]
    while stack:
        child = stack.pop()
        for parent in child.all_input_nodes if child is not stop else []:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found


def data_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value depends on the image and on which the output depends."""
    output = output_of(graph)
    reaches_output = ancestors(output)
    fed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(parent in fed for parent in node.all_input_nodes):
            fed.add(node)
    return fed & reaches_output


def output_of(graph: fx.Graph) -> fx.Node:
    output: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return output


def bypass(node: fx.Node, data: set[fx.Node]) -> fx.Node | None:
    """None if every path from input to output passes through `node`; else the start of an edge that goes
    round it.

    With A the nodes `node` is computed from: nothing but `node` itself may feed a node outside A. That is the
    dominator condition of Lengauer and Tarjan 1979, decided directly.
    """
    above = ancestors(node) & data
    for origin in above - {node}:
        if any(user in data and user not in above for user in origin.users):
            return origin
    return None


class _BlockTracer(fx.Tracer):
    """Opens containers and stages, keeps blocks whole, and remembers where each module's output arises."""

    def __init__(self, root: nn.Module, closed: set[str]) -> None:
        # What is traced has imported torchvision in any case, unless it is a network of the caller's own.
        super().__init__(autowrap_modules=(math, import_torchvision().ops))  # type: ignore[arg-type]
        self.exits: dict[str, fx.Node] = {}
        self.failed_in = ""
        names = {module: name for name, module in root.named_modules()}
        last = [m for m in root.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1:]
        self._open = {
            module
            for module, name in names.items()
            if name not in closed and (_is_stage(module) or _holds(module, last))
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._open

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        try:
            out = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or name
            raise
        if isinstance(out, fx.Proxy):
            self.exits[name] = out.node
        return out


def _holds(module: nn.Module, last: Sequence[nn.Module]) -> bool:
    """Whether the last layer lies in `module`: the classifier's own head is opened, so that its input can be
    cut."""
    return bool(last) and module is not last[0] and any(child is last[0] for child in module.modules())


def _is_stage(module: nn.Module) -> bool:
    """A plain container, or a module that strings blocks of one kind together."""
    if type(module) in CONTAINERS:
        return True
    kinds = Counter(type(child) for child in _parts(module) if _is_block(child))
    if isinstance(module, nn.Sequential):
        return bool(kinds)
    return any(count > 1 for count in kinds.values())


def _is_block(module: nn.Module) -> bool:
    return sum(isinstance(part, WEIGHT_LAYERS) for part in module.modules()) > 1


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in CONTAINERS:
            yield from _parts(child)
        else:
            yield child


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Optional arguments of forward (attention masks and the like) at their defaults; only the image is
    traced."""
    parameters = inspect.signature(network.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _drop_defaults(graph: fx.Graph) -> None:
    """Remove the placeholders of optional arguments, and fx's checks that they have the traced value."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        users = [node]
        for user in users:
            users.extend(user.users)
        for user in reversed(list(dict.fromkeys(users))):
            graph.erase_node(user)


def _tensors(network: nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _classifier(graph: fx.Graph, network: nn.Module) -> str:
    for node in reversed(graph.nodes):
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, nn.Linear | nn.Conv2d):
                return str(node.target)
    raise StudyError(f"{type(network).__name__} cannot be cut: no Linear or Conv2d layer ends it.")


def _follow_training_mode(graph: fx.Graph, in_training: fx.Graph) -> None:
    """Make `graph`, traced in eval mode, do what `in_training` does whenever its module is training.

    F.dropout(x, p, training=self.training) is traced as the constant False. Both graphs have the same nodes;
    each argument that differs becomes `by_mode(self.training, in training, in eval)`.
    """
    if len(graph.nodes) != len(in_training.nodes):
        raise StudyError("it computes other steps in training than in evaluation")
    switch: list[fx.Node] = []

    def merged(ours: Any, theirs: Any) -> Any:
        if isinstance(ours, fx.Node) or isinstance(theirs, fx.Node):
            return ours
        if isinstance(ours, tuple | list) and len(ours) == len(theirs):
            return type(ours)(merged(a, b) for a, b in zip(ours, theirs, strict=True))
        if isinstance(ours, slice):
            ends = ((ours.start, theirs.start), (ours.stop, theirs.stop), (ours.step, theirs.step))
            return slice(*(merged(a, b) for a, b in ends))
        if isinstance(ours, dict):
            return {key: merged(value, theirs[key]) for key, value in ours.items()}
        if ours == theirs or ours is theirs:
            return ours
        if not switch:
            switch.append(graph.create_node("get_attr", "training"))
        return graph.call_function(by_mode, (switch[0], theirs, ours))

    for node, twin in zip(list(graph.nodes), list(in_training.nodes), strict=True):
        if (node.op, node.target) != (twin.op, twin.target):
            raise StudyError("it computes other steps in training than in evaluation")
        with graph.inserting_before(node):
            args, kwargs = merged(node.args, twin.args), merged(node.kwargs, twin.kwargs)
        node.args, node.kwargs = args, cast(dict[str, Any], kwargs)
