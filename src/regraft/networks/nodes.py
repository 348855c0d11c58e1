"""Which nodes of a traced network are offered as cuts, what they are called, and why others are not."""

from __future__ import annotations

import torch
from torch import fx, nn

from regraft.errors import UnknownCut, nearest
from regraft.networks.trace import Traced, ancestors, bypass, data_nodes

PENULTIMATE = "penultimate"
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)
POOLING = (nn.MaxPool2d, nn.AvgPool2d)
# What can lie between two nodes that hold the same numbers when evaluating
TRANSPARENT_MODULES = (nn.Dropout, nn.Identity, nn.Flatten)
TRANSPARENT_FUNCTIONS = (torch.flatten, torch.nn.functional.dropout)


def offered(network: nn.Module, traced: Traced) -> dict[str, fx.Node]:
    """Offered cuts in order: name -> node."""
    data = data_nodes(traced.graph)
    last = _penultimate(traced, data)
    above = ancestors(last)
    same_numbers = _same_numbers(network, last)
    innermost: dict[fx.Node, str] = {}
    for name, node in traced.exits.items():  # in the order in which modules return
        innermost.setdefault(node, name)
    found: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if node not in data or node not in above or node in same_numbers or bypass(node, data) is not None:
            continue
        if node in innermost and _ends_block(network.get_submodule(innermost[node])):
            found[innermost[node]] = node
    found[PENULTIMATE] = last
    return found


def _ends_block(module: nn.Module) -> bool:
    """Whether a module's output is offered: blocks, activations and pooling; not single convolutions or
    norms."""
    if isinstance(module, ACTIVATIONS + POOLING):
        return True
    # A norm or convolution is not yet followed by its activation; what holds no parameter is no block.
    single = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    return not isinstance(module, single) and any(True for _ in module.parameters())


def _penultimate(traced: Traced, data: set[fx.Node]) -> fx.Node:
    """The input of the classifier's last layer; where several layers vote, the last node they have in
    common."""
    classifier = next(n for n in reversed(traced.graph.nodes) if n.target == traced.classifier)
    below = (ancestors(classifier) - {classifier}) & data
    last: fx.Node = [node for node in traced.graph.nodes if node in below and bypass(node, data) is None][-1]
    return last


def _same_numbers(network: nn.Module, last: fx.Node) -> set[fx.Node]:
    """Nodes from which only dropout and flattening lead to the penultimate node, and itself."""
    found, node = {last}, last
    while len(node.all_input_nodes) >= 1 and _is_transparent(network, node):
        node = node.all_input_nodes[0]
        found.add(node)
    return found


def _is_transparent(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), TRANSPARENT_MODULES)
    return node.target in TRANSPARENT_FUNCTIONS or node.target == "flatten"


def canonical(network: nn.Module, traced: Traced, at: str, called: str) -> str:
    """The offered name of cut `at`; raises UnknownCut with the reason."""
    nodes = offered(network, traced)
    if at in nodes:
        return at
    names = {node: name for name, node in nodes.items()}
    node = traced.exits.get(at)
    if node in names:
        return names[node]
    listing = f"List them with: regraft cuts {called}"
    if not at or at not in dict(network.named_modules()):
        raise UnknownCut(f"{called} has no cut {at!r}{nearest(at, nodes)} {listing}")
    reason, near = _why_not(traced, at, nodes)
    raise UnknownCut(f"{called} cannot be cut at {at!r}: {reason}. The nearest valid cut is {near!r}. {listing}")


def _why_not(traced: Traced, at: str, nodes: dict[str, fx.Node]) -> tuple[str, str]:
    """Why the module `at` is no cut, and the nearest that is."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    owner, node = at, traced.exits.get(at)
    while node is None and "." in owner:  # inside a block that stays whole
        owner = owner.rpartition(".")[0]
        node = traced.exits.get(owner)
    if node is None:
        return "it does not run, or its output is not one tensor", PENULTIMATE
    enclosing = [name for name in nodes if at.startswith(f"{name}.")]
    near = (enclosing or sorted(nodes, key=lambda name: abs(order[nodes[name]] - order[node])))[0]
    if owner != at:
        return f"it lies inside the block {owner!r}, where other paths go around it", near
    if node not in ancestors(nodes[PENULTIMATE]):
        return "it belongs to the classifier, which a new head replaces", PENULTIMATE
    around = bypass(node, data_nodes(traced.graph))
    if around is not None:
        start = next((name for name, n in traced.exits.items() if n is around), around.name)
        return f"a path from {start!r} goes around it", near
    return "it is not the end of a block (an activation, pooling, or a whole block)", near
