"""A conformance suite for executors, as a class to subclass: theirs, with ours around them.

::

    import pytest
    from proxyexec.testing import ExecutorConformance

    class TestMyExecutor(ExecutorConformance):
        workers = 2

        @pytest.fixture(scope="class")
        @classmethod
        def make_base(cls):
            return lambda: MyExecutor(workers=2)

It needs pytest, and workers that can import proxyexec and see the files of this machine. For
readable failures, call ``pytest.register_assert_rewrite("proxyexec.testing")`` in
``conftest.py``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from proxyexec import _tested as tested
from proxyexec._executor import StoreExecutor
from proxyexec._proxy import is_proxy
from proxyexec._store import Store
from proxyexec.errors import MissingExtraError, SerializationError
from proxyexec.policy import ProxySize

try:
    import pytest
except ModuleNotFoundError as missing:
    raise MissingExtraError("proxyexec.testing", "testing") from missing

__all__ = ["ExecutorConformance"]

_Chunksize: TypeAlias = Literal["auto"] | int

# Objects of so many bytes go through the store.
_STORED_FROM = 10_000

# For what happens soon, unless it never does, in seconds.
_SOON = 60

# For the workers of a cluster to start.
_STARTED = 180

_BIG = bytes(range(256)) * 100

_VALUES = {
    "none": None,
    "integer": 5,
    "long integer": 1 << 200,
    "text": "text",
    "bytes": b"bytes",
    "containers": [1, (2, {"three": {4}})],
    "big bytes": _BIG,
    "big list": list(range(20_000)),
    "big text": "\N{SNOWMAN}" * 20_000,
    "big in a container": {"big": _BIG, "small": 1},
    "class": dict,
    "function": len,
}


class _Busy(NamedTuple):
    """An executor whose workers all wait for something."""

    running: Sequence[Future[Any]]
    release: Callable[[], object]


class _Shared:
    """Two executors around one, lazy and not.

    Args:
        make_base: makes that.
        place: where they keep objects.
    """

    def __init__(self, make_base: Callable[[], Any], place: Path) -> None:
        self._make_base = make_base
        self._place = place
        self._executors: dict[bool, StoreExecutor] = {}

    def started(self) -> dict[bool, StoreExecutor]:
        """Return them, by whether they are lazy."""
        if not self._executors:
            base = self._make_base()
            self._executors = {
                lazy: _around(base, self._place, lazy=lazy) for lazy in (True, False)
            }
            for executor in self._executors.values():
                assert executor.submit(tested.add, 1, 2).result(_STARTED) == 3
        return self._executors

    def shut_down(self) -> None:
        """Shut them down; nothing is left of what they stored."""
        while self._executors:
            self._executors.popitem()[1].shutdown()
        _soon(lambda: _is_empty(self._place))


class ExecutorConformance:
    """What a :class:`~proxyexec.StoreExecutor` promises, around an executor of any kind.

    A subclass (or its module) has a fixture ``make_base``, whose scope is the class or wider: a
    function without arguments that returns a new base executor.

    Where an executor cannot do what those of :mod:`concurrent.futures` can, class attributes say
    so.
    """

    workers: ClassVar[int] = 2
    """How many tasks an executor of ``make_base`` runs at the same time."""

    can_cancel: ClassVar[bool] = True
    """Whether a task that waits behind many others can be cancelled."""

    cancels_running: ClassVar[bool] = False
    """Whether a task that is being run can be cancelled, too; that is, left to itself."""

    runs_main: ClassVar[bool] = True
    """Whether workers get a function that ``__main__`` has only had since they were started. Those
    of the standard library's pools look for it in a ``__main__`` of their own."""

    breaks: ClassVar[bool] = False
    """Whether the executor is broken by a task that raises what cannot be pickled, or not be
    unpickled, as the standard library's pool of processes is."""

    carries_errors: ClassVar[bool] = True
    """Whether errors come through whatever they carry. Dask shortens those that are long."""

    is_single: ClassVar[bool] = False
    """Whether ``make_base`` returns the same executor again until that is shut down."""

    pickles: ClassVar[bool] = True
    """Whether what is sent is pickled. Threads pass on what cannot be."""

    # --- fixtures ----------------------------------------------------------------------

    @pytest.fixture(params=[True, False], ids=["lazy", "eager"])
    def lazy(self, request: pytest.FixtureRequest) -> bool:
        """Whether functions and callers get proxies."""
        return bool(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def shared(
        cls, make_base: Callable[[], Any], tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[_Shared]:
        """Executors around one base executor, for the tests that shut none down."""
        shared = _Shared(make_base, tmp_path_factory.mktemp("conformance"))
        yield shared
        shared.shut_down()

    @pytest.fixture
    def executor(self, shared: _Shared, lazy: bool) -> Iterator[StoreExecutor]:
        """One of the shared executors; it stores nothing any more after the test."""
        executor = shared.started()[lazy]
        yield executor
        _soon(lambda: _stores_nothing(executor))

    @pytest.fixture
    def wrap(
        self, shared: _Shared, make_base: Callable[[], Any], tmp_path: Path, lazy: bool
    ) -> Iterator[Callable[..., StoreExecutor]]:
        """A function that takes options, and returns an executor around a new one.

        After the test, they are shut down, and nothing is left of what they stored.
        """
        if self.is_single:
            shared.shut_down()
        place = tmp_path / "objects"
        executors: list[StoreExecutor] = []

        def wrap(**options: Any) -> StoreExecutor:
            executors.append(_around(make_base(), place, **{"lazy": lazy, **options}))
            return executors[-1]

        yield wrap
        while executors:
            executors.pop().shutdown()
        _soon(lambda: _is_empty(place))

    # --- values ------------------------------------------------------------------------

    @pytest.mark.parametrize("name", _VALUES)
    def test_values_come_back(self, executor: StoreExecutor, name: str) -> None:
        value = _VALUES[name]
        result = executor.submit(tested.identity, value).result(_SOON)
        assert result == value
        assert isinstance(result, type(value))

    def test_functions_get_proxies_if_lazy(self, executor: StoreExecutor, lazy: bool) -> None:
        assert executor.submit(tested.kind, _BIG).result(_SOON)[1] is lazy
        assert executor.submit(tested.kind, b"small").result(_SOON) == ("bytes", False)
        assert executor.submit(tested.length, _BIG).result(_SOON) == len(_BIG)

    def test_callers_get_proxies_if_lazy(self, executor: StoreExecutor, lazy: bool) -> None:
        future = executor.submit(tested.made, 30_000)
        assert is_proxy(future.result(_SOON)) is lazy
        assert future.result() is future.result()
        assert future.result() == tested.made(30_000)
        assert not is_proxy(executor.submit(tested.made, 10).result(_SOON))

    def test_results_are_arguments(self, executor: StoreExecutor) -> None:
        result = executor.submit(tested.made, 30_000).result(_SOON)
        assert executor.submit(tested.length, result).result(_SOON) == 30_000
        both = executor.submit(tested.add, result, result).result(_SOON)
        assert both == tested.made(30_000) * 2
        assert result == tested.made(30_000)

    def test_parts_are_proxies_if_nested(
        self, wrap: Callable[..., StoreExecutor], lazy: bool
    ) -> None:
        with wrap(nested=True) as executor:
            argument = {"data": _BIG, "size": len(_BIG)}
            kinds = executor.submit(tested.kinds_in, argument).result(_SOON)
            assert kinds == {"data": lazy, "size": False}
            result = executor.submit(tested.made_pair, 30_000).result(_SOON)
            assert is_proxy(result["data"]) is lazy
            assert result == {"data": bytes(30_000), "size": 30_000}
            del result

    def test_positions_and_keywords(self, executor: StoreExecutor) -> None:
        call = executor.submit(tested.ordered, 1, _BIG, 3, self=4, fn=_BIG)
        assert call.result(_SOON) == (1, _BIG, 3, [("fn", _BIG), ("self", 4)])
        assert executor.submit(tested.ordered).result(_SOON) == ([],)

    def test_an_object_passed_twice_is_one_object(self, executor: StoreExecutor) -> None:
        items = list(range(5_000))
        assert executor.submit(tested.appends, items, items).result(_SOON) is True
        assert len(items) == 5_000

    def test_tasks_do_not_see_what_others_did(self, executor: StoreExecutor) -> None:
        items = list(range(5_000))
        for _ in range(3):
            assert executor.submit(tested.popped, items).result(_SOON) == items[:-1]
        assert len(items) == 5_000

    def test_without_a_policy(self, wrap: Callable[..., StoreExecutor], lazy: bool) -> None:
        with wrap(should_proxy=None) as executor:
            assert executor.submit(tested.add, _BIG, other=_BIG).result(_SOON) == _BIG * 2
            assert list(executor.map(lambda n: n * lazy, range(4))) == [n * lazy for n in range(4)]
            if self.pickles:  # or futures pass untouched, too
                chained = executor.submit(tested.length, executor.submit(tested.made, 30_000))
                assert chained.result(_SOON) == 30_000
            with pytest.raises(tested.TwoPartError) as caught:
                executor.submit(tested.fail, tested.TwoPartError, 1, 2).result(_SOON)
            assert (type(caught.value), caught.value.args) == (tested.TwoPartError, (1, 2))
            assert executor.store.usage() == (0, 0)

    # --- callables ---------------------------------------------------------------------

    def test_lambdas_and_closures(self, executor: StoreExecutor) -> None:
        number, big = 10, _BIG
        assert executor.submit(lambda x: x + number, 5).result(_SOON) == 15
        assert executor.submit(lambda: len(big)).result(_SOON) == len(_BIG)
        function = executor.submit(tested.identity, lambda x: x + number).result(_SOON)
        assert function(1) == 11

    def test_partials_and_methods(self, executor: StoreExecutor) -> None:
        partial = functools.partial(tested.add, _BIG, other=_BIG)
        assert executor.submit(partial).result(_SOON) == _BIG * 2
        items = tested.Accumulator(list(range(5_000)))
        assert executor.submit(items.total, start=1).result(_SOON) == items.total(1)
        assert executor.submit(items, 1).result(_SOON) == items.total(1)
        assert executor.submit("a-b".split, "-").result(_SOON) == ["a", "b"]
        assert executor.submit(max, 1, 2).result(_SOON) == 2

    def test_functions_of_main(
        self, executor: StoreExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not self.runs_main:
            pytest.skip("workers look for it in a __main__ of their own")
        main = sys.modules["__main__"]
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec("def of_main(one, other=1):\n    return one + other\n", scope)  # noqa: S102
        monkeypatch.setattr(main, "of_main", scope["of_main"], raising=False)
        assert scope["of_main"].__module__ == "__main__"
        assert executor.submit(scope["of_main"], 1).result(_SOON) == 2
        assert executor.submit(scope["of_main"], _BIG, other=_BIG).result(_SOON) == _BIG * 2
        assert list(executor.map(scope["of_main"], range(5), chunksize=2)) == [1, 2, 3, 4, 5]

    # --- errors ------------------------------------------------------------------------

    def test_errors(self, executor: StoreExecutor) -> None:
        future = executor.submit(tested.fail, tested.TwoPartError, "one", 2)
        error = future.exception(_SOON)
        assert type(error) is tested.TwoPartError
        assert error.args == ("one", 2)
        assert (error.first, error.second) == ("one", 2)
        assert future.exception() is error
        with pytest.raises(tested.TwoPartError):
            future.result()
        assert future.done()
        assert not future.cancelled()

    def test_errors_say_where_they_were_raised(self, executor: StoreExecutor) -> None:
        error = executor.submit(tested.fail, KeyError, "key").exception(_SOON)
        assert type(error) is KeyError
        assert "_tested.py" in "".join(traceback.format_exception(error))
        assert "in fail\n" in "".join(traceback.format_exception(error))

    def test_errors_that_carry_an_argument(self, executor: StoreExecutor) -> None:
        error = executor.submit(tested.fail, tested.TwoPartError, _BIG, [_BIG]).exception(_SOON)
        assert type(error) is tested.TwoPartError
        assert not self.carries_errors or error.args == (_BIG, [_BIG])

    @pytest.mark.parametrize("way", ["pickled", "unpickled"])
    def test_errors_that_cannot_be(self, wrap: Callable[..., StoreExecutor], way: str) -> None:
        call: dict[str, tuple[Any, ...]] = {
            "pickled": (tested.LockError,),
            "unpickled": (tested.OneWayError, "one", "two"),
        }
        with wrap() as executor:
            error = executor.submit(tested.fail, *call[way]).exception(_SOON)
            assert isinstance(error, Exception)
            if not self.breaks:
                assert executor.submit(tested.add, 1, 2).result(_SOON) == 3
            del error

    def test_arguments_that_cannot_be_pickled(self, executor: StoreExecutor) -> None:
        if not self.pickles:
            pytest.skip("nothing needs to be pickled")
        future = executor.submit(tested.ordered, _BIG, threading.Lock())
        assert isinstance(future.exception(_SOON), SerializationError)
        assert executor.submit(tested.add, 1, 2).result(_SOON) == 3

    def test_results_that_cannot_be_pickled(self, executor: StoreExecutor) -> None:
        if not self.pickles:
            pytest.skip("nothing needs to be pickled")
        error = executor.submit(tested.lock).exception(_SOON)
        assert isinstance(error, SerializationError)
        assert "lock" in str(error)
        assert executor.submit(tested.add, 1, 2).result(_SOON) == 3

    @pytest.mark.parametrize("way", ["argument", "result"])
    def test_what_cannot_be_unpickled(self, executor: StoreExecutor, way: str) -> None:
        if not self.pickles:
            pytest.skip("nothing needs to be unpickled")
        call: dict[str, tuple[Any, ...]] = {
            "argument": (tested.ordered, tested.RefusesOnArrival()),
            "result": (tested.refusing,),
        }
        function, *arguments = call[way]
        error = executor.submit(function, *arguments).exception(_SOON)
        assert isinstance(error, Exception)
        assert "not to be made here" in "".join(traceback.format_exception(error))
        assert executor.submit(tested.add, 1, 2).result(_SOON) == 3

    # --- futures -----------------------------------------------------------------------

    def test_futures_are_the_standard_librarys(self, executor: StoreExecutor) -> None:
        futures = [executor.submit(tested.made, 20_000 + n) for n in range(6)]
        assert all(isinstance(future, Future) for future in futures)
        done, pending = concurrent.futures.wait(futures, timeout=_SOON)
        assert (len(done), pending) == (6, set())
        lengths = {len(one.result()) for one in concurrent.futures.as_completed(futures, _SOON)}
        assert lengths == set(range(20_000, 20_006))
        assert all(one.done() and not one.running() and not one.cancelled() for one in futures)

    def test_first_completed_and_first_exception(
        self, executor: StoreExecutor, tmp_path: Path
    ) -> None:
        with self._busy(executor, tmp_path, self.workers - 1) as busy:
            failing = executor.submit(tested.inverse, 0)
            for until in (concurrent.futures.FIRST_EXCEPTION, concurrent.futures.FIRST_COMPLETED):
                done, _ = concurrent.futures.wait([*busy.running, failing], _SOON, until)
                assert done == {failing}

    def test_waiting_takes_no_longer_than_it_may(
        self, executor: StoreExecutor, tmp_path: Path
    ) -> None:
        with self._busy(executor, tmp_path) as busy:
            assert not busy.running[0].done()
            with pytest.raises(concurrent.futures.TimeoutError):
                busy.running[0].result(0.01)
            with pytest.raises(concurrent.futures.TimeoutError):
                busy.running[0].exception(0.01)
        assert [one.result(_SOON) for one in busy.running] == [_BIG] * self.workers

    @pytest.mark.parametrize("fails", [False, True])
    def test_callbacks(self, executor: StoreExecutor, fails: bool) -> None:
        called: list[Future[Any]] = []
        there, late = threading.Event(), threading.Event()

        def callback(future: Future[Any]) -> None:
            called.append(future)
            there.set()

        future = executor.submit(tested.inverse, 0) if fails else executor.submit(tested.add, 1, 2)
        future.add_done_callback(callback)
        assert there.wait(_SOON)
        assert called == [future]
        assert isinstance(future.exception(), ZeroDivisionError) is fails
        future.add_done_callback(lambda _: late.set())
        assert late.is_set()

    def test_dropped_futures(self, executor: StoreExecutor) -> None:
        for size in (10, 30_000):
            executor.submit(tested.made, size)
            executor.submit(tested.add, _BIG, _BIG)
        executor.submit(tested.inverse, 0)
        assert executor.submit(tested.add, 1, 2).result(_SOON) == 3

    def test_futures_are_arguments(self, executor: StoreExecutor) -> None:
        first = executor.submit(tested.made, 30_000)
        small = executor.submit(tested.made, 3)
        both = executor.submit(tested.add, first, other=small)
        assert executor.submit(tested.length, both).result(_SOON) == 30_003
        assert executor.submit(tested.ordered, small, 5, small).result(_SOON)[1] == 5

    def test_a_call_fails_with_what_it_waits_for(self, executor: StoreExecutor) -> None:
        failed = executor.submit(tested.inverse, 0)
        later = executor.submit(tested.add, executor.submit(tested.add, failed, 1), _BIG)
        assert isinstance(later.exception(_SOON), ZeroDivisionError)

    def test_many_threads_submit(self, executor: StoreExecutor) -> None:
        def work(number: int) -> list[int]:
            futures = [executor.submit(tested.length, bytes(number * 1_000 + n)) for n in range(10)]
            return [future.result(_SOON) for future in futures]

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            lengths = list(threads.map(work, range(4, 24)))
        assert lengths == [[number * 1_000 + n for n in range(10)] for number in range(4, 24)]

    # --- cancelling --------------------------------------------------------------------

    def test_cancel(self, executor: StoreExecutor, tmp_path: Path) -> None:
        with self._busy(executor, tmp_path) as busy:
            pending = [executor.submit(tested.add, n, n) for n in range(self._many)]
            last = executor.submit(tested.length, _BIG)
            assert last.cancel() is self.can_cancel
            assert last.cancelled() is self.can_cancel
            assert last.cancel() is self.can_cancel
            busy.release()
            assert [future.result(_SOON) for future in pending] == [
                2 * n for n in range(self._many)
            ]
            if self.can_cancel:
                with pytest.raises(CancelledError):
                    last.result(_SOON)
                assert concurrent.futures.wait([last], _SOON).done == {last}
            else:
                assert last.result(_SOON) == len(_BIG)
            assert pending[0].cancel() is False

    def test_what_runs(self, executor: StoreExecutor, tmp_path: Path) -> None:
        with self._busy(executor, tmp_path, 1) as busy:
            [running] = busy.running
            assert running.running() in (True, False)
            assert running.cancel() is self.cancels_running
            assert running.cancelled() is self.cancels_running
            busy.release()
            if not self.cancels_running:
                assert running.result(_SOON) == _BIG

    def test_a_cancelled_argument(self, executor: StoreExecutor, tmp_path: Path) -> None:
        with self._busy(executor, tmp_path):
            first = executor.submit(tested.made, 30_000)
            waiting = executor.submit(tested.length, first)
            assert waiting.cancel()
            assert waiting.cancelled()
        assert first.result(_SOON) == tested.made(30_000)

    # --- map ---------------------------------------------------------------------------

    @pytest.mark.parametrize("chunksize", [1, 3, 100, "auto"])
    def test_map(self, executor: StoreExecutor, chunksize: _Chunksize) -> None:
        numbers = executor.map(tested.add, range(10), iter(range(20)), chunksize=chunksize)
        assert list(numbers) == [2 * n for n in range(10)]
        sizes = range(9_000, 31_000, 2_000)
        made = executor.map(tested.made, sizes, chunksize=chunksize)
        assert list(made) == [tested.made(size) for size in sizes]
        lengths = executor.map(tested.length, [_BIG, b"", _BIG], chunksize=chunksize)
        assert list(lengths) == [len(_BIG), 0, len(_BIG)]
        assert list(executor.map(tested.length, [], chunksize=chunksize)) == []

    def test_map_keeps_the_order(self, executor: StoreExecutor, tmp_path: Path) -> None:
        if self.workers < 2:
            pytest.skip("tasks run in order")
        numbers = executor.map(tested.in_turn, range(2), [str(tmp_path)] * 2)
        assert list(numbers) == [0, 1]

    @pytest.mark.parametrize("chunksize", [1, "auto"])
    def test_map_draws_as_results_are_read(
        self, executor: StoreExecutor, chunksize: _Chunksize
    ) -> None:
        drawn: list[int] = []

        def items() -> Iterator[int]:
            for number in range(20):
                drawn.append(number)
                yield number

        results = executor.map(tested.made, items(), chunksize=chunksize, buffersize=3)
        assert drawn == [0, 1, 2]
        assert list(results) == [tested.made(n) for n in range(20)]

    @pytest.mark.parametrize("chunksize", [1, 2, "auto"])
    def test_map_raises_in_its_turn(self, executor: StoreExecutor, chunksize: _Chunksize) -> None:
        results = executor.map(tested.inverse, [1, 2, 0, 4], chunksize=chunksize)
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)

    def test_map_takes_no_longer_than_it_may(self, executor: StoreExecutor, tmp_path: Path) -> None:
        release = tmp_path / "release"
        try:
            results = executor.map(tested.when_there, [str(release)] * 3, timeout=0.01)
            with pytest.raises(concurrent.futures.TimeoutError):
                next(results)
        finally:
            release.touch()

    @pytest.mark.parametrize("chunksize", [1, 5, "auto"])
    def test_a_map_that_is_left(self, executor: StoreExecutor, chunksize: _Chunksize) -> None:
        results: Any = executor.map(tested.made, range(20_000, 20_040), chunksize=chunksize)
        assert next(results) == tested.made(20_000)
        results.close()
        assert list(results) == []

    # --- ownership ---------------------------------------------------------------------

    def test_results_that_nobody_owns(self, wrap: Callable[..., StoreExecutor], lazy: bool) -> None:
        with wrap(ownership=False) as executor:
            result = executor.submit(tested.add, _BIG, _BIG).result(_SOON)
            assert result == _BIG * 2
            store = executor.store
            _soon(lambda: store.usage().objects == 1)  # the arguments are gone
            if lazy:
                store.evict(result)
                assert store.usage() == (0, 0)
            del result
        assert not store.closed
        store.close()

    # --- shutting down -----------------------------------------------------------------

    def test_results_are_there_after_the_block(self, wrap: Callable[..., StoreExecutor]) -> None:
        with wrap() as executor:
            futures = [executor.submit(tested.made, 30_000 + n) for n in range(4)]
            futures.append(executor.submit(tested.add, futures[0], b"more"))
        assert all(future.done() for future in futures)
        assert [len(one.result()) for one in futures] == [30_000, 30_001, 30_002, 30_003, 30_004]
        with pytest.raises(RuntimeError):
            executor.submit(tested.add, 1, 2)
        with pytest.raises(RuntimeError):
            executor.map(tested.length, [_BIG])
        executor.shutdown()

    def test_shutdown_without_waiting(
        self, wrap: Callable[..., StoreExecutor], tmp_path: Path
    ) -> None:
        executor = wrap()
        with self._busy(executor, tmp_path) as busy:
            pending = [executor.submit(tested.made, 20_000 + n) for n in range(self._many)]
            waiting = executor.submit(tested.add, pending[0], busy.running[0])
            executor.shutdown(wait=False)
            assert not any(future.done() for future in (*busy.running, *pending, waiting))
            with pytest.raises(RuntimeError):
                executor.submit(tested.add, 1, 2)
            busy.release()
            assert waiting.result(_SOON) == tested.made(20_000) + _BIG
            assert [one.result(_SOON) for one in busy.running] == [_BIG] * self.workers
            sizes = [len(one.result(_SOON)) for one in pending]
            assert sizes == list(range(20_000, 20_000 + self._many))

    @pytest.mark.parametrize("wait", [False, True])
    def test_shutdown_that_cancels(
        self, wrap: Callable[..., StoreExecutor], tmp_path: Path, wait: bool
    ) -> None:
        executor = wrap()
        with self._busy(executor, tmp_path) as busy:
            pending = [executor.submit(tested.length, _BIG) for _ in range(self._many)]
            waiting = executor.submit(tested.ordered, pending[-1])
            shutting = threading.Thread(
                target=executor.shutdown, args=(wait,), kwargs={"cancel_futures": True}
            )
            shutting.start()
            if self.can_cancel:
                _soon(pending[-1].cancelled)
            assert concurrent.futures.wait([waiting], _SOON).done == {waiting}
            assert waiting.cancelled()
            busy.release()
            shutting.join(_SOON)
            assert not shutting.is_alive()
            if not self.cancels_running:
                assert [one.result(_SOON) for one in busy.running] == [_BIG] * self.workers
            _soon(lambda: all(one.done() for one in pending))  # some pools tell no waiter
            assert pending[-1].cancelled() is self.can_cancel
            for one in pending:
                assert one.cancelled() or one.result() == len(_BIG)

    # --- helpers -----------------------------------------------------------------------

    @property
    def _many(self) -> int:
        """More tasks than any engine sends to its workers ahead of time."""
        return 6 * self.workers + 6

    @contextlib.contextmanager
    def _busy(
        self, executor: StoreExecutor, directory: Path, tasks: int | None = None
    ) -> Iterator[_Busy]:
        """Have so many workers of an executor wait until they are released, all by default."""
        release = directory / "release"
        started = [
            directory / f"started-{n}" for n in range(self.workers if tasks is None else tasks)
        ]
        running = [
            executor.submit(tested.when_there, str(release), str(one), _BIG) for one in started
        ]
        try:
            _soon(lambda: all(one.exists() for one in started))
            yield _Busy(running, release.touch)
        finally:
            release.touch()
            concurrent.futures.wait(running, _SOON)


def _around(base: Any, place: Path, **options: Any) -> StoreExecutor:
    store = Store.from_url(place.as_uri())
    return StoreExecutor(base, store, **{"should_proxy": ProxySize(_STORED_FROM), **options})


def _stores_nothing(executor: StoreExecutor) -> bool:
    """Tell that nothing is held that no test holds any more."""
    # Some engines keep what came last until something else comes.
    return executor.submit(tested.add, 1, 2).result(_SOON) == 3 and executor.store.usage() == (0, 0)


def _is_empty(place: Path) -> bool:
    """Tell that no store has left anything in a place, which may be gone as well."""
    try:
        return not any(place.iterdir())
    except FileNotFoundError:
        return True


def _soon(condition: Callable[[], object]) -> None:
    """Wait until something is so that is to be so before long."""
    deadline = time.monotonic() + _SOON
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        gc.collect()  # errors refer to themselves, by way of tracebacks and frames
        time.sleep(0.005)
