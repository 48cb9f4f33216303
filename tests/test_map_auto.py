"""``map(..., chunksize="auto")`` yields what ``map`` does, in fewer messages; and never hangs."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, Future

import pytest

import proxyexec
from proxyexec import ProcessPoolExecutor, ProxyAlways, ProxySize, ProxyType, StoreExecutor
from proxyexec._chunks import _CHUNK_SECONDS, _GROWTH, _MOST_ITEMS, automatic_results
from proxyexec._record import bare
from proxyexec._task import HEAVIEST_BYTES, TimedOutcome
from proxyexec.errors import SerializationError
from tests import functions
from tests.conftest import settle

FORK = multiprocessing.get_context("fork")
CANCEL = {"cancel_futures": True}
POLICIES = [None, ProxySize(200), ProxyType(list), ProxyAlways(), lambda obj: type(obj) is str]


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, FORK) as pool:
        pool.submit(functions.add, 1, 1).result()
        yield pool


@pytest.fixture
def impatient(monkeypatch):
    """A pool whose workers leave the rest of each chunk after one call."""
    monkeypatch.setattr(proxyexec._task, "LONGEST_SECONDS", -1.0)
    with ProcessPoolExecutor(2, FORK) as pool:
        pool.submit(functions.add, 1, 1).result()
        yield pool


def reciprocal(n):
    return 6 // n


def describe(n):
    """Results of many kinds: small, large, containers, none."""
    return [n, "x" * (n % 300), [n] * (n % 70), bytes(n % 500), None, 1 << n][n % 6]


def mark(path, n):
    open(f"{path}/{n}", "x").close()  # which is once
    return n


def extend(items, _):
    items.append(1)
    return items


def extend_own(n, kept=[]):  # noqa: B006 - kept in the worker, on purpose
    kept.append(n)
    return [kept, kept] if n % 2 else (kept,)


def make_bytes_after(n, _):
    return bytes(n)


def arrives_as(x):
    return proxyexec.is_proxy(x), proxyexec.extract(x)


def mark_and_divide(path, n):
    mark(path, n)
    return 6 // (n - 50)


def meet(path, n, others=2):
    """Wait until the first items have been started."""
    mark(path, n)
    while not all(os.path.exists(f"{path}/{other}") for other in range(others)):
        time.sleep(0.001)
    return n


def wait_at(number, release, n):
    while n == number and not os.path.exists(release):
        time.sleep(0.001)
    return n


def die_at(number, n):
    return functions.die() if n == number else n


def die_when(release):
    wait_at(0, release, 0)
    functions.die()


def leave_at(number, kind, n):
    if n == number:
        raise kind
    return n


class OddError(Exception):
    """Cannot be made again from its arguments, as many users' cannot."""

    def __init__(self, one, other):
        super().__init__(one)


def raise_odd(n):
    raise OddError(1, 2)


def raise_unpicklable(n):
    raise ValueError(functions.Unpicklable())


@pytest.mark.parametrize("length", [0, 1, 2, 7, 100, 3000])
def test_results_come_in_order(pool, length):
    numbers = itertools.count(5)
    results = pool.map(functions.add, range(length), numbers, chunksize="auto")
    assert list(results) == [2 * n + 5 for n in range(length)]
    assert list(pool.map(functions.add, chunksize="auto")) == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lazy", [False, True])
def test_every_policy(policy, lazy):
    base = concurrent.futures.ProcessPoolExecutor(2, FORK)
    with StoreExecutor(base, should_proxy=policy, lazy=lazy, nested=lazy) as executor:
        results = list(executor.map(describe, range(400), chunksize="auto"))
        assert results == list(map(describe, range(400)))
        again = list(executor.map(functions.identity, results, chunksize="auto"))
        assert again == results
        captured = 5
        assert list(executor.map(lambda n: [n, captured], [1, 2, 3], chunksize="auto")) == [
            [n, 5] for n in (1, 2, 3)
        ]
        del results, again
        settle(executor)
        assert executor.store.usage() == (0, 0)


