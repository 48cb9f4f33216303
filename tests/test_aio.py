"""``AsyncStoreExecutor``: the loop goes on, handles are asyncio's futures, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path

import pytest

import proxyexec
from proxyexec import ProxySize, Store, StoreExecutor, extract, is_proxy, is_resolved
from proxyexec.aio import AsyncStoreExecutor, Handle
from proxyexec.errors import ObjectMissingError, SerializationError, StoreFullError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions

# From this size on, objects are stored here.
STORED = 1000
LARGE = 10 * STORED


def loop_runs(body, *args):
    """Run a coroutine function; whatever a loop's exception handler is told fails the test."""
    told = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        try:
            task = asyncio.ensure_future(body(*args))
            done, _ = await asyncio.wait([task], timeout=40)
            assert done, task.get_stack()
            return task.result()
        finally:
            await asyncio.sleep(0)

    try:
        return asyncio.run(main())
    finally:
        assert not told


def drive(body, base=None, *, store=None, policy=ProxySize(STORED), **options):
    """Run a coroutine function with an executor, and see that it leaves nothing."""
    store = store or Store("test", FileConnector())

    async def main():
        nonlocal base
        base, made = None, base or ProcessPoolExecutor(2)
        executor = AsyncStoreExecutor(made, store, policy, close_store=False, **options)
        del made
        async with executor:
            result = await body(executor)
        del executor
        return result

    with store:
        result = loop_runs(main)
        gc.collect()  # what a test has caught refers to its frames
        assert store.usage() == (0, 0)
    return result


async def settled(executor):
    """Wait until tasks that have ended by now have let go of what they held."""
    for _ in range(3):
        await executor.submit(functions.add, 0, 0)


async def until(condition):
    """Wait until something holds that another thread or process sees to."""
    while not condition():
        await asyncio.sleep(0.001)


class Gate:
    """Holds a task back, in whatever process it is."""

    def __init__(self, directory):
        self.files = str(directory / "started"), str(directory / "release")

    async def started(self):
        await until(lambda: os.path.exists(self.files[0]))

    def open(self):
        with contextlib.suppress(FileExistsError):
            open(self.files[1], "x").close()


@pytest.fixture
def gate(tmp_path):
    one = Gate(tmp_path)
    yield one
    one.open()


def hold(files, result, *others):
    started, release = files
    open(started, "w").close()
    while not os.path.exists(release):
        time.sleep(0.001)
    return result


def hold_and_fail(files):
    raise ValueError(hold(files, "held"))


def mark(path, *args):
    open(path, "x").close()
    return len(args)


def stop_iteration():
    raise StopIteration("from a task")


def is_an_unresolved_proxy(x):
    return is_proxy(x) and not is_resolved(x)


def length(x):
    return len(x)


def double(x):
    return x + x


class Blocking:
    """A policy that waits in the packing thread, at objects of one type, until it may go on."""

    def __init__(self, kind=bytearray):
        self.kind = kind
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, obj):
        if isinstance(obj, self.kind):
            self.reached.set()
            assert self.go_on.wait(60)
        return False

    def __reduce__(self):
        return ProxySize, (STORED,)


class KnowsItsThread:
    """Arrives with the name of the thread that has unpickled it."""

    def __init__(self, size):
        self.size = size
        self.thread = None

    def __reduce__(self):
        return _arrived, (bytes(self.size),)


def _arrived(content):
    one = KnowsItsThread(len(content))
    one.thread = threading.current_thread().name
    return one


class LeavesItsThread:
    """Notes the name of the thread that pickles it."""

    threads = []

    def __reduce__(self):
        LeavesItsThread.threads.append(threading.current_thread().name)
        return LeavesItsThread, ()


class Counting(ThreadPoolExecutor):
    submitted = 0

    def submit(self, fn, /, *args, **kwargs):
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


THREADS = pytest.mark.parametrize(
    "make_base", [lambda: ProcessPoolExecutor(2), lambda: ThreadPoolExecutor(2)], ids=["p", "t"]
)


# Values


@THREADS
def test_handles_are_awaited_for_results(make_base):
    async def body(executor):
        assert await executor.submit(pow, 2, 10) == 1024
        assert await executor.submit(functions.concat, "a", num=3) == "a-3"
        small = await executor.submit(functions.make_list, 3)
        assert small == [0, 1, 2] and not is_proxy(small)

    drive(body, make_base())


@THREADS
def test_large_results_are_proxies_that_awaiting_does_not_resolve(make_base):
    async def body(executor):
        handle = executor.submit(functions.make_bytes, LARGE)
        proxy = await handle
        assert is_proxy(proxy) and not is_resolved(proxy)
        assert await handle is proxy
        assert proxy == bytes(LARGE)

    drive(body, make_base())


@THREADS
def test_large_arguments_arrive_as_proxies(make_base):
    async def body(executor):
        assert await executor.submit(is_an_unresolved_proxy, bytes(LARGE))
        assert await executor.submit(length, x=bytes(LARGE)) == LARGE

    drive(body, make_base())


def test_without_a_policy_nothing_is_stored():
    async def body(executor):
        result = await executor.submit(double, bytes(LARGE))
        assert type(result) is bytes

    drive(body, policy=None)


def test_several_can_await_one_handle(gate):
    async def body(executor):
        handle = executor.submit(hold, gate.files, bytes(LARGE))
        waiting = [asyncio.ensure_future(awaiting(handle)) for _ in range(3)]
        await gate.started()
        gate.open()
        results = await asyncio.gather(*waiting)
        assert all(one is results[0] for one in results)

    async def awaiting(handle):
        return await handle

    drive(body)


