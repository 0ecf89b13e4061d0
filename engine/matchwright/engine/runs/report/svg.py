"""Small inline SVG: shapes that take their colours from the page's style sheet.

Every chart is drawn at a fixed width in CSS pixels, so that its text has the size that it says. It
has no style of its own (the page's policy allows none): looks come from classes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from html import escape

FONT = 12
"""Size of text in a chart, CSS pixels; the style sheet sets the same."""
_THIN, _BROAD = frozenset("ijlft.,:;'|!()[]-/ "), frozenset("mwMW%@×&")
"""Characters of less and of more width than others."""


class Svg:
    """Collects shapes; ``done()`` is the element.

    Args:
        width, height: CSS pixels.
        title: what it shows, in a sentence; read aloud in place of the picture.
    """

    def __init__(self, width: int, height: float, title: str) -> None:
        self.width, self.height = width, math.ceil(height)
        self._title = title
        self._parts: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        look: str,
        *,
        tip: str = "",
        opacity: float | None = None,
        round_: float = 0,
    ) -> None:
        """A box; nothing is drawn for an empty one."""
        if width <= 0 or height <= 0:
            return
        more = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
        more += f' rx="{_n(round_)}"' if round_ else ""
        self._add(
            f'<rect class="{look}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" '
            f'height="{_n(height)}"{more}',
            "rect",
            tip,
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str) -> None:
        """A straight line."""
        self._parts.append(
            f'<line class="{look}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'
        )

    def circle(self, x: float, y: float, r: float, look: str, *, tip: str = "") -> None:
        """A dot."""
        shape = f'<circle class="{look}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"'
        self._add(shape, "circle", tip)

    def path(
        self, points: Sequence[tuple[float, float]], look: str, *, closed: bool = False
    ) -> None:
        """A line through points, or the area inside of them."""
        if not points:
            return
        steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._parts.append(f'<path class="{look}" d="M{steps}{"Z" if closed else ""}"/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        look: str = "t",
        *,
        anchor: str = "start",
        room: float | None = None,
    ) -> None:
        """A line of text, its baseline at ``y``, cut to ``room`` pixels and to the chart."""
        free = {"start": self.width - x, "end": x, "middle": 2 * min(x, self.width - x)}[anchor]
        shown = fitted(text, free if room is None else min(room, free))
        how = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._add(f'<text class="{look}" x="{_n(x)}" y="{_n(y)}"{how}', "text", "", shown)

    def _add(self, shape: str, name: str, tip: str, text: str = "") -> None:
        inside = (f"<title>{escape(tip)}</title>" if tip else "") + escape(text)
        self._parts.append(f"{shape}>{inside}</{name}>" if inside else f"{shape}/>")

    def done(self, look: str) -> str:
        """The element, of class ``look``."""
        return (
            f'<svg class="{look}" role="img" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" aria-label="{escape(self._title)}">'
            f"{''.join(self._parts)}</svg>"
        )


def _n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def text_width(text: str) -> float:
    """Pixels that a text takes at most, about, in the widest of the usual fonts."""
    return FONT * sum(map(_em, text))


@cache
def _em(one: str) -> float:
    """Width of a character, in em."""
    if one in _THIN:
        return 0.46
    if one in _BROAD:
        return 1.0
    if one.isascii() or one in "–…":
        return 0.76 if one.isupper() else 0.65
    return 1.05 if unicodedata.east_asian_width(one) in "WF" else 0.85


def fitted(text: str, room: float) -> str:
    """A text cut so that it takes no more than ``room`` pixels."""
    if text_width(text) <= room + 0.01:  # room may be a width that was added up
        return text
    while text and text_width(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers that cover low..high within, at most ``most`` + 1 of them."""
    span = high - low
    if span <= 0 or most < 1:
        return [low]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + n) * step for n in range(count)]
