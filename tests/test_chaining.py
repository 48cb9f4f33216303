"""Results as arguments before they are there: no worker waits, and no data come back."""

from __future__ import annotations

import concurrent.futures
import operator
import subprocess
import sys
import textwrap
import threading

import pytest

import proxyexec
from proxyexec import (
    ProcessPoolExecutor,
    ProxyAlways,
    ProxyType,
    Store,
    StoreExecutor,
    ThreadPoolExecutor,
    is_resolved,
    reference_of,
)
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.conftest import settle


@pytest.fixture(params=["thread", "fork"])
def kind(request):
    return request.param


def make_base(kind, workers=2):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(workers)
    return concurrent.futures.ProcessPoolExecutor(workers)


@pytest.fixture(params=["lazy", "eager"])
def executor(kind, request):
    store = Store("chaining", FileConnector())
    lazy = request.param == "lazy"
    policy = ProxyType(list)
    with StoreExecutor(make_base(kind), store, policy, lazy=lazy, close_store=False) as executor:
        yield executor
        settle(executor)
        assert store.usage() == (0, 0)
    store.close()


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def threads(gate):
    """Two threads, with a store that counts what is fetched."""
    base = concurrent.futures.ThreadPoolExecutor(2)
    with StoreExecutor(base, MemoryConnector(), ProxyType(list), lazy=False) as executor:
        yield executor
        gate.set()


def test_results_of_pending_tasks_are_arguments(executor):
    first = executor.submit(functions.make_list, 3)
    second = executor.submit(functions.append, first, 3)
    third = executor.submit(functions.add_up, second, third=second, second=[4])
    assert third.result() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert first.result() == [0, 1, 2]


def test_results_that_are_there_are_arguments(executor):
    first = executor.submit(functions.make_list, 3)
    concurrent.futures.wait([first])
    assert executor.submit(functions.total, first).result() == 3
    assert first.result() == [0, 1, 2]
    assert executor.submit(functions.total, first).result() == 3


def test_small_results_are_arguments(executor):
    number = executor.submit(functions.add, 1, 2)
    assert executor.submit(functions.add, number, number).result() == 6


def test_one_future_twice_is_one_object(executor):
    items = executor.submit(functions.make_list, 3)
    changed, same = executor.submit(functions.append_and_compare, items, items).result()
    assert (changed, same) == ([0, 1, 2, 5], True)


@pytest.mark.parametrize("chunksize", [1, 2, 10])
def test_futures_are_items_of_a_map(executor, chunksize):
    lists = [executor.submit(functions.make_list, n) for n in range(5)]
    totals = executor.map(functions.total, lists, chunksize=chunksize)
    assert list(totals) == [0, 0, 1, 3, 6]


def test_futures_of_another_executor(executor):
    with StoreExecutor(make_base("thread"), should_proxy=ProxyAlways()) as other:
        number = other.submit(functions.add, 1, 2)
        assert executor.submit(functions.add, number, 1).result() == 4
        numbers = executor.submit(functions.make_list, 4)
        assert other.submit(functions.total, numbers).result() == 6


def test_a_failure_fails_what_depends_on_it(executor):
    failed = executor.submit(functions.boom)
    after = executor.submit(functions.add, failed, 1)
    later = executor.submit(functions.append, [1], after)
    with pytest.raises(ValueError, match="boom"):
        later.result()
    assert after.exception() is failed.exception()
    assert executor.submit(functions.total, failed).exception() is failed.exception()


def test_cancelling_cancels_what_depends_on_it(threads, gate):
    blockers = [threads.submit(gate.wait, 60) for _ in range(2)]
    first = threads.submit(functions.make_list, 3)
    second = threads.submit(functions.append, first, 3)
    third = threads.submit(functions.append, second, 4)
    assert first.cancel()
    assert second.cancelled() and third.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        third.result()
    assert concurrent.futures.wait([second, third]).not_done == set()
    fourth = threads.submit(functions.append, first, 3)
    assert fourth.cancelled()
    assert not any(blocker.done() for blocker in blockers)


