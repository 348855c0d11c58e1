"""What did not determine a result but belongs beside it: versions, machine, device, seconds."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from functools import cache
from typing import Any


@cache
def versions() -> dict[str, str]:
    names = ("regraft", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance(*, device: str, seconds: float) -> dict[str, Any]:
    """`seconds`: wall time, interrupted attempts included as far as their last checkpoint."""
    torch = sys.modules.get("torch")
    return {
        "versions": versions(),
        "device": device,
        "threads": torch.get_num_threads() if torch is not None else 1,
        "machine": f"{platform.system()} {platform.machine()}",
        "seconds": round(seconds, 3),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
