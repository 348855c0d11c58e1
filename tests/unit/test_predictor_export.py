"""What is exported answers as the predictor does, alone, and nothing that answers otherwise is left."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from regraft import cli_export
from regraft.data.augment import prepare
from regraft.errors import PredictorError, UnknownName
from regraft.learn.nearest import CosinePrototypes, NearestNeighbours, prototypes
from regraft.networks import NetworkSpec, build, cut, make_head, resolve_cut
from regraft.networks.imports import import_timm
from regraft.predictor import Predictor
from regraft.predictor import export as module
from regraft.predictor.export import FORMATS, Format, export
from regraft.predictor.manifest import Cut
from regraft.predictor.network import Whole, answering, empty_trunk
from regraft.predictor.parity import PICTURES, TOLERANCE, compare, some_pictures
from regraft.predictor.portable import Portable, resizing
from regraft.spec import Head, Preprocessing
from tests.unit.predictor_example import CLASSES, SIZE, TINY, pictures, tiny_manifest, tiny_predictor

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(one) is None for one in ("onnx", "onnxruntime")), reason="needs regraft[onnx]"
)
# Everything that a picture can go through inside.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mirrored": {"mirrored": True},
    "grey, enlarged": {
        "grey": True, "picture_size": 20,
        "preprocessing": Preprocessing(image_size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    },
    "BGR, shrunk, bicubic": {
        "picture_size": 45,
        "preprocessing": Preprocessing(
            image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), channels="bgr", interpolation="bicubic"
        ),
    },
}  # fmt: skip


BGR = Preprocessing(image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), channels="bgr")


@pytest.fixture
def animals(tmp_path: Path) -> str:
    """A folder of pictures."""
    folder = tmp_path / "animals"
    folder.mkdir()
    for i, pixels in enumerate(pictures(45, 40)):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return str(folder)


def whole_predictor(**changes: Any) -> Predictor:
    """timm's network in two parts, as a `rest` head leaves it; or whole, with a new linear classifier."""
    rest = changes.pop("rest", False)
    point = resolve_cut(TINY, "layer1" if rest else "penultimate", SIZE)
    head = Head(kind="rest") if rest else Head()
    manifest = tiny_manifest(cuts=(Cut(point.name, point.layout, point.shape),), head=head, **changes)
    network = build(TINY, classes=len(CLASSES), seed=0, image_size=SIZE).eval()
    if rest:
        return Predictor(manifest, answering(manifest, Whole(*cut(network, point.name)), torch.nn.Identity()),
                         device="cpu", backend="eager")  # fmt: skip
    trunk, state = empty_trunk(manifest), network.state_dict()
    trunk.load_state_dict({name: state[name] for name in trunk.state_dict()}, assign=True)
    made = make_head(head, point, len(CLASSES), spec=NetworkSpec(TINY, "imagenet", SIZE), seed=1)
    classify = made.get_submodule("classify")
    return Predictor(manifest, answering(manifest, trunk, classify), device="cpu", backend="eager")


def of_torchvision(network: str = "squeezenet1_1") -> Predictor:
    """In two parts, as a `rest` head leaves it."""
    point = resolve_cut(network, None, SIZE)
    manifest = tiny_manifest(
        network=network, cuts=(Cut(point.name, point.layout, point.shape),), head=Head(kind="rest")
    )
    whole = build(network, classes=len(CLASSES), seed=0, image_size=SIZE).eval()
    trunk = Whole(*cut(whole, point.name))
    return Predictor(manifest, answering(manifest, trunk, torch.nn.Identity()), device="cpu", backend="eager")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_portable_module_answers_as_the_predictor_does(name: str) -> None:
    predictor = tiny_predictor(**VARIANTS[name])
    squares = np.stack([one for one in predictor.squares(list(pictures(9, 50))) if not isinstance(one, str)])
    with torch.no_grad():
        probabilities, logits = Portable.of(predictor)(torch.from_numpy(squares))
    expected = predictor.logits(squares)
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(probabilities.numpy(), predictor.answers(expected).probabilities, atol=1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("given", "wanted"), [(8, 32), (32, 8), (30, 21)])
def test_two_products_with_the_matrix_are_the_resize(interpolation: Any, given: int, wanted: int) -> None:
    pixels = pictures(2, given)
    expects = Preprocessing(image_size=wanted, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation)
    matrix = resizing(given, wanted, interpolation)
    found = (matrix @ (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255) @ matrix.T).clamp(0, 1)
    torch.testing.assert_close(found, prepare(torch.from_numpy(pixels), expects), atol=1e-5, rtol=0)


