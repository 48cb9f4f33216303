"""Replays a run under another policy, in a world of known costs.

The world: the client submits tasks one after the other, and stores what is to be stored before it
goes on. The base executor moves one thing at a time, there and back, and the worker that gets it
waits for it. Workers fetch, run and store at the same time. What comes back to the client, it
fetches when it arrives, if it looks at it.

Nothing is random: the same run, rule and prices come to the same.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from proxyexec._tune_result import TuneSpan, TuneTimeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyexec._costs import Kind
    from proxyexec._tune_candidates import Rule
    from proxyexec._tune_result import SpanKind
    from proxyexec._tune_run import Item, Run

__all__ = ["Outcome", "WorldPrices", "replay"]

# Spans of a timeline, at most.
_SPANS_AT_MOST = 6000


class WorldPrices(Protocol):
    """Seconds for each step of a task; :class:`proxyexec._tune_prices.Prices` has them."""

    @property
    def task(self) -> float:
        """What a task takes the base executor that moves nothing."""
        ...

    def send(self, kind: Kind, size: int) -> float:
        """Return what sending an argument inline takes, the base executor and a worker."""
        ...

    def send_back(self, kind: Kind, size: int) -> float:
        """Return what sending a result inline takes."""
        ...

    def put(self, kind: Kind, size: int) -> float:
        """Return what storing an object takes who stores it."""
        ...

    def get(self, kind: Kind, size: int) -> float:
        """Return what fetching an object takes who fetches it."""
        ...

    def beside_stored(self, kind: Kind, size: int) -> float:
        """Return what an argument that is stored and fetched takes the base executor."""
        ...

    def beside_found(self, kind: Kind, size: int) -> float:
        """Return the same for an argument that was stored before."""
        ...

    def beside_result(self, kind: Kind, size: int, *, read: bool) -> float:
        """Return the same for a result that is stored, and fetched by the client or not."""
        ...

    def loading(self, size: int, dump_s: float) -> float:
        """Return what making an object takes that took so long to pickle."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a replay comes to."""

    seconds: float
    inline_bytes: int
    stored_bytes: int
    found_bytes: int
    fetched_bytes: int
    peak_bytes: int
    stored_objects: int
    timeline: TuneTimeline | None


def replay(
    run: Run,
    rule: Rule,
    prices: WorldPrices,
    *,
    directly: bool = False,
    observed: bool = False,
    timeline: bool = False,
) -> Outcome:
    """Replay a run.

    Args:
        run: the run.
        rule: decides what is stored.
        prices: of the world.
        directly: whether results reach the tasks that get them past the client, if not stored.
        observed: whether the run is observed, as it was when it was traced.
        timeline: whether to note what happens when.
    """
    world = _World(run, rule, prices, directly, observed, timeline)
    world.go()
    return world.outcome()


@dataclass
class _Stored:
    """An object in the store."""

    bytes: int
    holders: int
    content: str = ""


@dataclass
class _Moving:
    """An object, as a task gets it."""

    item: Item
    stored: _Stored | None
    path: str


