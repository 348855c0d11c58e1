"""How torchvision and torch.fx are made to cost what is used of them.

torchvision without the compiler: of the seconds that importing it takes, most are torch._dynamo's, unused here.

torchvision means to import the compiler lazily (`lazy_compile` in torchvision/ops/roi_align.py says so), but one line
of that file, `from torch._dynamo.utils import is_compile_supported`, loads all of it. While torchvision is imported, a
stand-in answers that line with a function that asks the real one when it is called. docs/decisions/0013 has figures.
"""

from __future__ import annotations

import contextlib
import importlib
import linecache
import sys
from types import ModuleType

DYNAMO = "torch._dynamo"
KEPT_SOURCES = 64  # graphs whose code a traceback can still show


def is_compile_supported(device_type: str) -> bool:
    """torch's own answer, asked for only now."""
    real = importlib.import_module(f"{DYNAMO}.utils")
    return bool(real.is_compile_supported(device_type))


def import_torchvision() -> ModuleType:
    """The package torchvision, imported without torch._dynamo where that works."""
    if "torchvision" not in sys.modules and DYNAMO not in sys.modules:
        before = set(sys.modules)
        package, utils = ModuleType(DYNAMO), ModuleType(f"{DYNAMO}.utils")
        utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
        sys.modules |= {DYNAMO: package, f"{DYNAMO}.utils": utils}
        try:
            return importlib.import_module("torchvision")
        except (ImportError, AttributeError):  # another release asks the compiler for more: then with all of it
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                if name not in before:
                    del sys.modules[name]
        finally:
            del sys.modules[DYNAMO], sys.modules[f"{DYNAMO}.utils"]
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """The package timm, which imports torchvision."""
    import_torchvision()
    return importlib.import_module("timm")


def forget_old_sources() -> None:
    """Let go of the code that torch.fx wrote for old graphs.

    It keeps the text of every graph ever made, for tracebacks, though the graph is gone: a process that makes networks
    for days would grow. Graphs in use go on without it."""
    with contextlib.suppress(ImportError, AttributeError):  # torch's own matter, which another release may have mended
        from torch.fx.graph_module import _loader

        for name in list(_loader.eval_cache)[:-KEPT_SOURCES]:
            _loader.eval_cache.pop(name, None)
            linecache.cache.pop(name, None)