def test_asyncio_takes_handles_for_its_futures():
    async def body(executor):
        handles = [executor.submit(pow, 2, n) for n in range(4)]
        assert await asyncio.gather(*handles) == [1, 2, 4, 8]
        done, pending = await asyncio.wait(handles)
        assert done == set(handles) and not pending
        assert sorted([await one for one in asyncio.as_completed(handles)]) == [1, 2, 4, 8]
        assert asyncio.ensure_future(handles[0]) is handles[0]
        assert await asyncio.wait_for(executor.submit(pow, 3, 3), 60) == 27
        assert await asyncio.shield(executor.submit(pow, 3, 2)) == 9

    drive(body)


def test_retrieving_gives_the_value_that_a_thread_has_fetched():
    async def body(executor):
        handle = executor.submit(KnowsItsThread, LARGE)
        value = await executor.retrieve(handle)
        assert type(value) is KnowsItsThread
        assert value.thread.startswith("proxyexec-fetch")
        assert await executor.retrieve(await handle) is value
        assert await executor.retrieve(executor.submit(pow, 2, 3)) == 8
        assert await executor.retrieve("anything else") == "anything else"
        with pytest.raises(ZeroDivisionError):
            await executor.retrieve(executor.submit(divmod, 1, 0))

    drive(body)


def test_a_result_is_held_while_it_is_retrieved():
    async def body(executor):
        # Nothing but the call has the handle, or the proxy.
        assert await executor.retrieve(executor.submit(functions.make_bytes, LARGE)) == bytes(LARGE)
        await settled(executor)
        assert executor.store.usage() == (0, 0)

    drive(body)


def test_what_cannot_be_fetched_is_raised():
    async def body(executor):
        proxy = await executor.submit(functions.make_bytes, LARGE)
        executor.store.evict(proxy)
        with pytest.raises(ObjectMissingError):
            await executor.retrieve(proxy)

    drive(body)


def test_a_foreign_executor_can_be_the_base():
    class OtherFuture(Future):
        pass

    class Other(Executor):
        def __init__(self):
            self.pool = ThreadPoolExecutor(2)

        def submit(self, fn, /, *args, **kwargs):
            future = OtherFuture()

            def run():
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(pickle.loads(pickle.dumps(fn))(*args, **kwargs))
                    except Exception as error:
                        future.set_exception(error)

            self.pool.submit(run)
            return future

        def shutdown(self, wait=True):
            self.pool.shutdown(wait)

    async def body(executor):
        large = executor.submit(functions.make_bytes, LARGE)
        assert await executor.submit(length, large) == LARGE
        with pytest.raises(ValueError, match="boom"):
            await executor.submit(functions.boom)

    drive(body, Other())


def test_a_drop_in_pool_can_be_the_base():
    async def body(executor):
        assert await executor.submit(length, bytes(LARGE)) == LARGE

    drive(body, proxyexec.ProcessPoolExecutor(2))


def test_data_can_be_in_redis(redis_url):
    async def body(executor):
        first = executor.submit(double, bytes(LARGE))
        assert await executor.submit(length, first) == 2 * LARGE
        assert await executor.retrieve(first) == bytes(2 * LARGE)

    drive(body, store=Store.from_url(redis_url))


# The loop goes on


def test_packing_is_left_to_a_thread():
    async def body(executor):
        LeavesItsThread.threads.clear()
        await executor.submit(functions.kind, LeavesItsThread())
        assert set(LeavesItsThread.threads) == {"proxyexec-pack"}

    drive(body)


def test_submit_returns_while_a_call_is_being_packed():
    policy = Blocking()

    async def body(executor):
        first = executor.submit(length, bytearray(LARGE))
        await until(policy.reached.is_set)
        second = executor.submit(length, b"ab")
        assert not first.done() and not second.done()
        policy.go_on.set()
        assert await asyncio.gather(first, second) == [LARGE, 2]

    drive(body, policy=policy)


def test_calls_are_submitted_in_order():
    seen = []

    async def body(executor):
        await asyncio.gather(*[executor.submit(seen.append, n) for n in range(200)])

    drive(body, ThreadPoolExecutor(1))
    assert seen == list(range(200))


def test_context_variables_are_those_of_the_call():
    variable = contextvars.ContextVar("variable", default="default")
    seen = []

    def policy(obj):
        if isinstance(obj, list):  # or it is a result, which a worker judges
            seen.append(variable.get())
        return False

    async def call(executor, value):
        variable.set(value)
        await executor.submit(length, [value])

    async def body(executor):
        await asyncio.gather(*[asyncio.create_task(call(executor, n)) for n in range(3)])

    drive(body, ThreadPoolExecutor(1), policy=policy)
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(range(400_000)),
        lambda: ["a" * n for n in range(2000)],
        lambda: {n: str(n) for n in range(200_000)},
        lambda: [bytes(70_000), "b" * 80_000, bytearray(90_000)] * 10,
        lambda: bytes(3_000_000),
        lambda: bytearray(3_000_000),
    ],
)
@pytest.mark.parametrize("connector", [FileConnector, MemoryConnector])
def test_what_lets_threads_run_meanwhile_is_the_same(make, connector):
    value = make()
    with Store("test", connector()) as store:
        assert store.get(store.put(value)) == value


# Errors


def test_errors_have_their_remote_tracebacks():
    async def body(executor):
        handle = executor.submit(functions.boom, 1)
        with pytest.raises(ValueError, match="boom") as caught:
            await handle
        assert "in boom" in str(caught.value.__cause__)
        assert handle.exception() is caught.value
        with pytest.raises(ValueError, match="boom"):
            await handle

    drive(body)


def test_what_cannot_be_pickled_fails_its_call_alone():
    async def body(executor):
        bad = executor.submit(length, functions.Unpicklable())
        good = executor.submit(length, b"abc")
        with pytest.raises(SerializationError, match="argument 0 of length"):
            await bad
        assert await good == 3
        with pytest.raises(Exception, match="not for sending"):
            await executor.submit(functions.return_unpicklable)

    drive(body)