@needs_onnx
def test_an_onnx_file_holds_all_that_its_use_needs(tmp_path: Path, animals: str) -> None:
    import onnx
    import onnxruntime

    predictor = tiny_predictor(mirrored=True)
    found = export(predictor, "onnx", tmp_path / "out" / "tiny.onnx", pictures=[animals])
    assert [file.name for file in found.files] == ["tiny.onnx", "tiny.onnx.json", "tiny.onnx.md"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["tiny.onnx", "tiny.onnx.json", "tiny.onnx.md"]
    assert found.card == tmp_path / "out" / "tiny.onnx.md"
    assert found.parity.images == 45
    assert found.parity.equal_answers == 1
    onnx.checker.check_model(onnx.load(found.files[0]), full_check=True)
    session = onnxruntime.InferenceSession(str(found.files[0]), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["classes"])) == CLASSES
    assert json.loads(about["temperature"]) == predictor.manifest.temperature
    for n in (1, 5):
        probabilities, _ = session.run(None, {"pictures": pictures(n)})
        np.testing.assert_allclose(probabilities, predictor.predict(pictures(n)).probabilities, atol=1e-4)
    beside = json.loads(found.files[1].read_text())
    assert beside["input"]["shape"] == ["n", SIZE, SIZE, 3]
    assert beside["parity"]["images"] == 45


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("format", [pytest.param("onnx", marks=needs_onnx), "torch-export"])
def test_every_kind_of_preprocessing_travels_in_the_file(tmp_path: Path, animals: str, format: str, name: str) -> None:
    out = tmp_path / f"tiny{FORMATS[format].suffix}"
    found = export(tiny_predictor(**VARIANTS[name]), format, out, pictures=[animals])
    assert found.parity.equal_answers == 1
    assert found.parity.logits < TOLERANCE / 10


@pytest.mark.slow
@pytest.mark.parametrize("format", [pytest.param("onnx", marks=needs_onnx), "torch-export"])
@pytest.mark.parametrize("kind", ["prototype", "knn"])
def test_heads_without_training_are_written_for_any_number_of_pictures(
    tmp_path: Path, animals: str, format: str, kind: str
) -> None:
    """The parity takes 1, 7 and 32 at a time."""
    plain = tiny_predictor()
    images = prepare(torch.from_numpy(pictures(30)), plain.manifest.preprocessing)
    (features,) = plain.network.trunk(images).values()
    labels = torch.arange(30) % len(CLASSES)
    head: torch.nn.Module = CosinePrototypes(prototypes(features, labels, classes=len(CLASSES)))
    if kind == "knn":
        head = NearestNeighbours(features, labels, classes=len(CLASSES), neighbours=5)
    manifest = tiny_manifest(head=Head.model_validate({"kind": kind}))
    network = answering(manifest, plain.network.trunk.body, head)
    predictor = Predictor(manifest, network, device="cpu", backend="eager")
    found = export(predictor, format, tmp_path / f"x{FORMATS[format].suffix}", pictures=[animals])
    assert found.parity.equal_answers == 1


ALONE = """
import json, sys
import numpy as np
import torch
about = {"regraft.json": ""}
network = torch.export.load(sys.argv[1], extra_files=about).module()
pictures = torch.from_numpy(np.load(sys.argv[2]))
print(json.dumps([[network(pictures[:n])[0].tolist() for n in (1, 5)], json.loads(about["regraft.json"])["classes"]]))
assert not any(name.partition(".")[0] in ("regraft", "timm", "torchvision") for name in sys.modules)
"""


