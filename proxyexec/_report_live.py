"""What a report shows of memory: bytes in the store, over time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from proxyexec._report_parts import (
    Stop,
    figure,
    grid_across,
    grid_down,
    hidden_table,
    key,
    tick_seconds,
)
from proxyexec._report_svg import element, linear, lines, steps_of
from proxyexec._sizes import format_size
from proxyexec._table import seconds_text

__all__ = ["Live", "live_figure"]

_HEIGHT = 200

# Parts of the time in each of which a line has two points at most: the largest, and the last.
_BOXES = 500

# Moments that are told when the chart is pointed at.
_MOMENTS = 120

# How many lines can be told apart by how they are drawn.
_LINES = 4


class Live(NamedTuple):
    """Bytes in the store, with one policy."""

    name: str
    points: Sequence[tuple[float, int]]
    """Bytes from each moment on."""
    end: float
    """Of the run, in seconds."""


def live_figure(all_live: Sequence[Live], *, name: str, seconds: float) -> str:
    """Return the chart of live bytes.

    Args:
        all_live: what is drawn, the most important first; few can be told apart.
        name: of the chart, for the page.
        seconds: the end of its axis.
    """
    all_live = all_live[:_LINES]
    peaks = [max((size for _, size in one.points), default=0) for one in all_live]
    across = linear(seconds)
    down = linear(max(peaks, default=0), 4, is_rounded=True)
    grid = [
        *grid_across(across, _HEIGHT, tick_seconds),
        *grid_down(down, _HEIGHT, format_size),
    ]
    drawn = [
        element(
            "path", d=steps_of(_thinned(one), across, down, _HEIGHT), class_=f"line live{place}"
        )
        for place, one in reversed(list(enumerate(all_live)))
    ]
    moments = [seconds * step / _MOMENTS for step in range(_MOMENTS + 1)]
    stops = []
    for moment in moments:
        told = [f"{one.name}: {format_size(_at(one, moment))}" for one in all_live]
        place = across.share(moment)
        stops.append(Stop(place, place, 0, _HEIGHT, "\n".join([seconds_text(moment), *told])))
    signs = (
        element("line", x1=0, x2=34, y1=7, y2=7, class_=f"line live{place}")
        for place in range(len(all_live))
    )
    most = ", ".join(
        f"{format_size(peak)} ({one.name})" for one, peak in zip(all_live, peaks, strict=True)
    )
    return key(zip(signs, (one.name for one in all_live), strict=True)) + figure(
        name=name,
        title="Bytes in the store over time.",
        says=f"At most: {most}.",
        drawn=[*grid, lines(drawn, _HEIGHT)],
        height=_HEIGHT,
        stops=stops,
        after=hidden_table(
            "Bytes in the store",
            ["time", *(one.name for one in all_live)],
            [
                [seconds_text(moment), *(format_size(_at(one, moment)) for one in all_live)]
                for moment in moments[:: _MOMENTS // 12]
            ],
        ),
    )


def _at(live: Live, moment: float) -> int:
    place = bisect_right(live.points, moment, key=lambda one: one[0])
    return live.points[place - 1][1] if place else 0


def _thinned(live: Live) -> list[tuple[float, int]]:
    """Return what is drawn of a line: no more points than there is room for, with its peaks."""
    width = max(live.end, 1e-9) / _BOXES
    points: list[tuple[float, int]] = [(0.0, 0)]
    for _, close in groupby(live.points, key=lambda one: int(one[0] / width)):
        *earlier, last = close
        largest = max(earlier, key=lambda one: one[1], default=last)
        points += [largest, last] if largest[1] > last[1] else [last]
    return [*points, (live.end, points[-1][1])]
