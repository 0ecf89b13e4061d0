"""When tensors travel through shared memory, and when over the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from matchwright.engine.errors import DependencyUnavailable
from matchwright.engine.models.refs import TritonConfig
from matchwright.engine.models.triton.failures import Failure
from matchwright.engine.models.triton.regions import Region, Regions, padded
from matchwright.engine.models.triton.tensors import Array
from matchwright.engine.models.watch import Watch


class Sharing:
    """Regions that the server knows. Everything here happens in the client's own thread.

    Args:
        config: whether to try, from which size on, and how much at most.
        watch: is told when the way of the tensors changes.
        register: makes a region known to the server.
    """

    def __init__(
        self,
        config: TritonConfig,
        watch: Watch,
        register: Callable[[Region], Awaitable[None]],
    ) -> None:
        self._config = config
        self._watch = watch
        self._register = register
        self._possible = config.shared_memory != "off" and config.on_this_host
        self._refused = False
        self._told = ""
        self.connection = 1
        self.regions = Regions(config.shared_memory_bytes_max)

    def lost(self) -> None:
        """The connection broke. The server may be another one, which knows no region of ours."""
        self.connection += 1
        self._refused = False

    async def filled(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, int | None]
    ) -> Region | None:
        """A registered region with the inputs in it and room for the outputs of a known size.

        Args:
            inputs: name -> contiguous array; placed as ``in:name``.
            outputs: name -> bytes, None where that is not known; placed as ``out:name``.

        Returns:
            None where the wire is to be taken: too small, too large, off, or not to be had.

        Raises:
            Failure: the server did not answer, or shared memory is "on" and cannot be had.
        """
        sent = sum(array.nbytes for array in inputs.values())
        if not self._possible or self._refused or sent < self._config.shared_memory_bytes_min:
            return None
        room = {name: nbytes for name, nbytes in outputs.items() if nbytes}
        total = sum(padded(array.nbytes) for array in inputs.values())
        total += sum(padded(nbytes) for nbytes in room.values())
        region = await self._known(total)
        if region is not None:
            for name, array in inputs.items():
                region.write(f"in:{name}", array)
            for name, nbytes in room.items():
                region.blank(f"out:{name}", nbytes)
        return region

    async def _known(self, nbytes: int) -> Region | None:
        """A region that the server knows."""
        try:
            region = self.regions.take(nbytes)
        except OSError as error:
            self._refuse(f"this system shares no memory: {error}")
            return None
        if region is None or region.known == self.connection:
            return region
        connection = self.connection
        try:
            await self._register(region)
        except Failure as failure:
            if failure.sign != "answered":
                self.regions.give(region)
                raise
            if not failure.known_already:
                self.regions.drop(region)
                self._refuse(f"the server cannot open our memory: {failure.error}")
                return None
        except BaseException:
            self.regions.give(region)  # cancelled: nothing was pointed at it yet
            raise
        region.known = connection
        self._tell("shared_memory", "the server is on this host and has opened our memory")
        return region

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._tell("wire", why)
        if self._config.shared_memory == "on":
            message = f"shared memory is on, but {why}; choose auto, or share /dev/shm with it"
            raise Failure(DependencyUnavailable(message), "UNREACHABLE", "answered")

    def _tell(self, way: str, why: str) -> None:
        if self._told != way:
            self._told = way
            self._watch.way("wire" if way == "wire" else "shared_memory", why)
