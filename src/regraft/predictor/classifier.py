"""Transfer learning as a scikit-learn classifier: a frozen trunk and a linear head on its features.

from regraft.predictor.classifier import RegraftClassifier
classifier = RegraftClassifier(network="mobilenet_v2", weights="pretrained").fit(images, labels)
classifier.predict_proba(more_images)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import Any, Self
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from regraft.data.augment import channel_statistics, prepare
from regraft.data.subsets import split_budget
from regraft.errors import StudyError, UnknownName, nearest
from regraft.learn.backends import Backend, choose_backend
from regraft.learn.hardware import choose_device
from regraft.learn.logistic import logistic
from regraft.learn.ridge import ridge
from regraft.learn.solve import Solved
from regraft.networks import NetworkSpec, Trunk, build, obtain_weights, pooled_body, resolve_cut
from regraft.networks.build import build_around
from regraft.predictor.calibrate import calibrate
from regraft.predictor.evaluate import softmax
from regraft.predictor.images import square
from regraft.predictor.manifest import DRAWN, Cut, Manifest, measured
from regraft.predictor.network import answering, empty_trunk
from regraft.predictor.predict import Predictor
from regraft.spec import Head, Preprocessing, Source

# Tried on held-out pictures, weakest first; of a mean loss on standardised features.
PENALTIES = {"logistic": (0.01, 0.05, 0.2, 1.0), "ridge": (0.01, 0.1, 1.0, 10.0, 100.0)}
SMALLEST_SIDE = 32  # pixels, of what a network with random weights is given: most take no less
BATCH = 64  # pictures, always: a full batch of other pictures must not change the answer to one of them
WIDTHS = (1, 3)  # channels of a picture
KEPT_TRUNKS = 4  # of different parameters, in memory


class RegraftClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a frozen network at a cut, and a linear head whose penalty is chosen on held-out pictures.

    X: pictures (n, h, w, 3) or (n, h, w, 1) or (n, h, w), or flat ones (n, d); uint8 in 0..255, or other numbers,
    whose range is taken from the training pictures (`value_range_`) and brought to 0..255. Of pictures that are not
    square the middle is taken.

    network, stem: as `regraft cuts NAME` knows it. weights: "random" (of `random_state`; needs nothing) or
    "pretrained[:TAG]". cut: as `regraft cuts` lists; None is all but the classifier. head: "logistic" or "ridge".
    penalties: tried; None is a usual range. validation: share of each class's pictures by which the penalty and the
    temperature of the probabilities are chosen; the head is then solved again on all of them. 0: the middle penalty.
    image_size: pixels a side that the network is given; None is what its weights were trained at, or the pictures' own
    (at least 32). image_shape: (h, w) or (h, w, c) of flat pictures; None for squares, grey or RGB.
    random_state: a whole number, None for other numbers each time, or a RandomState; determines random weights and
    which pictures are held out. offline: fetch no weights. device: auto, cpu, cuda or mps.

    After fit: classes_ (k,), n_features_in_, image_shape_, value_range_, bytes_ (whether X was uint8), preprocessing_,
    seed_, coef_ (k, width), intercept_ (k,), penalty_, temperature_, calibration_ (what `calibrate` states),
    validation_accuracy_ (None without held-out pictures)."""

    def __init__(
        self,
        network: str = "resnet18",
        weights: str = "random",
        *,
        stem: str = "imagenet",
        cut: str | None = None,
        head: str = "logistic",
        penalties: Sequence[float] | None = None,
        validation: float = 0.2,
        max_iterations: int = 300,
        image_size: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        random_state: Any = 0,
        offline: bool = False,
        device: str = "auto",
    ) -> None:
        self.network = network
        self.weights = weights
        self.stem = stem
        self.cut = cut
        self.head = head
        self.penalties = penalties
        self.validation = validation
        self.max_iterations = max_iterations
        self.image_size = image_size
        self.image_shape = image_shape
        self.random_state = random_state
        self.offline = offline
        self.device = device

    # --- scikit-learn's contract ----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803 (scikit-learn's names)
        """Learn.  X: pictures, as above.  y: (n,) labels of any kind, two classes or more.

        Raises ValueError for what is no such thing, UnknownName, UnknownCut, WeightsUnavailable."""
        self._check_parameters()
        values = self._rows(X, reset=True)
        if y is None:
            raise ValueError("This RegraftClassifier estimator requires y to be passed, but the target y is None")
        labels = column_or_1d(y, warn=True)
        if len(labels) != len(values):
            raise ValueError(f"{len(values)} pictures, but {len(labels)} labels; each picture needs one")
        check_classification_targets(labels)
        self.classes_, encoded = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"two classes or more are needed, y has only one class: {self.classes_.tolist()}")
        self.seed_ = _seed(self.random_state)
        squares = self._squares(values)
        self.preprocessing_ = self._expected(squares)
        features = self._features(squares)
        self._solve(features, encoded.astype(np.int64))
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """(n,) the most probable class of each picture."""
        logits = self._logits(X)
        found: NDArray[Any] = self.classes_[logits.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """(n, k) calibrated probabilities, in the order of `classes_`."""
        logits = self._logits(X)
        return softmax(logits / self.temperature_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = self.random_state is None
        return tags

    def predictor(self) -> Predictor:
        """The fitted classifier as a `Predictor`: of picture files, one file to save, to export.

        Its pictures are squares of the training pictures' side; class names are the labels as text. Where the training
        values were no 0..255, it takes pictures with that range brought to 0..255."""
        check_is_fitted(self)
        point = resolve_cut(self.network, self.cut, self.preprocessing_.image_size, stem=self.stem)
        weights, licence = self._source()
        manifest = Manifest(
            network=self.network, stem=self.stem, cuts=(Cut(point.name, point.layout, point.shape),), head=Head(),
            preprocessing=self.preprocessing_, picture_size=self._side(), grey=self._channels() == 1, mirrored=False,
            classes=tuple(str(name) for name in self.classes_.tolist()), temperature=self.temperature_, licence=licence,
            metrics=self._measured(),
            provenance={"made by": "RegraftClassifier", "head": self.head, "penalty": self.penalty_,
                        "weights": self.weights, "seed": self.seed_},
        )  # fmt: skip
        trunk = empty_trunk(manifest)
        state = (
            weights
            or build(
                self.network, stem=self.stem, seed=self.seed_, image_size=self.preprocessing_.image_size
            ).state_dict()
        )
        trunk.load_state_dict({name: state[name] for name in trunk.state_dict()}, assign=True)
        head = nn.Linear(self.coef_.shape[1], len(self.classes_))
        head.load_state_dict({"weight": torch.from_numpy(self.coef_), "bias": torch.from_numpy(self.intercept_)})
        return Predictor(manifest, answering(manifest, trunk, head), device=self.device)

    def _measured(self) -> dict[str, Any]:
        """As a manifest states it."""
        if self.validation_accuracy_ is None:
            return {}
        n = int(self.calibration_["images"])
        calibration = {**self.calibration_, "before_refit": True}
        return {"validation": measured(self.validation_accuracy_, n), "calibration": calibration}

    # --- pictures -------------------------------------------------------------------------------------------------

    def _rows(self, X: Any, *, reset: bool) -> NDArray[Any]:  # noqa: N803
        """(n, d), checked. reset: of training pictures, whose shape is kept."""
        self.image_shape_: tuple[int, ...]
        shape: tuple[int, ...] | None = None
        ndim = X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim  # a sparse matrix would be no array
        if ndim in (3, 4):
            pictures = np.asarray(X)
            shape = pictures.shape[1:]
            if not reset and shape != self.image_shape_:
                raise ValueError(f"pictures of shape {shape}; the training pictures had {self.image_shape_}")
            X = pictures.reshape(len(pictures), -1)  # noqa: N806
        values: NDArray[Any] = validate_data(self, X, reset=reset, dtype="numeric")
        if reset:
            self.value_range_ = (0.0, 255.0) if values.dtype == np.uint8 else (float(values.min()), float(values.max()))
            self.bytes_ = values.dtype == np.uint8
        elif values.dtype.kind == "f" if self.bytes_ else values.dtype == np.uint8:
            # Floats in [0, 1] where 0..255 was learned are black pictures to it, and the answers chance.
            raise ValueError(
                f"pictures of {values.dtype}, the training pictures were {'' if self.bytes_ else 'not '}uint8: give "
                "those of the same kind, in the same range"
            )
        if reset:
            self.image_shape_ = self._shape(values.shape[1]) if shape is None else _checked(shape)
        return values

    def _shape(self, count: int) -> tuple[int, ...]:
        """Of flat pictures of `count` values."""
        if self.image_shape is not None:
            shape = _checked(tuple(self.image_shape))
            if int(np.prod(shape)) != count:
                raise ValueError(f"image_shape {shape} has {int(np.prod(shape)):,} values, rows of X have {count:,}")
            return shape
        for channels in WIDTHS:
            side = isqrt(count // channels)
            if side * side * channels == count:
                return (side, side, channels)
        side = isqrt(count - 1) + 1
        warn(
            f"rows of {count} values are no square pictures, grey or RGB: they are laid out as {side} x {side}, the "
            "rest of it filled up with the lowest value. If they are pictures, give image_shape=(h, w) or (h, w, c)",
            UserWarning, stacklevel=4,
        )  # fmt: skip
        return (side, side, 1)

    def _squares(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """(n, d) -> (n, s, s, c), c of 1 or 3."""
        low, high = self.value_range_
        if values.dtype != np.uint8:
            scaled = (values.astype(np.float64) - low) / (high - low if high > low else 1.0)
            values = np.clip(np.rint(scaled * 255), 0, 255).astype(np.uint8)
        shape = self.image_shape_ if len(self.image_shape_) == 3 else (*self.image_shape_, 1)
        missing = int(np.prod(shape)) - values.shape[1]
        if missing:
            values = np.pad(values, ((0, 0), (0, missing)))
        pictures = values.reshape(len(values), *shape)
        if shape[0] == shape[1]:
            return pictures
        made = [square(one, self._side(), grey=self._channels() == 1) for one in pictures]
        return np.stack([one for one in made if not isinstance(one, str)])

    def _side(self) -> int:
        return min(self.image_shape_[:2])

    def _channels(self) -> int:
        return self.image_shape_[2] if len(self.image_shape_) == 3 else 1

    # --- trunk and head -------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        if self.head not in PENALTIES:
            raise UnknownName(
                f"no head {self.head!r}{nearest(str(self.head), PENALTIES)} Known: {', '.join(PENALTIES)}"
            )
        if self.stem not in ("imagenet", "cifar"):
            raise StudyError(f"stem must be 'imagenet' or 'cifar', got {self.stem!r}")
        if self.weights != "random" and not str(self.weights).startswith("pretrained"):
            raise StudyError(f"weights must be 'random' or 'pretrained[:TAG]', got {self.weights!r}")
        if self.penalties is not None and (len(self.penalties) == 0 or min(self.penalties) < 0):
            raise StudyError(f"penalties must be one or more numbers of at least 0, got {self.penalties!r}")

    def _expected(self, squares: NDArray[np.uint8]) -> Preprocessing:
        """What the weights expect; of random ones, numbers of mean 0 and deviation 1 on the training pictures."""
        if self.weights == "random":
            mean, std = channel_statistics(squares)
            size = self.image_size or max(SMALLEST_SIDE, self._side())
            return Preprocessing(image_size=size, mean=mean, std=std)
        given = obtain_weights(self._named(), offline=self.offline).preprocessing
        return given if self.image_size is None else given.model_copy(update={"image_size": self.image_size})

    def _named(self) -> Source:
        return Source(network=self.network, weights=self.weights, stem="cifar" if self.stem == "cifar" else "imagenet")

    def _source(self) -> tuple[dict[str, Tensor] | None, str]:
        """The tensors, None for random ones, and their licence."""
        if self.weights == "random":
            return None, DRAWN
        found = obtain_weights(self._named(), offline=self.offline)
        return found.state(), found.licence

    def _features(self, squares: NDArray[np.uint8]) -> Tensor:
        """(n, width) float32 on the CPU."""
        expected, device = self.preprocessing_, choose_device(self.device)
        named = None if self.weights == "random" else self._named()
        spec = NetworkSpec(self.network, self.stem, expected.image_size)
        run = _trunk(spec, named, self.cut, self.seed_ if named is None else 0, self.offline, str(device))
        parts = []
        for start in range(0, len(squares), BATCH):
            part = torch.from_numpy(squares[start : start + BATCH])
            # A last batch is filled up: kernels differ with the number of pictures, and with them the last digits.
            positions = torch.arange(BATCH) % len(part)
            (values,) = run(prepare(part[positions].to(device), expected)).values()
            parts.append(values[: len(part)].cpu())
        return torch.cat(parts)

    def _solve(self, features: Tensor, labels: NDArray[np.int64]) -> None:
        """The penalty and the temperature by held-out pictures, then the head on all of them."""
        penalties = tuple(self.penalties or PENALTIES[self.head])
        train, held = split_budget(labels, validation=self.validation, seed=self.seed_)
        self.penalty_, self.temperature_ = float(penalties[len(penalties) // 2]), 1.0
        self.validation_accuracy_: float | None = None
        self.calibration_: dict[str, Any] = {}
        if len(held):
            heads = self._solved(features[train], labels[train], penalties)
            logits = [_logits(head.weight, head.bias, features[held]) for head in heads]
            right = [float(np.mean(one.argmax(1) == labels[held])) for one in logits]
            told = [calibrate(one, labels[held]) for one in logits]
            losses = [float(one[1]["after"]["cross_entropy"]) for one in told]
            best = max(range(len(heads)), key=lambda i: (right[i], -losses[i]))
            self.penalty_, (self.temperature_, self.calibration_) = float(penalties[best]), told[best]
            self.validation_accuracy_ = right[best]
        (head,) = self._solved(features, labels, (self.penalty_,))
        self.coef_, self.intercept_ = head.weight.numpy(), head.bias.numpy()

    def _solved(self, features: Tensor, labels: NDArray[np.int64], penalties: Sequence[float]) -> list[Solved]:
        y, classes = torch.from_numpy(labels), len(self.classes_)
        if self.head == "ridge":
            return ridge(features, y, classes=classes, penalties=penalties)
        return logistic(
            features, y, classes=classes, penalties=penalties, max_iterations=self.max_iterations
        )  # fmt: skip

    def _logits(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        check_is_fitted(self)
        features = self._features(self._squares(self._rows(X, reset=False)))
        return _logits(torch.from_numpy(self.coef_), torch.from_numpy(self.intercept_), features)


def _logits(weight: Tensor, bias: Tensor, features: Tensor) -> NDArray[np.float64]:
    """(n, k)."""
    found: NDArray[np.float64] = (features.double() @ weight.double().T + bias.double()).numpy()
    return found


@lru_cache(maxsize=KEPT_TRUNKS)
def _trunk(spec: NetworkSpec, named: Source | None, cut: str | None, seed: int, offline: bool, device: str) -> Backend:
    """The frozen trunk, ready to run. named: where its weights come from; None for random ones of `seed`.

    Kept here and not in the estimator, which so stays small, and copies and pickles as numbers."""
    size = spec.image_size
    assert size is not None
    if named is None:
        network = build(spec.network, stem=spec.stem, seed=seed, image_size=size)
    else:
        state = obtain_weights(named, offline=offline).state()
        network = build_around(state, spec.network, stem=spec.stem, image_size=size)
    point = resolve_cut(spec.network, cut, size, stem=spec.stem)
    body = pooled_body(network.eval(), [(point.name, "average")], laid_out={point.name: point.layout})
    trunk = Trunk(body, frozen=True).to(device).to(memory_format=torch.channels_last)
    sample = torch.zeros(BATCH, 3, size, size, device=device)
    return choose_backend(trunk, sample, BATCH, prefer="fused")


def _checked(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in WIDTHS) or min(shape) < 1:
        raise ValueError(f"pictures are (h, w) or (h, w, c) with c of 1 or 3, channels last; got {shape}")
    return tuple(int(side) for side in shape)


def _seed(random_state: Any) -> int:
    """A whole number of a scikit-learn random state; numpy's global generator is not touched."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    if hasattr(random_state, "randint"):
        return int(random_state.randint(2**31 - 1))
    raise ValueError(f"random_state must be None, a whole number or a numpy RandomState, got {random_state!r}")
