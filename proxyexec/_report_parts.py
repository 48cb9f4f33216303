"""What the sections of a report have in common: figures, tables, keys, numbers on axes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from proxyexec._report_svg import Axis, element, text

__all__ = [
    "Cell",
    "Stop",
    "figure",
    "grid_across",
    "grid_down",
    "hidden_table",
    "key",
    "scrolled_table",
    "tick_seconds",
]


# From where on across the words of a tick end there.
_LAST = 0.98


class Stop(NamedTuple):
    """A place in a chart that says something when it is pointed at."""

    start: float
    """Where it is across, from 0 to 1."""
    end: float
    top: float
    """Where it is down, in pixels."""
    bottom: float
    words: str


class Cell(NamedTuple):
    """A cell of a table."""

    shown: str
    """HTML."""
    value: float | None = None
    """What it is sorted by, if not by what is shown."""


def figure(
    *,
    name: str,
    title: str,
    says: str,
    drawn: Iterable[str],
    height: float,
    stops: Iterable[Stop],
    after: str = "",
    margin: str | None = None,
) -> str:
    """Return a chart.

    Args:
        name: of its elements, for the page.
        title: in a few words.
        says: what it shows, in a sentence.
        drawn: SVG.
        height: in pixels.
        stops: what is said when something is pointed at, by lane, from the left to the right.
        after: HTML that stands below it.
        margin: at its left side, for other words than numbers: ``"wide"``, or ``"none"``.
    """
    # In a script no more than "<" could end it; the rest are characters of ASCII.
    told = json.dumps(
        [
            [round(1000 * one.start, 2), round(1000 * one.end, 2), one.top, one.bottom, one.words]
            for one in stops
        ],
        separators=(",", ":"),
    ).replace("<", "\\u003c")
    plot = element(
        "div",
        element("svg", *drawn, width="100%", height=height, aria_hidden="true"),
        class_="plot",
        tabindex=0,
        role="group",
        aria_roledescription="chart",
        aria_label=f"{title}. {says} Arrow keys tell its values.",
        data_stops=f"{name}-stops",
    )
    return element(
        "figure",
        element("figcaption", element("strong", text(title)), " ", text(says)),
        plot,
        element("script", told, type="application/json", id=f"{name}-stops"),
        after,
        id=name,
        class_=margin,
    )


def key(entries: Iterable[tuple[str, str]]) -> str:
    """Return what the signs of a chart stand for.

    Args:
        entries: SVG of each sign, 34 by 14 pixels large, and its words.
    """
    return element(
        "ul",
        *(
            element(
                "li",
                element("svg", sign, width=34, height=14, aria_hidden="true"),
                " ",
                text(words),
            )
            for sign, words in entries
        ),
        class_="key",
    )


def scrolled_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    caption: str,
    left: Collection[int] = (0,),
    classes: Iterable[str] = (),
    rows_shown: int | None = None,
) -> str:
    """Return a table, which is scrolled where it is wider than the page.

    Args:
        columns: their heads.
        rows: the cells of each.
        caption: what it shows.
        left: which columns hold words.
        classes: one for each row, if any.
        rows_shown: how many there are before somebody asks for all; such a table can be sorted.
    """

    def kind(place: int) -> str | None:
        return None if place in left else "number"

    heads = "".join(
        element("th", text(head), scope="col", class_=kind(place))
        for place, head in enumerate(columns)
    )
    given = iter(classes)
    body = "".join(
        element(
            "tr",
            *(
                element("td", cell.shown, class_=kind(place), data_value=cell.value)
                for place, cell in enumerate(row)
            ),
            class_=next(given, None) or None,
        )
        for row in rows
    )
    table = element(
        "table",
        element("thead", element("tr", heads)),
        element("tbody", body),
        class_=None if rows_shown is None else "sortable",
        data_rows=rows_shown,
    )
    # Which scrolls by keys, too; what it shows stays where it is.
    inside = element("div", table, class_="scrolled", tabindex=0, role="region", aria_label=caption)
    return element("p", text(caption), class_="caption") + inside


def hidden_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return numbers of a chart, which are shown when somebody asks."""
    cells = [[Cell(text(cell)) for cell in row] for row in rows]
    table = scrolled_table(columns, cells, caption=caption, left=())
    return element("details", element("summary", "Numbers"), table)


def grid_across(axis: Axis, height: float, words: Callable[[float], str]) -> Iterable[str]:
    """Return the ticks of an axis from the left to the right.

    Args:
        axis: it.
        height: of the chart, in pixels.
        words: for the value of a tick.
    """
    for place, value in enumerate(axis.ticks):
        x = axis.percent(value)
        yield element("line", x1=x, x2=x, y1=0, y2=height, class_="grid")
        # Where there is room for fewer, each other one is left out.
        class_ = "tick minor" if place % 2 else "tick"
        # At the ends, within the chart: others may be beside it.
        anchor = "start" if place == 0 else "end" if axis.share(value) > _LAST else "middle"
        told = text(words(value))
        yield element("text", told, x=x, y=height + 19, text_anchor=anchor, class_=class_)


def grid_down(axis: Axis, height: float, words: Callable[[float], str]) -> Iterable[str]:
    """Return the ticks of an axis from the bottom to the top; see :func:`grid_across`."""
    for value in axis.ticks:
        y = axis.down(value, height)
        yield element("line", x1=0, x2="100%", y1=y, y2=y, class_="grid")
        told = text(words(value))
        yield element("text", told, x=-8, y=y + 4, text_anchor="end", class_="tick")


def tick_seconds(seconds: float) -> str:
    """Write a round time: ``0``, ``10 µs``, ``1 ms``, ``2.5 s``, ``20,000 s``."""
    if seconds <= 0:
        return "0"
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.4g} s" if seconds < 9999.5 else f"{seconds:,.0f} s"
