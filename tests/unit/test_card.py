"""The model card says what the manifest says, and names in it are never markup."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from regraft.predictor.card import USE, model_card
from regraft.predictor.manifest import Manifest
from regraft.predictor.parity import Parity
from tests.unit.predictor_example import CLASSES, tiny_manifest

PARITY = Parity(images=45, origin="of the paths given", probabilities=1e-6, logits=1e-6, equal_answers=1.0)
MEASURED = {
    "test": {"accuracy": 0.687, "n": 1000, "low": 0.6576, "high": 0.715}, "seed": 3,
    "calibration": {
        "images": 20, "part": "validation", "before": {"cross_entropy": 0.776, "calibration_error": 0.437},
        "after": {"cross_entropy": 0.223, "calibration_error": 0.124},
    },
}  # fmt: skip
PROVENANCE = {
    "data": "cifar10", "data_sha256": "ab" * 32, "budget": "20 per class", "train_images": 200,
    "weights": {"kind": "pretrained", "sha256": "cd" * 32}, "trained_with": {"versions": {"torch": "2.14"}},
}  # fmt: skip
EVIL = "</td><script>alert(1)</script> [x](http://e.example) www.e.example `a` **b** | c\n# d\n---\n@somebody"


def card(manifest: Manifest, **changes: Any) -> str:
    plain: dict[str, Any] = {"name": "tiny", "format": "onnx", "file": "tiny.onnx", "parity": PARITY}
    return model_card(manifest, **{**plain, **changes})


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_card_holds_data_metrics_with_interval_calibration_origin_and_use() -> None:
    text = card(tiny_manifest(metrics=MEASURED, provenance=PROVENANCE, licence="BSD-3-Clause (torchvision)"))
    for said in (
        "| data | cifar10 |", "| training images | 200 |", "68.7 %", "65.8 to 71.5 %", "1,000", "seed 3",
        "| calibration error | 0.437 | 0.124 |", "T = 0.5", "cd" * 32, "torch 2.14", "BSD-3-Clause (torchvision)",
        "session = onnxruntime.InferenceSession('tiny.onnx')", "n = 45 pictures", *CLASSES,
    ):  # fmt: skip
        assert said in text, said


def test_the_front_matter_is_what_the_hub_reads() -> None:
    text = card(tiny_manifest(metrics=MEASURED, provenance=PROVENANCE, licence="apache-2.0"))
    data: Any = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "onnx", "image-classification")
    assert data.eval_results is not None
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("cifar10", "accuracy", 0.687)
    odd = front(card(tiny_manifest(licence="none: all weights were drawn at random and trained here")))
    assert odd["license"] == "other"
    assert odd["license_name"].startswith("none: all weights")


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    text = card(tiny_manifest(metrics={}, provenance={}))
    assert "It was not measured." in text
    assert "No image was held out to calibrate it" in text
    assert "model-index" not in front(text)
    broken = {"test": {"accuracy": "high", "n": None}, "calibration": 7}
    assert "It was not measured." in card(tiny_manifest(metrics=broken, provenance={"weights": "?", "data": 7}))


@pytest.mark.parametrize("format", USE)
def test_names_in_a_card_are_never_markup(format: str) -> None:
    provenance = {**PROVENANCE, "data": EVIL, "weights": {EVIL: EVIL}}
    manifest = tiny_manifest(classes=("dog", EVIL), metrics=MEASURED, provenance=provenance, licence=EVIL)
    text = card(manifest, name=EVIL, format=format, file="e`vil.onnx")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["license_name"].startswith("</td>")  # a string, quoted as YAML does
    kinds = [token.type for block in MarkdownIt("commonmark").parse(body) for token in (block, *(block.children or []))]
    assert not {"link_open", "image", "html_block", "html_inline", "strong_open", "hr"} & set(kinds)
    assert kinds.count("heading_open") == 1 + body.count("\n## ") == 8
    assert not [line for line in body.splitlines() if line.strip() == "---"]
    tables = [line for line in body.splitlines() if line.startswith("| ")]
    assert {line.replace(r"\|", "").count("|") for line in tables} <= {3, 4, 5}
    rows = [line for line in tables if "alert" in line]
    assert rows
    assert all(line.replace(r"\|", "").count("|") == 3 for line in rows)


def test_the_code_in_a_card_is_python() -> None:
    for format in USE:
        text = card(tiny_manifest(grey=True), format=format, file="a 'b'.onnx")
        code = text.split("```python\n")[1].split("\n```")[0]
        compile(code, format, "exec")
        assert ("(1, 32, 32, 1)" in code) == (format != "timm")
