"""The program of a schedule: takes its steps, and knows what each must come to."""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
from collections import Counter
from concurrent.futures import BrokenExecutor, CancelledError, ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np

from proxyexec import ProxySize, Store, StoreExecutor
from proxyexec.errors import (
    ConnectorError,
    ConnectorFullError,
    ObjectMissingError,
    SerializationError,
)
from tests.chaos import suffering
from tests.chaos.census import descriptors
from tests.chaos.programs import hear, say

# A future that has not been settled by then never will be.
PATIENCE = 40.0

# Numbers in an array: sent inline, stored as a small file or a string, as a segment or a hash.
SIZES = [10, 20_000, 400_000]

# What is done from outside while the program waits: what costs it some of what it had stored,
LOSSES = ("lose an object", "restart the server empty")
# and what costs it room.
FILL, MAKE_ROOM = "fill the place", "make room"
AWAITED = (*LOSSES, FILL, MAKE_ROOM)


# What runs in workers.


def fail(array):
    raise ValueError("failed", int(array[0]))


def unpicklable(array):
    return lambda: array


def couple(one, other):
    return one + other


class Client:
    """Takes the steps of a schedule; in the program.

    Args:
        schedule: has the steps.
        url: of the place.
    """

    def __init__(self, schedule: SimpleNamespace, url: str) -> None:
        self.schedule = schedule
        # Processes that multiprocessing keeps once it has started them.
        multiprocessing.resource_tracker.ensure_running()
        if schedule.start == "forkserver":
            multiprocessing.forkserver.ensure_running()
        self.descriptors = descriptors()
        self.store = Store.from_url(url)
        # Futures, and iterators of map, with what they must come to.
        self.held: list[tuple[Any, Any]] = []
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self.number = 0
        # What the faults so far excuse.
        self.excused: tuple[type[BaseException], ...] = ()
        self.executor = self._new_executor()

    def _new_executor(self) -> StoreExecutor:
        context = multiprocessing.get_context(self.schedule.start)
        return StoreExecutor(
            ProcessPoolExecutor(2, mp_context=context),
            self.store,
            ProxySize(10_000),
            close_store=False,
            lazy=self.schedule.lazy,
            nested=self.schedule.nested,
        )

    def run(self) -> None:
        """Take all steps, and say what came of them."""
        for kind, *how in self.schedule.steps:
            try:
                getattr(self, f"_{kind}")(*how)
            except BrokenExecutor as error:
                self._excuse(error, kind)
                self._look()
                self._replace_executor()
            except (ConnectorError, ObjectMissingError) as error:
                self._excuse(error, kind)
        say(["ending", self.schedule.end])
        if self.schedule.end == "be killed":
            hear()
        self._look()
        if self.schedule.end == "shut down":
            self.executor.shutdown()
            self.held.clear()
            gc.collect()
            with contextlib.suppress(*self.excused):
                if self.store.usage().objects:
                    self.wrong.append(f"{self.store.usage()} when all was let go of")
            with contextlib.suppress(ConnectorError):
                self.store.close()
            if more := descriptors() - self.descriptors:
                self.wrong.append(f"open when all was closed: {dict(more)}")
            self._report()
        else:
            self._report()

    def _report(self) -> None:
        say(["done", dict(self.counts), self.wrong])

    def _array(self, size: int) -> Any:
        self.number += 1
        return np.full(size, self.number, np.int64)

    def _submit(self, size: int, count: int) -> None:
        for _ in range(count):
            array = self._array(size)
            self._hold(self.executor.submit(suffering.grow, array), array + 1)

    def _same(self, size: int, count: int) -> None:
        array = self._array(size)
        for _ in range(count):
            self._hold(self.executor.submit(suffering.grow, array), array + 1)

    def _chain(self, size: int, count: int) -> None:
        array = self._array(size)
        future = self.executor.submit(suffering.grow, array)
        for _ in range(count):
            future = self.executor.submit(suffering.grow, future)
        self._hold(future, array + 1 + count)

    def _couple(self, size: int, count: int) -> None:
        one, other = self._array(size), self._array(size)
        first = self.executor.submit(suffering.grow, one)
        for _ in range(count):
            self._hold(self.executor.submit(couple, first, other), one + 1 + other)

    def _map(self, size: int, count: int, **options: Any) -> None:
        arrays = [self._array(size) for _ in range(count)]
        self._hold(self.executor.map(suffering.grow, arrays, **options), [a + 1 for a in arrays])

    def _chunks(self, size: int, count: int) -> None:
        self._map(size, count, chunksize=3)

    def _auto(self, size: int, count: int) -> None:
        self._map(size, count, chunksize="auto")

    def _buffered(self, size: int, count: int) -> None:
        self._map(size, count, buffersize=2)

    def _raise(self, size: int, count: int) -> None:
        for _ in range(count):
            self._hold(self.executor.submit(fail, self._array(size)), ValueError)

    def _unpicklable(self, size: int, count: int) -> None:
        self._hold(self.executor.submit(suffering.grow, _Unpicklable()), SerializationError)

    def _hold(self, what: Any, expected: Any) -> None:
        self.held.append((what, expected))

    def _drop(self, size: int = 0, count: int = 0) -> None:
        del self.held[::2]

    def _cancel(self, size: int = 0, count: int = 0) -> None:
        futures = [one[0] for one in self.held if isinstance(one[0], concurrent.futures.Future)]
        for future in futures:
            future.cancel()

    def _look(self, size: int = 0, count: int = 0) -> None:
        """See what has become of all that is held."""
        held, self.held = self.held, []
        for what, expected in held:
            self._look_at(what, expected)

    def _look_at(self, what: Any, expected: Any) -> None:
        try:
            if isinstance(what, concurrent.futures.Future):
                got = what.result(PATIENCE)
                same = not isinstance(expected, type) and np.array_equal(got, expected)
            else:
                got = list(what)
                same = len(got) == len(expected) and all(map(np.array_equal, got, expected))
            if not same:
                self.wrong.append(f"{got!r:.100} in place of {expected!r:.100}")
            self.counts["right" if same else "wrong"] += 1
        except CancelledError:
            self.counts["right"] += 1
        except TimeoutError as error:
            if isinstance(error, ConnectorError):
                self._excuse(error, "a result")
            else:
                self.wrong.append(f"not settled: {what!r}")
                faulthandler.dump_traceback()
        except BaseException as error:
            if isinstance(expected, type) and isinstance(error, expected):
                self.counts["right"] += 1
            else:
                self._excuse(error, "a result")

    def _excuse(self, error: BaseException, what: str) -> None:
        if isinstance(error, self.excused):
            self.counts["excused"] += 1
        else:
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")

    def _replace_executor(self) -> None:
        self.executor.shutdown()
        self.executor = self._new_executor()

    def _fault(self, name: str) -> None:
        if name.startswith("kill a worker"):
            stage = getattr(suffering, name.removeprefix("kill a worker ").replace(" ", "_"))
            array = self._array(SIZES[1 + self.number % 2])  # one that is stored
            self.excused = (*self.excused, BrokenExecutor)
            doomed = self.executor.submit(stage, *suffering.arguments_for(stage, array))
            self._submit(SIZES[1], 4)
            error = doomed.exception(PATIENCE)
            if not isinstance(error, self.excused):
                self.wrong.append(f"{name}: {error!r}")
            self._look()
            self._replace_executor()
        elif name == "fork and exit":
            child = os.fork()
            if not child:
                self.held.clear()
                gc.collect()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status:
                self.wrong.append(f"the forked child ended with {status}")
        else:
            # Other faults are to be got over.
            if name in LOSSES:
                self.excused = (*self.excused, ConnectorError, ObjectMissingError)
            elif name == FILL:
                self.excused = (*self.excused, ConnectorFullError)
            elif name == MAKE_ROOM:
                self._look()
            say(["fault", name])
            if name in AWAITED:
                hear()
            if name == MAKE_ROOM:
                self.excused = tuple(one for one in self.excused if one is not ConnectorFullError)


class _Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not for sending")


# Steps that give tasks to the executor.
WORK = ["submit", "same", "chain", "couple", "map", "chunks", "auto", "buffered", "raise"]
WORK += ["unpicklable"]


def take_steps(schedule: dict[str, Any], url: str) -> None:
    """The program of a schedule."""
    faulthandler.enable()
    # Kept until the end: a pool that is dropped just before trips over itself now and then, the bare
    # one as well.
    _clients.append(Client(SimpleNamespace(**schedule), url))
    _clients[0].run()
    if schedule["end"] == "be killed":
        hear()


_clients: list[Client] = []
