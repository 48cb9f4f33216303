"""Progress: what is counted when, that a bar is left whatever happens, and nothing else changes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import gc
import itertools
import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import weakref
from pathlib import Path

import pytest

import proxyexec
from proxyexec import ProgressCounts, ProxyAlways, ProxySize, StoreExecutor, progress
from proxyexec.aio import AsyncStoreExecutor
from proxyexec.errors import MissingExtraError
from tests import functions
from tests.chaos.census import eventually
from tests.conftest import PoolEnd, settle


class Seen:
    """Collects counts; fails where two are told at a time."""

    def __init__(self):
        self.counts = []
        self.closed = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, counts):
        assert self._lock.acquire(blocking=False)
        self.counts.append(counts)
        self._lock.release()
        if counts.closed:
            self.closed.set()

    def last(self):
        assert self.closed.wait(60)
        for one, next_one in itertools.pairwise(self.counts):
            assert one != next_one
            assert not one.closed
            assert one.ended <= next_one.ended
            assert one.result_bytes <= next_one.result_bytes
        assert self.counts[0].ended == 0
        return self.counts[-1]


class Gate:
    """A function of a pool of threads that goes on when it is told to."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, item):
        self.entered.release()
        assert self.open.wait(60)
        return item


@pytest.fixture
def threads():
    with proxyexec.ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def processes():
    with proxyexec.ProcessPoolExecutor(2) as pool:
        pool.submit(functions.add, 1, 1).result()
        pool.submit(functions.add, 1, 1).result()
        yield pool


@pytest.fixture(params=["threads", "processes"])
def pool(request, threads, processes):
    return request.getfixturevalue(request.param)