@pytest.mark.parametrize("chunksize", [30, "auto"])
@pytest.mark.parametrize(
    "policy", [*POLICIES, ProxySize(40), ProxyType(int), lambda obj: type(obj) is float]
)
def test_policies_get_what_they_want(policy, chunksize):
    """As one by one, though what is small is seen at a glance to pass."""
    few = [None, True, 1.5, 2j, "x", "é" * 90, b"x", b"x" * 190]
    items = [*few, *(1 << n for n in range(0, 2000, 20)), *few]
    base = concurrent.futures.ProcessPoolExecutor(2, FORK)
    with StoreExecutor(base, should_proxy=policy) as executor:
        one_by_one = list(executor.map(arrives_as, items))
        assert list(executor.map(arrives_as, items, chunksize=chunksize)) == one_by_one
        results = list(executor.map(proxyexec.extract, items, chunksize=chunksize))
        assert [arrives_as(result) for result in results] == one_by_one


def test_no_call_sees_what_another_one_does(pool):
    """Though they travel together, what they have in common is not one object."""
    shared = []
    results = list(pool.map(extend, [shared] * 300, range(300), chunksize="auto"))
    assert results == [[1]] * 300
    assert len(set(map(id, results))) == 300
    with_state = functools.partial(extend, [])
    assert list(pool.map(with_state, range(300), chunksize="auto")) == [[1]] * 300
    assert shared == []


def test_results_are_what_they_were_when_the_call_returned():
    with ProcessPoolExecutor(1, FORK) as pool:
        results = pool.map(extend_own, range(300), chunksize="auto")
        assert [len(result[0]) for result in results] == list(range(1, 301))


def test_a_callable_that_cannot_be_sent_fails_all_items(pool):
    results = pool.map(functions.Unpicklable().__eq__, range(3000), chunksize="auto")
    with pytest.raises(SerializationError, match="the function"):
        next(results)


def test_what_a_worker_leaves_is_sent_again(impatient):
    results = impatient.map(describe, range(300), chunksize="auto")
    assert list(results) == list(map(describe, range(300)))
    impatient.shutdown()
    assert impatient.store.closed


@pytest.mark.parametrize("first", [0, 1, 5, 600, 999])
def test_errors_come_in_their_place(pool, first):
    items = [*[1] * first, 0, *[2] * (999 - first)]
    results = pool.map(reciprocal, items, chunksize="auto")
    assert list(itertools.islice(results, first)) == [6] * first
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "in reciprocal" in str(caught.value.__cause__)  # the remote traceback
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_keeps_no_other_item_from_being_called(pool, tmp_path):
    results = pool.map(mark_and_divide, [str(tmp_path)] * 200, range(200), chunksize="auto")
    pool.submit(functions.add, 1, 1).result()
    while len(os.listdir(tmp_path)) < 200:  # before anybody has read, so nothing is cancelled
        time.sleep(0.001)
    assert len(list(itertools.islice(results, 50))) == 50
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize(
    ("function", "bad", "error", "words"),
    [
        (functions.identity, functions.Unpicklable(), SerializationError, "argument 0 of identity"),
        (functions.identity, functions.BreaksOnArrival(), BrokenExecutor, "argument '?0'?"),
        (functions.with_data, (functions.return_unpicklable, 5), SerializationError, "not for"),
    ],
)
def test_what_is_wrong_with_an_item_fails_that_item(pool, function, bad, error, words):
    good = (functions.worker_pid, 5) if function is functions.with_data else [1]
    items = [good] * 100 + [bad] + [good] * 100
    if function is functions.with_data:
        results = pool.map(function, *zip(*items, strict=True), chunksize="auto")
    else:
        results = pool.map(function, items, chunksize="auto")
    assert len(list(itertools.islice(results, 100))) == 100
    with pytest.raises(error, match=words):
        next(results)
    assert pool.submit(functions.add, 1, 1).result() == 2


def test_errors_that_cannot_travel(pool):
    with pytest.raises(BrokenExecutor, match="OddError"):
        list(pool.map(raise_odd, range(10), chunksize="auto"))
    with pytest.raises(RuntimeError, match="not for sending"):
        list(pool.map(raise_unpicklable, range(10), chunksize="auto"))
    assert pool.submit(functions.add, 1, 1).result() == 2


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_exceptions_of_any_kind(pool, kind):
    function = functools.partial(leave_at, 40, kind)
    results = pool.map(function, range(100), chunksize="auto")
    assert list(itertools.islice(results, 40)) == list(range(40))
    # What StopIteration becomes in a generator, as in the standard library's.
    with pytest.raises(RuntimeError if kind is StopIteration else kind):
        next(results)


