"""What tuning comes to: predictions for policies, and what they were made of.

Everything is plain data, with a JSON form: seconds are floats, counted from the beginning of the
run; sizes are bytes. Whoever draws a page or prints a table needs no more.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from proxyexec._costs import CostModel

__all__ = [
    "TuneCandidate",
    "TuneMeasured",
    "TunePlace",
    "TunePolicy",
    "TuneResult",
    "TuneRun",
    "TuneSpan",
    "TuneTimeline",
    "TuneUnread",
    "TuneWay",
]

# The version of the JSON form.
_VERSION = 1

# A program that takes no more than so many times as long is as fast: runs differ by more.
_NO_FASTER = 1.03

SpanKind: TypeAlias = Literal["serialize", "put", "find", "inline", "get", "run"]
"""What somebody is busy with.

``serialize`` pickles, and works out what is small; ``put`` stores; ``find`` looks up what is stored
already; ``inline`` moves through the base executor, in either direction; ``get`` fetches and makes
the object; ``run`` is the function.
"""


@dataclass(frozen=True)
class TuneSpan:
    """Something that takes time, on one lane of a timeline."""

    kind: SpanKind
    lane: str
    """Who is busy with it, ``client``, or ``worker 1`` and so on."""
    start: float
    end: float
    task: int
    """The number of the task, in the order of submission."""
    function: str
    """What the task calls."""
    what: str = ""
    """What is moved, ``argument 0``, ``argument name`` or ``result``; empty for ``run``."""
    type: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class TuneTimeline:
    """Who was busy when, and how much was stored."""

    seconds: float
    """The end of the run."""
    spans: tuple[TuneSpan, ...]
    """In the order of their starts. Those that take no time are left out."""
    live: tuple[tuple[float, int], ...]
    """How many bytes are in the store, from each moment on."""
    left_out: int = 0
    """Spans of later tasks, which there were too many of."""


@dataclass(frozen=True)
class TunePolicy:
    """A policy, as it is written down."""

    name: str
    """In a few words, for tables."""
    python: str
    """An expression that makes it."""
    config: Any = None
    """The value of ``should_proxy`` in a configuration; ``None`` if it cannot stand there."""


@dataclass(frozen=True)
class TuneCandidate:
    """A policy with a store, and what it is expected to come to."""

    policy: TunePolicy
    store: str
    """The URL, without its password."""
    is_present: bool
    """Whether it is the one that was traced."""
    seconds: float
    """That the run is expected to take."""
    simulated_seconds: float
    """The same, before it was corrected by what replaying the run itself has shown."""
    inline_bytes: int
    """Moved through the base executor, arguments and results."""
    stored_bytes: int
    found_bytes: int
    """Not stored, as the same was stored already."""
    fetched_bytes: int
    peak_bytes: int
    """The most that is stored at a time."""
    stored_objects: int
    timeline: TuneTimeline | None = None
    """Of the best ones, and of the present one, as simulated, not corrected."""


@dataclass(frozen=True)
class TuneWay:
    """From which size on storing is cheaper than sending inline, for one kind of objects."""

    side: str
    """``argument`` or ``result``."""
    kind: str
    """``buffers`` or ``pickle``."""
    crossover_bytes: int | None
    """``None`` if it never is."""
    shared_bytes: int | None = None
    """The same for an argument that is stored already."""


@dataclass(frozen=True)
class TunePlace:
    """A store, and what moving objects costs with it."""

    store: str
    """The URL, without its password."""
    is_present: bool
    """Whether it is the one of the trace."""
    costs: CostModel
    """The curves, which are seconds by size, for each way."""
    source: str
    """Where they are from, in words."""
    ways: tuple[TuneWay, ...] = ()


@dataclass(frozen=True)
class TuneUnread:
    """Objects that were stored for nothing: nobody has fetched them before they were evicted."""

    function: str
    what: str
    """``argument 0``, ``argument name`` or ``result``."""
    type: str
    objects: int
    bytes: int


@dataclass(frozen=True)
class TuneRun:
    """The run that was traced."""

    executor: str
    workers: int
    store: str
    policy: str
    """As it shows itself."""
    tasks: int
    seconds: float
    """From the beginning of the trace to its end."""
    inline_bytes: int
    stored_bytes: int
    peak_bytes: int
    host: str
    started: float
    """In seconds since the epoch."""
    version: str
    """Of proxyexec."""
    is_whole: bool = True
    """Whether all of it is in the trace."""
    timeline: TuneTimeline | None = None
    """As it was measured."""


@dataclass(frozen=True)
class TuneMeasured:
    """What a candidate took when the program was run with it."""

    policy: TunePolicy
    store: str
    is_present: bool
    predicted_seconds: float
    measured_seconds: tuple[float, ...]
    """One for each round."""


@dataclass(frozen=True)
class TuneResult:
    """What tuning has found out."""

    run: TuneRun
    factor: float
    """How many times as long as simulated everything is expected to take; see ``moving``."""
    candidates: tuple[TuneCandidate, ...]
    """The best one first."""
    places: tuple[TunePlace, ...]
    unread: tuple[TuneUnread, ...] = ()
    """The most bytes first."""
    measured: tuple[TuneMeasured, ...] = ()
    """What candidates took, in their order, if it was verified."""
    notes: tuple[str, ...] = field(default=())
    """What who reads it has to know, in sentences."""
    ratio: float = 1.0
    """How many times as long as its replay the traced run took, with all costs as measured."""
    moving: float = 1.0
    """How many times as long as measured moving took in the run, on the path that most bytes took:
    as far as that explains the ratio. It is expected to take as long again."""

    @property
    def best(self) -> TuneCandidate:
        """The candidate that is expected to take least; of those as good, the simplest."""
        return self.candidates[0]

    @property
    def fastest(self) -> TuneCandidate:
        """The best one, as it was measured, if it was verified, or as it is expected.

        Of those that take next to no longer, that is the present one, or the simplest.
        """
        if not self.measured:
            return self.best
        least = min(map(_median, self.measured))
        near = [one for one in self.measured if _median(one) <= _NO_FASTER * least]
        found = next((one for one in near if one.is_present), near[0])
        return next(
            one for one in self.candidates if (one.policy, one.store) == (found.policy, found.store)
        )

    @property
    def present(self) -> TuneCandidate:
        """That which was traced."""
        return next(one for one in self.candidates if one.is_present)

    def verified(self, measured: tuple[TuneMeasured, ...]) -> TuneResult:
        """Return the same with what was measured."""
        return replace(self, measured=measured)

    def to_json(self, *, timelines: bool = True) -> dict[str, Any]:
        """Return it as what the module ``json`` writes; see :meth:`from_json`.

        Args:
            timelines: whether with all spans.
        """
        plain = asdict(replace(self, places=()))
        plain["places"] = [
            asdict(replace(one, costs=CostModel({}))) | {"costs": one.costs.to_json()}
            for one in self.places
        ]
        if not timelines:
            for one in (plain["run"], *plain["candidates"]):
                one["timeline"] = None
        return {"proxyexec_tune": _VERSION, **plain}

    @classmethod
    def from_json(cls, document: Any) -> TuneResult:
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: it is none, or is of a version that is not known here.
        """
        try:
            version = document["proxyexec_tune"]
            if version != _VERSION:
                raise ValueError(f"version {version!r} of results is not known; this is {_VERSION}")
            return cls(
                _run(document["run"]),
                float(document["factor"]),
                tuple(map(_candidate, document["candidates"])),
                tuple(map(_place, document["places"])),
                tuple(TuneUnread(**one) for one in document["unread"]),
                tuple(map(_measured, document["measured"])),
                tuple(map(str, document["notes"])),
                float(document["ratio"]),
                float(document.get("moving", 1.0)),
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"this is no result of tuning: {reason}") from error


