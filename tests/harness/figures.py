"""What a harness found: printed, and recorded if wished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[2] / "docs" / "records" / "harness"


def finish(name: str, found: dict[str, Any], *, record: bool) -> int:
    """Print the figures as JSON; the exit code is 1 if any part of them lists a violation."""
    text = json.dumps(found, indent=1)
    print(text)
    if record:
        RECORDS.mkdir(parents=True, exist_ok=True)
        (RECORDS / f"{name}.json").write_text(text + "\n", "utf-8")
    return 1 if any(part.get("violations") for part in found.values() if isinstance(part, dict)) else 0
