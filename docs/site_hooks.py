"""What mkdocs.yml cannot say: the decision records, which grow, are listed in the navigation by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DECISIONS = Path(__file__).parent / "decisions"


def on_config(config: Any) -> Any:
    """Fill the empty entry `Decisions` of the navigation."""
    for section in config["nav"]:
        for entry in section.get("Project", []):
            if "Decisions" in entry:
                entry["Decisions"] = [f"decisions/{path.name}" for path in sorted(DECISIONS.glob("*.md"))]
    return config