def test_stop_iteration_ends_no_coroutine():
    async def body(executor):
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await executor.submit(stop_iteration)
        assert isinstance(caught.value.__cause__, StopIteration)

    drive(body)


def test_a_broken_pool_fails_what_is_pending():
    async def body(executor):
        handles = [executor.submit(functions.die), executor.submit(length, bytes(LARGE))]
        chained = executor.submit(length, handles[0])
        for handle in (*handles, chained):
            with pytest.raises(BrokenExecutor):
                await handle
        with pytest.raises(BrokenExecutor):
            await executor.submit(pow, 1, 1)  # by the handle, like any other failure

    drive(body, ProcessPoolExecutor(1))


def test_a_pool_that_was_shut_down_fails_calls():
    async def body(executor):
        with pytest.raises(RuntimeError, match="after shutdown"):
            await executor.submit(pow, 1, 1)

    base = ProcessPoolExecutor(1)
    base.shutdown()
    drive(body, base)


def test_errors_that_nobody_asks_for_are_logged_once(caplog):
    caplog.set_level(logging.ERROR, "asyncio")

    async def main():
        executor = AsyncStoreExecutor(ThreadPoolExecutor(1))
        async with executor:
            executor.submit(functions.boom)
            await settled(executor)
        return None

    asyncio.run(main())
    assert [one.getMessage().splitlines()[0] for one in caplog.records] == [
        "Handle exception was never retrieved"
    ]


def test_errors_that_fail_dependents_are_theirs(caplog):
    caplog.set_level(logging.ERROR, "asyncio")

    async def body(executor):
        first = executor.submit(functions.boom)
        with pytest.raises(ValueError, match="boom"):
            await executor.submit(length, first)
        del first
        second = executor.submit(functions.boom)
        await asyncio.wait([second])
        with pytest.raises(ValueError, match="boom"):
            await executor.submit(length, second)
        del second

    drive(body)
    assert not caplog.records


# Handles as arguments


@THREADS
def test_handles_are_arguments(make_base):
    async def body(executor):
        a, b = executor.submit(pow, 2, 3), executor.submit(pow, 2, 4)
        assert await executor.submit(int.__add__, a, b) == 24
        assert await executor.submit(functions.concat, "x", num=a) == "x-8"
        assert await executor.submit(int.__add__, a, a) == 16

    drive(body, make_base())


def test_handles_are_arguments_over_threads_without_a_policy():
    async def body(executor):
        a = executor.submit(pow, 2, 3)
        assert await executor.submit(int.__add__, a, 1) == 9
        assert await executor.submit(int.__add__, a, executor.submit(pow, 1, 1)) == 9

    drive(body, ThreadPoolExecutor(1), policy=None)


def test_data_do_not_come_back_between_calls():
    fetched = []

    class Watched(FileConnector):
        def get(self, key):
            fetched.append(os.getpid())
            return super().get(key)

    async def body(executor):
        first = executor.submit(functions.make_bytes, LARGE)
        second = executor.submit(double, first)
        third = executor.submit(double, second)
        assert await executor.submit(length, third) == 4 * LARGE
        assert not fetched
        assert not is_resolved(await third)

    drive(body, store=Store("watched", Watched()))


def test_a_failure_fails_what_depends_on_it(gate, tmp_path):
    async def body(executor):
        first = executor.submit(hold_and_fail, gate.files)
        others = [executor.submit(mark, tmp_path / "a", first)]
        others.append(executor.submit(mark, tmp_path / "b", others[0]))
        await gate.started()
        gate.open()
        for one in (first, *others, executor.submit(mark, tmp_path / "c", first)):
            with pytest.raises(ValueError, match="held"):
                await one

    drive(body)
    assert not {"a", "b", "c"}.intersection(os.listdir(tmp_path))


@pytest.mark.parametrize("packed", [True, False])
def test_cancelling_cancels_what_depends_on_it(gate, tmp_path, packed):
    async def body(executor):
        first = executor.submit(hold, gate.files, b"")
        await gate.started()
        second = executor.submit(mark, tmp_path / "a", first)
        executor.submit(mark, tmp_path / "b", second)  # nobody holds it
        if packed:
            await settled(executor)
        # It runs and cannot be stopped; but whoever waits for it gets nothing.
        assert first.cancel() and first.cancelled()
        assert second.cancelled()
        late = executor.submit(mark, tmp_path / "d", first)
        assert late.cancelled()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await late
        await settled(executor)

    drive(body)
    assert not {"a", "b", "d"}.intersection(os.listdir(tmp_path))


def test_long_chains_are_cancelled_from_end_to_end(gate):
    async def body(executor):
        first = handle = executor.submit(hold, gate.files, b"")
        handles = [first]
        for _ in range(3000):
            handle = executor.submit(functions.identity, handle)
            handles.append(handle)
        await gate.started()
        first.cancel()
        assert all(one.cancelled() for one in handles)
        gate.open()

    drive(body, ThreadPoolExecutor(1))


def test_handles_of_another_executor_are_arguments():
    policy = Blocking()

    async def body(executor):
        other_store = Store("other", FileConnector())
        other = AsyncStoreExecutor(ProcessPoolExecutor(1), other_store, policy)
        async with other:
            # It is not packed yet, and this executor goes on with others.
            first = other.submit(double, bytearray(LARGE))
            second = executor.submit(length, first)
            assert await executor.submit(pow, 2, 2) == 4
            assert not second.done()
            policy.go_on.set()
            assert await second == 2 * LARGE
            del first

    drive(body)


