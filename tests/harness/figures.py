"""What a harness found: printed, and recorded if wished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[2] / "docs" / "records" / "harness"


def finish(name: str, found: dict[str, Any], *, record: bool, part: bool = False) -> int:
    """Print the figures as JSON; the exit code is 1 if any part of them lists a violation.

    part: of a record, whose other parts stay."""
    print(json.dumps(found, indent=1))
    if record:
        RECORDS.mkdir(parents=True, exist_ok=True)
        file = RECORDS / f"{name}.json"
        before = json.loads(file.read_text("utf-8")) if part and file.is_file() else {}
        file.write_text(json.dumps({**before, **found}, indent=1) + "\n", "utf-8")
    return 1 if any(part.get("violations") for part in found.values() if isinstance(part, dict)) else 0
