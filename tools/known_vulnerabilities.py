"""Has an installed package a known vulnerability? `python tools/known_vulnerabilities.py`, by pip-audit.

Exit code 1 if one has. Where the database of vulnerabilities cannot be reached, this is said and nothing is claimed: a
version that has had a published one for years is asked about first, since a mirror without that database answers "none
known" to everything.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VULNERABLE = "jinja2==3.1.3"  # CVE-2024-34064
SECONDS = 120


def main() -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("not looked for: pip-audit is not installed (pip install pip-audit)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "known.txt"
        known.write_text(f"{VULNERABLE}\n", "utf-8")
        control = _audit("--requirement", str(known), "--disable-pip", "--no-deps")
    if not control:
        print(f"not looked for: the database cannot be reached (it knows nothing of {VULNERABLE})")
        return 0
    found = _audit("--local", "--skip-editable")
    for name, version, ids in found or []:
        print(f"{name} {version}: {', '.join(ids)}")
    if found is None:
        print("not looked for: pip-audit gave no answer about the installed packages")
        return 0
    print(f"{len(found)} installed packages with a known vulnerability")
    return 1 if found else 0


def _audit(*words: str) -> list[tuple[str, str, list[str]]] | None:
    """(package, version, vulnerabilities) of those that have some; None if there was no answer."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", *words]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stdout
        packages = json.loads(said)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        return None
    return [(one["name"], one["version"], [v["id"] for v in one["vulns"]]) for one in packages if one.get("vulns")]


if __name__ == "__main__":
    sys.exit(main())
