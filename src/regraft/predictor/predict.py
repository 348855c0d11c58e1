"""The predictor: load, ask, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.augment import prepare
from regraft.data.pictures import Unreadable, in_threads
from regraft.errors import Diverged
from regraft.learn.backends import Backend, check_backend, choose_backend
from regraft.learn.batches import forward_in_chunks
from regraft.learn.hardware import choose_device
from regraft.predictor.bundle import read_bundle, write_bundle
from regraft.predictor.evaluate import softmax
from regraft.predictor.images import Picture, as_pictures, square
from regraft.predictor.manifest import Manifest
from regraft.predictor.network import Answering, rebuild

# Pictures decoded before the network sees them: as many as take this memory, in bytes, within limits.
DECODED_BYTES, AT_ONCE = 2**27, (16, 2048)
SAMPLE = 32  # of them, on which back ends are compared
# So few are answered sooner than another back end than eager is prepared. Where this many times more pictures come than
# the back end was chosen for, it is chosen anew.
FEW, MORE_WORK = 16, 8


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers to n pictures; k classes."""

    probabilities: NDArray[np.float32]  # (n, k), calibrated; each row sums to 1
    logits: NDArray[np.float32]  # (n, k), before calibration
    classes: tuple[str, ...]  # k names

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(n,) of the most probable class."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    @property
    def labels(self) -> list[str]:
        """n names of the most probable class."""
        return [self.classes[i] for i in self.indices]

    @property
    def confidences(self) -> NDArray[np.float32]:
        """(n,) probability of the most probable class."""
        return np.asarray(self.probabilities.max(axis=1), np.float32)

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each picture its k most probable classes with their probabilities, the most probable first."""
        return [ranked(row, self.classes, k) for row in self.probabilities]


def ranked(probabilities: NDArray[np.float32], classes: Sequence[str], most: int) -> list[tuple[str, float]]:
    """The `most` most probable classes of one picture, (name, probability).  probabilities: (k,)."""
    # Stable, so that of equal probabilities the earlier class comes first, as in `Predictions.indices`.
    return [(classes[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:most]]


class Predictor:
    """A trained network with its preprocessing, class names and calibration.

    manifest: all of it but the weights (`regraft.predictor.manifest.Manifest`).
    network: prepared images (n, 3, s, s) -> logits (n, k), an `nn.Module` in evaluation mode on `device`; for export.
    """

    def __init__(self, manifest: Manifest, network: Answering, *, device: str = "auto", backend: str = "auto") -> None:
        """device: auto, cpu, cuda or mps. backend: as in `regraft.learn.backends`; auto is the fastest that agrees with
        plain PyTorch, which is "eager". Raises StudyError, UnknownName where this machine has not got them."""
        self.device = choose_device(device)
        check_backend(backend, self.device)
        self.manifest = manifest
        self.network = network.to(self.device)
        self.network.trunk.to(memory_format=torch.channels_last)
        self.backend = backend
        self._chosen: tuple[Backend, int] | None = None  # and for how many pictures

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", backend: str = "auto") -> Predictor:
        """Read NAME.regraft. Nothing is fetched. device, backend: as in `Predictor`.

        Raises PredictorError, PredictorDamaged, PredictorMismatch (`regraft.predictor.bundle`)."""
        bundle = read_bundle(path)
        return cls(bundle.manifest, rebuild(bundle), device=device, backend=backend)

    def save(self, path: str | Path) -> Path:
        """Write NAME.regraft, whole or not at all; the same predictor gives the same bytes. Raises PredictorError."""
        return write_bundle(path, self.manifest, self.network.tensors())

    @property
    def classes(self) -> tuple[str, ...]:
        """k names, in the order of probabilities and logits."""
        return self.manifest.classes

    @property
    def at_once(self) -> int:
        """Pictures that are decoded before the network sees them."""
        fewest, most = AT_ONCE
        return max(fewest, min(most, DECODED_BYTES // (3 * self.manifest.picture_size**2)))

    @property
    def backend_record(self) -> dict[str, Any]:
        """Which back end ran last, how fast and how near to eager PyTorch; empty before the first picture."""
        return {} if self._chosen is None else self._chosen[0].record

    def predict(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        advance: Callable[[float], None] = lambda done: None,
    ) -> Predictions:
        """Answers to one picture or many, in order.

        images: a path, a PIL image, a NumPy array (uint8; (h, w), (h, w, c) or (n, h, w, c) with c of 1, 3 or 4), a
        torch tensor ((c, h, w) or (n, c, h, w), uint8 or float in [0, 1]), or a list that mixes them. Of any size: they
        become the centred squares that the network was trained on. Do not normalise them before.
        batch_size: pictures at a time through the network; None: what suits the back end. advance: told the share done.
        Raises Unreadable (a DataDamaged), with its place, for one that is no picture."""
        pictures = as_pictures(images)
        parts = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(pictures), self.at_once):
            part = pictures[start : start + self.at_once]
            squares = []
            for i, made in enumerate(self.squares(part)):
                if isinstance(made, str):
                    raise Unreadable(f"images[{start + i}]: {made}")
                squares.append(made)
            parts.append(self.logits(np.stack(squares), batch_size=batch_size, coming=len(pictures) - start))
            advance((start + len(part)) / len(pictures))
        return self.answers(np.concatenate(parts))

    def squares(self, pictures: Sequence[Picture]) -> list[NDArray[np.uint8] | str]:
        """Each picture as the (s, s, c) uint8 array that training images were, or why it cannot be read."""
        size, grey = self.manifest.picture_size, self.manifest.grey
        return list(in_threads(lambda picture: square(picture, size, grey=grey), pictures))

    def logits(
        self, squares: NDArray[np.uint8], *, batch_size: int | None = None, coming: int | None = None
    ) -> NDArray[np.float32]:
        """(n, k), before calibration. squares: (n, s, s, c) as `squares` makes them. coming: pictures that are to be
        answered in all, by which the back end is chosen. Raises Diverged on NaN or infinity."""
        if len(squares) == 0:
            return np.empty((0, len(self.classes)), np.float32)
        pixels = torch.from_numpy(np.ascontiguousarray(squares))
        backend = self._backend(pixels, coming or len(squares))

        def forward(positions: Tensor) -> Tensor:
            inputs = prepare(pixels[positions.cpu()].to(self.device), self.manifest.preprocessing)
            logits = self.network.answer(backend(inputs)).float()
            if self.manifest.mirrored:
                logits = (logits + self.network.answer(backend(inputs.flip(3))).float()) / 2
            return logits.cpu()

        with torch.inference_mode():
            size = batch_size or backend.batch_size
            logits = torch.cat(list(forward_in_chunks(len(pixels), size, self.device, forward)))
        if not torch.isfinite(logits).all():
            raise Diverged("the network answers NaN or infinity to a picture; it was not trained on such ones")
        return logits.numpy()

    def answers(self, logits: NDArray[np.float32]) -> Predictions:
        """Calibrated: softmax(logits / temperature)."""
        probabilities = softmax(logits.astype(np.float64) / self.manifest.temperature)
        return Predictions(probabilities.astype(np.float32), logits, self.classes)

    def _backend(self, pixels: Tensor, coming: int) -> Backend:
        if self._chosen is None or coming > MORE_WORK * self._chosen[1]:
            sample = prepare(pixels[:SAMPLE].to(self.device), self.manifest.preprocessing)
            prefer = "eager" if self.backend == "auto" and coming <= FEW else self.backend
            chosen = choose_backend(self.network.trunk, sample, coming, prefer=prefer)
            self._chosen = chosen, coming
        return self._chosen[0]
