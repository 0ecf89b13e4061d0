"""The channel to a Triton server: the only module that knows ``tritonclient``."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from matchwright.engine.errors import DependencyUnavailable
from matchwright.engine.models.refs import ModelRef, TritonConfig
from matchwright.engine.models.triton.calls import Call
from matchwright.engine.models.triton.failures import failure_of, unreadable
from matchwright.engine.models.triton.regions import Region
from matchwright.engine.models.triton.tensors import DATATYPES, Array, Declared

try:
    from tritonclient.grpc import InferInput, InferRequestedOutput, aio
    from tritonclient.utils import InferenceServerException
except (ModuleNotFoundError, RuntimeError) as missing:
    raise DependencyUnavailable(
        f"the Triton client cannot be imported ({missing}); pip install 'matchwright[triton]'"
    ) from None

Answer = TypeVar("Answer")

_LEAST_S = 0.001
_MARGIN_S = 0.005
"""A call ends so much before its deadline, so that what it says of the server is known by then."""

_MEMORY = ModelRef("shared memory", 0)


class Link:
    """A channel, and how many calls are on it, so that it is closed when the last has ended.

    Belongs to the event loop in which it was made.

    Attributes:
        heard: moment of ``time.monotonic()`` at which the server last said anything.
    """

    def __init__(self, config: TritonConfig) -> None:
        options = [
            ("grpc.max_send_message_length", config.message_bytes_max),
            ("grpc.max_receive_message_length", config.message_bytes_max),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.enable_retries", 0),  # what is sent again, and when, is decided by the client
            ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
        ]
        self._client = aio.InferenceServerClient(
            config.url,
            ssl=config.tls_ca is not None,
            root_certificates=None if config.tls_ca is None else str(config.tls_ca),
            channel_args=options,
        )
        self._url = config.url
        self._calls = 0
        self._retired = False
        self.heard = time.monotonic()

    async def ask(self, ref: ModelRef, call: Callable[[Any], Awaitable[Answer]]) -> Answer:
        """The answer of ``call(tritonclient's client)``.

        Raises:
            Failure: there was none, or an error.
        """
        self._calls += 1
        try:
            answer = await call(self._client)
        except InferenceServerException as error:
            told = failure_of(str(error.status()), str(error.message()), ref, self._url)
            if told.sign == "answered":
                self.heard = time.monotonic()
            raise told from None
        except Exception as error:  # at what cannot be read: damaged messages are None
            raise unreadable(ref, f"{type(error).__name__}: {error}") from None
        finally:
            self._calls -= 1
            if self._retired and not self._calls:
                await self._client.close()
        self.heard = time.monotonic()
        return answer

    async def retire(self) -> None:
        """Take no more calls, and close when the last has ended."""
        self._retired = True
        if not self._calls:
            await self._client.close()

    async def close(self) -> None:
        """Close at once; calls are cancelled."""
        await self._client.close()

    async def infer(self, call: Call, region: Region | None) -> Any:
        """Triton's ``ModelInferResponse``; tensors that the region holds do not travel."""
        ref, left = call.ref, max(_LEAST_S, call.left_s - min(_MARGIN_S, call.left_s / 10))
        inputs = [_input(name, array, region) for name, array in call.inputs.items()]
        outputs = [_output(name, region) for name in call.outputs]

        async def response(client: Any) -> Any:
            result = await client.infer(
                ref.name,
                inputs,
                model_version=str(ref.version),
                outputs=outputs,
                timeout=int(left * 1e6),  # for models whose queue heeds it
                client_timeout=left,
                headers=dict(call.mark.headers),
            )
            return _there(result.get_response())

        return await self.ask(ref, response)

    async def outputs_of(self, call: Call) -> dict[str, Declared]:
        """All outputs of the call's model, as the server declares them."""
        ref, left = call.ref, max(_LEAST_S, call.left_s)

        async def outputs(client: Any) -> dict[str, Declared]:
            told = await client.get_model_metadata(ref.name, str(ref.version), client_timeout=left)
            return {each.name: Declared(each.datatype, tuple(each.shape)) for each in told.outputs}

        return await self.ask(ref, outputs)

    async def is_ready(self, ref: ModelRef, seconds: float) -> bool:
        """Whether that version answers."""
        return bool(
            await self.ask(
                ref,
                lambda client: client.is_model_ready(
                    ref.name, str(ref.version), client_timeout=seconds
                ),
            )
        )

    async def register(self, region: Region, seconds: float) -> None:
        """Have the server open a region."""
        name, key, size = region.name, region.key, region.size
        await self.ask(
            _MEMORY,
            lambda client: client.register_system_shared_memory(
                name, key, size, client_timeout=seconds
            ),
        )

    async def unregister(self, region: Region, seconds: float) -> None:
        """Have the server let go of a region, which it refuses while it uses it."""
        name = region.name
        await self.ask(
            _MEMORY,
            lambda client: client.unregister_system_shared_memory(name, client_timeout=seconds),
        )


def _input(name: str, array: Array, region: Region | None) -> Any:
    made = InferInput(name, list(array.shape), DATATYPES[array.dtype])
    if region is None:
        made.set_data_from_numpy(array)
    else:
        offset, nbytes = region.placed[f"in:{name}"]
        made.set_shared_memory(region.name, nbytes, offset)
    return made


def _output(name: str, region: Region | None) -> Any:
    made = InferRequestedOutput(name)
    if region is not None and f"out:{name}" in region.placed:
        offset, nbytes = region.placed[f"out:{name}"]
        made.set_shared_memory(region.name, nbytes, offset)
    return made


def _there(response: Any) -> Any:
    if response is None:
        raise ValueError("the message is damaged")
    return response
