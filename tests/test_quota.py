"""``max_bytes``: who stores more waits for room; nobody waits for himself, and nobody for ever."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from proxyexec import ProxySize, Store, StoreExecutor, reference_of
from proxyexec.errors import StoreClosedError, StoreFullError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests.chaos.census import eventually
from tests.conftest import settle

FORK = multiprocessing.get_context("fork")

# What an object of a test takes, and what comes to it as its envelope.
SIZE = 100_000
OVER = 1000

# Waits that end for another reason than this one.
LONG = 60.0


def data(number=0, size=SIZE):
    """Bytes of which no two have the same content."""
    return number.to_bytes(8, "big") + bytes(size - 8)


def number_of(some):
    return int.from_bytes(some[:8], "big")


def same(some):
    return bytes(some)


def count(some):
    return len(some)


def mark(directory, some):
    open(f"{directory}/{number_of(some)}", "x").close()  # which is once
    return bytes(some)


class Watched(threading.Condition):
    """Says when somebody is about to wait."""

    def __init__(self):
        super().__init__()
        self.waiting = threading.Semaphore(0)

    def wait(self, timeout=None):
        self.waiting.release()
        return super().wait(timeout)


def store_of(objects, timeout=LONG, connector=None):
    """A store with room for so many objects."""
    store = Store(
        "bounded",
        FileConnector() if connector is None else connector,
        max_bytes=objects * (SIZE + OVER),
        full_timeout=timeout,
    )
    store.quota._changed = Watched()
    return store


def waits(store):
    """Wait until somebody waits for room."""
    assert store.quota._changed.waiting.acquire(timeout=30)


def threads(store, workers=1, **options):
    base = concurrent.futures.ThreadPoolExecutor(workers)
    return StoreExecutor(base, store, ProxySize(SIZE // 2), close_store=False, **options)


def processes(store, workers=2, **options):
    base = concurrent.futures.ProcessPoolExecutor(workers, FORK)
    return StoreExecutor(base, store, ProxySize(SIZE // 2), close_store=False, **options)


@contextlib.contextmanager
def in_thread(function, *args) -> Iterator[concurrent.futures.Future]:
    """Run something in a client's thread meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        yield client.submit(function, *args)


def held(executor, event, some):
    """Submit a task that holds its argument until an event."""
    return executor.submit(lambda arg: (event.wait(30), len(arg))[1], some)


# --- waiting -------------------------------------------------------------------------------


def test_a_submit_waits_until_something_is_evicted():
    release = threading.Event()
    with store_of(1) as store, threads(store) as executor:
        first = held(executor, release, data(1))
        with in_thread(executor.submit, count, data(2)) as second:
            waits(store)
            assert not second.done()
            assert store.usage().objects == 1
            release.set()
            assert second.result(30).result(30) == SIZE
        assert first.result() == SIZE
        settle(executor)
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0


def test_who_has_waited_for_long_enough_gets_an_error_that_says_all():
    release = threading.Event()
    with store_of(2, timeout=0) as store, threads(store) as executor:
        first = held(executor, release, data(1, SIZE + 500))
        for _ in range(2):
            error = executor.submit(count, data(3, 2 * SIZE)).exception()
            assert isinstance(error, StoreFullError)
            assert error.what == "argument 0 of count"
            assert error.quota == 2 * (SIZE + OVER)
            assert SIZE < error.taken <= error.quota
            assert 2 * SIZE <= error.needed <= 2 * SIZE + 100
            for fact in (error.what, f"{error.quota:,}", f"{error.taken:,}", f"{error.needed:,}"):
                assert fact in str(error)
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
        release.set()
        assert first.result() == SIZE + 500
        settle(executor)
        assert store.usage() == (0, 0)
        assert executor.submit(count, data(3, 2 * SIZE)).result() == 2 * SIZE