class _World:
    def __init__(
        self,
        run: Run,
        rule: Rule,
        prices: WorldPrices,
        directly: bool,
        observed: bool,
        timeline: bool,
    ) -> None:
        self._run, self._rule, self._prices = run, rule, prices
        self._directly, self._observed = directly, observed
        self._spans: list[TuneSpan] | None = [] if timeline else None
        self._spans_left_out = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.now = 0.0
        self._end = 0.0
        # When each is free again.
        self._client_free = 0.0
        self._channel_free = 0.0
        # Workers that are there and idle, the longest first; tasks that wait for one.
        self._workers = 0
        self._idle: deque[int] = deque()
        self._queue: deque[int] = deque()
        steps = run.steps
        self._done = [False] * len(steps)
        self._done_tasks = 0
        self._waiting = [len(set(step.after)) for step in steps]
        self._followers: list[list[int]] = [[] for _ in steps]
        consumers = [0] * len(steps)
        for number, step in enumerate(steps):
            for other in set(step.after):
                self._followers[other].append(number)
            for item in step.given:
                if item.maker is not None:
                    consumers[item.maker] += 1
        self._consumers = consumers
        self._next = 0
        # Whether the program is ready to go on to the next task.
        self._is_free = True
        self._given: list[list[_Moving]] = [[] for _ in steps]
        self._results: dict[int, list[_Moving]] = {}
        self._contents: dict[str, _Stored] = {}
        self._sent: set[str] = set()
        self._live = self._peak = 0
        self._lives: list[tuple[float, int]] = [(0.0, 0)]
        self._inline = self._stored = self._found = self._fetched = self._objects = 0
        self._kept: list[_Stored] = []

    def go(self) -> None:
        """Have everything happen."""
        self._at(0.0, self._go_on)
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        if not all(self._done):
            raise AssertionError("tasks wait for each other")
        self._end = max(self._end, self._client_free) + self._run.tail_s
        self.now = self._end
        for one in self._kept:
            self._release(one)

    def outcome(self) -> Outcome:
        """Return what it has come to."""
        timeline = None
        if self._spans is not None:
            spans = sorted(self._spans, key=lambda one: (one.start, one.end))
            timeline = TuneTimeline(
                self._end, tuple(spans), tuple(self._lives), self._spans_left_out
            )
        return Outcome(
            self._end,
            self._inline,
            self._stored,
            self._found,
            self._fetched,
            self._peak,
            self._objects,
            timeline,
        )

    # Time.

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, action))

    def _busy_client(self, seconds: float) -> float:
        """Have the client do something next; return when it begins."""
        start = max(self.now, self._client_free)
        self._client_free = start + seconds
        return start

    def _busy_channel(self, seconds: float) -> float:
        start = max(self.now, self._channel_free)
        self._channel_free = start + seconds
        return start

    # The program.

    def _go_on(self) -> None:
        """Submit what the program submits next, once it may."""
        steps = self._run.steps
        while self._next < len(steps) and steps[self._next].detached:
            # Whoever delivers its arguments submits it.
            number = self._next
            self._next += 1
            if not self._waiting[number]:
                self._submit(number)
        if self._next >= len(steps) or not self._is_free:
            return
        step = steps[self._next]
        if self._waiting[self._next] or (step.barrier and self._done_tasks < self._next):
            return
        self._is_free = False
        number = self._next
        self._at(self.now + max(0.0, step.think_s), lambda: self._submit(number))

    def _submit(self, number: int) -> None:
        step = self._run.steps[number]
        taken = 0.0
        begin = max(self.now, self._client_free)
        if self._observed:
            taken += step.observed_s
        moving = self._given[number]
        for item in step.given:
            for one in self._routed(item):
                moving.append(one)
                taken += self._prepared(number, one, begin + taken)
        self._client_free = begin + taken
        self._at(begin + taken, lambda: self._submitted(number))

    def _submitted(self, number: int) -> None:
        if not self._run.steps[number].detached:
            self._is_free = True
            self._next += 1
        if number == 0:
            for delay in self._run.delays:
                self._at(self.now + delay, self._worker_there)
        self._queue.append(number)
        self._assign()
        self._go_on()

    def _routed(self, item: Item) -> list[_Moving]:
        """Decide how an argument and its parts travel."""
        if item.maker is not None and self._done[item.maker]:
            made = [one for one in self._results.get(item.maker, ()) if one.stored is not None]
            if made:
                self._hold(made[0].stored)
                return [_Moving(replace(item, parts=()), made[0].stored, "reference")]
        whole, parts = self._split(item)
        return [self._way(one) for one in (whole, *parts)]

    def _split(self, item: Item) -> tuple[Item, list[Item]]:
        """Return an object without those parts that are stored by themselves, and these."""
        if not item.parts:
            return item, []
        wanted = [one for one in item.parts if self._wants(one)]
        rest = item.bytes + sum(one.bytes for one in item.parts if one not in wanted)
        return replace(item, bytes=rest, parts=()), wanted

    def _way(self, item: Item) -> _Moving:
        if not self._wants(item):
            self._note_sent(item)
            return _Moving(item, None, "inline")
        found = self._contents.get(item.content) if item.content and self._run.dedupe else None
        self._note_sent(item)
        if found is not None:
            self._hold(found)
            self._found += item.bytes
            return _Moving(item, found, "found")
        stored = self._put(item)
        if item.content:
            self._contents[item.content] = stored
        return _Moving(item, stored, "store")

    def _wants(self, item: Item) -> bool:
        content = item.content
        return self._rule.wants(
            item, repeated=content in self._sent, found=content in self._contents
        )

    def _note_sent(self, item: Item) -> None:
        if item.content:
            self._sent.add(item.content)

    def _prepared(self, number: int, moving: _Moving, at: float) -> float:
        """Return what the client takes to make an argument ready."""
        item = moving.item
        if moving.path in ("reference", "inline"):
            return 0.0
        self._span("serialize", "client", at, item.dump_s, number, item)
        if moving.path == "found":
            return item.dump_s
        put = self._prices.put(item.kind, item.bytes)
        self._span("put", "client", at + item.dump_s, put, number, item)
        return item.dump_s + put

    # Workers.

    def _worker_there(self) -> None:
        self._workers += 1
        self._idle.append(self._workers)
        self._assign()

    def _assign(self) -> None:
        while self._idle and self._queue:
            self._receive(self._queue.popleft(), self._idle.popleft())

    def _receive(self, number: int, worker: int) -> None:
        """Have a worker get a task through the base executor."""
        lane = f"worker {worker}"
        seconds = self._prices.task
        inline = [one.item for one in self._given[number] if one.stored is None]
        start = self._busy_channel(0.0)
        loads = 0.0
        for one in self._given[number]:
            if one.stored is not None and one.item.is_read:
                new = one.path == "store"
                beside = self._prices.beside_stored if new else self._prices.beside_found
                seconds += beside(one.item.kind, one.item.bytes)
        for item in inline:
            self._inline += item.bytes
            move = self._sending(item)
            self._span("inline", lane, start + seconds, move, number, item)
            seconds += move
            loads += self._load_s(item)
        self._busy_channel(seconds)
        self._at(start + seconds, lambda: self._fetch(number, worker, loads))

    def _sending(self, item: Item) -> float:
        if self._directly and item.maker is not None:
            return self._prices.get(item.kind, item.bytes)
        move = item.dump_s + self._prices.send(item.kind, item.bytes)
        if item.maker is not None:  # and it was made there, to be pickled once more
            move += self._load_s(item)
        return move

    def _load_s(self, item: Item) -> float:
        if item.load_s is not None:
            return item.load_s
        return self._prices.loading(item.whole_bytes, item.dump_s)

    def _fetch(self, number: int, worker: int, loads: float) -> None:
        """Have a worker make what it was given, fetch, and run."""
        step, lane = self._run.steps[number], f"worker {worker}"
        at = self.now + loads
        for one in self._given[number]:
            if one.stored is None or not one.item.is_read:
                continue
            self._fetched += one.item.bytes
            get = self._prices.get(one.item.kind, one.item.bytes) + self._load_s(one.item)
            self._span("get", lane, at, get, number, one.item)
            at += get
        self._span("run", lane, at, step.run_s, number, None)
        self._at(at + step.run_s, lambda: self._return(number, worker))

    def _return(self, number: int, worker: int) -> None:
        """Have a worker store the results, or send them back."""
        step, lane = self._run.steps[number], f"worker {worker}"
        at = self.now
        if self._observed:
            at += step.worker_observed_s
        results: list[_Moving] = []
        for item in step.returned:
            whole, parts = self._split(item)
            for one in (whole, *parts):
                if not self._wants(one):
                    results.append(_Moving(one, None, "inline"))
                    continue
                dump, move = one.dump_s, self._prices.put(one.kind, one.bytes)
                self._span("serialize", lane, at, dump, number, one)
                self._span("put", lane, at + dump, move, number, one)
                at += dump + move
                results.append(_Moving(one, _Stored(one.bytes, 0), "store"))
        self._results[number] = results
        self._at(at, lambda: self._stored_results(number, worker))

    def _stored_results(self, number: int, worker: int) -> None:
        lane = f"worker {worker}"
        seconds = 0.0
        start = self._busy_channel(0.0)
        for one in self._results[number]:
            if one.stored is not None:
                self._add(one.stored)
                one.stored.holders = 1 + self._consumers[number]
                item = one.item
                seconds += self._prices.beside_result(item.kind, item.bytes, read=item.is_read)
                continue
            self._inline += one.item.bytes
            if self._directly and not one.item.is_read:
                continue
            move = one.item.dump_s + self._prices.send_back(one.item.kind, one.item.bytes)
            self._span("inline", lane, start + seconds, move, number, one.item)
            seconds += move + self._load_s(one.item)
        if seconds:
            self._busy_channel(seconds)
        when = start + seconds if seconds else self.now
        self._at(when, lambda: self._arrive(number, worker))

    def _arrive(self, number: int, worker: int) -> None:
        """Have the client know that a task has ended."""
        for one in self._given[number]:
            if one.stored is not None:
                self._release(one.stored)
        for item in self._run.steps[number].given:
            # Who was given it as it is holds nothing; who might have held it lets go.
            if item.maker is not None:
                for made in self._results.get(item.maker, ()):
                    if made.stored is not None:
                        self._release(made.stored)
        self._idle.append(worker)
        taken = 0.0
        begin = max(self.now, self._client_free)
        for one in self._results[number]:
            if one.stored is not None and one.item.is_read:
                self._fetched += one.item.bytes
                get = self._prices.get(one.item.kind, one.item.bytes)
                get += self._load_s(one.item)
                self._span("get", "client", begin + taken, get, number, one.item)
                taken += get
        if taken:
            self._client_free = begin + taken
        self._assign()
        self._at(begin + taken if taken else self.now, lambda: self._finish(number))

    def _finish(self, number: int) -> None:
        self._done[number] = True
        self._done_tasks += 1
        self._end = max(self._end, self.now)
        held = self._run.steps[number].held_s
        for one in self._results[number]:
            if one.stored is None:
                continue
            if held is not None:
                self._release_at(self.now + held, one.stored)
            elif one.item.is_read and not self._run.lazy:
                self._release(one.stored)  # what was fetched takes its place
            else:
                self._kept.append(one.stored)
        for follower in self._followers[number]:
            self._waiting[follower] -= 1
            if (
                not self._waiting[follower]
                and self._run.steps[follower].detached
                and follower < self._next
            ):
                self._submit(follower)
        self._go_on()

    def _release_at(self, when: float, stored: _Stored) -> None:
        self._at(when, lambda: self._release(stored))

    # The store.

    def _put(self, item: Item) -> _Stored:
        stored = _Stored(item.bytes, 1, item.content)
        self._add(stored)
        return stored

    def _add(self, stored: _Stored) -> None:
        self._stored += stored.bytes
        self._objects += 1
        self._change(stored.bytes)

    def _hold(self, stored: _Stored | None) -> None:
        if stored is not None:
            stored.holders += 1

    def _release(self, stored: _Stored) -> None:
        stored.holders -= 1
        if stored.holders == 0:
            if self._contents.get(stored.content) is stored:
                del self._contents[stored.content]
            self._change(-stored.bytes)

    def _change(self, size: int) -> None:
        self._live += size
        self._peak = max(self._peak, self._live)
        if self._spans is not None:
            if self._lives[-1][0] == self.now:
                self._lives[-1] = (self.now, self._live)
            else:
                self._lives.append((self.now, self._live))

    def _span(
        self,
        kind: SpanKind,
        lane: str,
        start: float,
        seconds: float,
        number: int,
        item: Item | None,
    ) -> None:
        if self._spans is None or seconds <= 0:
            return
        if len(self._spans) >= _SPANS_AT_MOST:
            self._spans_left_out += 1
            return
        about = ("", "", 0) if item is None else (item.what, item.type, item.bytes)
        function = self._run.steps[number].function
        self._spans.append(TuneSpan(kind, lane, start, start + seconds, number, function, *about))
