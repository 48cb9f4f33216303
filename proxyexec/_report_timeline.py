"""What a report shows of time: who was busy with what, on a lane for each.

Functions are tall, transfers a thin line of bars below them, with a pattern for each kind, so that
both are told apart where there are no colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyexec._cli_parts import many
from proxyexec._report_parts import Stop, figure, grid_across, hidden_table, key, tick_seconds
from proxyexec._report_svg import Axis, element, linear, text
from proxyexec._sizes import format_size
from proxyexec._table import seconds_text

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneSpan, TuneTimeline

__all__ = ["timeline_figure", "timeline_key"]

_KINDS = {
    "run": "function",
    "serialize": "serializing",
    "put": "storing",
    "find": "found stored",
    "inline": "sending inline",
    "get": "fetching",
}

# In pixels: a function, a transfer, and what is between lanes.
_TALL = 18
_THIN = 11
_GAP = 9
_LANE = _TALL + 1 + _THIN + _GAP

# Lanes that are drawn; there is one for each worker.
_LANES = 24

# Spans that are shorter than this share of the width are put together if there is less between
# them: they could not be told apart.
_CLOSE = 1 / 800

# Bars that are drawn at most. If there are more, longer ones are put together.
_BARS = 3000

# From which share of the width on a bar has room for a name.
_ROOM = 0.04

# The same where the page is narrow.
_AMPLE = 0.15


@dataclass
class _Bar:
    """One or more spans of a kind that are close to each other."""

    spans: int
    start: float
    end: float
    busy: float
    bytes: int
    first: TuneSpan
    functions: set[str]
    is_short: bool
    """Whether all of them are too short to be seen."""


def timeline_key() -> str:
    """Return what the bars of all timelines stand for."""
    return key((_bar(kind, 1, 32, 1, 12), words) for kind, words in _KINDS.items())


def timeline_figure(
    timeline: TuneTimeline, *, name: str, title: str, says: str, scale: float, seconds: float
) -> str:
    """Return the chart of a timeline.

    Args:
        timeline: what is shown.
        name: of the chart, for the page.
        title: of the chart.
        says: what it shows, in a sentence.
        scale: what its times are multiplied by.
        seconds: the end of the axis: the same in charts that are compared.
    """
    across = linear(seconds)
    by_lane: dict[str, list[TuneSpan]] = {}
    for span in timeline.spans:
        by_lane.setdefault(span.lane, []).append(span)
    names = sorted(by_lane, key=_order)
    shown, hidden = names[:_LANES], len(names) - _LANES
    height = max(len(shown), 1) * _LANE - _GAP + 4
    bars = _bars({lane: by_lane[lane] for lane in shown}, scale, seconds)
    functions = sorted({span.function for span in timeline.spans})
    drawn = [
        *grid_across(across, height, tick_seconds),
        *_end(across, timeline.seconds * scale, height),
    ]
    stops = []
    for place, lane in enumerate(shown):
        top = place * _LANE
        drawn.append(
            element("text", text(lane), x=-8, y=top + 14, text_anchor="end", class_="tick lane")
        )
        drawn.append(
            element("line", x1=0, x2="100%", y1=top + _TALL, y2=top + _TALL, class_="lane")
        )
        for bar in bars[lane]:
            at = _stop(bar, lane, across, top)
            stops.append(at)
            drawn.append(_drawn(bar, at, functions))
    left = [f"{many(hidden, 'more worker')} not shown."] if hidden > 0 else []
    if timeline.left_out:
        left.append(f"{many(timeline.left_out, 'later span')} left out.")
    return figure(
        name=name,
        title=title,
        says=" ".join([says, *left]),
        drawn=drawn,
        height=height,
        stops=sorted(stops, key=lambda one: (one.top, one.start)),
        after=_table(names, by_lane, scale),
        margin="wide",
    )


def _order(lane: str) -> tuple[bool, int, str]:
    # The client is first, and worker 10 comes after worker 9.
    number = lane.rpartition(" ")[2]
    return lane != "client", int(number) if number.isdecimal() else 0, lane


def _bars(
    by_lane: dict[str, list[TuneSpan]], scale: float, seconds: float
) -> dict[str, list[_Bar]]:
    """Return the bars of each lane: as many as can be drawn."""
    close = _CLOSE
    while True:
        bars = {lane: _merged(spans, scale, close * seconds) for lane, spans in by_lane.items()}
        if sum(map(len, bars.values())) <= _BARS or close > 1:
            return bars
        close *= 2


def _merged(spans: Iterable[TuneSpan], scale: float, close: float) -> list[_Bar]:
    bars: list[_Bar] = []
    last: dict[str, _Bar] = {}
    for span in sorted(spans, key=lambda one: one.start):
        start, end = scale * span.start, scale * span.end
        is_short = end - start <= close
        bar = last.get(span.kind)
        if bar is None or start - bar.end > close or not (is_short and bar.is_short):
            bar = last[span.kind] = _Bar(0, start, end, 0.0, 0, span, set(), is_short)
            bars.append(bar)
        bar.spans += 1
        bar.end = max(bar.end, end)
        bar.busy += end - start
        bar.bytes += span.bytes
        bar.functions.add(span.function)
    return bars


def _stop(bar: _Bar, lane: str, across: Axis, top: float) -> Stop:
    if bar.first.kind != "run":
        top += _TALL + 1
    height = _TALL if bar.first.kind == "run" else _THIN
    start, end = across.share(bar.start), across.share(bar.end)
    return Stop(start, end, top, top + height, _words(bar, lane))


def _words(bar: _Bar, lane: str) -> str:
    span, kind = bar.first, _KINDS[bar.first.kind]
    when = f"{lane}, {seconds_text(bar.start)} to {seconds_text(bar.end)}"
    functions = ", ".join(sorted(bar.functions)[:3]) + ("" if len(bar.functions) < 4 else ", …")
    if bar.spans > 1:
        size = f", {format_size(bar.bytes)}" if bar.bytes else ""
        return (
            f"{kind}, {bar.spans} times{size}\n{seconds_text(bar.busy)} in all\n{functions}\n{when}"
        )
    if span.kind == "run":
        return f"{span.function}, task {span.task}\n{seconds_text(bar.busy)}\n{when}"
    what = f"{kind}: {span.what}, {span.type}, {format_size(span.bytes)}"
    return f"{what}\n{seconds_text(bar.busy)}\nof {span.function}, task {span.task}\n{when}"


def _drawn(bar: _Bar, at: Stop, functions: Sequence[str]) -> str:
    kind, width = bar.first.kind, at.end - at.start
    x, broad = f"{100 * at.start:.4g}%", f"{100 * width:.4g}%"
    shade = f" shade{functions.index(bar.first.function) % 3}" if kind == "run" else ""
    drawn = _bar(f"{kind}{shade}", x, broad, at.top, at.bottom - at.top)
    if kind != "run" or width < _ROOM:
        return drawn
    # Cut off at the end of the bar.
    class_ = "inside" if width > _AMPLE else "inside minor"
    words = element("text", text(bar.first.function), x=5, y=13, class_=class_)
    return drawn + element("svg", words, class_="clipped", x=x, y=at.top, width=broad, height=_TALL)


def _bar(class_: str, x: object, width: object, y: float, height: float) -> str:
    return element("rect", x=x, width=width, y=y, height=height, class_=f"bar {class_}")


def _end(across: Axis, seconds: float, height: float) -> Iterable[str]:
    x, is_late = across.percent(seconds), across.share(seconds) > 0.8
    yield element("line", x1=x, x2=x, y1=-6, y2=height, class_="end")
    words = element(
        "text",
        text(f"end: {seconds_text(seconds)}"),
        x=0 if is_late else 4,
        y=-10 if is_late else 2,
        text_anchor="end" if is_late else "start",
        class_="tick",
    )
    yield element("svg", words, x=x, overflow="visible")


def _table(names: Sequence[str], by_lane: dict[str, list[TuneSpan]], scale: float) -> str:
    rows = []
    for lane in names:
        spans = by_lane[lane]
        busy = dict.fromkeys(_KINDS, 0.0)
        for span in spans:
            busy[span.kind] += scale * (span.end - span.start)
        tasks = sum(span.kind == "run" for span in spans)
        rows.append([lane, str(tasks), *map(seconds_text, busy.values())])
    return hidden_table("Seconds that each was busy", ["", "tasks run", *_KINDS.values()], rows)