@pytest.mark.parametrize("sizes", [[2 * SIZE], [SIZE, SIZE]])
def test_what_can_never_have_room_fails_at_once(sizes):
    with store_of(1, timeout=None) as store, threads(store) as executor:
        given = [data(number, size) for number, size in enumerate(sizes)]
        error = executor.submit(lambda *args: None, *given).exception()
        assert isinstance(error, StoreFullError)
        assert f"argument {len(sizes) - 1} of" in error.what
        settle(executor)
        assert store.usage() == (0, 0)
        with pytest.raises(StoreFullError, match="an object of type bytes"):
            store.put(data(1, 2 * SIZE))
        assert store.quota._taken == 0


def test_two_calls_of_two_arguments_do_not_wait_for_each_other():
    """Each would have stored one, and would wait for the other's."""
    release = threading.Event()
    inside = threading.Event()
    put = MemoryConnector.put

    class Slow(MemoryConnector):
        def put(self, key, frames):
            put(self, key, frames)
            if not inside.is_set():  # the first argument of the first call
                inside.set()
                assert release.wait(30)

    def three(*args):
        return sum(map(len, args))

    with store_of(2, connector=Slow()) as store, threads(store, 2) as executor:
        with in_thread(executor.submit, three, data(1), data(2)) as one:
            assert inside.wait(30)
            with in_thread(executor.submit, three, data(3), data(4)) as other:
                waits(store)  # in the line, having stored nothing
                assert store.quota._taken < SIZE + OVER
                release.set()
                assert other.result(30).result(30) == 2 * SIZE
            assert one.result(30).result(30) == 2 * SIZE
        settle(executor)
        assert store.usage() == (0, 0)


def test_who_comes_first_goes_first():
    kept = {}
    order = []

    def keep(name, some):
        kept[name] = store.proxy(some)
        order.append(name)

    with store_of(2) as store:
        keep(1, data(1))
        keep(2, data(2))
        with in_thread(keep, "large", data(3, 2 * SIZE)) as large:
            waits(store)
            with in_thread(keep, "small", data(4)) as small:
                waits(store)
                del kept[1]
                waits(store)  # both look, and wait again: there is room for the small one only,
                waits(store)  # whose turn it is not
                assert order == [1, 2]
                del kept[2]
                large.result(30)
                assert order == [1, 2, "large"]
                kept.clear()
                small.result(30)
        kept.clear()
        assert store.usage() == (0, 0)


def test_put_and_proxy_wait_too():
    with store_of(1) as store:
        reference = store.put(data(1))
        with in_thread(store.put, data(2)) as second:
            waits(store)
            store.evict(reference)
            reference = second.result(30)
        with in_thread(store.proxy, data(3)) as third:
            waits(store)
            store.evict(reference)
            assert number_of(third.result(30)) == 3
        del second, third
        gc.collect()
        assert store.usage() == (0, 0)


def test_what_fails_while_it_is_stored_takes_no_room():
    class Failing(MemoryConnector):
        def put(self, key, frames):
            super().put(key, frames)
            raise RuntimeError("the reply was lost")

    with store_of(1, timeout=0, connector=Failing()) as store, threads(store) as executor:
        for number in range(3):
            with pytest.raises(RuntimeError, match="the reply was lost"):
                store.put(data(number))
            assert store.usage() == (0, 0)
            with pytest.raises(RuntimeError, match="the reply was lost"):
                executor.submit(count, data(number)).result()
            assert store.usage() == (0, 0)


# --- who must not wait ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [threads, processes])
def test_a_callback_does_not_wait(make):
    """It runs in the thread that delivers what makes room."""
    submitted = []
    ended = threading.Event()

    def submit_next(future):
        submitted.append(executor.submit(count, data(2)))
        ended.set()

    with store_of(1) as store, make(store, 1) as executor:
        first = executor.submit(same, data(1))  # whose result is held, and takes all
        first.add_done_callback(submit_next)
        assert ended.wait(30)
        assert submitted[0].result(30) == SIZE
        settle(executor)
        assert store.usage().objects == 1
        first.add_done_callback(submit_next)  # which is called at once
        assert submitted[1].result(30) == SIZE


