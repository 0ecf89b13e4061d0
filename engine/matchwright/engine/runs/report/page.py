"""Figures as one HTML file: no request leaves it, and nothing in it can be taken for code."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from matchwright.engine.matcher import OTHER
from matchwright.engine.records import Kind
from matchwright.engine.runs.report import (
    headlines,
    market_panels,
    panels,
    second_panels,
    words,
)
from matchwright.engine.runs.report.blocks import Block, Panel, Section
from matchwright.engine.runs.report.figures import Figures, Way
from matchwright.engine.runs.report.histogram import FINEST
from matchwright.engine.runs.report.sample import Query, Shown

DIGITS = 9
"""Significant digits of the numbers in the page's JSON."""
FITS = ("strong", "fair", "weak", "not known")
_HERE = "matchwright.engine.runs.report"
_ESCAPED = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


def render(figures: Figures) -> str:
    """The page.

    Args:
        figures: all that it says; also embedded as JSON (``script#figures``).
    """
    style, script = _file("report.css"), _file("report.js")
    return _template().render(
        head=figures.head,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(figures.to_dict())),
        tiles=headlines.tiles(figures),
        sentences=headlines.sentences(figures),
        notices=headlines.notices(figures),
        facts=_facts(figures),
        sections=_sections(figures),
        sample=[_Told(query) for query in figures.sample],
        asked=_asked(figures.head.kinds),
        plural=words.PLURAL,
        day=words.day(figures.head.as_of),
        ended=words.moment(str(figures.head.summary.get("ended", ""))),
        verdict=_verdict(figures),
        words=words,
    )


def _asked(kinds: Sequence[Kind]) -> str:
    """Who asked, as the beginning of a sentence."""
    return words.first_up(" and ".join(words.ASKING[kind].lower() for kind in kinds))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({"report": _file("report.html.j2")}),
    )
    return environment.get_template("report")


