"""The charts of a report: figures in, SVG out, drawn at any width.

Looks: ``a`` is what this side has or the best match, ``b`` its counterpart, ``g`` grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matchwright.engine.runs.report import words
from matchwright.engine.runs.report.histogram import Bins
from matchwright.engine.runs.report.svg import FONT, Svg, nice_ticks, text_width

WIDE, NARROW = 520, 300
"""Widths at which every chart is drawn, CSS pixels; the page shows the one that fits."""

Number = Callable[[float], str]


def both(draw: Callable[[int], Svg]) -> str:
    """A chart at both widths."""
    return draw(WIDE).done("wide") + draw(NARROW).done("narrow")


class Bar(NamedTuple):
    """A row of a bar chart: its name, its length, what is written at its end, a tip."""

    name: str
    value: float
    said: str
    tip: str = ""
    look: str = "a"


def bars(width: int, rows: Sequence[Bar], title: str) -> Svg:
    """Horizontal bars, each under its name; for names of any length."""
    step, high = 40, 13
    svg = Svg(width, step * len(rows) + 2, title)
    most = max((row.value for row in rows), default=0) or 1
    room = width - max((text_width(row.said) for row in rows), default=0) - 8
    for n, row in enumerate(rows):
        top = n * step
        svg.text(0, top + 13, row.name, room=width)
        svg.rect(0, top + 19, room, high, "track", round_=2)
        long = max(room * row.value / most, 1.5) if row.value else 0
        svg.rect(0, top + 19, long, high, row.look, tip=row.tip, round_=2)
        svg.text(width, top + 30, row.said, "t num", anchor="end")
    return svg


def columns(width: int, rows: Sequence[Bar], title: str) -> Svg:
    """Horizontal bars beside short names, close together; for ordered classes."""
    step, gap = 21, 8
    names = max((text_width(row.name) for row in rows), default=0)
    ends = max((text_width(row.said) for row in rows), default=0)
    svg = Svg(width, step * len(rows) + 2, title)
    most = max((row.value for row in rows), default=0) or 1
    room = width - names - ends - 2 * gap
    for n, row in enumerate(rows):
        top = n * step
        svg.text(names, top + 14, row.name, anchor="end")
        long = room * row.value / most
        wide = max(long, 1) if row.value else 0
        svg.rect(names + gap, top + 2, wide, 16, row.look, tip=row.tip, round_=2)
        svg.text(names + gap + long + 6, top + 14, row.said, "t num")
    return svg


class Frame:
    """Axes with ticks; ``x`` and ``y`` turn values into pixels."""

    def __init__(
        self,
        svg: Svg,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        x_text: Number,
        y_text: Number,
        x_name: str,
        y_name: str,
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
    ) -> None:
        self.svg, self._x, self._y = svg, x, y
        rising = nice_ticks(*y, 4) if y_ticks is None else y_ticks
        labels = [y_text(value) for value in rising]
        self.left = max((text_width(label) for label in labels), default=0) + 8
        self.right, self.top, self.bottom = svg.width - 10, 24.0, svg.height - 40.0
        svg.text(0, 11, y_name, "t soft")
        for value, label in zip(rising, labels, strict=True):
            at = self.y(value)
            svg.line(self.left, at, self.right, at, "grid")
            svg.text(self.left - 6, at + 4, label, "t num", anchor="end")
        across = nice_ticks(*x, 3 if svg.width < 400 else 6) if x_ticks is None else x_ticks
        self._below(across, x_text)
        svg.text(self.right, svg.height - 4, x_name, "t soft", anchor="end")

    def _below(self, ticks: Sequence[float], text: Number) -> None:
        """Names below the axis: those that do not fit beside the one before are left out."""
        free = -math.inf
        for value in ticks:
            at, label = self.x(value), text(value)
            self.svg.line(at, self.bottom, at, self.bottom + 4, "axis")
            half = text_width(label) / 2
            middle = min(max(at, half), self.svg.width - half)
            if middle - half >= free:
                self.svg.text(middle, self.bottom + 17, label, "t num", anchor="middle")
                free = middle + half + 4
        self.svg.line(self.left, self.bottom, self.right, self.bottom, "axis")

    def x(self, value: float) -> float:
        low, high = self._x
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self._y
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)


def same_bins(first: Bins, second: Bins, most: int) -> tuple[Bins, Bins]:
    """Two histograms in bins of one width, each in at most ``most`` of them."""
    first, second = first.coarser(most), second.coarser(most)
    wide = max(bins.width for bins in (first, second) if bins.counts)
    return first.at_width(wide), second.at_width(wide)


def histogram(
    width: int,
    filled: Bins,
    lined: Bins | None,
    title: str,
    *,
    text: Number,
    x_name: str,
    y_name: str,
    x_ticks: Sequence[float] | None = None,
) -> Svg:
    """Columns for one set of values and an outline for another."""
    most = 32 if width < 400 else 48
    filled, outline = same_bins(filled, filled if lined is None else lined, most)
    sets = [bins for bins in (filled, outline) if bins.counts]
    low = min(bins.low for bins in sets)
    high = max(bins.low + bins.width * len(bins.counts) for bins in sets)
    top = max(max(bins.counts) for bins in sets)
    svg = Svg(width, 240, title)
    frame = Frame(
        svg, (low, high), (0, top * 1.05), x_text=text, y_text=words.short,
        x_name=x_name, y_name=y_name, x_ticks=x_ticks,
    )  # fmt: skip
    for n, count in enumerate(filled.counts):
        start = filled.low + n * filled.width
        left, right = frame.x(start), frame.x(start + filled.width)
        tip = f"{text(start)} to {text(start + filled.width)}: {words.whole(count)}"
        height = frame.bottom - frame.y(count)
        svg.rect(left, frame.y(count), max(right - left - 1, 0.6), height, "a", tip=tip)
    if lined is not None:
        svg.path(_steps(frame, outline), "line b")
    return svg


def _steps(frame: Frame, bins: Bins) -> list[tuple[float, float]]:
    """The outline of a histogram."""
    points = [(frame.x(bins.low), frame.bottom)]
    for n, count in enumerate(bins.counts):
        start = bins.low + n * bins.width
        points += [(frame.x(at), frame.y(count)) for at in (start, start + bins.width)]
    return [*points, (points[-1][0], frame.bottom)] if len(points) > 1 else []


class Band(NamedTuple):
    """A row of a band chart: quantiles 5, 25, 50, 75, 95%, two marks, and the most there is."""

    name: str
    said: str
    quantiles: Sequence[float]
    first: float
    last: float
    most: float


def bands(width: int, rows: Sequence[Band], title: str) -> Svg:
    """Where values lie: 5 to 95% light, 25 to 75% dark, a dot and a ring for two means."""
    step = 44
    svg = Svg(width, step * len(rows) + 30, title)
    low = min([0.0, *(row.quantiles[0] for row in rows)])
    high = max([1e-9, *(max(row.most, row.quantiles[-1], row.first) for row in rows)])
    left, right = 7.0, width - 8.0

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    bottom = step * len(rows) + 4
    for value in nice_ticks(low, high, 4 if width < 400 else 8):
        half = text_width(f"{value:g}") / 2
        svg.line(x(value), 4, x(value), bottom, "grid")
        middle = min(max(x(value), half), width - half)
        svg.text(middle, bottom + 16, f"{value:g}", "t num", anchor="middle")
    for n, row in enumerate(rows):
        top = n * step
        q = row.quantiles
        svg.text(0, top + 14, row.name, room=width - text_width(row.said) - 8)
        svg.text(width, top + 14, row.said, "t num", anchor="end")
        y = top + 29
        svg.line(x(0), y, x(row.most), y, "axis")
        svg.line(x(row.most), y - 6, x(row.most), y + 6, "axis")
        tip = f"{row.name}: half of all between {q[1]:.3f} and {q[3]:.3f}, median {q[2]:.3f}"
        svg.rect(x(q[0]), y - 6, max(x(q[4]) - x(q[0]), 1), 12, "a thin", tip=tip, round_=2)
        svg.rect(x(q[1]), y - 6, max(x(q[3]) - x(q[1]), 1), 12, "a half", tip=tip, round_=2)
        svg.circle(x(row.last), y, 5, "ring")
        svg.circle(x(row.first), y, 3.5, "b")
    return svg


def lorenz(width: int, points: Sequence[tuple[float, float]], title: str) -> Svg:
    """The Lorenz curve, the line of equal shares, and the area between them."""
    svg = Svg(width, min(width * 0.72, 330), title)
    quarters = (0, 25, 50, 75, 100)
    frame = Frame(
        svg, (0, 100), (0, 100), x_text=lambda v: f"{v:g}%", y_text=lambda v: f"{v:g}%",
        x_name="available, least shown first", y_name="share of places",
        x_ticks=quarters, y_ticks=quarters,
    )  # fmt: skip
    curve = [(frame.x(people), frame.y(places)) for people, places in points]
    svg.path([*curve, (frame.x(0), frame.y(0))], "a thin area", closed=True)
    svg.line(frame.x(0), frame.y(0), frame.x(100), frame.y(100), "equal")
    svg.path(curve, "line a")
    svg.text(frame.x(49), frame.y(57), "equal shares", "t soft", anchor="end")
    return svg


class Pair(NamedTuple):
    """A row of a mirrored chart: two shares of 1, what is written beside them, a tip."""

    name: str
    left: float
    right: float
    left_said: str = ""
    right_said: str = ""
    tip: str = ""


def mirrored(width: int, rows: Sequence[Pair], title: str, names: tuple[str, str]) -> Svg:
    """Two histograms back to back, names of classes between them."""
    step = 17
    middle = max((text_width(row.name) for row in rows), default=0) + 16
    svg = Svg(width, step * len(rows) + 26, title)
    most = max((max(row.left, row.right) for row in rows), default=0) or 1
    room = (width - middle) / 2
    svg.text(room, 12, names[0], "t soft", anchor="end")
    svg.text(room + middle, 12, names[1], "t soft")
    for n, row in enumerate(rows):
        top = 22 + n * step
        left, right = room * row.left / most, room * row.right / most
        svg.rect(room - left, top, left, step - 3, "b", tip=row.tip, round_=2)
        svg.rect(room + middle, top, right, step - 3, "a", tip=row.tip, round_=2)
        svg.text(width / 2, top + 11, row.name, "t num", anchor="middle")
    return svg


def butterfly(width: int, rows: Sequence[Pair], title: str) -> Svg:
    """Two shares of each name, to the left and right of one line, with their numbers."""
    step = 40
    svg = Svg(width, step * len(rows) + 2, title)
    ends = [
        max((text_width(said) for said in column), default=0) + 6
        for column in ([row.left_said for row in rows], [row.right_said for row in rows])
    ]
    left = max((row.left for row in rows), default=0)
    right = max((row.right for row in rows), default=0)
    scale = (width - sum(ends)) / ((left + right) or 1)
    middle = ends[0] + scale * left
    for n, row in enumerate(rows):
        top = n * step
        svg.text(0, top + 13, row.name, room=width)
        svg.rect(middle - scale * row.left, top + 19, scale * row.left, 13, "b", tip=row.tip)
        svg.rect(middle, top + 19, scale * row.right, 13, "a", tip=row.tip)
        svg.text(middle - scale * row.left - 5, top + 30, row.left_said, "t num", anchor="end")
        svg.text(middle + scale * row.right + 5, top + 30, row.right_said, "t num")
        svg.line(middle, top + 17, middle, top + 34, "axis")
    return svg


def heat(
    width: int,
    cells: Sequence[tuple[int, int, int]],
    edges: Sequence[int],
    title: str,
    *,
    x_name: str,
    y_name: str,
) -> Svg:
    """Counts of pairs of classes as shades of one colour; the line is where both are equal."""
    low = min(min(x, y) for x, y, _ in cells)
    high = max(max(x, y) for x, y, _ in cells) + 1
    svg = Svg(width, min(width * 0.8, 380), title)
    spans = range(low, high + 1)
    ticks = [at for at in spans if (at - 8) % 8 == 0 or (at - 8) % 8 == 4]

    def text(at: float) -> str:
        return words.money(round_money(edges[round(at)]))

    frame = Frame(
        svg, (low, high), (low, high), x_text=text, y_text=text, x_name=x_name, y_name=y_name,
        x_ticks=ticks, y_ticks=ticks,
    )  # fmt: skip
    most = max(n for _, _, n in cells)
    for x, y, n in cells:
        left, right = frame.x(x), frame.x(x + 1)
        top, bottom = frame.y(y + 1), frame.y(y)
        tip = (
            f"budget {words.money(edges[x])} to {words.money(edges[x + 1])}, "
            f"rate {words.money(edges[y])} to {words.money(edges[y + 1])}: {words.whole(n)} matches"
        )
        shade = 0.08 + 0.92 * math.sqrt(n / most)
        svg.rect(left, top, right - left, bottom - top, "a", tip=tip, opacity=shade)
    svg.line(frame.x(low), frame.y(low), frame.x(high), frame.y(high), "equal")
    return svg


def round_money(cents: int) -> int:
    """An edge of a class, at two digits."""
    return int(round(cents, 1 - int(math.log10(max(cents, 1)))))


def speed(
    width: int, steps: Sequence[tuple[float, float, float, str, str]], title: str, y_name: str
) -> Svg:
    """A rate over time: (start, end, rate, look, tip) of each step."""
    svg = Svg(width, 240, title)
    end = max(step[1] for step in steps)
    top = max(step[2] for step in steps) or 1.0
    frame = Frame(
        svg, (0, end), (0, top * 1.05), x_text=words.short, y_text=words.short,
        x_name="working seconds", y_name=y_name,
    )  # fmt: skip
    for start, stop, rate, look, tip in steps:
        left, right = frame.x(start), frame.x(stop)
        wide = max(right - left - (1 if right - left > 3 else 0), 0.5)
        svg.rect(left, frame.y(rate), wide, frame.bottom - frame.y(rate), look, tip=tip)
    return svg


def stacked(width: int, parts: Sequence[tuple[float, str, str]], title: str) -> Svg:
    """One bar of parts (value, look, tip) that add up to the whole."""
    svg = Svg(width, 34, title)
    total = sum(value for value, _, _ in parts) or 1
    at = 0.0
    for value, look, tip in parts:
        wide = width * value / total
        svg.rect(at, 3, max(wide - 1, min(wide, 1.5)), 28, look, tip=tip)
        at += wide
    return svg


__all__ = [
    "Band",
    "Bar",
    "FONT",
    "NARROW",
    "Pair",
    "WIDE",
    "bands",
    "bars",
    "both",
    "butterfly",
    "columns",
    "heat",
    "histogram",
    "lorenz",
    "mirrored",
    "speed",
    "stacked",
]
