"""One training over several devices of this machine: a process for each, the same step in all of them.

The process that asked waits and watches. Whatever goes wrong in one, an error or a kill, the others would wait for it
for ever: all are ended, and the step has failed. A study's next start goes on from the checkpoint.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from regraft.errors import RegraftError, RunError
from regraft.learn.distributed import Team, joined
from regraft.spec import Run
from regraft.study.bench import Bench, Setting
from regraft.study.executors import end_with_parent
from regraft.study.store import Payload, Scratch

ADVANCE_SECONDS = 0.2  # between two reports without a message

Advance = Callable[[float, str], None]
Train = Callable[[Run, Bench, Any, Advance, Team], Payload]  # its third: a checkpoint, as `learn.fit` takes it


@dataclass(frozen=True)
class Member:
    """What one process of a team needs to know."""

    setting: Setting
    run: Run
    train: Train
    rank: int
    size: int
    folder: Path  # where they meet, and where the first leaves the result
    scratch: Path  # of the run
    store: Path | None  # for damaged checkpoints


def devices_for(run: Run, images: int, wanted: int) -> int:
    """How many of the `wanted` devices a training takes: 1 if it is of a kind, or a size, that cannot be shared.

    Gradual unfreezing changes what learns, and learning from unlabelled images keeps guesses, from step to step."""
    smallest = images // math.ceil(images / run.recipe.batch_size)  # batch of an epoch
    sharable = run.recipe.semi == "none" and run.method != "gradual"
    return max(1, min(wanted, smallest // 2)) if sharable else 1


def train_on_devices(run: Run, bench: Bench, scratch: Scratch, advance: Advance, train: Train, size: int) -> Payload:
    """`train(run, bench, scratch, advance, team)` in `size` processes with a device each; what the first gives.

    Raises what one of them raised, RunError if one was killed."""
    with tempfile.TemporaryDirectory(prefix="regraft-") as place:
        context = multiprocessing.get_context("spawn")  # fork and threads (torch's) do not go together
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        members = [
            Member(_own(bench, size), run, train, rank, size, Path(place), scratch.folder, scratch.store)
            for rank in range(size)
        ]
        workers = [
            context.Process(target=_work, args=(member, writer), daemon=True)
            for member, (_, writer) in zip(members, pipes, strict=True)
        ]
        try:
            for worker in workers:
                worker.start()
            for _, writer in pipes:
                writer.close()  # the last end that is open is the worker's: its death is the end of the pipe
            scratch.seconds_before = _watch([reader for reader, _ in pipes], advance)
            return _left_in(Path(place))
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()


def _own(bench: Bench, size: int) -> Setting:
    threads = max(1, bench.threads // size)
    return replace(bench.setting, device=bench.device.type, threads=threads, devices=1)


def _watch(readers: list[Connection], advance: Advance) -> float:
    """Hand on what the workers say until all have ended well; seconds that earlier attempts had taken.

    Raises the first error that one of them had."""
    seconds, working = 0.0, set(readers)
    while working:
        for reader in wait_for(list(working)):
            assert isinstance(reader, Connection)
            try:
                kind, content = reader.recv()
            except (EOFError, OSError):
                raise RunError(
                    "one of the training's device processes died (out of memory, or killed); run again to go on"
                ) from None
            if kind == "advance":
                advance(*content)
            elif kind == "failed":
                raise content
            else:
                seconds = max(seconds, content)
                working.remove(reader)
    return seconds


def _left_in(folder: Path) -> Payload:
    content = json.loads((folder / "payload.json").read_text("utf-8"))
    tensors = {name: value.clone() for name, value in load_file(folder / "payload.safetensors").items()}
    return Payload(content["values"], tensors, content["record"])


# --- in a worker ------------------------------------------------------------------------------------------------


class _Reading:
    """The checkpoint of all but the first process: read, never written."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch

    def load(self) -> Any:
        return self.scratch.load()

    def save(self, state: Any, tensors: Any) -> None:
        """The first process does."""


def _work(member: Member, writer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()
    if member.setting.device == "cuda":
        _see_only(member.rank)
    try:
        seconds = _trained(member, writer)
    except Exception as error:  # the process boundary: whatever it was, the parent is to say it and end the others
        known = isinstance(error, RegraftError)
        text = " ".join(str(error).split())
        writer.send(("failed", error.with_traceback(None) if known else RunError(f"{type(error).__name__}: {text}")))
        return
    writer.send(("done", seconds))


def _trained(member: Member, writer: Connection) -> float:
    """Train with the others; the first leaves the payload. Returns the seconds of earlier attempts."""
    bench, scratch = Bench(member.setting), Scratch(member.scratch, store=member.store)
    first = member.rank == 0
    last = 0.0

    def advance(done: float, message: str) -> None:
        nonlocal last
        if first and (message or time.monotonic() - last > ADVANCE_SECONDS):
            last = time.monotonic()
            writer.send(("advance", (done, message)))

    checkpoint = scratch if first else _Reading(scratch)
    with joined(member.rank, member.size, member.folder / "meeting", bench.device) as team:
        payload = member.train(member.run, bench, checkpoint, advance, team)
    if first:
        tensors = {name: value.detach().cpu().contiguous() for name, value in payload.tensors.items()}
        save_file(tensors, member.folder / "payload.safetensors")
        content = {"values": payload.values, "record": payload.record}
        (member.folder / "payload.json").write_text(json.dumps(content), "utf-8")
    return scratch.seconds_before


def _see_only(rank: int) -> None:
    """One GPU is this process's, and no memory of the others is taken; before CUDA looks for them."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[rank] if shown else str(rank)