@cache
def _file(name: str) -> str:
    return resources.files(_HERE).joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """What the browser may do: run our one script, use our one style sheet, nothing else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(document: Any) -> str:
    """JSON that no HTML parser takes for anything else."""
    text = json.dumps(_rounded(document), ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPED)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        edge = math.ldexp(value, -FINEST).is_integer()  # edges of bins stay exact
        return value if edge else float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {str(name): _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


# ── What is said of the run ───────────────────────────────────────────────────────────────────


def _verdict(figures: Figures) -> str:
    said = {
        "": "not verified",
        "SOUND": "verified",
        "REDACTED": "verified but for people erased",
        "FAILED": "verification failed",
    }
    return said.get(figures.head.verdict, figures.head.verdict.lower())


def _facts(figures: Figures) -> list[tuple[str, str, bool]]:
    """(name, value, whether it is an id) of what determined the run."""
    head, told = figures.head, figures.head.summary
    living = ", ".join(f"{words.whole(n)} {words.PLURAL[kind]}" for kind, n in head.living.items())
    versions = told.get("versions") or {}
    return [
        ("Run", head.run_id, True),
        ("State", f"{head.state}, {_verdict(figures)}", False),
        ("Published", "yes" if head.published else "no", False),
        ("Decided for", words.day(head.as_of), False),
        ("Matches of each query", words.whole(head.k), False),
        ("Epoch", head.epoch, True),
        ("In it", living, False),
        *([] if head.base is None else [("Starts from run", head.base, True)]),
        ("Generation", head.generation, True),
        ("Policy", f"{head.policy_name} {head.policy}", True),
        *[
            ("Model", f"{way.second.model} {way.second.content_hash}", True)
            for way in figures.ways[:1]
            if way.second is not None
        ],
        ("Digest", str(told.get("digest", "–")), True),
        ("Started", words.moment(str(told.get("started", "–"))), False),
        ("Ended", words.moment(str(told.get("ended", "–"))), False),
        ("Device", str(told.get("device") or "–"), False),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()), False),
    ]


# ── Sections ──────────────────────────────────────────────────────────────────────────────────


def _sections(figures: Figures) -> list[Section]:
    ways, k = figures.ways, figures.head.k
    found = [
        Section(
            "found",
            "Who found whom",
            "Queries with all, few and no matches, and the rules that stand in the way.",
            [
                _panel(
                    way.kind, [panels.outcome(way, k), panels.rules(way, k), panels.eligible(way)]
                )
                for way in ways
            ],
        ),
        Section(
            "scores",
            "Scores",
            "How close matches come to what each query could at best have.",
            [_panel(way.kind, [panels.scores(way, k), panels.facets(way, k)]) for way in ways],
        ),
    ]
    shown = [_panel(way.kind, _exposure(way)) for way in ways if way.exposure is not None]
    if shown:
        about = "Who is shown, how often, and who never is."
        found.append(Section("exposure", "Exposure", about, shown))
    ordered = [way for way in ways if way.second is not None]
    if ordered:
        about = "What the model of the second phase changed, and what it goes by."
        made = [_panel(way.kind, second_panels.blocks(way, k)) for way in ordered]
        found.append(Section("model", "Model", about, made))
    found += _post_pass(figures)
    if figures.rates is not None:
        blocks = market_panels.rates(figures.rates)
        about = "What is asked, what is paid, and where matches lie."
        found.append(Section("rates", "Rates and budgets", about, _side_by_side(blocks)))
    if figures.skills is not None:
        blocks = market_panels.skills(figures.skills)
        about = "What jobs ask for beside what freelancers offer."
        found.append(Section("skills", "Skills", about, _side_by_side(blocks)))
    if figures.throughput is not None:
        blocks = market_panels.speed(figures.throughput)
        about = "How fast the work went."
        found.append(Section("speed", "Throughput", about, _side_by_side(blocks)))
    return found


def _panel(kind: Kind, blocks: Sequence[Block | None]) -> Panel:
    return Panel(words.ASKING[kind], [block for block in blocks if block is not None])


def _exposure(way: Way) -> list[Block]:
    assert way.exposure is not None, "checked by the caller"
    blocks = [panels.concentration(way, way.exposure)]
    if way.exposure.places:
        blocks.append(panels.often(way, way.exposure))
        if way.newcomers is not None:
            blocks.append(panels.newcomers(way.newcomers))
    return blocks


def _post_pass(figures: Figures) -> list[Section]:
    told = figures.moved.get("kinds") or {}
    made: list[Panel] = []
    for way in figures.ways:
        blocks = market_panels.moved(way, told.get(way.kind) or {})
        if blocks and not made and figures.moved:
            blocks.insert(1, market_panels.settings(figures.moved))
        if blocks:
            made += [_panel(way.kind, blocks[:-1]), _panel(way.kind, blocks[-1:])]
    about = "What the policy's exposure pass changed after scoring, and its price."
    return [Section("moved", "Exposure pass", about, made)] if made else []


def _side_by_side(blocks: Sequence[Block]) -> list[Panel]:
    return [Panel("", [block]) for block in blocks]


# ── The sample ────────────────────────────────────────────────────────────────────────────────


class _Told:
    """A drawn query with its words."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.other = OTHER[query.kind]
        self.matches = [(match, *_reasons(match)) for match in query.matches]
        self.outcome = {
            "full": f"{words.whole(query.returned)} matches",
            "few": f"only {words.whole(query.returned)}",
            "none": "no match",
        }[query.outcome]
        self.why = words.SHORTFALL.get(query.shortfall or "", "")


def _reasons(match: Shown) -> tuple[list[str], list[tuple[str, str]]]:
    """(sentences, (fit, facets with their part of the score)) of a match."""
    said = []
    if match.skills_asked > 0:
        said.append(_skills(match))
    if match.money:
        said.append(f"{words.first_up(match.money)}.")
    if match.model_score is not None and match.first_rank is not None:
        same = match.first_rank == match.rank
        where = (
            "as in the first phase" if same else f"the first phase had it at {match.first_rank:,}"
        )
        said.append(f"Model score {match.model_score:,}; {where}.")
    if match.moved:
        told = match.first_rank is not None and match.model_score is None
        was = f", was {match.first_rank:,}" if told else ""
        said.append(f"Exposure pass: {words.MOVED.get(match.moved, match.moved)}{was}.")
    fits = []
    for fit in FITS:
        mine = sorted((one for one in match.shares if one.fit == fit), key=lambda one: -one.score)
        if mine:
            fits.append((fit, ", ".join(f"{one.facet} {one.score:.2f}" for one in mine)))
    return said, fits


def _skills(match: Shown) -> str:
    matched, missing = match.skills_matched, match.skills_missing
    has = f"Has {match.skills_held} of {match.skills_asked} skills asked for"
    has += f": {', '.join(matched)}" if matched else ""
    has += "" if match.skills_held == len(matched) else ", …"
    if not missing:
        return has + "."
    more = "" if match.skills_asked - match.skills_held == len(missing) else ", …"
    return f"{has}; not {', '.join(missing)}{more}."
