"""A frozen trunk rewritten to run faster: BatchNorms folded into convolutions, steps merged into them.

In eval mode a BatchNorm is a scale and a shift per channel, so one that follows a convolution is part of that
convolution's weights. On a CPU, oneDNN also adds the residual branch and applies the activation while it
writes the convolution's output; torch's own compiler uses the same operators (torch/_inductor/mkldnn_ir.py).
Nothing here touches the trunk it starts from.
"""

from __future__ import annotations

import copy
import math
import operator
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from regraft.networks.imports import forget_old_sources
from regraft.networks.trace import same, structural_copy

IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode

# --- BatchNorm into convolution --------------------------------


def foldable() -> tuple[type[nn.Module], ...]:
    """Convolutions whose output is linear in `weight`, channel by channel.

    Exact types only: a subclass may compute its weight (weight standardisation), and a scale put into it would be lost.
    timm's own layers are only met in networks of timm, which takes half a second to import."""
    if "timm" not in sys.modules:
        return (nn.Conv2d,)
    from timm.layers.conv2d_same import Conv2dSame

    return (nn.Conv2d, Conv2dSame)


def norms() -> tuple[type[nn.Module], ...]:
    if "timm" not in sys.modules:
        return (nn.BatchNorm2d,)
    from timm.layers.norm_act import BatchNormAct2d

    return (nn.BatchNorm2d, BatchNormAct2d)


def fold(body: nn.Module) -> fx.GraphModule:
    """`body` in eval mode, with every BatchNorm that directly follows a convolution folded into it.

    body: images (n, 3, h, w) -> {cut: (n, d)}.  Returns a module of its own, which shares the tensors that did
    not change. It is traced down to single layers; modules that torch.fx cannot follow stay whole."""
    flat = _flat(body)
    calls = Counter(str(node.target) for node in flat.graph.nodes if node.op == "call_module")
    for node in list(flat.graph.nodes):
        norm: Any = _module(flat, node)
        if type(norm) in IDLE:
            node.replace_all_uses_with(node.args[0])
            flat.graph.erase_node(node)
        if type(norm) not in norms() or norm.running_var is None:
            continue
        before = node.args[0]
        conv: Any = _module(flat, before)
        # A convolution that is used twice, or whose own output is taken, must keep its weights.
        if type(conv) not in foldable() or len(before.users) > 1 or calls[before.target] > 1:
            continue
        _put(flat, before.target, _folded(conv, norm))
        act = getattr(norm, "act", nn.Identity())  # timm's BatchNorm applies its activation too
        if isinstance(act, nn.Identity):
            node.replace_all_uses_with(before)
            flat.graph.erase_node(node)
        else:
            _put(flat, f"{node.name}_act", act)
            node.target = f"{node.name}_act"
    return _finished(flat)


def _folded(conv: Any, norm: Any) -> nn.Module:
    """A convolution equal to norm(conv(x)), its weights computed in float64 and rounded once."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # (out,)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = ((0.0 if conv.bias is None else conv.bias.double()) - norm.running_mean.double()) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = (conv.weight.double() * scale.view(-1, 1, 1, 1)).to(conv.weight.dtype)  # (out, in / groups, kh, kw)
    folded = copy.copy(conv)  # shallow: the settings; both tensors are replaced
    folded._parameters = {
        "weight": nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False),
        "bias": nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False),
    }
    return folded  # type: ignore[no-any-return]


class _LayerTracer(fx.Tracer):
    """Opens everything down to torch's layers, but for `closed`."""

    def __init__(self, closed: set[str]) -> None:
        super().__init__(autowrap_modules=(math,))
        self.closed = closed
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        closed = module_qualified_name in self.closed or isinstance(m, (*foldable(), *norms()))
        return closed or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise


def _flat(body: nn.Module) -> fx.GraphModule:
    twin = structural_copy(body, same).eval()
    closed: set[str] = set()
    while True:
        tracer = _LayerTracer(closed)
        try:
            return fx.GraphModule(twin, tracer.trace(twin))
        except Exception:  # fx raises many kinds; each means that this module cannot be followed
            if not tracer.failed_in or tracer.failed_in in closed:
                raise
            closed.add(tracer.failed_in)


# --- activations and residual sums into convolution, on CPUs --------------------------------

