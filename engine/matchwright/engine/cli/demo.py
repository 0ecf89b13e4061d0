"""``matchwright demo``: a marketplace made, imported, served and matched, in about a minute."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _answers, explain
from matchwright.engine.cli._demo_models import Served, Triton, found_server
from matchwright.engine.cli._failures import Interrupted, harmless
from matchwright.engine.cli._options import date_of
from matchwright.engine.cli._output import console
from matchwright.engine.cli._source import Device, DeviceOption, need_device, tell_device
from matchwright.engine.errors import (
    AlreadyExists,
    DependencyUnavailable,
    InvalidArgument,
    VerificationFailed,
)

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.clients import Client, Explanation, Matches
    from matchwright.engine.records import Kind

_SIZE_MAX = 10_000_000
_SEED_MAX = 2**32 - 1
_SAMPLE = 20_000
_K = 5
_TRIED = 100
_LOOKED_AT = 2_000
_REFUSED_ASKED = 12
_BATCH = 250
_RECOVERY_S = 15.0


def demo(
    freelancers: Annotated[int, typer.Option(help="How many freelancers.")] = 20_000,
    jobs: Annotated[int, typer.Option(help="How many jobs.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Which marketplace.")] = 0,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep exports and store in DIR.")
    ] = None,
    device: DeviceOption = Device.AUTO,
    triton: Annotated[
        Triton, typer.Option("--triton", help="Serve an encoder and a ranker, if that can be done.")
    ] = Triton.AUTO,
) -> None:
    """Make a marketplace, serve it with models, match over gRPC: a minute."""
    if not (1 <= freelancers <= _SIZE_MAX and 1 <= jobs <= _SIZE_MAX and 0 <= seed <= _SEED_MAX):
        raise InvalidArgument(
            f"--freelancers and --jobs take 1 to {_SIZE_MAX:,}, --seed 0 to {_SEED_MAX:,}"
        )
    need_device(device)
    tell_device()
    screen = console()
    with _folder(keep) as folder:
        try:
            show = _Show(screen, folder, device, triton)
            show.run({"freelancer": freelancers, "job": jobs}, seed)
        except KeyboardInterrupt:
            kept = "nothing was kept" if keep is None else f"what was made is in {keep}"
            raise Interrupted(kept) from None
    _farewell(screen, keep, show)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="matchwright-demo-") as folder:
            yield Path(folder)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise AlreadyExists(f"{keep} is not an empty folder; name another for --keep")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep


class _Show:
    """The steps, each with a line that says what was done and how long it took."""

    def __init__(self, console: Console, folder: Path, device: Device, triton: Triton) -> None:
        from matchwright.engine import synthetic

        self.console = console
        self.folder = folder
        self.store = folder / "store"
        self.device = device
        self.triton = triton
        self.served: Served | None = None
        self.as_of = synthetic.AS_OF
        self.job = ""
        self.freelancer = ""
        self._began = self._last = time.monotonic()

    def run(self, sizes: Mapping[Kind, int], seed: int) -> None:
        """All of it."""
        exports = self._make(sizes, seed)
        self._ingest(exports)
        try:
            self._start_models()
            self._refit(seed)
            if self.served is not None:
                jobs = [_job_id(n) for n in range(sizes["job"])]
                self.done(self.served.train(self.store, jobs, seed, self.as_of))
            self._serve(exports, sizes["job"])
        finally:
            if self.served is not None:
                self.served.stop()
        what = "server" if self.served is None else "both servers"
        self.done(f"{what} stopped, after {time.monotonic() - self._began:.0f} s in all")

    def _serve(self, exports: Mapping[Kind, Path], jobs: int) -> None:
        from matchwright.clients import Client
        from matchwright.engine.cli._remote import engine_errors
        from matchwright.engine.config import ServerConfig
        from matchwright.engine.service import running

        served = self.served
        config = ServerConfig(
            stores={"default": self.store},
            device=self.device.value,
            port=0,
            policy=None if served is None else served.policy,
            models=None if served is None else served.config,
        )
        with (
            engine_errors(),
            running(config) as address,
            Client(address, timeout_s=120.0) as client,
        ):
            self.done(f"serving on {address}")
            found = self._match(client, exports, jobs)
            if served is not None and served.ranker is not None:
                self._without_triton(client, served, found)
            self._all(client, jobs)

    def _start_models(self) -> None:
        """A Triton server with an encoder, or a line that says why there is none."""
        found = found_server(self.triton)
        if not isinstance(found, str):
            served = Served(self.folder, found)
            try:
                served.start()
            except DependencyUnavailable as error:
                found = str(error)
            else:
                self.served = served
                self.done(
                    f"Triton serves an encoder on {served.server.url}: a small one that was made "
                    "just now, of random vectors for pieces of words"
                )
                return
        self.done(f"without Triton, embedded encoder and first phase alone: {found}")

    def done(self, what: str) -> None:
        """One line for a step that has ended."""
        now = time.monotonic()
        line = f"[{now - self._last:5.1f} s] {harmless(what)}"
        self.console.print(line, style="bold green", soft_wrap=True)
        self._last = now

    def _make(self, sizes: Mapping[Kind, int], seed: int) -> dict[Kind, Path]:
        from matchwright.engine import synthetic

        exports = synthetic.write_jsonl(
            self.folder, freelancers=sizes["freelancer"], jobs=sizes["job"], seed=seed
        )
        size = sum(path.stat().st_size for path in exports.values()) / 1e6
        self.done(
            f"made {sizes['freelancer']:,} freelancers and {sizes['job']:,} jobs, seed {seed}: "
            f"{size:.0f} MB of JSON lines"
        )
        return exports

    def _ingest(self, exports: Mapping[Kind, Path]) -> None:
        from matchwright.engine.cli.ingest import into_store, summary

        for kind, path in exports.items():
            report = into_store(kind, [path], self.store)
            self.done(f"imported {path.name}: {summary(report)}")

    def _refit(self, seed: int) -> None:
        from matchwright.engine.cli._models_options import opened
        from matchwright.engine.store import Store

        config = None if self.served is None else self.served.config
        with opened(config) as models, Store.open(self.store, mode="w", models=models) as store:
            generation = store.refit(
                seed=seed,
                sample=_SAMPLE,
                as_of=self.as_of,
                encoder="embedded" if config is None else "served",
            )
        text = "text" if config is None else "every text through Triton"
        self.done(f"fitted vocabularies, scales, {text}: generation {generation.id[:12]}")

    def _match(self, client: Client, exports: Mapping[Kind, Path], jobs: int) -> Matches:
        """One job's best freelancers, why the first, why not another, and the other direction."""
        found = self._some_job(client, jobs)
        self.job = str(found.query_id)
        titles = _titles(exports["freelancer"], found.ids)
        self._record("job", _record(exports["job"], self.job))
        self._answer(found)
        for name in found.ids:
            self.console.print(f"  {name}: {harmless(titles.get(name, ''))}", style="dim")
        self.freelancer = found.ids[0]
        self._draw(self._ask(client, self.freelancer))
        self._moved(client, found)
        refused = self._near_miss(client)
        if refused is not None:
            whom = str(refused.freelancer_id)
            self._record("freelancer", _record(exports["freelancer"], whom))
            self._draw(refused)
        self._answer(client.find_jobs(self.freelancer, k=_K, as_of=self.as_of, contributions=True))
        self.console.print()
        self.done("asked the server, as shown")
        self._same_answer(found)
        return found

    def _moved(self, client: Client, found: Matches) -> None:
        """Of those who are shown, who rose most in the second phase, and what moved them."""
        rises = [(m.first_rank or m.rank) - m.rank for m in found]
        if not rises or max(rises) <= 0:
            return
        name = found.ids[rises.index(max(rises))]
        if name == self.freelancer:
            return  # told already
        second = self._ask(client, name).to_dict().get("rerank")
        if second is None:
            return
        self.console.print()
        self.console.print(
            harmless(f"{name}: rank {second['first_rank']:,} became {second['rank']:,}")
        )
        for share in second["moved_by"]:
            self.console.print(harmless(f"  moved by: {share['text']} ({share['score']:+.4f})"))

    def _without_triton(self, client: Client, served: Served, found: Matches) -> None:
        """The same question while nobody serves the ranker, and once somebody does again."""
        self.console.print()
        served.stop()
        self.done("stopped Triton, and asked the same again: no request fails")
        again = self._find(client, self.job)
        if again.rerank is None or again.rerank.degraded is None:
            raise VerificationFailed("the ranker answered although its server was stopped")
        self._answer(again)
        self.console.print()
        served.start_again()
        until = time.monotonic() + _RECOVERY_S
        while self._find(client, self.job).digest != found.digest:
            if time.monotonic() > until:
                raise VerificationFailed("Triton is back, and answers are not what they were")
            time.sleep(0.1)
        self.done("Triton started again: the answer is the same bytes as before it stopped")

    def _find(self, client: Client, job: str) -> Matches:
        return client.find_freelancers(job, k=_K, as_of=self.as_of, contributions=True)

    def _some_job(self, client: Client, jobs: int) -> Matches:
        """The first job with more eligible freelancers than are shown, else the best there is."""
        best: Matches | None = None
        for number in range(min(jobs, _TRIED)):
            found = self._find(client, _job_id(number))
            if best is None or len(found) > len(best):
                best = found
            if found.eligible > 2 * _K:
                return found
        if best is None or not best:
            raise VerificationFailed("nobody is eligible for any job; ask for more freelancers")
        return best

    def _near_miss(self, client: Client) -> Explanation | None:
        """Of the first freelancers, one who scores best among those who are not eligible."""
        ids = [f"f-{number:07d}" for number in range(self._count("freelancer"))]
        scores = client.score_pairs([(self.job, name) for name in ids], as_of=self.as_of)
        refused = sorted(
            (-points, name)
            for points, name, eligible in zip(scores.points, ids, scores.eligible, strict=True)
            if not eligible
        )
        told = [self._ask(client, name) for _, name in refused[:_REFUSED_ASKED]]
        # Somebody who is merely busy is less of a lesson than a limit that is not met.
        told.sort(key=lambda one: any(veto.reason_class == "STATUS" for veto in one.vetoes))
        return told[0] if told else None

    def _count(self, kind: Kind) -> int:
        from matchwright.engine.store import Store

        with Store.open(self.store) as store:
            return min(store.snapshot().count(kind), _LOOKED_AT)

    def _all(self, client: Client, jobs: int) -> None:
        """Every job over gRPC, in batches."""
        from matchwright.clients import ClientError, Query

        answered = matched = degraded = 0
        for start in range(0, jobs, _BATCH):
            stop = min(start + _BATCH, jobs)
            queries = [Query("job", _job_id(n)) for n in range(start, stop)]
            for answer in client.batch_find(queries, k=100, as_of=self.as_of):
                if isinstance(answer, ClientError):
                    raise answer
                answered += 1
                matched += len(answer)
                degraded += answer.rerank is not None and answer.rerank.degraded is not None
        told = f"matched all {answered:,} jobs over gRPC: {matched:,} pairs"
        if self.served is not None and self.served.ranker is not None:
            told += f", ordered by ranker:{self.served.ranker}; degraded {degraded:,}"
        self.done(told)

    def _same_answer(self, found: Matches) -> None:
        """The server's answer, made again in this process by the reference backend."""
        from matchwright.engine.cli._local import local
        from matchwright.engine.cli._source import Second
        from matchwright.engine.request import Request

        served = self.served
        second = Second(None if served is None else served.config)
        policy = None if served is None else served.policy
        with local(self.store, policy, Device.NUMPY, second) as source:
            again = source.match(Request(kind="job", id=self.job, k=_K, as_of=self.as_of))
        if again.digest() != found.digest:
            raise VerificationFailed(
                f"the server's answer {found.digest} is not this process' {again.digest()}"
            )
        self.done(f"the reference backend gives the same bytes: digest {found.digest[:16]}")

    def _record(self, kind: Kind, record: Mapping[str, Any]) -> None:
        told = [f"{kind} {record['id']}: {record['title']}"]
        names = [skill["name"] for skill in record["skills"] or ()]
        told.append(f"  skills {', '.join(names)}")
        self.console.print()
        for line in told:
            self.console.print(harmless(line), soft_wrap=True)

    def _answer(self, found: Matches) -> None:
        self.console.print()
        _answers.match_view(found.to_dict()).draw(self.console)

    def _ask(self, client: Client, freelancer: str) -> Explanation:
        return client.explain(self.job, freelancer, audience="operator", as_of=self.as_of, k=_K)

    def _draw(self, told: Explanation) -> None:
        self.console.print()
        explain.explanation_view(told.to_dict()).draw(self.console)


