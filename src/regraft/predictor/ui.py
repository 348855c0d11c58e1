"""A page in the browser on which a predictor is tried: one picture with what it looked at, or a folder.

Served by Gradio on the loopback interface alone. Nothing leaves the machine: no share link, no usage counts, a policy
that keeps the browser from loading anything from elsewhere, and no answer to requests made under another host's name.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import os
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from regraft.data.augment import prepare
from regraft.data.folders import folder_root
from regraft.data.pictures import Unreadable
from regraft.errors import PredictorError, RegraftError
from regraft.predictor.answers import Answer, answer_files, evaluated, write_csv
from regraft.predictor.bundle import SUFFIX
from regraft.predictor.files import find_pictures
from regraft.predictor.gradcam import grad_cam
from regraft.predictor.manifest import is_measure
from regraft.predictor.predict import Predictor, ranked
from regraft.predictor.report import sentences
from regraft.show.text import percent, printable

HOST = "127.0.0.1"
TOP = 5
SHOWN_SIDE = 448  # pixels, of the picture with its map
SHOWN_HEIGHT = 360  # pixels on the page
SHOWN_ROWS = 500  # of the table; the file has all
# The frontend is compiled JavaScript that builds functions and styles; what matters is that it loads from here alone.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; "
    "media-src 'self' blob: data:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
# Set before Gradio is imported. It counts its uses, and its client libraries theirs, unless told not to.
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
# Dark blue over magenta to yellow: brightness alone tells the order, so it can be read without seeing colours.
COLOURS = np.array([[10, 10, 60], [120, 20, 120], [220, 60, 90], [250, 150, 50], [255, 245, 130]], np.float64)


@dataclass(frozen=True, eq=False)
class Looked:
    """What is shown of one picture."""

    top: list[tuple[str, float]]  # the most probable classes and their probabilities
    overlay: NDArray[np.uint8]  # (s, s, 3): the picture as the predictor saw it, with the map of the first class
    unmapped: str = ""  # why the map is empty; "" if there is one


def look(predictor: Predictor, picture: Image.Image) -> Looked:
    """Answer one picture, and say where its first class was seen, if that can be told.  Raises Unreadable."""
    (found,) = predictor.squares([picture])
    if isinstance(found, str):
        raise Unreadable(found)
    batch = np.stack([found])  # a copy: Pillow's pixels are read-only, which torch warns about
    answer = predictor.answers(predictor.logits(batch))
    top = ranked(answer.probabilities[0], predictor.classes, TOP)
    prepared = prepare(torch.from_numpy(batch).to(predictor.device), predictor.manifest.preprocessing)
    try:
        heat, unmapped = grad_cam(predictor.network, prepared, int(answer.indices[0])), ""
    except PredictorError as error:  # not every network and head has a map; the answer stands without
        heat, unmapped = np.zeros((1, 1), np.float32), str(error)
    return Looked(top, overlaid(found, heat), unmapped)


def overlaid(picture: NDArray[np.uint8], heat: NDArray[np.float32], side: int = SHOWN_SIDE) -> NDArray[np.uint8]:
    """(side, side, 3).  picture: (s, s, c).  heat: (h, w) in [0, 1]; where it is 0 the picture stays as it is, grey."""
    plain = Image.fromarray(np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture)
    base = np.asarray(plain.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    large = np.asarray(Image.fromarray(heat).resize((side, side), Image.Resampling.BILINEAR), np.float64)
    places = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(large, places, COLOURS[:, i]) for i in range(3)], axis=2)
    share = (0.65 * np.clip(large, 0, 1))[:, :, None]
    grey = base.mean(axis=2, keepdims=True)
    mixed: NDArray[np.float64] = (1 - share) * (0.4 * base + 0.6 * grey) + share * colour
    return np.clip(mixed, 0, 255).astype(np.uint8)


def the_only_predictor(folder: Path) -> Path:
    """The one NAME.regraft in a folder.  Raises PredictorError if there is none, or several."""
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise PredictorError(
            f"{folder.absolute()} has no predictor. Name one: regraft ui NAME{SUFFIX}; "
            "`regraft advise PICTURES` and `regraft bundle STUDY` write them"
        )
    names = ", ".join(one.name for one in found[:10]) + (", ..." if len(found) > 10 else "")
    raise PredictorError(f"{folder.absolute()} has {len(found)} predictors: {names}. Name one: regraft ui NAME{SUFFIX}")


def page(predictor: Predictor, name: str) -> Any:
    """The page of a predictor, a `gradio.Blocks`.  name: what to call it.  For `serve`, which sets Gradio up."""
    gr: Any = importlib.import_module("gradio")

    name = printable(name)

    def answer(picture: Image.Image | None) -> tuple[Any, Any, str]:
        if picture is None:
            return None, None, ""
        try:
            found = look(predictor, picture)
        except RegraftError as error:
            return None, None, _words(str(error))
        return dict(_named(found.top)), found.overlay, _caption(found)

    def answer_folder(folder: str, progress: Any = gr.Progress()) -> tuple[Any, Any, str]:  # noqa: B008 (Gradio's way)
        if not folder.strip():
            return None, None, _words("Name a folder of pictures on this machine.")
        try:
            search = find_pictures([str(folder_root(folder.strip(), option="Folder"))], predictor.classes)
            answers = list(answer_files(predictor, search.found, advance=lambda done, total: progress((done, total))))
        except RegraftError as error:
            return None, None, _words(str(error))
        said = sentences(answers, predictor.manifest, evaluated(answers, predictor.classes))
        if len(answers) > SHOWN_ROWS:
            said.append(f"The table shows the first {SHOWN_ROWS:,} of {len(answers):,}; the file has all.")
        return [_row(one, predictor) for one in answers[:SHOWN_ROWS]], _csv(answers, predictor), _words(*said)

    with gr.Blocks(title=f"regraft: {name}", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.HTML(f"<h1>{html.escape(name)}</h1>{_about(predictor)}")
        with gr.Tab("One picture"), gr.Row():
            # The usual buttons of a picture include one that uploads it to a public place; these do not.
            keep = ["download", "fullscreen"]
            picture = gr.Image(
                type="pil", image_mode=None, sources=["upload", "clipboard"], label="Picture", height=SHOWN_HEIGHT,
                buttons=keep,
            )  # fmt: skip
            with gr.Column():
                bars = gr.Label(num_top_classes=TOP, label="Classes")
                caption = gr.HTML()
            overlay = gr.Image(
                label="Where it was seen (Grad-CAM)", interactive=False, format="png", height=SHOWN_HEIGHT,
                buttons=keep,
            )  # fmt: skip
        with gr.Tab("A folder"):
            folder = gr.Textbox(label="Folder on this machine", placeholder="pictures/holiday")
            start = gr.Button("Answer", variant="primary")
            told = gr.HTML()
            table = gr.Dataframe(headers=["file", "class", "probability", "true", "problem"], datatype="str",
                                 interactive=False, wrap=True)  # fmt: skip
            download = gr.File(label="All answers (CSV)")
        shown = [bars, overlay, caption]
        picture.change(answer, picture, shown, api_visibility="private", show_progress="minimal")
        for event in (start.click, folder.submit):
            event(answer_folder, folder, [table, download, told], api_visibility="private")
    return blocks


def serve(
    file: str | Path,
    *,
    device: str = "auto",
    port: int = 0,
    browser: bool = True,
    tell: Callable[[str], None] = lambda said: None,
) -> None:
    """Serve the page of the predictor in a file on the loopback interface until Ctrl-C.

    port: 0 is a free one. tell: gets one line with the address.
    Raises PredictorError without Gradio or where the port is taken, and as `Predictor.load`."""
    if importlib.util.find_spec("gradio") is None:
        raise PredictorError("the page needs the package gradio; install it with: pip install 'regraft[ui]'")
    predictor = Predictor.load(file, device=device)
    with tempfile.TemporaryDirectory(prefix="regraft-ui-", ignore_cleanup_errors=True) as kept:
        # Pictures that are dropped, and tables, lie there and go with the page. Both before Gradio is imported.
        os.environ.update({**SILENT, "GRADIO_TEMP_DIR": kept})
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(_OwnLoadsOnly)]
        blocks = page(predictor, Path(file).name)
        try:
            _, address, _ = blocks.queue(api_open=False).launch(
                server_name=HOST, server_port=port or _free_port(), share=False, inbrowser=False, quiet=True,
                prevent_thread_lock=True, ssr_mode=False, footer_links=[], app_kwargs={"middleware": middleware},
            )  # fmt: skip
        except OSError as error:
            raise PredictorError(f"port {port} cannot be had here ({error}); give another one: --port") from error
        tell(f"The page is at {address} (this machine only). Ctrl-C ends it.")
        if browser:
            webbrowser.open(address)
        blocks.block_thread()


class _OwnLoadsOnly:
    """Adds the policy to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, with_policy)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind((HOST, 0))
        return int(opened.getsockname()[1])


