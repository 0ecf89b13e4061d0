"""``matchwright match``: the best freelancers for a job, or jobs for a freelancer."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _answers, _source
from matchwright.engine.cli._failures import Interrupted, describe
from matchwright.engine.cli._models_options import ModelsOption, TritonOption, models_of
from matchwright.engine.cli._options import (
    INLINE_BYTES_MAX,
    AsOfOption,
    FormatOption,
    KindOption,
    OutputOption,
    PolicyOption,
    day_of,
    ids_of,
    read_text,
    weights_of,
)
from matchwright.engine.cli._output import Format, Writer
from matchwright.engine.cli._progress import progress, say
from matchwright.engine.errors import InvalidArgument, MatchwrightError, PartlyDone

if TYPE_CHECKING:
    from matchwright.engine.records import Kind
    from matchwright.engine.request import Request

BATCH = 256
"""Queries that go to the kernels together; answers are the same for any number."""


JobOption = Annotated[
    str | None, typer.Option("--job", metavar="ID", help="Find freelancers for this job.")
]
FreelancerOption = Annotated[
    str | None, typer.Option("--freelancer", metavar="ID", help="Find jobs for this one.")
]
InlineOption = Annotated[
    str | None,
    typer.Option(
        "--inline", metavar="FILE", help="A record in JSON that is not stored; - is stdin."
    ),
]
KindOfInline = Annotated[KindOption, typer.Option("--kind", help="What the inline record is.")]
AllJobs = Annotated[bool, typer.Option("--all-jobs", help="Every job that is stored.")]
AllFreelancers = Annotated[
    bool, typer.Option("--all-freelancers", help="Every freelancer that is stored.")
]
KOption = Annotated[int, typer.Option("-k", help="How many matches, 1 to 1,000.")]
WeightOption = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="FACET=VALUE", help="Another weight; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="ID", help="Never this one; @FILE: one in a line."),
]
CandidatesOption = Annotated[
    list[str] | None,
    typer.Option("--candidates", metavar="ID", help="Only these; @FILE: one in a line."),
]
MinScoreOption = Annotated[
    float | None, typer.Option("--min-score", help="Leave out what scores below.")
]


def match(
    store: _source.StoreOrNone = None,
    server: _source.ServerOption = None,
    job: JobOption = None,
    freelancer: FreelancerOption = None,
    inline: InlineOption = None,
    kind: KindOfInline = KindOption.JOB,
    all_jobs: AllJobs = False,
    all_freelancers: AllFreelancers = False,
    k: KOption = 10,
    policy: PolicyOption = None,
    as_of: AsOfOption = None,
    weight: WeightOption = None,
    exclude: ExcludeOption = None,
    candidates: CandidatesOption = None,
    min_score: MinScoreOption = None,
    device: _source.DeviceOption = _source.Device.AUTO,
    models: ModelsOption = None,
    triton: TritonOption = None,
    rerank: _source.RerankOption = True,
    marketplace: _source.MarketplaceOption = "",
    token_file: _source.TokenOption = None,
    tls_ca: _source.TlsOption = None,
    timeout: _source.TimeoutOption = _source.TIMEOUT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> int:
    """Find the best freelancers for a job, or jobs for one."""
    whom = _whom(job, freelancer, inline, kind, all_jobs=all_jobs, all_freelancers=all_freelancers)
    if min_score is not None and not math.isfinite(min_score):
        raise InvalidArgument(f"--min-score takes a finite number, got {min_score}")
    asked: dict[str, Any] = {
        "k": k,
        "weights": weights_of(weight or ()),
        "exclude_ids": ids_of(exclude or ()),
        "candidate_ids": None if candidates is None else ids_of(candidates),
        "min_score": min_score,
        "as_of": day_of(as_of),
    }
    access = _source.Access(marketplace, token_file, tls_ca, timeout)
    second = _source.Second(models_of(models, triton), rerank)
    many = all_jobs or all_freelancers
    with (
        _source.open_source(store, server, policy, device, access, second) as source,
        Writer(format_, output, many=many) as writer,
    ):
        if not many:
            told = source.match(_source.request(whom[0], whom[1], asked)).to_dict()
            if reason := _answers.degraded(told):
                say(f"degraded: {reason}: this is the order of the first phase")
            writer.add(_answers.match_view(told))
            return 0
        return _match_all(source, whom[0], asked, writer)


def _whom(
    job: str | None,
    freelancer: str | None,
    inline: str | None,
    kind: KindOption,
    *,
    all_jobs: bool,
    all_freelancers: bool,
) -> tuple[Kind, str | dict[str, Any] | None]:
    """(kind, id or record or None for all) of whoever asks: exactly one option says it.

    Raises:
        InvalidArgument: none or several do, or the record is not a JSON object.
    """
    given = (job is not None, freelancer is not None, inline is not None, all_jobs, all_freelancers)
    if sum(given) != 1:
        raise InvalidArgument(
            "say who asks with exactly one of --job ID, --freelancer ID, --inline FILE, "
            "--all-jobs and --all-freelancers"
        )
    if inline is not None:
        return kind.value, read_record(inline)
    if all_jobs or job is not None:
        return "job", job
    return "freelancer", freelancer


def read_record(path: str) -> dict[str, Any]:
    """One record from a JSON file (``-`` is stdin).

    Raises:
        InvalidArgument: not JSON, nested too deep, or not an object.
    """
    text = read_text(path, limit=INLINE_BYTES_MAX)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidArgument(f"{path}: expected one JSON object, got {type(record).__name__}")
    return record


def _match_all(source: _source.Source, kind: Kind, asked: dict[str, Any], writer: Writer) -> int:
    """Every stored entity of a kind as a query, in batches; what fails is listed and counted."""
    failed = 0
    degraded: Counter[str] = Counter()
    total = source.count(kind)
    try:
        with progress(f"matching {kind}s", total) as advance:
            for ids, answers in _batches(source, kind, asked):
                for query_id, answer in zip(ids, answers, strict=True):
                    failed += isinstance(answer, MatchwrightError)
                    told = None if isinstance(answer, MatchwrightError) else answer.to_dict()
                    if told is not None and (reason := _answers.degraded(told)):
                        degraded[reason] += 1
                    writer.add(_view(query_id, answer, told, writer.format))
                advance(len(ids))
    except KeyboardInterrupt:
        raise Interrupted(_kept(writer)) from None
    say(f"{total:,} queries, {failed:,} of them failed")
    for reason, n in sorted(degraded.items()):
        say(f"degraded: {reason}: {n:,} answers are in the order of the first phase")
    return PartlyDone.exit_code if failed else 0


def _batches(
    source: _source.Source, kind: Kind, asked: dict[str, Any]
) -> Iterator[tuple[Sequence[str], Sequence[_source.Answer | MatchwrightError]]]:
    for ids in source.ids(kind, BATCH):
        requests: list[Request] = [_source.request(kind, query_id, asked) for query_id in ids]
        yield ids, source.match_many(requests)


def _view(query_id: str, answer: Any, told: Any, format_: Format) -> Any:
    if told is None:
        return _answers.failure_view(query_id, describe(answer))
    return _answers.match_view(told, brief=format_ is Format.TABLE)


def _kept(writer: Writer) -> str:
    where = "were printed" if writer.part is None else f"are in {writer.part}"
    return f"the first {writer.added:,} answers {where}"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(match)
