"""Build any torchvision or timm classification network by name, with weights that depend on the seed
alone.

torchvision and timm are imported where a network of theirs is named: each takes about a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regraft.errors import ImageTooSmall, StudyError, UnknownName, nearest
from regraft.networks.imports import import_timm, import_torchvision
from regraft.seeding import derive

# He et al. 2015's ResNet-50: the stride of a stage sits in its first 1x1 convolution, as in the Keras
# weights; torchvision moved it to the 3x3 convolution ("ResNet-50 v1.5").
ORIGINAL_RESNET50 = "resnet50_v1"
STEMS = ("imagenet", "cifar")
CIFAR_STEM_PREFIXES = ("resnet", "resnext", "wide_resnet")
AUXILIARY = (
    "googlenet",
    "inception_v3",
)  # have extra classifiers for training, which no cut can pass through


def build(
    network: str,
    *,
    classes: int | None = None,
    stem: str = "imagenet",
    seed: int,
    image_size: int | None = None,
) -> nn.Module:
    """A network with random weights, in training mode.

    network: a torchvision name, a timm name (`timm/NAME`, or bare where torchvision has none) or
    `resnet50_v1`. classes: outputs of the classifier; None is the network's own number, usually 1000. stem:
    `cifar` makes a ResNet's first convolution 3x3 with stride 1 and removes its max-pooling (He et al. 2015,
    section 4.2), for images of about 32 pixels. image_size: in pixels; vision transformers fix their position
    embeddings for it.

    torch's layers draw their initial weights from the global generator. It is therefore seeded from `seed`
    here, and put back as it was: nothing else in the process notices, and nothing else moves these weights.
    Raises UnknownName, StudyError (a stem that the network does not have), ImageTooSmall.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        return _construct(network, classes, stem, image_size)


def build_skeleton(network: str, *, stem: str = "imagenet", image_size: int | None = None) -> nn.Module:
    """The network's structure on the meta device, without weights: to look at, not to run.

    Networks that compute with tensors while they are built cannot be; those are built for real.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _NothingDrawn():
                return _construct(network, None, stem, image_size)
        except (NotImplementedError, RuntimeError):
            return _construct(network, None, stem, image_size)


class _NothingDrawn(TorchFunctionMode):
    """Leaves out the random filling of tensors on the meta device, which have no values: torch would trace it, and
    import its compiler for that."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
        if func.__name__ in ("normal_", "uniform_") and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


def build_around(
    state: Mapping[str, Tensor], network: str, *, stem: str = "imagenet", image_size: int | None = None
) -> nn.Module:
    """`build` for weights that are at hand: no random ones are drawn where `state` has a tensor.

    state: by the network's own names, of the network's own number of classes where it has the classifier. Parameters
    that it lacks, or has in another shape, stay on the meta device: the network can be cut below them, not run
    through them. The tensors become the network's, in its own number format, and are not copied where they are in it.
    Networks that have no such skeleton, or buffers that are computed and not stored, are built in full.
    """
    built = build_skeleton(network, stem=stem, image_size=image_size)
    stored = built.state_dict()
    if not all(tensor.is_meta for tensor in stored.values()) or dict(built.named_buffers()).keys() - stored.keys():
        built = build(network, stem=stem, seed=0, image_size=image_size)
    fitting = {
        name: state[name].to(own.dtype)
        for name, own in stored.items()
        if name in state and state[name].shape == own.shape
    }
    built.load_state_dict(fitting, strict=False, assign=True)
    return built


def network_names() -> list[str]:
    """Every name that `build` knows: torchvision's and ours bare, timm's as `timm/NAME`."""
    return [*sorted([*_torchvision_names(), ORIGINAL_RESNET50]), *(f"timm/{name}" for name in _timm_names())]


def family(network: str) -> tuple[str, str]:
    """Who builds `network`: ("torchvision" | "timm", the name there). Raises UnknownName."""
    if network == ORIGINAL_RESNET50 or network in _torchvision_names():
        return "torchvision", network
    name = network.removeprefix("timm/")
    # timm accepts NAME.TAG; the tag says which pretrained weights, not which network
    if name.partition(".")[0] in _timm_names():
        return "timm", name
    hint = nearest(network, [*network_names(), *_timm_names()])
    raise UnknownName(f"no network {network!r}{hint} Any torchvision or timm classification network can be named.")


def takes_cifar_stem(network: str) -> bool:
    return family(network)[0] == "torchvision" and network.startswith(CIFAR_STEM_PREFIXES)


def _construct(network: str, classes: int | None, stem: str, image_size: int | None) -> nn.Module:
    if stem not in STEMS:
        raise StudyError(f"there is no stem {stem[:80]!r}; there are {' and '.join(STEMS)}")
    library, name = family(network)
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if library == "timm":
        built = _timm(name, options, image_size)
    elif name == ORIGINAL_RESNET50:
        built = _original_resnet50(options)
    else:
        built = _torchvision(name, options, image_size)
    if stem == "cifar":
        _give_cifar_stem(network, built)
    return built


def _torchvision(name: str, options: dict[str, Any], image_size: int | None) -> nn.Module:
    if name in AUXILIARY:
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_") and image_size is not None:
        patch = int(name.rpartition("_")[2])
        if image_size % patch:
            raise ImageTooSmall(f"its image size must be a multiple of {patch} px, got {image_size}")
        options["image_size"] = image_size
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, **options)
    return model


def _original_resnet50(options: dict[str, Any]) -> nn.Module:
    model: nn.Module = import_torchvision().models.resnet50(weights=None, **options)
    for stage in (2, 3, 4):
        model.get_submodule(f"layer{stage}.0.conv1").stride = (2, 2)  # type: ignore[assignment]
        model.get_submodule(f"layer{stage}.0.conv2").stride = (1, 1)  # type: ignore[assignment]
    return model


def _timm(name: str, options: dict[str, Any], image_size: int | None) -> nn.Module:
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    if image_size is not None and config is not None and config.fixed_input_size:
        try:
            sized: nn.Module = timm.create_model(name, pretrained=False, img_size=image_size, **options)
            return sized
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        except AssertionError as error:
            raise ImageTooSmall(f"it cannot be built for images of {image_size} px: {error}") from error
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def _give_cifar_stem(network: str, model: nn.Module) -> None:
    if not takes_cifar_stem(network):
        raise StudyError(
            f"{network} has no `stem: cifar`; it exists for torchvision's ResNets, ResNeXts "
            "and wide ResNets, and for resnet50_v1. Use `stem: imagenet`, with a larger image_size if the "
            "images are small."
        )
    old = model.conv1
    assert isinstance(old, nn.Conv2d)
    with torch.device(old.weight.device):
        model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNet
    model.maxpool = nn.Identity()


@lru_cache
def _torchvision_names() -> tuple[str, ...]:
    models = import_torchvision().models
    return tuple(models.list_models(module=models))


@lru_cache
def _timm_names() -> tuple[str, ...]:
    return tuple(import_timm().list_models())