@pytest.mark.slow
def test_a_torch_export_file_is_opened_without_regraft(tmp_path: Path, animals: str) -> None:
    predictor = tiny_predictor()
    found = export(predictor, "torch-export", tmp_path / "tiny.pt2", pictures=[animals])
    np.save(tmp_path / "pictures.npy", pictures(5))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(found.files[0]), str(tmp_path / "pictures.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (one, five), classes = json.loads(done.stdout)
    assert tuple(classes) == CLASSES
    expected = predictor.predict(pictures(5)).probabilities
    np.testing.assert_allclose(five, expected, atol=1e-4)
    np.testing.assert_allclose(one, expected[:1], atol=1e-4)


@pytest.mark.parametrize("rest", [False, True], ids=["linear", "rest"])
def test_timm_opens_the_folder_and_gives_calibrated_probabilities(tmp_path: Path, animals: str, rest: bool) -> None:
    timm: Any = import_timm()
    predictor = whole_predictor(rest=rest)
    found = export(predictor, "timm", tmp_path / "tiny-timm", pictures=[animals])
    assert {file.name for file in found.files} == {"config.json", "model.safetensors", "README.md"}
    network = timm.create_model(f"local-dir:{tmp_path / 'tiny-timm'}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**settings, is_training=False)
    assert tuple(network.pretrained_cfg["label_names"]) == CLASSES
    some = pictures(6)
    with torch.no_grad():
        shares = network(torch.stack([transform(Image.fromarray(one)) for one in some])).softmax(1)
    np.testing.assert_allclose(shares.numpy(), predictor.predict(some).probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("predictor", "reason"),
    [
        (lambda: tiny_predictor(), "cut at 'layer1.0' with a linear head; onnx and torch-export take it"),
        (lambda: whole_predictor(mirrored=True), "mirror image"),
        (lambda: whole_predictor(preprocessing=BGR), "takes BGR, and timm's pipelines give RGB; onnx and torch-export"),
        (lambda: of_torchvision(), "squeezenet1_1 is torchvision's, and timm's networks have other names"),
    ],
)
def test_what_timm_does_not_know_is_refused_with_what_works(tmp_path: Path, predictor: Any, reason: str) -> None:
    with pytest.raises(PredictorError, match=reason):
        export(predictor(), "timm", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownName, match="did you mean 'onnx'"):
        export(predictor(), "onx", tmp_path / "x")


def test_a_network_whose_classifier_is_no_linear_layer_is_refused_with_what_works(tmp_path: Path, animals: str) -> None:
    """Of timm's DLA it is a convolution, which has no temperature to be divided by as one."""
    out = tmp_path / "out" / "dla"
    reason = r"timm/dla46_c with a rest head cannot be written as timm \(TypeError: the classifier of .*, is no linear"
    with pytest.raises(PredictorError, match=rf"{reason} layer\); try onnx, torch-export, or another version of torch"):
        export(of_torchvision("timm/dla46_c"), "timm", out, pictures=[animals])
    assert list(out.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path, animals: str) -> None:
    (tmp_path / "file").write_text("a person's own")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300) / "below"):
        with pytest.raises(PredictorError, match=r"cannot write .*(file|xxx).*: .*; name another place: --out"):
            export(whole_predictor(), "timm", out, pictures=[animals])
    assert (tmp_path / "file").read_text() == "a person's own"
    assert {one.name for one in tmp_path.iterdir()} == {"file", "animals"}


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a folder that lets nobody write, not even the superuser"
)
def test_a_folder_that_lets_nobody_write_is_told(animals: str) -> None:
    with pytest.raises(PredictorError, match=r"cannot write .*proc.tiny: .*; name another place: --out"):
        export(whole_predictor(), "timm", "/proc/tiny", pictures=[animals])


