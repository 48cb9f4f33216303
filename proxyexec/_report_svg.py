"""What charts in a page are made of: axes, elements of SVG and HTML.

A chart is as wide as there is room for it, with its texts as large as ever: across, all is told in
percent, down, in pixels. Lines, which know no percent, are drawn into a box of their own that is
stretched.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

from proxyexec._cli_parts import shown

__all__ = ["Axis", "element", "line_of", "linear", "lines", "log", "mark", "steps_of", "text"]

# How wide the box of lines is, in units of its own.
_BOX = 1000


def text(words: object) -> str:
    """Return words, which may come from anybody, as HTML that shows them."""
    return html.escape(shown(str(words)))


def element(name: str, *content: str, **attributes: object) -> str:
    """Return an element.

    Args:
        name: of its kind.
        content: HTML that is inside.
        attributes: by names, with ``_`` for ``-``, and one more at the end of Python's own words.
            ``None`` leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(content)}</{name}>"


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else text(value)


@dataclass(frozen=True)
class Axis:
    """Where values are on one side of a chart.

    Args:
        low: the value at its beginning.
        high: the value at its end.
        is_log: whether equal steps are equal ratios.
        ticks: values that are told.
    """

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Return where a value is, from 0 to 1; what is beyond is at the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        """Return where a value is across."""
        return f"{100 * self.share(value):.4g}%"

    def down(self, value: float, height: float) -> float:
        """Return where a value is in a chart of some height: large ones are at the top."""
        return round(height * (1 - self.share(value)), 1)


def linear(high: float, count: int = 6, *, is_rounded: bool = False) -> Axis:
    """Return an axis from 0 to a value, with about ``count`` round ticks.

    Args:
        high: the value; an axis has some length, whatever it is.
        count: of ticks, at most.
        is_rounded: whether it ends at a tick, hence a little later.
    """
    high = high if high > 0 and math.isfinite(high) else 1.0
    rough = high / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one > rough * 0.999)
    number = (math.ceil if is_rounded else math.floor)(high / step * 1.000001)
    ticks = tuple(step * place for place in range(number + 1))
    return Axis(0, max(high, ticks[-1]), False, ticks)


def log(low: float, high: float) -> Axis:
    """Return an axis of ratios around two values, with the powers of ten as ticks."""
    first = math.floor(math.log10(low) + 1e-9)
    last = max(math.ceil(math.log10(high) - 1e-9), first + 1)
    ticks = tuple(10.0**power for power in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], True, ticks)


def line_of(points: Iterable[tuple[float, float]], across: Axis, down: Axis, height: float) -> str:
    """Return the path of a line through points, in a box of lines."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in _places(points, across, down, height))


def steps_of(points: Iterable[tuple[float, float]], across: Axis, down: Axis, height: float) -> str:
    """Return the path of a line that stays at each value until the next point."""
    (x, y), *others = _places(points, across, down, height)
    return f"M{x:g} {y:g}" + "".join(f"H{x:g}V{y:g}" for x, y in others)


def _places(
    points: Iterable[tuple[float, float]], across: Axis, down: Axis, height: float
) -> list[tuple[float, float]]:
    return [(round(_BOX * across.share(x), 1), down.down(y, height)) for x, y in points]


def lines(content: Iterable[str], height: float) -> str:
    """Return a box of lines: what is in it is stretched to the width of the chart."""
    return element(
        "svg",
        *content,
        width="100%",
        height=height,
        viewBox=f"0 0 {_BOX} {height:g}",
        preserveAspectRatio="none",
    )


def mark(name: str, x: str, y: float, class_: str) -> str:
    """Return one of the marks that the page has, by its name."""
    return element("use", href=f"#mark-{name}", x=x, y=y, class_=class_)