# --- what is shown ------------------------------------------------------------------------------------------------


def _about(predictor: Predictor) -> str:
    manifest = predictor.manifest
    said = [f"{len(manifest.classes):,} classes, {manifest.network}."]
    test = manifest.metrics.get("test")
    if is_measure(test):
        said.append(f"Accuracy on its test images {percent(test['accuracy'])} (n = {test['n']:,}).")
    return _words(*said, "Pictures stay on this machine.")


def _words(*said: str) -> str:
    """Sentences as HTML; names in them are other people's."""
    return f"<p>{html.escape(' '.join(printable(one) for one in said))}</p>"


def _named(top: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(printable(name) or "(no name)", share) for name, share in reversed(top)]  # of equal names the first stays


def _caption(found: Looked) -> str:
    name, share = found.top[0]
    if found.unmapped:
        return _words(f"{printable(name)!r} ({percent(share)}). No map: {found.unmapped}.")
    return _words(f"Bright places speak for {printable(name)!r} ({percent(share)}); they say where, not why.")


def _row(one: Answer, predictor: Predictor) -> list[str]:
    if one.probabilities is None:
        return [printable(one.path), "", "", printable(one.label or ""), printable(one.reason or "")]
    name, share = ranked(one.probabilities, predictor.classes, 1)[0]
    return [printable(one.path), printable(name), percent(share), printable(one.label or ""), ""]


def _csv(answers: Sequence[Answer], predictor: Predictor) -> str:
    """A file with a row for each picture; returns its path."""
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
    with (folder / "answers.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        write_csv(answers, predictor.classes, file)
    return str(folder / "answers.csv")