@pytest.mark.parametrize("make", [threads, processes])
def test_a_call_that_waits_for_results_does_not_wait_for_room(make):
    with store_of(1) as store, make(store, 2, lazy=False) as executor:
        one = executor.submit(same, data(1))
        two = executor.submit(max, one, b"", key=number_of_any)
        assert number_of(executor.submit(same, two).result(30)) == 1
        del one, two
        settle(executor)
        assert store.usage() == (0, 0)


def test_what_another_executor_delivers_does_not_wait_there():
    release = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    with store_of(1) as store, threads(store) as executor, StoreExecutor(pool) as other:
        kept = store.proxy(data(1))
        value = other.submit(lambda: (release.wait(30), data(2))[1])
        future = executor.submit(count, value)
        release.set()
        assert future.result(30) == SIZE
        settle(executor)
        del kept
        assert store.usage() == (0, 0)


def number_of_any(some):
    return number_of(some) if some else -1


def test_a_task_of_a_pool_of_threads_does_not_wait():
    """Its own argument, and that of who waits for it, take room until it has ended."""
    with store_of(1) as store, threads(store, 4) as executor:

        def outer(some):
            return executor.submit(count, data(2)).result(30), len(some)

        assert executor.submit(outer, data(1)).result(30) == (SIZE, SIZE)
        assert list(executor.map(outer, [data(3), data(4)])) == [(SIZE, SIZE)] * 2
        settle(executor)
        assert store.usage() == (0, 0)


def test_an_object_that_submits_while_it_is_pickled_does_not_wait_for_itself():
    class Submits:
        def __init__(self, executor):
            self.executor = executor

        def __reduce__(self):
            return count, (data(executor.submit(count, data(2)).result(30), SIZE),)

    with store_of(6) as store, processes(store) as executor:
        assert executor.submit(same_number, Submits(executor), data(1)).result(30) == (SIZE, 1)
        settle(executor)
        assert store.usage() == (0, 0)


def same_number(number, some):
    return number, number_of(some)


# --- results -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [threads, processes])
def test_results_are_counted_and_wait_for_nothing(make):
    with store_of(1, timeout=0) as store, make(store) as executor:
        results = [executor.submit(data, number).result() for number in range(3)]
        settle(executor)
        assert store.usage().objects == 3
        error = executor.submit(count, data(9)).exception()
        assert isinstance(error, StoreFullError)
        assert error.taken >= 3 * SIZE
        assert executor.submit(count, b"stores nothing").result() == 14
        while results:
            assert isinstance(executor.submit(count, data(9)).exception(), StoreFullError)
            results.pop()
            store.usage()
        assert executor.submit(count, data(9)).result() == SIZE
        settle(executor)
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0


def make_two(number):
    return {"a": data(number), "b": data(number + 1)}


def test_parts_of_results_are_counted():
    with store_of(2, timeout=0) as store, processes(store, nested=True) as executor:
        result = executor.submit(make_two, 1).result()
        settle(executor)
        assert store.usage().objects == 2
        assert isinstance(executor.submit(count, data(9)).exception(), StoreFullError)
        del result
        store.usage()
        assert executor.submit(count, data(9)).result() == SIZE


def test_without_ownership_results_are_counted_until_they_are_evicted():
    with store_of(1, timeout=0) as store, threads(store, ownership=False) as executor:
        reference = reference_of(executor.submit(data, 1).result())
        settle(executor)
        assert isinstance(executor.submit(count, data(2)).exception(), StoreFullError)
        store.evict(reference)
        assert executor.submit(count, data(2)).result() == SIZE


def test_what_has_the_same_content_takes_room_once():
    release = threading.Event()
    with store_of(1, timeout=0) as store, threads(store, 2) as executor:
        same_data = [held(executor, release, data(1)) for _ in range(2)]
        release.set()
        assert [future.result() for future in same_data] == [SIZE] * 2


# --- being woken ---------------------------------------------------------------------------


