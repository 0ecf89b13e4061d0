"""What stays on the device: segments, uploaded once, kept by identity within a budget.

A segment is uploaded the first time that it is asked for, or beforehand by ``load``, while other
work goes on: through two halves of pinned memory, on a queue aside::

    host     fill half 0   fill half 1   wait for half 0, fill it   ...
    aside                  copy half 0   copy half 1                ...      norms   mark
    main     whatever runs now                                               hold(mark), scan

Epochs share segments, so they share these copies. When the host lets go of a segment's arrays,
because no epoch holds it any more, its copy goes too.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.compile import limit
from matchwright.kernels.device import (
    Array,
    DeviceColumns,
    DeviceError,
    DeviceSegment,
    KernelDevice,
    Mark,
)
from matchwright.kernels.rule_program import Program, Slot
from matchwright.kernels.types import Bool, Corpus, Segment

ROW_EXTRA_BYTES = 4 + 8
"""Beside its vector, a resident row takes a norm (int32) and a key (uint64)."""
STAGING_BYTES = 32 << 20
"""Pinned host memory that uploads ahead go through, in two halves; a quarter serves others."""

_GIVEN_UP = "the device was given up while rows were on their way to it"

Identity = tuple[int, int]


def resident_bytes(segment: Segment) -> int:
    """Device memory that a segment takes, in bytes, its rule columns left out."""
    d = int(segment.x_nd.shape[1])
    return segment.n * (d + -d % limit("ALIGN") + ROW_EXTRA_BYTES)


def column_bytes(segment: Segment, slot: Slot) -> int:
    """Device memory that a rule column takes, in bytes."""
    return sum(array.nbytes for array in _arrays_of(segment, slot))


def _arrays_of(segment: Segment, slot: Slot) -> tuple[NDArray[Any], ...]:
    kind, name = slot
    if kind == "scalar":
        return (segment.scalars[name],)
    column = segment.sets[name]
    return column.start_n, column.value, column.known_n.view(np.uint8)


class Uploader:
    """Copies host arrays to the device on a queue aside, through two halves of staging memory.

    Args:
        device: where to.
        staging_bytes: of both halves together.
    """

    def __init__(self, device: KernelDevice, staging_bytes: int = STAGING_BYTES) -> None:
        self.device = device
        self._half_bytes = max(1, staging_bytes // 2)
        self._halves: list[NDArray[np.uint8]] = []
        self._marks: list[Mark | None] = [None, None]
        self._turn = 0
        self._lock = threading.Lock()

    def run(self, work: Callable[[], Any]) -> tuple[Any, Mark]:
        """(what ``work`` gives, the mark that follows it); one at a time, aside."""
        with self._lock, self.device.aside():
            made = work()
            return made, self.device.mark()

    def send(self, host: NDArray[Any], width: int | None = None) -> Array:
        """A copy of a 1-d or 2-d array; rows are filled up with zeros to ``width`` entries.

        Only within ``run``.
        """
        shape = host.shape if width is None else (host.shape[0], width)
        target = self.device.empty(shape, host.dtype)
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * host.itemsize
        step = max(1, self._half_bytes // max(1, row_bytes))
        for begin in range(0, host.shape[0], step):
            rows = host[begin : begin + step]
            staged = self._half(len(rows) * row_bytes).view(host.dtype)
            staged = staged.reshape((len(rows), *shape[1:]))
            if width is not None:
                staged[:, host.shape[1] :] = 0
                staged[:, : host.shape[1]] = rows
            else:
                staged[...] = rows
            self.device.put(target[begin : begin + len(rows)], staged)
            self._marks[self._turn] = self.device.mark()
        return target

    def _half(self, nbytes: int) -> NDArray[np.uint8]:
        """The other half, once what was copied from it has arrived."""
        if not self._halves or self._halves[0].size < nbytes:
            for mark in self._marks:
                if mark is not None:
                    mark.synchronize()
            size = max(nbytes, self._half_bytes)
            self._halves = [self.device.staging(size) for _ in range(2)]
            self._marks = [None, None]
        self._turn = 1 - self._turn
        mark = self._marks[self._turn]
        if mark is not None:
            mark.synchronize()
        return self._halves[self._turn][:nbytes]


Work = Callable[[Uploader], None]
"""Fills a segment's place; what it meets is told by the place's future."""


@dataclass(slots=True, eq=False)
class _Column:
    """A resident rule column, and the host's array that it is a copy of."""

    arrays: tuple[Array, ...]
    mark: Mark
    host: weakref.ref[NDArray[Any]]


@dataclass(slots=True, eq=False)
class _Kept:
    """A resident segment, or one on its way."""

    copy: Future[tuple[DeviceSegment, Mark]]
    nbytes: int
    watchers: list[Any]
    columns: dict[Slot, _Column] = field(default_factory=dict)