def _job_id(number: int) -> str:
    return f"j-{number:07d}"


def _record(export: Path, wanted: str) -> dict[str, Any]:
    return next(record for record in _lines(export) if record["id"] == wanted)


def _titles(export: Path, wanted: Sequence[str]) -> dict[str, str]:
    return {record["id"]: record["title"] for record in _lines(export) if record["id"] in wanted}


def _lines(export: Path) -> Iterator[dict[str, Any]]:
    with export.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _farewell(console: Console, keep: Path | None, show: _Show) -> None:
    console.print()
    if keep is None:
        console.print("Again, and keep it: matchwright demo --keep shop")
        return
    day = date_of(show.as_of)
    pair = f"--job {show.job} --freelancer {show.freelancer}"
    models = ""
    console.print(f"Kept in {keep}. Go on with:")
    served = show.served
    if served is not None:
        models = f" --models {served.repository} --triton 127.0.0.1:8001"
        if served.policy is not None:
            models += f" --policy {served.policy}"
        console.print(
            f"  matchwright models serve --repository {served.repository}  # leave it running",
            soft_wrap=True,
        )
    for command in (
        f"match --store {show.store} --job {show.job} --as-of {day}",
        f"explain --store {show.store} {pair} --as-of {day}",
        f"serve --store {show.store}",
    ):
        console.print(f"  matchwright {command}{models}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)