# What oneDNN applies to a convolution's output: (its name, scalars, algorithm)
Activation = tuple[str, tuple[float, ...], str]
IDENTITY: Activation = ("none", (), "")
RELU: Activation = ("relu", (), "")
ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda layer: RELU,
    nn.ReLU6: lambda layer: ("hardtanh", (0.0, 6.0), ""),
    nn.Hardswish: lambda layer: ("hardswish", (), ""),
    nn.SiLU: lambda layer: ("swish", (), ""),
    nn.Sigmoid: lambda layer: ("sigmoid", (), ""),
    nn.GELU: lambda layer: ("gelu", (), layer.approximate),
}
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
POOLS = ("mean", "amax", "clone", F.adaptive_avg_pool2d)  # what a cut's value is taken with
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class FusedConv(nn.Module):
    """activation(convolution(x) [+ other]) as one oneDNN operator, the weight in oneDNN's own layout.

    With `in_place` the result is written over `other`, which saves a pass over the memory."""

    def __init__(self, conv: Any, shape: tuple[int, ...], activation: Activation, *, in_place: bool) -> None:
        super().__init__()
        self.where = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        # Not a buffer: an opaque tensor can neither be saved nor moved.
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.where, shape)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.activation = activation
        self.in_place = in_place

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:  # (n, c, h, w) -> (n, c', h', w')
        name, scalars, algorithm = self.activation
        ops = torch.ops.mkldnn
        result: Tensor
        if other is None:
            result = ops._convolution_pointwise(x, self.weight, self.bias, *self.where, *self.activation)
            return result
        unary = None if self.activation is IDENTITY else name
        rest = (self.weight, self.bias, *self.where, "add", 1.0, unary, scalars, algorithm)
        if self.in_place:
            result = ops._convolution_pointwise_.binary(other, x, *rest)
        else:
            result = ops._convolution_pointwise.binary(x, other, *rest)
        return result


def fuse(folded: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """`folded` (see `fold`) with each convolution, the sum it ends in and its activation as one operator.

    sample: (n, 3, h, w) float32 on the CPU, to learn the shapes from. Returns a module of its own. Raises
    AttributeError or RuntimeError where this torch lacks the operators: they are not public."""
    fused = fx.GraphModule(folded, copy.deepcopy(folded.graph))
    _Shapes(fused).run(sample)
    for node in list(fused.graph.nodes):
        conv: Any = _module(fused, node)
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        x, last, other = node.args[0], node, None
        after = _only_user(last)
        if after is not None and (branch := _summand(fused, after, node)) is not None:
            last, other = after, branch
            after = _only_user(last)
        activation = IDENTITY if after is None else _activation(fused, after)
        end = last if after is None or activation is IDENTITY else after
        name = f"{node.name}_fused"
        in_place = other is not None and other is not x and _is_free(fused, other, last)
        _put(fused, name, FusedConv(conv, _shape(x), activation, in_place=in_place))
        with fused.graph.inserting_before(last):
            new = fused.graph.call_module(name, (x,) if other is None else (x, other))
        new.meta = dict(end.meta)
        end.replace_all_uses_with(new)
        for done in dict.fromkeys((end, last, node)):
            fused.graph.erase_node(done)
    return _finished(fused)


def _summand(module: fx.GraphModule, node: fx.Node, conv: fx.Node) -> fx.Node | None:
    """What `node` adds to the value of `conv`, if that is all it does and the shapes are equal."""
    if not _calls(node, SUMS) or len(node.args) != 2 or node.kwargs:
        return None
    other = node.args[1] if node.args[0] is conv else node.args[0]
    if not isinstance(other, fx.Node) or other is conv:
        return None
    # The convolution moves to where the sum is: nobody may have written over its input by then.
    steady = all(_makes_new(module, user) for user in conv.all_input_nodes[0].users)
    return other if _shape(other) == _shape(conv) == _shape(node) and steady else None


def _is_free(module: fx.GraphModule, value: fx.Node, at: fx.Node) -> bool:
    """Whether `value` may be written over at `at`: it has memory of its own, and nothing reads it later."""
    owned = isinstance(_module(module, value), (FusedConv, *foldable(), nn.MaxPool2d))
    others = [user for user in value.users if user is not at]
    return owned and all(user < at and _makes_new(module, user) for user in others)


def _makes_new(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the step's result is new memory, and its input is left alone."""
    return isinstance(_module(module, node), (FusedConv, *foldable(), nn.MaxPool2d)) or _calls(node, POOLS)


def _activation(module: fx.GraphModule, node: fx.Node) -> Activation:
    if _calls(node, RELUS):
        return RELU
    layer: Any = _module(module, node)
    return ACTIVATIONS[type(layer)](layer) if type(layer) in ACTIVATIONS else IDENTITY


# --- graphs --------------------------------


def _module(module: fx.GraphModule, node: Any) -> nn.Module | None:
    """The layer that `node` calls, if it calls one."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return module.get_submodule(str(node.target)) if is_call else None


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


class _Shapes(fx.Interpreter):
    """Notes the shape of each value in its node. torch's own ShapeProp imports sympy: a third of a second."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else ()
        return value


def _shape(node: Any) -> tuple[int, ...]:
    return node.meta.get("shape", ())  # type: ignore[no-any-return]


def _put(module: fx.GraphModule, name: str, layer: nn.Module) -> None:
    module.add_submodule(name, layer)


def _finished(module: fx.GraphModule) -> fx.GraphModule:
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    forget_old_sources()
    return module
