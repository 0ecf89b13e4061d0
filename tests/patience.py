"""How long tests wait, and how they do it.

``PATIENCE`` is for what a claim says takes some seconds. With full counts, on a quiet machine, the
claim's own bound. With reduced ones ten times that: a machine that is busy with something else must
not make a test fail.

``until`` waits for what another thread or process does. Its own bound ends a test that would hang,
and is no claim.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE = 1 if os.environ.get("MATCHWRIGHT_PROVE") == "1" else 10
HANGS_S = 60.0
EVERY_S = 0.002
"""The least rest between two looks; it is as long as a look takes, which may be a whole call."""

Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str, *, within: float = HANGS_S) -> Found:
    """What the condition gives once it is true; fails and names it when it does not become so."""
    looked = time.monotonic()
    end = looked + within
    while not (found := condition()):
        time.sleep(_rest(looked, end, what))
        looked = time.monotonic()
    return found


async def until_async(
    condition: Callable[[], Found], what: str, *, within: float = HANGS_S
) -> Found:
    """``until``, while the event loop goes on."""
    looked = time.monotonic()
    end = looked + within
    while not (found := condition()):
        await asyncio.sleep(_rest(looked, end, what))
        looked = time.monotonic()
    return found


def lives(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has asked how it ended, has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _rest(looked: float, end: float, what: str) -> float:
    now = time.monotonic()
    assert now < end, f"waited in vain for {what}"
    return max(EVERY_S, now - looked)
