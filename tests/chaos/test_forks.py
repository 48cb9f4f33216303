"""Processes that own objects are forked: the child evicts nothing, and nothing waits for ever."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback

import pytest

import proxyexec
from proxyexec import ProxyAlways, Store, StoreExecutor, clone, extract
from tests import functions
from tests.chaos.census import family
from tests.chaos.places import KINDS, place_of
from tests.chaos.programs import hear, program, say

LONG = "PROXYEXEC_LONG" in os.environ
FORK = multiprocessing.get_context("fork")

# A child that takes longer than this, in seconds, waits for ever.
PATIENCE = 60

SMALL, LARGE = b"small", bytes(300_000)


class Owner:
    """A process with objects of all kinds: made by hand, results, in flight.

    Args:
        url: of the place.
        base: a bare pool.
    """

    def __init__(self, url, base):
        self.store = Store.from_url(url)
        self.executor = StoreExecutor(base, self.store, ProxyAlways(), close_store=False)
        self.proxies = [self.store.proxy(SMALL), self.store.proxy(LARGE)]
        self.results = [self.executor.submit(double, data).result() for data in (SMALL, LARGE)]
        self.futures = [self.executor.submit(double, data) for data in (SMALL, LARGE)]
        concurrent.futures.wait(self.futures)
        self.half_way = self.executor.map(double, [SMALL, LARGE])
        next(self.half_way)
        self.looked_at = extract(self.store.proxy(LARGE))

    def drop(self):
        """Let go of all, and have it collected."""
        self.__dict__.clear()
        gc.collect()

    def check(self):
        """Fetch everything anew."""
        assert [clone(one) for one in self.proxies] == [SMALL, LARGE]
        assert [clone(one) for one in self.results] == [2 * SMALL, 2 * LARGE]
        assert [clone(one.result()) for one in self.futures] == [2 * SMALL, 2 * LARGE]
        assert self.looked_at == LARGE


def double(data):
    return data + data


def settled_usage(owner):
    """What there is once tasks have let go of their arguments."""
    ended = threading.Event()
    owner.executor.submit(functions.add, 0, 0).add_done_callback(lambda _: ended.set())
    assert ended.wait(PATIENCE)
    return owner.store.usage()


# How children end, each after it has dropped all.


def leave(owner):
    os._exit(0)


def exit_by_the_interpreter(owner):
    sys.exit(0)  # the rest of the program, and its hooks, run in the child


def be_killed(owner):
    os.kill(os.getpid(), signal.SIGKILL)


def shut_down(owner):
    owner.executor.shutdown()
    owner.store.close()
    os._exit(0)


CHILDREN = {child.__name__: child for child in (leave, exit_by_the_interpreter, be_killed)}


def fork(function):
    """Fork a child that calls a function, and then ends at the latest; return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(PATIENCE)
        function()
        status = 0
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def fork_children(url, base):
    """Own objects; fork children that drop them and end; then look whether all is there."""
    owner = Owner(url, make_base(base, 1))  # tasks end in order
    usage = settled_usage(owner)
    statuses = {}
    for name, end in CHILDREN.items():

        def drop_and_end(end=end):
            owner.check()
            owner.drop()
            end(owner)

        statuses[name] = os.waitpid(fork(drop_and_end), 0)[1]
    statuses["shut_down"] = os.waitpid(fork(functools.partial(shut_down, owner)), 0)[1]
    for function in (owner.drop, owner.check):
        process = FORK.Process(target=function)
        process.start()
        process.join()
        statuses[f"multiprocessing: {function.__name__}"] = process.exitcode
    assert settled_usage(owner) == usage
    owner.check()
    say(statuses)
    hear()
    assert owner.executor.submit(double, SMALL).result() == 2 * SMALL
    owner.executor.shutdown()
    store = owner.store
    owner.drop()
    assert store.usage() == (0, 0)


def make_base(kind, workers=2):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(workers)
    return concurrent.futures.ProcessPoolExecutor(workers, FORK)


@pytest.mark.parametrize("base", ["fork", "thread"])
@pytest.mark.parametrize("kind", KINDS)
def test_children_that_end_evict_nothing(kind, base):
    with place_of(kind) as place, family() as ours:
        with program(fork_children, place.url, base, family=ours) as owner:
            statuses = owner.hear()
            assert {name: status for name, status in statuses.items() if status} == {
                "be_killed": signal.SIGKILL
            }
            assert len(statuses) == 6
            there = place.objects()
            assert len(there) >= 6
            owner.tell()
            code, errors = owner.ended()
            assert code == 0
            # A child that ends as programs do fails to join the workers of its parent's pool, and
            # multiprocessing says so, of any pool.
            assert "proxyexec" not in errors
        assert place.residue() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_stores_nothing_by_its_parents_executor(kind):
    """Nobody would ever evict it."""

    def submit_in_the_child():
        future = executor.submit(double, LARGE)
        assert isinstance(future.exception(PATIENCE), ValueError)
        assert "owned by another process" in str(future.exception())
        with pytest.raises(ValueError, match="owned by another process"):
            next(executor.map(double, [LARGE]))

    with place_of(kind) as place:
        store = Store.from_url(place.url)
        with StoreExecutor(make_base("fork"), store, ProxyAlways(), close_store=False) as executor:
            executor.submit(functions.add, 1, 1).result()
            usage = store.usage()
            assert os.waitpid(fork(submit_in_the_child), 0)[1] == 0
            assert store.usage() == usage
            assert executor.submit(double, SMALL).result() == 2 * SMALL
        gc.collect()
        assert store.usage() == (0, 0)
        store.close()
        assert place.residue() == []


# Forks while other threads are in the midst of it.


