"""The model card of an exported predictor: Markdown with the front matter that the Hugging Face Hub reads.

Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993). All of it comes from the manifest: what is
not known is said to be unknown. Names are other people's words, so every one of them is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from regraft.predictor.manifest import Manifest, is_measure
from regraft.predictor.parity import Parity
from regraft.show.text import percent, printable

# Identifiers of licences that the Hub knows, as our licence texts begin; all others are "other" with their text.
LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0")
LIBRARIES = {"onnx": "onnx", "torch-export": "pytorch", "timm": "timm"}
SHOWN_CLASSES = 50
LONGEST_NAME = 200  # characters of a name in a card
# What is markup within a line, and what becomes a link by itself: addresses, and names after @.
MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$@]|:(?=/)|\.(?=[A-Za-z]))")

USE = {
    "onnx": """import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({file!r})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
pictures = np.zeros({shape}, np.uint8)  # yours: {axes}; not normalised
probabilities, logits = session.run(None, {{"pictures": pictures}})
print([classes[i] for i in probabilities.argmax(1)])""",
    "torch-export": """import json
import torch

about = {{"regraft.json": ""}}
network = torch.export.load({file!r}, extra_files=about).module()
classes = json.loads(about["regraft.json"])["classes"]
pictures = torch.zeros({shape}, dtype=torch.uint8)  # yours: {axes}; not normalised
probabilities, logits = network(pictures)
print([classes[i] for i in probabilities.argmax(1).tolist()])""",
    "timm": """import timm
from PIL import Image

network = timm.create_model({folder!r}, pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
pictures = prepare(Image.open("picture.jpg").convert({mode!r}).convert("RGB"))[None]
probabilities = network(pictures).softmax(1)  # calibrated: the temperature is in the classifier
print([network.pretrained_cfg["label_names"][i] for i in probabilities.argmax(1).tolist()])""",
}


def model_card(manifest: Manifest, *, name: str, format: str, file: str, parity: Parity) -> str:
    """The card.  name: of the model.  format, file: what it lies beside.  parity: of that file."""
    front = yaml.safe_dump(_front(manifest, name, format), allow_unicode=True, sort_keys=False, width=1000)
    title = f"{len(manifest.classes):,} classes of pictures, {_text(manifest.network)}"
    sections = [
        ("", [f"An image classifier: {title}.", *_what(manifest)]),
        ("Trained on", list(_trained_on(manifest))),
        ("How good it is", list(_measured(manifest))),
        ("Calibration", list(_calibration(manifest))),
        ("How to use it", list(_usage(manifest, format, file))),
        ("The same answers as the predictor", [f"{_text(parity.sentence())}."]),
        ("Limits", list(_limits(manifest))),
        ("Licence and provenance", list(_provenance(manifest))),
    ]
    body = "\n\n".join("\n\n".join(([f"## {title}"] if title else []) + lines) for title, lines in sections)
    return f"---\n{front}---\n\n# {_text(name)}\n\n{body}\n"


def _text(value: object) -> str:
    """Anybody's words in Markdown: one line, nothing in it is markup."""
    return MARKUP.sub(r"\\\1", printable(str(value), LONGEST_NAME))


def _plain(value: object) -> str:
    """For the front matter, where YAML quotes: on one line and without control characters."""
    return printable(str(value), LONGEST_NAME)


def _front(manifest: Manifest, name: str, format: str) -> dict[str, Any]:
    begins = manifest.licence.lower().replace("(", " ").split()
    known = begins[0].rstrip(";,") if begins and begins[0].rstrip(";,") in LICENCES else None
    made: dict[str, Any] = {"license": known or "other"}
    if known is None:
        made["license_name"] = _plain(manifest.licence)
    made |= {"library_name": LIBRARIES[format], "pipeline_tag": "image-classification"}
    made["tags"] = ["image-classification", "transfer-learning", "regraft"]
    data = manifest.provenance.get("data")
    test = manifest.metrics.get("test")
    if isinstance(data, str) and is_measure(test):
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": _plain(data), "type": _plain(data)},
            "metrics": [{"type": "accuracy", "value": test["accuracy"]}],
        }
        made["model-index"] = [{"name": _plain(name), "results": [result]}]
    return made


def _what(manifest: Manifest) -> Iterator[str]:
    where = "whole" if manifest.cuts[-1].name == "penultimate" else f"cut at {_text(manifest.cuts[-1].name)}"
    cut = ", ".join(_text(one.name) for one in manifest.cuts)
    parts = f"its features at {cut}" if len(manifest.cuts) > 1 else f"{where}"
    yield (
        f"The network is {_text(manifest.network)} ({parts}, stem {_text(manifest.stem)}) with a "
        f"{_text(manifest.head.label)} head. It takes pictures of {manifest.picture_size} px a side"
        + (", grey ones" if manifest.grey else "")
        + (f", resized inside to {manifest.preprocessing.image_size} px" if _resized(manifest) else "")
        + (", and answers for each and its mirror image together." if manifest.mirrored else ".")
    )
    shown = ", ".join(_text(one) for one in manifest.classes[:SHOWN_CLASSES])
    more = len(manifest.classes) - SHOWN_CLASSES
    yield f"Classes, in the order of its outputs: {shown}" + (f", and {more:,} more." if more > 0 else ".")