def test_slow_items_do_not_wait_for_each_other(pool, tmp_path):
    results = pool.map(meet, [str(tmp_path)] * 4, range(4), chunksize="auto")
    assert list(results) == [0, 1, 2, 3]


def test_all_workers_of_an_executor_that_does_not_tell_get_items(tmp_path):
    class Cluster:
        def __init__(self, pool):
            self.submit = pool.submit
            self.shutdown = pool.shutdown

    base = concurrent.futures.ProcessPoolExecutor(6, FORK)
    with StoreExecutor(Cluster(base)) as executor:
        results = executor.map(meet, [str(tmp_path)] * 6, range(6), [6] * 6, chunksize="auto")
        assert list(results) == list(range(6))


def test_timeouts(pool, tmp_path):
    release = tmp_path / "release"
    function = functools.partial(wait_at, 1, str(release))
    results = pool.map(function, range(3), chunksize="auto", timeout=30)
    assert next(results) == 0
    results.close()
    results = pool.map(function, range(3), chunksize="auto", timeout=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(results)
    release.touch()


def test_what_is_there_can_be_read_later():
    with ProcessPoolExecutor(1, FORK) as pool:
        results = pool.map(functions.add, range(2), range(2), chunksize="auto", timeout=0)
        settle(pool)
        assert list(results) == [0, 2]


def test_items_are_drawn_at_once_without_a_buffersize(pool):
    drawn = []
    items = (drawn.append(n) or n for n in range(500))
    results = pool.map(functions.identity, items, chunksize="auto")
    assert drawn == list(range(500))
    assert list(results) == drawn


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_an_iterable_that_has_ended_is_asked_no_more(pool, chunksize):
    drawn = []
    items = (drawn.append(n) or n for n in itertools.count())
    results = pool.map(functions.add, items, [1, 2], chunksize=chunksize, buffersize=10)
    assert list(results) == [1, 3]
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("buffersize", [1, 3, 50, 1000])
def test_buffersize_bounds_the_items_under_way(pool, buffersize):
    drawn = []
    items = (drawn.append(n) or n for n in itertools.count())
    results = pool.map(functions.identity, items, chunksize="auto", buffersize=buffersize)
    for number in range(2500):
        assert len(drawn) <= number + buffersize
        assert next(results) == number
    results.close()
    few = pool.map(functions.identity, iter(range(20)), chunksize="auto", buffersize=buffersize)
    assert list(few) == list(range(20))


def test_tasks_start_while_items_are_drawn(pool, tmp_path):
    def items():
        for n in range(30):
            yield n
            while not os.path.exists(f"{tmp_path}/{n}"):
                time.sleep(0.001)

    results = pool.map(mark, [str(tmp_path)] * 30, items(), chunksize="auto")
    assert list(results) == list(range(30))


def test_an_iterable_that_raises_leaves_nothing(pool):
    def broken():
        yield from range(50)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        pool.map(functions.identity, broken(), chunksize="auto")
    results = pool.map(functions.identity, broken(), chunksize="auto", buffersize=10)
    with pytest.raises(KeyError, match="broken"):
        list(results)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("buffersize", [None, 200])
def test_shutting_down_runs_what_was_drawn(tmp_path, wait, buffersize):
    pool = ProcessPoolExecutor(2, FORK)
    results = pool.map(
        mark, [str(tmp_path)] * 1000, range(1000), chunksize="auto", buffersize=buffersize
    )
    manager = pool._executor_manager_thread
    pool.shutdown(wait)
    if buffersize is None:
        assert list(results) == list(range(1000))
    manager.join()
    assert len(os.listdir(tmp_path)) == (buffersize or 1000)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(mark, [1], [1], chunksize="auto")


def test_held_items_are_run_when_the_executor_is_shut_down(tmp_path):
    with ProcessPoolExecutor(1, FORK) as pool:
        results = pool.map(
            mark, [str(tmp_path)] * 5000, range(5000), chunksize="auto", buffersize=1000
        )
        while pool._tasks._in_flight:
            time.sleep(0.001)
        # Chunks have become large: the next 20 items do not fill one.
        consumed = list(itertools.islice(results, 20))
        pool.shutdown()
        assert len(os.listdir(tmp_path)) == 20 + 1000
        with pytest.raises(RuntimeError, match="after shutdown"):
            next(results)
    assert consumed == list(range(20))


@pytest.mark.parametrize("wait", [True, False])
def test_cancelling_when_shut_down(tmp_path, wait):
    release = tmp_path / "release"
    pool = ProcessPoolExecutor(2, FORK)
    function = functools.partial(wait_at, 0, str(release))
    results = pool.map(function, range(100_000), chunksize="auto")
    manager = pool._executor_manager_thread
    shutting_down = threading.Thread(target=pool.shutdown, args=(wait,), kwargs=CANCEL)
    shutting_down.start()
    while not pool._tasks.ended:
        time.sleep(0.001)
    release.touch()
    shutting_down.join()
    with pytest.raises(CancelledError):
        list(results)
    manager.join()


@pytest.mark.parametrize("read", ["not", "half", "all"])
def test_a_pool_that_breaks(read):
    pool = ProcessPoolExecutor(2, FORK)
    results = pool.map(functools.partial(die_at, 700), range(5000), chunksize="auto")
    if read == "half":
        next(results)
    if read == "all":
        with pytest.raises(BrokenExecutor):
            list(results)
        with pytest.raises(BrokenExecutor):
            pool.map(functions.identity, [1], chunksize="auto")
    pool.shutdown()
    while not pool.store.closed:  # by the thread that evicts
        time.sleep(0.001)


@pytest.mark.parametrize("same", [True, False])
def test_futures_of_a_pool_that_breaks(pool, tmp_path, same):
    """Only its own breaking ends a map; others fail an item."""
    release = tmp_path / "release"
    with ProcessPoolExecutor(2, FORK) as breaking:
        dying = breaking.submit(die_when, str(release))
        items = [*range(30), dying, *range(31, 60)]
        function = functools.partial(wait_at, 2, str(tmp_path / "dead"))
        results = (breaking if same else pool).map(function, items, chunksize="auto")
        release.touch()
        assert dying.exception()
        (tmp_path / "dead").touch()
        if not same:
            assert list(itertools.islice(results, 30)) == list(range(30))
        with pytest.raises(BrokenExecutor):
            list(results)


@pytest.mark.parametrize("end", ["close", "close half-way", "drop half-way", "drop unread"])
def test_ending_early(pool, tmp_path, end):
    results = pool.map(mark, [str(tmp_path)] * 6000, range(6000), chunksize="auto")
    if "half-way" in end:
        assert next(results) == 0
    if "close" in end:
        results.close()
    del results
    gc.collect()
    assert pool.submit(functions.add, 1, 1).result() == 2
    if end == "drop unread":  # as with the standard library: map is called for its effects
        while len(os.listdir(tmp_path)) < 6000:
            time.sleep(0.001)
    else:
        assert len(os.listdir(tmp_path)) < 6000


def test_results_that_nobody_can_read_are_not_kept(pool, tmp_path):
    release = tmp_path / "release"
    gate = pool.submit(functions.touch_then_wait, str(tmp_path / "started"), str(release))
    pool.map(make_bytes_after, [300_000] * 10, [*[None] * 9, gate], chunksize="auto")
    while len(pool._tasks._in_flight) > 3:  # the gate, what waits for it, and the map itself
        time.sleep(0.001)
    assert pool.store.usage() == (0, 0)
    release.touch()
    while pool._tasks._in_flight:
        time.sleep(0.001)
    assert pool.store.usage() == (0, 0)


def test_an_error_that_is_kept_keeps_no_results(pool):
    results = pool.map(functions.make_bytes, [-1, *[300_000] * 10], chunksize="auto")
    while pool._tasks._in_flight:
        time.sleep(0.001)
    with pytest.raises(ValueError, match="negative") as caught:
        list(results)
    assert pool.store.usage() == (0, 0)
    del caught


def test_an_error_that_is_kept_keeps_no_results_that_come_later(pool, tmp_path):
    release = tmp_path / "release"
    results = pool.map(
        make_after, [tmp_path / "missing", release], [-1, 1_000_000], chunksize="auto"
    )
    with pytest.raises(ValueError, match="negative") as caught:
        list(results)
    release.touch()
    while pool._tasks._in_flight:
        time.sleep(0.001)
    assert pool.store.usage() == (0, 0)
    del caught


def make_after(path, size):
    while size > 0 and not path.exists():
        time.sleep(0.001)
    return bytes(size)


def test_results_are_freed_as_they_are_consumed(pool):
    for result in pool.map(functions.make_bytes, [300_000] * 6, chunksize="auto"):
        assert len(result) == 300_000
        del result
    settle(pool)
    assert pool.store.usage() == (0, 0)


def test_callables_are_not_kept_alive(pool):
    carrier = functions.Carrier([1])
    dropped = weakref.ref(carrier)
    results = pool.map(carrier, range(30), chunksize="auto")
    assert len(list(results)) == 30
    del carrier, results
    settle(pool)
    gc.collect()
    assert dropped() is None


@pytest.mark.parametrize("read", [True, False])
def test_an_executor_that_nobody_holds_ends_after_the_map(tmp_path, read):
    """Even if its results are held."""
    pool = ProcessPoolExecutor(2, FORK)
    dropped = weakref.ref(pool)
    results = pool.map(mark, [str(tmp_path)] * 3000, range(3000), chunksize="auto")
    manager = pool._executor_manager_thread
    del pool
    if read:
        assert list(results) == list(range(3000))
    manager.join(60)
    gc.collect()
    assert dropped() is None
    assert list(results) == ([] if read else list(range(3000)))


def test_futures_are_items(pool, tmp_path):
    release = str(tmp_path / "release")
    gate = pool.submit(functions.touch_then_wait, str(tmp_path / "started"), release)
    futures = [pool.submit(functions.make_list, n) for n in range(20)]
    late = pool.submit(lambda *_: [7], gate)
    results = pool.map(functions.total, [*futures, late, *futures], chunksize="auto")
    open(release, "x").close()
    sums = [sum(range(n)) for n in range(20)]
    assert list(results) == [*sums, 7, *sums]


def test_items_do_not_wait_for_the_futures_of_others(pool, tmp_path):
    release = tmp_path / "release"
    gate = pool.submit(functions.touch_then_wait, str(tmp_path / "started"), str(release))
    blocked = [pool.submit(lambda n, _: n, n, gate) for n in range(20)]
    items = [*blocked, *range(20, 120)]
    results = pool.map(mark, [str(tmp_path)] * 120, items, chunksize="auto")
    while not all(os.path.exists(f"{tmp_path}/{n}") for n in range(20, 120)):
        time.sleep(0.001)
    release.touch()
    assert list(results) == list(range(120))


@pytest.mark.parametrize("how", ["failed", "fails", "cancelled", "is cancelled"])
def test_futures_without_a_result_fail_in_their_place(pool, tmp_path, how):
    release, started = tmp_path / "release", tmp_path / "started"
    gate = pool.submit(functions.touch_then_wait, str(started), str(release))
    failed = pool.submit(functions.boom, gate)
    good = [pool.submit(functions.make_list, 3) for _ in range(30)]
    for one in good:
        one.result()
    if how == "cancelled":
        assert failed.cancel()
    if how == "failed":
        release.touch()
        assert failed.exception()
    results = pool.map(functions.total, [*good, failed, *good], chunksize="auto")
    if how == "is cancelled":
        assert failed.cancel()
    release.touch()
    assert list(itertools.islice(results, 30)) == [3] * 30
    with pytest.raises(CancelledError if "cancelled" in how else ValueError):
        next(results)


@pytest.mark.parametrize("number", [0, 3, 9])
def test_submit_may_raise(number):
    """Also in a callback, where nobody is there to see it."""

    class Refusing(ProcessPoolExecutor):
        submits = 0

        def submit(self, fn, /, *args, **kwargs):
            self.submits += 1
            if self.submits > number:
                raise LookupError("no more")
            return super().submit(fn, *args, **kwargs)

    with Refusing(2, FORK) as pool, pytest.raises(LookupError, match="no more"):
        list(pool.map(functions.identity, range(100_000), chunksize="auto"))
    assert pool.submits == number + 1


def map_in_a_child(n):
    with ProcessPoolExecutor(1, FORK) as pool:
        return sum(pool.map(functions.add, range(n), range(n), chunksize="auto"))


def drop_held():
    held.clear()
    return True


held = []


def test_maps_in_forked_children(pool):
    """Also where one was forked while another thread had a map's lock, and drops that map."""
    half_way = pool.map(functions.identity, range(1000), chunksize="auto")
    assert next(half_way) == 0
    lock = half_way._cancel.__self__._changed
    held.append(half_way)
    del half_way
    locked, forked = threading.Event(), threading.Event()

    def hold():
        with lock:
            locked.set()
            forked.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    with ProcessPoolExecutor(1, FORK) as children:
        in_child = children.submit(map_in_a_child, 500)
        forked.set()
        holder.join()
        assert in_child.result() == 2 * sum(range(500))
        assert children.submit(drop_held).result()
    assert list(held.pop()) == list(range(1, 1000))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("shut_down", ["pool.shutdown(wait=False)", "pass", "del pool"])
def test_the_end_of_the_program_waits(tmp_path, method, shut_down):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "from proxyexec import ProcessPoolExecutor\n"
        "from tests.test_map_auto import mark\n"
        "if __name__ == '__main__':\n"
        f"    pool = ProcessPoolExecutor(2, multiprocessing.get_context('{method}'))\n"
        f"    pool.map(mark, ['{tmp_path}'] * 500, range(500), chunksize='auto')\n"
        f"    {shut_down}\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [sys.executable, str(program)],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert len(os.listdir(tmp_path)) == 501


def test_in_a_pool_of_threads_a_chunk_is_one_item():
    barrier = threading.Barrier(4)
    with proxyexec.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: (barrier.wait(), n)[1], range(8), chunksize="auto")) == [
            *range(8)
        ]


