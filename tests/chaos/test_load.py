"""Many tasks through one executor, submitted by many threads: nothing grows, nothing is wrong.

What is counted does not depend on time; benchmarks/load.py shows how memory goes with it.
"""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import threading
from collections import deque

import pytest

from proxyexec import ProxySize, StoreExecutor
from tests.chaos.census import descriptors
from tests.chaos.places import KINDS, place_of
from tests.conftest import settle

LONG = "PROXYEXEC_LONG" in os.environ

THREADS = 8

# Of each thread, in each of two rounds.
SMALL_TASKS, LARGE_TASKS = (6_250, 125) if LONG else (625, 13)

# What a thread has under way, at most.
SMALL_WINDOW, LARGE_WINDOW = 100, 3

# How many segments a process may have open; see proxyexec_connectors._segments.
SEGMENTS = 3 * 64

# How many connections to Redis a process may have open.
CONNECTIONS = 17


def increase(n):
    return n + 1


def backwards(data):
    return bytes(reversed(data[:1000])) + data[1000:]


def megabyte(thread, n):
    return b"%16d%16d" % (thread, n) + bytes(1_000_000 - 32)


def small_tasks(executor, thread):
    """Submit small tasks, with some under way; return how many results were right."""
    pending = deque()
    right = 0
    for n in range(SMALL_TASKS):
        number = 1_000_000 * thread + n
        pending.append((executor.submit(increase, number), number + 1))
        if len(pending) > SMALL_WINDOW:
            right += is_right(pending)
    while pending:
        right += is_right(pending)
    return right


def large_tasks(executor, thread):
    """Submit tasks that get 1 MB and return 1 MB; return how many results were right."""
    pending = deque()
    right = 0
    for n in range(LARGE_TASKS):
        data = megabyte(thread, n)
        pending.append((executor.submit(backwards, data), backwards(data)))
        if len(pending) > LARGE_WINDOW:
            right += is_right(pending)
    while pending:
        right += is_right(pending)
    return right


def is_right(pending):
    future, expected = pending.popleft()
    return future.result(60) == expected


def in_threads(function, executor):
    barrier = threading.Barrier(THREADS)

    def call(n):
        barrier.wait(60)
        return function(executor, n)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        return sum(threads.map(call, range(THREADS)))


def open_now(executor, url):
    """What client and workers have open: objects, and everything else by what it is."""
    processes = [None, *executor._base._processes]
    found = [descriptors(process) for process in processes]
    directory = url.removeprefix("file://")
    objects = [
        sum(number for name, number in one.items() if name.startswith(directory)) for one in found
    ]
    others = [
        {name: number for name, number in one.items() if not name.startswith(directory)}
        for one in found
    ]
    return objects, others


CASES = list(itertools.product(KINDS, [True, False]))


@pytest.mark.parametrize(("kind", "lazy"), CASES if LONG else CASES[::2] + CASES[1:2])
def test_nothing_grows_and_nothing_is_wrong(kind, lazy):
    with place_of(kind) as place:
        base = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
        executor = StoreExecutor(base, place.url, ProxySize("100 kB"), lazy=lazy, close_store=False)
        with executor:
            executor.submit(increase, 1).result()  # workers are there, with nothing of threads
            opened = []
            for _ in range(2):  # the first time, connections are made
                assert in_threads(large_tasks, executor) == THREADS * LARGE_TASKS
                assert in_threads(small_tasks, executor) == THREADS * SMALL_TASKS
                settle(executor)
                gc.collect()
                assert executor.store.usage() == (0, 0)
                assert place.objects() == []
                opened.append(open_now(executor, place.url))
            for one in (*opened[0][1], *opened[1][1]):
                assert one.pop("socket:", 0) <= CONNECTIONS
            assert opened[1][1] == opened[0][1]
            assert max(opened[1][0]) <= (SEGMENTS if kind == "tmpfs" else 2)
        executor.store.close()
        assert place.residue() == []
