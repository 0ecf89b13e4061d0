"""How matches and explanations look: as documents, as flat rows and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._options import date_of
from matchwright.engine.cli._output import View, plainly

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2
_NUMBER_WIDTH = 6
_CERTIFICATE = ("epoch", "generation", "policy", "eligible", "counted", "unverified", "returned")


def match_view(answer: Mapping[str, Any], *, brief: bool = False) -> View:
    """One answer, ``Result.to_dict()``; ``brief`` draws one line instead of a table."""
    document: dict[str, Any] = plainly(answer)
    rows = match_rows(document)
    if brief:
        return View(document, rows, lambda console: _draw_line(console, document))
    return View(document, rows, lambda console: _draw_matches(console, document))


def failure_view(query_id: str | None, error: Mapping[str, Any]) -> View:
    """One query that could not be answered, among others that were."""
    document: dict[str, Any] = {"query_id": query_id, "error": dict(error), "matches": []}
    line = f"{query_id}: {error['reason']}: {error['message']}"
    return View(document, [], lambda console: console.print(harmless(line), style="red"))


def degraded(answer: Mapping[str, Any]) -> str | None:
    """Why an answer that was to be reranked is not; None where it is, or was not to be."""
    second = answer.get("rerank")
    return None if second is None else second["degraded"]


def match_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One flat row for each match: the query, its certificate, the match and its facets' points."""
    certificate = {name: document.get(name) for name in _CERTIFICATE}
    rows = []
    for match in document["matches"]:
        facets = {f"points_{name}": points for name, points in match["contributions"].items()}
        rows.append(
            {
                "query_kind": document["kind"],
                "query_id": document["query_id"],
                "rank": match["rank"],
                "id": match["id"],
                "score": match["score"],
                "points": match["points"],
                **_second_phase(document, match),
                **certificate,
                **facets,
            }
        )
    return rows


def _second_phase(document: Mapping[str, Any], match: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a reranked answer's rows; none where the policy does not rerank."""
    second = document.get("rerank")
    if second is None:
        return {}
    return {
        "first_rank": match["first_rank"],
        "model_score": match["model_score"],
        "ranker": f"{second['model']}:{second['version']}",
        "degraded": second["degraded"],
    }


def _draw_matches(console: Console, answer: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    other = "freelancer" if answer["kind"] == "job" else "job"
    console.print(Text(harmless(_headline(answer)), style="bold"))
    second = answer.get("rerank") is not None
    model = ("first", "model") if second else ()
    taken = (
        _NUMBER_WIDTH * (2 + len(model))
        + _GAP * (2 + len(model))
        + max((len(harmless(match["id"])) for match in answer["matches"]), default=0)
    )
    facets = _busiest_facets(answer["matches"], console.width - taken)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("rank", other, *model, "score", *facets):
        table.add_column(name, justify="left" if name == other else "right", no_wrap=True)
    for match in answer["matches"]:
        parts = [thousandths(match["contributions"][name] * answer["t"]) for name in facets]
        said = _model_cells(match) if second else ()
        name = harmless(match["id"])
        table.add_row(str(match["rank"]), name, *said, f"{match['score']:.4f}", *parts)
    if answer["matches"]:
        console.print(table)
    for line in _certificate_lines(answer):
        console.print(Text(harmless(line), style="dim"), soft_wrap=True)


def _model_cells(match: Mapping[str, Any]) -> tuple[str, str]:
    score = match["model_score"]
    return str(match["first_rank"]), "" if score is None else f"{score:.4f}"


def thousandths(value: float) -> str:
    """Three places, and no minus before nothing."""
    return f"{round(value, 3) + 0.0:.3f}"


def _draw_line(console: Console, answer: Mapping[str, Any]) -> None:
    best = answer["matches"][0] if answer["matches"] else None
    told = f"best {best['id']} at {best['score']:.4f}" if best else _why_fewer(answer)
    console.print(
        harmless(
            f"{answer['kind']} {answer['query_id']}: {answer['returned']} of "
            f"{_count(answer)} eligible; {told}"
        )
    )


def _headline(answer: Mapping[str, Any]) -> str:
    whom = answer["query_id"] or "(inline)"
    return (
        f"{answer['kind']} {whom}: {answer['returned']} of {_count(answer)} eligible, "
        f"as of {date_of(answer['as_of'])}"
    )


def _count(answer: Mapping[str, Any]) -> str:
    words = {"EXACT": "", "AT_LEAST": "at least "}
    if answer["counted"] not in words:
        return "an uncounted number of"
    return f"{words[answer['counted']]}{answer['eligible']:,}"


def _why_fewer(answer: Mapping[str, Any]) -> str:
    told = {
        "EMPTY_CORPUS": "there is nobody on the other side",
        "QUERY_VETOED": "the one that asks rules out every answer by itself",
        "FEW_ELIGIBLE": "nobody else is eligible",
        "MIN_SCORE": "the others score below the minimum",
    }
    return told.get(answer["shortfall"], "") if answer["shortfall"] else ""


def _busiest_facets(matches: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """The facets that moved these matches most and fit the width, in the answer's own order."""
    if not matches:
        return []
    names = list(matches[0]["contributions"])
    weight = {name: sum(abs(m["contributions"][name]) for m in matches) for name in names}
    kept: set[str] = set()
    for name in sorted(names, key=lambda name: -weight[name]):
        width -= max(len(name), _NUMBER_WIDTH) + _GAP
        if width < 0 or weight[name] == 0:
            break
        kept.add(name)
    return [name for name in names if name in kept]


def _certificate_lines(answer: Mapping[str, Any]) -> list[str]:
    lines = []
    if answer["returned"] < answer["k"] and answer["shortfall"]:
        lines.append(f"fewer than {answer['k']}: {_why_fewer(answer)}")
    if answer["unverified"] > 0:
        lines.append(f"{answer['unverified']:,} of the eligible passed a rule on an unknown value")
    if (second := answer.get("rerank")) is not None:
        lines.append(_second_line(second))
    lines.append(
        f"best conceivable {answer['attainable']:.4f}; policy {str(answer['policy'])[:12]}; "
        f"generation {str(answer['generation'])[:12]}; epoch {_short_epoch(answer['epoch'])}"
    )
    return lines


def _second_line(second: Mapping[str, Any]) -> str:
    model = f"{second['model']}:{second['version']}"
    if second["degraded"] is not None:
        return f"degraded ({second['degraded']}): the first phase's order, without {model}"
    return f"{model} ordered the first {second['candidates']:,} of the first phase"


def _short_epoch(epoch: Any) -> str:
    """``uuid:number:digest`` with its long parts cut."""
    return ":".join(part[:8] for part in str(epoch).split(":"))
