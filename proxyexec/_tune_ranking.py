"""Ranks policies for a traced run: replays it under each, in each place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxyexec._costs import KINDS, SIDES, CostModel
from proxyexec._tune_candidates import AdaptiveRule, PolicyRule, RecordedRule, Rule, plain_rules
from proxyexec._tune_fitting import fitted_to
from proxyexec._tune_replay import Outcome, replay
from proxyexec._tune_result import (
    TuneCandidate,
    TunePlace,
    TunePolicy,
    TuneResult,
    TuneRun,
    TuneUnread,
    TuneWay,
)
from proxyexec._tune_run import run_of
from proxyexec._tune_timeline import measured, what_of

if TYPE_CHECKING:
    from proxyexec._trace import Trace
    from proxyexec._tune_run import Run
    from proxyexec.policy import ShouldProxy

__all__ = ["Place", "tune"]

# Of candidates that take so much longer than the best one, at most, the simplest is the best.
_AS_GOOD = 0.02

# How many of the best have a timeline, beside the present one.
_TIMELINES = 3

# How far the run is believed where it took longer than its replay, as a power of the ratio: one run
# tells of how busy the machine was, and of the path that its objects took, more than of others.
_TRUST = 0.25

# Replaying that is off by more than this factor tells little.
_TRUSTED = 1.5


@dataclass(frozen=True)
class Place:
    """A store where a run may be replayed.

    Args:
        store: its URL, without its password.
        costs: what moving objects costs, with the run's executor and this store.
        source: where these are from, in words.
    """

    store: str
    costs: CostModel
    source: str = "measured"


def tune(
    trace: Trace,
    places: Mapping[str, CostModel] | list[Place],
    *,
    policies: Mapping[str, ShouldProxy] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> TuneResult:
    """Find the policy that would have made a run fastest.

    Args:
        trace: of the run, as :func:`proxyexec.metrics.read_trace` returns it.
        places: stores to consider, by URL, with the costs of the run's executor and each, as
            ``ProxyAdaptive().costs`` has them, say. That of the trace comes first; if it is not
            among them, the first stands for it.
        policies: more of them to consider, by name, made of those in :mod:`proxyexec.policy` that
            go by sizes and types.
        progress: called with how many replays are done, and how many there are.

    Raises:
        ValueError: there is nothing to replay in the trace, no place is given, too little was
            measured there, or a policy goes by more than types and sizes.
    """
    if isinstance(places, Mapping):
        places = [Place(store, costs) for store, costs in places.items()]
    if not places:
        raise ValueError("no store is given to replay the run with")
    run = run_of(trace)
    present = next((one for one in places if one.store == trace.header.store), places[0])
    directly = _goes_directly(trace)
    more = [PolicyRule.of(name, one) for name, one in (policies or {}).items()]
    rules = plain_rules(run, [one.costs for one in places])
    policy = trace.header.policy
    recorded = RecordedRule(_written(policy))
    jobs: list[tuple[Place, Rule]] = [(present, recorded)]
    for place in places:
        those: list[Rule] = [*rules, AdaptiveRule.of(place.costs, run, directly=directly)]
        jobs += [(place, one) for one in those if not (place is present and _is(one, policy))]
        jobs += [(place, one) for one in more]
    if progress is not None:
        progress(0, len(jobs))
    fitted = fitted_to(run, recorded, present.costs, directly=directly)
    run, ratio = fitted.run, fitted.ratio
    factor = fitted.left**_TRUST
    prices = {one.store: fitted.prices(one.costs, is_present=one is present) for one in places}
    outcomes: list[tuple[Place, Rule, Outcome]] = []
    for number, (place, rule) in enumerate(jobs, 1):
        # What was measured had a trace written; what is expected has none.
        outcome = replay(run, rule, prices[place.store], directly=directly)
        outcomes.append((place, rule, outcome))
        if progress is not None:
            progress(number, len(jobs))
    candidates = [
        _candidate(place, rule, outcome, factor, is_present=rule is recorded)
        for place, rule, outcome in outcomes
    ]
    order = _ranked(candidates)
    for rank, index in enumerate(order):
        place, rule, _ = outcomes[index]
        if rank < _TIMELINES or rule is recorded:
            detailed = replay(run, rule, prices[place.store], directly=directly, timeline=True)
            candidates[index] = replace(candidates[index], timeline=detailed.timeline)
    return TuneResult(
        _run(trace, run),
        factor,
        tuple(candidates[index] for index in order),
        tuple(_place(one, is_present=one is present) for one in places),
        _unread(trace),
        notes=tuple(_notes(trace, run, ratio, present)),
        ratio=ratio,
        moving=fitted.moving,
    )


def _goes_directly(trace: Trace) -> bool:
    """Tell whether results reach the tasks that get them without passing the client."""
    name = trace.header.executor
    return name.startswith("distributed.") or "dask" in name.lower()


def _is(rule: Rule, shown: str) -> bool:
    """Tell whether a rule is the policy that shows itself so."""
    if rule.policy.python == shown:
        return True
    minimum = getattr(rule, "minimum", 0)
    plain = minimum and not getattr(rule, "types", None)
    return bool(plain and shown == f"ProxySize({minimum})")


def _written(shown: str) -> TunePolicy:
    return TunePolicy(f"present: {shown}", shown)


def _candidate(
    place: Place, rule: Rule, outcome: Outcome, factor: float, *, is_present: bool
) -> TuneCandidate:
    return TuneCandidate(
        rule.policy,
        place.store,
        is_present,
        outcome.seconds * factor,
        outcome.seconds,
        outcome.inline_bytes,
        outcome.stored_bytes,
        outcome.found_bytes,
        outcome.fetched_bytes,
        outcome.peak_bytes,
        outcome.stored_objects,
    )


def _ranked(candidates: list[TuneCandidate]) -> list[int]:
    """Return the numbers of candidates: the simplest of the best ones, then all by time."""
    order = sorted(
        range(len(candidates)),
        key=lambda index: (candidates[index].seconds, candidates[index].stored_bytes, index),
    )
    least = candidates[order[0]].seconds
    # The first that were made are the simplest; the present one needs no change at all.
    best = min(index for index in order if candidates[index].seconds <= (1 + _AS_GOOD) * least)
    return [best, *(index for index in order if index != best)]


def _place(place: Place, *, is_present: bool) -> TunePlace:
    ways = tuple(
        TuneWay(
            side,
            kind,
            place.costs.threshold(side, kind),
            place.costs.threshold(side, kind, "found") if side == "argument" else None,
        )
        for side in SIDES
        for kind in KINDS
    )
    return TunePlace(place.store, is_present, place.costs, place.source, ways)


def _run(trace: Trace, run: Run) -> TuneRun:
    header = trace.header
    moved = [one for task in trace.tasks for one in task.moved]
    timeline = measured(trace)
    return TuneRun(
        header.executor,
        run.workers,
        header.store,
        header.policy,
        len(trace.tasks),
        run.seconds,
        sum(one.bytes for one in moved if one.path == "inline") if run.crosses else 0,
        sum(one.bytes for one in moved if one.path == "store"),
        max((size for _, size in timeline.live), default=0),
        header.host,
        header.started,
        header.version,
        trace.full is None and trace.end is not None,
        timeline,
    )


def _unread(trace: Trace) -> tuple[TuneUnread, ...]:
    """Return what was evicted before anybody had fetched it."""
    unread = {one.key for one in trace.evicted if not one.resolved}
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for task in trace.tasks:
        for one in task.moved if task.state == "done" else ():
            if one.path == "store" and one.key in unread:
                found[task.function, what_of(one), one.type].append(one.bytes)
    objects = [TuneUnread(*which, len(sizes), sum(sizes)) for which, sizes in found.items()]
    return tuple(sorted(objects, key=lambda one: -one.bytes))


def _notes(trace: Trace, run: Run, ratio: float, present: Place) -> list[str]:
    notes = []
    if not run.crosses:
        notes.append(
            "tasks stay in the process, and get objects as they are: sending inline costs nothing"
        )
    if trace.full is not None:
        notes.append("the trace was full before the run had ended: only its beginning was replayed")
    elif trace.end is None:
        notes.append("the trace has no end: the program is running, or was killed")
    if present.store != trace.header.store:
        notes.append(
            f"the run's own store, {trace.header.store}, was not at hand: "
            f"{present.store} stands for it"
        )
    if not 1 / _TRUSTED <= ratio <= _TRUSTED:
        notes.append(
            f"the run took {ratio:.2f} times as long as its replay: "
            "expected times are rough, their order is better"
        )
    failed = sum(task.state == "failed" for task in trace.tasks)
    if failed:
        notes.append(f"{failed} tasks failed in the run")
    return notes