def test_a_shutdown_wakes_who_waits():
    release = threading.Event()
    with store_of(1) as store:
        executor = threads(store)
        first = held(executor, release, data(1))
        with in_thread(executor.submit, count, data(2)) as second:
            waits(store)
            executor.shutdown(wait=False)
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                second.result(30)
        release.set()
        assert first.result(30) == SIZE
        executor.shutdown()
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0


def test_closing_the_store_wakes_who_waits():
    with store_of(1) as store, threads(store) as executor:
        proxy = store.proxy(data(1))
        with in_thread(executor.submit, count, data(2)) as second:
            waits(store)
            store.close()
            assert isinstance(second.result(30).exception(30), StoreClosedError)
        del proxy


def test_an_interrupt_gets_out_of_it_and_leaves_nothing(request):
    release, seen = threading.Event(), threading.Event()

    def interrupt():
        waits(store)
        # Python sees no signal that comes after its last look and before the thread sleeps: send
        # more than one, of which the first that is seen counts.
        while not seen.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def handle(number, frame):
        if not seen.is_set():
            seen.set()
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGINT, handle)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    with store_of(2) as store, threads(store) as executor:
        first = held(executor, release, data(1))
        with in_thread(interrupt), pytest.raises(KeyboardInterrupt):
            executor.submit(max, data(2), data(3))
        assert store.usage().objects == 1
        release.set()
        assert first.result(30) == SIZE
        settle(executor)
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0
        assert number_of(executor.submit(max, data(2), data(3)).result(30)) == 3


# --- map -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [threads, processes])
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
@pytest.mark.parametrize("buffersize", [None, 4])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_map_of_more_than_there_is_room_for(make, chunksize, buffersize, lazy):
    with store_of(3) as store:
        with make(store, lazy=lazy) as executor:
            items = [data(number) for number in range(20)]
            results = executor.map(same, items, chunksize=chunksize, buffersize=buffersize)
            read = 0
            for result in results:  # enumerate() would hold the last one
                assert number_of(result) == read
                read += 1
                del result
            assert read == 20
            settle(executor)
            assert store.usage() == (0, 0)
            assert store.quota._taken == 0


def same_when(release, some):
    while not release.exists():
        time.sleep(0.001)
    return data(number_of(some), 3 * SIZE)


def test_what_comes_first_is_sent_though_results_of_later_items_take_all(tmp_path):
    release = tmp_path / "release"
    with store_of(3) as store, processes(store) as executor:
        items = [data(number) for number in range(9)]
        results = executor.map(same_when, [release] * 9, items, chunksize=3)
        release.touch()  # the first items of two chunks are under way
        for number in range(9):
            assert number_of(next(results)) == number


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_no_iterable_is_asked_again_after_its_end(chunksize):
    class Numbers:
        def __init__(self):
            self.asked = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.asked += 1
            if self.asked == 4:
                raise StopIteration
            return data(self.asked)

    numbers = Numbers()
    with store_of(3) as store, processes(store) as executor:
        results = executor.map(same, numbers, chunksize=chunksize, buffersize=2)
        assert [number_of(result) for result in results] == [1, 2, 3]
    assert numbers.asked == 4


