"""A predictor in the formats of others: ONNX, torch.export, timm. Nothing is left that answers otherwise.

Each is written under a temporary name, read back as its users will read it, held against the predictor on real
pictures (`parity`), and only then renamed. Beside it lies JSON that says how its input is made, and a model card.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regraft.data.home import TEMPORARY_PREFIX
from regraft.errors import PredictorError, UnknownName, nearest
from regraft.learn.backend_table import OPSET, absent, quiet_exporter
from regraft.networks.trace import structural_copy
from regraft.predictor.card import model_card
from regraft.predictor.export_timm import run_timm, timm_refusal, write_timm
from regraft.predictor.parity import Answers, Parity, compare, some_pictures
from regraft.predictor.portable import INPUT, OUTPUTS, Portable, described
from regraft.predictor.predict import Predictor
from regraft.study.files import write_bytes

T = TypeVar("T")
Run = Callable[[NDArray[np.uint8]], Answers]
ABOUT = "regraft.json"  # the entry of a .pt2 file that says what `described` says
LONGEST_REASON = 300


@dataclass(frozen=True)
class Format:
    """A way to write a predictor, and to run what was written."""

    suffix: str  # of the file; "" for a folder
    refusal: Callable[[Predictor], str]  # why it cannot be, as the end of a sentence; empty if it can
    write: Callable[[Predictor, Path], None]
    read: Callable[[Path, Predictor], Run]


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the predictor."""

    format: str
    files: tuple[Path, ...]  # the model first; then JSON and model card
    parity: Parity

    @property
    def card(self) -> Path:
        return self.files[-1]


def export(
    predictor: Predictor, format: str, out: str | Path, *, pictures: Sequence[str] = (), name: str = ""
) -> Exported:
    """Write the predictor in another format, with JSON and a model card beside it; each whole or not at all.

    format: one of FORMATS. out: a file, NAME.onnx or NAME.pt2, beside which the same name with .json and .md added is
    written; for timm a folder. pictures: on which both must agree, see `parity.some_pictures`. name: of the model card.
    Raises UnknownName, and PredictorError if the file is named otherwise, the format cannot express it, nothing can be
    written there, or the answers differ: then nothing is left of it. StoreError if only JSON and card cannot."""
    if format not in FORMATS:
        raise UnknownName(f"no format {format!r}{nearest(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    way, final = FORMATS[format], Path(out)
    if way.suffix and final.suffix.lower() != way.suffix:
        raise PredictorError(f"a file of {format} is called NAME{way.suffix}, not {final.name}; name it so: --out")
    reference = Predictor(predictor.manifest, predictor.network, device="cpu", backend="eager")
    if reason := way.refusal(reference):
        raise PredictorError(f"it cannot be exported as {format}: {reason}")
    squares, origin = some_pictures(reference, pictures)
    unfinished = final.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}{way.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        run = _attempted(format, reference, lambda: _round_trip(way, reference, unfinished))
        parity = _attempted(format, reference, lambda: compare(run, reference, squares, origin))
        if not parity.passed:
            raise PredictorError(
                f"the {format} file does not answer as the predictor does, and was not kept: {parity.sentence()}, of a "
                f"logit {parity.logits:.1e} standard deviations. Try another format: {', '.join(FORMATS)}"
            )
        texts = _texts(predictor, format, final, parity, name or final.stem)
        return Exported(format, _placed(unfinished, final, texts), parity)
    except OSError as error:
        raise PredictorError(f"cannot write {final}: {error.strerror or error}; name another place: --out") from error
    finally:
        _remove(unfinished)


def _round_trip(way: Format, predictor: Predictor, path: Path) -> Run:
    """Write, and read back."""
    with torch.no_grad():
        way.write(predictor, path)
    return way.read(path, predictor)


def _attempted(format: str, predictor: Predictor, step: Callable[[], T]) -> T:
    try:
        return step()
    except OSError:
        raise
    except Exception as error:  # exporters and runtimes raise anything at all
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:LONGEST_REASON]
        others = ", ".join(one for one in FORMATS if one != format)
        raise PredictorError(
            f"{predictor.manifest.network} with a {predictor.manifest.head.kind} head cannot be written as {format} "
            f"({reason}); try {others}, or another version of torch"
        ) from error