@pytest.mark.parametrize(
    ("chunksize", "error"),
    [("fast", ValueError), (0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)],
)
def test_other_chunksizes_are_refused(pool, chunksize, error):
    with pytest.raises(error, match='"auto"'):
        pool.map(functions.identity, [1], chunksize=chunksize)


class Recorded:
    """Takes chunks as an executor does; the test says what they come to, and how long they took.

    Stands in for the pool where the test is about times.
    """

    def __init__(self):
        self.waiting = []
        self.lengths = []
        self.meanwhile = lambda: None

    def submit(self, chunk):
        future = Future()
        self.waiting.append((future, chunk))
        self.lengths.append(len(chunk))
        self.meanwhile()
        return future

    def come_to(self, seconds, called=None):
        """Settle the oldest chunk, ``seconds`` for each item."""
        future, chunk = self.waiting.pop(0)
        if future.done():
            return
        results = [item[0] for item in chunk[:called]]
        future.set_result(TimedOutcome(results, seconds * len(results)))


@pytest.fixture
def recorded():
    return Recorded()


@pytest.fixture
def start(recorded, pool):
    def start(items, buffersize=None, workers=2):
        return automatic_results(recorded.submit, [items], None, buffersize, pool._tasks, workers)

    yield start
    while recorded.waiting:
        recorded.come_to(1e-6)


