"""What an import did, row by row accounted for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from matchwright.engine.records.fields import Kind
from matchwright.engine.records.rows import Refused

SAMPLES = 20


class FieldReport(msgspec.Struct):
    """One field over a file's rows that were not refused.

    Attributes:
        known: rows with a value.
        unknown: rows whose bad value was set to unknown because the map says so.
        changed: texts changed by more than blanks: markup, encoding, personal data, length.
    """

    known: int = 0
    unknown: int = 0
    changed: int = 0


class FileReport(msgspec.Struct):
    """One file. ``read = accepted + replaced + duplicate + quarantined``, always.

    Attributes:
        read: rows, blank lines not counted.
        accepted: rows whose record was new.
        replaced: rows whose record was there with other content.
        duplicate: rows whose record was there, equal.
        quarantined: rows that were refused; ``reasons`` counts them by reason.
        records: records handed to the store; fewer than rows when the map merges.
        unused_columns: columns that the map does not use (for JSON lines: of the first chunk).
    """

    path: str
    format: str
    bytes: int = 0
    read: int = 0
    accepted: int = 0
    replaced: int = 0
    duplicate: int = 0
    quarantined: int = 0
    records: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    fields: dict[str, FieldReport] = msgspec.field(default_factory=dict)
    unused_columns: list[str] = msgspec.field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether every row read is accounted for."""
        return self.read == self.accepted + self.replaced + self.duplicate + self.quarantined

    def count_fields(
        self, known: Counter[str], unknown: Counter[str], changed: Counter[str]
    ) -> None:
        """Adds a chunk's counts."""
        for name in known | unknown | changed:
            entry = self.fields.setdefault(name, FieldReport())
            entry.known += known[name]
            entry.unknown += unknown[name]
            entry.changed += changed[name]

    def count_refused(self, refused: list[Refused]) -> None:
        """Adds refused rows."""
        self.quarantined += len(refused)
        for one in refused:
            self.reasons[str(one.reason)] = self.reasons.get(str(one.reason), 0) + 1


class Sample(msgspec.Struct):
    """A refused row, for the eye."""

    file: str
    row: int
    field: str
    value: str
    reason: str
    detail: str


class Report(msgspec.Struct):
    """What ``ingest.read`` did.

    Attributes:
        files: in the order given.
        quarantine: where the refused rows are, if there are any and a path was given.
        samples: the first refused rows.
        seconds: of the whole.
        waited_s: how much of it the store waited for a served encoder.
    """

    kind: Kind
    strict: bool = False
    files: list[FileReport] = msgspec.field(default_factory=list)
    quarantine: str | None = None
    samples: list[Sample] = msgspec.field(default_factory=list)
    seconds: float = 0.0
    waited_s: float = 0.0

    @property
    def read(self) -> int:
        return sum(file.read for file in self.files)

    @property
    def accepted(self) -> int:
        return sum(file.accepted for file in self.files)

    @property
    def replaced(self) -> int:
        return sum(file.replaced for file in self.files)

    @property
    def duplicate(self) -> int:
        return sum(file.duplicate for file in self.files)

    @property
    def quarantined(self) -> int:
        return sum(file.quarantined for file in self.files)

    @property
    def balanced(self) -> bool:
        """Whether every row of every file is accounted for."""
        return all(file.balanced for file in self.files)

    def sample(self, path: str, refused: list[Refused]) -> None:
        """Keeps the first refused rows."""
        for one in refused[: SAMPLES - len(self.samples)]:
            self.samples.append(
                Sample(path, one.row, one.field, one.value, str(one.reason), one.detail)
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the totals, for JSON."""
        totals = ("read", "accepted", "replaced", "duplicate", "quarantined", "balanced")
        whole: dict[str, Any] = {name: getattr(self, name) for name in totals}
        return whole | msgspec.to_builtins(self)  # type: ignore[no-any-return]

    def to_json(self) -> bytes:
        """``to_dict`` as JSON."""
        return msgspec.json.encode(self.to_dict())


def name_of(path: Path) -> str:
    """A path as it stands in reports and quarantine files."""
    return str(path).encode("utf-8", "replace").decode()
