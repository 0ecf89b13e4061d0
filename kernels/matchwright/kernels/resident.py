"""Segments that stay on the device: uploaded once, kept by identity within a budget."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_device import DeviceSegment, KernelDevice
from matchwright.kernels.types import Segment

ROW_EXTRA_BYTES = 4 + 8
"""Beside its vector, a resident row takes a norm (int32) and a key (uint64)."""


def resident_bytes(segment: Segment) -> int:
    """Device memory that a segment takes, in bytes."""
    d = int(segment.x_nd.shape[1])
    return segment.n * (d + -d % limit("ALIGN") + ROW_EXTRA_BYTES)


class Resident:
    """A cache of uploaded segments, the longest unused leaving first.

    A segment is known by the identity of its arrays, which never change; when the host lets go of
    them, the device's copy goes too.

    Args:
        device: where the copies live.
        budget_bytes: most device memory for them.
    """

    def __init__(self, device: KernelDevice, budget_bytes: int) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[int, int], tuple[DeviceSegment, list[Any]]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Device memory in use, in bytes."""
        with self._lock:
            return sum(copy.nbytes for copy, _ in list(self._kept.values()))

    def fits(self, segments: Sequence[Segment]) -> bool:
        """Whether all of them can be resident at once."""
        return sum(map(resident_bytes, segments)) <= self.budget_bytes

    def get(self, segments: Sequence[Segment]) -> list[DeviceSegment]:
        """Their copies on the device, uploaded where they are missing; they must fit."""
        with self._lock:
            wanted = {_identity(segment) for segment in segments}
            missing = [segment for segment in segments if _identity(segment) not in self._kept]
            self._make_room(sum(map(resident_bytes, missing)), wanted)
            return [self._one(segment) for segment in segments]

    def _one(self, segment: Segment) -> DeviceSegment:
        identity = _identity(segment)
        if identity not in self._kept:
            copy = self.device.segment(segment.x_nd, segment.key_n)
            watchers = [
                weakref.finalize(array, self._forget, identity)
                for array in (segment.x_nd, segment.key_n)
            ]
            for watcher in watchers:
                watcher.atexit = False
            self._kept[identity] = copy, watchers
        self._kept.move_to_end(identity)
        return self._kept[identity][0]

    def _make_room(self, nbytes: int, wanted: set[tuple[int, int]]) -> None:
        for identity in list(self._kept):
            if self.nbytes + nbytes <= self.budget_bytes:
                return
            if identity not in wanted:
                self._forget(identity)

    def _forget(self, identity: tuple[int, int]) -> None:
        with self._lock:
            _, watchers = self._kept.pop(identity, (None, []))
            for watcher in watchers:
                watcher.detach()


def _identity(segment: Segment) -> tuple[int, int]:
    return id(segment.x_nd), id(segment.key_n)