SOURCES = {
    "range": lambda: (range(40), range(50)),
    "generator": lambda: ((n for n in range(40)), range(50)),
    "last": lambda: (itertools.count(), (n for n in range(40))),
    "endless": lambda: (itertools.repeat(1), range(40), itertools.count())[:2],
    "repeated": lambda: (itertools.repeat(1, 40), itertools.count()),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("buffersize", [None, 4])
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_all_calls_of_a_map_are_counted(pool, chunksize, buffersize, source):
    seen = Seen()
    plain = list(map(functions.add, *SOURCES[source]()))
    options = {"chunksize": chunksize, "buffersize": buffersize}
    results = pool.map(functions.add, *SOURCES[source](), progress=seen, **options)
    assert list(results) == plain
    assert seen.last() == ProgressCounts(ended=40, total=40, closed=True)
    if source != "generator" and source != "last":
        assert {counts.total for counts in seen.counts} == {40}


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_a_map_of_nothing_is_counted(pool, chunksize):
    for iterables in ([], [[]], [[], [1]], [iter(())]):
        seen = Seen()
        assert list(pool.map(functions.add, *iterables, progress=seen, chunksize=chunksize)) == []
        assert seen.last() == ProgressCounts(total=0, closed=True)


@pytest.mark.parametrize("shows", [False, None])
def test_a_map_shows_nothing_unless_asked(threads, shows, capsys):
    assert type(threads.map(functions.identity, [1], progress=shows)) is type(
        threads.map(functions.identity, [1])
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_what_failed_is_counted_and_raised_in_its_turn(pool, chunksize):
    seen = Seen()
    futures = pool.map(functions.odd_only, [1, 3, 4, 5], progress=seen, chunksize=chunksize)
    assert next(futures) == 1
    assert next(futures) == 3
    with pytest.raises(ValueError, match="4 is even"):
        next(futures)
    last = seen.last()
    assert last.failed == 1
    assert last.ended + last.cancelled <= 4
    with pytest.raises(StopIteration):
        next(futures)


def test_all_calls_of_a_chunk_that_raises_have_failed(processes):
    seen = Seen()
    results = processes.map(functions.odd_only, [1, 3, 4, 5], progress=seen, chunksize=4)
    with pytest.raises(ValueError, match="4 is even"):
        next(results)
    assert seen.last() == ProgressCounts(ended=4, failed=4, total=4, closed=True)


def test_tasks_are_counted_when_they_end_whoever_reads(threads):
    seen = Seen()
    results = threads.map(functions.identity, range(10), progress=seen)
    assert seen.last() == ProgressCounts(ended=10, total=10, closed=True)
    assert list(results) == list(range(10))


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_a_map_that_is_dropped_unread_is_counted_to_its_end(pool, chunksize):
    for items in (range(20), (n for n in range(20))):
        seen = Seen()
        pool.map(functions.identity, items, progress=seen, chunksize=chunksize)
        assert seen.last() == ProgressCounts(ended=20, total=20, closed=True)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_a_map_that_is_dropped_unread_ends_with_what_was_drawn(processes, chunksize):
    seen = Seen()
    results = processes.map(
        functions.identity, range(100), progress=seen, chunksize=chunksize, buffersize=2
    )
    del results
    gc.collect()
    drawn = 6 if chunksize == 3 else 2
    assert seen.last() == ProgressCounts(ended=drawn, total=drawn, closed=True)


@pytest.mark.parametrize("how", ["close", "drop", "timeout"])
def test_nothing_is_shown_any_more_when_a_map_is_left(threads, how):
    seen, gate = Seen(), Gate()
    gate.open.set()
    results = threads.map(gate, range(10), progress=seen, timeout=0.05 * (how == "timeout") or None)
    if how == "timeout":
        results.close()
        seen, gate = Seen(), Gate()
        results = threads.map(gate, range(10), progress=seen, timeout=0.01)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
    else:
        results.close()
        seen, gate = Seen(), Gate()
        first = threading.Event()

        def work(item):
            if item == 0:
                first.set()
                return item
            return gate(item)

        results = threads.map(work, range(10), progress=seen)
        assert next(results) == 0
        for _ in range(2):
            gate.entered.acquire()
        if how == "close":
            results.close()
        else:
            del results
            gc.collect()
    assert seen.closed.wait(60)
    counts = list(seen.counts)
    assert counts[-1].closed
    assert counts[-1].total == 10
    assert counts[-1].ended == (how != "timeout")
    gate.open.set()
    threads.submit(functions.identity, 1).result()
    assert seen.counts == counts


def test_what_is_wrong_with_a_map_shows_nothing(threads, processes, capsys):
    for wrong in ({"chunksize": "many"}, {"buffersize": 0}):
        seen = Seen()
        with pytest.raises(ValueError, match="size must be"):
            processes.map(functions.identity, [1], progress=seen, **wrong)
        assert seen.counts == []
    seen = Seen()
    with pytest.raises(TypeError, match="not iterable"):
        threads.map(functions.identity, 1, progress=seen)
    assert seen.counts == []
    with pytest.raises(TypeError, match=r"progress must be True, False, or a function .*, not int"):
        threads.map(functions.identity, [1], progress=1)
    assert capsys.readouterr() == ("", "")


def test_an_error_while_drawing_ends_what_is_shown(threads):
    def items():
        yield 1
        raise LookupError("no more")

    seen = Seen()
    with pytest.raises(LookupError, match="no more"):
        threads.map(functions.identity, items(), progress=seen)
    assert seen.last().closed


def test_a_length_that_cannot_be_told_is_none(threads):
    class Unsure(list):
        def __len__(self):
            raise RuntimeError("I do not know")

    seen = Seen()
    assert list(threads.map(functions.identity, Unsure([1, 2]), progress=seen)) == [1, 2]
    assert seen.counts[0].total is None
    assert seen.last() == ProgressCounts(ended=2, total=2, closed=True)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_bytes_are_those_of_results_as_stored(chunksize, lazy):
    base = concurrent.futures.ProcessPoolExecutor(2)
    with StoreExecutor(base, should_proxy=ProxySize("1 kB"), lazy=lazy) as executor:
        seen = Seen()
        results = executor.map(
            functions.make_bytes, [10_000] * 4, progress=seen, chunksize=chunksize
        )
        last = seen.last()
        assert 40_000 < last.result_bytes < 41_000
        assert last.ended == 4
        if lazy:
            assert not any(map(proxyexec.is_resolved, results))
        else:
            assert list(results) == [bytes(10_000)] * 4


def test_bytes_are_those_of_data_that_are_not_stored(threads):
    seen = Seen()
    items = [b"1234567", "abc", [1, 2], 5, None]
    assert list(threads.map(functions.identity, items, progress=seen)) == items
    assert seen.last().result_bytes == 10


def test_a_function_that_raises_is_logged_once_and_reaches_nobody(threads, caplog):
    called = []

    def show(counts):
        called.append(counts)
        raise RuntimeError("no screen")

    caplog.set_level(logging.WARNING, "proxyexec.progress")
    assert list(threads.map(functions.identity, range(5), progress=show)) == list(range(5))
    assert len(called) == 1
    [record] = caplog.records
    assert record.name == "proxyexec.progress"
    assert "not shown any more" in record.message
    assert "no screen" in record.message
    assert record.exc_info is None  # nothing of it keeps frames alive


def test_what_ends_while_counts_are_shown_is_shown_next(threads):
    counts, entered, go_on, closed = [], threading.Event(), threading.Event(), threading.Event()

    def show(one):
        counts.append(one)
        if one.ended == 1:
            entered.set()
            assert go_on.wait(60)
        if one.closed:
            closed.set()

    first, gate = Gate(), Gate()
    results = threads.map(lambda n: first(n) if n else gate(n), [1, *[0] * 9], progress=show)
    first.open.set()
    assert entered.wait(60)  # by the one thread that is free
    gate.open.set()
    assert list(results)[0] == 1
    assert [one.ended for one in counts] == [0, 1]
    go_on.set()
    assert closed.wait(60)
    assert counts[-1] == ProgressCounts(ended=10, total=10, closed=True)


def test_a_function_may_cancel_what_it_is_told_about(threads):
    gate, futures, seen = Gate(), [], Seen()

    def show(counts):
        seen.counts.append(counts)
        if counts.ended == 1:
            for future in futures:
                future.cancel()  # whose callbacks are called in here
        if counts.closed:
            seen.closed.set()

    futures += [threads.submit(gate, 0) for _ in range(8)]
    results = progress(futures, callback=show)
    gate.open.set()
    assert len(list(results)) == 8
    last = seen.last()
    assert last.ended + last.cancelled == 8
    assert last.cancelled == sum(future.cancelled() for future in futures)


def test_results_are_let_go_of_as_they_are_read(threads):
    class Result:
        pass

    results = threads.map(lambda _: Result(), range(3), progress=Seen())
    for result in results:
        dropped = weakref.ref(result)
        del result
        threads.submit(functions.identity, 1).result()  # callbacks of the future have run
        threads.submit(functions.identity, 1).result()
        gc.collect()
        assert dropped() is None


@pytest.mark.parametrize("read", [True, False])
def test_who_shows_counts_and_holds_the_results_is_let_go_of(threads, read):
    class Window:
        def __init__(self):
            self.closed = closed
            self.results = threads.map(functions.identity, range(5), progress=self.show)

        def show(self, counts):
            if counts.closed:
                self.closed.set()

    closed = threading.Event()
    window = Window()
    if read:
        assert next(window.results) == 0
    dropped = weakref.ref(window)
    del window
    gc.collect()
    assert closed.wait(60)
    # Whoever delivered the last result has let go of its future once the next ones are there.
    concurrent.futures.wait([threads.submit(functions.identity, n) for n in range(10)])
    settle(threads)
    gc.collect()
    assert dropped() is None


def test_calls_go_by_the_submit_of_a_subclass():
    class Own(proxyexec.ThreadPoolExecutor):
        submitted = 0

        def submit(self, fn, /, *args, **kwargs):
            self.submitted += 1
            return super().submit(fn, *args, **kwargs)

    with Own(2) as pool:
        seen = Seen()
        assert list(pool.map(functions.identity, range(5), progress=seen)) == list(range(5))
        assert pool.submitted == 5
        assert seen.last().ended == 5


def test_a_map_under_a_quota_is_counted():
    base = concurrent.futures.ProcessPoolExecutor(2)
    store = proxyexec.Store.from_url("file://", max_bytes="300 kB")
    with StoreExecutor(base, store, ProxySize("1 kB"), lazy=False) as executor:
        for buffersize in (None, 3):
            seen = Seen()
            results = executor.map(
                len, (bytes([n]) * 100_000 for n in range(10)), progress=seen, buffersize=buffersize
            )
            assert list(results) == [100_000] * 10
            assert seen.last() == ProgressCounts(ended=10, total=10, closed=True)


def test_calls_of_a_task_group_are_counted(tmp_path):
    base = concurrent.futures.ProcessPoolExecutor(2)
    with StoreExecutor(base, f"file://{tmp_path}/groups", task_group="counted") as executor:
        seen = Seen()
        results = executor.map(functions.identity, range(5), progress=seen)
        assert list(results) == list(range(5))
        assert seen.last() == ProgressCounts(ended=5, total=5, closed=True)
        assert executor.task_count_submitted == 5


def test_calls_that_wait_for_others_are_counted():
    base = concurrent.futures.ProcessPoolExecutor(2)
    with StoreExecutor(base, should_proxy=ProxyAlways()) as executor:
        firsts = [executor.submit(functions.identity, [n]) for n in range(5)]
        for chunksize in (1, "auto"):
            seen = Seen()
            totals = executor.map(functions.total, firsts, progress=seen, chunksize=chunksize)
            assert list(totals) == list(range(5))
            last = seen.last()
            assert (last.ended, last.failed, last.total) == (5, 0, 5)


def test_a_pool_that_breaks_ends_what_is_shown():
    seen = Seen()
    with proxyexec.ProcessPoolExecutor(1) as pool:
        results = pool.map(functions.die, range(3), progress=seen, chunksize="auto")
        with pytest.raises(concurrent.futures.BrokenExecutor):
            next(results)
    last = seen.last()
    assert last.failed == last.ended > 0
    seen = Seen()
    with proxyexec.ProcessPoolExecutor(1) as pool:
        futures = [pool.submit(functions.die) for _ in range(3)]
        assert set(progress(futures, callback=seen)) == set(futures)
    assert seen.last() == ProgressCounts(ended=3, failed=3, total=3, closed=True)


# proxyexec.progress()


def test_futures_of_any_kind_are_yielded_as_they_end(threads, processes):
    with concurrent.futures.ThreadPoolExecutor(1) as plain:
        gate = Gate()
        late = threads.submit(gate, b"late")
        futures = [late, plain.submit(len, b"abc"), processes.submit(functions.add, b"a", b"b")]
        seen = Seen()
        results = progress([*futures, late], callback=seen)
        early = {next(results), next(results)}
        assert early == set(futures[1:])
        gate.open.set()
        assert list(results) == [late]
    assert seen.last() == ProgressCounts(ended=3, total=3, result_bytes=6, closed=True)


def test_futures_that_nobody_reads_are_counted(threads):
    seen = Seen()
    progress((threads.submit(functions.identity, n) for n in range(5)), callback=seen)
    assert seen.counts[0].total is None
    assert seen.last() == ProgressCounts(ended=5, total=5, closed=True)


def test_a_total_is_shown_until_all_futures_are_drawn(threads):
    seen = Seen()
    results = progress((threads.submit(len, "abc") for _ in range(5)), total=7, callback=seen)
    assert seen.counts[0].total == 7
    assert len(list(results)) == 5
    assert seen.last() == ProgressCounts(ended=5, total=5, closed=True)
    seen = Seen()  # fewer than there are
    results = progress((threads.submit(len, "abc") for _ in range(5)), total=2, callback=seen)
    assert len(list(results)) == 5
    assert seen.last() == ProgressCounts(ended=5, total=5, closed=True)


def test_reading_futures_can_be_left_and_has_a_timeout(threads):
    gate = Gate()
    futures = [threads.submit(len, "abc"), threads.submit(gate, 1)]
    for leave in ("break", "close", "timeout"):
        seen = Seen()
        results = progress(futures, callback=seen, timeout=0.01 if leave == "timeout" else None)
        assert next(results) is futures[0]
        if leave == "break":
            del results
            gc.collect()
        elif leave == "close":
            results.close()
        else:
            with pytest.raises(concurrent.futures.TimeoutError):
                next(results)
        assert seen.last() == ProgressCounts(ended=1, total=2, closed=True)
    assert not futures[1].done()  # nothing is cancelled
    gate.open.set()


def test_what_is_no_future_is_refused(threads):
    seen = Seen()
    with pytest.raises(TypeError, match="progress.. takes futures .*, not int"):
        progress([threads.submit(len, "abc"), 5], callback=seen)
    assert seen.last().closed


def test_errors_of_futures_are_counted_and_not_raised(threads):
    seen = Seen()
    futures = [threads.submit(functions.raise_with, "no"), threads.submit(len, "abc")]
    assert set(progress(futures, callback=seen)) == set(futures)
    assert seen.last() == ProgressCounts(ended=2, failed=1, total=2, closed=True)


# asyncio


def test_an_asynchronous_map_is_counted():
    async def main():
        base = concurrent.futures.ProcessPoolExecutor(2)
        async with AsyncStoreExecutor(base, should_proxy=ProxySize("1 kB")) as executor:
            seen = Seen()
            results = executor.map(functions.make_bytes, [10_000] * 5, progress=seen)
            assert [len(one) async for one in results] == [10_000] * 5
            last = seen.last()
            assert (last.ended, last.total) == (5, 5)
            assert 50_000 < last.result_bytes < 51_000

            seen = Seen()
            results = executor.map(functions.odd_only, endless(), progress=seen, buffersize=1)
            assert await anext(results) == 1
            with pytest.raises(ValueError, match="2 is even"):
                await anext(results)
            last = seen.last()
            assert (last.failed, last.closed) == (1, True)

            seen = Seen()
            results = executor.map(functions.identity, endless(), progress=seen, buffersize=2)
            assert await anext(results) == 1
            assert seen.counts[0].total is None
            await results.aclose()
            assert seen.last().closed

    async def endless():
        for number in itertools.count(1):
            yield number

    asyncio.run(main())


# Bars


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)


def test_a_bar_of_tqdm_shows_tasks_bytes_and_failures(threads, capsys):
    pytest.importorskip("tqdm")
    assert len(list(threads.map(functions.make_bytes, [1_000_000] * 5, progress=True))) == 5
    out, error = capsys.readouterr()
    last = error.rsplit("\r", 1)[1]
    assert out == ""
    assert last.startswith("make_bytes: 100%")
    assert "5/5 [" in last
    assert "5 MB (" in last
    assert last.endswith("\n")
    futures = [threads.submit(functions.raise_with, "no"), threads.submit(len, "abc")]
    assert len(list(progress(futures, desc="mine"))) == 2
    last = capsys.readouterr().err.rsplit("\r", 1)[1]
    assert last.startswith("mine: 100%")
    assert "2/2 [" in last
    assert "1 failed" in last


def test_a_bar_of_tqdm_learns_of_the_total(threads, capsys):
    pytest.importorskip("tqdm")
    list(threads.map(functions.identity, (n for n in range(7)), progress=True))
    last = capsys.readouterr().err.rsplit("\r", 1)[1]
    assert "7/7 [" in last
    gate = Gate()
    results = threads.map(gate, (n for n in range(7)), progress=True)
    results.close()
    gate.open.set()
    last = capsys.readouterr().err.rsplit("\r", 1)[1]
    assert "0/7 [" in last
    assert last.endswith("\n")


def test_a_bar_of_a_map_that_never_ends_is_left_when_all_is_dropped(capsys, tmp_path):
    pytest.importorskip("tqdm")
    started, release = str(tmp_path / "started"), str(tmp_path / "release")
    pool = proxyexec.ProcessPoolExecutor(1)
    # A worker has some before they can be cancelled.
    calls = [started, *(str(tmp_path / str(n)) for n in range(100))], [release] * 101
    pool.map(functions.touch_then_wait, *calls, progress=True, chunksize="auto")
    try:
        eventually(lambda: os.path.exists(started), "the first call runs")
        end = PoolEnd(pool)
        pool.shutdown(wait=False, cancel_futures=True)
    finally:
        open(release, "x").close()
    del pool
    end.wait()
    gc.collect()
    shown = capsys.readouterr().err
    assert "/101 [" in shown
    assert shown.endswith("\n")


def test_tqdm_can_be_switched_off_by_its_own_variable(threads, capsys, monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    if tuple(map(int, tqdm.__version__.split(".")[:2])) < (4, 66):
        pytest.skip("it has that variable from 4.66 on")
    code = (
        "import proxyexec\n"
        "with proxyexec.ThreadPoolExecutor(2) as pool:\n"
        "    print(sum(pool.map(abs, (n for n in range(5)), progress=True)))\n"
    )
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("10\n", "")


def test_a_bar_of_rich_is_shown_where_there_is_no_tqdm(threads, capsys, without_tqdm):
    pytest.importorskip("rich")
    gate = Gate()
    first = threads.map(gate, range(3), progress=True)
    second = threads.map(functions.make_bytes, (10**6 for _ in range(4)), progress=True)
    gate.open.set()
    assert list(first) == [0, 1, 2]
    assert len(list(second)) == 4
    print("after")
    out, error = capsys.readouterr()
    assert out == "after\n"  # where it went without a bar
    lines = error.splitlines()
    assert any(line.startswith("make_bytes") and "4/4" in line for line in lines)
    assert any("3/3" in line for line in lines)
    assert list(threads.map(functions.identity, [1, 2], progress=True)) == [1, 2]
    assert "2/2" in capsys.readouterr().err


def test_without_both_libraries_there_is_a_function(threads, without_tqdm, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(MissingExtraError, match=r"a progress bar needs .*proxyexec\[progress\]"):
        threads.map(functions.identity, [1], progress=True)
    with pytest.raises(ImportError):
        progress([])
    seen = Seen()
    assert list(threads.map(functions.identity, [1], progress=seen)) == [1]
    assert seen.last().ended == 1


NOTEBOOK = """
import json
from jupyter_client.manager import start_new_kernel

CELL = '\\n'.join([
    'import proxyexec',
    'with proxyexec.ThreadPoolExecutor(2) as pool:',
    '    items = (10**6 for _ in range(5))',
    '    sizes = [len(one) for one in pool.map(bytes, items, progress=True)]',
    'assert sizes == [10**6] * 5',
])
kernel, client = start_new_kernel(startup_timeout=60, kernel_name="python3")
messages = []
try:
    reply = client.execute_interactive(CELL, output_hook=messages.append, timeout=60)
finally:
    client.stop_channels()
    kernel.shutdown_kernel(now=True)
found = [(one["msg_type"], one["content"]) for one in messages]
print(json.dumps([reply["content"]["status"], found], default=str))
"""


def test_in_a_notebook_it_is_a_widget():
    for library in ("tqdm", "ipykernel", "ipywidgets", "jupyter_client"):
        pytest.importorskip(library)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "connectors")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    status, messages = json.loads(done.stdout)
    assert status == "ok", messages
    kinds = [kind for kind, _ in messages]
    assert "display_data" in kinds
    assert "stream" not in kinds  # nothing is written as text
    states = {}
    for kind, content in messages:
        if kind in ("comm_open", "comm_msg"):
            state = content["data"].get("state", {})
            states.setdefault(content["comm_id"], {}).update(state)
    bars = [one for one in states.values() if one.get("bar_style") == "success"]
    assert [(one["value"], one["max"]) for one in bars] == [(5, 5)]
    # In whatever kind of spaces.
    shown = [" ".join(str(one.get("value")).split()) for one in states.values()]
    assert any("5/5" in text and "5 MB" in text for text in shown), shown


PROGRAM = """
import sys, proxyexec
from tests import functions
from tests.conftest import settle
if sys.argv[1] == "rich":
    sys.modules["tqdm.auto"] = None

if __name__ == "__main__":
    with proxyexec.ProcessPoolExecutor(2) as pool:
        for _ in range(5):
            results = list(pool.map(functions.identity, range(200), progress=True))
            print("read", len(results), flush=True)
        for result in pool.map(functions.identity, range(200), progress=True):
            if result == 3:
                break
        del result
        print("left", flush=True)
        pool.map(functions.identity, range(50), progress=True)
    print("over", flush=True)
"""


@pytest.mark.parametrize("library", ["tqdm", "rich"])
def test_on_a_terminal_each_bar_ends_its_line_before_the_program_goes_on(library, tmp_path):
    pytest.importorskip(library)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    root = Path(__file__).resolve().parent.parent
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "connectors")])
    try:
        with subprocess.Popen(
            [sys.executable, program, library],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    some = os.read(ours, 65536)
                except OSError:  # the end
                    break
                if not some:
                    break
                shown += some
            assert process.wait(60) == 0, shown.decode()
    finally:
        os.close(ours)
    lines = shown.decode().split("\n")
    said = [line.strip("\r") for line in lines]
    for text in ["read 200"] * 5 + ["left", "over"]:
        # By itself on its line, but for what moves or shows the cursor.
        assert any(line.endswith(text) and "/" not in line for line in said), shown
        said = said[next(i for i, line in enumerate(said) if line.endswith(text)) + 1 :]
    assert shown.count(b"200/200") >= 5, shown
    assert b"50/50" in shown
    if library == "rich":
        assert shown.count(b"\x1b[?25h") == shown.count(b"\x1b[?25l")  # the cursor is there again


UNREAD = """
    import os

    from proxyexec import ThreadPoolExecutor, progress

    reader, writer = os.pipe()
    os.dup2(writer, 2)


    def work(number):
        if number == 1:
            os.close(reader)
        return number


    with ThreadPoolExecutor(1) as pool:
        print(list(pool.map(work, range(4), progress=True)))
        print(len(list(progress([pool.submit(abs, -1), pool.submit(abs, -2)]))))
"""


def test_a_bar_that_nobody_reads_holds_up_nobody(tmp_path):
    pytest.importorskip("tqdm")
    program = tmp_path / "unread.py"
    program.write_text(textwrap.dedent(UNREAD), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "TQDM_MININTERVAL": "0"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["[0, 1, 2, 3]", "2"]