def _trained_on(manifest: Manifest) -> Iterator[str]:
    told = manifest.provenance
    rows = [
        ("data", told.get("data")), ("sha256 of the data", told.get("data_sha256")), ("budget", told.get("budget")),
        ("training images", told.get("train_images")), ("validation images", told.get("validation_images")),
        ("classes", len(manifest.classes)), ("how", told.get("method")), ("recipe", told.get("recipe")),
        ("then trained again with the validation images", told.get("refit")),
    ]  # fmt: skip
    yield _table(("what", "value"), [(what, value) for what, value in rows if value is not None])


def _measured(manifest: Manifest) -> Iterator[str]:
    rows = []
    for part in ("test", "validation"):
        one = manifest.metrics.get(part)
        if is_measure(one):
            interval = f"{100 * one['low']:.1f} to {100 * one['high']:.1f} %"
            rows.append((part, percent(one["accuracy"]), interval, f"{one['n']:,}"))
    if not rows:
        yield "It was not measured."
        return
    yield _table(("part", "accuracy", "95 % Wilson interval", "images"), rows)
    yield (
        "The interval is that of the images, for this one trained network"
        + (f" (seed {_text(manifest.metrics['seed'])})" if "seed" in manifest.metrics else "")
        + ". Recipe and seed may have been chosen by the accuracy on validation images, which is therefore too high; "
        "test images played no part in it."
    )


def _calibration(manifest: Manifest) -> Iterator[str]:
    told = manifest.metrics.get("calibration")
    if not isinstance(told, Mapping):
        yield (
            "No image was held out to calibrate it: its probabilities are softmax of the logits as they are, and may "
            "be too sure."
        )
        return
    yield (
        f"Probabilities are softmax(logits / T) with T = {manifest.temperature:.4g}, fitted on "
        f"{_text(told.get('images', '?'))} {_text(told.get('part', 'validation'))} images (Guo et al. 2017)."
    )
    rows = [
        (_label(one), *(told[when].get(one, "–") for when in ("before", "after")))
        for one in ("cross_entropy", "calibration_error")
        if isinstance(told.get("before"), Mapping) and isinstance(told.get("after"), Mapping)
    ]
    if rows:
        yield _table(("on these very images", "before", "after"), rows)


def _usage(manifest: Manifest, format: str, file: str) -> Iterator[str]:
    size, channels = manifest.picture_size, 1 if manifest.grey else 3
    file = printable(file).replace("`", "")
    code = USE[format].format(
        file=file, folder=f"local-dir:{file}", shape=(1, size, size, channels), mode="L" if manifest.grey else "RGB",
        axes="(n, row, column, channel), RGB" if channels == 3 else "(n, row, column, 1), grey",
    )  # fmt: skip
    yield f"```python\n{code}\n```"
    if format == "timm":
        if _resized(manifest):
            yield (
                f"It was trained on pictures of {size} px that were resized to {manifest.preprocessing.image_size} px. "
                f"Bring larger pictures to {size} px first, or answers differ."
            )
        return
    beside = f"`{file}.json`"
    yield (
        f"Pictures are uint8 squares of {size} px, 0 to 255: normalisation"
        + (" and resizing are" if _resized(manifest) else " is")
        + f" inside. How a picture file becomes such a square is stated in {beside}, and in the file itself."
    )


def _limits(manifest: Manifest) -> Iterator[str]:
    limits = [
        "It knows its own classes and no others: to a picture of anything else it answers one of them.",
        "Its accuracy holds for pictures like the test images; other cameras, places or times may give less.",
    ]
    test = manifest.metrics.get("test")
    if is_measure(test):
        limits.append(f"The accuracy was measured on {test['n']:,} images; it is known no better than its interval.")
    limits.append("What the data of the first weights held, good and bad, may be in the features.")
    yield "\n".join(f"- {one}" for one in limits)


def _provenance(manifest: Manifest) -> Iterator[str]:
    yield f"Licence of the weights that it started from: {_text(manifest.licence)}. Images have licences of their own."
    weights = manifest.provenance.get("weights")
    rows: list[tuple[object, ...]] = []
    if isinstance(weights, Mapping):
        rows += [(f"weights: {key}", value) for key, value in weights.items()]
    rows += [(key, manifest.provenance[key]) for key in ("row", "seed", "fit") if key in manifest.provenance]
    trained = manifest.provenance.get("trained_with")
    if isinstance(trained, Mapping) and isinstance(trained.get("versions"), Mapping):
        rows.append(("trained with", ", ".join(f"{key} {value}" for key, value in trained["versions"].items())))
    yield _table(("what", "value"), [*rows, ("written by", f"regraft {manifest.regraft}")])


def _table(columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *(tuple(_text(value) for value in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _resized(manifest: Manifest) -> bool:
    return manifest.picture_size != manifest.preprocessing.image_size