def test_chunks_grow_by_a_factor_at_most(recorded, start):
    results = start(range(10**6))
    assert recorded.lengths == [1] * 4
    for _ in range(20):
        recorded.come_to(1e-6)
    lengths = recorded.lengths
    for number, length in enumerate(lengths):
        measured = lengths[: max(1, number - 3)]
        assert length <= _GROWTH * max(measured)
    assert max(lengths) == _MOST_ITEMS
    results.close()


def test_chunks_of_slow_items_are_single_ones(recorded, start):
    results = start(range(100))
    for _ in range(100):
        recorded.come_to(_CHUNK_SECONDS)
    assert recorded.lengths == [1] * 100
    assert list(results) == list(range(100))


def test_chunks_shrink_at_once_and_what_is_left_comes_first(recorded, start):
    results = start(range(100_000))
    while len(recorded.waiting[0][1]) < 100:
        recorded.come_to(1e-6)
    _, chunk = recorded.waiting[0]
    recorded.come_to(1.0, called=10)
    assert recorded.waiting[-1][1] == [chunk[10]]
    recorded.waiting.append(recorded.waiting.pop(0))  # another chunk takes its time
    while len(recorded.waiting[0][1]) > 1:
        recorded.waiting.append(recorded.waiting.pop(0))
    recorded.come_to(1.0)
    assert recorded.waiting[-1][1] == [chunk[11]]
    results.close()


