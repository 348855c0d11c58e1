"""The scikit-learn classifier keeps scikit-learn's contract, and is the same transfer as a study's."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from regraft.errors import StudyError, UnknownCut, UnknownName, WeightsUnavailable
from regraft.networks import build, state_hash
from regraft.networks.published import published
from regraft.predictor import Predictor
from regraft.predictor.classifier import RegraftClassifier
from regraft.seeding import stream

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
# Checks of scikit-learn that this classifier is not meant to pass, with the reason; there is none. Rows of two or ten
# numbers are no pictures, but they are laid out as ones, with a warning.
EXPECTED_FAILED_CHECKS: dict[str, str] = {}


def classifier(**changes: Any) -> RegraftClassifier:
    plain: dict[str, Any] = {"network": "timm/test_resnet", "device": "cpu", "cut": "layer1"}
    return RegraftClassifier(**{**plain, **changes})


def coloured(n: int, side: int = 8) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """(n, side, side, 3) noisy pictures of three colours, and the colours' names."""
    random = stream(3, "coloured")
    names = np.array([list(COLOURS)[i % 3] for i in range(n)])
    plain = np.array([COLOURS[name] for name in names])[:, None, None]
    return np.clip(plain + random.normal(0, 40, (n, side, side, 3)), 0, 255).astype(np.uint8), names


def test_it_learns_pictures_and_answers_with_their_labels() -> None:
    x, y = coloured(60)
    found = classifier().fit(x[:30], y[:30])
    assert found.classes_.tolist() == sorted(COLOURS)
    assert found.n_features_in_ == x[0].size
    assert found.score(x[30:], y[30:]) == 1
    shares = found.predict_proba(x[30:])
    assert shares.shape == (30, 3)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (found.classes_[shares.argmax(1)] == found.predict(x[30:])).all()


def test_flat_pictures_and_whole_ones_are_the_same_and_answers_do_not_depend_on_their_company() -> None:
    x, y = coloured(30)
    whole = classifier(head="ridge").fit(x, y)
    flat = classifier(head="ridge").fit(x.reshape(30, -1), y)
    stated = classifier(head="ridge", image_shape=(8, 8, 3)).fit(x.reshape(30, -1), y)
    expected = whole.predict_proba(x)
    np.testing.assert_array_equal(flat.predict_proba(x.reshape(30, -1)), expected)
    np.testing.assert_array_equal(stated.predict_proba(x), expected)
    order = stream(0, "order").permutation(30)
    np.testing.assert_allclose(whole.predict_proba(x[order]), expected[order], rtol=1e-6)
    np.testing.assert_allclose(whole.predict_proba(x[:1]), expected[:1], rtol=1e-6)


def test_random_state_determines_all_and_a_clone_begins_anew() -> None:
    x, y = coloured(30)
    one = classifier(random_state=5).fit(x, y)
    np.testing.assert_array_equal(one.coef_, clone(one).fit(x, y).coef_)
    assert not np.array_equal(one.coef_, classifier(random_state=6).fit(x, y).coef_)
    with pytest.raises(NotFittedError):
        clone(one).predict(x)
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.predict_proba(x), one.predict_proba(x))


def test_the_penalty_is_chosen_on_held_out_pictures() -> None:
    x, y = coloured(30)
    y = y.copy()
    y[::4] = y[1::4][: len(y[::4])]  # wrong labels: without a penalty they are learnt
    penalties = (0.0, 1.0, 1e6)
    alone = [classifier(head="ridge", penalties=(one,)).fit(x, y).validation_accuracy_ for one in penalties]
    found = classifier(head="ridge", penalties=penalties).fit(x, y)
    assert len(set(alone)) > 1
    assert max(one or 0.0 for one in alone) == found.validation_accuracy_ == alone[penalties.index(found.penalty_)]
    bare = classifier(validation=0).fit(x, y)
    assert bare.validation_accuracy_ is None
    assert bare.temperature_ == 1


def test_values_of_another_kind_than_those_learned_from_are_refused() -> None:
    """Divided by 255 they would be black pictures, and every answer the same."""
    x, y = coloured(12)
    with pytest.raises(ValueError, match="training pictures were uint8"):
        classifier().fit(x, y).predict(x / 255)
    with pytest.raises(ValueError, match="training pictures were not uint8"):
        classifier().fit(x / 255, y).predict(x)
    near = classifier().fit(x / 255.0, y)
    assert (near.predict(x / 255.0) == y).all()
    with pytest.raises(ValueError, match=r"shape \(4, 4, 3\); the training pictures had \(8, 8, 3\)"):
        near.predict(np.zeros((1, 4, 4, 3)))


def test_of_pictures_that_are_not_square_the_middle_is_seen() -> None:
    """What lies at both ends plays no part, neither in learning nor in answering."""
    x, y = coloured(30)
    random = stream(4, "ends")
    wide = [np.concatenate([end, x, end], axis=2) for end in random.integers(0, 256, (2, 30, 8, 4, 3), np.uint8)]
    found = classifier(head="ridge").fit(wide[0], y)
    assert found.image_shape_ == (8, 16, 3)
    np.testing.assert_allclose(found.predict_proba(wide[1]), found.predict_proba(wide[0]), rtol=1e-6)
    np.testing.assert_allclose(found.predict_proba(wide[0]), classifier(head="ridge").fit(x, y).predict_proba(x))
    assert found.predictor().manifest.picture_size == 8


def test_grey_pictures_of_two_sides_are_one_channel() -> None:
    x, y = coloured(30)
    grey = x[:, :, :, 0]  # (n, h, w)
    found = classifier(head="ridge").fit(grey, y == "red")
    assert (found.image_shape_, found.predictor().manifest.grey) == ((8, 8), True)
    np.testing.assert_allclose(found.predict_proba(grey), found.predict_proba(grey[..., None].reshape(30, -1)))
    assert found.score(grey, y == "red") > 0.9


