"""Fits the replay of a run to the run: what a trace tells of how long things took when it was made.

Functions took longer than they would take alone, where there were too few cores for all that went
on. Workers were late, for having to start or for what was sent before. And moving took longer, or
less long, than was measured, as the machine was in another state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxyexec._tune_prices import Prices
from proxyexec._tune_replay import Outcome, replay

if TYPE_CHECKING:
    from proxyexec._costs import CostModel
    from proxyexec._tune_candidates import Rule
    from proxyexec._tune_run import Item, Run

__all__ = ["Fitted", "fitted_to"]

# How often it is tried how long functions would take with a core for each; and how often it is
# with moving taken to take otherwise, which changes little.
_ROUNDS = 2
_ROUNDS_FROM_THERE = 1

# How many times as long moving may take in a run as measured, or how much shorter; and how often
# what that is is halved, at most: until the replay is off by so little.
_SCALED = 4.0
_HALVINGS = 6
_ENOUGH = 0.01

# On the path that few bytes took, moving is taken to take so much longer, as a power: the run tells
# less of it, but the machine is the same.
_OF_OTHERS = 0.5

# Of runs with so many tasks, replays take seconds: there, it is halved less often.
_LONG = 5000
_HALVINGS_IF_LONG = 4

# Functions that are slower by no more than this, in part, are as fast as alone.
_AS_FAST = 1e-6


@dataclass(frozen=True)
class Fitted:
    """A run, and how long moving took in it, so that its replay takes about as long as it did."""

    run: Run
    """Its functions take what they would with a core for each."""
    moving: float
    """How many times as long as measured moving takes."""
    is_inline: bool
    """Whether that is so for what moves inline; or it is so for storing and fetching."""
    ratio: float
    """How many times as long as its replay it took, with everything as measured."""
    left: float
    """The same with moving as it is here."""

    def prices(self, costs: CostModel, *, is_present: bool) -> Prices:
        """Return what moving costs in this run.

        Args:
            costs: as measured.
            is_present: whether the store is that of the run.
        """
        return _prices(
            costs, self.run.workers, self.moving, is_inline=self.is_inline, is_present=is_present
        )


def fitted_to(run: Run, recorded: Rule, costs: CostModel, *, directly: bool) -> Fitted:
    """Fit the replay of a run to it, by how long moving took on the path that most bytes took.

    Args:
        run: the run.
        recorded: what was done in it.
        costs: of moving, with its executor and store.
        directly: whether results reach the tasks that get them past the client.

    Raises:
        ValueError: too little was measured.
    """

    def left(scale: float, slower: float | None = None) -> tuple[float, Run, float]:
        prices = _prices(costs, run.workers, scale, is_inline=is_inline, is_present=True)
        slower, fitted, again = _uncrowded(run, recorded, prices, slower, directly=directly)
        is_known = again.seconds > 0 and run.seconds > 0
        return slower, fitted, run.seconds / again.seconds if is_known else 1.0

    run = _started(run, Prices(costs, run.workers))
    moved = [one for step in run.steps for one in (*step.given, *step.returned)]
    inline_bytes = sum(map(_inline_bytes, moved))
    is_inline = 2 * inline_bytes >= sum(one.whole_bytes for one in moved)
    slower, as_measured, ratio = left(1.0)
    fitted, now = as_measured, ratio
    # A longer one does not take less: so the scale is found by halving what is between two.
    low, high = (1.0, _SCALED) if ratio > 1 else (1 / _SCALED, 1.0)
    scale = 1.0
    for _ in range(_HALVINGS if len(run.steps) < _LONG else _HALVINGS_IF_LONG):
        if abs(now - 1) <= _ENOUGH:
            break
        scale = math.sqrt(low * high)
        slower, fitted, now = left(scale, slower)
        if now > 1:
            low = scale
        else:
            high = scale
    if abs(now - 1) >= (1 - _AS_FAST) * abs(ratio - 1):  # which is not for how long moving took
        return Fitted(as_measured, 1.0, is_inline, ratio, ratio)
    return Fitted(fitted, scale, is_inline, ratio, now)


def _prices(
    costs: CostModel, workers: int, moving: float, *, is_inline: bool, is_present: bool
) -> Prices:
    others = moving**_OF_OTHERS
    return Prices(
        costs,
        workers,
        inline=moving if is_inline else others,
        stored=moving if is_present and not is_inline else others,
    )


def _inline_bytes(item: Item) -> int:
    """Return how many bytes of an object, and of its parts, went inline in the run."""
    if item.path != "inline":
        return 0
    return item.bytes + sum(one.bytes for one in item.parts if one.path == "inline")


def _started(run: Run, prices: Prices) -> Run:
    """Return a run whose workers are late for having to start only, not for what was sent first."""
    sent = [prices.send("buffers", size) for size in run.ahead] or [0.0] * len(run.delays)
    delays = (max(0.0, late - taken) for late, taken in zip(run.delays, sent, strict=True))
    return replace(run, delays=tuple(sorted(delays)))


def _uncrowded(
    run: Run, recorded: Rule, prices: Prices, slower: float | None, *, directly: bool
) -> tuple[float, Run, Outcome]:
    """Return a run whose functions take what they would with a core for each.

    In the run itself, they took longer where there were too few cores for all that went on.

    Args:
        run: the run.
        recorded: what was done in it.
        prices: of moving.
        slower: how many times as long they took, about, if that is known.
        directly: as everywhere.

    Returns:
        How many times as long they took; the run; its replay.
    """

    def alone(factor: float) -> Run:
        steps = tuple(replace(one, run_s=one.run_s / factor) for one in run.steps)
        return replace(run, steps=steps)

    rounds = _ROUNDS if slower is None else _ROUNDS_FROM_THERE
    found, slower = (run, 1.0) if slower is None else (alone(slower), slower)
    again = replay(found, recorded, prices, directly=directly, observed=True)
    total = sum(step.run_s for step in run.steps)
    for _ in range(rounds if total > 0 else 0):
        # At first, as much slower as it is in the replay; from then on, until that agrees.
        if abs(again.running_s / total - 1) <= _AS_FAST:
            break
        slower *= again.running_s / total
        found = alone(slower)
        again = replay(found, recorded, prices, directly=directly, observed=True)
    return slower, found, again
