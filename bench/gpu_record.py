"""The record of ``gpu_check.py``: what was measured so far, kept whatever happens next."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_problem import Budget

FORMAT = 2
WRONG, SIGNALLED = 6, 128


class Stopped(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, so that what was started is ended, too."""


def listen() -> None:
    """Have SIGTERM raise ``Stopped``."""

    def stop(number: int, frame: object) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)


class Record:
    """What is written, as far as it has come: a machine that is taken away leaves that much.

    Args:
        out: where to.
        facts: of the machine, and what was asked for.
        budget: of time.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any], budget: Budget) -> None:
        self.out, self.budget, self.written = out, budget, True
        self.sections: dict[str, Any] = {}
        self.parts_s: dict[str, float] = {}
        self.told: dict[str, Any] = {
            "format": FORMAT,
            "id": "gpu_check",
            "held": False,
            **facts,
            "left_out": budget.left_out,
            "parts_s": self.parts_s,
            "sections": self.sections,
        }

    def do(self, name: str, work: Callable[[], Any]) -> None:
        """A part, cell by cell where it gives them one by one; how it broke, where it did."""
        with self.budget.part(self.parts_s, name):
            try:
                found = work()
                if isinstance(found, Iterator):
                    self.sections[name] = []
                    for cell in found:
                        self.add(name, cell)
                        self.write()
                else:
                    self.sections[name] = found
            except KeyboardInterrupt:
                self.add(name, {"interrupted": True, "exact": False})
                raise
            except Exception:
                self.broke(name)
        print(f"gpu-check: {name}: {self.parts_s[name]} s", file=sys.stderr)

    def add(self, name: str, found: Any) -> None:
        """One cell more, or all there is of a part."""
        if isinstance(self.sections.get(name), list):
            self.sections[name].append(found)
        else:
            self.sections[name] = found

    def broke(self, name: str) -> None:
        """A part that broke: the others are still of use."""
        self.add(name, broken())

    def write(self) -> None:
        """As a whole or not at all: a disk that is full leaves what was there."""
        self.told["held"] = held(self.sections)
        self.told["seconds"] = round(self.budget.seconds - self.budget.left, 1)
        beside = self.out.with_name(f"{self.out.name}.part")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(self.told, indent=2) + "\n", "utf-8")
            beside.replace(self.out)
        except OSError as error:
            self.written = False
            print(f"gpu-check: the record is not written: {error}", file=sys.stderr)
            with contextlib.suppress(OSError):
                beside.unlink()
        else:
            self.written = True

    def end(self) -> int:
        """Write it and print it; the exit code."""
        self.write()
        print(json.dumps(self.told, indent=2))
        return 0 if self.told["held"] and self.written else WRONG

    def interrupted(self, by: KeyboardInterrupt, left_out: list[str]) -> int:
        """As ``end``, when there was no time for some parts."""
        number = signal.SIGTERM if isinstance(by, Stopped) else signal.SIGINT
        self.budget.left_out.update(dict.fromkeys(left_out, f"{number.name} came first"))
        print(f"gpu-check: {number.name}; what was measured is kept", file=sys.stderr)
        self.end()
        return SIGNALLED + number


def broken() -> dict[str, Any]:
    """How something broke, from the exception at hand."""
    return {"broke": traceback.format_exc()[-4_000:], "exact": False}


def held(sections: Mapping[str, Any]) -> bool:
    """Whether tests passed, nothing broke, and every sampled answer was the reference's."""
    return bool(sections) and all(_well(section) for section in sections.values())


def _well(section: Any) -> bool:
    if isinstance(section, list):
        return all(map(_well, section))
    if "failed" in section and "passed" in section:
        return bool(section["failed"] == 0 and section["passed"] > 0 and "why" not in section)
    return section.get("clean") is not False and bool(section.get("exact", True))
