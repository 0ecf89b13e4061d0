"""What a backend tells about itself while it works: plain attributes for metrics and health."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Health:
    """Counters of a backend since its start. Read them as they are; they are only ever raised.

    Attributes:
        asked: what was asked for: "auto", "cpu", "gpu", ...
        chosen: one line: what was chosen, and why.
        device: what answers now, as in telemetry.
        on_device: a GPU answers.
        lost: why the GPU that was there no longer answers; None while it does, or never did.
        batches: calls that the device answered, wholly or in part.
        cpu_batches: calls that the CPU answered although there was a device, by reason.
        splits: times that a call was halved because the device's memory was short.
        errors: what went wrong on the device, by kind.
        listeners: called with this object after each change of ``device``, ``lost`` or
            ``errors``, on the thread that noticed it.
    """

    asked: str = ""
    chosen: str = ""
    device: str = ""
    on_device: bool = False
    lost: str | None = None
    batches: int = 0
    cpu_batches: Counter[str] = field(default_factory=Counter)
    splits: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    listeners: list[Callable[[Health], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def told(self) -> str:
        """``device``, and how often the CPU stood in for it, by reason."""
        with self._lock:
            by_cpu, batches = dict(self.cpu_batches), self.batches
        if not by_cpu:
            return self.device
        many = sum(by_cpu.values())
        why = ", ".join(f"{reason} {by_cpu[reason]:,}" for reason in sorted(by_cpu))
        return f"{self.device}; {many:,} of {many + batches:,} calls by the CPU: {why}"

    def answered(self) -> None:
        """The device has answered a call."""
        with self._lock:
            self.batches += 1

    def halved(self) -> None:
        """A call was halved."""
        with self._lock:
            self.splits += 1

    def by_cpu(self, reason: str) -> None:
        """The CPU has answered in the device's place."""
        with self._lock:
            self.cpu_batches[reason] += 1

    def failed(self, kind: str) -> None:
        """Something went wrong on the device."""
        with self._lock:
            self.errors[kind] += 1
        self._tell()

    def leave(self, device: str, why: str) -> None:
        """The device is not used after all."""
        with self._lock:
            self.device, self.on_device = device, False
            self.chosen = f"device: {device} ({self.asked}; {why})"
        self._tell()

    def lose(self, why: str, device: str) -> bool:
        """The device is gone for good, and ``device`` answers from now on; whether that is new."""
        with self._lock:
            new = self.lost is None
            if new:
                self.lost, self.device, self.on_device = why, device, False
        if new:
            self._tell()
        return new

    def _tell(self) -> None:
        for listener in list(self.listeners):
            listener(self)
