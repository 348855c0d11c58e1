"""Keras' ImageNet weights of the original ResNet-50 under torchvision's names.

They come as TensorFlow.js shards: one JSON manifest that lists float32 arrays, and their bytes one after the
other. The network is He et al. 2015's: the stride of a stage sits in its first 1x1 convolution (`resnet50_v1`
here).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from regraft.errors import WeightsMismatch

KERAS_EPSILON, TORCH_EPSILON = 1e-3, 1e-5  # of batch normalisation
BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
LAYER = re.compile(r"^(res|bn)(?P<stage>[2-5])(?P<block>[a-f])_branch(?P<branch>1|2[abc])$")


def convert_resnet50(manifest: bytes, shard: Callable[[str], bytes]) -> dict[str, Tensor]:
    """model.json and a reader of its shards -> state dict of `resnet50_v1`, float32, for RGB input.

    Raises WeightsMismatch if the manifest does not describe that network.
    """
    try:
        return _converted(dict(_arrays(manifest, shard)))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise WeightsMismatch(f"the manifest does not describe Keras' ResNet-50 ({what})") from None


def _converted(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {name.partition("/")[0] for name in arrays}
    state: dict[str, Tensor] = {}
    for layer in sorted(layers):
        values = {name.partition("/")[2]: a for name, a in arrays.items() if name.partition("/")[0] == layer}
        target = _target(layer)
        if "gamma" in values:
            state |= {f"{target}.{ours}": values[theirs] for theirs, ours in BATCH_NORM.items()}
            state[f"{target}.num_batches_tracked"] = torch.tensor(0)
        elif layer == "fc1000":
            state |= {f"{target}.weight": values["kernel"].T.contiguous(), f"{target}.bias": values["bias"]}
        else:
            state[f"{target}.weight"] = values["kernel"].permute(3, 2, 0, 1).contiguous()  # (h, w, in, out) -> OIHW
    for layer in layers - {"fc1000"}:
        if f"{layer}/kernel" in arrays:
            # torchvision's convolutions have no bias. BatchNorm subtracts its mean next, so the bias goes
            # there.
            state[f"{_norm_after(_target(layer))}.running_mean"] -= arrays[f"{layer}/bias"]
    for name in state:
        if name.endswith("running_var"):
            # sqrt(var + epsilon) must stay what it was under torch's smaller epsilon.
            state[name] = state[name] + (KERAS_EPSILON - TORCH_EPSILON)
    state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()  # Keras' input is BGR
    return state


def _arrays(manifest: bytes, shard: Callable[[str], bytes]) -> Iterator[tuple[str, Tensor]]:
    for group in json.loads(manifest)["weightsManifest"]:
        content = b"".join(shard(path) for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise WeightsMismatch(f"{entry['name']} is stored as {entry['dtype']}, not as plain float32")
            if not all(type(side) is int and side > 0 for side in entry["shape"]):
                raise WeightsMismatch(f"{entry['name']!r} has the shape {entry['shape']!r:.80}")
            count = math.prod(entry["shape"])
            values = np.frombuffer(content, "<f4", count, offset).reshape(entry["shape"])
            yield entry["name"], torch.from_numpy(values.astype(np.float32))
            offset += 4 * count
        if offset != len(content):
            raise WeightsMismatch(f"the shards hold {len(content):,} bytes, the manifest describes {offset:,}")


def _target(layer: str) -> str:
    """Keras' layer name -> torchvision's module name."""
    stem = {"conv1": "conv1", "bn_conv1": "bn1", "fc1000": "fc"}
    if layer in stem:
        return stem[layer]
    match = LAYER.match(layer)
    if match is None:
        raise WeightsMismatch(f"the manifest names a layer {layer!r}, which ResNet-50 does not have")
    block = f"layer{int(match['stage']) - 1}.{ord(match['block']) - ord('a')}"
    norm = layer.startswith("bn")
    if match["branch"] == "1":
        return f"{block}.downsample.{1 if norm else 0}"
    return f"{block}.{'bn' if norm else 'conv'}{'abc'.index(match['branch'][1]) + 1}"


def _norm_after(convolution: str) -> str:
    if convolution.endswith("downsample.0"):
        return f"{convolution[:-1]}1"
    head, _, number = convolution.rpartition("conv")
    return f"{head}bn{number}"
