"""The tables of the catalog, by format, and the steps from one format to the next.

Format 2 calls the manifest ``manifest`` where format 1 said ``segment``: a program that knows only
format 1 and has the file open while it is migrated stops with an error and mixes nothing up.
"""

from __future__ import annotations

from typing import Literal

FORMAT = 2
Kind = Literal["job", "freelancer"]
KINDS: tuple[Kind, ...] = ("job", "freelancer")

_TABLES = """
CREATE TABLE state (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  uuid TEXT NOT NULL, salt BLOB NOT NULL, keep_text INTEGER NOT NULL,
  number INTEGER NOT NULL, digest BLOB NOT NULL, generation TEXT NOT NULL,
  next_segment INTEGER NOT NULL, next_seq INTEGER NOT NULL,
  live_job INTEGER NOT NULL, live_freelancer INTEGER NOT NULL,
  checksum BLOB NOT NULL);
CREATE TABLE epoch (
  number INTEGER PRIMARY KEY, digest BLOB NOT NULL, what TEXT NOT NULL,
  since REAL, until REAL, generation TEXT, next_seq INTEGER,
  n_job INTEGER, n_freelancer INTEGER, open INTEGER NOT NULL DEFAULT 0, checksum BLOB);
CREATE TABLE manifest (
  segment INTEGER PRIMARY KEY, kind TEXT NOT NULL, generation TEXT NOT NULL,
  file TEXT NOT NULL, n INTEGER NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL,
  born INTEGER NOT NULL DEFAULT 0, gone INTEGER);
CREATE TABLE live (
  segment INTEGER NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL, rows BLOB NOT NULL,
  PRIMARY KEY (segment, first));
"""
_EPOCHS = """
CREATE INDEX epoch_open ON epoch (number) WHERE open = 1;
CREATE INDEX epoch_until ON epoch (until) WHERE open = 1;
CREATE TABLE live_segment (
  segment INTEGER PRIMARY KEY, kind TEXT NOT NULL, born INTEGER NOT NULL, gone INTEGER);
CREATE TABLE dead (
  segment INTEGER NOT NULL, number INTEGER NOT NULL, rows BLOB NOT NULL,
  PRIMARY KEY (segment, number)) WITHOUT ROWID;
CREATE INDEX dead_number ON dead (number);
"""
_RECORDS = """
CREATE TABLE {kind} (
  seq INTEGER PRIMARY KEY, key INTEGER NOT NULL UNIQUE, id TEXT NOT NULL,
  hash BLOB NOT NULL, body BLOB NOT NULL);
"""
_OLD_RECORDS = """
CREATE TABLE {kind}_old (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL, hash BLOB NOT NULL, body BLOB NOT NULL,
  gone INTEGER NOT NULL);
CREATE INDEX {kind}_old_gone ON {kind}_old (gone);
"""
_FROM_1 = """
ALTER TABLE epoch ADD COLUMN since REAL;
ALTER TABLE epoch ADD COLUMN until REAL;
ALTER TABLE epoch ADD COLUMN generation TEXT;
ALTER TABLE epoch ADD COLUMN next_seq INTEGER;
ALTER TABLE epoch ADD COLUMN n_job INTEGER;
ALTER TABLE epoch ADD COLUMN n_freelancer INTEGER;
ALTER TABLE epoch ADD COLUMN open INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epoch ADD COLUMN checksum BLOB;
ALTER TABLE segment RENAME TO manifest;
ALTER TABLE manifest ADD COLUMN born INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifest ADD COLUMN gone INTEGER;
ALTER TABLE dead RENAME TO dead_1;
"""
_FROM_1_END = """
INSERT INTO dead (segment, number, rows) SELECT segment, number, rows FROM dead_1;
DROP TABLE dead_1;
"""


def create() -> list[str]:
    """The statements that make an empty catalog of this format."""
    records = [script.format(kind=kind) for kind in KINDS for script in (_RECORDS, _OLD_RECORDS)]
    return _statements(_TABLES, _EPOCHS, *records)


def from_1() -> list[str]:
    """The statements that turn the tables of format 1 into those of format 2.

    Replaced records are dropped with the epochs before the newest, which format 1 did not keep.
    """
    dropped = [f"DROP TABLE {kind}_old;" for kind in KINDS]
    old = [_OLD_RECORDS.format(kind=kind) for kind in KINDS]
    return _statements(_FROM_1, _EPOCHS, _FROM_1_END, *dropped, *old)


def _statements(*scripts: str) -> list[str]:
    return [statement for script in scripts for statement in script.split(";") if statement.strip()]