def test_a_call_that_waits_can_be_cancelled(threads, gate):
    first = threads.submit(lambda: gate.wait(60) and [1])
    second = threads.submit(functions.append, first, 2)
    third = threads.submit(functions.append, second, 3)
    assert not second.running() and not second.done()
    assert second.cancel() and second.cancel()
    assert third.cancelled()
    gate.set()
    assert first.result() == [1]
    settle(threads)
    del first, second, third
    assert threads.store.usage() == (0, 0)


def test_a_future_that_was_waiting_is_that_of_its_task(threads, gate):
    first = threads.submit(functions.make_list, 1)
    assert first.result() == [0]
    started = threading.Event()
    second = threads.submit(lambda items: started.set() or gate.wait(60) and items, first)
    assert started.wait(60)
    assert second.running() and not second.cancel()
    gate.set()
    assert second.result() == [0]
    assert not second.running()


def test_no_worker_waits(gate):
    with StoreExecutor(make_base("thread", 1), should_proxy=ProxyAlways()) as executor:
        with StoreExecutor(make_base("thread", 1), should_proxy=ProxyAlways()) as other:
            slow = other.submit(lambda: gate.wait(60) and [1])
            waiting = [executor.submit(functions.append, slow, n) for n in range(3)]
            # The only worker is free.
            assert executor.submit(functions.add, 1, 2).result(60) == 3
            assert not any(future.done() for future in waiting)
            gate.set()
            assert [future.result() for future in waiting] == [[1, n] for n in range(3)]


def test_data_do_not_come_back_through_the_client(kind):
    fetched = []

    class Watched(FileConnector):
        def get(self, key):
            fetched.append((threading.current_thread().name, key))
            return super().get(key)

    client = threading.main_thread().name
    store = Store("watched", Watched())
    with StoreExecutor(make_base(kind), store, ProxyType(list), lazy=False) as executor:
        future = executor.submit(functions.make_list, 3)
        for n in range(4):
            future = executor.submit(functions.append, future, n)
        concurrent.futures.wait([future])
        settle(executor)
        if kind == "fork":  # what workers fetch is counted in the workers
            assert fetched == []
        assert store.usage().objects == 1
        assert future.result() == [0, 1, 2, 0, 1, 2, 3]
        assert [name for name, _ in fetched].count(client) == 1


def test_a_result_that_was_fetched_is_passed_on_as_it_is(kind):
    with StoreExecutor(make_base(kind), should_proxy=ProxyType(list), lazy=False) as executor:
        future = executor.submit(functions.make_list, 2)
        future.result().append("changed")
        assert executor.submit(functions.identity, future).result() == [0, 1, "changed"]


def test_a_lazy_result_is_not_resolved_by_passing_it_on(kind):
    with StoreExecutor(make_base(kind), should_proxy=ProxyType(list)) as executor:
        first = executor.submit(functions.make_list, 3)
        second = executor.submit(functions.identity, first)
        assert reference_of(second.result()) == reference_of(first.result())
        assert not is_resolved(first.result())