def test_random_states_of_every_kind_are_a_seed() -> None:
    x, y = coloured(12)
    again = [classifier(random_state=np.random.RandomState(7)).fit(x, y).seed_ for _ in range(2)]
    assert again[0] == again[1]
    assert classifier(random_state=np.int64(7)).fit(x, y).seed_ == 7
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    assert classifier(random_state=None).fit(x, y).seed_ != classifier(random_state=None).fit(x, y).seed_
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002
    with pytest.raises(ValueError, match="random_state must be None, a whole number or a numpy RandomState, got 'x'"):
        classifier(random_state="x").fit(x, y)


def test_pretrained_weights_are_taken_with_what_they_expect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file as it lies in the home once it was fetched; nothing is fetched here."""
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))
    x, y = coloured(30)
    with pytest.raises(WeightsUnavailable):
        classifier(weights="pretrained", offline=True).fit(x, y)
    known, state = published("timm/test_resnet", None), build("timm/test_resnet", seed=9).state_dict()
    (tmp_path / "weights").mkdir()
    about = {"digest": state_hash(state), "origin": "made here", "network": known.network}
    save_file(state, tmp_path / "weights" / known.stored_as, about)
    found = classifier(weights="pretrained", offline=True).fit(x[:24], y[:24])
    assert found.preprocessing_ == known.preprocessing
    smaller = classifier(weights="pretrained", offline=True, image_size=32).fit(x[:24], y[:24])
    assert smaller.preprocessing_ == known.preprocessing.model_copy(update={"image_size": 32})
    predictor = found.predictor()
    tensors = predictor.network.tensors()
    assert torch.equal(tensors["trunk/conv1.0.weight"], state["conv1.0.weight"])
    assert predictor.manifest.licence == known.licence
    assert predictor.manifest.provenance["weights"] == "pretrained"
    assert predictor.predict(x[24:]).labels == found.predict(x[24:]).tolist()


def test_what_is_no_picture_is_named() -> None:
    x, y = coloured(12)
    with pytest.raises(ValueError, match="has 48 values, rows of X have 192"):
        classifier(image_shape=(4, 4, 3)).fit(x.reshape(12, -1), y)
    with pytest.raises(ValueError, match="channels last"):
        classifier().fit(x.transpose(0, 3, 1, 2), y)
    with pytest.warns(UserWarning, match="rows of 10 values are no square pictures"):
        classifier().fit(np.arange(120.0).reshape(12, 10), y)
    with pytest.raises(ValueError, match="only one class"):
        classifier().fit(x, ["red"] * 12)
    with pytest.raises(UnknownName, match="did you mean 'ridge'"):
        classifier(head="rigde").fit(x, y)
    with pytest.raises(UnknownCut):
        classifier(cut="layer9").fit(x, y)
    with pytest.raises(StudyError, match="weights must be"):
        classifier(weights="imagenet").fit(x, y)
    with pytest.raises(StudyError, match="stem must be 'imagenet' or 'cifar', got 'mnist'"):
        classifier(stem="mnist").fit(x, y)
    for penalties in ((), (1.0, -1.0)):
        with pytest.raises(StudyError, match=r"penalties must be one or more numbers of at least 0, got \("):
            classifier(penalties=penalties).fit(x, y)
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        classifier().fit(x, None)
    with pytest.raises(ValueError, match="12 pictures, but 11 labels; each picture needs one"):
        classifier().fit(x, y[:11])


def test_without_held_out_pictures_a_predictor_states_no_accuracy() -> None:
    x, y = coloured(12)
    assert classifier(validation=0).fit(x, y).predictor().manifest.metrics == {}


def test_a_fitted_classifier_becomes_a_predictor_with_the_same_answers(tmp_path: Any) -> None:
    x, y = coloured(30)
    found = classifier().fit(x, y)
    predictor = Predictor.load(found.predictor().save(tmp_path / "colours.regraft"), device="cpu", backend="eager")
    answers = predictor.predict(x)
    assert answers.labels == found.predict(x).tolist()
    np.testing.assert_allclose(answers.probabilities, found.predict_proba(x), atol=1e-4)
    assert predictor.manifest.metrics["validation"]["n"] == 6


@pytest.mark.slow
def test_it_works_in_pipelines_cross_validation_and_searches_on_real_digits() -> None:
    """Random features of a small network on scikit-learn's digits, 400 of them."""
    data = load_digits()
    x, y = data.data[:400], data.target[:400]
    scores = cross_val_score(classifier(head="ridge"), x, y, cv=4)
    assert scores.mean() > 0.7  # chance is 0.1
    piped = make_pipeline(FunctionTransformer(lambda values: values / 16), classifier(head="ridge"))
    assert cross_val_score(piped, x, y, cv=4).mean() == pytest.approx(scores.mean(), abs=0.02)
    search = GridSearchCV(classifier(), {"head": ["ridge", "logistic"], "cut": ["layer1", None]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.6
    assert search.best_estimator_.predictor().manifest.grey


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logistic", "ridge"])
def test_it_passes_scikit_learn_s_own_checks(head: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks' own, and that their rows are no pictures
        found = check_estimator(
            classifier(head=head, cut=None), expected_failed_checks=EXPECTED_FAILED_CHECKS, on_skip=None
        )
    assert sum(one["status"] == "passed" for one in found) > 50
    # One asks for SciPy's experimental array interface to be switched on.
    assert {one["check_name"] for one in found if one["status"] != "passed"} <= {"check_array_api_input"}
