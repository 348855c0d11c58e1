"""Pictures in whatever form a person has them -> the squares that a network was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from regraft.data.pictures import Unreadable, square_of
from regraft.errors import DataDamaged

Picture = Path | Image.Image | NDArray[Any]
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
FORMS = (
    "a path, a PIL image, a NumPy array of uint8 ((h, w), (h, w, c) or (n, h, w, c)), a torch tensor ((c, h, w) or "
    "(n, c, h, w); uint8, or float in [0, 1]), or a list of these"
)


def as_pictures(images: Any) -> list[Picture]:
    """One picture or many, in any of FORMS, as a list. Raises Unreadable, with the place, for anything else."""
    if isinstance(images, str | Path | Image.Image | np.ndarray | torch.Tensor):
        return _pictures_in(images, "images")
    if isinstance(images, bytes) or not isinstance(images, Iterable):
        raise Unreadable(f"images: a {type(images).__name__} is no picture; give {FORMS}")
    found: list[Picture] = []
    for i, one in enumerate(images):
        inner = _pictures_in(one, f"images[{i}]")
        if len(inner) != 1:
            raise Unreadable(f"images[{i}]: holds {len(inner)} pictures; in a list, each element is one picture")
        found += inner
    return found


def square(picture: Picture, size: int, *, grey: bool) -> NDArray[np.uint8] | str:
    """(size, size, c) with c of 1 or 3, or why it cannot be read; for `in_threads`.

    grey: one channel, of luma (ITU-R BT.601)."""
    try:
        if isinstance(picture, np.ndarray):
            pixels = picture if picture.shape[:2] == (size, size) and picture.shape[2] != 4 else _fitted(picture, size)
        else:
            pixels = square_of(picture, size)
    except DataDamaged as error:
        return str(error)
    wanted = 1 if grey else 3
    if pixels.shape[2] == wanted:
        return pixels
    return np.repeat(pixels, 3, axis=2) if wanted == 3 else _luma(pixels)


def _pictures_in(one: Any, place: str) -> list[Picture]:
    if isinstance(one, str | Path):
        return [Path(one)]
    if isinstance(one, Image.Image):
        return [one]
    if isinstance(one, torch.Tensor):
        return _arrays(_from_tensor(one, place), place)
    if isinstance(one, np.ndarray):
        if one.dtype != np.uint8:
            raise Unreadable(
                f"{place}: an array of {one.dtype}; arrays are uint8 pictures in 0..255, not normalised. Give "
                "floats in [0, 1] as a torch tensor (c, h, w)"
            )
        return _arrays(one, place)
    raise Unreadable(f"{place}: a {type(one).__name__} is no picture; give {FORMS}")


def _from_tensor(tensor: torch.Tensor, place: str) -> NDArray[np.uint8]:
    """(c, h, w) or (n, c, h, w) -> channels last, uint8."""
    if tensor.ndim not in (3, 4):
        raise Unreadable(f"{place}: a tensor of shape {tuple(tensor.shape)}; tensors are (c, h, w) or (n, c, h, w)")
    values = tensor.detach().cpu()
    if values.is_floating_point():
        inside = (values >= 0) & (values <= 1)  # NaN is not
        if not bool(inside.all()):
            raise Unreadable(
                f"{place}: a tensor with values outside of [0, 1]; give pictures as they are: the predictor normalises "
                "them itself, and twice would be wrong"
            )
        values = (values.float() * 255).round().to(torch.uint8)
    elif values.dtype != torch.uint8:
        raise Unreadable(f"{place}: a tensor of {values.dtype}; tensors are uint8, or float in [0, 1]")
    return values.movedim(-3, -1).numpy()


def _arrays(pixels: NDArray[np.uint8], place: str) -> list[Picture]:
    """(h, w), (h, w, c) or (n, h, w, c) -> arrays (h, w, c)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim not in (3, 4) or pixels.shape[-1] not in CHANNELS or 0 in pixels.shape[-3:]:
        raise Unreadable(
            f"{place}: shape {pixels.shape} (channels last) is no picture; needed are (h, w), (h, w, c) or "
            "(n, h, w, c) with c of 1, 3 or 4"
        )
    return list(pixels) if pixels.ndim == 4 else [pixels]


def _fitted(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(h, w, c) of any size -> (size, size, 3)."""
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    return square_of(Image.fromarray(np.ascontiguousarray(flat)), size)


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) -> (h, w, 1), as Pillow does it; a grey picture in three channels keeps its values."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