def test_a_handle_inside_of_something_else_says_what_to_do():
    async def body(executor):
        handle = executor.submit(pow, 2, 2)
        with pytest.raises(TypeError, match="as an argument of its own"):
            await executor.submit(length, [handle])
        await handle

    drive(body)


# Cancelling


def test_a_call_that_is_cancelled_before_it_is_packed_never_is_submitted(tmp_path):
    policy = Blocking()

    async def body(executor):
        being_packed = executor.submit(mark, tmp_path / "a", bytearray(LARGE))
        behind = executor.submit(mark, tmp_path / "b")
        await until(policy.reached.is_set)
        assert being_packed.cancel() and behind.cancel()
        assert not behind.cancel()
        policy.go_on.set()
        await settled(executor)
        for handle in (being_packed, behind):
            with pytest.raises(asyncio.CancelledError):
                await handle

    base = Counting(2)
    drive(body, base, policy=policy)
    assert os.listdir(tmp_path) == []
    assert base.submitted == 3  # by settled()


@pytest.mark.parametrize("size", [0, LARGE])
def test_a_task_that_has_not_started_is_cancelled(gate, tmp_path, size):
    async def body(executor):
        held = executor.submit(hold, gate.files, b"")
        await gate.started()
        pending = executor.submit(mark, tmp_path / "a", bytes(size))
        packed = executor.submit(pow, 1, 1)
        del packed
        await until(lambda: pending._submission.future is not None)
        pending.cancel()
        gate.open()
        await held
        assert pending.cancelled()

    drive(body, ThreadPoolExecutor(1))
    assert "a" not in os.listdir(tmp_path)


def test_a_pool_of_processes_cancels_what_has_not_started(gate, tmp_path):
    async def body(executor):
        held = executor.submit(hold, gate.files, b"")
        await gate.started()
        # The first ones are in the pool's queue, and count as running.
        others = [executor.submit(mark, tmp_path / str(n), bytes(LARGE)) for n in range(8)]
        await until(lambda: others[-1]._submission.future is not None)
        assert all(one.cancel() for one in others)
        gate.open()
        await held

    drive(body, ProcessPoolExecutor(1))
    assert "7" not in os.listdir(tmp_path)


def test_the_result_of_a_cancelled_task_that_runs_is_evicted(gate):
    async def body(executor):
        handle = executor.submit(hold, gate.files, bytes(LARGE))
        await gate.started()
        assert handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handle
        gate.open()
        await until(lambda: executor.store.usage() == (0, 0))

    drive(body, ProcessPoolExecutor(1))


def test_cancelling_who_awaits_cancels_the_task(gate, tmp_path):
    async def body(executor):
        held = executor.submit(hold, gate.files, b"")
        await gate.started()
        pending = executor.submit(mark, tmp_path / "a")

        async def awaiting():
            return await pending

        first, second = (asyncio.ensure_future(awaiting()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        for one in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await one
        assert first.cancelled() and second.cancelled() and pending.cancelled()
        gate.open()
        await held

    drive(body, ThreadPoolExecutor(1))
    assert "a" not in os.listdir(tmp_path)


def test_a_timeout_cancels_and_a_shield_keeps(gate):
    async def body(executor):
        kept = executor.submit(hold, gate.files, "kept")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(kept), 0.001)
        lost = executor.submit(hold, gate.files, "lost")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lost, 0.001)
        assert lost.cancelled() and not kept.done()
        gate.open()
        assert await kept == "kept"

    drive(body, ThreadPoolExecutor(1))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no task groups")
def test_a_failing_task_group_cancels(gate, tmp_path):
    async def body(executor):
        held = executor.submit(hold, gate.files, b"")
        await gate.started()
        pending = executor.submit(mark, tmp_path / "a")

        async def awaiting():
            await pending

        async def failing():
            raise ValueError("failed")

        with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
            async with asyncio.TaskGroup() as group:
                group.create_task(awaiting())
                group.create_task(failing())
        assert caught.group_contains(ValueError)
        assert pending.cancelled()
        gate.open()
        await held

    drive(body, ThreadPoolExecutor(1))
    assert "a" not in os.listdir(tmp_path)


def test_retrieving_can_be_cancelled(gate):
    async def body(executor):
        handle = executor.submit(hold, gate.files, bytes(LARGE))
        retrieving = asyncio.ensure_future(executor.retrieve(handle))
        await asyncio.sleep(0)  # what has not begun is cancelled without a word to the handle
        await gate.started()
        retrieving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retrieving
        assert handle.cancelled()
        gate.open()

    drive(body)


# Maps


async def collected(results):
    return [one async for one in results]


async def numbers(n):
    for number in range(n):
        await asyncio.sleep(0)
        yield number


@THREADS
def test_maps_are_ordered(make_base):
    async def body(executor):
        assert await collected(executor.map(pow, range(20), itertools.repeat(2))) == [
            n * n for n in range(20)
        ]
        assert await collected(executor.map(pow, numbers(5), [2, 2, 2])) == [0, 1, 4]
        assert await collected(executor.map(pow, [3, 3, 3], numbers(2))) == [1, 3]
        assert await collected(executor.map(pow)) == []
        assert await collected(executor.map(length, [])) == []
        assert await collected(executor.map(length, [executor.submit(bytes, 3)])) == [3]

    drive(body, make_base())


def test_maps_yield_proxies_and_hold_none_that_were_consumed():
    async def body(executor):
        async for proxy in executor.map(functions.make_bytes, [LARGE] * 10, buffersize=2):
            assert is_an_unresolved_proxy(proxy)
            del proxy
            await settled(executor)
            assert executor.store.usage().objects <= 2
        await settled(executor)
        assert executor.store.usage() == (0, 0)

    drive(body)


