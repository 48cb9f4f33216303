"""Several hosts: what goes over which network, and what is fetched how often.

A Dask scheduler, two hosts with two workers each, a Redis server and a client, each on a host of
its own; see :mod:`tests.engines.hosts`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")
pytest.importorskip("distributed")
np = pytest.importorskip("numpy")

from distributed import Client

from proxyexec import ProxySize, StoreExecutor
from tests.chaos.census import PATIENCE, eventually
from tests.chaos.programs import Program, hear, say
from tests.engines.dask_cluster import bytes_of
from tests.engines.hosts import Cluster, Host, cut, network, slowed
from tests.redis_server import require_redis
from tests.test_examples import ROOT, scripts_of, write

# An array of 20 MB.
LENGTH = 2_500_000
SIZE = 8 * LENGTH

# What may come to a host besides objects, for a task or two.
LITTLE = 50_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    redis_server = require_redis()
    with network() as made:
        yield Cluster(made, redis_server, tmp_path_factory.mktemp("hosts"))


# --- what runs on the workers ---------------------------------------------------------------


def double(array):
    return array * 2


def changed_total(array):
    """Change what was given, and tell what it comes to: always the same, if nobody else did so."""
    array += 1
    return float(array.sum())


def double_when_told(array, here: str, go: str):
    Path(here).touch()
    eventually(lambda: os.path.exists(go), "the test goes on")
    return array * 2


# --- what runs on the client's host ---------------------------------------------------------


def serve(scheduler: str, url: str) -> None:
    """Do what the test tells."""
    with Client(scheduler, timeout=PATIENCE) as client:
        client.wait_for_workers(4, PATIENCE)
        with StoreExecutor(client, url, ProxySize("100 kB"), lazy=False) as executor:
            user = User(client, executor)
            while (told := hear()) is not None:
                method, *arguments = told
                say(getattr(user, method)(*arguments))


class User:
    """Has objects and tasks, by names."""

    def __init__(self, client: Client, executor: StoreExecutor) -> None:
        self._client, self._executor = client, executor
        self._arrays: dict[str, Any] = {}
        self._futures: dict[str, Any] = {}

    def wait_for_workers(self) -> None:
        """Wait until all are there; the names of others are not known to the scheduler."""
        self._client.wait_for_workers(4, PATIENCE)

    def keep(self, name: str, start: int, length: int) -> None:
        """Store an array."""
        self._arrays[name] = self._executor.store.proxy(numbers(start, length))

    def drop(self, name: str) -> int:
        """Hold an array no longer; return how many objects are stored."""
        del self._arrays[name]
        return self._executor.store.usage().objects

    def submit(self, task: str, worker: str, function: str, name: str, *more: Any) -> None:
        """Give a worker an array that is stored."""
        self._futures[task] = self._executor.submit(
            globals()[function], self._arrays[name], *more, workers=[worker]
        )

    def are_done(self, *tasks: str) -> bool:
        return all(self._futures[task].done() for task in tasks)

    def outcome(self, task: str) -> Any:
        """Wait for a task; return what it came to, or its error."""
        future = self._futures.pop(task)
        error = future.exception(PATIENCE)
        if error is not None:
            return [type(error).__name__, str(error)]
        result = future.result()
        return float(result.sum()) if isinstance(result, np.ndarray) else result

    def move(self, start: int, length: int) -> bool:
        """Have a new array doubled on one host, and that once more on another."""
        array = numbers(start, length)
        doubled = self._executor.submit(double, array, workers=["left-0"])
        again = self._executor.submit(double, doubled, workers=["right-0"])
        return all(
            bool((future.result(PATIENCE) == times * array).all())
            for future, times in ((doubled, 2), (again, 4))
        )


def numbers(start: int, length: int):
    return np.arange(start, start + length, dtype=float)


# --- the test's side of it ------------------------------------------------------------------


class Remote:
    """The user on the client's host: what is called here is done there."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getattr__(self, method: str):
        def ask(*arguments):
            self._program.tell([method, *arguments])
            return self._program.hear()

        return ask

    def call(self, worker: str, function: str, name: str) -> Any:
        """Run a task, and return what it came to."""
        self.submit("called", worker, function, name)
        return self.outcome("called")


@contextlib.contextmanager
def user_of(cluster: Cluster, options: str = "") -> Iterator[Remote]:
    url = cluster.redis_url + options
    with cluster.program(serve, cluster.scheduler_url, url) as program:
        yield Remote(program)
        program.tell(None)
        assert program.ended()[0] == 0


def total(start: int, length: int, added: int = 0) -> float:
    return float(numbers(start + added, length).sum())


def objects(cluster: Cluster, host: Host) -> list[str]:
    return [path for path in cluster.cached(host) if not path.endswith(".lock")]


def sessions(cluster: Cluster, host: Host) -> set[str]:
    return {os.path.dirname(path) for path in objects(cluster, host)}


# --- what goes where ------------------------------------------------------------------------