def test_a_file_that_answers_otherwise_is_not_left(
    tmp_path: Path, animals: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that stores another head: a format of its own in the table, for this test."""
    predictor = tiny_predictor()

    def write(given: Predictor, path: Path) -> None:
        wrong = Portable.of(given)
        path.write_bytes(b"")
        kept.append(wrong)

    kept: list[Portable] = []

    def read(path: Path, given: Predictor) -> Any:
        def run(squares: Any) -> Any:
            with torch.no_grad():
                probabilities, logits = kept[0](torch.from_numpy(squares))
            return probabilities.flip(1).numpy(), logits.flip(1).numpy()

        return run

    monkeypatch.setitem(module.FORMATS, "swapped", Format(".bin", lambda given: "", write, read))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny.bin").write_text("an earlier one")
    with pytest.raises(PredictorError, match="does not answer as the predictor does, and was not kept"):
        export(predictor, "swapped", tmp_path / "out" / "tiny.bin", pictures=[animals])
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["an earlier one"]


@pytest.mark.parametrize(("format", "name"), [("onnx", "x.json"), ("onnx", "x"), ("torch-export", "x.onnx")])
def test_a_file_named_as_another_kind_is_refused(tmp_path: Path, format: str, name: str) -> None:
    with pytest.raises(PredictorError, match=f"called NAME{FORMATS[format].suffix}, not {name}"):
        export(tiny_predictor(), format, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_onnx
def test_two_formats_of_one_name_lie_side_by_side(tmp_path: Path, animals: str) -> None:
    for format, name in (("onnx", "tiny.onnx"), ("torch-export", "tiny.pt2")):
        export(tiny_predictor(), format, tmp_path / "out" / name, pictures=[animals])
    for name in ("tiny.onnx", "tiny.pt2"):
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["file"] == name
        assert f"`{name}.json`" in (tmp_path / "out" / f"{name}.md").read_text()
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_parity_counts_and_measures() -> None:
    predictor = tiny_predictor()
    squares = pictures(50)

    def run(some: Any) -> Any:
        logits = predictor.logits(some)
        logits[0, 0] += 0.5  # of the first picture of each part
        return predictor.answers(logits).probabilities, logits

    found = compare(run, predictor, squares, "made here")
    assert found.logits == pytest.approx(0.5 / predictor.logits(squares).std(), rel=1e-3)
    assert not found.passed
    same = compare(lambda some: (predictor.predict(some).probabilities, predictor.logits(some)), predictor, squares, "")
    assert same.passed
    assert same.equal_answers == 1


def test_answers_of_another_shape_are_no_answers() -> None:
    predictor = tiny_predictor()

    def run(some: Any) -> Any:
        logits = predictor.logits(some)[:, :2]  # one class is lost
        return predictor.answers(predictor.logits(some)).probabilities[:, :2], logits

    found = compare(run, predictor, pictures(9), "made here")
    assert not found.passed
    assert (found.images, found.equal_answers) == (9, 0)


def test_without_pictures_at_hand_two_photographs_are_cut_into_many() -> None:
    squares, origin = some_pictures(tiny_predictor())
    assert squares.shape == (PICTURES, SIZE, SIZE, 3)
    assert "photographs" in origin
    assert len({one.tobytes() for one in squares}) == PICTURES
    with pytest.raises(PredictorError, match="no picture to compare answers on"):
        some_pictures(tiny_predictor(), ["nothing.png"])


def test_the_images_of_its_own_data_are_taken_where_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_HOME", str(tmp_path))  # without CIFAR-10
    from regraft.data import load_dataset

    digest = load_dataset("digits").digest
    own: dict[str, Any] = {"grey": True, "picture_size": 8, "provenance": {"data": "digits", "data_sha256": digest}}
    assert some_pictures(tiny_predictor(**own))[1] == "test images of digits"
    others = [
        ("digits", "0" * 64),
        ("no-such-data", digest),
        ("cifar10", digest),
        ("folder:mine", digest),
        (None, digest),
    ]
    for name, sha256 in others:
        other = {**own, "provenance": {"data": name, "data_sha256": sha256}}
        assert some_pictures(tiny_predictor(**other))[1] == "parts of two photographs"


@pytest.mark.slow
def test_a_torch_export_file_of_a_head_that_cannot_be_traced_is_refused_with_what_works(
    tmp_path: Path, animals: str
) -> None:
    class Deciding(torch.nn.Module):
        """Its steps depend on the numbers that it is given."""

        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(values)
            return -logits if float(logits.sum()) > 1e6 else logits

    plain = tiny_predictor()
    network = answering(plain.manifest, plain.network.trunk.body, Deciding(plain.network.classify))
    predictor = Predictor(plain.manifest, network, device="cpu", backend="eager")
    with pytest.raises(PredictorError, match=r"cannot be written as torch-export \(.*\); try onnx, timm"):
        export(predictor, "torch-export", tmp_path / "out" / "x.pt2", pictures=[animals])
    assert list((tmp_path / "out").iterdir()) == []


@needs_onnx
def test_the_command_says_what_was_written_and_how_near_it_is(tmp_path: Path, animals: str) -> None:
    model = tiny_predictor().save(tmp_path / "tiny.regraft")
    app = typer.Typer()
    cli_export.add_to(app)
    words = ["export", str(model), "-o", str(tmp_path / "tiny.onnx"), "--images", animals]
    found = CliRunner().invoke(app, words, catch_exceptions=False)
    assert found.exit_code == 0
    assert "Parity: n = 45 pictures (of the paths given): the same answer to 100.00 %" in found.stdout
    assert (tmp_path / "tiny.onnx.md").is_file()
