"""Which device, how many threads."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from regraft.errors import StudyError


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU. Raises StudyError for a device this machine lacks."""
    if name == "auto":
        if torch.cuda.is_available():  # pragma: no cover (needs a GPU)
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(kind, False):
        usable = ", ".join(k for k, ok in here.items() if ok)
        raise StudyError(f"device {name!r} is not usable here; usable: auto, {usable}")
    return torch.device(name)


def physical_cores() -> int:
    """Cores without hyper-threads that this process may use: more threads than that slow arithmetic down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = set()
    for cpu in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        try:
            cores.add(((cpu / "physical_package_id").read_text(), (cpu / "core_id").read_text()))
        except OSError:  # pragma: no cover (a core that is switched off meanwhile)
            return allowed
    return max(1, min(allowed, len(cores) or allowed))


def set_threads(threads: int | None) -> int:
    """Use `threads` (default: the physical cores) for arithmetic; returns the number."""
    count = threads or physical_cores()
    torch.set_num_threads(count)
    return count


# mallopt's parameters (malloc.h of glibc).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next arrays; returns whether it does.

    By default glibc gives each large array back to the system and takes new pages for the next, which the system fills
    with zeros first: a third of the time of small networks on large images (docs/decisions/0017). The peak stays what
    it is, but memory taken once is given back at the end of the process only. Does nothing where the C library has
    no such switch, or where the user has set it by MALLOC_... or GLIBC_TUNABLES."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # pragma: no cover (macOS, musl; Windows cannot even be asked)
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