class Busy:
    """Threads that submit, map, read and drop until the context ends."""

    def __init__(self, executor, number=3):
        self.executor = executor
        self.rounds = 0
        self._over = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(number)
        self._number = number

    def __enter__(self):
        self._running = [self._pool.submit(self._work, n) for n in range(self._number)]
        return self

    def __exit__(self, *_):
        self._over.set()
        try:
            for one in self._running:
                one.result(PATIENCE)
        finally:
            self._pool.shutdown()

    def _work(self, n):
        for m in itertools.count():
            if self._over.is_set():
                return
            small, large = b"%d-%d" % (n, m), bytes([n, m % 256]) * 150_000
            futures = [self.executor.submit(double, data) for data in (small, large, LARGE)]
            futures[2].cancel()
            proxy = self.executor.store.proxy(large)
            assert futures[0].result(PATIENCE) == small + small
            assert extract(futures[1].result(PATIENCE)) == large + large
            mapped = self.executor.map(double, [small] * 5, chunksize=("auto", 1, 2)[m % 3])
            assert next(mapped) == small + small
            assert proxy == large
            del futures, proxy, mapped
            self.rounds += 1


def work_in_a_child(url, kept):
    """Read what the parent holds, drop all, and have a store and an executor of one's own."""
    assert clone(kept[0]) == LARGE
    kept.clear()
    gc.collect()
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), url, ProxyAlways(), lazy=False
    ) as own:
        assert own.submit(double, LARGE).result(PATIENCE) == 2 * LARGE
        assert list(own.map(double, [SMALL] * 3, chunksize=2)) == [2 * SMALL] * 3
    own.store.close()  # now, and not soon: the child ends without the interpreter's hooks


@pytest.mark.parametrize("base", ["fork", "thread"])
@pytest.mark.parametrize("kind", KINDS)
def test_children_that_are_forked_while_other_threads_submit(kind, base):
    with place_of(kind) as place:
        store = Store.from_url(place.url)
        with StoreExecutor(make_base(base), store, ProxyAlways(), close_store=False) as executor:
            executor.submit(functions.add, 1, 1).result()
            kept = [store.proxy(LARGE)]
            with Busy(executor):
                children = [
                    fork(functools.partial(work_in_a_child, place.url, list(kept)))
                    for _ in range(100 if LONG else 8)
                ]
                statuses = [os.waitpid(child, 0)[1] for child in children]
            assert set(statuses) == {0}
            assert clone(kept[0]) == LARGE
            del kept
        gc.collect()
        assert store.usage() == (0, 0)
        store.close()
        assert place.residue() == []


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_pools_that_are_forked_while_other_threads_submit(kind, lazy):
    """Also by threads that submit: a pool forks its workers at the first call."""
    with place_of(kind) as place:
        store = Store.from_url(place.url)
        with StoreExecutor(make_base("fork"), store, ProxyAlways(), close_store=False) as executor:
            executor.submit(functions.add, 1, 1).result()
            kept = store.proxy(LARGE)
            with Busy(executor, 2) as busy:
                for n in range(50 if LONG else 5):
                    # The new pool has the store in common with the old one, or one of its own.
                    theirs = store if n % 2 else place.url
                    other = StoreExecutor(
                        make_base("fork"),
                        theirs,
                        ProxyAlways(),
                        lazy=lazy,
                        close_store=theirs != store,
                    )
                    with other, Busy(other, 2) as others:
                        while not others.rounds:
                            assert extract(other.submit(double, kept).result(PATIENCE)) == 2 * LARGE
                    del other, others
            assert busy.rounds
            assert kept == LARGE
            del kept, busy
        gc.collect()
        assert store.usage() == (0, 0)
        store.close()
        assert place.residue() == []


def test_the_drop_in_pool_forked_by_each_of_many_threads():
    def program(n):
        with proxyexec.ProcessPoolExecutor(1, FORK) as pool:
            data = bytes([n]) * 1_000_000
            assert pool.submit(double, data).result(PATIENCE) == data + data
            assert list(pool.map(double, [data, b"x"])) == [data + data, b"xx"]

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(program, range(40 if LONG else 8)))


class Held:
    """Locks that another thread holds while this one forks."""

    def __init__(self, locks):
        self._locks = locks
        self._held, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def __enter__(self):
        self._thread.start()
        assert self._held.wait(PATIENCE)

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _hold(self):
        with contextlib.ExitStack() as stack:
            for lock in self._locks:
                stack.enter_context(lock)
            self._held.set()
            self._over.wait(PATIENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_no_lock_is_missed_in_a_child(kind):
    """Whatever locks other threads hold at the moment of the fork."""
    with place_of(kind) as place:
        store = Store.from_url(place.url, cache_bytes="1 MB")
        with StoreExecutor(
            make_base("thread"), store, ProxyAlways(), close_store=False
        ) as executor:
            kept = [store.proxy(LARGE), executor.submit(double, SMALL).result()]
            unread = [clone(one) for one in kept]
            locks = [
                store._leases._lock,
                store._contents._lock,
                store._cache._lock,
                executor._tasks.lock,
                proxyexec._store._attached_lock,
            ]
            if kind == "redis":
                locks.append(store.connector._host_cache._lock)

            def use_everything():
                assert unread[1] == 2 * SMALL
                executor.shutdown(wait=False)
                unread.clear()
                work_in_a_child(place.url, kept)
                store.close()

            with Held(locks):
                child = fork(use_everything)
            assert os.waitpid(child, 0)[1] == 0
            assert unread[0] == LARGE
            del kept, unread, use_everything
        gc.collect()
        assert store.usage() == (0, 0)
        store.close()
        assert place.residue() == []
