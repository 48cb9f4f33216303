"""From which sizes on storing is cheaper: what follows from a cost model, and from how it is used.

Arguments may be repeated, and results passed on to other tasks. Both make storing cheaper than it
is for an object that is moved once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from proxyexec._costs import KINDS, CostModel, Kind, Path, Side, crossover, known_to

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DEFAULT",
    "NEVER",
    "NOTHING",
    "Costs",
    "Limits",
    "limits_of_arguments",
    "limits_of_results",
]

# A size that nothing has.
NEVER = 1 << 62


class Limits(NamedTuple):
    """The sizes in bytes from which on objects of one side are stored."""

    buffers: int
    pickle: int
    repeated_buffers: int = NEVER
    """Of what was sent before, and may be sent again."""
    repeated_pickle: int = NEVER
    found_buffers: int = NEVER
    """Of what is stored already."""
    found_pickle: int = NEVER
    shared_buffers: int = NEVER
    """Of what is made ready once for many tasks: the callable of a ``map``, and what it carries."""
    shared_pickle: int = NEVER

    def of(self, kind: Kind) -> int:
        """Return the size for one kind of objects."""
        return self[KINDS.index(kind)]

    def of_repeated(self, kind: Kind) -> int:
        """Return the size for what was sent before."""
        return self[2 + KINDS.index(kind)]

    def of_found(self, kind: Kind) -> int:
        """Return the size for what is stored already."""
        return self[4 + KINDS.index(kind)]

    def of_shared(self, kind: Kind) -> int:
        """Return the size for what is made ready once for many tasks."""
        return self[6 + KINDS.index(kind)]


# Before anything is known: from here on a file in shared memory beats the pipe of a pool.
DEFAULT = Limits(*[700_000] * 8)


NOTHING = Limits(*[NEVER] * 8)


class Costs:
    """What objects of one kind cost, in seconds by size in bytes.

    What was not measured of a kind is taken from the other one.

    Args:
        model: what was measured.
        kind: of the objects.
        pickling: how many times as long as measured it takes to pickle them.

    Raises:
        ValueError: neither kind was measured.
    """

    def __init__(self, model: CostModel, kind: Kind, *, pickling: float = 1.0) -> None:
        self._kind = kind
        self._pickling = pickling
        self._curves = {
            (side, path): model.curves.get((side, kind, path), curve)
            for (side, _, path), curve in model.curves.items()
        }
        self._has_found = ("argument", kind, "found") in model.curves
        needed = {(side, path) for side in ("argument", "result") for path in ("inline", "store")}
        if not {*needed, ("argument", "put"), ("argument", "get")} <= self._curves.keys():
            raise ValueError("too little was measured to tell which path is cheaper")
        # What a task takes that gets next to nothing, and one that returns next to nothing. No
        # path of something as small takes less: what was measured so was disturbed less.
        self._least = {
            "argument": self._least_of("argument", "put"),
            "result": self._least_of("result", "get"),
        }

    def argument_inline(self, size: int) -> float:
        """Return what an argument takes inline."""
        return self._of("argument", "inline", size)

    def argument_stored(self, size: int, others: float = 0.0) -> float:
        """Return what an argument takes that is stored, shared with how many other tasks."""
        alone = self._of("argument", "store", size)
        return (alone + others * self.argument_found(size)) / (1 + others)

    def argument_found(self, size: int) -> float:
        """Return what an argument takes that is stored already."""
        if self._has_found:
            return self._of("argument", "found", size)
        return self._of("argument", "store", size) - self._of("argument", "put", size)

    def argument_shared(self, size: int) -> float:
        """Return what an argument takes that was stored once for many tasks, which do not look."""
        path: Path = "again" if ("argument", "again") in self._curves else "get"
        get = self._of("argument", path, size)
        return min(self.argument_found(size), self._least["argument"] + get)

    def result_inline(self, size: int, passed: float = 0.0, *, directly: bool = False) -> float:
        """Return what a result takes inline.

        Args:
            size: in bytes.
            passed: how many tasks are given it.
            directly: whether it reaches them by another way than the client.
        """
        again = 0.0
        if not directly:  # the client unpickles it, and pickles it once more
            again = self.argument_inline(size) - self._least["argument"] + self._pickled_again(size)
        return self._of("result", "inline", size) + passed * again

    def result_stored(self, size: int, passed: float = 0.0) -> float:
        """Return what a result takes that is stored; who passes it on does not look at it."""
        get = self._of("argument", "get", size)
        # Who is given it fetches it; where hosts share what they have fetched, it is the first.
        again = max(get, self.argument_found(size) - self._least["argument"])
        return self._of("result", "store", size) - min(passed, 1.0) * get + passed * again

    def limit(
        self, side: Side, inline: Callable[[int], float], other: Callable[[int], float]
    ) -> int:
        """Return the size from which on another path is cheaper than inline."""
        largest = known_to(self._curves[side, path] for path in ("inline", "store"))
        size = crossover(inline, other, largest)
        return NEVER if size is None else size

    def _of(self, side: Side, path: Path, size: int) -> float:
        seconds = self._curves[side, path].seconds(size)
        if path == "inline" and size <= _SMALL:
            return min(seconds, self._least[side])
        if path == "store" and size <= _SMALL:
            more = self._curves["argument", "put" if side == "argument" else "get"].seconds(size)
            return max(seconds, self._least[side] + more)
        return seconds

    def _least_of(self, side: Side, part: Path) -> float:
        curves = self._curves
        more = curves["argument", part].seconds(0)
        return min(curves[side, "inline"].seconds(0), curves[side, "store"].seconds(0) - more)

    def _pickled_again(self, size: int) -> float:
        if self._kind == "buffers":
            return 0.0
        both = (self._curves.get(("argument", path)) for path in ("dump", "load"))
        seconds = sum(curve.seconds(size) for curve in both if curve is not None)
        return self._pickling * seconds


def limits_of_arguments(model: CostModel, others: float) -> Limits:
    """Return the sizes for arguments.

    Args:
        model: the costs.
        others: how many tasks more get what was stored because it had been sent before.

    Raises:
        ValueError: too little was measured.
    """
    limits: list[list[int]] = []
    for kind in KINDS:
        costs = Costs(model, kind)
        limit = functools.partial(costs.limit, "argument", costs.argument_inline)
        once = limit(costs.argument_stored)
        again = min(once, limit(functools.partial(costs.argument_stored, others=others)))
        found = min(again, limit(costs.argument_found))
        limits.append([once, again, found, min(once, limit(costs.argument_shared))])
    return Limits(*(size for sizes in zip(*limits, strict=True) for size in sizes))


def limits_of_results(
    model: CostModel, passed: float, *, directly: bool = False, pickling: float = 1.0
) -> Limits:
    """Return the sizes for results.

    Args:
        model: the costs.
        passed: how many tasks are given each.
        directly: whether they reach these by another way than the client, if they are not stored.
        pickling: how many times as long as measured it takes to pickle objects.

    Raises:
        ValueError: too little was measured.
    """
    limits = []
    for kind in KINDS:
        one = Costs(model, kind, pickling=pickling)
        inline = functools.partial(one.result_inline, passed=passed, directly=directly)
        stored = functools.partial(one.result_stored, passed=passed)
        limits.append(one.limit("result", inline, stored))
    return Limits(*limits)


# What is no larger takes what a task takes that moves nothing.
_SMALL = 4_000
