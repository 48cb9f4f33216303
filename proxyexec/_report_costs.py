"""What a report says of costs: seconds by size, inline and stored, and which is less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proxyexec._costs import KINDS, SIDES, CostModel, Curve, Kind, Path, Side
from proxyexec._report_parts import (
    Stop,
    figure,
    grid_across,
    grid_down,
    hidden_table,
    key,
    tick_seconds,
)
from proxyexec._report_svg import Axis, element, line_of, lines, log, mark, text
from proxyexec._sizes import format_size
from proxyexec._table import seconds_text

__all__ = ["cost_figures"]

_HEIGHT = 220

_WAYS: dict[Path, str] = {"inline": "sent inline", "store": "stored", "found": "stored already"}

_SIDES: dict[Side, str] = {"argument": "Arguments", "result": "Results"}

_KINDS: dict[Kind, str] = {
    "buffers": "memory (arrays, frames, bytes)",
    "pickle": "pickled (many small objects)",
}

# Sizes that are told, for each power of ten.
_STEPS = 8

# Where there is no point in telling times apart, in seconds.
_SHORTEST = 1e-6

# The smallest size that costs are compared at.
_LEAST = 1024

# From where on across the words beside a line are at its left.
_LATE = 0.6


def cost_figures(model: CostModel, name: str) -> str:
    """Return charts of what is known of costs, one for each side and kind.

    Args:
        model: what moving objects costs.
        name: of the charts, for the page.
    """
    known: list[tuple[Side, Kind, dict[Path, Curve]]] = [
        (side, kind, curves)
        for side in SIDES
        for kind in KINDS
        if len(curves := _curves(model, side, kind)) > 1  # one way alone is no comparison
    ]
    if not known:
        return element("p", "Nothing was measured with this store.")
    all_curves = [curve for _, _, curves in known for curve in curves.values()]
    sizes = [size for curve in all_curves for size, _ in curve.points]
    across = log(max(min(sizes), 1), max(sizes))
    ends = [round(across.low), round(across.high)]
    taken = [curve.seconds(size) for curve in all_curves for size in ends]
    down = log(max(min(taken), _SHORTEST), max(*taken, 2 * _SHORTEST))
    figures = [
        _figure(side, kind, curves, across, down, _limits(model, side, kind), name)
        for side, kind, curves in known
    ]
    return key((_sign(way), words) for way, words in _WAYS.items()) + element(
        "div", *figures, class_="pairs"
    )


def _curves(model: CostModel, side: Side, kind: Kind) -> dict[Path, Curve]:
    curves: dict[Path, Curve] = {}
    for way in _WAYS:
        curve = model.curves.get((side, kind, way))
        if curve is not None:
            curves[way] = curve
    return curves


def _sign(way: Path) -> str:
    line = element("line", x1=0, x2=34, y1=7, y2=7, class_=f"line {way}")
    return line + mark(way, "17", 7, f"mark {way}")


def _figure(
    side: Side,
    kind: Kind,
    curves: Mapping[Path, Curve],
    across: Axis,
    down: Axis,
    limits: tuple[int | None, int | None],
    name: str,
) -> str:
    sizes = list(_sizes(across))
    return figure(
        name=f"{name}-{side}-{kind}",
        title=f"{_SIDES[side]}, {_KINDS[kind]}.",
        says=_says(*limits),
        drawn=[
            *grid_across(across, _HEIGHT, format_size),
            *grid_down(down, _HEIGHT, tick_seconds),
            *_limit(across, limits[0]),
            lines((_line(way, curves[way], across, down) for way in curves), _HEIGHT),
            *(one for way in curves for one in _marks(way, curves[way], across, down)),
        ],
        height=_HEIGHT,
        stops=[_stop(across, curves, size) for size in sizes],
        after=hidden_table(
            "Seconds a task",
            ["size", *(_WAYS[way] for way in curves)],
            [
                [format_size(size), *(seconds_text(one.seconds(size)) for one in curves.values())]
                for size in map(round, across.ticks)
            ],
        ),
    )


def _limits(model: CostModel, side: Side, kind: Kind) -> tuple[int | None, int | None]:
    limit = model.threshold(side, kind)
    if (side, kind, "found") not in model.curves:
        return limit, limit
    return limit, model.threshold(side, kind, "found")


def _says(limit: int | None, found: int | None) -> str:
    says = f"Storing is {_from(limit)}"
    return says + (f"; what is stored already is {_from(found)}." if found != limit else ".")


def _from(limit: int | None) -> str:
    if limit is None:
        return "never cheaper"
    return "always cheaper" if limit <= _LEAST else f"cheaper from {format_size(limit)} on"


def _sizes(across: Axis) -> Iterable[int]:
    count = _STEPS * (len(across.ticks) - 1)
    for step in range(count + 1):
        yield round(across.low * 10 ** (step / _STEPS))


def _line(way: Path, curve: Curve, across: Axis, down: Axis) -> str:
    own = (size for size, _ in curve.points if across.low <= size <= across.high)
    points = [(size, curve.seconds(size)) for size in sorted({*_sizes(across), *own})]
    return element("path", d=line_of(points, across, down, _HEIGHT), class_=f"line {way}")


def _marks(way: Path, curve: Curve, across: Axis, down: Axis) -> Iterable[str]:
    for size, seconds in curve.points:
        yield mark(way, across.percent(size), down.down(seconds, _HEIGHT), f"mark {way}")


def _stop(across: Axis, curves: Mapping[Path, Curve], size: int) -> Stop:
    told = (f"{_WAYS[way]}: {seconds_text(one.seconds(size))}" for way, one in curves.items())
    place = across.share(size)
    return Stop(place, place, 0, _HEIGHT, "\n".join([format_size(size), *told]))


def _limit(across: Axis, limit: int | None) -> Iterable[str]:
    if limit is None or limit <= _LEAST or not across.low <= limit <= across.high:
        return
    x, is_late = across.percent(limit), across.share(limit) > _LATE
    yield element("line", x1=x, x2=x, y1=0, y2=_HEIGHT, class_="limit")
    words = element(
        "text",
        text(f"store from {format_size(limit)}"),
        x=-6 if is_late else 6,
        y=14,
        text_anchor="end" if is_late else "start",
        class_="limit",
    )
    yield element("svg", words, x=x, overflow="visible")
