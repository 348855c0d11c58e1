"""Laws of how a process uses its machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Page faults while 50 arrays of 32 MB are made, written and freed.
FAULTS = """
import resource
import numpy as np
from regraft.learn.hardware import keep_freed_memory
kept = keep_freed_memory() if {asked} else False
np.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(2**22)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def kept_and_faults(*, asked: bool, **environment: str) -> tuple[bool, int]:
    few = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(asked=asked)], env=few | environment, capture_output=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept == b"1", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_freed_memory_is_taken_again_without_the_system() -> None:
    kept, faults = kept_and_faults(asked=True)
    if not kept:
        pytest.skip("another C library")
    _, usual = kept_and_faults(asked=False)
    assert faults < usual / 10
    # Whoever has set the allocator up keeps that.
    assert not kept_and_faults(asked=True, MALLOC_ARENA_MAX="2")[0]
    assert not kept_and_faults(asked=True, GLIBC_TUNABLES="glibc.malloc.check=0")[0]