def _median(measured: TuneMeasured) -> float:
    return statistics.median(measured.measured_seconds)


def _run(facts: Mapping[str, Any]) -> TuneRun:
    return TuneRun(**{**facts, "timeline": _timeline(facts["timeline"])})


def _candidate(facts: Mapping[str, Any]) -> TuneCandidate:
    policy, timeline = TunePolicy(**facts["policy"]), _timeline(facts["timeline"])
    return TuneCandidate(**{**facts, "policy": policy, "timeline": timeline})


def _place(facts: Mapping[str, Any]) -> TunePlace:
    ways = tuple(TuneWay(**one) for one in facts["ways"])
    return TunePlace(**{**facts, "costs": CostModel.from_json(facts["costs"]), "ways": ways})


def _measured(facts: Mapping[str, Any]) -> TuneMeasured:
    seconds = tuple(map(float, facts["measured_seconds"]))
    policy = TunePolicy(**facts["policy"])
    return TuneMeasured(**{**facts, "policy": policy, "measured_seconds": seconds})


def _timeline(facts: Mapping[str, Any] | None) -> TuneTimeline | None:
    if facts is None:
        return None
    spans = tuple(TuneSpan(**one) for one in facts["spans"])
    live = tuple((float(at), int(size)) for at, size in facts["live"])
    return TuneTimeline(**{**facts, "spans": spans, "live": live})
