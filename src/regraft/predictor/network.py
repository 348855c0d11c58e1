"""A predictor's network: built again from its manifest, with the file's weights and no others; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from regraft.errors import PredictorMismatch, RegraftError
from regraft.learn.head2toe import SelectedFeatures
from regraft.learn.nearest import CosinePrototypes, NearestNeighbours
from regraft.networks import CutPoint, NetworkSpec, PooledHead, Trunk, build, cut, make_head, pooled_body
from regraft.networks.build import build_skeleton
from regraft.networks.pooling import Layout, pooled_width
from regraft.predictor.bundle import Bundle, TensorInfo, mismatch
from regraft.predictor.manifest import Manifest

DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Answering(nn.Module):
    """Prepared images (n, 3, s, s) float32 -> logits (n, classes), before calibration.

    trunk: frozen, images -> {name: values (n, d)}; the pooled features at each cut, or for a `rest` head the logits.
    classify: those values side by side -> logits; the identity after a `rest` head."""

    def __init__(self, trunk: Trunk, classify: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.classify = classify
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(self.trunk(images))

    def answer(self, values: Mapping[str, Tensor]) -> Tensor:
        """Logits (n, classes) from what the trunk gave."""
        parts = list(values.values())
        return self.classify(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))  # type: ignore[no-any-return]

    def tensors(self) -> dict[str, Tensor]:
        """All weights by the names of the file: trunk/ and the network's own name, or head/ and the head's."""
        trunk = {f"trunk/{name}": value for name, value in self.trunk.body.state_dict().items()}
        return trunk | {f"head/{name}": value for name, value in self.classify.state_dict().items()}


class Whole(nn.Module):
    """A network in two parts, cut as it was when its upper one was trained as a `rest` head."""

    def __init__(self, body: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.rest = rest

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.rest(self.body(images))}


def answering(manifest: Manifest, trunk: nn.Module, classify: nn.Module) -> Answering:
    """The parts as one network. trunk: as `empty_trunk` makes it."""
    return Answering(Trunk(trunk, frozen=True), classify)


def rebuild(bundle: Bundle) -> Answering:
    """The network of an opened file, with its weights.

    Names, types and shapes are compared with the network's own before any number is read, and a picture is put through
    the result. Raises PredictorMismatch if they differ, PredictorDamaged as `Bundle.state`."""
    manifest, origin = bundle.manifest, str(bundle.path)
    try:
        trunk = empty_trunk(manifest, bundle.tensors)
        classify = empty_head(manifest, bundle.tensors)
    except (RegraftError, AssertionError, ValueError, RuntimeError) as error:
        # What the libraries raise for a network, cut or size that does not exist, or not in the version installed.
        raise mismatch(origin, f"its network {manifest.network!r} cannot be built here: {error}") from None
    expected = {
        f"{part}/{name}": TensorInfo(DTYPES[value.dtype], tuple(value.shape))
        for part, module in (("trunk", trunk), ("head", classify))
        for name, value in module.state_dict().items()
    }
    _compare(expected, bundle.tensors, origin)
    state = bundle.state()
    for part, module in (("trunk/", trunk), ("head/", classify)):
        own = {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        module.load_state_dict(own, assign=True)
    _check_numbers(classify, manifest, origin)
    built = answering(manifest, trunk, classify)
    _try(built, manifest, origin)
    return built


def empty_trunk(manifest: Manifest, tensors: Mapping[str, TensorInfo] | None = None) -> nn.Module:
    """Images -> {name: values}, its weights still to come (on the meta device, where the network allows it).

    tensors: of a file; they must have a row for each class before so many are built."""
    size, head = manifest.preprocessing.image_size, manifest.head
    if head.kind == "rest":
        if tensors is not None and not any(info.shape[:1] == (len(manifest.classes),) for info in tensors.values()):
            raise PredictorMismatch(f"no tensor has {len(manifest.classes):,} rows, one for each class")
        whole = build(manifest.network, classes=len(manifest.classes), stem=manifest.stem, seed=0, image_size=size)
        return Whole(*cut(whole.eval(), manifest.cuts[0].name))
    network = build_skeleton(manifest.network, stem=manifest.stem, image_size=size)
    if dict(network.named_buffers()).keys() - network.state_dict().keys():
        # Buffers that are computed and not stored are in no file: they come with a network that is built for real.
        network = build(manifest.network, stem=manifest.stem, seed=0, image_size=size)
    layouts = {point.name: point.layout for point in _points(manifest)}
    return pooled_body(network.eval(), [(name, head.pool) for name in layouts], laid_out=layouts)


def empty_head(manifest: Manifest, tensors: Mapping[str, TensorInfo]) -> nn.Module:
    """Values of the trunk -> logits, its weights still to come. tensors: say how many images a knn head remembers, and
    how many features a head2toe head keeps."""
    head, classes = manifest.head, len(manifest.classes)
    if head.kind == "rest":
        return nn.Identity()
    points = _points(manifest)
    widths = [pooled_width(point.shape, point.layout, head.pool) for point in points]
    if head.kind == "prototype":
        return CosinePrototypes(torch.empty(classes, widths[0], device="meta"))
    if head.kind == "knn":
        votes = NearestNeighbours(
            torch.zeros(0, widths[0]), torch.zeros(0, dtype=torch.int64), classes=classes, neighbours=head.neighbours
        )
        remembered = _length(tensors, "head/labels")
        votes.features = torch.empty(remembered, widths[0], device="meta")
        votes.labels = torch.empty(remembered, dtype=torch.int64, device="meta")
        return votes
    if head.kind == "head2toe":
        kept = _length(tensors, "head/0.indices")
        selected = SelectedFeatures(widths, torch.empty(kept, dtype=torch.int64, device="meta"))
        return nn.Sequential(selected, nn.Linear(kept, classes, device="meta"))
    spec = NetworkSpec(manifest.network, manifest.stem, manifest.preprocessing.image_size)
    with torch.device("meta"):
        made = make_head(head, points[0], classes, spec=spec, seed=0)
    assert isinstance(made, PooledHead)
    return made.classify


def _points(manifest: Manifest) -> list[CutPoint]:
    """The cuts, as far as the file needs to know them."""
    points = []
    for one in manifest.cuts:
        layout: Layout | None = next((known for known in get_args(Layout) if known == one.layout), None)
        if layout is None:
            raise PredictorMismatch(f"no layout {one.layout!r}; known: {', '.join(get_args(Layout))}")
        points.append(CutPoint(one.name, 1.0, one.shape, layout, parameters=0, flops=0))
    return points


def _length(tensors: Mapping[str, TensorInfo], name: str) -> int:
    info = tensors.get(name)
    if info is None or len(info.shape) != 1:
        raise PredictorMismatch(f"the tensor {name!r} is missing, or no list")
    return info.shape[0]


def _compare(expected: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo], origin: str) -> None:
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or extra:
        said = [f"{what} {len(names)}, first {min(names)!r}" for what, names in
                (("lacking", missing), ("too many", extra)) if names]  # fmt: skip
        raise mismatch(origin, f"its tensors are not those of its network: {'; '.join(said)}")
    for name, info in expected.items():
        if found[name] != info:
            raise mismatch(
                origin,
                f"{name!r} is {found[name].dtype} {found[name].shape}, its network has {info.dtype} {info.shape}",
            )


def _check_numbers(classify: nn.Module, manifest: Manifest, origin: str) -> None:
    """Whole numbers that point at something point at what is there."""
    pointers = []
    if isinstance(classify, NearestNeighbours):
        pointers.append((classify.labels, len(manifest.classes)))
    if manifest.head.kind == "head2toe":
        selected = classify.get_submodule("0")
        assert isinstance(selected, SelectedFeatures)
        pointers.append((selected.indices, sum(selected.widths)))
    for values, count in pointers:
        if len(values) == 0 or int(values.min()) < 0 or int(values.max()) >= count:
            raise mismatch(origin, f"its head points outside of the {count:,} that there are")


def _try(built: Answering, manifest: Manifest, origin: str) -> None:
    """Put a mid-grey picture through it."""
    size = manifest.preprocessing.image_size
    try:
        with torch.inference_mode():
            logits = built(torch.zeros(1, 3, size, size))
    except (RegraftError, RuntimeError, AssertionError) as error:
        raise mismatch(origin, f"its network does not run ({str(error).splitlines()[0]})") from None
    if logits.shape != (1, len(manifest.classes)):
        raise mismatch(origin, f"its network answers {tuple(logits.shape)} for {len(manifest.classes)} classes")
    if not bool(logits.isfinite().all()):
        raise mismatch(origin, "its network answers NaN or infinity to a grey picture")
