"""The gRPC server: it opens the stores, listens, and ends in order.

Messages are parsed in the handlers, not by gRPC, so that bytes that are no message are answered
with INVALID_ARGUMENT and details like everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from matchwright.engine.batcher import Batcher
from matchwright.engine.config import ModelsConfig, ServerConfig
from matchwright.engine.device import loaded_epochs, make_ready, open_ops
from matchwright.engine.errors import (
    DeadlineExceeded,
    DependencyUnavailable,
    InvalidArgument,
    MatchwrightError,
    NotFound,
    Overloaded,
    StoreError,
)
from matchwright.engine.models.opened import Models
from matchwright.engine.service.auth import Tokens
from matchwright.engine.service.conditions import Conditions
from matchwright.engine.service.housekeeping import Housekeeper
from matchwright.engine.service.marketplace import Marketplace
from matchwright.engine.service.match_service import Context, MatchService
from matchwright.engine.service.observe import Observer
from matchwright.engine.service.rerank import SecondPhase
from matchwright.engine.service.status import abort
from matchwright.engine.service.switching import Policies, trouble_of
from matchwright.engine.service.texts import Texts
from matchwright.engine.store import Store
from matchwright.v1 import match_service_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["MatchService"].full_name
METHODS = {
    "FindFreelancers": "find_freelancers",
    "FindJobs": "find_jobs",
    "BatchFind": "batch_find",
    "ScorePairs": "score_pairs",
    "Explain": "explain",
    "CountEligible": "count_eligible",
}
REQUEST_BYTES_MIN = 4_096
"""What a request counts at least: its call has a cost whatever its size."""
HEALTH_PREFIX = "/grpc.health.v1.Health/"

_log = logging.getLogger(__name__)

Handle = Callable[[Any, Context], Awaitable[Message]]


class Server:
    """One server, from ``start`` to ``stop``, in one event loop. Opens stores read-only."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._resources = contextlib.ExitStack()
        self._tokens = Tokens.load(config.tokens)
        self._batcher = Batcher(
            queue_pairs_max=config.queue_pairs_max,
            batch_pairs_max=config.batch_pairs_max,
            batch_items_max=config.limits.batch_items_max,
        )
        self._resources.callback(self._batcher.close)
        self._second = SecondPhase(self._batcher)
        self._texts = Texts((config.models or ModelsConfig()).timeout_ms / 1_000)
        self._resources.callback(self._texts.close)
        self._switching = asyncio.Lock()
        self._inflight = 0
        self._grpc: grpc.aio.Server | None = None
        self._health = health.HealthServicer()
        self._serving = False
        self._watching: asyncio.Task[None] | None = None
        self.metrics_address: str | None = None
        try:
            self._observer = Observer(config, tuple(METHODS))
            self._resources.callback(self._observer.close)
            self._models = self._opened_models()
            self._policies = Policies(config, self._models)
            self._markets = markets = self._open()
            self._conditions = self._looked_after()
            self._service = MatchService(markets, config.limits)
            self._housekeeper = self._keeps_house(markets)
        except BaseException:
            self._resources.close()
            raise

    def _opened_models(self) -> Models | None:
        if self.config.models is None:
            return None
        models = Models(self.config.models, watch=self._observer.hops)
        return self._resources.enter_context(models)

    def _open(self) -> dict[str, Marketplace]:
        config = self.config
        policy = self._policies.read()
        ops = open_ops(
            config.device,
            threads=config.threads,
            memory_bytes=config.memory_bytes,
            device_memory_bytes=config.device_memory_bytes,
        )
        self._ops, markets = ops, {}
        for name, folder in config.stores.items():
            store = self._resources.enter_context(Store.open(folder, models=self._models))
            if ops.health.on_device:
                make_ready(ops, store.snapshot(), policy.without_rerank())
            source = loaded_epochs(store, ops)
            matcher = self._policies.matcher(policy, source, ops, self._observer.kernels)
            way = self._observer.batcher(name, self._second)
            markets[name] = Marketplace(name, store, matcher, way, self._texts)
        return markets

    def _looked_after(self) -> Conditions:
        models, markets = self._models, self._markets
        stores = {name: market.store for name, market in markets.items()}
        if models is None:
            return Conditions(stores, self._ops)
        look = partial(trouble_of, models, markets.values()) if models.has_server else None
        return Conditions(stores, self._ops, self._observer.breakers, look)

    async def reload(self) -> bool:
        """Read the policy's file again, and put it in force if it is sound.

        Calls that have begun end under the policy that they began with.

        Returns:
            Whether that policy is in force now; if not, the log says why the one before stays.
        """
        async with self._switching:
            now = next(iter(self._markets.values())).now().matcher.policy
            try:
                made = await asyncio.to_thread(self._policies.next, self._markets)
            except Exception as error:
                known = isinstance(error, MatchwrightError)
                _log.error("the policy %s stays in force: %s", now.id, error, exc_info=not known)
                return False
            for name, matcher in made.items():
                self._markets[name].switch(matcher)
            if not made:
                _log.info("the policy %s stays in force: its file says the same", now.id)
            for policy in {matcher.policy for matcher in made.values()}:
                _log.warning("the policy %s is in force, %s is not any more", policy.id, now.id)
            return True

    def _keeps_house(self, markets: Mapping[str, Marketplace]) -> Housekeeper | None:
        if not self.config.compact:
            return None
        served = {name: market.store for name, market in markets.items()}
        stores = {name: store for name, store in served.items() if isinstance(store, Store)}
        return Housekeeper(stores, retain_s=self.config.retain_s)

    async def start(self) -> str:
        """Listen.

        Returns:
            The address, with the port that the system chose when 0 was asked for.

        Raises:
            DependencyUnavailable: the address cannot be listened on.
            NotFound, InvalidArgument: a TLS file that is not there or not PEM.
        """
        interceptors = [*self._observer.interceptors(), _Guard(self._tokens)]
        server = grpc.aio.server(interceptors=interceptors, options=self._options())
        self._grpc = server
        server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        port = self._listen(server)
        await asyncio.to_thread(self._conditions.look)
        await self._tell_health(self._conditions.parts())
        await server.start()
        self.metrics_address = self._observer.start(
            self._batcher, self._conditions, lambda: self._inflight, self._told_health
        )
        self._watching = asyncio.create_task(self._conditions.watch(self._tell_health))
        await self._tell_health({"": None, SERVICE: None})
        self._serving = True
        if self._housekeeper is not None:
            self._housekeeper.start()
        return self.config.address.rpartition(":")[0] + f":{port}"

    async def stop(self, grace_s: float | None = None) -> None:
        """Tell health checks, take no new calls, let those that run finish, close the stores."""
        grace = self.config.shutdown_grace_ms / 1_000 if grace_s is None else grace_s
        until = time.monotonic() + grace
        self._serving = False
        if self._housekeeper is not None:
            self._housekeeper.ask_to_stop()
        await self._health.enter_graceful_shutdown()
        if self._grpc is not None:
            await self._grpc.stop(grace)
        await self._batcher.drain(max(0.0, until - time.monotonic()))
        self._second.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        if self._housekeeper is not None:
            await asyncio.to_thread(self._housekeeper.stop, max(1.0, until - time.monotonic()))
        await asyncio.to_thread(self._observer.close)
        self._resources.close()

    async def _tell_health(self, parts: Mapping[str, str | None]) -> None:
        """What health checks of each name answer; a reason means NOT_SERVING."""
        for name, trouble in parts.items():
            status = "SERVING" if trouble is None else "NOT_SERVING"
            await self._health.set(name, getattr(health_pb2.HealthCheckResponse, status))

    def _told_health(self) -> tuple[bool, Mapping[str, str | None]]:
        return self._serving, self._conditions.parts()

    def _options(self) -> list[tuple[str, int]]:
        most = self.config.limits.message_bytes_max
        return [
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", most),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its calls unseen
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]

    def _listen(self, server: grpc.aio.Server) -> int:
        config = self.config
        try:
            if config.tls_cert is None:
                return server.add_insecure_port(config.address)
            return server.add_secure_port(config.address, _credentials(config))
        except RuntimeError as error:
            raise DependencyUnavailable(
                f"cannot listen on {config.address}: {error}; is another server there?",
                address=config.address,
            ) from None

    def _handlers(self) -> grpc.GenericRpcHandler:
        handlers: dict[str, Any] = {}
        for rpc, name in METHODS.items():
            method = wire.DESCRIPTOR.services_by_name["MatchService"].methods_by_name[rpc]
            parse = getattr(wire, method.input_type.name).FromString
            handlers[rpc] = grpc.unary_unary_rpc_method_handler(
                self._handler(rpc, parse, getattr(self._service, name))
            )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _handler(
        self, rpc: str, parse: Callable[[bytes], Any], handle: Handle
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(data: bytes, context: Any) -> bytes:
            try:
                with self._admitted(len(data)):
                    response = await self._answer(parse, handle, data, context)
                    return response.SerializeToString()
            except MatchwrightError as error:
                if isinstance(error, StoreError):
                    _log.error("%s: %s", rpc, error)
                await abort(context, error)
            except Exception as error:
                _log.exception("%s failed", rpc)
                await abort(context, error)
            raise AssertionError("abort does not return")

        return answer

    @contextlib.contextmanager
    def _admitted(self, size: int) -> Iterator[None]:
        """Count a request's bytes while it is answered.

        Raises:
            Overloaded: too many bytes are being answered already.
        """
        size, most = max(size, REQUEST_BYTES_MIN), self.config.inflight_bytes_max
        if self._inflight and self._inflight + size > most:
            raise Overloaded(
                f"{self._inflight:,} bytes of requests are being answered, and {size:,} more would "
                f"exceed inflight_bytes_max = {most:,}; try again in a second",
                limit="inflight_bytes_max",
            )
        self._inflight += size
        try:
            yield
        finally:
            self._inflight -= size

    async def _answer(
        self, parse: Callable[[bytes], Any], handle: Handle, data: bytes, context: Any
    ) -> Message:
        caller = self._tokens.caller(context.invocation_metadata())
        try:
            request = parse(data)
        except DecodeError as error:
            raise InvalidArgument(f"the bytes are not a message of this call: {error}") from None
        seconds = self.config.limits.deadline_ms_max / 1_000
        left = context.time_remaining()
        seconds = seconds if left is None else min(seconds, max(0.0, left))
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                return await handle(request, Context(caller, deadline))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {seconds:.3f} s") from None


class _Guard(grpc.aio.ServerInterceptor):
    """Asks for a token where the handlers do not: reflection. Health checks stay open."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method.startswith((HEALTH_PREFIX, f"/{SERVICE}/")):
            return await continuation(handler_call_details)
        try:
            self._tokens.caller(handler_call_details.invocation_metadata)
        except MatchwrightError as error:
            refusal = error

            async def refuse(_: Any, context: Any) -> None:
                await abort(context, refusal)

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


def _credentials(config: ServerConfig) -> grpc.ServerCredentials:
    certificate, key = _pem(config.tls_cert), _pem(config.tls_key)
    authority = _pem(config.tls_client_ca)
    assert certificate is not None
    assert key is not None
    return grpc.ssl_server_credentials(
        [(key, certificate)],
        root_certificates=authority,
        require_client_auth=authority is not None,
    )


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    if not path.is_file():
        raise NotFound(f"there is no file {str(path)!r}", file=path)
    data = path.read_bytes()
    if b"-----BEGIN " not in data:
        raise InvalidArgument(f"{path}: not PEM", file=path)
    return data


# ── Running ───────────────────────────────────────────────────────────────────────────────────


def _say(address: str) -> None:
    sys.stdout.write(f"listening on {address}\n")
    sys.stdout.flush()


def serve(config: ServerConfig, on_ready: Callable[[str], None] = _say) -> int:
    """Serve until SIGTERM or SIGINT, then let running calls finish; a second signal ends at once.
    SIGHUP has the policy's file read again.

    Args:
        on_ready: told the address once calls are taken; by default prints it.

    Returns:
        The exit code, 0.

    Raises:
        MatchwrightError: the server could not start.
    """
    asyncio.run(_serve(config, on_ready))
    return 0


async def _serve(config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    asked, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        if asked.is_set() or len(reloads) > 1:  # one that waits reads what the file says then
            return
        task = loop.create_task(server.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)  # it must not end a server that is starting
    server = Server(config)

    def signalled() -> None:
        (again if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        on_ready(await server.start())
        if server.metrics_address is not None:
            sys.stdout.write(f"metrics at http://{server.metrics_address}/metrics\n")
            sys.stdout.flush()
        await asked.wait()
        stopping = asyncio.ensure_future(server.stop())
        hurry = asyncio.ensure_future(again.wait())
        await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await server.stop(0.0)
            stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
    except BaseException:
        await server.stop(0.0)
        raise


@contextlib.contextmanager
def running(config: ServerConfig) -> Iterator[str]:
    """A server in a thread of this process, for demos and tests; yields its address.

    Raises:
        MatchwrightError: it could not start.
    """
    ready: list[str] = []
    failed: list[BaseException] = []
    known, stop = threading.Event(), threading.Event()

    async def work() -> None:
        server = Server(config)
        try:
            ready.append(await server.start())
            known.set()
            await asyncio.to_thread(stop.wait)
        finally:
            await server.stop()

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failed.append(error)
        finally:
            known.set()

    thread = threading.Thread(target=run, name="matchwright-server", daemon=True)
    thread.start()
    known.wait()
    try:
        if failed:
            raise failed[0]
        yield ready[0]
    finally:
        stop.set()
        thread.join()
