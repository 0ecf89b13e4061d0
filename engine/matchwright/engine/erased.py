"""What stands for an erased id where somebody else has listed it.

A client's list of excluded freelancers is the client's. When a freelancer on it is erased, the id
goes and a stand-in with the salted key takes its place, so that the limit holds if the id ever
comes back, and nobody can read the id out of it::

    erased:00c0ffee00c0ffee
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import UInt64

PREFIX = "erased:"
_DIGITS = 16


def stand_in(key: int) -> str:
    """What is listed instead of the id with this key."""
    return f"{PREFIX}{key:0{_DIGITS}x}"


def key_of(name: str) -> int | None:
    """The key that a stand-in stands for; None for an id."""
    digits = name.removeprefix(PREFIX)
    if len(name) != len(PREFIX) + _DIGITS or len(digits) != _DIGITS:
        return None
    return int(digits, 16) if set(digits) <= set("0123456789abcdef") else None


def listed_keys(ids: Sequence[str], salt: bytes) -> UInt64:
    """uint64 keys of listed ids and stand-ins."""
    keys = hash_keys(ids, salt)
    for place, name in enumerate(ids):
        if name.startswith(PREFIX) and (key := key_of(name)) is not None:
            keys[place] = np.uint64(key)
    return keys