@pytest.mark.parametrize("make", [threads, processes])
@pytest.mark.parametrize("chunksize", [1, "auto"])
@pytest.mark.parametrize("buffersize", [None, 2])
def test_a_map_does_not_wait_for_what_it_holds(make, chunksize, buffersize):
    with store_of(3) as store, make(store) as executor:
        items = [data(0), data(1, 5 * SIZE // 2)]  # the second one is larger than one expects
        results = executor.map(same, items, chunksize=chunksize, buffersize=buffersize)
        # Nobody else holds a result when the next one is asked for, as a loop's variable would.
        assert list(map(number_of, results)) == [0, 1]


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_a_map_whose_results_nobody_reads_runs(tmp_path, chunksize):
    with store_of(2) as store, processes(store) as executor:
        items = [str(tmp_path)] * 10, [data(number) for number in range(10)]
        executor.map(mark, *items, chunksize=chunksize)
        eventually(lambda: len(os.listdir(tmp_path)) == 10, "all tasks are run")
        executor.shutdown()
        assert store.usage() == (0, 0)


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_a_map_that_is_dropped_later_runs(tmp_path, chunksize):
    with store_of(2) as store, processes(store) as executor:
        items = [str(tmp_path)] * 10, [data(number) for number in range(10)]
        results = executor.map(mark, *items, chunksize=chunksize)
        # Results that nobody has read take all there is; in flight is nothing but the map itself.
        eventually(lambda: len(executor._tasks._in_flight) == 1, "the map waits")
        assert 0 < len(os.listdir(tmp_path)) < 10
        del results
        eventually(lambda: len(os.listdir(tmp_path)) == 10, "all tasks are run")
        executor.shutdown()
        assert store.usage() == (0, 0)


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_results_can_be_read_after_the_shutdown(chunksize):
    with store_of(2) as store:
        with processes(store) as executor:
            items = [data(number) for number in range(10)]
            results = executor.map(same, items, chunksize=chunksize)
        assert [number_of(result) for result in results] == list(range(10))
        assert store.usage() == (0, 0)


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_a_map_that_has_to_wait_can_be_cancelled(chunksize):
    with store_of(2) as store:
        executor = processes(store)
        results = executor.map(same, [data(n) for n in range(30)], chunksize=chunksize)
        assert number_of(next(results)) == 0
        executor.shutdown(cancel_futures=True)
        with pytest.raises(concurrent.futures.CancelledError):
            list(results)
        # Shut down in this way, the standard library's pool keeps what its tasks came to.
        del results, executor
        gc.collect()
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0


@pytest.mark.parametrize("chunksize", [1, "auto"])
@pytest.mark.parametrize("buffersize", [None, 4])
def test_results_that_are_kept_leave_no_room(chunksize, buffersize):
    with store_of(3, timeout=0.1) as store:
        with processes(store) as executor:
            items = [data(number) for number in range(20)]
            kept = []
            with pytest.raises(StoreFullError, match="argument 0 of same"):
                kept.extend(executor.map(same, items, chunksize=chunksize, buffersize=buffersize))
            assert [number_of(one) for one in kept] == list(range(len(kept)))
            assert kept
            kept.clear()
            store.usage()
            assert executor.submit(count, items[0]).result() == SIZE
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0


def test_a_program_can_end_while_a_map_waits_for_room():
    program = """
        from concurrent.futures import ProcessPoolExecutor
        from proxyexec import ProxySize, Store, StoreExecutor
        from proxyexec_connectors.file import FileConnector

        def same(some):
            return bytes(some)

        if __name__ == "__main__":
            store = Store("bounded", FileConnector(), max_bytes=300_000)
            executor = StoreExecutor(ProcessPoolExecutor(2), store, ProxySize(50_000))
            results = executor.map(same, [bytes([n]) * 100_000 for n in range(20)])
            print(next(results)[0], flush=True)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


# --- how much ------------------------------------------------------------------------------


def endless():
    return (data(number) for number in itertools.count())


def peak_of(executor, results, steps):
    """Read slower than the pool computes; return the most bytes that were stored."""
    peak = 0
    for number in range(steps):
        settle(executor)  # by now, the pool has done all that it was given
        result = next(results)
        assert number_of(result) == number
        peak = max(peak, executor.store.usage().bytes)
        del result
    results.close()
    executor.shutdown()
    assert executor.store.usage() == (0, 0)
    return peak


@pytest.mark.parametrize("make", [threads, processes])
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_buffersize_bounds_what_an_endless_map_stores(make, chunksize):
    with Store("endless", FileConnector()) as store:
        with make(store) as executor:
            results = executor.map(same, endless(), chunksize=chunksize, buffersize=4)
            peak = peak_of(executor, results, 60)
    # As many tasks, one that has just been drawn, and the result that the reader holds.
    tasks = 4 + 1
    items = tasks * (3 if (chunksize, make) == (3, processes) else 1)
    assert 4 * SIZE <= peak <= (2 * items + 1) * (SIZE + OVER)


@pytest.mark.parametrize("make", [threads, processes])
@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_a_quota_bounds_what_an_endless_map_stores(make, chunksize):
    with store_of(4) as store:
        with make(store) as executor:
            results = executor.map(same, endless(), chunksize=chunksize, buffersize=1000)
            peak = peak_of(executor, results, 60)
        # Each argument that there was room for may have come to a result.
        assert SIZE <= peak <= 2 * store.quota.limit


@pytest.mark.parametrize("chunksize", [1, 5, "auto"])
def test_a_quota_bounds_results_that_nobody_has_read(chunksize):
    with store_of(4) as store, processes(store, 2) as executor:
        results = executor.map(data, range(60), chunksize=chunksize)
        peak = peak_of(executor, results, 60)
        # Two tasks for each worker are under way when it is full.
        under_way = 2 * 2 * (5 if chunksize == 5 else 1)
        assert SIZE <= peak <= store.quota.limit + (under_way + 1) * (SIZE + OVER)


def test_sizes_are_written_as_people_do():
    with Store("one", MemoryConnector(), max_bytes="2 MB") as store:
        assert store.quota.limit == 2_000_000
    with Store.from_url("memory://", max_bytes="2 MB", full_timeout=None) as store:
        assert store.quota.limit == 2_000_000
    with Store("none", MemoryConnector()) as store:
        assert store.quota is None
    for wrong in ({"max_bytes": -1}, {"max_bytes": "much"}, {"full_timeout": -1.0}):
        with pytest.raises(ValueError, match="size|seconds"):
            Store("wrong", MemoryConnector(), **wrong)


# --- all at once ---------------------------------------------------------------------------


def use(executor, numbers, rng):
    """Do one of the things that clients do, and hold nothing afterwards."""

    def fresh(size=None):
        number = next(numbers)
        return number, data(number, size or rng.choice([SIZE // 3, SIZE, 2 * SIZE]))

    number, some = fresh()
    step = rng.randrange(6)
    if step == 0:
        assert number_of(executor.submit(same, some).result()) == number
    elif step == 1:
        pair = fresh(SIZE), fresh(SIZE)
        largest = executor.submit(max, *(one for _, one in pair)).result()
        assert number_of(largest) == max(one for one, _ in pair)
    elif step == 2:
        submitted = concurrent.futures.Future()
        future = executor.submit(count, fresh(SIZE)[1])
        future.add_done_callback(lambda _: submitted.set_result(executor.submit(same, some)))
        assert number_of(submitted.result().result()) == number
    elif step == 3:
        items = [fresh() for _ in range(8)]
        chunksize, buffersize = rng.choice([1, "auto"]), rng.choice([None, None, 3])
        given = [one for _, one in items]
        results = executor.map(same, given, chunksize=chunksize, buffersize=buffersize)
        for number, _ in items:
            assert number_of(next(results)) == number
    elif step == 4:
        executor.map(count, [fresh()[1] for _ in range(6)], chunksize=rng.choice([1, "auto"]))
    else:
        first = executor.submit(same, some)
        assert number_of(executor.submit(same, first).result()) == number


LONG_RUN = os.environ.get("PROXYEXEC_LONG") == "1"


@pytest.mark.parametrize("seed", range(200 if LONG_RUN else 6))
@pytest.mark.parametrize("make", [threads, processes])
@pytest.mark.parametrize("lazy", [False, True])
def test_many_clients_at_once(make, lazy, seed):
    """Nobody waits for so long that an error tells him to stop."""
    numbers = itertools.count(1)
    with store_of(5) as store:

        def client(number):
            rng = random.Random(1000 * seed + number)
            for _ in range(10):
                use(executor, numbers, rng)

        with make(store, lazy=lazy) as executor:
            with concurrent.futures.ThreadPoolExecutor(5) as clients:
                list(clients.map(client, range(5)))
        del executor
        gc.collect()
        assert store.usage() == (0, 0)
        assert store.quota._taken == 0
        assert not store.quota._line
