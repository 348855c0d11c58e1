"""Any picture file -> a square uint8 array, or a reason why it cannot be read."""

from __future__ import annotations

import errno
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from regraft.errors import DataDamaged

# Raised when the same file would decode to other pixels; part of a decoded folder's digest.
DECODER_VERSION = 1
# Readers that are offered a file. Not among them: EPS, which Pillow hands to an external interpreter.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# Names that mean "a picture" in a folder. HEIC is listed so that such files are reported, not passed over.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
     ".pbm", ".pnm", ".avif", ".jp2", ".heic", ".heif")
)  # fmt: skip
WHITE = (255, 255, 255, 255)
T = TypeVar("T")


class Unreadable(DataDamaged):
    """The file is no picture that can be read; the message is the reason, without the file's name."""


def decode_picture(file: Path | IO[bytes], size: int) -> NDArray[np.uint8]:
    """(size, size, 3) RGB: turned upright (EXIF), shorter side resized to `size` with antialias, centre cut.

    Transparency is laid on white, 16-bit grey is scaled, of an animation the first picture is taken.
    Raises Unreadable. Pictures of more pixels than Pillow's limit (89 million) are refused before decoding.
    """
    with _pillow_warnings():
        return square_of(file, size)


def square_of(picture: Path | IO[bytes] | Image.Image, size: int) -> NDArray[np.uint8]:
    """The same, also of a picture that is open already; for the workers of `in_threads`, which sees to Pillow's
    warnings for all of them (Python's filters of warnings are not a thread's own)."""
    if isinstance(picture, Image.Image):
        return _reading(lambda: fit_square(_upright(picture), size))
    return _decode(picture, size)


def decode_pictures(
    files: Sequence[Path], size: int, report: Callable[[int, int | None], None] | None = None
) -> Iterator[NDArray[np.uint8] | str]:
    """For each file, in order, its (size, size, 3) array or the reason why it cannot be read."""

    def attempt(file: Path) -> NDArray[np.uint8] | str:
        try:
            return square_of(file, size)
        except Unreadable as error:
            return str(error)

    return in_threads(attempt, files, report)


def in_threads(
    work: Callable[[T], NDArray[np.uint8] | str],
    items: Sequence[T],
    report: Callable[[int, int | None], None] | None = None,
) -> Iterator[NDArray[np.uint8] | str]:
    """`work` of each item, in order. Threads suffice: Pillow decodes outside the interpreter's lock."""
    step = 256  # bounds the decoded pictures that wait in memory
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), step):
            part = items[start : start + step]
            with _pillow_warnings():
                done = list(pool.map(work, part))
            yield from done
            if report is not None:
                report(start + len(part), len(items))


def fit_square(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """(size, size, 3): the largest centred square, resized with antialias.

    The same pixels as resizing the shorter side and cropping, without ever building a long thin image.
    """
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    square = to_rgb(picture).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(square)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB. Raises Unreadable for 32-bit data, whose brightness range nobody states."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        # Pillow's own conversion clips 16-bit values at 255: a white picture.
        values = np.asarray(picture, np.uint16)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise Unreadable(f"32-bit pixels (mode {picture.mode}) without a stated range; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
    return picture.convert("RGB")


def _decode(file: Path | IO[bytes], size: int) -> NDArray[np.uint8]:
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # AVIF depends on how Pillow was built

    def read() -> NDArray[np.uint8]:
        with Image.open(file, formats=known) as picture:
            # JPEG can decode at 1/2, 1/4, 1/8: a phone picture to 224 px in a fraction of the time.
            # Twice the size is kept so that the antialiased resize still decides the result.
            picture.draft(None, (2 * size, 2 * size))
            picture.load()
            return fit_square(_upright(picture), size)

    if isinstance(file, Path):
        _check_file(file)
    return _reading(read)


def _check_file(file: Path) -> None:
    """What is no file with a byte in it, before a reader waits for a pipe or calls it no picture."""
    try:
        state = file.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        link = file.is_symlink() if isinstance(error, FileNotFoundError) else False
        known = {errno.ENOENT: "a link to nothing" if link else "no such file", errno.ELOOP: "a link to itself"}
        reason = known.get(error.errno or 0, error.strerror) if isinstance(error, OSError) else str(error)
        raise Unreadable(reason or type(error).__name__) from None
    if not stat.S_ISREG(state.st_mode):
        raise Unreadable("a folder" if stat.S_ISDIR(state.st_mode) else "no file but a pipe, socket or device")
    if state.st_size == 0:
        raise Unreadable("the file is empty")


def _reading(read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return read()
    except Unreadable:
        raise
    except Exception as error:  # Pillow's readers raise errors of nearly every kind on damaged files
        reason = "no picture in a format that can be read" if "cannot identify" in str(error) else str(error)
        raise Unreadable(reason or type(error).__name__) from None


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except (ValueError, TypeError, KeyError, OSError, SyntaxError, struct.error):
        return picture  # damaged EXIF data beside an intact picture: there is no orientation to apply


class _pillow_warnings(warnings.catch_warnings):  # noqa: N801 (used like a function)
    """Pillow's warnings about odd metadata are not the user's to read; the one about a bomb is an error."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
