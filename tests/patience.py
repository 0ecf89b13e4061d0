"""How long tests wait for what a claim says takes some seconds.

With full counts, on a quiet machine, the claim's own bound. With reduced ones ten times that: a
machine that is busy with something else must not make a test fail.
"""

from __future__ import annotations

import os

PATIENCE = 1 if os.environ.get("MATCHWRIGHT_PROVE") == "1" else 10
