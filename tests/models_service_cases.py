"""A server in a process of its own, its models in a real Triton server, and callers who never stop.

Not a test module.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from metrics_cases import free_port, get
from patience import PATIENCE, until, until_async
from rerank_service_cases import askers, repository, section
from service_cases import AS_OF, JOBS, PEOPLE
from triton_cases import need_server, served

from matchwright import clients
from matchwright.clients import AsyncClient, Query
from matchwright.engine import synthetic
from matchwright.engine.config import ModelsConfig
from matchwright.engine.models.opened import Models
from matchwright.engine.models.repository import add_encoder
from matchwright.engine.models.small import make_small_encoder
from matchwright.engine.store import Store

REFIT = {"seed": 0, "sample": 1_000, "as_of": AS_OF, "encoder": "served"}
TIMEOUT_MS = 1_000
DEADLINE_S = 4.0
"""Of each call: long beside the policy's time, since tests share the machine."""
REST_S = 0.0 if PATIENCE == 1 else 0.02
"""Between two calls of a caller; none with full counts. Other tests share the machine otherwise."""


def config(repo, triton):
    return ModelsConfig(repository=repo, triton=triton.url, write_wait_ms=30_000)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """Two versions of the encoder, and those of the ranker."""
    pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    need_server()
    folder = tmp_path_factory.mktemp("models-service")
    for version in (1, 2):
        make_small_encoder(folder / f"encoder-{version}", dimensions=96, seed=version)
        add_encoder(
            folder / "repo", folder / f"encoder-{version}", backend="python", version=version
        )
    with Store.open(folder / "plain", mode="w", create=True, salt=bytes(16)) as store:
        fill(store)
        store.refit(seed=0, sample=1_000, as_of=AS_OF)
        return repository(folder, store)


@pytest.fixture(scope="module")
def triton(repo):
    with served(repo, ["encoder", "ranker"]) as server:
        yield server


@pytest.fixture(scope="module")
def shop(tmp_path_factory, repo, triton):
    """A store whose texts the first version of the encoder has read."""
    folder = tmp_path_factory.mktemp("models-shop") / "store"
    with Models(config(repo, triton)) as models:
        with Store.open(folder, mode="w", create=True, salt=bytes(16), models=models) as store:
            fill(store)
            store.refit(**REFIT, encoder_version=1)
    return folder


def fill(store):
    store.upsert("job", synthetic.frame("job", JOBS))
    store.upsert("freelancer", synthetic.frame("freelancer", PEOPLE))


@pytest.fixture(scope="module")
def asking(shop):
    """(jobs, people) whose searches find somebody."""
    with Store.open(shop) as store:
        return askers(store, "job"), askers(store, "freelancer")


# ── The server ────────────────────────────────────────────────────────────────────────────────


@dataclass
class Serving:
    """``matchwright serve`` in its own process."""

    process: subprocess.Popen[str]
    address: str
    metrics_address: str
    policy: Path
    log: Path

    def say(self, text):
        """Another policy, by signal; gives the log's line about it."""
        before = self.log.read_text()
        self.policy.write_text(text)
        self.process.send_signal(signal.SIGHUP)

        def said():
            news = self.log.read_text()[len(before) :]
            return news if "in force" in news else ""

        return until(said, "what is said of the policy")

    def metrics(self):
        return get(self.metrics_address)

    @property
    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def memory(self):
        """Bytes of the process that are in memory and its own."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in told.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def serve(shop, repo, triton, tmp_path, text=None):
    """The command, as an operator runs it."""
    policy, log = tmp_path / "policy.toml", tmp_path / "serve.log"
    policy.write_text(section(timeout_ms=TIMEOUT_MS) if text is None else text)
    metrics = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "matchwright.engine.cli", "serve", "--store", str(shop)]
    command += ["--port", "0", "--policy", str(policy), "--models", str(repo)]
    command += ["--triton", triton.url, "--metrics-address", metrics]
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            address = process.stdout.readline().removeprefix("listening on ").strip()
            assert address, log.read_text()
            yield Serving(process, address, metrics, policy, log)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            if process.poll() is None:
                process.kill()
            print(log.read_text()[-3_000:])


# ── Callers ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Told:
    """What came of one query."""

    at: float
    seconds: float
    answer: object
    batch: int


@dataclass
class Load:
    """Callers who ask one query after the other, all kinds in turn, until they are stopped."""

    address: str
    asking: tuple
    callers: int = 6
    inline: bool = True
    told: list[Told] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: itertools.count = field(default_factory=itertools.count)

    async def __aenter__(self):
        # One attempt: what the client's own retries would hide is seen.
        self._client = AsyncClient(self.address, timeout_s=DEADLINE_S, attempts_max=1)
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(self.callers)]
        return self

    async def __aexit__(self, *error):
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._client.close()

    async def _ask(self):
        while not self._stop.is_set():
            n = next(self._numbers)
            began = time.monotonic()
            try:
                answers = await self._one(n)
            except clients.ClientError as error:
                self.errors.append(error)
                continue
            seconds = time.monotonic() - began
            self.told += [Told(time.monotonic(), seconds, one, n) for one in answers]
            await asyncio.sleep(REST_S)

    async def _one(self, n):
        jobs, people = self.asking
        job, person = jobs[n % 40], people[n % 40]
        if n % 8 == 0:
            queries = [Query("job", jobs[(n + at) % 40]) for at in range(8)]
            return await self._client.batch_find(queries, as_of=AS_OF)
        if n % 8 == 4 and self.inline:
            record = {"title": f"nobody stored this {n}", "text": f"words {n} of its own"}
            return [await self._client.find_freelancers(record, as_of=AS_OF)]
        if n % 2:
            return [await self._client.find_freelancers(job, as_of=AS_OF)]
        return [await self._client.find_jobs(person, as_of=AS_OF)]

    async def until(self, true, seconds):
        """Seconds until an answer that comes from now on is as wanted."""
        began, seen = time.monotonic(), len(self.told)
        await until_async(
            lambda: any(true(one.answer) for one in self.told[seen:]),
            "such an answer",
            within=seconds * PATIENCE,
        )
        return time.monotonic() - began


def reranked(answer):
    return answer.rerank.degraded is None