def _texts(predictor: Predictor, format: str, final: Path, parity: Parity, name: str) -> dict[Path, str]:
    """The JSON (timm has its own) and the model card, by their places."""
    folder = FORMATS[format].suffix == ""
    card = model_card(predictor.manifest, name=name, format=format, file=final.name, parity=parity)
    if folder:
        return {final / "README.md": card}
    about = {**described(predictor.manifest), "format": format, "file": final.name, "parity": parity.told()}
    return {final.with_name(f"{final.name}.json"): json.dumps(about, indent=1, ensure_ascii=False) + "\n",
            final.with_name(f"{final.name}.md"): card}  # fmt: skip


def _placed(unfinished: Path, final: Path, texts: Mapping[Path, str]) -> tuple[Path, ...]:
    """Rename what was written, and write the texts beside it."""
    if unfinished.is_dir():
        final.mkdir(exist_ok=True)
        files = []
        for one in sorted(unfinished.iterdir(), reverse=True):  # weights, then what names them
            files.append(one.replace(final / one.name))
    else:
        files = [unfinished.replace(final)]
    written = [write_bytes(path, text.encode("utf-8", "backslashreplace")) for path, text in texts.items()]
    return (*files, *written)


def _remove(unfinished: Path) -> None:
    # Not Path's own questions: they raise for a place that cannot be, and would hide what was said of it.
    if os.path.isdir(unfinished):
        shutil.rmtree(unfinished)
    elif os.path.lexists(unfinished):
        unfinished.unlink()


def _example(predictor: Predictor) -> torch.Tensor:
    """(2, s, s, c) uint8: of one picture, torch.export would take the number for a constant."""
    size, channels = predictor.manifest.picture_size, 1 if predictor.manifest.grey else 3
    return torch.zeros(2, size, size, channels, dtype=torch.uint8)


# --- ONNX ---------------------------------------------------------------------------------------------------------


def _onnx_refusal(predictor: Predictor) -> str:
    reason = absent("onnxruntime", torch.device("cpu"))
    return f"that {reason}" if reason else ""


def _write_onnx(predictor: Predictor, path: Path) -> None:
    import onnx

    file = io.BytesIO()
    with quiet_exporter():
        # The exporter by tracing is deprecated, but needs no further package; `compare` runs several batch sizes,
        # so a number of pictures that was written down as a constant does not pass.
        torch.onnx.export(
            Portable.of(predictor), (_example(predictor),), file,  # type: ignore[arg-type]
            dynamo=False, opset_version=OPSET, input_names=[INPUT], output_names=list(OUTPUTS),
            dynamic_axes={one: {0: "n"} for one in (INPUT, *OUTPUTS)},
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    about = described(predictor.manifest)
    model.producer_name, model.producer_version = "regraft", predictor.manifest.regraft
    onnx.helper.set_model_props(
        model,
        {
            **{key: json.dumps(about[key]) for key in ("classes", "temperature", "input", "before", "inside")},
            **{key: about[key] for key in ("network", "licence", "regraft")},
        },
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path, predictor: Predictor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(squares: NDArray[np.uint8]) -> Answers:
        probabilities, logits = session.run(list(OUTPUTS), {INPUT: squares})
        return probabilities, logits

    return run


# --- torch.export -------------------------------------------------------------------------------------------------


def _write_torch(predictor: Predictor, path: Path) -> None:
    batch = torch.export.Dim("n", min=1)
    # Weights of a predictor are laid out channels last, which the writer of .pt2 takes for parts of something larger.
    module = structural_copy(Portable.of(predictor), _plain)
    program = torch.export.export(
        module, (_example(predictor),), dynamic_shapes={"pictures": {0: batch}}, strict=False
    )  # fmt: skip
    about: dict[str, Any] = described(predictor.manifest)
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _read_torch(path: Path, predictor: Predictor) -> Run:
    module: nn.Module = torch.export.load(path).module()

    def run(squares: NDArray[np.uint8]) -> Answers:
        with torch.no_grad():
            probabilities, logits = module(torch.from_numpy(squares))
        return probabilities.numpy(), logits.numpy()

    return run


FORMATS = {
    "onnx": Format(".onnx", _onnx_refusal, _write_onnx, _read_onnx),
    "torch-export": Format(".pt2", lambda predictor: "", _write_torch, _read_torch),
    "timm": Format("", lambda predictor: timm_refusal(predictor.manifest), write_timm, run_timm),
}
