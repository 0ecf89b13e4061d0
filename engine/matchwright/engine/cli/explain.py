"""``matchwright explain``: why a pair matches, or why not."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _source
from matchwright.engine.cli._answers import thousandths
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._models_options import ModelsOption, TritonOption, models_of
from matchwright.engine.cli._options import (
    AsOfOption,
    FormatOption,
    KindOption,
    OutputOption,
    PolicyOption,
    day_of,
)
from matchwright.engine.cli._output import View, Writer, plainly

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LIST_SHOWN = 12


class Audience(enum.StrEnum):
    """Who reads the explanation."""

    OPERATOR = "operator"
    CLIENT = "client"
    FREELANCER = "freelancer"


def explain(
    job: Annotated[str, typer.Option("--job", metavar="ID", help="The job.")],
    freelancer: Annotated[str, typer.Option("--freelancer", metavar="ID", help="The freelancer.")],
    store: _source.StoreOrNone = None,
    server: _source.ServerOption = None,
    asks: Annotated[
        KindOption, typer.Option("--asks", help="Which side's ranking is explained.")
    ] = KindOption.JOB,
    audience: Annotated[
        Audience, typer.Option("--audience", help="Who reads it; limits of the other are hidden.")
    ] = Audience.OPERATOR,
    policy: PolicyOption = None,
    as_of: AsOfOption = None,
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
) -> None:
    """Say why a pair matches and where it ranks, or why not."""
    access = _source.Access(marketplace, token_file, tls_ca, timeout)
    second = _source.Second(models_of(models, triton), rerank)
    with (
        _source.open_source(store, server, policy, device, access, second) as source,
        Writer(format_, output) as writer,
    ):
        told = source.explain(
            job,
            freelancer,
            direction=asks.value,
            audience=audience.value,
            as_of=day_of(as_of),
        )
        writer.add(explanation_view(told.to_dict()))


def explanation_view(told: Mapping[str, Any]) -> View:
    """``told`` is ``Explanation.to_dict()``; rows are its facets."""
    document = plainly(told)
    pair = {name: document[name] for name in ("job_id", "freelancer_id", "eligible", "rank")}
    vetoes = ";".join(veto["reason"] for veto in document["vetoes"])
    rows = [{**pair, "vetoes": vetoes, **share} for share in document["contributions"]]
    return View(document, rows, lambda console: draw_explanation(console, document))


def draw_explanation(console: Console, told: Mapping[str, Any]) -> None:
    """Put an explanation on a terminal: the verdict, the reasons, the facets, the skills."""
    from rich.text import Text

    console.print(Text(harmless(_verdict(told)), style="bold"))
    for veto in told["vetoes"]:
        console.print(Text(harmless(f"  veto {_reason(veto)}"), style="red"))
    for passed in told["unverified"]:
        console.print(Text(harmless(f"  not verified: {_reason(passed)}"), style="yellow"))
    console.print(_facet_table(told["contributions"]))
    for line in _skill_lines(told["skills"]):
        console.print(harmless(line))
    if told["gap_points"] is not None and told["t"] is not None:
        gap = told["gap_points"] * told["t"]
        word = f"{-gap:.4f} above" if gap <= 0 else f"{gap:.4f} below"
        console.print(Text(f"{word} number {told['k']} of the list", style="dim"))
    if told.get("rerank"):
        _draw_second(console, told["rerank"])


def _draw_second(console: Console, second: Mapping[str, Any]) -> None:
    """The second phase: the outcome, what moved the pair, and every feature's contribution."""
    from rich.text import Text

    model = f"{second['model']}:{second['version']}"
    if not second["considered"]:
        console.print(Text(harmless(f"second phase ({model}): {second['text']}")))
        return
    place = ""
    if second["rank"] is not None:
        place = f"rank {second['first_rank']:,} became {second['rank']:,}; "
    elif second["rank_within"] is not None:
        place = f"among the first {second['rank_within']:,}; "
    console.print(Text(harmless(f"second phase ({model}): {place}{second['text']}"), style="bold"))
    for share in second["moved_by"]:
        console.print(harmless(f"  moved by: {share['text']} ({_effect(share)})"))
    console.print(_feature_table(second))
    if second["score"] is not None:
        told = f"model score {second['score']:.6g}, of which {second['bias']:.6g} for everybody"
        console.print(Text(f"{told}; contributions by {second['method']}", style="dim"))


def _effect(share: Mapping[str, Any]) -> str:
    return share["effect"] if share["score"] is None else f"{share['score']:+.6g}"


def _feature_table(second: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    open_ = second["score"] is not None
    for name in ("feature", *(("value", "unit", "score") if open_ else ()), "effect"):
        right = name in ("value", "score")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for share in second["contributions"]:
        numbers: tuple[str, ...] = ()
        if open_:
            value = "unknown" if share["value"] is None else f"{share['value']:,}"
            numbers = (value, share["unit"] or "", f"{share['score']:+.6g}")
        table.add_row(harmless(share["text"]), *numbers, share["effect"])
    return table


def _verdict(told: Mapping[str, Any]) -> str:
    job, freelancer = (told[name] or "(inline)" for name in ("job_id", "freelancer_id"))
    pair = f"job {job} and freelancer {freelancer}"
    if not told["eligible"]:
        would = f"; would rank {told['rank']:,}" if told["rank"] else ""
        return f"{pair}: not eligible{would}"
    among = told["eligible_count"]
    if told["rank"]:
        place = f"rank {told['rank']:,} of {among if isinstance(among, str) else f'{among:,}'}"
    elif told["rank_within"]:
        place = f"among the first {told['rank_within']:,}"
    else:
        place = "eligible, further down"
    score = f", score {told['score']:.4f}" if told["score"] is not None else ""
    return f"{pair}: {place}{score}"


def _reason(reason: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} = {_short(value)}" for name, value in reason["values"].items())
    return f"{reason['reason']}: {reason['text']}" + (f" ({values})" if values else "")


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(str(item) for item in value[:_LIST_SHOWN])
        return f"[{shown}{', ...' if len(value) > _LIST_SHOWN else ''}]"
    return "unknown" if value is None else str(value)


def _facet_table(shares: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = {"score": "score", "best": "of at most", "points": "points"}
    shown = [name for name in titles if any(share[name] is not None for share in shares)]
    table.add_column("facet")
    for name in shown:
        table.add_column(titles[name], justify="right")
    table.add_column("fit")
    for share in shares:
        numbers = (_number(share[name]) for name in shown)
        table.add_row(harmless(share["facet"]), *numbers, harmless(share["fit"]))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else thousandths(value)


def _skill_lines(skills: Mapping[str, Any]) -> list[str]:
    if not skills["known"]:
        return ["skills: one side does not tell its own"]
    told = {name: [one["name"] for one in skills[name]] for name in ("matched", "missing")}
    lines = [f"{name} skills: {_short(names)}" for name, names in told.items() if names]
    if skills["extra"]:
        lines.append(f"further skills: {_short(skills['extra'])}")
    lines += [f"counted {c['counted']!r} for {c['asked']!r}" for c in skills["collisions"]]
    return lines


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)