def test_maps_carry_what_a_function_carries_once():
    async def body(executor):
        data = bytes(LARGE)
        seen = set()
        function = functools.partial(functions.carried, data)
        async for proxied, total in executor.map(function, range(10), buffersize=3):
            seen.add(proxied)
            assert total >= LARGE
            assert executor.store.usage().objects == 1
        assert seen == {True}

    drive(body, policy=ProxySize(STORED), nested=True)


def test_maps_run_ahead_so_far():
    drawn = []

    def items():
        for number in itertools.count():
            drawn.append((number, threading.current_thread()))
            yield number

    async def body(executor):
        results = executor.map(functions.identity, items(), buffersize=3)
        async for number in results:
            await settled(executor)
            assert len(drawn) == number + 4
            if number == 10:
                break
        await results.aclose()
        assert {thread for _, thread in drawn} == {threading.current_thread()}

    drive(body)


def test_maps_run_ahead_twice_the_workers_by_default():
    drawn = []

    async def body(executor):
        async with contextlib.aclosing(
            executor.map(functions.identity, map(note, itertools.count()))
        ) as results:
            async for _ in results:
                for _ in range(20):
                    await asyncio.sleep(0)
                await settled(executor)
                assert len(drawn) == 2 * 3 + 1
                break

    def note(number):
        drawn.append(number)
        return number

    drive(body, ProcessPoolExecutor(3))


def test_a_result_does_not_wait_for_the_next_item():
    async def body(executor):
        first_is_there = asyncio.Event()

        async def items():
            yield 1
            await first_is_there.wait()
            yield 2

        results = executor.map(functions.identity, items(), buffersize=10)
        assert await anext(results) == 1
        first_is_there.set()
        assert await collected(results) == [2]

    drive(body)


@pytest.mark.parametrize("end", ["aclose", "drop", "cancel"])
def test_closing_a_map_cancels_the_rest_and_evicts(gate, tmp_path, end):
    async def body(executor):
        calls = [functions.make_bytes, functools.partial(hold, gate.files)]
        calls += [functools.partial(mark, tmp_path / str(n)) for n in range(4)]
        results = executor.map(apply, calls, [LARGE] * 6, buffersize=6)
        first = await anext(results)
        assert len(first) == LARGE
        await gate.started()
        await settled_in_order(results)
        if end == "aclose":
            await results.aclose()
        elif end == "drop":
            del results
            for _ in range(5):
                await asyncio.sleep(0)
        else:
            waiting = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        gate.open()

    async def settled_in_order(results):
        ahead = results.ag_frame.f_locals["ahead"]
        await until(lambda: len(ahead.pending) == 5)
        await until(lambda: all(one._submission.future is not None for one in ahead.pending))

    drive(body, ThreadPoolExecutor(1))
    assert not {"0", "1", "2", "3"}.intersection(os.listdir(tmp_path))


def apply(function, argument):
    return extract(function)(argument)


def test_errors_end_a_map_in_their_turn(caplog):
    caplog.set_level(logging.ERROR, "asyncio")

    def failing_source():
        yield 1
        yield 2
        raise KeyError("source")

    async def body(executor):
        seen = []
        with pytest.raises(KeyError, match="source"):
            async for one in executor.map(functions.identity, failing_source()):
                seen.append(one)
        assert seen == [1, 2]
        seen.clear()
        with pytest.raises(ZeroDivisionError):
            async for one in executor.map(divmod, [1, 1, 1, 1], [1, 0, 0, 1]):
                seen.append(one)
        assert seen == [(1, 0)]
        # Closed before its turn, it is nobody's.
        results = executor.map(functions.identity, failing_source())
        assert await anext(results) == 1
        await results.aclose()

    drive(body)
    gc.collect()
    assert not caplog.records


def test_maps_have_timeouts(gate):
    async def body(executor):
        results = executor.map(hold, [gate.files], ["late"], timeout=0.01)
        with pytest.raises(asyncio.TimeoutError):
            await anext(results)
        gate.open()
        assert await collected(executor.map(pow, [2], [2], timeout=60)) == [4]

        async def never():
            await asyncio.get_running_loop().create_future()
            yield

        with pytest.raises(asyncio.TimeoutError):
            await anext(executor.map(functions.identity, never(), timeout=0.01))

    drive(body)


def test_arguments_of_map_are_checked_at_once():
    async def body(executor):
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(length, [], buffersize=0)
        with pytest.raises(TypeError, match="buffersize"):
            executor.map(length, [], buffersize=1.5)
        with pytest.raises(TypeError):
            await anext(executor.map(length, 5))

    drive(body)


# The end


@THREADS
def test_leaving_waits_for_all_that_is_pending(gate, tmp_path, make_base):
    async def main():
        async with AsyncStoreExecutor(make_base()) as executor:
            handles = [executor.submit(hold, gate.files, n) for n in range(2)]
            handles.append(executor.submit(mark, tmp_path / "last", handles[0]))
            executor.submit(mark, tmp_path / "dropped")
            asyncio.get_running_loop().call_soon(gate.open)
        assert all(one.done() for one in handles)
        assert [await one for one in handles] == [0, 1, 1]
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(pow, 1, 1)
        await executor.shutdown()

    loop_runs(main)
    assert {"last", "dropped"} <= set(os.listdir(tmp_path))


def test_results_can_be_retrieved_afterwards():
    async def main():
        async with AsyncStoreExecutor(
            ProcessPoolExecutor(1), should_proxy=ProxySize(STORED)
        ) as executor:
            handle = executor.submit(functions.make_bytes, LARGE)
        assert await executor.retrieve(handle) == bytes(LARGE)

    loop_runs(main)


def test_leaving_by_an_error_waits_as_well(tmp_path):
    async def main():
        with pytest.raises(KeyError):
            async with AsyncStoreExecutor(ProcessPoolExecutor(1)) as executor:
                handle = executor.submit(mark, tmp_path / "a")
                raise KeyError
        assert await handle == 0

    loop_runs(main)
    assert os.listdir(tmp_path) == ["a"]