def test_data_move_through_redis_only(cluster):
    hosts = (cluster.store, cluster.client, cluster.left, cluster.right)
    scheduler, seen = [], []
    with user_of(cluster) as user:

        def move(length):
            before = [host.traffic() for host in hosts]
            assert user.move(length, length) is True
            seen.append([host.traffic() - then for host, then in zip(hosts, before)])

        # Small ones are stored as well; the first of them has workers and connections made ready.
        for length in (LENGTH // 100, LENGTH // 100, LENGTH):
            action = functools.partial(move, length)
            scheduler.append(bytes_of(action, lambda: sum(cluster.scheduler.traffic())))
    assert scheduler[2] - scheduler[1] < 10_000
    # What each has received and sent: the client sends one array and receives two, the left host
    # receives one and sends one, and so does the right one; all of it from and to the server.
    expected = [(3, 4), (2, 1), (1, 1), (1, 1)]
    for traffic, counts in zip(seen[2], expected, strict=True):
        for bytes_, count in zip(traffic, counts, strict=True):
            assert count * SIZE < bytes_ < (count + 0.1) * SIZE


def test_the_program_of_the_documentation(cluster, tmp_path):
    [script] = scripts_of(ROOT / "docs" / "engines" / "hosts.md")
    before = cluster.scheduler.traffic(), cluster.left.traffic(), cluster.right.traffic()
    done = cluster.run(write(script, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    after = cluster.scheduler.traffic(), cluster.left.traffic(), cluster.right.traffic()
    scheduler, left, right = (one - then for one, then in zip(after, before, strict=True))
    # Its 20 tasks are for both hosts or for one, of which each fetches the 8 MB once.
    assert 8e6 < left.received + right.received < 18e6
    assert max(left.received, right.received) < 9e6
    assert scheduler.received + scheduler.sent < 1e6


# --- a host that cannot reach the server ----------------------------------------------------


@pytest.fixture(scope="class")
def user(cluster):
    """One who does not wait for long."""
    with user_of(cluster, "?timeout=1") as user:
        yield user


def assert_says_who_is_missing(cluster: Cluster, error: str, message: str) -> None:
    assert error == "ConnectorUnavailableError"
    assert f"redis://{cluster.store.address}:6379/0 is not available" in message
    assert cluster.password not in message


class TestCutOff:
    """One session for all of it, in which an outage is over before the next one begins."""

    @pytest.mark.parametrize("how", ["unreachable", "silent"])
    def test_a_host_cut_off(self, cluster, user, how):
        user.keep("a", 0, LENGTH)
        with cut(cluster.left, cluster.store, how):
            user.submit("here", "left-0", "changed_total", "a")
            user.submit("there", "right-0", "changed_total", "a")
            assert user.outcome("there") == total(0, LENGTH, 1)
            assert_says_who_is_missing(cluster, *user.outcome("here"))
        for worker in ("left-0", "left-1"):
            assert user.call(worker, "changed_total", "a") == total(0, LENGTH, 1)
        assert user.drop("a") == 0

    def test_a_host_cut_off_while_it_fetches(self, cluster, user):
        user.keep("a", 0, LENGTH)
        with slowed(cluster.store, "16mbit"):
            user.submit("here", "left-0", "changed_total", "a")
            eventually(lambda: is_fetching(cluster, cluster.left), "a part has come")
            with cut(cluster.left, cluster.store, "silent"):
                outcome = user.outcome("here")
        assert_says_who_is_missing(cluster, *outcome)
        assert objects(cluster, cluster.left) == []
        assert user.call("left-1", "changed_total", "a") == total(0, LENGTH, 1)
        assert user.drop("a") == 0

    def test_a_host_cut_off_from_where_its_result_goes(self, cluster, user, tmp_path):
        here, go = (str(tmp_path / name) for name in ("here", "go"))
        user.keep("a", 0, LENGTH)
        user.submit("doubled", "left-0", "double_when_told", "a", here, go)
        eventually(lambda: os.path.exists(here), "the task has what it was given")
        with cut(cluster.left, cluster.store, "silent"):
            Path(go).touch()
            assert_says_who_is_missing(cluster, *user.outcome("doubled"))
        user.submit("doubled", "left-0", "double_when_told", "a", here, go)
        assert user.outcome("doubled") == 2 * total(0, LENGTH)
        assert user.drop("a") == 0


# --- what a host keeps ----------------------------------------------------------------------


def test_a_host_fetches_an_object_once(cluster):
    with user_of(cluster) as user:
        user.keep("a", 0, LENGTH)
        user.keep("small", 0, 100)
        for worker in ("left-0", "left-1", "right-0", "right-1"):
            user.call(worker, "double", "small")
        before = cluster.left.traffic()
        assert user.call("left-0", "changed_total", "a") == total(0, LENGTH, 1)
        first = cluster.left.traffic() - before
        assert SIZE < first.received < SIZE * 1.1
        before = cluster.left.traffic()
        for worker in ("left-1", "left-0", "left-1"):
            # Each changes it, and none sees that another one did.
            assert user.call(worker, "changed_total", "a") == total(0, LENGTH, 1)
        again = cluster.left.traffic() - before
        assert again.received < LITTLE
        # Both at once.
        before = cluster.right.traffic()
        for number in range(4):
            user.submit(f"task {number}", f"right-{number % 2}", "changed_total", "a")
        for number in range(4):
            assert user.outcome(f"task {number}") == total(0, LENGTH, 1)
        both = cluster.right.traffic() - before
        assert SIZE < both.received < SIZE * 1.1
        [kept] = objects(cluster, cluster.left)
        # What the client has evicted goes when something else comes.
        assert user.drop("a") == 1
        user.keep("b", 1, LENGTH)
        assert user.call("left-1", "changed_total", "b") == total(1, LENGTH, 1)
        [other] = objects(cluster, cluster.left)
        assert other != kept


def test_it_keeps_no_more_than_it_may(cluster):
    limit = 30_000_000
    length = 750_000
    names = [f"array {number}" for number in range(16)]
    with user_of(cluster, f"?host_cache={limit}") as user:
        for number, name in enumerate(names):
            user.keep(name, number, length)
        tasks = [(worker, name) for name in names for worker in ("left-0", "left-1")]
        for worker, name in tasks:
            user.submit(worker + name, worker, "changed_total", name)
        most = 0
        while not user.are_done(*(worker + name for worker, name in tasks)):
            most = max(most, cluster.left.shared_bytes())
        # What a task has is its own until it has ended, and until the worker has let go of it.
        assert most < limit + 4 * 8 * length
        for worker, name in tasks:
            assert user.outcome(worker + name) == total(names.index(name), length, 1)
        kept = cluster.cached(cluster.left).values()
        assert limit // 2 < sum(kept) < limit


def test_what_is_kept_goes_when_its_owner_has_gone(cluster):
    kept = []
    for start in range(2):
        with user_of(cluster) as user:
            user.keep("a", start, LENGTH)
            for worker in ("left-0", "left-1"):
                assert user.call(worker, "changed_total", "a") == total(start, LENGTH, 1)
            [session] = sessions(cluster, cluster.left)
            kept.append(session)
    assert len(set(kept)) == 2


# --- workers that are killed ----------------------------------------------------------------


def is_fetching(cluster: Cluster, host: Host) -> bool:
    """Tell whether some of an object has come, and not all of it."""
    return any(
        path.endswith("~") and size > 1_000_000 for path, size in cluster.cached(host).items()
    )


def test_a_worker_killed_while_it_fetches(cluster):
    with user_of(cluster) as user:
        user.keep("a", 0, LENGTH)
        with slowed(cluster.store, "16mbit"):
            user.submit("first", "left-0", "changed_total", "a")
            eventually(lambda: is_fetching(cluster, cluster.left), "a part has come")
            user.submit("second", "left-1", "changed_total", "a")
            cluster.workers["left-0"].kill()
        assert user.outcome("second") == total(0, LENGTH, 1)
        assert len(objects(cluster, cluster.left)) == 1
        before = cluster.left.traffic()
        cluster.start_worker(cluster.left, 0)
        # Dask runs it again, and it finds what the other one has fetched.
        assert user.outcome("first") == total(0, LENGTH, 1)
        assert (cluster.left.traffic() - before).received < SIZE // 10
        assert len(objects(cluster, cluster.left)) == 1


def test_what_killed_workers_kept_is_swept(cluster):
    with user_of(cluster) as user:
        user.keep("a", 0, LENGTH)
        user.keep("b", 1, LENGTH)
        for name, start in (("a", 0), ("b", 1)):
            for worker in ("left-0", "left-1"):
                assert user.call(worker, "changed_total", name) == total(start, LENGTH, 1)
        assert len(objects(cluster, cluster.left)) == 2
        cluster.workers["left-0"].kill()
        # The other one has it, and goes on.
        assert user.call("left-1", "changed_total", "a") == total(0, LENGTH, 1)
        assert len(objects(cluster, cluster.left)) == 2
        cluster.workers["left-1"].kill()
        assert len(objects(cluster, cluster.left)) == 2
        for number in range(2):
            cluster.start_worker(cluster.left, number)
        user.wait_for_workers()
        assert user.call("left-0", "changed_total", "b") == total(1, LENGTH, 1)
        assert len(objects(cluster, cluster.left)) == 1


def test_the_last_worker_to_end_leaves_nothing(cluster):
    with user_of(cluster) as user:
        user.keep("a", 0, LENGTH)
        for worker in ("right-0", "right-1"):
            assert user.call(worker, "changed_total", "a") == total(0, LENGTH, 1)
        cluster.workers["right-0"].terminate()
        assert len(objects(cluster, cluster.right)) == 1
        cluster.workers["right-1"].terminate()
        assert cluster.cached(cluster.right) == {}
        for number in range(2):
            cluster.start_worker(cluster.right, number)
        user.wait_for_workers()
        assert user.call("right-0", "changed_total", "a") == total(0, LENGTH, 1)
