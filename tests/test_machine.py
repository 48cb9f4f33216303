"""Programs of any steps, in any order: every live result has its value, and nothing stays stored.

A machine submits, chains, maps, cancels, drops, pickles, clones, forks and shuts down as hypothesis
pleases, and keeps beside each thing that it holds what this must come to. In the end, all of it
is checked, let go of, and looked for in the store.

Set ``PROXYEXEC_LONG`` for many more and longer programs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import proxyexec
from proxyexec import (
    ProxyAlways,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
    extract,
    is_proxy,
    reference_of,
    resolve,
)
from proxyexec.errors import ObjectMissingError, StoreClosedError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests.conftest import PoolEnd, wait_for_evictions

# Tasks that wait here hold up all that were submitted after them. Forked workers have it, too.
GATE = multiprocessing.get_context("fork").Semaphore(0)

PATIENCE = 60


# What runs in workers, and, on plain values, in the model.


def wait_at_the_gate():
    assert GATE.acquire(timeout=PATIENCE)
    return "through"


def identity(x):
    return x


def append(x, number):
    x.append(number)
    return x


def look(x):
    return f"{len(x)} items"


def wrap(x):
    return {"one": x, "more": [x, [0]]}


def couple(x, y):
    return [x, y]


def pick(x, y):
    return y


def copied(x):
    return [*x, *x]


def fail(x):
    raise ValueError("failed", len(x))


ONE = [identity, look, wrap, copied, fail]
TWO = [couple, pick]


def plain(obj: Any) -> Any:
    """An object without proxies."""
    obj = extract(obj)
    if type(obj) is list:
        return [plain(one) for one in obj]
    if type(obj) is dict:
        return {key: plain(value) for key, value in obj.items()}
    return obj


class Held:
    """A value that the program has: an object or a proxy, and what it must be.

    Args:
        obj: the value.
        now: what it must be equal to.
        stored: what other proxies of the same object must be equal to.
    """

    def __init__(self, obj: Any, now: Any, stored: Any = None) -> None:
        self.obj = obj
        self.now = copy.deepcopy(now)
        self.stored = copy.deepcopy(now if stored is None else stored)
        self.lent = False  # to a task that may still look at it

    def check(self) -> None:
        assert plain(self.obj) == self.now


class Outcome:
    """What a future must come to."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        # Of values, what they are now; of futures, what will come of them.
        self.arguments = [one if type(one) is Outcome else copy.deepcopy(one) for one in arguments]
        self.cancelled = False
        self.may_be_cancelled = False
        self.held: Held | None = None  # the result, once it was read

    def kinds(self) -> set[str]:
        """The ways in which it may end."""
        if self.cancelled:
            return {"cancelled"}
        awaited = [one.kinds() for one in self.arguments if type(one) is Outcome]
        kinds = {"cancelled"} if self.may_be_cancelled else set()
        bad = {kind for some in awaited for kind in some} - {"value"}
        if not all("value" in some for some in awaited):
            return kinds | bad
        return kinds | bad | {"error" if self.function is fail else "value"}

    def value(self) -> Any:
        """The result."""
        if self.held is not None:
            return copy.deepcopy(self.held.now)
        return self.function(
            *(one.value() if type(one) is Outcome else copy.deepcopy(one) for one in self.arguments)
        )


values = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda x: [*x, [9] * 20])
choices = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """A program; subclasses say what pool it uses."""

    policies: Any
    places: Any

    def make_base(self) -> Any:
        raise NotImplementedError

    @initialize(
        data=st.data(),
        lazy=st.booleans(),
        nested=st.booleans(),
        dedupe=st.booleans(),
        close_store=st.booleans(),
    )
    def begin(self, data, lazy, nested, dedupe, close_store):
        while GATE.acquire(block=False):
            pass
        self.folder = tempfile.TemporaryDirectory()
        self.place = data.draw(st.sampled_from(self.places), label="place")
        connector = MemoryConnector() if self.place == "memory" else FileConnector(self.folder.name)
        self.store = Store("machine", connector)
        self.policy = data.draw(st.sampled_from(self.policies), label="policy")
        self.options = {
            "lazy": lazy,
            "nested": nested,
            "dedupe": dedupe,
            "close_store": close_store,
        }
        self.held: list[Held] = []
        self.futures: list[tuple[Any, Outcome]] = []
        self.iterators: list[tuple[Any, list[Any]]] = []
        self.kept: list[Any] = []  # references to what nobody holds
        self.gates = 0
        self.pool_ends: list[PoolEnd] = []
        self.start()

    def start(self):
        self.executor = StoreExecutor(self.make_base(), self.store, self.policy, **self.options)
        self.running = True

    # What rules have in common.

    def some(self, things, choice):
        return things[choice % len(things)] if things else None

    def open_gates(self):
        while self.gates:
            self.gates -= 1
            GATE.release()

    def submit(self, function, *arguments):
        """Submit a call; each argument is given with what it stands for."""
        future = self.executor.submit(function, *(one for one, _ in arguments))
        outcome = Outcome(function, *(expected for _, expected in arguments))
        self.futures.append((future, outcome))

    def argument(self, choice):
        """Something to give to a task: a value that is held, or a future."""
        number = choice % ((len(self.held) + len(self.futures)) or 1)
        if not self.held and not self.futures:
            return [1, 2], [1, 2]
        if number < len(self.held):
            held = self.held[number]
            return held.obj, held.now
        future, outcome = self.futures[number - len(self.held)]
        if outcome.held is not None:
            outcome.held.lent = True
        outcome.lent = True
        return future, outcome

    def settle(self, future, outcome):
        """Wait for a future, and check what has come of it."""
        self.open_gates()
        kinds = outcome.kinds()
        try:
            result = future.result(PATIENCE)
        except concurrent.futures.CancelledError:
            assert "cancelled" in kinds
            assert future.cancelled()
        except ValueError as error:
            assert "error" in kinds
            assert error.args[0] == "failed"
            error.__traceback__ = None
        else:
            assert "value" in kinds
            if outcome.held is None:
                outcome.held = Held(result, outcome.value())
                outcome.held.lent = getattr(outcome, "lent", False)
            assert outcome.held.obj is result
            return outcome.held
        return None

    def owned_proxies(self):
        return [one for one in self.held if is_proxy(one.obj)]

    # What rules draw, and when they apply, must not depend on what has been cancelled in time:
    # a rule that finds nothing to work on does nothing.

    # Rules.

    @precondition(lambda self: self.running)
    @rule(value=values, function=st.sampled_from(ONE))
    def submit_a_value(self, value, function):
        self.submit(function, (value, value))
        value.append("only the caller's")

    @precondition(lambda self: self.running)
    @rule(choice=choices, function=st.sampled_from(ONE))
    def chain(self, choice, function):
        self.submit(function, self.argument(choice))

    @precondition(lambda self: self.running)
    @rule(one=choices, other=choices, function=st.sampled_from(TWO))
    def chain_two(self, one, other, function):
        self.submit(function, self.argument(one), self.argument(other))

    @precondition(lambda self: self.running)
    @rule(value=values, number=st.integers(0, 3))
    def change_in_a_task(self, value, number):
        self.submit(append, (value, value), (number, number))

    @precondition(lambda self: self.running)
    @rule(choice=choices)
    def change_a_result_in_a_task(self, choice):
        lists = [one for one in self.held if type(one.now) is list]
        if lists:
            held = self.some(lists, choice)
            self.submit(append, (held.obj, held.now), (7, 7))

    @precondition(lambda self: self.running and self.gates < 3)
    @rule()
    def close_a_gate(self):
        self.gates += 1
        self.executor.submit(wait_at_the_gate)

    @rule()
    def open_all_gates(self):
        self.open_gates()

    @precondition(lambda self: self.running)
    @rule(
        several=st.lists(values, max_size=5),
        size=st.sampled_from([1, 2, 3, "auto"]),
        choice=choices,
    )
    def map(self, several, size, choice):
        items = [(one, one) for one in several] + [(one.obj, one.now) for one in self.held[:2]]
        for one in self.held[:2] if size == "auto" else ():
            one.lent = True  # to a chunk that may not be packed yet
        expected = [wrap(copy.deepcopy(now)) for _, now in items]
        results = self.executor.map(wrap, [obj for obj, _ in items], chunksize=size)
        self.iterators.append((results, expected))

    @precondition(lambda self: self.iterators)
    @rule(choice=choices, number=st.integers(1, 9))
    def consume(self, choice, number):
        results, expected = self.some(self.iterators, choice)
        self.open_gates()
        for _ in range(number):
            if not expected:
                with pytest.raises(StopIteration):
                    next(results)
                break
            self.held.append(Held(next(results), expected.pop(0)))
            self.held[-1].check()

    @precondition(lambda self: self.iterators)
    @rule(choice=choices, close=st.booleans())
    def drop_an_iterator(self, choice, close):
        results, _ = self.iterators.pop(choice % len(self.iterators))
        if close:
            results.close()

    @precondition(lambda self: self.futures)
    @rule(choice=choices)
    def read(self, choice):
        held = self.settle(*self.some(self.futures, choice))
        if held is not None and held not in self.held:
            self.held.append(held)

    @precondition(lambda self: self.futures)
    @rule(choice=choices)
    def cancel(self, choice):
        future, outcome = self.some(self.futures, choice)
        if future.cancel():
            assert future.cancelled()
            outcome.cancelled = True

    @precondition(lambda self: self.futures)
    @rule(choice=choices)
    def drop_a_future(self, choice):
        del self.futures[choice % len(self.futures)]

    @rule(choice=choices)
    def drop_a_value(self, choice):
        if self.held:
            del self.held[choice % len(self.held)]

    @rule(choice=choices)
    def check(self, choice):
        if self.held:
            self.some(self.held, choice).check()

    @rule(choice=choices)
    def change(self, choice):
        held = self.some(self.held, choice)
        if held is not None and type(held.now) is list and not held.lent:
            held.obj.append(8)
            held.now.append(8)

    @rule(value=values)
    def make_a_proxy(self, value):
        if not self.store.closed and self.running:
            self.held.append(Held(self.store.proxy(value), value))

    @rule(choice=choices, by=st.sampled_from(["clone", "pickle"]), drop=st.booleans())
    def duplicate(self, choice, by, drop):
        held = self.some(self.owned_proxies(), choice)
        if held is None:
            return
        if by == "clone":
            duplicate = proxyexec.clone(held.obj)
        else:
            duplicate = pickle.loads(pickle.dumps(held.obj))
        if not drop:
            self.held.append(Held(duplicate, held.stored))

    @rule(choice=choices, again=st.booleans())
    def disown(self, choice, again):
        held = self.some(self.owned_proxies(), choice)
        if held is None:
            return
        resolve(held.obj)
        proxyexec.disown(held.obj)
        if again:
            # Somebody else's last lease may take it away; a store may close without any.
            with contextlib.suppress(ObjectMissingError, StoreClosedError):
                proxyexec.own(held.obj)
                return
        self.kept.append(reference_of(held.obj))
        self.held.remove(held)

    @rule()
    def collect(self):
        gc.collect()

    @rule()
    def fork_a_child_that_drops_all(self):
        def drop():
            self.drop_all()
            gc.collect()

        in_a_child(drop)

    @rule(choice=choices)
    def fork_a_child_that_looks(self, choice):
        held = self.some(self.owned_proxies(), choice)
        if held is None:
            return

        def look_at_it():
            duplicate = proxyexec.clone(held.obj)
            if self.place == "memory":
                with pytest.raises(proxyexec.errors.ProxyExecError):
                    resolve(duplicate)
            else:
                assert plain(duplicate) == held.stored
                held.check()

        in_a_child(look_at_it)

    @precondition(lambda self: self.running)
    @rule(wait=st.booleans(), cancel=st.booleans(), again=st.booleans())
    def shut_down(self, wait, cancel, again):
        if wait:
            self.open_gates()
        if cancel:
            for _, outcome in self.futures:
                outcome.may_be_cancelled = True
            self.iterators.clear()
        if isinstance(self.executor._base, concurrent.futures.ProcessPoolExecutor):
            self.pool_ends.append(PoolEnd(self.executor))
        self.executor.shutdown(wait=wait, cancel_futures=cancel)
        self.running = False
        with pytest.raises(RuntimeError):
            self.executor.submit(identity, 1)
        if again and not self.options["close_store"]:
            self.open_gates()
            self.start()

    # The end.

    def drop_all(self):
        self.held.clear()
        self.futures.clear()
        self.iterators.clear()

    def check_all(self):
        for future, outcome in self.futures:
            self.settle(future, outcome)
        for held in self.held:
            held.check()
        for results, expected in self.iterators:
            assert [plain(one) for one in results] == expected

    def teardown(self):
        if not hasattr(self, "executor"):
            return
        self.open_gates()
        try:
            self.check_all()
        finally:
            self.drop_all()
            self.executor.shutdown()
            self.finish()

    def finish(self):
        closes, kept = self.options["close_store"], self.kept
        del self.executor
        # A pool that was shut down without waiting is not waited for by the next time either.
        for end in self.pool_ends:
            end.wait()
        for thread in threading.enumerate():
            if thread.name.startswith(("proxyexec-shutdown", "ThreadPoolExecutor-")):
                thread.join(PATIENCE)
        gc.collect()
        if not self.store.closed and kept:
            self.store.evict(*kept)
        if closes:
            wait_for_evictions()
            assert self.store.closed
        else:
            assert self.store.usage() == (0, 0)
            self.store.close()
            wait_for_evictions()
        assert os.listdir(self.folder.name) == []
        self.folder.cleanup()


def in_a_child(action):
    """Do something in a forked child, which must come to its end."""
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(PATIENCE)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0


class ThreadMachine(Machine):
    policies = (ProxyAlways(),)
    places = ("memory", "file")

    def make_base(self):
        return concurrent.futures.ThreadPoolExecutor(1)


class ProcessMachine(Machine):
    policies = (ProxyAlways(), ProxyType(list), ProxySize(1), ProxySize(100))
    places = ("file",)

    def make_base(self):
        return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork"))


LONG = "PROXYEXEC_LONG" in os.environ


def steps(examples):
    return settings(
        max_examples=50 * examples if LONG else examples,
        stateful_step_count=60 if LONG else 20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


TestThreads = ThreadMachine.TestCase
TestThreads.settings = steps(15)
TestProcesses = ProcessMachine.TestCase
TestProcesses.settings = steps(10)
