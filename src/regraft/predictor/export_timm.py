"""A predictor as a folder that timm opens: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm knows whole networks with a linear classifier, and no temperature: that is divided into the classifier, so that
softmax of what the network gives is the calibrated probability.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft.data.augment import prepare
from regraft.networks import build
from regraft.networks.build import family
from regraft.networks.imports import import_timm
from regraft.networks.nodes import PENULTIMATE
from regraft.networks.trace import trace
from regraft.predictor.evaluate import softmax
from regraft.predictor.manifest import Manifest
from regraft.predictor.portable import described
from regraft.predictor.predict import Predictor

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ELSE = "onnx and torch-export take it"


def timm_refusal(manifest: Manifest) -> str:
    """Why timm has no such network, as the end of a sentence; empty if it has."""
    if family(manifest.network)[0] != "timm":
        return f"{manifest.network} is torchvision's, and timm's networks have other names for its tensors; {ELSE}"
    whole = manifest.head.kind == "rest"
    if not whole and (manifest.head.kind != "linear" or manifest.cuts[0].name != PENULTIMATE):
        return (
            f"timm knows whole networks with a linear classifier, this is {manifest.network} cut at "
            f"{manifest.cuts[-1].name!r} with a {manifest.head.label} head; {ELSE}"
        )
    if manifest.mirrored:
        return f"it answers for each picture and its mirror image together, which timm's networks do not; {ELSE}"
    if manifest.preprocessing.channels != "rgb":
        return f"its network takes BGR, and timm's pipelines give RGB; {ELSE}"
    return ""


def write_timm(predictor: Predictor, folder: Path) -> None:
    """config.json and model.safetensors."""
    from safetensors.torch import save_file

    manifest = predictor.manifest
    model = build(
        manifest.network, classes=len(manifest.classes), stem=manifest.stem, seed=0,
        image_size=manifest.preprocessing.image_size,
    )  # fmt: skip
    name = trace(model).classifier
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the classifier of {manifest.network}, {name}, is no linear layer")
    state = _own_names(predictor, name)
    for part in ("weight", "bias"):
        state[f"{name}.{part}"] = state[f"{name}.{part}"] / manifest.temperature
    model.load_state_dict(state)  # strict: every tensor, and no other
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
    config = _config(manifest, name, model)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def run_timm(folder: Path, predictor: Predictor) -> Callable[[NDArray[np.uint8]], Any]:
    """What timm makes of the folder, on pictures that the predictor prepared."""
    timm, manifest = import_timm(), predictor.manifest
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def run(squares: NDArray[np.uint8]) -> Any:
        with torch.no_grad():
            scaled = model(prepare(torch.from_numpy(squares), manifest.preprocessing)).numpy()
        return softmax(scaled.astype(np.float64)).astype(np.float32), scaled * manifest.temperature

    return run


def _own_names(predictor: Predictor, classifier: str) -> dict[str, Tensor]:
    """The predictor's tensors by the network's own names."""
    state: dict[str, Tensor] = {}
    for name, value in predictor.network.tensors().items():
        part, _, own = name.partition("/")
        if part == "head":
            own = f"{classifier}.{own}"
        elif predictor.manifest.head.kind == "rest":  # of a network in two parts, `network.Whole`
            own = own.partition(".")[2]
        state[own] = value.detach().cpu().clone()
    return state


def _config(manifest: Manifest, classifier: str, model: Any) -> dict[str, Any]:
    given, size = manifest.preprocessing, manifest.preprocessing.image_size
    known = import_timm().get_pretrained_cfg(family(manifest.network)[1])
    # One resize takes the place of two where the predictor's pictures have the network's own size: that of the
    # picture file, which is bicubic. Else the pictures that it was trained on were resized as `preprocessing` says.
    filter_ = "bicubic" if manifest.picture_size == size else given.interpolation
    fixed = bool(known is not None and known.fixed_input_size)
    return {
        "architecture": family(manifest.network)[1].partition(".")[0],
        "num_classes": len(manifest.classes),
        "num_features": model.num_features,
        "label_names": list(manifest.classes),
        **({"model_args": {"img_size": size}} if fixed else {}),
        "pretrained_cfg": {
            "num_classes": len(manifest.classes), "input_size": [3, size, size], "fixed_input_size": fixed,
            "interpolation": filter_, "crop_pct": 1.0, "crop_mode": "center", "mean": list(given.mean),
            "std": list(given.std), "classifier": classifier, "first_conv": known.first_conv if known else None,
            "pool_size": None, "custom_load": False, "license": manifest.licence,
        },
        "regraft": described(manifest) | {"temperature_divided_into_classifier": True},
    }  # fmt: skip
