"""Connections to one SQLite file, its transactions, and what SQLite's errors mean for a store."""

from __future__ import annotations

import os
import resource
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from matchwright.engine.errors import (
    EpochGone,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreReadOnly,
)
from matchwright.engine.store import files

PAGE_BYTES = 8192
_BUSY_MS = 10_000
_LOG_BYTES = 64 << 20
_CACHE_KIB = 32 << 10


def _close_all(connections: list[sqlite3.Connection]) -> None:
    while connections:
        connections.pop().close()


class Connections:
    """Connections to one catalog file: lent to a thread for a transaction, then kept for the next.

    Args:
        path: the file.
        write: False makes every connection refuse to change anything.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        self.token = object()
        """Stands for this file and what it holds, wherever its numbers are remembered."""
        self._write = write
        self._free: list[sqlite3.Connection] = []
        self._lock = threading.Condition()
        self._closed = False
        self.doubtful = False
        """A commit failed on its way to the disk. The log may hold all of it, so a crash now could
        bring it back; the next commit that succeeds writes over it."""
        self._file: tuple[int, int] | None = None
        weakref.finalize(self, _close_all, self._free)

    @contextmanager
    def lend(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile.

        Raises:
            EpochGone: the file was replaced, and every connection to it stays in use.
        """
        connection = self._take()
        try:
            yield connection
        finally:
            with self._lock:
                kept = not self._closed
                if kept:
                    self._free.append(connection)
                    self._lock.notify()
            if not kept:
                connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._free:
                return self._free.pop()
        try:
            return self.connect()
        except EpochGone:
            # What was opened before the file was replaced still reads it.
            with self._lock:
                self._lock.wait_for(lambda: self._free or self._closed, _BUSY_MS / 1000)
                if self._free:
                    return self._free.pop()
            raise

    def connect(self) -> sqlite3.Connection:
        """A new connection; its owner closes it.

        Raises:
            EpochGone: a reader's file was replaced since the first connection.
        """
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed", file=self.path)
        if self._write:
            return self._connect()
        while True:
            before = self._identity()
            connection = self._connect()
            if before == self._identity():
                break
            connection.close()  # replaced just now: which of the two it is, nobody knows
        with self._lock:
            self._file = self._file or before
            if self._file == before:
                return connection
        connection.close()
        raise EpochGone(f"{self.path}: was replaced since it was opened; take a new snapshot")

    def replaced(self) -> bool:
        """Whether another file has taken the place of the one that connections read."""
        identity = self._identity()
        return identity is not None and self._file is not None and identity != self._file

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self.path.resolve().as_uri()}?mode={'rwc' if self._write else self._reader_mode()}"
        connection = sqlite3.connect(
            uri,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_MS / 1000,
        )
        try:
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if self._write:
                connection.execute("PRAGMA synchronous = FULL")
                # Copies of the file hold nothing that was deleted, whatever SQLite was built with.
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            else:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _reader_mode(self) -> str:
        # Reading a write-ahead log needs its shared-memory file; where the folder cannot be
        # written to and there is no log, the file is complete by itself.
        if os.access(self.path.parent, os.W_OK):
            return "rw"
        wal = self.path.with_name(self.path.name + "-wal")
        return "ro" if wal.exists() else "ro&immutable=1"

    def close(self) -> None:
        """Closes what is not lent; what is, when it comes back."""
        with self._lock:
            self._closed = True
            _close_all(self._free)
            self._lock.notify_all()

    def use_log(self) -> None:
        """Puts a writer's catalog in write-ahead mode; one that was pulled or restored is not."""
        with self.guard(), self.lend() as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turns SQLite's errors into the store's, naming the file."""
        try:
            yield
        except UnicodeDecodeError as error:  # out of a damaged schema, by way of a message
            raise self._damaged(error)
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            name = getattr(error, "sqlite_errorname", "") or type(error).__name__
            # Python itself finds texts that are no UTF-8, and gives that no code.
            undecodable = not code and isinstance(error, sqlite3.OperationalError)
            if undecodable or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(error)
            raise self._refused(code, f"{self.path}: {error} ({name})")

    def _refused(self, code: int, why: str) -> StoreError:
        """What the operating system did not let SQLite do."""
        if code == sqlite3.SQLITE_IOERR and not self._may_grow():
            code = sqlite3.SQLITE_FULL
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(f"{why}; {files.FULL_HINT}", file=self.path)
        if code == sqlite3.SQLITE_READONLY and self._write:
            return StoreReadOnly(f"{why}; {files.READ_ONLY_HINT}", file=self.path)
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            wal = f"{self.path.name}-wal"
            hint = f"reading beside a log ({wal}) needs write access to the folder"
            return StoreError(f"{why}; {hint}; mount it read-write, or restore it", file=self.path)
        return StoreError(why, file=self.path)

    def _may_grow(self) -> bool:
        """Whether there is room beside the catalog: SQLite does not pass on why a write failed."""
        with suppress(OSError):
            disk = os.statvfs(self.path.parent)
            limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            return disk.f_bavail * disk.f_frsize > PAGE_BYTES and limit == resource.RLIM_INFINITY
        return True

    def _damaged(self, error: Exception | str) -> StoreDamaged:
        return StoreDamaged(
            f"{self.path}: is damaged ({error}); restore it from a copy, or import again",
            file=self.path,
        )

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One write transaction; durable when the block ends without an error."""
        with self.guard(), self.lend() as connection:
            connection.execute("BEGIN IMMEDIATE")
            committing = False
            try:
                yield connection
                committing = True
                connection.execute("COMMIT")
                self.doubtful = False
            except BaseException:
                self.doubtful |= committing
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def look(self, connection: sqlite3.Connection | None = None) -> Iterator[sqlite3.Connection]:
        """One read transaction: everything read within belongs to one epoch."""
        if connection is None:
            with self.guard(), self.lend() as lent, self.look(lent):
                yield lent
            return
        with self.guard():
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
