"""What moving an object costs: seconds by size, for each way that it can take.

A way is told by three words: the *side* (``"argument"`` on its way to a worker, or ``"result"`` on
its way back), the *kind* of object (``"buffers"``, the memory of arrays, frames and bytes, or
``"pickle"``, which is made of many small objects), and the *path*: ``"inline"``, ``"store"``, or
``"found"``, which is the store again where it has the content already.

Costs are those of a task among others: the seconds that a batch of tasks takes, which have nothing
else to do, divided by their number. That is what a program waits for, with all workers busy.

More paths are parts of these, in one process that does nothing else: ``"put"`` and ``"get"`` are
what storing and fetching take, and ``"again"`` what fetching the same takes once more, to memory
that is there. ``"dump"`` and ``"load"`` are what pickling takes where objects are
many and small; it is no part of the others, as it comes to the same on each. ``"task"`` is what
a task takes that moves nothing and is one of many: what one of a few takes more, these wait for.

This module measures nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from proxyexec._serialize import frames_size

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = [
    "KINDS",
    "SIDES",
    "CostModel",
    "Curve",
    "Kind",
    "Path",
    "Side",
    "crossover",
    "kind_of",
    "known_to",
]

Side: TypeAlias = Literal["argument", "result"]
Kind: TypeAlias = Literal["buffers", "pickle"]
Path: TypeAlias = Literal["inline", "store", "found", "put", "get", "again", "dump", "load", "task"]

SIDES: tuple[Side, ...] = ("argument", "result")
KINDS: tuple[Kind, ...] = ("buffers", "pickle")
PATHS: tuple[Path, ...] = (
    "inline",
    "store",
    "found",
    "put",
    "get",
    "again",
    "dump",
    "load",
    "task",
)

TASKS_EACH = 2
"""Tasks of a batch that is measured, for each worker."""

WORKERS_AT_MOST = 4
"""Workers that such a batch is for, at most."""

# The version of the JSON form.
_VERSION = 1

# Sizes that are compared: four to an octave, from 1 KiB to 1 GiB.
_GRID = tuple(round(2 ** (step / 4)) for step in range(40, 121))

# The other path has to be this much cheaper to be taken. Measurements vary by as much, and who
# sends inline does what would happen without us.
MARGIN = 0.1

# How many times as much one size counts for, at most, where sizes are weighed against each other.
_DEAREST = 2.0

# How much may be lost with the largest sizes: next to nothing with many, or a lot with one or two.
_LOST_AT_MOST = 1.0

# Up to so many times the largest size that was measured, lines are believed.
_BEYOND = 4


@dataclass(frozen=True)
class Curve:
    """Seconds by size: straight from one measured point to the next, and on after the last.

    Args:
        points: sizes in bytes, rising, with seconds, which do not fall.

    Raises:
        ValueError: there are none, or they do not rise.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.points, self.points[1:], strict=False))
        if not self.points or not all(math.isfinite(one) and one >= 0 for _, one in self.points):
            raise ValueError(f"a curve needs points of finite seconds: {self.points}")
        if not all(one[0] < other[0] and one[1] <= other[1] for one, other in pairs):
            raise ValueError(f"sizes must rise, and seconds must not fall: {self.points}")

    @classmethod
    def through(cls, measured: Mapping[int, float]) -> Curve:
        """Return a curve through measured seconds by size: more is never cheaper.

        Where it was measured to be, the larger one is believed: a small one that was disturbed
        takes longer than it should, and none takes less.
        """
        points: list[tuple[int, float]] = []
        least = math.inf
        for size in sorted(measured, reverse=True):
            least = min(least, measured[size])
            points.append((size, least))
        return cls(tuple(reversed(points)))

    def seconds(self, size: int) -> float:
        """Return how long it takes for an object of ``size`` bytes."""
        points = self.points
        place = bisect_left(points, (size, -math.inf))
        if place == 0 or len(points) == 1:
            return points[0][1]
        (x0, y0), (x1, y1) = points[min(place, len(points) - 1) - 1 :][:2]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)

    def scaled(self, factor: float) -> Curve:
        """Return the same, with all seconds multiplied."""
        return Curve(tuple((size, factor * seconds) for size, seconds in self.points))


