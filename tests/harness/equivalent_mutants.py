"""Mutants that no test can notice, each with the reason: {module: {mutant: why}}."""

from __future__ import annotations

EQUIVALENT: dict[str, dict[str, str]] = {}
