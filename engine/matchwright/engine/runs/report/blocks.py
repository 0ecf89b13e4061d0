"""What a page is made of: sections of panels of blocks, each with a chart, a note and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from matchwright.engine.runs.report.charts import both
from matchwright.engine.runs.report.svg import Svg


@dataclass(frozen=True)
class Table:
    """Numbers under a chart; a cell that is not text is right-aligned by the page.

    Attributes:
        head: names of columns; ``text`` of them, from the left, hold text.
        rows: cells as they are shown.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1


@dataclass(frozen=True)
class Block:
    """One figure.

    Attributes:
        title: of the figure.
        note: what it is and how it was counted, in a sentence or two.
        chart: SVG at both widths, or None.
        legend: (look, text) of each colour.
        tables: numbers; shown at once when there is no chart, else on request.
    """

    title: str
    note: str
    chart: Markup | None = None
    legend: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Panel:
    """Blocks side by side with those of the other panels of a section."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A part of the page, with its place in the table of contents."""

    id: str
    title: str
    intro: str
    panels: Sequence[Panel]


def drawn(draw: Callable[[int], Svg]) -> Markup:
    """A chart at both widths; its texts are escaped by ``Svg``."""
    return Markup(both(draw))
