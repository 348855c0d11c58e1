"""A small real predictor: the first stage of timm's network for tests, a head, 32 pixels."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.augment import prepare
from regraft.networks import NetworkSpec, PooledHead, build, make_head, resolve_cut
from regraft.predictor import Manifest, Predictor
from regraft.predictor.bundle import MANIFEST, WEIGHTS
from regraft.predictor.manifest import Cut, canonical
from regraft.predictor.network import answering, empty_trunk
from regraft.seeding import stream
from regraft.spec import Head, Preprocessing

TINY, SIZE = "timm/test_resnet", 32
CLASSES = ("cat", "dog", "owl")


def tiny_manifest(**changes: Any) -> Manifest:
    """Cut after layer1, a linear head for three animals."""
    point = resolve_cut(TINY, "layer1", SIZE)
    plain: dict[str, Any] = {
        "network": TINY, "stem": "imagenet", "cuts": (Cut(point.name, point.layout, point.shape),), "head": Head(),
        "preprocessing": Preprocessing(image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.2)),
        "picture_size": SIZE, "grey": False, "mirrored": False, "classes": CLASSES, "temperature": 0.5,
        "metrics": {"test": {"accuracy": 0.5, "n": 10, "low": 0.2, "high": 0.8}, "seed": 0},
    }  # fmt: skip
    return Manifest(**{**plain, **changes})


def tiny_predictor(*, backend: str = "eager", **changes: Any) -> Predictor:
    """Random weights, the same at every call."""
    manifest = tiny_manifest(**changes)
    state = build(TINY, seed=0, image_size=SIZE).state_dict()
    trunk = empty_trunk(manifest)
    trunk.load_state_dict({name: state[name] for name in trunk.state_dict()}, assign=True)
    spec = NetworkSpec(TINY, "imagenet", SIZE)
    point = resolve_cut(TINY, manifest.cuts[0].name, SIZE)
    head = make_head(manifest.head, point, len(manifest.classes), spec=spec, seed=1)
    assert isinstance(head, PooledHead)
    network = answering(manifest, trunk, head.classify)
    some = pictures(8)
    if manifest.preprocessing.image_size == SIZE and not manifest.grey:
        with torch.no_grad():  # answers that differ from picture to picture
            logits = network(prepare(torch.from_numpy(some), manifest.preprocessing))
            head.classify.get_parameter("bias").sub_(logits.mean(0))
            for weight in head.classify.parameters():
                weight.mul_(2 / logits.std(0).mean())
    return Predictor(manifest, network, device="cpu", backend=backend)


def pictures(n: int, side: int = SIZE) -> NDArray[np.uint8]:
    """(n, side, side, 3): noise about a colour of each picture's own."""
    random = stream(1, "pictures", side)
    colours, noise = random.uniform(-128, 128, (n, 1, 1, 3)), random.uniform(0, 255, (n, side, side, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def repacked(
    file: Path,
    *,
    manifest: Callable[[dict[str, Any]], None] = lambda given: None,
    state: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    content: Callable[[bytes], bytes] = lambda weights: weights,
    seal: bool = True,
    method: int = zipfile.ZIP_STORED,
) -> Path:
    """Write `file` again with another content; with `seal` its digests fit, as somebody with ill will would see to."""
    from safetensors.torch import load, save

    with zipfile.ZipFile(file) as archive:
        given, tensors = json.loads(archive.read(MANIFEST)), load(archive.read(WEIGHTS))
    state(tensors)
    weights = content(save(tensors))
    if seal:
        given["members"][WEIGHTS] = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    manifest(given)
    if seal:
        given.pop("sha256")
        given["sha256"] = hashlib.sha256(canonical(given).encode()).hexdigest()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(MANIFEST, json.dumps(given))
        archive.writestr(WEIGHTS, weights)
    return file
