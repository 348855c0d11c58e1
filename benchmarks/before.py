"""Import this first: the environment as it was before regraft says how torch's threads wait, for peers' processes."""

from __future__ import annotations

import os

ENVIRONMENT = dict(os.environ)
