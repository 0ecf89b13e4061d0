"""Where files about a store's people were put outside its folder: ``DIR/places.jsonl``.

One JSON object in a line: what it is, and its absolute path or URL. Erasing somebody goes there
too, or says that it cannot. A line is only ever added.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from matchwright.engine.errors import StoreError

FILE = "places.jsonl"
What = Literal["quarantine", "runs", "backup", "published"]


def note(root: Path, what: What, where: str | os.PathLike[str]) -> None:
    """Remember a place, unless it is known: because it is in DIR/runs or DIR/quarantine, or listed.

    Raises:
        StoreError: it cannot be written down; the caller must not put anything there then.
    """
    place = os.fspath(where)
    if "://" not in place:
        absolute = Path(place).absolute()
        if absolute.is_relative_to(root.absolute() / what):
            return
        place = str(absolute)
    if place in known(root, what):
        return
    path = root / FILE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_new_line(path) + json.dumps({"what": what, "where": place}) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path}: cannot remember {place}: {error}", file=path) from None


def _new_line(path: Path) -> str:
    """What ends a line that a crash or a full disk cut short."""
    return "" if path.read_bytes()[-1:] in (b"", b"\n") else "\n"


def known(root: Path, what: What) -> list[str]:
    """The places of one sort, in the order in which they were first used."""
    path = root / FILE
    if not path.is_file():
        return []
    found: dict[str, None] = {}
    for line in path.read_text("utf-8", "surrogateescape").splitlines():
        try:
            entry = json.loads(line)
            if entry["what"] == what:
                found[str(entry["where"])] = None
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line that a crash cut short; its place was not used
    return list(found)
