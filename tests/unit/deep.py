"""A path longer than the system takes, which holds for the superuser as well."""

from __future__ import annotations

import os
from pathlib import Path


def deepen(folder: Path) -> None:
    """Put folders into `folder` until nobody can name the innermost one."""
    inside = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(20):
            os.mkdir("x" * 250, dir_fd=inside)
            deeper = os.open("x" * 250, os.O_RDONLY, dir_fd=inside)
            os.close(inside)
            inside = deeper
    finally:
        os.close(inside)
