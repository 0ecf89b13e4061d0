"""Memory that is shared with a Triton server on this host: regions, kept and used again.

A region holds the inputs of one call and leaves room for its outputs. It goes back to the pool
when the server has answered. When a call ended otherwise (late, cancelled), the server may still
write into it; such a region is set aside until the server has let go of it.

All of this is called from one thread.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from matchwright.engine.models.triton.tensors import Array

SMALLEST = 64 << 10
ALIGNMENT = 64


@dataclass(eq=False)
class Region:
    """Shared memory, and whether the server knows it.

    Attributes:
        name: under which it is registered; unlike any other process'.
        memory: the memory itself.
        known: the connection's number on which it was registered; 0 when it was not.
        placed: name -> (offset, bytes) of tensors.
    """

    name: str
    memory: SharedMemory
    known: int = 0
    placed: dict[str, tuple[int, int]] = field(default_factory=dict)
    _end: int = 0

    @property
    def content(self) -> memoryview:
        """The memory as bytes."""
        assert self.memory.buf is not None, "used after it was dropped"
        return self.memory.buf

    @property
    def size(self) -> int:
        """Bytes that were asked for; the system may have given more."""
        return self.memory.size

    @property
    def key(self) -> str:
        """The name of the memory for ``shm_open``."""
        return f"/{self.memory.name.lstrip('/')}"

    def clear(self) -> None:
        """Forget what was placed."""
        self.placed.clear()
        self._end = 0

    def reserve(self, name: str, nbytes: int) -> tuple[int, int]:
        """(offset, bytes) of room for a tensor."""
        self.placed[name] = (self._end, nbytes)
        self._end += padded(nbytes)
        return self.placed[name]

    def blank(self, name: str, nbytes: int) -> None:
        """Room for an answer, filled with NaN: what the server does not write is no old answer."""
        offset, _ = self.reserve(name, nbytes)
        self.content[offset : offset + nbytes] = b"\xff" * nbytes

    def write(self, name: str, array: Array) -> tuple[int, int]:
        """Copy a contiguous array in; (offset, bytes)."""
        offset, nbytes = self.reserve(name, array.nbytes)
        self.content[offset : offset + nbytes] = array.reshape(-1).view(np.uint8).data
        return offset, nbytes

    def find(self, output: str, nbytes: int) -> bytes | None:
        """A copy of the first bytes of an output's room; None when it was given no room."""
        offset, room = self.placed.get(f"out:{output}", (0, -1))
        if room < 0:
            return None
        return self.content[offset : offset + min(nbytes, room)].tobytes()


class Regions:
    """Regions of powers of two, at most ``bytes_max`` of them in all."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._idle: dict[int, list[Region]] = {}
        self._all: set[Region] = set()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def everything(self) -> tuple[Region, ...]:
        """Idle, in use and set aside."""
        return tuple(self._all)

    def take(self, nbytes: int) -> Region | None:
        """An empty region with room for ``nbytes``; None when that is more than there may be.

        Raises:
            OSError: the system has no memory to share.
        """
        size = max(SMALLEST, 1 << (nbytes - 1).bit_length())
        idle = self._idle.get(size)
        if idle:
            region = idle.pop()
            region.clear()
            return region
        if self._bytes + size > self._bytes_max:
            return None
        name = f"matchwright-{os.getpid()}-{secrets.token_hex(8)}"
        region = Region(name, SharedMemory(name, create=True, size=size))
        self._bytes += size
        self._all.add(region)
        return region

    def give(self, region: Region) -> None:
        """Back from a call that was answered."""
        self._idle.setdefault(region.size, []).append(region)

    def drop(self, region: Region) -> None:
        """Unlink a region that the server no longer has, or never had."""
        if region in self._all:
            self._all.remove(region)
            self._bytes -= region.size
            region.memory.close()
            region.memory.unlink()


def padded(nbytes: int) -> int:
    """``nbytes`` rounded up, so that each tensor begins aligned."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
