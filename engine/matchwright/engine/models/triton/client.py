"""The client of a Triton server.

A thread of its own runs an event loop, on which one long-lived channel lives; callers are any
threads and any other event loops, and see neither. Every call has a deadline, an explicit version
and a breaker; it ends by its deadline with arrays that were checked, or with one of ``ModelLate``,
``ModelUnavailable`` and ``ModelWrong``.

Not for use across ``fork``: neither threads nor gRPC's channels survive it. Make one in each
process.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from matchwright.engine.errors import (
    FailedPrecondition,
    MatchwrightError,
    ModelWrong,
)
from matchwright.engine.models.breaker import Breaker
from matchwright.engine.models.refs import ModelRef, TritonConfig
from matchwright.engine.models.triton.calls import Call
from matchwright.engine.models.triton.control import Control
from matchwright.engine.models.triton.failures import Failure, breaker_open, late, unreachable
from matchwright.engine.models.triton.link import Link
from matchwright.engine.models.triton.regions import Region
from matchwright.engine.models.triton.sharing import Sharing
from matchwright.engine.models.triton.tensors import (
    Array,
    Declared,
    ready_to_send,
    received,
    wrong,
)
from matchwright.engine.models.watch import QUIET, Outcome, Watch

Answer = TypeVar("Answer")

_PROBE_S = 1.0
_SHORT_S = 0.5
_CLOSE_S = 5.0
_BACKOFF_S = 0.02
_DECLARED_MAX = 256


class Triton(Control):
    """Asks models, from any thread and any event loop. Use it as a context manager.

    Args:
        config: where the server is, and how patient to be.
        watch: is told of every call, for metrics and traces.
    """

    def __init__(self, config: TritonConfig, watch: Watch = QUIET) -> None:
        self.config = config
        self._watch = watch
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._breakers: dict[ModelRef, Breaker] = {}
        self._healing: set[ModelRef] = set()
        self._declared: dict[tuple[ModelRef, int], dict[str, Declared]] = {}
        self._sharing = Sharing(config, watch, self._register)
        self._aside: list[Region] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="triton-client", daemon=True)
        self._thread.start()
        connecting = asyncio.run_coroutine_threadsafe(self._connect(), self._loop)
        self._link: Link = connecting.result()
        atexit.register(self.close)

    # ── calls of models ───────────────────────────────────────────────────────────────────────

    async def infer(
        self,
        ref: ModelRef,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        deadline: float | None = None,
    ) -> dict[str, Array]:
        """Ask a model; awaitable from any event loop. Cancelling it cancels the call.

        Args:
            ref: the model and its version.
            inputs: name -> (N, ...) array; the same N for all. Form big batches before.
            outputs: names of the outputs that are wanted.
            deadline: moment of ``time.monotonic()``; ``timeout_ms`` from now when None.

        Returns:
            name -> (N, ...) array, read-only, finite, of the type that the server declares.

        Raises:
            InvalidArgument: inputs that do not fit together, or are too large for one message.
            ModelLate: no answer by the deadline.
            ModelUnavailable: no server, no such version, or the breaker is open.
            ModelWrong: an answer that cannot be used, or an error of the model's own.
        """
        call = self._begin(ref, inputs, outputs, deadline)
        future = self._submit(ref, self._ask(call))
        try:
            async with asyncio.timeout(call.left_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise late(ref, "no answer within the time that was left", sign="late").error from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise self._gone(ref) from None  # the call was cancelled, not its caller
            raise

    def infer_blocking(
        self,
        ref: ModelRef,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        deadline: float | None = None,
    ) -> dict[str, Array]:
        """``infer`` for threads without an event loop."""
        call = self._begin(ref, inputs, outputs, deadline)
        future = self._submit(ref, self._ask(call))
        try:
            return future.result(max(0.0, call.left_s))
        except TimeoutError:
            future.cancel()
            raise late(ref, "no answer within the time that was left", sign="late").error from None
        except concurrent.futures.CancelledError:
            raise self._gone(ref) from None

    def breaker(self, ref: ModelRef) -> Breaker:
        """The breaker of one version of a model: a bad version does not shut out a good one."""
        with self._lock:
            found = self._breakers.get(ref)
            if found is None:
                found = self._breakers[ref] = Breaker(
                    failures=self.config.breaker_failures,
                    open_s=self.config.breaker_open_ms / 1_000,
                    patience_s=self.config.breaker_patience_ms / 1_000,
                    changed=lambda state: self._watch.breaker(ref.name, ref.version, state),
                )
            return found

    def _begin(
        self,
        ref: ModelRef,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        deadline: float | None,
    ) -> Call:
        """Everything that is refused is refused here, at once, in the caller's thread."""
        self._check_alive(ref)
        started = time.monotonic()
        if deadline is None:
            deadline = started + self.config.timeout_ms / 1_000
        arrays, rows = ready_to_send(str(ref), inputs, outputs, self.config.message_bytes_max)
        call = Call(
            ref=ref,
            inputs=arrays,
            outputs=tuple(outputs),
            rows=rows,
            deadline=deadline,
            started=started,
            mark=self._watch.begin(ref.name, ref.version),
        )
        if call.left_s <= 0:
            call.end("LATE")
            raise late(ref, "there was no time left to ask it", sign="answered").error
        call.permit = self.breaker(ref).admit()
        if call.permit is None:
            call.end("BREAKER_OPEN")
            raise breaker_open(ref, self.config.url)
        return call

    async def _ask(self, call: Call) -> dict[str, Array]:
        """The call with its retries; tells the breaker and the watch how it ended."""
        breaker, permit = self.breaker(call.ref), call.permit
        assert permit is not None
        outcome: Outcome = "CANCELLED"
        try:
            answer = await self._attempts(call)
            breaker.answered(permit)
            outcome = "OK"
            return answer
        except Failure as failure:
            outcome = failure.outcome
            if failure.sign == "answered":
                breaker.answered(permit)
            else:
                breaker.failed(permit, late=failure.sign == "late")
            raise failure.error from None
        except ModelWrong:
            outcome = "WRONG_OUTPUT"
            breaker.answered(permit)
            raise
        except asyncio.CancelledError:
            if call.left_s <= 0:  # the caller's own clock was quicker than ours
                outcome = "LATE"
                breaker.failed(permit, late=True)
            raise
        finally:
            if outcome == "CANCELLED":
                breaker.abandoned(permit)
            if breaker.state == "open":
                self._heal_in_background(call.ref, breaker)
            call.end(outcome)

    async def _attempts(self, call: Call) -> dict[str, Array]:
        without_region = 0
        while True:
            call.attempts += 1
            try:
                return await self._attempt(call, share=without_region < 2)
            except Failure as failure:
                if failure.sign == "down" or failure.no_region:
                    self._sharing.lost()
                if failure.no_region and without_region < 2:
                    without_region += 1  # registered anew; the second time it goes over the wire
                    continue
                pause = _BACKOFF_S * 2 ** (call.attempts - 1) * random.uniform(0.5, 1.5)
                spent = call.attempts > self.config.retries + without_region
                if not failure.again or spent or call.left_s <= pause:
                    raise
                await asyncio.sleep(pause)
                if self.breaker(call.ref).state == "open":
                    raise

    async def _attempt(self, call: Call, *, share: bool) -> dict[str, Array]:
        """The call, sent once."""
        wanted = await self._declaration(call)
        sizes = {name: declared.nbytes(call.rows) for name, declared in wanted.items()}
        region = await self._sharing.filled(call.inputs, sizes) if share else None
        call.way = "wire" if region is None else "shared_memory"
        answered = False
        try:
            response = await self._link.infer(call, region)
            answered = True
            shared = region.find if region is not None else _nowhere
            told, call.received = received(response, wanted, call.rows, str(call.ref), shared)
            return told
        except Failure as failure:
            answered = failure.sign == "answered"
            raise
        except ModelWrong:
            self._declared.clear()  # perhaps it was loaded anew, with other shapes
            raise
        finally:
            if region is not None and answered:
                self._sharing.regions.give(region)
            elif region is not None:
                self._set_aside(region)

    async def _declaration(self, call: Call) -> dict[str, Declared]:
        """The wanted outputs as the server declares them; asked once for each connection."""
        key = (call.ref, self._sharing.connection)
        if key not in self._declared:
            found = await self._link.outputs_of(call)
            if len(self._declared) >= _DECLARED_MAX:
                self._declared.clear()
            self._declared[key] = found
        declared = self._declared[key]
        missing = [name for name in call.outputs if name not in declared]
        if missing:
            has = ", ".join(sorted(declared))
            raise wrong(str(call.ref), f"it has no output {', '.join(missing)}; it has {has}")
        return {name: declared[name] for name in call.outputs}

    # ── getting well again ────────────────────────────────────────────────────────────────────

    def _heal_in_background(self, ref: ModelRef, breaker: Breaker) -> None:
        if ref not in self._healing and not self._closed:
            self._healing.add(ref)
            self._in_background(self._heal(ref, breaker))

    async def _heal(self, ref: ModelRef, breaker: Breaker) -> None:
        """Ask the server, until it answers, whether the model is there; no caller waits for it."""
        try:
            while (wait := breaker.probe_in_s()) is not None:
                await asyncio.sleep(wait)
                if breaker.probe():
                    breaker.probed(there=await self._is_there(ref))
        finally:
            self._healing.discard(ref)

    async def _is_there(self, ref: ModelRef) -> bool:
        try:
            return await self._link.is_ready(ref, min(_PROBE_S, self.config.breaker_open_ms / 1e3))
        except Failure as failure:
            silent_s = time.monotonic() - self._link.heard
            if failure.sign == "late" and silent_s > self.config.silence_ms / 1_000:
                self._replace_link()
            return False

    def _replace_link(self) -> None:
        """A new connection: the old one's other end may have gone without a word."""
        old, self._link = self._link, Link(self.config)
        self._sharing.lost()
        self._in_background(old.retire())

    def _set_aside(self, region: Region) -> None:
        """Keep a region from being used while the server may still write into it."""
        self._aside.append(region)
        if len(self._aside) == 1:
            self._in_background(self._let_go())

    async def _let_go(self) -> None:
        while self._aside:
            for region in tuple(self._aside):
                with contextlib.suppress(Failure):  # it is in use, or the server does not answer
                    await self._link.unregister(region, _SHORT_S)
                    self._sharing.regions.drop(region)
                    self._aside.remove(region)
            if self._aside:
                await asyncio.sleep(_SHORT_S)

    async def _register(self, region: Region) -> None:
        await self._link.register(region, _SHORT_S)

    # ── its own thread ────────────────────────────────────────────────────────────────────────

    def _control(
        self,
        ref: ModelRef,
        call: Callable[[Any, float], Awaitable[Answer]],
        deadline: float | None,
    ) -> Answer:
        """One message that is no inference: no retry, no breaker."""
        self._check_alive(ref)
        left = (deadline or time.monotonic() + self.config.timeout_ms / 1_000) - time.monotonic()
        if left <= 0:
            raise late(ref, "there was no time left to ask", sign="answered").error
        future = self._submit(ref, self._link.ask(ref, lambda client: call(client, left)))
        try:
            return future.result(left + _SHORT_S)
        except Failure as failure:
            raise failure.error from None
        except TimeoutError:
            future.cancel()
            raise late(ref, "the server did not answer", sign="late").error from None
        except concurrent.futures.CancelledError:
            raise self._gone(ref) from None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _connect(self) -> Link:
        return Link(self.config)

    def _submit(
        self, ref: ModelRef, work: Coroutine[Any, Any, Answer]
    ) -> concurrent.futures.Future[Answer]:
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise self._gone(ref)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check_alive(self, ref: ModelRef) -> None:
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                f"this client was made in process {self._pid} and this is its child; neither "
                "threads nor gRPC survive a fork: make one in each process"
            )
        if self._closed:
            raise self._gone(ref)

    def _gone(self, ref: ModelRef) -> MatchwrightError:
        return unreachable(ref, self.config.url, "the client is closed").error

    def close(self) -> None:
        """End all calls, give back the shared memory, close the connection. May be called twice."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
        atexit.unregister(self.close)
        done = asyncio.run_coroutine_threadsafe(self._shut(), self._loop)
        with contextlib.suppress(TimeoutError):
            done.result(_CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        known = [region for region in self._sharing.regions.everything if region.known]
        with contextlib.suppress(Failure):  # it is gone, and its knowledge with it
            for region in known:
                await self._link.unregister(region, _SHORT_S)
        for region in self._sharing.regions.everything:
            self._sharing.regions.drop(region)
        await self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _nowhere(name: str, nbytes: int) -> bytes | None:
    return None