def test_long_chains_fail_from_end_to_end(threads, gate):
    """Longer than Python's stack is deep."""
    future = threads.submit(lambda: gate.wait(60) and 1 // 0)
    for _ in range(3_000):
        future = threads.submit(functions.add, future, 1)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        future.result(60)


def test_long_chains_succeed(threads, gate):
    future = threads.submit(lambda: gate.wait(60) and 0)
    for _ in range(1_500):
        future = threads.submit(functions.add, future, 1)
    gate.set()
    assert future.result(60) == 1_500


def test_shutdown_runs_what_waits(kind):
    executor = StoreExecutor(make_base(kind), should_proxy=ProxyType(list))
    future = executor.submit(functions.make_list, 1)
    for n in range(3):
        future = executor.submit(functions.append, future, n)
    executor.shutdown()
    assert future.done()
    assert future.result() == [0, 0, 1, 2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(functions.append, future, 1)


def test_shutdown_without_waiting_runs_what_waits(gate):
    executor = StoreExecutor(make_base("thread"), should_proxy=ProxyType(list))
    first = executor.submit(lambda: gate.wait(60) and [1])
    second = executor.submit(functions.append, first, 2)
    executor.shutdown(wait=False)
    assert not second.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(functions.add, 1, 2)
    gate.set()
    assert second.result(60) == [1, 2]


def test_shutdown_can_cancel_what_waits(gate):
    executor = StoreExecutor(make_base("thread", 1), should_proxy=ProxyType(list))
    first = executor.submit(lambda: gate.wait(60) and [1])
    second = executor.submit(functions.append, first, 2)
    third = executor.submit(functions.append, second, 2)
    executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled() and third.cancelled()
    gate.set()
    assert first.result(60) in ([1],)


@pytest.mark.parametrize("end", ["", "executor.shutdown(wait=False)", "del executor"])
@pytest.mark.parametrize("pool", ["ProcessPoolExecutor", "ThreadPoolExecutor"])
def test_programs_end_after_what_waits(tmp_path, end, pool):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import concurrent.futures, time
            from proxyexec import ProxyAlways, StoreExecutor

            def slowly(n):
                time.sleep(0.2)
                return [n]

            def report(items):
                with open({str(tmp_path / "done")!r}, "a") as file:
                    print(*items, file=file)
                return items

            if __name__ == "__main__":
                base = concurrent.futures.{pool}(1)
                executor = StoreExecutor(base, should_proxy=ProxyAlways())
                future = executor.submit(slowly, 1)
                for _ in range(3):
                    future = executor.submit(report, future)
                del base
                {end}
            """
        )
    )
    subprocess.run([sys.executable, program], check=True, timeout=60)
    assert (tmp_path / "done").read_text() == "1\n" * 3


def test_a_call_that_waits_holds_its_other_arguments(threads, gate):
    proxy = threads.store.proxy(["kept"])
    first = threads.submit(lambda: gate.wait(60) and [1])
    second = threads.submit(lambda a, b: [*a, *b], first, proxy)
    del proxy
    gate.set()
    assert second.result() == [1, "kept"]


def test_an_argument_that_cannot_be_sent_fails_at_once():
    with ProcessPoolExecutor(1) as pool:
        first = pool.submit(functions.make_list, 1)
        bad = pool.submit(functions.append, first, functions.Unpicklable())
        assert isinstance(bad.exception(), proxyexec.errors.SerializationError)
        assert first.result() == [0]
    assert pool.store.closed  # as nothing is left


def test_where_nothing_is_proxied_futures_are_replaced_if_they_cannot_go():
    with StoreExecutor(make_base("fork")) as executor:
        first = executor.submit(functions.make_list, 2)
        assert executor.submit(functions.append, first, 2).result() == [0, 1, 2]
        assert list(executor.map(functions.total, [first, first], chunksize=2)) == [1, 1]


def test_threads_of_a_drop_in_pool_get_the_future_itself():
    """As with the standard library: programs may call its methods."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(operator.add, 1, 2)
        assert pool.submit(lambda future: future.result(), first).result() == 3


def test_a_broken_pool_fails_what_waits():
    executor = StoreExecutor(make_base("fork", 1), should_proxy=ProxyType(list))
    first = executor.submit(functions.die)
    second = executor.submit(functions.append, [1], first)
    assert isinstance(second.exception(60), concurrent.futures.BrokenExecutor)
    executor.shutdown()


def test_a_pool_that_breaks_meanwhile_fails_what_waits(gate):
    with StoreExecutor(make_base("thread"), should_proxy=ProxyType(list)) as threads:
        first = threads.submit(lambda: gate.wait(60) and [1])
        executor = StoreExecutor(make_base("fork", 1), should_proxy=ProxyType(list))
        second = executor.submit(functions.append, first, 2)
        assert executor.submit(functions.die).exception() is not None
        gate.set()
        assert isinstance(second.exception(60), concurrent.futures.BrokenExecutor)
        executor.shutdown()


def test_a_future_inside_of_something_else_says_what_to_do():
    with ProcessPoolExecutor(1) as pool:
        future = pool.submit(functions.make_list, 1)
        error = pool.submit(len, [future]).exception()
        assert isinstance(error, proxyexec.errors.SerializationError)
        assert "submit(function, *futures)" in str(error)


def test_a_call_in_a_callback_does_not_wait_for_the_callback(threads, gate):
    """What it waits for is there already; a callback of a callback may ask for it."""
    ready = threads.submit(functions.make_list, 2)
    concurrent.futures.wait([ready])
    failed = threads.submit(lambda: gate.wait(60) and 1 // 0)
    dependent = threads.submit(functions.add, failed, 1)
    recovered = []
    ended = threading.Event()

    def recover(future):
        try:
            recovered.append(threads.submit(functions.total, ready).result(30))
        finally:
            ended.set()

    dependent.add_done_callback(recover)
    gate.set()
    assert ended.wait(60)
    assert recovered == [1]


@pytest.mark.parametrize("size", [3, 100_000])
def test_arguments_are_those_of_the_moment_of_the_call(gate, size):
    with StoreExecutor(make_base("thread"), should_proxy=ProxyType(dict)) as threads:
        with ProcessPoolExecutor(1) as pool:
            first = threads.submit(lambda: gate.wait(60) and 1)
            items = list(range(size))
            second = pool.submit(len, items) if first.done() else pool.submit(count, first, items)
            items.clear()
            gate.set()
            assert second.result(60) == size


def count(_, items):
    return len(items)


class Late(concurrent.futures.Executor):
    """An executor whose futures take their time to give a result, like one across a network."""

    def __init__(self):
        self.base = concurrent.futures.ThreadPoolExecutor(1)
        self.asked, self.released = threading.Event(), threading.Event()

    def submit(self, fn, /, *args, **kwargs):
        return LateFuture(self, self.base.submit(fn, *args, **kwargs))

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.base.shutdown(wait=wait, cancel_futures=cancel_futures)


class LateFuture:
    def __init__(self, executor, future):
        self.executor, self.future = executor, future

    def result(self, timeout=None):
        self.executor.asked.set()
        assert self.executor.released.wait(60)
        return self.future.result(timeout)

    def add_done_callback(self, fn):
        thread = threading.Thread(target=fn, args=(self,))
        self.future.add_done_callback(lambda _: thread.start())

    def __getattr__(self, name):
        return getattr(self.future, name)


def test_a_task_that_has_ended_cannot_be_cancelled_while_its_result_comes():
    late = Late()
    with StoreExecutor(late, MemoryConnector(), ProxyType(dict)) as executor:
        future = executor.submit(functions.add, 1, 2)
        assert late.asked.wait(60)
        assert not future.cancel()
        late.released.set()
        assert concurrent.futures.wait([future], timeout=60).done == {future}
        assert future.result() == 3


def test_a_pool_that_breaks_after_shutdown_fails_what_waits():
    """From Python 3.12 on, pools settle the futures of broken ones with their lock held."""
    executor = StoreExecutor(make_base("fork", 1), should_proxy=ProxyType(list))
    first = executor.submit(functions.die)
    second = executor.submit(functions.append, [1], first)
    manager = executor._base._executor_manager_thread
    executor.shutdown(wait=False)
    assert isinstance(second.exception(60), concurrent.futures.BrokenExecutor)
    manager.join(60)  # it was not left waiting for its own lock
    assert not manager.is_alive()
    for thread in threading.enumerate():
        if thread.name == "proxyexec-shutdown":
            thread.join(60)


class SlowToTell(concurrent.futures.Future):
    """Cancelled at once; who is to be called back is so when its executor gets to it."""

    def _invoke_callbacks(self):
        pass

    def tell(self):
        super()._invoke_callbacks()


def test_a_call_is_cancelled_as_soon_as_its_task_is():
    """Though it is another thread's business to say so, and it has not yet."""
    base = SlowToTell()

    class Pool:
        def submit(self, fn, /, *args, **kwargs):
            return base

        def shutdown(self, wait=True):
            pass

    with StoreExecutor(Pool(), MemoryConnector()) as executor:
        future = executor.submit(operator.add, 1, 2)
        called = []
        future.add_done_callback(called.append)
        assert future.cancel()
        assert future.cancelled()
        assert future.cancel()
        base.tell()
        assert future.cancelled()
        assert called == [future]
        assert concurrent.futures.wait([future], 0).done == {future}
