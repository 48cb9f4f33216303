"""What a ``ProxyAdaptive`` knows: costs, and the sizes that follow from them.

There is one learner for an executor, in the client. It measures once, or takes what was measured
before, and looks at what the program does that changes what a path comes to:

- *Repeated* arguments. What is stored, and held, is not stored again: storing it once pays for all
  who get it.
- Results that are *passed on*. Inline, they come to the client and go out again.
- How long *pickling* takes for what it sends.

If storing takes a lot longer or shorter than it did, it measures again.

Workers get the sizes with their tasks, as a part of the policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxyexec import _calibrations
from proxyexec._calibrate import SECONDS, Calibration, CalibrationError, calibrate
from proxyexec._contents import Content
from proxyexec._costs import KINDS, CostModel, Curve, Kind, kind_of
from proxyexec._events import Ran
from proxyexec._history import History
from proxyexec._limits import DEFAULT, NEVER, NOTHING, limits_of_arguments, limits_of_results
from proxyexec._parts import PartRules
from proxyexec._task import blob_of
from proxyexec.policy import Policy, ProxyNever, ProxySize

if TYPE_CHECKING:
    from proxyexec._call import Call
    from proxyexec._events import Event, Moved
    from proxyexec._executor import StoreExecutor
    from proxyexec._future import TaskFuture
    from proxyexec._serialize import Candidate
    from proxyexec._store import Store

__all__ = ["Learner"]

_log = logging.getLogger("proxyexec")

# From this serialized size on, an object is reason enough to measure.
_WORTH_MEASURING = 50_000

# How long a program that did not ask for it waits for workers to start before it measures.
_PATIENCE = 3.0

# How often it is tried.
_ATTEMPTS = 2

# How many tasks are given a result, as far as sizes differ for it.
_SHARES = (0.0, 0.5, 1.0, 2.0, 4.0)

# Functions of which it is known how their results are passed on.
_FUNCTIONS_AT_MOST = 1000

# Of what is older than so many events, half is forgotten.
_MEMORY = 64

# By how many powers of two storing has to take longer, or shorter, for costs to be measured again;
# busy processors make some difference. And how often that may be.
_DRIFT = 4.0
_DRIFT_WEIGHT = 0.05
_AGAIN = 3

# What is left of the largest result's size when another one is there.
_FADING = 0.99

# From so many bytes on, it can be told how long pickling takes; how much an object counts beside
# those before; and by how many powers of two it has to change.
_LEAST_PICKLE = 10_000
_WEIGHT = 0.2
_STEP = 0.5


class Learner:
    """What is known about the costs of one executor; see above.

    Args:
        executor: that has the policy.
        calibrates: whether to measure.
        most: bytes that may be stored at a time; ``None`` for as many as there is room for.
    """

    def __init__(
        self, executor: StoreExecutor, *, calibrates: bool, most: int | None = None
    ) -> None:
        self.model: CostModel | None = None
        """What is known of the costs."""
        self.limits = DEFAULT
        """From which sizes on arguments are stored."""
        self.limits_of_results = DEFAULT
        """From which sizes on results are; travels to the workers."""
        self._executor = weakref.ref(executor)
        self._most = most
        self._thread = threading.get_ident()
        self._attempts = _ATTEMPTS if calibrates and executor._crosses else 0
        # Whether what a result is given to gets it past the client.
        self._directly = executor._link is not None
        # Reentrant, as contexts are serialized inside, and the garbage collector may run then.
        self._lock = threading.RLock()
        self._setting = _calibrations.setting_of(executor) if executor._crosses else {}
        # By the name of a function, how its results are passed on; by that, what workers get.
        self._passed: dict[str, _Passed] = {}
        self._blobs: dict[float, bytes] = {}
        self._repeats = _Repeats()
        self._pickling = _Pickling()
        self._history = History()
        # By how many powers of two storing takes longer than it did; and how often it may be
        # measured again for that.
        self._drift = 0.0
        self._again = _AGAIN if calibrates else 0
        # What workers get when no more is to be stored; and how much a result takes that is.
        self._full_blob: bytes | None = None
        self._largest_result = 0.0
        executor._learner = self
        if executor._crosses:
            # Not by a bound method: executors that are dropped go at once.
            executor._tasks.measures.observe(functools.partial(_observe, weakref.ref(self)))
        else:  # nothing is moved at all
            self.limits = self.limits_of_results = NOTHING

    def begin(self) -> None:
        """Take what was measured before. The policy has to have this learner: it is pickled."""
        executor = self._executor()
        if executor is not None and executor._crosses:
            self._use(_calibrations.load(self._setting))

    @property
    def is_busy(self) -> bool:
        """Whether its executor is in use."""
        executor = self._executor()
        return executor is not None and not executor._tasks.ended

    @property
    def smallest(self) -> int:
        """No smaller object is worth looking at, in bytes."""
        least = min(self.limits)
        return min(least, _WORTH_MEASURING) if self._attempts else least

    def judge(self, candidate: Candidate) -> bool:
        """Tell whether an argument is to be stored."""
        size = candidate.size
        if self._attempts and size >= _WORTH_MEASURING:
            self._calibrate_if_idle()
        kind = kind_of(candidate.obj, candidate.frames)
        if candidate.shared:
            self._history.add_shared(kind, type(candidate.obj), size)
        else:
            self._history.add_argument(kind, type(candidate.obj), size)
        if kind == "pickle" and self._pickling.learn(size, candidate.seconds):
            self._update()
        return self._is_worth_it(candidate, kind, size) and self._has_room(size)

    def _is_worth_it(self, candidate: Candidate, kind: Kind, size: int) -> bool:
        limits = self.limits
        if size >= limits.of(kind):
            return True
        if candidate.shared:  # by as many tasks as there are items to come
            return size >= limits.of_shared(kind)
        if size < limits.of_found(kind):
            return False
        executor = self._executor()
        if executor is None or not executor._tasks.dedupe:
            return False
        wanted = size >= limits.of_repeated(kind)
        before = self._repeats.expected
        stored = self._repeats.judge(executor.store, Content(candidate.frames), wanted=wanted)
        if self._repeats.expected != before:
            self._update()
        return stored

    def _has_room(self, size: int) -> bool:
        """Tell whether so many bytes more may be stored, one at least."""
        executor = self._executor()
        live = None if executor is None else executor.store.live
        return self._most is None or live is None or live.bytes + max(size, 1) <= self._most

    def frozen(self) -> Policy:
        """Return a plain policy; see :meth:`proxyexec.policy.ProxyAdaptive.frozen`."""
        model = self.model
        if model is None:
            return ProxyNever() if self.limits.buffers == NEVER else ProxySize(self.limits.buffers)
        pickling, directly = self._pickling.factor, self._directly
        results = [
            limits_of_results(model, share, directly=directly, pickling=pickling)
            for share in _SHARES
        ]
        best: dict[Kind, int] = {}
        for kind in KINDS:
            limits = [self.limits.of(kind), *(one.of(kind) for one in results)]
            found = self._history.best(
                model, kind, [*limits, NEVER], directly=directly, pickling=pickling
            )
            # Of what nobody has seen, what is cheaper for arguments and results.
            best[kind] = max(limits[:2]) if found is None else found
        return self._history.policy(best, {kind: self.limits.of_shared(kind) for kind in KINDS})

    def observe(self, event: Event) -> None:
        """Look at what was measured of a task."""
        if type(event) is not Ran:
            return
        passed = self._passed.get(event.function)
        share = 0.0 if passed is None else passed.share
        for moved in event.moved:
            self._compare(moved)
            if moved.what == "result" and moved.exact and not moved.is_part:
                self._history.add_result(moved.type, moved.bytes, share)
                if moved.path == "store":
                    self._largest_result = max(moved.bytes, _FADING * self._largest_result)

    def _compare(self, moved: Moved) -> None:
        """See whether storing takes what it took; if not, measure again when there is time."""
        model = self.model
        if model is None or moved.path != "store" or self._again == 0:
            return
        kind = self._history.kind_of(moved.type)
        expected = model.seconds("argument", kind, "put", moved.bytes)
        if not expected or moved.put_s <= 0:
            return
        self._drift += _DRIFT_WEIGHT * (math.log2(moved.put_s / expected) - self._drift)
        if abs(self._drift) > _DRIFT:
            self._drift = 0.0
            self._again -= 1
            self._attempts = 1

    def calibrate(self, seconds: float = SECONDS, largest: int = 0) -> None:
        """Measure now; see :meth:`proxyexec.policy.ProxyAdaptive.calibrate`.

        Args:
            seconds: to take, at most.
            largest: bytes of objects that are measured beside the usual ones.
        """
        executor = self._executor()
        if executor is None:
            raise RuntimeError("the executor is gone")
        if not executor._crosses:
            raise RuntimeError("tasks stay in this process: there is nothing to measure")
        try:
            measured = calibrate(executor, seconds=seconds, largest=largest)
        except CalibrationError as error:
            raise RuntimeError(f"could not measure: {error}") from error
        self._keep(measured)

    def blob_for(self, call: Call, blob: bytes) -> bytes:
        """Return the context that a task gets; asked once for each.

        Args:
            call: the task's.
            blob: what most tasks get.
        """
        passed = self._passed.get(call._called)
        if passed is not None:
            passed.call()
        if self._full_blob is not None and not self._has_room_for_results():
            return self._full_blob
        return blob if passed is None else self._blobs.get(passed.share, blob)

    def pass_on(self, futures: Sequence[TaskFuture[Any]]) -> None:
        """Take note that results are given to a task."""
        for future in futures:
            name = getattr(future._call, "_called", None)
            passed = self._passed.get(name) if name else None
            if passed is not None:
                passed.give()
            elif name and len(self._passed) < _FUNCTIONS_AT_MOST:
                self._passed[name] = _Passed()

    def _has_room_for_results(self) -> bool:
        executor = self._executor()
        under_way = 0 if executor is None else len(executor._tasks._in_flight)
        return self._has_room(round(under_way * self._largest_result))

    def _calibrate_if_idle(self) -> None:
        """Measure, unless the program would notice it by more than the time."""
        executor = self._executor()
        # Who calls back futures must not wait; and what is under way would be measured, too.
        if executor is None or threading.get_ident() != self._thread:
            return
        if len(executor._tasks._in_flight) > 1 or asyncio._get_running_loop() is not None:
            return
        with self._lock:
            if not self._attempts:
                return
            self._attempts -= 1
        # In a thread that is in the middle of nothing.
        thread = threading.Thread(target=self._try_to_calibrate, args=(executor,), daemon=True)
        thread.start()
        thread.join()

    def _try_to_calibrate(self, executor: StoreExecutor) -> None:
        quota = executor.store.quota
        try:
            with contextlib.nullcontext() if quota is None else quota.unbounded():
                measured = calibrate(executor, patience=_PATIENCE)
        except CalibrationError as error:
            _log.info("what storing costs could not be measured: %s", error)
        else:
            # What is known was measured on a quieter machine.
            if measured.is_steady or self.model is None:
                self._keep(measured)

    def _keep(self, measured: Calibration) -> None:
        model = CostModel(measured.model.curves, self._setting)
        if measured.is_steady:  # or it would have to do for programs to come
            _calibrations.save(model)
        self._use(model)

    def _use(self, model: CostModel | None) -> None:
        """Take what a model says from now on."""
        if model is not None:
            self.model, self._attempts = model, 0
            self._pickling.expect(model)
        self._update()

    def _update(self) -> None:
        """Find the sizes again, and have tasks that are sent from now on know them."""
        executor = self._executor()
        with self._lock:
            model = self.model
            if model is not None:
                self.limits = limits_of_arguments(model, self._repeats.expected)
            if executor is None:
                return
            context = executor._context
            context = context._replace(rules=PartRules(context.policy))
            blobs = {}
            # Last, what results are that nobody passes on.
            for share in reversed(_SHARES):
                if model is not None:
                    self.limits_of_results = limits_of_results(
                        model, share, directly=self._directly, pickling=self._pickling.factor
                    )
                blobs[share] = blob_of(context)
            if self._most is not None:
                now, self.limits_of_results = self.limits_of_results, NOTHING
                self._full_blob = blob_of(context)
                self.limits_of_results = now
            self._blobs = blobs
            executor._context, executor._blob = context, blobs[0.0]


def _observe(learner: weakref.ref[Learner], event: Event) -> None:
    here = learner()
    if here is not None:
        here.observe(event)


class _Passed:
    """How many tasks are given each result of a function.

    Counted whenever one is given: at other times, there are results that are going to be.
    """

    __slots__ = ("_calls", "_given", "_since", "share")

    def __init__(self) -> None:
        self.share = 1.0
        """About how many; one of a few numbers."""
        self._calls = 1
        self._given = 1
        # Calls since a result was last given.
        self._since = 0

    def call(self) -> None:
        """Count a call of the function."""
        self._calls += 1
        self._since += 1
        if self._since > _MEMORY:  # and results of these may not be given at all
            self._count()

    def give(self) -> None:
        """Count a result that is given to a task."""
        self._given += 1
        self._count()

    def _count(self) -> None:
        self._since = 0
        given = self._given / self._calls
        self.share = max(share for share in _SHARES if share <= given)
        if self._calls > _MEMORY:
            self._calls, self._given = self._calls // 2, self._given // 2


class _Repeats:
    """What comes of storing arguments because they were sent before."""

    def __init__(self) -> None:
        self.expected = 2.0
        """How many tasks more get each; in halves."""
        self._stored = 1
        self._found = 2

    def judge(self, store: Store, content: Content, *, wanted: bool) -> bool:
        """Tell whether to store an argument.

        Args:
            store: where to.
            content: of the argument.
            wanted: whether to store it if it was sent before.
        """
        contents = store._contents
        if contents is None:
            return False
        if contents.candidates(content):
            self._found += 1
            self._learn()
            return True
        if not contents.is_repeated(content) or not wanted:
            return False
        self._stored += 1
        self._learn()
        return True

    def _learn(self) -> None:
        self.expected = round(2 * self._found / self._stored) / 2
        if self._stored + self._found > _MEMORY:
            self._stored, self._found = max(self._stored // 2, 1), self._found // 2


class _Pickling:
    """How long it takes to pickle what the program sends, beside what was measured."""

    def __init__(self) -> None:
        self.factor = 1.0
        """How many times as long; a power of the square root of two."""
        self._expected: Curve | None = None
        self._logarithm = 0.0

    def expect(self, model: CostModel) -> None:
        """Take what was measured for comparison."""
        self._expected = model.curves.get(("argument", "pickle", "dump"))

    def learn(self, size: int, seconds: float) -> bool:
        """Take note of an object that was pickled; tell whether the factor is another now."""
        expected = 0.0 if self._expected is None else self._expected.seconds(size)
        if size < _LEAST_PICKLE or expected <= 0 or seconds <= 0:
            return False
        self._logarithm += _WEIGHT * (math.log2(seconds / expected) - self._logarithm)
        # Not at each: all sizes have to be found again.
        before = math.log2(self.factor)
        if abs(self._logarithm - before) < _STEP:
            return False
        self.factor = 2.0 ** (round(self._logarithm / _STEP) * _STEP)
        return True