class Loading:
    """Uploads that were asked for.

    Args:
        waiting: one for each segment.
    """

    def __init__(self, waiting: Sequence[Future[Any]] = ()) -> None:
        self._waiting = list(waiting)

    @property
    def done(self) -> bool:
        """Whether everything has arrived, or failed."""
        return all(one.done() and _arrived(one) for one in self._waiting)

    def wait(self) -> None:
        """Until everything has arrived.

        Raises:
            Exception: what an upload met.
        """
        for one in self._waiting:
            _, mark = _outcome(one)
            mark.synchronize()


LOADED = Loading()
"""Nothing was missing."""


def _arrived(one: Future[Any]) -> bool:
    return one.cancelled() or one.exception() is not None or bool(one.result()[1].done)


class Resident:
    """A cache of uploaded segments, the longest unused leaving first. Thread-safe.

    A segment is known by the identity of its arrays, which never change; when the host lets go of
    them, the device's copy goes too.

    Args:
        device: where the copies live.
        budget_bytes: most device memory for them.
        staging_bytes: of host memory that uploads go through.
    """

    def __init__(
        self, device: KernelDevice, budget_bytes: int, staging_bytes: int = STAGING_BYTES
    ) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self.uploads = 0
        # Whoever needs something at once does not wait for what is loaded ahead.
        self._ahead = Uploader(device, staging_bytes)
        self._at_hand = Uploader(device, staging_bytes // 4)
        self._kept: OrderedDict[Identity, _Kept] = OrderedDict()
        self._alive: dict[int, tuple[Array, Mark]] = {}
        # Finalizers take this lock, in any thread and at any moment, so nobody who holds it waits
        # for the uploader.
        self._lock = threading.RLock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def nbytes(self) -> int:
        """Device memory in use or on its way, in bytes."""
        with self._lock:
            kept = sum(one.nbytes for one in list(self._kept.values()))
            return kept + sum(int(bits.nbytes) for bits, _ in list(self._alive.values()))

    @property
    def segments(self) -> int:
        """How many segments are resident or on their way."""
        with self._lock:
            return len(self._kept)

    def fits(self, segments: Sequence[Segment]) -> bool:
        """Whether all of them can be resident at once."""
        return sum(map(resident_bytes, segments)) <= self.budget_bytes

    def missing_bytes(self, segments: Sequence[Segment]) -> int:
        """What would have to be uploaded for them, in bytes."""
        with self._lock:
            missing = {_identity(one): one for one in segments if _identity(one) not in self._kept}
            return sum(map(resident_bytes, missing.values()))

    def get(self, segments: Sequence[Segment]) -> list[DeviceSegment]:
        """Their copies on the device, uploaded where they are missing; they must fit.

        The main queue waits for those that are still on their way.
        """
        reserved = self._reserve(segments)
        for _, work in reserved:
            if work is not None:
                work(self._at_hand)  # what it meets is told by the future
        copies = []
        for one, _ in reserved:
            copy, mark = _outcome(one.copy)
            self.device.hold(mark)
            copies.append(copy)
        return copies

    def load(self, segments: Sequence[Segment]) -> Loading:
        """Start uploading those that are missing, aside; they must fit."""
        reserved = self._reserve(segments)
        for one, work in reserved:
            if work is not None:
                try:
                    self._threads().submit(work, self._ahead)
                except RuntimeError:  # closed meanwhile
                    one.copy.cancel()
        waiting = [one.copy for one, _ in reserved]
        return LOADED if all(map(_is_there, waiting)) else Loading(waiting)

    def columns(self, segments: Sequence[Segment], program: Program) -> list[DeviceColumns] | None:
        """The columns that a program reads; None where they do not fit beside the rows."""
        copies = self.get(segments)
        slots = {
            at: [slot for slot in dict.fromkeys(program.slots) if _has(segment, slot)]
            for at, segment in enumerate(segments)
        }
        with self._lock:
            wanted = {_identity(segment) for segment in segments}
            missing = sum(
                column_bytes(segment, slot)
                for at, segment in enumerate(segments)
                for slot in slots[at]
                if _current(self._kept.get(_identity(segment)), segment, slot) is None
            )
            self._make_room(missing, wanted)
            if self.nbytes + missing > self.budget_bytes:
                return None
        return [
            self._columns(segment, copy, slots[at])
            for at, (segment, copy) in enumerate(zip(segments, copies, strict=True))
        ]

    def alive(self, alive: Bool | None) -> Array | None:
        """uint32 bits of a part's living rows; None when all live."""
        if alive is None:
            return None
        found = self._alive.get(id(alive))
        if found is None:
            packed = np.packbits(alive, bitorder="little")
            words = np.pad(packed, (0, -packed.size % 4)).view("<u4")
            found = self._at_hand.run(lambda: self._at_hand.send(words))
            watcher = weakref.finalize(alive, self._alive.pop, id(alive), None)
            watcher.atexit = False
            self._alive[id(alive)] = found
        bits, mark = found
        self.device.hold(mark)
        return bits

    def forget(self, segments: Sequence[Segment]) -> None:
        """Let go of some segments now; else that happens when the host has let go of them."""
        for segment in segments:
            self._forget(_identity(segment))

    def close(self) -> None:
        """Let go of everything, for good: whoever asks from now on is told so at once."""
        with self._lock:
            self._closed = True
            for identity, kept in list(self._kept.items()):
                kept.copy.cancel()
                self._forget(identity)
            self._alive.clear()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    # ── One segment ───────────────────────────────────────────────────────────────────────────

    def _reserve(self, segments: Sequence[Segment]) -> list[tuple[_Kept, Work | None]]:
        """Each segment's place, and for those that are missing the work that fills it."""
        with self._lock:
            if self._closed:
                raise DeviceError(_GIVEN_UP)
            wanted = {_identity(segment) for segment in segments}
            self._make_room(self.missing_bytes(segments), wanted)
            return [self._place(segment) for segment in segments]

    def _place(self, segment: Segment) -> tuple[_Kept, Work | None]:
        identity = _identity(segment)
        if identity in self._kept:
            self._kept.move_to_end(identity)
            return self._kept[identity], None
        watchers = [
            weakref.finalize(array, self._forget, identity)
            for array in (segment.x_nd, segment.key_n)
        ]
        for watcher in watchers:
            watcher.atexit = False
        kept = self._kept[identity] = _Kept(Future(), resident_bytes(segment), watchers)

        def work(uploader: Uploader) -> None:
            if not kept.copy.set_running_or_notify_cancel():
                return
            try:
                kept.copy.set_result(uploader.run(partial(self._send, uploader, segment)))
            except BaseException as error:
                self._forget(identity)
                kept.copy.set_exception(error)

        return kept, work

    def _send(self, uploader: Uploader, segment: Segment) -> DeviceSegment:
        d = int(segment.x_nd.shape[1])
        x = uploader.send(segment.x_nd, d + -d % limit("ALIGN"))
        keys = uploader.send(segment.key_n)
        self.uploads += 1
        return DeviceSegment(x, self.device.norms(x), keys)

    def _columns(
        self, segment: Segment, copy: DeviceSegment, slots: Sequence[Slot]
    ) -> DeviceColumns:
        kept = self._kept.get(_identity(segment))
        made = DeviceColumns(copy.key_n)
        for slot in slots:
            found = _current(kept, segment, slot)
            if found is None:
                arrays, mark = self._at_hand.run(partial(self._send_column, segment, slot))
                found = _Column(arrays, mark, weakref.ref(_host(segment, slot)))
                if kept is not None:
                    with self._lock:
                        before = kept.columns.get(slot)
                        kept.nbytes += column_bytes(segment, slot) - _nbytes(before)
                        kept.columns[slot] = found
            self.device.hold(found.mark)
            if slot[0] == "scalar":
                made.scalars[slot[1]] = found.arrays[0]
            else:
                start, value, known = found.arrays
                made.sets[slot[1]] = start, value, known
        return made

    def _send_column(self, segment: Segment, slot: Slot) -> tuple[Array, ...]:
        return tuple(self._at_hand.send(array) for array in _arrays_of(segment, slot))

    def _make_room(self, nbytes: int, wanted: set[Identity]) -> None:
        for identity in list(self._kept):
            if self.nbytes + nbytes <= self.budget_bytes:
                return
            if identity not in wanted:
                self._forget(identity)

    def _forget(self, identity: Identity) -> None:
        with self._lock:
            kept = self._kept.pop(identity, None)
            for watcher in () if kept is None else kept.watchers:
                watcher.detach()

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise DeviceError(_GIVEN_UP)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "matchwright-upload")
            return self._pool


