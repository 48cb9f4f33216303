"""What a report says of policies: what each is expected to come to, and what it did come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from proxyexec._report_parts import (
    Cell,
    Stop,
    figure,
    grid_across,
    hidden_table,
    key,
    scrolled_table,
    tick_seconds,
)
from proxyexec._report_svg import Axis, element, linear, mark, text
from proxyexec._sizes import format_size
from proxyexec._table import seconds_text

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneCandidate, TuneMeasured, TuneResult, TuneUnread

__all__ = ["measured_figure", "names_of", "policy_table", "unread_table"]

# Rows of a table that are shown before somebody asks for all.
_ROWS = 12

# What is written as no percent at all.
_NOTHING = 0.005

# In pixels: the lane of a policy that was run.
_LANE = 34


def names_of(shown: Sequence[TuneCandidate | TuneMeasured]) -> list[str]:
    """Return what candidates are called: with their stores, if these differ."""
    several = len({one.store for one in shown}) > 1
    return [f"{one.policy.name}, {one.store}" if several else one.policy.name for one in shown]


def policy_table(result: TuneResult) -> str:
    """Return the table of all candidates, the best first."""
    longest = max(one.seconds for one in result.candidates)
    places = len(result.places) > 1
    rows = [
        _row(rank, one, one.seconds / longest if longest else 0, result, places=places)
        for rank, one in enumerate(result.candidates, 1)
    ]
    columns = [
        "#",
        "policy",
        "expected",
        "to present",
        "inline",
        "stored",
        "found",
        "peak",
        *(["store"] if places else []),
    ]
    return scrolled_table(
        columns,
        rows,
        caption="What the run is expected to take, the bytes that go inline, that are stored, and "
        "that are found stored already, and the most that is stored at a time. ★ is the one to "
        "take, ◆ the present one.",
        left=(1, 8),
        classes=["best" if one is result.fastest else "" for one in result.candidates],
        rows_shown=_ROWS,
    )


def _row(
    rank: int, one: TuneCandidate, share: float, result: TuneResult, *, places: bool
) -> list[Cell]:
    present = result.present
    signs = ("★ " if one is result.fastest else "") + ("◆ " if one.is_present else "")
    bar = element("rect", width=f"{100 * share:.4g}%", height=8, class_="bar expected")
    # What it is called may say it already, if it is the present one.
    known = one.policy.python in one.policy.name
    written = "" if known else element("code", text(one.policy.python), class_="written")
    change = one.seconds / present.seconds - 1 if present.seconds else 0.0
    return [
        Cell(text(rank), rank),
        Cell(text(signs + one.policy.name) + written),
        Cell(
            text(seconds_text(one.seconds))
            + element("svg", bar, width=96, height=8, aria_hidden="true"),
            one.seconds,
        ),
        Cell(
            "" if one.is_present else "0%" if abs(change) < _NOTHING else f"{change:+.0%}", change
        ),
        *(
            Cell(text(format_size(size)), size)
            for size in (
                one.inline_bytes,
                one.stored_bytes,
                one.found_bytes,
                one.peak_bytes,
            )
        ),
        *([Cell(text(one.store))] if places else []),
    ]


def measured_figure(result: TuneResult, name: str) -> str:
    """Return the chart of what was measured beside what was predicted."""
    shown = result.measured
    names = names_of(shown)
    ends = [max(one.predicted_seconds, *one.measured_seconds) for one in shown]
    across = linear(max(ends) * 1.05)
    height = _LANE * len(shown)
    drawn = list(grid_across(across, height, tick_seconds))
    stops = []
    for place, (called, one) in enumerate(zip(names, shown, strict=True)):
        top = place * _LANE
        drawn += _compared(called, one, across, top)
        values = [one.predicted_seconds, *one.measured_seconds]
        start, end = across.share(min(values)), across.share(max(values))
        stops.append(Stop(start, end, top + 14, top + _LANE - 4, _words(called, one)))
    worst = max(abs(_off(one)) for one in shown)
    line = element("line", x1=2, x2=32, y1=7, y2=7, class_="range")
    return key(
        [
            (mark("diamond", "17", 7, "mark predicted"), "expected"),
            (
                line + mark("circle", "17", 7, "mark measured"),
                "measured: the median, from the least to the most",
            ),
        ]
    ) + figure(
        name=name,
        title="Expected and measured.",
        says=f"What was expected is off by {worst:.0%} at most.",
        drawn=drawn,
        height=height,
        stops=stops,
        margin="none",
        after=hidden_table(
            "Expected and measured",
            ["policy", "expected", "median", "least", "most", "off by"],
            [
                [
                    called,
                    seconds_text(one.predicted_seconds),
                    *map(seconds_text, _summary(one)),
                    f"{_off(one):+.0%}",
                ]
                for called, one in zip(names, shown, strict=True)
            ],
        ),
    )


def _off(one: TuneMeasured) -> float:
    return one.predicted_seconds / max(median(one.measured_seconds), 1e-9) - 1


def _summary(one: TuneMeasured) -> tuple[float, float, float]:
    return median(one.measured_seconds), min(one.measured_seconds), max(one.measured_seconds)


def _words(name: str, one: TuneMeasured) -> str:
    middle, least, most = map(seconds_text, _summary(one))
    return (
        f"{name}\nexpected: {seconds_text(one.predicted_seconds)}\n"
        f"measured: {middle} ({least} to {most}, {len(one.measured_seconds)} rounds)"
    )


def _compared(name: str, one: TuneMeasured, across: Axis, top: float) -> Iterable[str]:
    y = top + 22
    middle, least, most = _summary(one)
    words = f"◆ {name}" if one.is_present else name
    yield element("text", text(words), x=0, y=top + 12, class_="tick")
    x1, x2 = across.percent(least), across.percent(most)
    yield element("line", x1=x1, x2=x2, y1=y, y2=y, class_="range")
    for seconds in (least, most):
        x = across.percent(seconds)
        yield element("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_="range")
    yield mark("circle", across.percent(middle), y, "mark measured")
    yield mark("diamond", across.percent(one.predicted_seconds), y, "mark predicted")


def unread_table(unread: Sequence[TuneUnread]) -> str:
    """Return the table of objects that were stored for nothing."""
    return scrolled_table(
        ["function", "what", "type", "objects", "bytes"],
        [
            [
                Cell(element("code", text(one.function))),
                Cell(text(one.what)),
                Cell(element("code", text(one.type))),
                Cell(f"{one.objects:,}", one.objects),
                Cell(text(format_size(one.bytes)), one.bytes),
            ]
            for one in unread
        ],
        caption="Objects that were stored, and that nobody fetched",
        left=(0, 1, 2),
        rows_shown=_ROWS,
    )
