"""A predictor as one module of plain tensor steps, from uint8 pictures to probabilities; what exporters take.

All that happens to a picture once it is a square of uint8 happens inside, so no one who runs the file can normalise
wrongly, twice, or not at all. What comes before, from a picture file to that square, needs a decoder of files: it is
stated in words and numbers by `described`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.learn.nearest import LEAST_SHARE, PROTOTYPE_SCALE, TEMPERATURE, CosinePrototypes, NearestNeighbours
from regraft.predictor.manifest import Manifest
from regraft.predictor.network import Answering
from regraft.predictor.predict import Predictor

INPUT, OUTPUTS = "pictures", ("probabilities", "logits")


class Portable(nn.Module):
    """uint8 pictures (n, s, s, c) -> probabilities (n, k), calibrated, and logits (n, k), before calibration.

    s is the manifest's picture_size; c is 1 for a predictor of grey pictures, else 3 (RGB)."""

    resize: Tensor  # (image_size, s): row i holds the weights of the s pixels in pixel i
    scale: Tensor  # (3, 1, 1)
    shift: Tensor  # (3, 1, 1)

    def __init__(self, manifest: Manifest, network: Answering) -> None:
        super().__init__()
        # Not the Trunk around it: its no_grad would be written into a file as a step of its own.
        self.body, self.classify = network.trunk.body, plain_head(network.classify)
        given = manifest.preprocessing
        self.resized = given.image_size != manifest.picture_size
        self.bgr, self.mirrored, self.temperature = given.channels == "bgr", manifest.mirrored, manifest.temperature
        std = torch.tensor(given.std, dtype=torch.float64).view(3, 1, 1)
        mean = torch.tensor(given.mean, dtype=torch.float64).view(3, 1, 1)
        self.register_buffer("scale", (1 / ((1 if self.resized else 255) * std)).float())
        self.register_buffer("shift", (-mean / std).float())
        self.register_buffer(
            "resize", resizing(manifest.picture_size, given.image_size, given.interpolation), persistent=False
        )
        self.eval()

    @classmethod
    def of(cls, predictor: Predictor) -> Portable:
        return cls(predictor.manifest, predictor.network)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        pixels = pictures.permute(0, 3, 1, 2).float()  # (n, s, s, c) -> (n, c, s, s)
        if self.resized:
            pixels = (self.resize @ (pixels / 255) @ self.resize.T).clamp(0, 1)  # -> (n, c, side, side)
        pixels = pixels.expand(-1, 3, -1, -1)  # grey -> 3 equal channels
        if self.bgr:
            pixels = pixels.flip(1)
        inputs = pixels * self.scale + self.shift
        logits = self._logits(inputs)
        if self.mirrored:
            logits = (logits + self._logits(inputs.flip(3))) / 2
        return torch.softmax(logits / self.temperature, dim=1), logits

    def _logits(self, inputs: Tensor) -> Tensor:
        values = list(self.body(inputs).values())
        return self.classify(values[0] if len(values) == 1 else torch.cat(values, dim=1))  # type: ignore[no-any-return]


class _Cosines(nn.Module):
    """`CosinePrototypes` and the first step of `NearestNeighbours`, without their look for NaN: a graph has no errors
    to raise. reference: (m, d), of length 1."""

    reference: Tensor

    def __init__(self, reference: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("reference", reference)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:  # (n, d) -> (n, m)
        largest = features.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return self.scale * F.linear(F.normalize(features / largest, dim=1), self.reference)


class _Votes(nn.Module):
    """`NearestNeighbours` for any number of pictures: it counts in parts of a fixed number, and into a table of as many
    rows as there are pictures, both of which a graph would hold as constants."""

    shares: Tensor  # (m, k): row i is 1 at the class of training image i

    def __init__(self, head: NearestNeighbours) -> None:
        super().__init__()
        self.similarity = _Cosines(head.features, 1.0)
        self.neighbours, self.classes = min(head.neighbours, len(head.features)), head.classes
        self.register_buffer("shares", F.one_hot(head.labels, head.classes).float())

    def forward(self, features: Tensor) -> Tensor:  # (n, d) -> (n, k)
        nearest, which = self.similarity(features).topk(self.neighbours, dim=1)
        weights = (nearest / TEMPERATURE).softmax(dim=1)  # (n, neighbours)
        votes = (weights[:, :, None] * self.shares[which]).sum(dim=1)
        return torch.log((votes + LEAST_SHARE) / (1 + self.classes * LEAST_SHARE))


def plain_head(classify: nn.Module) -> nn.Module:
    """The same head without steps that no graph can hold; most are plain already."""
    if isinstance(classify, CosinePrototypes):
        return _Cosines(classify.prototypes, PROTOTYPE_SCALE)
    return _Votes(classify) if isinstance(classify, NearestNeighbours) else classify


def resizing(given: int, wanted: int, interpolation: str) -> Tensor:
    """(wanted, given): the antialiased resize of `regraft.data.augment.prepare` along one side, as a matrix.

    Resizing is linear and separable, so two products with it are the whole of it. Runtimes do not agree on what an
    antialiased resize is; on a matrix product they do."""
    rows = torch.eye(given)[None, None]
    return F.interpolate(rows, size=(wanted, given), mode=interpolation, antialias=True, align_corners=False)[0, 0]


def described(manifest: Manifest) -> dict[str, Any]:
    """What a program must know that runs the exported file: how its input is made, what its output means. JSON."""
    size, given = manifest.picture_size, manifest.preprocessing
    channels = 1 if manifest.grey else 3
    inside = ["divide by 255"]
    if given.image_size != size:
        inside.append(f"resize to {given.image_size} x {given.image_size} ({given.interpolation}, antialiased), clip")
    inside += ["one channel becomes three equal ones"] * manifest.grey
    inside += ["RGB becomes BGR"] * (given.channels == "bgr")
    inside.append(f"subtract {list(given.mean)}, divide by {list(given.std)}, channel by channel")
    inside += ["average the logits of the picture and of its mirror image"] * manifest.mirrored
    inside.append(f"softmax(logits / {manifest.temperature!r})")
    return {
        "input": {
            "name": INPUT, "dtype": "uint8", "shape": ["n", size, size, channels],
            "axes": ["picture", "row", "column", "grey" if manifest.grey else "red, green, blue"],
        },
        "before": {
            "read": "the first picture of the file, turned upright by its EXIF orientation",
            "colour": "transparency laid on white; 16-bit values divided by 257; then RGB"
            + ("; then luma (ITU-R BT.601)" if manifest.grey else ""),
            "crop": "the largest centred square; its edges may lie between pixels",
            "resize": {"side": size, "filter": "bicubic (a = -0.5), antialiased, as Pillow's resize(box=...)"},
        },
        "inside": inside,
        "outputs": {
            "probabilities": "(n, k) float32, calibrated; each row sums to 1",
            "logits": "(n, k) float32, before calibration",
        },
        "classes": list(manifest.classes),
        "temperature": manifest.temperature,
        "preprocessing": given.model_dump(mode="json"),
        "network": manifest.network,
        "licence": manifest.licence,
        "regraft": manifest.regraft,
    }  # fmt: skip