def test_a_broken_pool_is_given_nothing_and_left_alone(recorded, start):
    """It settles futures with its locks held, and one that somebody cancels stops some from that."""
    results = start(range(100))
    recorded.come_to(1e-6)
    (broken, _), *others = recorded.waiting
    broken.set_exception(BrokenExecutor("broken"))
    assert next(results) == 0
    with pytest.raises(BrokenExecutor, match="broken"):
        next(results)
    assert len(recorded.lengths) == 5
    assert not any(future.cancelled() for future, _ in others)


def test_futures_of_a_map_that_is_closed_are_cancelled(recorded, start):
    results = start(range(100))
    results.close()
    assert all(future.cancelled() for future, _ in recorded.waiting)


def test_a_chunk_that_is_sent_while_the_map_is_closed_is_cancelled(recorded, start):
    results = start(range(100))
    recorded.meanwhile = results.close
    recorded.come_to(1e-6)
    assert len(recorded.waiting) == 4
    assert all(future.cancelled() for future, _ in recorded.waiting)


def test_what_submit_raised_is_not_kept(recorded, start):
    """Else the map, which keeps it, would refer to itself, through its traceback."""
    results = start(range(100))

    def refuse():
        raise OddError(1, 2)

    recorded.meanwhile = refuse
    recorded.come_to(1e-6)
    for _ in recorded.waiting[:]:
        recorded.come_to(1e-6)
    try:
        list(results)
    except OddError as error:
        dropped = weakref.ref(error)
    assert dropped() is None


