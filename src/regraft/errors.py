"""Every error a user of regraft can meet.

RegraftError
├── StudyError            the study file or object is wrong; nothing was started
│   ├── UnknownName       a field, source, target, recipe, network, data set ... that does not exist
│   ├── UnknownCut        the network has no such cut, or it is not a valid one
│   ├── TooFewImages      more images per class asked for than there are
│   ├── ImageTooSmall     the network does not fit the image
│   └── StudyCycle        a source is, through other runs, its own source
├── DataError
│   ├── DataUnavailable   no way to get the images here
│   └── DataDamaged       the bytes are not the published ones, or not readable safely
├── WeightsError
│   ├── WeightsUnavailable
│   └── WeightsMismatch   the file does not hold this network, or its preprocessing is unknown
├── PredictorError        no such file, or one that cannot be written
│   ├── PredictorDamaged  the file is not the whole predictor that was written
│   └── PredictorMismatch of another format version, or weights that are not of its own network
├── StoreError
│   └── ArtifactDamaged
└── RunError
    ├── FrozenTrunkMoved  parameters or buffers of a frozen trunk changed while training
    ├── Diverged          NaN or infinity in loss, features or weights
    ├── TestLabelsClosed  test labels asked for outside scoring, or a second time
    └── TooFewSeeds       an interval needs at least two seeds

Each message says what was wrong, what was got, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RegraftError(Exception):
    """Base of all errors that are the user's to read; printed without a traceback."""


class StudyError(RegraftError, ValueError):
    """The study is wrong; nothing was started."""


class UnknownName(StudyError):
    """A name that does not exist."""


class UnknownCut(StudyError):
    """The network has no such cut."""


class TooFewImages(StudyError):
    """More images per class asked for than there are."""


class ImageTooSmall(StudyError):
    """The network does not fit the image."""


class StudyCycle(StudyError):
    """A source is, through other runs, its own source."""


class DataError(RegraftError):
    """Something about a data set."""


class DataUnavailable(DataError):
    """No way to get the images on this machine."""


class DataDamaged(DataError):
    """Bytes that are not the published ones, or that cannot be read safely."""


class WeightsError(RegraftError):
    """Something about a network's weights."""


class WeightsUnavailable(WeightsError):
    """No way to get the weights on this machine."""


class WeightsMismatch(WeightsError):
    """The file does not hold this network, or its preprocessing is unknown."""


class PredictorError(RegraftError):
    """Something about a predictor's file."""


class PredictorDamaged(PredictorError):
    """The file is not the whole predictor that was written, or not one at all."""


class PredictorMismatch(PredictorError):
    """A predictor of another format version, or whose weights are not of its own network."""


class StoreError(RegraftError):
    """The store cannot be read or written."""


class ArtifactDamaged(StoreError):
    """An artifact's content does not have the digest it was written with."""


class RunError(RegraftError):
    """A run failed."""


class FrozenTrunkMoved(RunError):
    """Parameters or buffers of a frozen trunk changed while the head was trained."""


class Diverged(RunError):
    """NaN or infinity in loss, features or weights."""


class TestLabelsClosed(RunError):
    """Test labels asked for outside scoring, or scored twice for one run."""

    __test__ = False  # not a pytest class


class TooFewSeeds(RunError):
    """An interval over seeds needs at least two."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence in an error message: "; did you mean 'x'?", or "." when nothing is close."""
    if len(name) > 200:  # to compare long texts takes the square of their length
        return "."
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def shown(value: object, longest: int = 80) -> str:
    """`repr`, shortened; also of what has none: an integer of too many digits, lists nested too deep."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= longest else text[: longest - 3] + "..."