@THREADS
def test_leaving_can_be_cancelled(gate, tmp_path, make_base):
    async def main():
        executor = AsyncStoreExecutor(make_base())
        handles = [executor.submit(hold, gate.files, 0)]
        await gate.started()
        # It may run before the thread that has handed it over knows its future.
        await until(lambda: handles[0]._submission.future is not None)
        # Some of these count as running in a pool of processes; not all.
        handles += [executor.submit(hold, gate.files, n) for n in range(1, 20)]
        last = executor.submit(mark, tmp_path / "last", handles[0])

        async def leaving():
            async with executor:
                pass

        task = asyncio.ensure_future(leaving())
        await until(lambda: executor._ended)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        for one in (last, handles[-1]):
            with pytest.raises(asyncio.CancelledError):
                await one
        assert not handles[0].done()
        gate.open()
        assert await handles[0] == 0
        await executor.shutdown()
        assert all(one.done() for one in handles)

    loop_runs(main)
    assert "last" not in os.listdir(tmp_path)


def test_shutdown_without_waiting_runs_what_is_pending(gate, tmp_path):
    async def main():
        executor = AsyncStoreExecutor(ProcessPoolExecutor(1))
        first = executor.submit(hold, gate.files, "first")
        second = executor.submit(mark, tmp_path / "a", first)
        await executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(pow, 1, 1)
        gate.open()
        assert await second == 1

    loop_runs(main)


def test_shutdown_can_cancel_what_has_not_started(gate, tmp_path):
    policy = Blocking()

    async def main():
        executor = AsyncStoreExecutor(ThreadPoolExecutor(1), should_proxy=policy)
        running = executor.submit(hold, gate.files, "running")
        await gate.started()
        pending = executor.submit(mark, tmp_path / "a")
        waiting = executor.submit(mark, tmp_path / "b", running)
        unpacked = executor.submit(mark, tmp_path / "c", bytearray(STORED))
        await until(policy.reached.is_set)
        shutting = asyncio.ensure_future(executor.shutdown(cancel_futures=True))
        await asyncio.sleep(0)
        policy.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await unpacked
        with pytest.raises(asyncio.CancelledError):
            await pending
        gate.open()
        await shutting
        assert await running == "running"
        assert waiting.cancelled() or await waiting == 1

    loop_runs(main)
    assert not {"a", "c"}.intersection(os.listdir(tmp_path))


