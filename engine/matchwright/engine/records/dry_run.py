"""A sink that writes nothing: it remembers a digest of every record it has seen."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass

import msgspec
import polars as pl


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records were new, changed, or equal to an earlier one of the same id."""

    accepted: int = 0
    replaced: int = 0
    duplicate: int = 0


class DryRun:
    """What an empty store would answer. Digests lie in a temporary database, not in memory."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # "": a temporary file
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, digest BLOB) WITHOUT ROWID")
        self._encode = msgspec.msgpack.Encoder().encode

    def close(self) -> None:
        """Drops the temporary database."""
        self._db.close()

    def write(self, records: pl.DataFrame) -> Counts:
        """Compares with what was written before. Ids within one frame are distinct."""
        accepted = replaced = 0
        look = self._db.execute
        look("BEGIN")
        for record in records.iter_rows():
            name = record[0]
            digest = hashlib.blake2b(self._encode(record), digest_size=16).digest()
            found = look("SELECT digest FROM seen WHERE id = ?", (name,)).fetchone()
            if found is not None and found[0] == digest:
                continue
            look("INSERT OR REPLACE INTO seen VALUES (?, ?)", (name, digest))
            if found is None:
                accepted += 1
            else:
                replaced += 1
        look("COMMIT")
        return Counts(accepted, replaced, records.height - accepted - replaced)