def corpus_segments(corpora: Sequence[Corpus]) -> list[Segment]:
    """The segments of some corpora, in order."""
    return [segment for corpus in corpora for segment, _ in corpus.parts]


def _outcome(one: Future[tuple[DeviceSegment, Mark]]) -> tuple[DeviceSegment, Mark]:
    try:
        return one.result()
    except CancelledError:
        raise DeviceError(_GIVEN_UP) from None


def _is_there(one: Future[Any]) -> bool:
    if not one.done() or one.cancelled() or one.exception() is not None:
        return False
    return bool(one.result()[1].done)


def _host(segment: Segment, slot: Slot) -> NDArray[Any]:
    """The array by whose identity a column is known."""
    kind, name = slot
    return segment.scalars[name] if kind == "scalar" else segment.sets[name].start_n


def _current(kept: _Kept | None, segment: Segment, slot: Slot) -> _Column | None:
    """A resident column, if it is a copy of this very segment's."""
    found = None if kept is None else kept.columns.get(slot)
    return found if found is not None and found.host() is _host(segment, slot) else None


def _nbytes(column: _Column | None) -> int:
    return 0 if column is None else sum(int(array.nbytes) for array in column.arrays)


def _has(segment: Segment, slot: Slot) -> bool:
    kind, name = slot
    return name in segment.scalars if kind == "scalar" else name in segment.sets


def _identity(segment: Segment) -> Identity:
    return id(segment.x_nd), id(segment.key_n)