def test_programs_that_do_not_wait_have_their_tasks_run(tmp_path):
    program = f"""
    import asyncio
    from concurrent.futures import ProcessPoolExecutor
    from proxyexec import ProxySize
    from proxyexec.aio import AsyncStoreExecutor
    from tests.test_aio import mark

    async def main():
        global executor
        executor = AsyncStoreExecutor(ProcessPoolExecutor(1), should_proxy=ProxySize(1000))
        for n in range(5):
            executor.submit(mark, "{tmp_path}/" + str(n), bytes(100_000))

    if __name__ == "__main__":
        asyncio.run(main())
    """
    done = run_program(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3", "4"]


def run_program(program):
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(root), str(root / "connectors")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_workers_are_forked_before_there_are_threads():
    program = """
    import asyncio, multiprocessing, os, threading
    from concurrent.futures import ProcessPoolExecutor
    from proxyexec import ProxySize
    from proxyexec.aio import AsyncStoreExecutor

    async def main():
        base = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
        async with AsyncStoreExecutor(base, should_proxy=ProxySize(1000)) as executor:
            handles = [executor.submit(len, bytes(10_000)) for _ in range(10)]
            assert await asyncio.gather(*handles) == [10_000] * 10

    os.register_at_fork(before=lambda: print(*[one.name for one in threading.enumerate()]))
    asyncio.run(main())
    """
    done = run_program(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["MainThread"] * 2


# Letting go


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@THREADS
def test_dropping_a_handle_evicts_its_result(no_collector, gate, make_base):
    async def body(executor):
        done = executor.submit(functions.make_bytes, LARGE)
        await done
        await settled(executor)
        assert executor.store.usage().objects == 1
        del done
        assert executor.store.usage().objects == 0

        pending = executor.submit(hold, gate.files, bytes(LARGE))
        await gate.started()
        del pending
        gate.open()
        await until(lambda: executor.store.usage().objects == 0)

    drive(body, make_base())


def test_a_proxy_outlives_its_handle(no_collector):
    async def body(executor):
        proxy = await executor.submit(functions.make_bytes, LARGE)
        await settled(executor)
        assert executor.store.usage().objects == 1
        assert await executor.submit(length, proxy) == LARGE
        del proxy
        await settled(executor)
        assert executor.store.usage().objects == 0

    drive(body)


@pytest.mark.parametrize("fate", ["result", "error", "cancelled", "unpacked", "argument"])
def test_handles_are_in_no_cycle(no_collector, gate, fate):
    async def body(executor):
        if fate == "error":
            handle = executor.submit(functions.boom)
            await asyncio.wait([handle])
            assert handle.exception() is not None
        elif fate == "result":
            handle = executor.submit(functions.make_bytes, LARGE)
            await handle
        elif fate == "argument":
            handle = executor.submit(functions.make_bytes, LARGE)
            await executor.submit(length, handle)
        else:
            handle = executor.submit(hold, gate.files, bytes(LARGE))
            if fate == "cancelled":
                await gate.started()
            handle.cancel()
            gate.open()
        reference = weakref.ref(handle)
        del handle
        await until(lambda: reference() is None)

    drive(body)


def test_a_dropped_executor_goes_at_once(no_collector):
    async def main():
        base = ThreadPoolExecutor(1)
        executor = AsyncStoreExecutor(base, should_proxy=ProxySize(STORED))
        handle = executor.submit(functions.make_bytes, LARGE)
        await handle
        await settled(executor)
        references = [weakref.ref(executor), weakref.ref(executor._executor)]
        store = executor.store
        del executor
        await until(lambda: [one() for one in references] == [None, None])
        assert len(await handle) == LARGE
        del handle
        await until(lambda: store.closed)
        base.shutdown()

    loop_runs(main)


def test_arguments_are_let_go_of_when_they_are_packed(no_collector):
    class Data(bytearray):
        pass

    async def body(executor):
        data = Data(LARGE)
        reference = weakref.ref(data)
        handle = executor.submit(length, data)
        del data
        assert await handle == LARGE
        await settled(executor)
        assert reference() is None

    drive(body)


def test_handles_do_not_keep_context_variables_alive(no_collector):
    class Value:
        pass

    variable = contextvars.ContextVar("variable")

    async def call(executor, value):
        variable.set(value)
        return executor.submit(pow, 2, 2)

    async def body(executor):
        value = Value()
        reference = weakref.ref(value)
        handle = await asyncio.create_task(call(executor, value))
        del value
        assert await handle == 4
        await until(lambda: reference() is None)

    drive(body)


def test_ownership_can_be_the_users():
    async def main():
        with Store("mine", FileConnector()) as store:
            async with AsyncStoreExecutor(
                ProcessPoolExecutor(1), store, ProxySize(STORED), ownership=False, close_store=False
            ) as executor:
                proxy = await executor.submit(functions.make_bytes, LARGE)
                reference = proxyexec.reference_of(proxy)
                del proxy
            assert store.usage().objects == 1
            store.evict(reference)

    loop_runs(main)


# Loops


def test_it_belongs_to_the_loop_that_uses_it_first():
    executor = AsyncStoreExecutor(ThreadPoolExecutor(1))

    async def use():
        return executor.submit(pow, 2, 2)

    async def awaited():
        return await (await use())

    assert asyncio.run(awaited()) == 4
    with pytest.raises(RuntimeError, match="belongs to another event loop, which is closed"):
        asyncio.run(use())
    for misuse in (executor.shutdown, lambda: executor.retrieve(1), executor.__aenter__):
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            asyncio.run(misuse())
    with pytest.raises(RuntimeError, match="in a running event loop"):
        executor.submit(pow, 2, 2)
    with pytest.raises(RuntimeError, match="in a running event loop"):
        executor.map(pow, [])
    executor._executor.shutdown()


def test_another_thread_cannot_use_it():
    async def body(executor):
        with pytest.raises(RuntimeError, match="in a running event loop"):
            await asyncio.to_thread(executor.submit, pow, 2, 2)
        with pytest.raises(RuntimeError, match="belongs to another event loop$"):
            await asyncio.to_thread(asyncio.run, using(executor))

    async def using(executor):
        await executor.submit(pow, 2, 2)

    async def first(executor):
        await executor.submit(pow, 2, 2)
        await body(executor)

    drive(first)


def test_a_handle_of_another_loop_is_no_argument():
    async def body(executor):
        def elsewhere():
            return asyncio.run(making())

        async def making():
            async with AsyncStoreExecutor(ThreadPoolExecutor(1)) as other:
                handle = other.submit(pow, 2, 2)
                await handle
                return handle

        foreign = await asyncio.to_thread(elsewhere)
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            executor.submit(length, foreign)

    drive(body)


def test_tasks_may_outlive_the_loop(gate):
    base = ThreadPoolExecutor(1)
    store = Store("test", MemoryConnector())

    async def main():
        executor = AsyncStoreExecutor(base, store, ProxySize(STORED), close_store=False)
        handle = executor.submit(hold, gate.files, bytes(LARGE))
        await gate.started()
        return weakref.ref(handle)

    with store:
        reference = asyncio.run(main())
        gate.open()
        base.shutdown()
        gc.collect()
        assert reference() is None
        assert store.usage() == (0, 0)


def test_handles_cannot_be_pickled():
    async def body(executor):
        handle = executor.submit(pow, 2, 2)
        with pytest.raises(TypeError, match="a handle cannot be sent"):
            pickle.dumps(handle)
        assert isinstance(handle, Handle) and await handle == 4

    drive(body)


# Room


def bounded(size, **options):
    return Store("bounded", MemoryConnector(), max_bytes=size, **options)


def data(number, size=LARGE):
    return number.to_bytes(8, "big") + bytes(size - 8)


def test_waiting_for_room_holds_up_neither_the_loop_nor_who_needs_none(gate):
    async def body(executor):
        first = executor.submit(hold, gate.files, "first", data(0))
        await gate.started()
        waiting = [executor.submit(length, data(n)) for n in (1, 2, 3)]
        # Behind those, these get through: they need no room.
        assert await executor.submit(pow, 2, 2) == 4
        assert not any(one.done() for one in waiting)
        assert len(executor.store.connector._objects) == 1
        gate.open()
        assert await asyncio.gather(first, *waiting) == ["first", *[LARGE] * 3]

    drive(body, ThreadPoolExecutor(2), store=bounded(LARGE + 500, full_timeout=None))


def test_who_makes_room_gets_by_who_waits_for_it():
    # A result takes the room that a call waits for; a later call lets go of it.
    async def body(executor):
        held = await executor.submit(double, data(0, LARGE // 2))
        await settled(executor)
        waiting = executor.submit(length, data(1))
        chained = executor.submit(functions.add, waiting, 1)
        await until(lambda: executor._packer._in_line._runs)
        assert await executor.submit(length, held) == LARGE
        assert not waiting.done()
        del held
        assert await waiting == LARGE
        assert await chained == LARGE + 1

    drive(body, ThreadPoolExecutor(2), store=bounded(LARGE + 500, full_timeout=None))


def test_who_waits_for_room_can_be_cancelled():
    async def body(executor):
        held = await executor.submit(functions.make_bytes, LARGE)
        await settled(executor)
        waiting = [executor.submit(length, data(n)) for n in (1, 2)]
        await until(lambda: executor._packer.tasks.store.quota._line)
        waiting[0].cancel()
        await until(lambda: waiting[0]._submission not in executor._packer._unpacked)
        assert not waiting[1].done()
        waiting[1].cancel()
        await until(lambda: not executor._packer._unpacked)
        assert len(held) == LARGE

    drive(body, ThreadPoolExecutor(1), store=bounded(LARGE + 500, full_timeout=None))


def test_no_room_in_time_fails_the_call():
    async def body(executor):
        held = await executor.submit(functions.make_bytes, LARGE)
        await settled(executor)
        with pytest.raises(StoreFullError, match="argument 0 of length"):
            await executor.submit(length, data(1))
        with pytest.raises(StoreFullError):
            await executor.submit(length, data(1, 3 * LARGE))
        assert len(held) == LARGE

    drive(body, ThreadPoolExecutor(1), store=bounded(LARGE + 500, full_timeout=0.01))


def test_leaving_waits_for_no_room():
    async def main():
        store = bounded(LARGE + 500, full_timeout=None)
        with store:
            async with AsyncStoreExecutor(
                ThreadPoolExecutor(1), store, ProxySize(STORED), close_store=False
            ) as executor:
                held = await executor.submit(functions.make_bytes, LARGE)
                await settled(executor)
                waiting = [executor.submit(length, data(n)) for n in (1, 2)]
            assert [await one for one in waiting] == [LARGE] * 2
            del held
            assert store.usage() == (0, 0)

    loop_runs(main)


def test_a_map_runs_ahead_as_far_as_there_is_room():
    async def body(executor):
        seen = 0
        results = executor.map(functions.identity, map(data, range(20)), buffersize=12)
        async for one in results:
            # It does not stand in line before a reader who has other calls made meanwhile.
            assert await executor.submit(length, one) == LARGE
            assert await executor.submit(length, data(seen, LARGE // 4)) == LARGE // 4
            assert executor.store.usage().bytes <= executor.store.quota.limit
            ahead = results.ag_frame.f_locals["ahead"]
            most.append(len(ahead.pending))
            seen += 1
        assert seen == 20
        assert max(most) == 3  # and what the reader has

    most = []
    drive(
        body,
        ThreadPoolExecutor(2),
        store=bounded(4 * LARGE + LARGE // 2, full_timeout=None),
    )


def test_a_map_does_not_wait_for_room_behind_what_it_holds():
    def shrunk(some):
        return some if len(some) < LARGE else len(some)

    async def body(executor):
        items = [data(0, LARGE // 2), data(1, LARGE // 2), data(2, 2 * LARGE)]
        async for _ in executor.map(shrunk, items, buffersize=3):
            # The last item is larger than one might have thought; it goes ahead all the same.
            assert await executor.submit(length, data(9, LARGE // 4)) == LARGE // 4

    drive(
        body,
        ThreadPoolExecutor(2),
        store=bounded(2 * LARGE + LARGE // 2, full_timeout=None),
    )


# run_in_executor


def make_store_executor(lazy):
    return StoreExecutor(ProcessPoolExecutor(2), should_proxy=ProxySize(STORED), lazy=lazy)


@pytest.mark.parametrize("lazy", [True, False])
def test_run_in_executor(lazy):
    async def main(executor):
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(executor, functions.make_bytes, LARGE)
        assert is_proxy(result) == lazy
        assert result == bytes(LARGE)
        del result
        assert await loop.run_in_executor(executor, length, bytes(LARGE)) == LARGE
        with pytest.raises(ValueError, match="boom") as caught:
            await loop.run_in_executor(executor, functions.boom, 1)
        assert "in boom" in str(caught.value.__cause__)
        with pytest.raises(SerializationError):
            await loop.run_in_executor(executor, length, functions.Unpicklable())
        with pytest.raises(Exception, match="not to be made here"):
            await loop.run_in_executor(executor, functions.return_breaking)

    with make_store_executor(lazy) as executor:
        loop_runs(main, executor)


@pytest.mark.parametrize("lazy", [True, False])
def test_run_in_executor_can_be_cancelled(lazy, gate, tmp_path):
    async def main(executor):
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(executor, hold, gate.files, bytes(LARGE))
        await gate.started()
        pending = loop.run_in_executor(executor, mark, tmp_path / "a", bytes(LARGE))
        pending.cancel()
        running.cancel()
        for one in (running, pending):
            with pytest.raises(asyncio.CancelledError):
                await one
        # A handler of the loop, which hands cancelling on, has to have run.
        await asyncio.sleep(0)
        gate.open()

    store = Store("test", FileConnector())
    with store:
        base = ThreadPoolExecutor(1)
        with StoreExecutor(
            base, store, ProxySize(STORED), lazy=lazy, close_store=False
        ) as executor:
            loop_runs(main, executor)
        assert store.usage() == (0, 0)
    assert "a" not in os.listdir(tmp_path)


def test_what_is_stored_is_told_without_holding_up_the_loop():
    async def main():
        async with AsyncStoreExecutor(ThreadPoolExecutor(1), None, ProxySize(STORED)) as executor:
            handle = executor.submit(bytes, LARGE)
            result = await handle
            leaks = await executor.leaks()
            assert [one.key for one in leaks] == [proxyexec.reference_of(result).key]
            del handle, result
            gc.collect()
            assert len(await executor.leaks()) == 0

    loop_runs(main)
