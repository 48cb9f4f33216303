"""Programs that end in the middle of it, and calls that are cancelled by the hundred.

Each program runs once with the bare pool and once with ours around it; both must end alike.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

import proxyexec
from proxyexec import ProxyAlways, Store, StoreExecutor, extract
from tests import functions
from tests.chaos.census import descriptors, family
from tests.chaos.places import KINDS, place_of
from tests.chaos.programs import program, say
from tests.conftest import PoolEnd, wait_for_evictions, wait_for_pools

LONG = "PROXYEXEC_LONG" in os.environ

# Large enough for a segment, where there are any.
PAYLOAD = bytes(300_000)

BASES = ("fork", "spawn", "thread")


def make_base(kind, workers=2):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(workers)
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context(kind))


def make_executor(base, url, lazy):
    """The bare pool, or ours around it."""
    bare = make_base(base)
    return bare if url is None else StoreExecutor(bare, url, ProxyAlways(), lazy=lazy)


# The programs, and what runs in their workers.


def mark(data, place, n):
    """Leave a trace of the call, and return as much as it got."""
    open(f"{place}/{n}", "x").close()
    return data + bytes(1)


def raise_it(kind):
    raise kind


def raise_a_key_error():
    raise KeyError("in a task")


def exit_with_5():
    sys.exit(5)


def end_by_returning(executor, futures):
    pass


def end_with_all_in_hand(executor, futures):
    """Module globals go last of all."""
    main = sys.modules["__main__"]
    main.kept = executor, futures, futures[0].result(), executor.submit(len, PAYLOAD)


def end_by_exiting(executor, futures):
    sys.exit(3)


def end_by_exiting_with_words(executor, futures):
    sys.exit("that is all")


def end_by_an_error(executor, futures):
    raise ValueError("uncaught")


def end_by_an_interrupt(executor, futures):
    os.kill(os.getpid(), signal.SIGINT)
    futures[-1].result()


def end_by_a_signal(executor, futures):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    os.kill(os.getpid(), signal.SIGTERM)
    futures[-1].result()


def end_by_what_a_task_raised(executor, futures):
    executor.submit(raise_a_key_error).result()


def end_by_a_task_that_exits(executor, futures):
    executor.submit(exit_with_5).result()


def end_by_a_task_that_is_interrupted(executor, futures):
    executor.submit(raise_it, KeyboardInterrupt).result()


def end_after_shutting_down(executor, futures):
    executor.shutdown(wait=False)


def end_after_cancelling(executor, futures):
    executor.shutdown(wait=False, cancel_futures=True)


def end_in_a_thread(executor, futures):
    """A thread is still submitting when the main one has ended."""

    def submit_more():
        threading.main_thread().join()
        try:
            executor.submit(len, PAYLOAD)
        except RuntimeError:  # from some moment on, nothing is taken any more
            pass

    threading.Thread(target=submit_more).start()


def end_with_a_broken_pool(executor, futures):
    executor.submit(os._exit, 1).exception()


ENDS = {
    name.removeprefix("end_"): end
    for name, end in list(globals().items())
    if name.startswith("end_")
}

# With these bases, the short form has these ends only.
SHORT = {
    "spawn": {"by_returning", "by_an_interrupt"},
    "thread": {"by_returning", "with_all_in_hand", "by_exiting", "by_an_interrupt", "in_a_thread"},
}

# After these, what has not started may not be run.
SOME_ARE_NOT_RUN = {"after_cancelling", "with_a_broken_pool"}


def run(end, base, url, lazy, place):
    """Submit and map, read some of it, drop some, and end in one of many ways."""
    executor = make_executor(base, url, lazy)
    futures = [executor.submit(mark, PAYLOAD, place, n) for n in range(6)]
    executor.submit(mark, PAYLOAD, place, 6)
    numbers = range(7, 11)
    executor.map(mark, itertools.repeat(PAYLOAD), itertools.repeat(place), numbers)
    auto = {} if url is None else {"chunksize": "auto"}
    numbers = range(11, 15)
    executor.map(mark, itertools.repeat(PAYLOAD), itertools.repeat(place), numbers, **auto)
    say(len(futures[0].result()))
    ENDS[end](executor, futures)


def ends_of(end, base, url, lazy):
    """Run a program; return its exit code, what it said, and which calls were made."""
    with family() as ours, tempfile.TemporaryDirectory() as place:
        with program(run, end, base, url, lazy, place, family=ours) as one:
            assert one.hear() == len(PAYLOAD) + 1
            code, errors = one.ended()
        left = ours.members()
        assert not left
        # Lines of tracebacks are of other files where there are others in between.
        words = [line for line in errors.splitlines() if not line[:1].isspace()]
        return code, without_race(words), sorted(map(int, os.listdir(place)))


def without_race(words):
    """Leave out what pools of processes say of any program, now and then.

    Some versions of them, when the program ends, wake a thread up that is just closing its pipe.
    """
    if words[-1:] == ["OSError: [Errno 9] Bad file descriptor"] and "threading" in words[-3]:
        return words[:-3]
    return words


@functools.cache
def bare_ends_of(end, base):
    return ends_of(end, base, None, lazy=False)


def cases():
    kinds, lazies = itertools.cycle(KINDS), itertools.cycle([True, False])
    for base, end in itertools.product(BASES, ENDS):
        if base == "thread" and end == "with_a_broken_pool":
            continue
        if LONG:
            yield from ((end, base, *rest) for rest in itertools.product(KINDS, [True, False]))
        elif base == "fork" or end in SHORT[base]:
            yield end, base, next(kinds), next(lazies)


@pytest.mark.parametrize(("end", "base", "kind", "lazy"), list(cases()))
def test_programs_end_as_with_the_bare_pool(end, base, kind, lazy):
    code, words, made = bare_ends_of(end, base)
    with place_of(kind) as place:
        came = ends_of(end, base, place.url, lazy)
        assert (came[0], came[1]) == (code, words)
        if end not in SOME_ARE_NOT_RUN:
            assert came[2] == made == list(range(15))
        assert place.residue() == []


# Storms of cancelled and dropped calls.


def slowly(gate, data):
    """Wait for the gate; return as much as it got."""
    while not os.path.exists(extract(gate)):
        time.sleep(0.001)
    return data + data


def double(data):
    return data + data


@pytest.fixture(params=["thread-lazy", "thread-eager", "fork-lazy", "fork-eager"])
def stormy(request):
    base, _, lazy = request.param.partition("-")
    with place_of("tmpfs") as place:
        executor = StoreExecutor(
            make_base(base), place.url, ProxyAlways(), lazy=lazy == "lazy", close_store=False
        )
        with executor:
            executor.submit(functions.add, [1], [1]).result()  # workers are there
            executor.store.usage()
            yield executor, place
        gc.collect()
        assert executor.store.usage() == (0, 0)
        executor.store.close()
        assert place.residue() == []


def in_threads(function, number=8):
    """Call a function in several threads that start at once; raise what one of them raised."""
    barrier = threading.Barrier(number)

    def call(n):
        barrier.wait(60)
        return function(n)

    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        return list(pool.map(call, range(number)))


def test_cancel_storms(stormy):
    executor, place = stormy
    tasks = 400 if LONG else 40

    def storm(n):
        chance = random.Random(n)
        futures = []
        for m in range(tasks):
            data = bytes([n]) * (300_000 if m % 8 == 0 else 100) + bytes([m % 256])
            futures.append((executor.submit(double, data), data))
            if chance.random() < 0.5:
                chance.choice(futures)[0].cancel()
            if chance.random() < 0.2:
                del futures[chance.randrange(len(futures))]
        cancelled = 0
        for future, data in futures:
            try:
                assert future.result(60) == data + data
            except CancelledError:
                assert future.cancelled()
                cancelled += 1
        return cancelled

    assert sum(in_threads(storm)) > 0
    executor.shutdown()
    gc.collect()
    assert executor.store.usage() == (0, 0)
    assert place.objects() == []


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_maps_that_are_closed_by_the_dozen(stormy, chunksize):
    executor, place = stormy

    def storm(n):
        for m in range(20 if LONG else 4):
            items = [bytes([n, m, k]) * 100 for k in range(30)]
            results = executor.map(double, items, chunksize=chunksize)
            for item in items[: m % 4]:
                assert next(results) == item + item
            if m % 2:
                results.close()
            del results

    in_threads(storm, 4)
    executor.shutdown()
    gc.collect()
    assert executor.store.usage() == (0, 0)
    assert place.objects() == []


@pytest.mark.parametrize("wait", [True, False])
def test_shutting_down_with_cancelling_while_others_submit(stormy, wait, tmp_path):
    """Each call is taken or refused; who is taken gets a result or is cancelled."""
    executor, place = stormy
    gate = str(tmp_path / "gate")
    blocked = [executor.submit(slowly, gate, b"x") for _ in range(2)]
    pool_end = None if isinstance(executor._base, ThreadPoolExecutor) else PoolEnd(executor)
    enough, shut = threading.Barrier(8), threading.Event()

    def storm(n):
        futures = []
        try:
            for m in range(10_000):
                if m == 10:
                    enough.wait(60)
                    if n == 0:
                        executor.shutdown(wait=False, cancel_futures=True)
                        shut.set()
                futures.append(executor.submit(double, [n, m]))
        except RuntimeError as error:
            assert "after shutdown" in str(error)
        assert shut.wait(60)
        open(gate, "w").close()
        if n == 1:
            executor.shutdown(wait=wait, cancel_futures=True)
        cancelled = 0
        for m, future in enumerate(futures):
            try:
                assert future.result(60) == [n, m, n, m]
            except CancelledError:
                cancelled += 1
        return cancelled

    assert sum(in_threads(storm)) > 0
    for future in blocked:
        assert future.cancelled() or future.result(60) == b"xx"
    del blocked, future
    executor.shutdown()
    if pool_end is not None:
        pool_end.wait()
    gc.collect()
    assert executor.store.usage() == (0, 0)
    assert place.objects() == []


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("drop_in", [True, False])
def test_a_pool_that_has_cancelled_keeps_no_results(drop_in, wait, tmp_path):
    """Though it is kept itself."""
    started, release = tmp_path / "started", tmp_path / "release"
    with place_of("tmpfs") as place:
        if drop_in:
            executor = proxyexec.ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
        else:
            executor = StoreExecutor(make_base("fork", 1), place.url, ProxyAlways(), lazy=False)
        running = executor.submit(run_and_return, str(started), str(release))
        pool_end = PoolEnd(executor)
        pending = [executor.submit(double, PAYLOAD) for _ in range(5)]
        while not started.exists():
            time.sleep(0.001)
        pending[-1].add_done_callback(lambda _: release.touch())
        executor.shutdown(wait=wait, cancel_futures=True)
        concurrent.futures.wait([running], 60)
        assert pending[-1].cancelled()
        del running, pending
        pool_end.wait()
        gc.collect()
        wait_for_evictions()
        assert executor.store.closed
        assert place.residue() == []


def run_and_return(started, release):
    functions.touch_then_wait(started, release)
    return bytes(1_000_000)


def test_executors_that_come_and_go_leave_no_descriptor():
    """Shut down or dropped, with calls cancelled, pending, or unread."""
    with place_of("tmpfs") as place:
        before = None
        for n in range(12):
            executor = make_executor("fork" if n % 2 else "thread", place.url, lazy=n % 3 == 0)
            futures = [executor.submit(double, PAYLOAD) for _ in range(4)]
            if n % 4 < 2:
                executor.shutdown(wait=False, cancel_futures=n % 4 == 0)
            for future in futures:
                assert future.cancelled() or len(future.result(60)) == 2 * len(PAYLOAD)
            del future
            del executor, futures
            gc.collect()
            wait_for_pools()
            wait_for_evictions()
            assert place.residue() == []
            if n >= 2:
                before = before or descriptors()
                assert descriptors() == before


def test_stores_that_are_dropped_by_the_dozen():
    with place_of("tmpfs") as place:
        for n in range(30):
            store = Store.from_url(place.url)
            kept = [store.proxy(bytes([n]) * size) for size in (10, 300_000)]
            assert len(kept[1]) == 300_000
            del kept
            del store
        gc.collect()
        wait_for_evictions()
        assert place.residue() == []