@dataclass(frozen=True)
class CostModel:
    """What moving objects costs with one executor and one store.

    Args:
        curves: by side, kind and path. Those of an ``"inline"`` and a ``"store"`` are needed for
            a way to be judged; what is missing was not measured.
        setting: what it was measured with, in words.
    """

    curves: Mapping[tuple[Side, Kind, Path], Curve]
    setting: Mapping[str, str] = field(default_factory=dict)

    def seconds(self, side: Side, kind: Kind, path: Path, size: int) -> float | None:
        """Return the seconds that one object costs a task; ``None`` if that was not measured."""
        curve = self.curves.get((side, kind, path))
        return None if curve is None else curve.seconds(size)

    def threshold(self, side: Side, kind: Kind, path: Path = "store") -> int | None:
        """Return the size in bytes from which on ``path`` is cheaper than ``"inline"``.

        Returns:
            ``None`` if it never is, or either was not measured.
        """
        inline, other = (self.curves.get((side, kind, one)) for one in ("inline", path))
        if inline is None or other is None:
            return None
        return crossover(inline.seconds, other.seconds, known_to((inline, other)))

    def to_json(self) -> dict[str, Any]:
        """Return the model as what ``json`` writes; see :meth:`from_json`."""
        return {
            "proxyexec_costs": _VERSION,
            "setting": dict(self.setting),
            "curves": [
                {"side": side, "kind": kind, "path": path, "points": list(map(list, curve.points))}
                for (side, kind, path), curve in sorted(self.curves.items())
            ],
        }

    @classmethod
    def from_json(cls, document: Any) -> CostModel:
        """Return the model that :meth:`to_json` wrote.

        Raises:
            ValueError: it is none, or is of a version that is not known here.
        """
        try:
            version = document["proxyexec_costs"]
            if version != _VERSION:
                raise ValueError(f"version {version!r} of costs is not known; this is {_VERSION}")
            curves = dict(map(_entry, document["curves"]))
            setting = {str(name): str(value) for name, value in document["setting"].items()}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"this is no cost model: {reason}") from error
        return cls(curves, setting)


def crossover(
    inline: Callable[[int], float], other: Callable[[int], float], largest: int = _GRID[-1]
) -> int | None:
    """Return the size from which on ``other`` is cheaper by a margin; ``None`` if it never is.

    It need not be so for each larger size, as measurements are disturbed, but for most of them: no
    other size to begin with saves a larger share of what objects of all sizes take. What is lost
    with the largest ones is not made up for by small ones, which take next to no time.

    Args:
        inline: the seconds that it takes inline, by size in bytes.
        other: the seconds otherwise.
        largest: up to which size these are known; beyond, what is right there is right.
    """
    found, saved, most = None, 0.0, 0.0
    for size in reversed(_GRID):
        if size > largest:
            continue
        base, seconds = inline(size), other(size)
        share = seconds / base if base > 0 else math.inf if seconds > 0 else 0.0
        saved += 1 - MARGIN - min(share, _DEAREST)
        if saved > most:
            found, most = size, saved
        elif saved < -_LOST_AT_MOST:
            break
    return found


def known_to(curves: Iterable[Curve]) -> int:
    """Return up to which size in bytes all of some curves tell something."""
    return _BEYOND * min(curve.points[-1][0] for curve in curves)


def kind_of(obj: Any, frames: Frames) -> Kind:
    """Return the kind of an object that ``frames`` represent."""
    if type(obj) in (bytes, bytearray):
        return "buffers"
    # Pickles are bytes; memory of others is not.
    buffers = frames_size([frame for frame in frames if type(frame) is not bytes])
    return "buffers" if 2 * buffers > frames_size(frames) else "pickle"


def _entry(one: Mapping[str, Any]) -> tuple[tuple[Side, Kind, Path], Curve]:
    side = _known(one["side"], SIDES)
    kind = _known(one["kind"], KINDS)
    path = _known(one["path"], PATHS)
    points: Iterable[Sequence[Any]] = one["points"]
    return (side, kind, path), Curve(tuple((int(size), float(seconds)) for size, seconds in points))


def _known(word: Any, words: tuple[Any, ...]) -> Any:
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return word