def test_chunks_are_not_larger_than_what_was_taken_of_one(recorded, start):
    results = start(range(100_000))
    while len(recorded.waiting[0][1]) < 100:
        recorded.come_to(1e-6)
    recorded.come_to(1e-6, called=10)  # it was a lot to send
    assert recorded.lengths[-1] == 10
    results.close()


def test_all_workers_end_together(recorded, start):
    results = start(range(20_000))
    while recorded.waiting:
        recorded.come_to(1e-5)
    # A chunk may take 20 ms, which is 2000; the last ones are of those that take a millisecond.
    assert max(recorded.lengths) > 1000
    assert max(recorded.lengths[-4:]) <= 100
    assert list(results) == list(range(20_000))


@pytest.mark.parametrize("kind", [bytes, lambda n: [bytes(n)]])
def test_messages_are_not_large(kind):
    sizes = []

    class Watched(concurrent.futures.ProcessPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            sizes.append(len(pickle.dumps(args)))
            return super().submit(fn, *args, **kwargs)

    # No object twice, which would be sent once.
    items = [*[b""] * 3000, *[kind(HEAVIEST_BYTES // 8) for _ in range(50)]]
    with StoreExecutor(Watched(2, FORK)) as executor:  # which stores nothing
        assert list(executor.map(len, items, chunksize="auto")) == list(map(len, items))
    assert max(sizes) < 1.2 * HEAVIEST_BYTES


def test_workers_leave_the_rest_of_what_is_much_or_takes_long(pool, monkeypatch):
    task = proxyexec._task.TimedChunkTask(bytes, bytes, pool._context, b"", "key")
    outcome = bare(task(*[(100_000,)] * 1000))
    assert len(outcome.results) == HEAVIEST_BYTES // 100_000 + 1
    assert outcome.seconds >= proxyexec._task.LONGEST_SECONDS
    monkeypatch.setattr(proxyexec._task, "LONGEST_SECONDS", -1.0)
    assert bare(task((1,), (2,))).results == [bytes(1)]


def test_tiny_tasks_take_few_messages():
    class Watched(ProcessPoolExecutor):
        submits = 0

        def submit(self, fn, /, *args, **kwargs):
            self.submits += 1
            return super().submit(fn, *args, **kwargs)

    with Watched(2, FORK) as pool:
        for buffersize in (None, 1000):
            pool.submits = 0
            numbers = range(20_000)
            results = pool.map(
                functions.add, numbers, numbers, chunksize="auto", buffersize=buffersize
            )
            assert sum(results) == 2 * sum(numbers)
            assert pool.submits < 2000
