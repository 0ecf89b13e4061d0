"""Stable hashes of names onto dimensions: the same in every process and on every machine."""

from __future__ import annotations

import hashlib
from functools import lru_cache

_PERSON = b"mw-bucket-v1"


@lru_cache(maxsize=1 << 16)
def hash64(name: str) -> int:
    """64 bits of BLAKE2b over the UTF-8 name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=_PERSON).digest()
    return int.from_bytes(digest, "little")


def bucket(name: str, buckets: int) -> int:
    """A bucket in 0..buckets - 1."""
    return hash64(name) % buckets
