"""Executors that have next to nothing, and what has too little."""

from __future__ import annotations

import concurrent.futures
import copyreg
import functools
import multiprocessing.pool
import threading

import pytest


from proxyexec import ProxyAlways, StoreExecutor
from proxyexec import _tested as tested
from proxyexec.testing import ExecutorConformance


class Promise:
    """What is returned by :class:`Bare`: two methods, no base class, and nothing else."""

    __slots__ = ("_there", "_callbacks", "_lock", "_result", "_error")

    def __init__(self):
        self._there, self._lock, self._callbacks = threading.Event(), threading.Lock(), []
        self._result = self._error = None

    def result(self):
        self._there.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def add_done_callback(self, fn):
        with self._lock:
            if not self._there.is_set():
                self._callbacks.append(fn)
                return
        fn(self)

    def _settle(self, result=None, error=None):
        with self._lock:
            self._result, self._error = result, error
            self._there.set()
        for callback in self._callbacks:
            callback(self)


class Bare:
    """Somebody's own executor around a pool of processes: it can submit, and nothing else."""

    def __init__(self, pool):
        self._pool = pool

    def submit(self, function, *args, **kwargs):
        promise = Promise()

        def settle(future):
            if future.cancelled():
                promise._settle(error=concurrent.futures.CancelledError())
            else:
                error = future.exception()
                promise._settle(None if error else future.result(), error)

        self._pool.submit(function, *args, **kwargs).add_done_callback(settle)
        return promise


class TestBare(ExecutorConformance):
    can_cancel = False
    runs_main = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        pools = []

        def make_base():
            pools.append(concurrent.futures.ProcessPoolExecutor(2))
            return Bare(pools[-1])

        yield make_base
        for pool in pools:
            pool.shutdown()


class Lazy(concurrent.futures.Future):
    """A future that says of everything it can do without that it is not implemented."""

    def cancel(self):
        raise NotImplementedError("cancel")

    def running(self):
        raise NotImplementedError("running")


class Inline:
    """An executor that calls at once, and cannot be shut down with more than one argument."""

    def __init__(self):
        self.shut_down = []

    def submit(self, fn, /, *args, **kwargs):
        future = Lazy()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait=True):
        self.shut_down.append(wait)


def test_futures_are_asked_for_nothing_that_they_do_not_have():
    base = Inline()
    executor = StoreExecutor(base, should_proxy=ProxyAlways())
    future = executor.submit(tested.add, [1], [2])
    assert future.cancel() is False
    assert future.running() is False
    assert future.result() == [1, 2]
    assert isinstance(executor.submit(tested.inverse, 0).exception(), ZeroDivisionError)
    executor.shutdown(wait=True, cancel_futures=True)
    assert base.shut_down == [True]


def test_shutdown_is_told_what_it_takes():
    told = []

    class Takes(Inline):
        def shutdown(self, wait=True, *, cancel_futures=False):
            told.append((wait, cancel_futures))

    class TakesNothing(Inline):
        def shutdown(self):
            told.append(())

    class TakesAll(Inline):
        def shutdown(self, **options):
            told.append(tuple(options.items()))

    for kind in (Takes, TakesNothing, TakesAll):
        StoreExecutor(kind()).shutdown(wait=False, cancel_futures=True)
        StoreExecutor(kind()).shutdown()
    assert told == [
        (False, True),
        (True, False),
        (),
        (),
        (("wait", False), ("cancel_futures", True)),
        (("wait", True),),
    ]


def test_a_base_executor_is_shut_down_after_what_it_was_given(tmp_path):
    """Some stop what they are doing when they are told not to wait."""
    told, release = threading.Event(), tmp_path / "release"

    class Base:
        def __init__(self):
            self.pool = concurrent.futures.ThreadPoolExecutor(1)

        def submit(self, fn, /, *args, **kwargs):
            return self.pool.submit(fn, *args, **kwargs)

        def shutdown(self, wait=True):
            self.pool.shutdown(wait)
            told.set()

    executor = StoreExecutor(Base(), should_proxy=ProxyAlways(), lazy=False)
    future = executor.submit(tested.when_there, str(release), None, [3])
    executor.shutdown(wait=False)
    assert not told.is_set()
    release.touch()
    assert future.result(60) == [3]
    assert told.wait(60)


class Half:
    def result(self):
        return None


class OtherHalf:
    def add_done_callback(self, fn):
        pass


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "no method result and no method add_done_callback"),
        (5, "of type int, which is not a future"),
        (Half(), "it has no method add_done_callback"),
        (OtherHalf(), "it has no method result"),
    ],
)
def test_what_is_no_future_is_a_type_error_that_says_what_is_missing(returned, says):
    class Base:
        def submit(self, fn, /, *args, **kwargs):
            return returned

    with StoreExecutor(Base(), should_proxy=ProxyAlways()) as executor:
        with pytest.raises(TypeError, match=says):
            executor.submit(tested.add, [1], [2])
        assert executor.store.usage() == (0, 0)


@pytest.mark.parametrize("base", [object(), 5, None, "executor", Bare, multiprocessing.pool])
def test_what_cannot_submit_is_a_type_error_that_says_so(base):
    with pytest.raises(TypeError, match="it needs a method submit"):
        StoreExecutor(base)


def test_keywords_may_have_the_names_of_submits_own_parameters():
    class Base(Inline):
        def submit(self, function, *args, **kwargs):
            return super().submit(function, *args, **kwargs)

    with StoreExecutor(Base(), should_proxy=ProxyAlways()) as executor:
        future = executor.submit(tested.ordered, 1, function=2, self=3, other=4)
        assert future.result() == (1, [("function", 2), ("other", 4), ("self", 3)])


def test_a_cancelled_base_future():
    class Cancelling(Inline):
        def submit(self, fn, /, *args, **kwargs):
            promise = Promise()
            promise._settle(error=concurrent.futures.CancelledError())
            return promise

    with StoreExecutor(Cancelling(), should_proxy=ProxyAlways()) as executor:
        future = executor.submit(tested.add, [1], [2])
        assert future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()


def test_errors_come_through_where_tblib_is_installed():
    """As by Parsl. It has contexts and causes of errors pickled, with all that they hold."""
    tblib = pytest.importorskip("tblib.pickling_support")
    tblib.install(tested.LockError, tested.TwoPartError)
    try:
        with StoreExecutor(Bare(concurrent.futures.ProcessPoolExecutor(1))) as executor:
            error = executor.submit(lambda: tested.fail(tested.LockError)).exception(60)
            assert isinstance(error, TypeError)
            error = executor.submit(raise_while_handling).exception(60)
            assert (type(error), error.args) == (tested.TwoPartError, (1, 2))
            assert "LockError: has a lock" in str(error.__cause__)
            executor._base.executor._pool.shutdown()
    finally:
        for kind in (tested.LockError, tested.TwoPartError):
            del copyreg.dispatch_table[kind]


raise_while_handling = functools.partial(tested.fail_while_handling, tested.LockError)
