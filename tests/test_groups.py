"""Task groups: what is written down, who runs it, and what is left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import uuid
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager

import pytest

from proxyexec import ProxyAlways, ProxySize, Store, StoreExecutor, extract, is_proxy
from proxyexec._group_records import CallRecord, OutcomeRecord
from proxyexec._group_task import GroupTask
from proxyexec.errors import (
    ArrivalError,
    ConnectorUnavailableError,
    ForeignPayloadError,
    NotDurableError,
    ObjectMissingError,
    RemoteError,
    SerializationError,
    SessionMissingError,
    TaskLostError,
)
from proxyexec.groups import Group, collect_groups, list_groups
from proxyexec.serializers import Serializers
from proxyexec_connectors import durable
from proxyexec_connectors.memory import MemoryConnector
from tests.chaos.census import eventually

BIG = b"x" * 200_000


@pytest.fixture(params=["directory", "redis"], scope="module")
def server(request):
    # Before what is there is counted.
    return None if request.param == "directory" else request.getfixturevalue("redis_url")


@pytest.fixture
def url(server, tmp_path):
    place = (tmp_path / "groups").as_uri() if server is None else server
    yield place
    for one in list_groups(place):
        Group(place, one.name).delete()
    if server is None:
        assert not (tmp_path / "groups").exists() or os.listdir(tmp_path / "groups") == []
        return
    import redis

    with closing(redis.Redis.from_url(place)) as client:
        assert client.keys("*") == []


def grouped(base, url, group="g", **options):
    return StoreExecutor(base, url, ProxySize("100 kB"), task_group=group, **options)


def reloaded(url, group="g", resubmit=True, **options):
    """What the futures of a group come to in another executor."""
    with grouped(ThreadPoolExecutor(2), url, group, **options) as executor:
        return executor.reload_tasks(resubmit=resubmit)


def keys(url, prefix="", group="g"):
    with closing(durable.open_session(url, group, create=False)) as session:
        return session.keys(prefix)


class Idle(Executor):
    """Runs nothing: like the queue of a client that is going to die."""

    def __init__(self):
        self.tasks = []

    def submit(self, fn, /, *args, **kwargs):
        self.tasks.append(pickle.dumps(fn))
        return Future()

    def shutdown(self, wait=True, *, cancel_futures=False):
        pass


@contextmanager
def dying(idle, url):
    """An executor that lets go of what has not ended."""
    executor = grouped(idle, url)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def abandoned(url, *calls, group="g"):
    """Submit calls from a client that dies before anything runs."""
    child = os.fork()
    if child == 0:
        try:
            executor = grouped(Idle(), url, group)
            futures = []
            for fn, *args in calls:
                args = [futures[one.number] if type(one) is Earlier else one for one in args]
                futures.append(executor.submit(fn, *args))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


class Earlier:
    """The result of an earlier call."""

    def __init__(self, number):
        self.number = number


def noted(runs, value):
    with open(runs, "a") as file:
        file.write(f"{value}\n")
    return value


def length(data):
    return len(data)


def doubled(data):
    return bytes(data) * 2


def same(data):
    return data


def fail(message):
    raise KeyError(message)


def waits(runs, begun, go):
    """Run until told: both are named pipes."""
    noted(runs, os.getpid())
    with open(begun, "w") as pipe:
        pipe.write("begun")
    with open(go) as pipe:
        pipe.read()
    return "went on"


def dies_once(runs):
    noted(runs, "run")
    if count(runs) == {"run": 1}:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def returns_a_lock(runs):
    noted(runs, "run")
    return threading.Lock()


def count(runs):
    try:
        with open(runs) as file:
            return Counter(file.read().split())
    except FileNotFoundError:
        return Counter()


@pytest.fixture
def runs(tmp_path):
    return str(tmp_path / "runs")


@pytest.fixture
def pipes(tmp_path):
    names = str(tmp_path / "begun"), str(tmp_path / "go")
    for name in names:
        os.mkfifo(name)
    return names


def read(pipe):
    with open(pipe) as file:
        return file.read()


def say(pipe):
    with open(pipe, "w") as file:
        file.write("go")


# --- what is written down ----------------------------------------------------------------


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("base", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_later_executor_gets_every_task_back(url, base, lazy):
    with grouped(base(2), url, lazy=lazy) as executor:
        futures = [
            executor.submit(doubled, BIG),
            executor.submit(fail, "no such thing"),
            executor.submit(length, data=BIG),
            executor.submit(sorted, [3, 1, 2], reverse=True),
        ]
        wait(futures)
        assert executor.task_count_submitted == 4
        assert executor.task_group_id == "g"
        assert is_proxy(futures[0].result()) == lazy
    with grouped(base(2), url, lazy=lazy) as executor:
        assert executor.task_count_submitted == 4
        again = executor.reload_tasks()
        assert [one.done() for one in again] == [True] * 4
        for some in (futures, again):
            assert extract(some[0].result()) if lazy else some[0].result() == BIG * 2
            error = some[1].exception()
            assert (type(error), error.args) == (KeyError, ("no such thing",))
            assert "in fail" in str(error.__cause__)
            assert some[2].result() == len(BIG)
            assert some[3].result() == [3, 2, 1]
        assert is_proxy(again[0].result()) == lazy
        more = executor.submit(length, b"")
        assert more.result() == 0
        assert executor.task_count_submitted == 5
        assert executor.reload_tasks()[:4] == again


def test_a_call_is_written_down_before_it_is_submitted_and_its_outcome_before_it_is_delivered(url):
    found = []

    class Looking(ThreadPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            found.append(len(keys(url, "call.")))
            return super().submit(fn, *args, **kwargs)

    with grouped(Looking(1), url) as executor:
        for number in range(3):
            future = executor.submit(doubled, BIG)
            ended = threading.Event()

            def look(_):
                found.append(len(keys(url, "outcome.")))
                ended.set()

            future.add_done_callback(look)
            assert ended.wait(60)
            assert found == [number + 1, number + 1]
            found.clear()


def test_names(url):
    with grouped(ThreadPoolExecutor(1), url, True) as executor:
        assert str(uuid.UUID(executor.task_group_id)) == executor.task_group_id
    name = uuid.uuid4()
    with grouped(ThreadPoolExecutor(1), url, name) as executor:
        assert executor.task_group_id == str(name)
    assert {one.name for one in list_groups(url)} >= {str(name)}
    for wrong, error in [(False, TypeError), (7, TypeError), ("", ValueError), ("a/b", ValueError)]:
        with pytest.raises(error):
            grouped(ThreadPoolExecutor(1), url, wrong)


def test_places_that_keep_nothing(url):
    pool = ThreadPoolExecutor(1)
    for place in (None, "memory://", MemoryConnector(), "file://"):
        with pytest.raises(NotDurableError, match="use a directory"):
            StoreExecutor(pool, place, task_group="g")
    with Store.from_url(url) as store, pytest.raises(TypeError, match="URL or a connector"):
        StoreExecutor(pool, store, task_group="g")


def test_in_the_place_of_a_connector(url):
    import proxyexec_connectors

    with closing(proxyexec_connectors.connect(url)) as connector:
        with grouped(ThreadPoolExecutor(1), connector) as executor:
            assert executor.submit(length, BIG).result() == len(BIG)
        assert len(reloaded(url)) == 1


def test_without_a_group():
    with StoreExecutor(ThreadPoolExecutor(1)) as executor:
        assert executor.task_group_id is None
        for use in (
            lambda: executor.task_count_submitted,
            executor.reload_tasks,
            lambda: executor.register(length),
            lambda: executor.submit_registered("id"),
            executor.batch,
        ):
            with pytest.raises(ValueError, match="needs a task group"):
                use()


def test_an_age(url):
    with grouped(ThreadPoolExecutor(1), url, task_group_max_age=1000.0):
        pass
    assert [one.max_age for one in list_groups(url)] == [1000.0]
    assert collect_groups(url) == []
    with grouped(ThreadPoolExecutor(1), url):
        pass
    assert [one.max_age for one in list_groups(url)] == [1000.0]


def test_data_that_cannot_be_sent(url):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        future = executor.submit(length, threading.Lock())
        assert isinstance(future.exception(), SerializationError)
        future = executor.submit(sorted, BIG, key=threading.Lock())
        assert isinstance(future.exception(), SerializationError)
        assert executor.task_count_submitted == 0
        executor.store.usage()  # evicts what has been released
        assert keys(url) == []


def test_a_result_that_cannot_be_sent_is_an_outcome(url, runs):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        future = executor.submit(returns_a_lock, runs)
        assert isinstance(future.exception(), SerializationError)
        assert "the result of returns_a_lock" in str(future.exception())
    [again] = reloaded(url)
    assert isinstance(again.exception(), (SerializationError, TypeError))
    assert count(runs) == {"run": 1}


def test_a_task_that_is_interrupted_has_no_outcome(url, runs):
    def interrupted():
        noted(runs, "run")
        if count(runs) == {"run": 1}:
            raise KeyboardInterrupt

        return "went on"

    with grouped(ThreadPoolExecutor(1), url) as executor:
        assert isinstance(executor.submit(interrupted).exception(), KeyboardInterrupt)
    [again] = reloaded(url)
    assert again.result() == "went on"


@contextmanager
def another_python(url, key, kind):
    with closing(durable.open_session(url, "g")) as session:
        record = kind.read(session.get(key), key, url)
        session.evict([key])
        record.python = "2.7"
        session.put(key, record.frames())
        yield
        session.evict([key])


def test_what_another_python_wrote(url, runs):
    abandoned(url, (noted, runs, "run"))
    [key] = keys(url, "call.")
    with another_python(url, key, CallRecord):
        [future] = reloaded(url)
        assert isinstance(future.exception(), ArrivalError)
        assert "Python 2.7 wrote it down, and this is Python" in str(future.exception())
    assert count(runs) == {}
    assert keys(url, "outcome.") == []
    with grouped(ThreadPoolExecutor(1), url) as executor:
        wait([executor.submit(noted, runs, "run")])
    [key] = keys(url, "outcome.")
    with another_python(url, key, OutcomeRecord):
        [future] = reloaded(url)
        assert isinstance(future.exception(), ArrivalError)


# --- who runs it -------------------------------------------------------------------------


def test_tasks_that_never_started_are_submitted_again(url, runs):
    abandoned(url, *[(noted, runs, number) for number in range(20)], (length, BIG))
    assert all(isinstance(one.exception(), TaskLostError) for one in reloaded(url, resubmit=False))
    assert count(runs) == {}
    futures = reloaded(url)
    assert [one.result() for one in futures] == [*range(20), len(BIG)]
    assert [one.result() for one in reloaded(url)] == [*range(20), len(BIG)]
    assert set(count(runs).values()) == {1}


def test_an_outcome_that_is_there_is_delivered_without_a_call(url, runs):
    idle = Idle()
    with dying(idle, url) as executor:
        executor.submit(noted, runs, "run")
        first, second = (pickle.loads(idle.tasks[0]) for _ in range(2))
        assert first() == second()
        assert count(runs) == {"run": 1}


def test_who_gets_the_same_task_waits_for_the_first(url, runs, pipes):
    idle = Idle()
    with dying(idle, url) as executor, ThreadPoolExecutor(3) as workers:
        executor.submit(waits, runs, *pipes)
        first = workers.submit(pickle.loads(idle.tasks[0]))
        read(pipes[0])
        others = [workers.submit(pickle.loads(idle.tasks[0])) for _ in range(2)]
        say(pipes[1])
        assert others[0].result() == others[1].result() == first.result()
        assert sum(count(runs).values()) == 1


def test_a_running_task_is_watched(url, runs, pipes):
    with (
        grouped(ThreadPoolExecutor(1), url) as one,
        grouped(ThreadPoolExecutor(1), url) as two,
    ):
        mine = one.submit(waits, runs, *pipes)
        read(pipes[0])
        [theirs] = two.reload_tasks()
        assert theirs.running()
        assert not theirs.done()
        assert not theirs.cancel()
        [lost] = two.reload_tasks(resubmit=False)
        assert lost is theirs
        assert [task.state for task in Group(url, "g").tasks()] == ["running"]
        say(pipes[1])
        assert theirs.result(60) == mine.result(60) == "went on"
    assert sum(count(runs).values()) == 1


@pytest.mark.parametrize("resubmit", [True, False])
def test_a_task_whose_worker_dies_while_it_is_watched(url, runs, pipes, resubmit):
    idle = Idle()
    with dying(idle, url) as executor:
        executor.submit(waits, runs, *pipes)
    spawn = multiprocessing.get_context("spawn")
    worker = spawn.Process(target=pickle.loads(idle.tasks[0]))
    worker.start()
    read(pipes[0])
    with grouped(ThreadPoolExecutor(1), url) as executor:
        [future] = executor.reload_tasks(resubmit=resubmit)
        assert future.running()
        worker.kill()
        worker.join()
        worker.close()
        if resubmit:
            read(pipes[0])
            say(pipes[1])
            assert future.result(60) == "went on"
        else:
            assert isinstance(future.exception(60), TaskLostError)
            assert "a call of waits" in str(future.exception())
    assert sum(count(runs).values()) == 1 + resubmit


def test_who_waits_for_a_worker_that_dies_takes_over(url, runs, pipes):
    idle = Idle()
    with dying(idle, url) as executor, ThreadPoolExecutor(1) as workers:
        executor.submit(waits, runs, *pipes)
        spawn = multiprocessing.get_context("spawn")
        worker = spawn.Process(target=pickle.loads(idle.tasks[0]))
        worker.start()
        read(pipes[0])
        second = workers.submit(pickle.loads(idle.tasks[0]))
        worker.kill()
        worker.join()
        worker.close()
        read(pipes[0])
        say(pipes[1])
        assert b"done" in second.result(60)
    assert sum(count(runs).values()) == 2


def test_a_task_that_kills_its_worker(url, runs):
    with grouped(ProcessPoolExecutor(1), url) as executor:
        future = executor.submit(dies_once, runs)
        assert isinstance(future.exception(60), BrokenProcessPool)
        assert keys(url, "outcome.") == []
    with grouped(ProcessPoolExecutor(1), url) as executor:
        [again] = executor.reload_tasks()
        assert again.result() == "survived"
    assert count(runs) == {"run": 2}


def test_the_first_of_two_outcomes_counts(url, monkeypatch):
    """Both have the claim: one had to be silent for so long that it was taken from him."""
    idle = Idle()
    both = threading.Barrier(2)
    attempts = iter("ab")

    def race(data):
        both.wait(60)
        return data + next(attempts).encode()

    class Claim:
        def release(self):
            pass

    with dying(idle, url) as executor, ThreadPoolExecutor(2) as workers:
        executor.submit(same, b"")
        kind = type(executor.store.connector)
        monkeypatch.setattr(kind, "claim", lambda self, name: Claim())
        monkeypatch.setitem(same.__globals__, "same", race)
        # The function is found by its name.
        tasks = [workers.submit(pickle.loads(idle.tasks[0])) for _ in range(2)]
        one, two = (task.result(60) for task in tasks)
        assert one == two
    monkeypatch.undo()
    [future] = reloaded(url)
    assert future.result() in (b"a", b"b")


def test_what_the_slower_of_two_stored_is_removed(url, monkeypatch):
    idle = Idle()
    with dying(idle, url) as executor, ThreadPoolExecutor(2) as workers:
        executor.submit(doubled, BIG)
        kind = type(executor.store.connector)
        both = threading.Barrier(2)
        put = kind.put

        def put_together(self, key, frames):
            if key.startswith("outcome."):
                both.wait(60)
            put(self, key, frames)

        class Claim:
            def release(self):
                pass

        monkeypatch.setattr(kind, "claim", lambda self, name: Claim())
        monkeypatch.setattr(kind, "put", put_together)
        tasks = [workers.submit(pickle.loads(idle.tasks[0])) for _ in range(2)]
        one, two = (task.result(60) for task in tasks)
        assert one == two
    assert len(keys(url, "result.")) == 1
    [future] = reloaded(url, lazy=False)
    assert future.result() == BIG * 2


def test_two_executors_reload_at_once(url, runs):
    abandoned(url, *[(noted, runs, number) for number in range(30)])
    with (
        grouped(ThreadPoolExecutor(2), url) as one,
        grouped(ThreadPoolExecutor(2), url) as two,
    ):
        both = threading.Barrier(2)

        def reload(executor):
            both.wait(60)
            return [future.result(60) for future in executor.reload_tasks()]

        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(reload, [one, two])) == [list(range(30))] * 2
        assert one.reload_tasks() == one.reload_tasks()
    assert set(count(runs).values()) == {1}
    assert len(count(runs)) == 30


def reload_in_a_process(url, barrier):
    with grouped(ProcessPoolExecutor(1), url) as executor:
        barrier.wait(60)
        return [future.result(60) for future in executor.reload_tasks()]


def test_two_processes_reload_at_once(url, runs):
    abandoned(url, *[(noted, runs, number) for number in range(30)], (length, BIG))
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(2, mp_context=spawn) as processes:
        barrier = manager.Barrier(2)
        futures = [processes.submit(reload_in_a_process, url, barrier) for _ in range(2)]
        for future in futures:
            assert future.result(120) == [*range(30), len(BIG)]
    assert set(count(runs).values()) == {1}
    assert len(count(runs)) == 30
    reloaded(url)
    assert keys(url, "input.") == []


def test_two_clients_submit_at_once(url):
    with grouped(ThreadPoolExecutor(2), url) as one:
        abandoned(url, (length, b"a"), (length, b"ab"))
        futures = [one.submit(length, b"x" * number) for number in range(4)]
        assert [future.result() for future in futures] == [0, 1, 2, 3]
        assert sorted(future.result() for future in one.reload_tasks()) == [0, 1, 1, 2, 2, 3]
        assert one.task_count_submitted == 6


# --- calls of calls, and of many ---------------------------------------------------------


def test_chained_calls_come_back(url):
    abandoned(
        url,
        (doubled, BIG),
        (doubled, Earlier(0)),
        (length, Earlier(1)),
        (fail, "first"),
        (length, Earlier(3)),
    )
    for futures in (reloaded(url), reloaded(url)):
        assert futures[2].result() == 4 * len(BIG)
        for one in futures[3:]:
            assert one.exception().args == ("first",)
    with Group(url, "g") as group:
        assert [one.state for one in group.tasks()] == ["done"] * 3 + ["failed"] * 2


def test_chained_calls(url):
    with grouped(ThreadPoolExecutor(2), url) as executor:
        first = executor.submit(doubled, BIG)
        second = executor.submit(length, first)
        third = executor.submit(fail, "first")
        fourth = executor.submit(length, third)
        assert second.result() == 2 * len(BIG)
        assert fourth.exception().args == ("first",)
        [record] = [
            CallRecord.read(frames, "", "")
            for frames in executor.store.connector.get_many(keys(url, "call."))
            if CallRecord.read(frames, "", "").after
        ][:1]
        assert record.name == "length"


def test_a_long_chain(url):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        future = executor.submit(same, 7)
        for _ in range(300):
            future = executor.submit(same, future)
        assert future.result(60) == 7


def test_futures_of_other_executors(url):
    with (
        StoreExecutor(ThreadPoolExecutor(1)) as other,
        grouped(ThreadPoolExecutor(1), url) as executor,
    ):
        go = threading.Event()
        theirs = other.submit(lambda: go.wait(60) and BIG)
        mine = executor.submit(same, 1)
        future = executor.submit(lambda one, two: (len(one), two), theirs, mine)
        assert executor.task_count_submitted == 1
        go.set()
        assert future.result(60) == (len(BIG), 1)
        assert executor.task_count_submitted == 2
    assert reloaded(url)[1].result() == (len(BIG), 1)


def test_a_call_that_is_cancelled_before_it_can_be_written_down(url):
    with (
        StoreExecutor(ThreadPoolExecutor(1)) as other,
        grouped(ThreadPoolExecutor(1), url) as executor,
    ):
        go = threading.Event()
        future = executor.submit(same, other.submit(go.wait, 60))
        chained = executor.submit(same, future)
        assert not future.running()
        assert future.cancel()
        assert chained.cancelled()
        go.set()
    assert keys(url, "outcome.") == []


def test_map(url):
    with grouped(ProcessPoolExecutor(2), url) as executor:
        assert list(executor.map(pow, range(10), [2] * 10, chunksize=5)) == [
            n * n for n in range(10)
        ]
        assert executor.task_count_submitted == 10
    assert [one.result() for one in reloaded(url)] == [n * n for n in range(10)]


def test_registered_functions(url):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        name = executor.register(doubled)
        assert executor.register(doubled) == name
        assert executor.register(length) != name
        future = executor.submit_registered(name, BIG)
        assert extract(future.result()) == BIG * 2
        closure = executor.register(lambda x: x + len(BIG))
        with pytest.raises(ObjectMissingError):
            executor.submit_registered("0" * 32)
    assert len(keys(url, "function.")) == 3
    with grouped(ProcessPoolExecutor(1), url) as executor:
        assert executor.submit_registered(closure, x=1).result() == 1 + len(BIG)
        assert len(executor.reload_tasks()) == 2


def test_a_batch_is_one_round_trip(url, monkeypatch):
    with grouped(ThreadPoolExecutor(2), url) as executor:
        connector = executor.store.connector
        sent = []
        kind = type(connector)
        inside = threading.local()

        def noting(put, keys_in):
            def noted(self, *args):
                outermost = not getattr(inside, "now", False)
                inside.now = True
                try:
                    put(self, *args)
                finally:
                    inside.now = not outermost
                if outermost:
                    sent.append(keys_in(*args))

            return noted

        monkeypatch.setattr(kind, "put_many", noting(kind.put_many, list))
        monkeypatch.setattr(kind, "put", noting(kind.put, lambda key, frames: [key]))
        data = bytearray(BIG)
        with executor.batch():
            futures = [executor.submit(length, BIG + bytes([n])) for n in range(5)]
            futures += [executor.submit(bytes, data) for _ in range(3)]
            assert sent == []
            assert not any(one.done() for one in futures)
            before = bytes(data)
            data[:] = b"y" * len(data)  # what is submitted has been copied
        groups = [one for one in sent if any(key.startswith("call.") for key in one)]
        assert len(groups) == 1
        assert not any(one[0].startswith("input.") for one in sent if one is not groups[0])
        # Of the three that are equal, one was stored.
        assert sorted(key.partition(".")[0] for key in groups[0]) == ["call"] * 8 + ["input"] * 6
        assert [one.result() for one in futures[:5]] == [len(BIG) + 1] * 5
        assert all(extract(one.result()) == before for one in futures[5:8])
        monkeypatch.undo()
        executor.store.usage()
        assert keys(url, "input.") == []


def test_chained_calls_in_a_batch(url):
    with grouped(ThreadPoolExecutor(2), url) as executor:
        with executor.batch():
            first = executor.submit(doubled, BIG)
            second = executor.submit(length, first)
            with pytest.raises(RuntimeError, match="a batch is open"), executor.batch():
                pass
        assert second.result() == 2 * len(BIG)
    assert len(reloaded(url)) == 2


def test_a_batch_that_fails(url):
    with grouped(ThreadPoolExecutor(2), url) as executor:
        with pytest.raises(ZeroDivisionError), executor.batch():
            future = executor.submit(length, BIG)
            1 / 0  # noqa: B018
        assert isinstance(future.exception(), ZeroDivisionError)
        assert executor.task_count_submitted == 0
        assert executor.reload_tasks() == []
        assert executor.submit(length, BIG).result() == len(BIG)


def test_a_call_that_is_cancelled_within_a_batch(url):
    with grouped(ThreadPoolExecutor(2), url) as executor:
        with executor.batch():
            one, two = executor.submit(length, BIG), executor.submit(doubled, BIG)
            assert not one.running()
            assert one.cancel()
        assert one.cancelled()
        assert len(two.result()) == 2 * len(BIG)
        assert executor.reload_tasks() == [two]


# --- cancelling --------------------------------------------------------------------------


def test_a_cancelled_task_is_written_down(url, runs):
    idle = Idle()
    with dying(idle, url) as executor:
        future = executor.submit(noted, runs, "run")
        chained = executor.submit(same, future)
        assert future.cancel()
        assert chained.cancelled()
        assert future.cancel()
        assert b"cancelled" in pickle.loads(idle.tasks[0])()
    [again, after] = reloaded(url)
    assert again.cancelled()
    assert after.cancelled()
    assert count(runs) == {}


def test_a_task_that_somebody_else_has_ended_is_not_cancelled(url):
    with dying(Idle(), url) as executor:
        future = executor.submit(length, BIG)
        assert reloaded(url)[0].result() == len(BIG)
        assert not future.cancel()
        assert future.result(0) == len(BIG)


def test_shutting_down_lets_go_and_writes_nothing_down(url, runs, pipes):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        running = executor.submit(waits, runs, *pipes)
        pending = executor.submit(noted, runs, "run")
        chained = executor.submit(same, running)
        read(pipes[0])
        executor.shutdown(wait=False, cancel_futures=True)
        assert pending.cancelled()
        assert chained.cancelled()
        say(pipes[1])
    assert running.result() == "went on"
    assert [one.result() for one in reloaded(url)] == ["went on", "run", "went on"]


def test_a_group_that_is_cancelled(url, runs, pipes):
    abandoned(url, (noted, runs, "run"), (length, BIG))
    with grouped(ThreadPoolExecutor(1), url) as executor:
        running = executor.submit(waits, runs, *pipes)
        pending = executor.submit(length, BIG)
        read(pipes[0])
        with Group(url, "g") as group:
            assert group.cancel() == 3
            assert sorted(task.state for task in group.tasks()) == ["cancelled"] * 3 + ["running"]
            say(pipes[1])
            assert running.result(60) == "went on"
            eventually(pending.cancelled, "the task is cancelled")
            eventually(executor.submit(length, BIG).cancelled, "so is one that comes later")
            assert group.counts()["done"] == 1
    states = [one.cancelled() for one in reloaded(url)]
    assert states.count(False) == 1
    assert "run" not in count(runs)


# --- what is left ------------------------------------------------------------------------


def test_inputs_go_with_the_outcome_and_results_stay(url):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        future = executor.submit(doubled, BIG)
        wait([future])
        del future
        executor.store.usage()  # evicts what has been released
        assert keys(url, "input.") == []
        assert len(keys(url, "result.")) == 1
    assert extract(reloaded(url)[0].result()) == BIG * 2


def test_inputs_stay_until_there_is_an_outcome(url):
    with dying(Idle(), url) as executor:
        executor.submit(length, BIG)
        executor.submit(doubled, BIG)
        store = executor.store
    eventually(lambda: store.closed, "the client is gone")
    assert len(keys(url, "input.")) == 1
    futures = reloaded(url)
    assert futures[0].result() == len(BIG)
    eventually(lambda: not keys(url, "input."), "inputs are evicted")


@pytest.mark.parametrize("in_a_cycle", [True, False])
def test_inputs_stay_when_an_executor_is_dropped(url, in_a_cycle):
    executor = grouped(Idle(), url)
    future = executor.submit(doubled, BIG)
    other = executor.submit(length, BIG)
    store = executor.store
    if not in_a_cycle:
        future._call._base = other._call._base = None
    store.start_evicting()
    del future, other, executor
    gc.collect()
    store.usage()  # evicts what has been released
    store.close()
    assert len(keys(url, "input.")) == 1
    futures = reloaded(url, lazy=False)
    assert [one.result() for one in futures] == [BIG * 2, len(BIG)]


def test_inputs_that_a_result_refers_to_stay(url):
    with grouped(ThreadPoolExecutor(1), url, lazy=True) as executor:
        whole = executor.submit(same, BIG)
        inside = executor.submit(lambda data: [data], BIG * 2)
        wait([whole, inside])
        store = executor.store
    del whole, inside, executor
    eventually(lambda: store.closed, "the client is gone")
    for futures in (reloaded(url), reloaded(url)):
        assert extract(futures[0].result()) == BIG
        assert extract(futures[1].result()[0]) == BIG * 2


def test_reloading_removes_what_dead_clients_and_workers_left(url):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        wait([executor.submit(doubled, BIG)])
    [result] = keys(url, "result.")
    task = result.split(".")[1]
    with closing(durable.open_session(url, "g")) as session:
        claim = session.claim("client.alive")
        for key in ("input.dead.1", "input.alive.1", f"result.{task}.other", f"result.{task}.o+1"):
            session.put(key, [b"x"])
        reloaded(url)
        assert keys(url, "input.") == ["input.alive.1"]
        assert keys(url, "result.") == [result]
        claim.release()
        reloaded(url)
        assert keys(url, "input.") == []


def test_records_that_a_power_failure_cut_short(tmp_path, runs):
    url = (tmp_path / "groups").as_uri()
    with grouped(ThreadPoolExecutor(1), url) as executor:
        wait([executor.submit(noted, runs, number) for number in range(3)])
    directory = tmp_path / "groups" / "durable-g"
    first, second, _ = keys(url, "outcome.")
    os.truncate(directory / first, 0)
    os.truncate(directory / second, 30)
    assert [one.result() for one in reloaded(url)] == [0, 1, 2]
    assert count(runs) == {"0": 2, "1": 2, "2": 1}
    (call, *_) = keys(url, "call.")
    os.truncate(directory / call, 0)
    assert reloaded(url)[0].result() == 0
    with closing(durable.open_session(url, "g")) as session:
        session.evict([first])
    lost, *others = reloaded(url)
    assert isinstance(lost.exception(), TaskLostError)
    assert [one.result() for one in others] == [1, 2]
    with Group(url, "g") as group:
        assert [one.state for one in group.tasks()] == ["submitted", "done", "done"]
        group.delete()


def test_two_calls_with_one_argument(url):
    """One ends, the other has no outcome when its client goes: the argument is needed yet."""
    idle = Idle()
    with dying(idle, url) as executor:
        first = executor.submit(length, BIG)
        executor.submit(doubled, BIG)
        first._call.settle_with([*_frames_of(pickle.loads(idle.tasks[0])())])
        assert first.result() == len(BIG)
        executor.store.usage()
        assert len(keys(url, "input.")) == 1
    assert extract(reloaded(url)[1].result()) == BIG * 2


def _frames_of(blob):
    from proxyexec_connectors._layout import split

    return split(blob)


def test_parts(url):
    with StoreExecutor(
        ProcessPoolExecutor(1), url, ProxySize("100 kB"), task_group="g", nested=True
    ) as executor:
        future = executor.submit(same, {"a": [BIG, BIG + b"y"], "b": 1})
        result = future.result()
        assert extract(result["a"][1]) == BIG + b"y"
        del result
    [again] = reloaded(url, nested=True)
    assert extract(again.result()["a"][1]) == BIG + b"y"


def test_everything_proxied(url):
    with StoreExecutor(
        ThreadPoolExecutor(1), url, ProxyAlways(), task_group="g", lazy=False
    ) as executor:
        assert executor.submit(length, [1, 2]).result() == 2
    assert len(keys(url, "result.")) == 1


def test_a_proxy_of_another_store(url):
    with Store.from_url("memory://") as store, grouped(ThreadPoolExecutor(1), url) as executor:
        assert executor.submit(length, store.proxy(BIG)).result() == len(BIG)
        abandoned_record = keys(url, "call.")
        assert len(abandoned_record) == 1


def test_a_group_that_is_deleted_meanwhile(url):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        assert executor.submit(length, BIG).result() == len(BIG)
        Group(url, "g").delete()
        assert isinstance(executor.submit(length, BIG).exception(), ConnectorUnavailableError)
    with pytest.raises(SessionMissingError):
        Group(url, "g")


def test_a_task_of_a_group_that_is_deleted_leaves_nothing(url, runs, pipes):
    with grouped(ThreadPoolExecutor(1), url) as executor:
        future = executor.submit(waits, runs, *pipes)
        read(pipes[0])
        Group(url, "g").delete()
        say(pipes[1])
        assert isinstance(future.exception(60), ConnectorUnavailableError)
    # The fixture looks.


def test_results_can_be_read_after_the_executor(url):
    with grouped(ThreadPoolExecutor(1), url, lazy=True) as executor:
        future = executor.submit(doubled, BIG)
    store = executor.store
    assert extract(future.result()) == BIG * 2
    del future, executor
    eventually(lambda: store.closed, "the store closes after the last result")


def test_the_task_says_what_it_calls(url):
    idle = Idle()
    with dying(idle, url) as executor:
        executor.submit(length, BIG)
    task = pickle.loads(idle.tasks[0])._task
    assert isinstance(task, GroupTask)
    assert task.__name__ == "length"


def test_what_is_written_down_for_serializers_that_know_no_pickles():
    from proxyexec._context import Inline, Stored
    from proxyexec._group_envelope import Envelope
    from proxyexec._group_records import CallReference
    from proxyexec._proxy import Reference
    from proxyexec.errors import DeserializationError

    stored = Stored(Reference("file:///a?session=b", "key", "builtins:bytes", 5))
    call = (None, [Inline(b"blob"), stored, CallReference("1-a"), stored], {"k": 7})
    function, args, kwargs = Envelope().loads(Envelope().dumps(call))
    assert (function, kwargs, args[0].blob, args[1:]) == (None, {"k": 7}, b"blob", call[1][1:])
    assert args[1] is args[3]
    for wrong in (os.getpid, Counter, Executor, b"".join):
        with pytest.raises(DeserializationError, match="has no place in it"):
            Envelope().loads([pickle.dumps((wrong, [], {}))])
    with pytest.raises(DeserializationError):
        Envelope().loads([b"nonsense"])


class Trap(ValueError):
    """Makes a directory wherever it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (self.args[0],)


def fall(path):
    raise Trap(path)


def test_what_is_allowed_goes_for_errors_too(url, tmp_path):
    everything = Serializers(code="reference", data="json")
    json_only = Serializers(code="reference", data="json", allowed="json")
    trap = tmp_path / "trap"
    with grouped(ThreadPoolExecutor(1), url, serializers=everything) as executor:
        executor.submit(fall, str(trap)).exception(60)
    trap.rmdir()  # it has been unpickled
    [future] = reloaded(url, serializers=json_only)
    assert isinstance(future.exception(60), ForeignPayloadError)
    assert not trap.exists()

    with grouped(ThreadPoolExecutor(1), url, "words", serializers=json_only) as executor:
        executor.submit(fall, str(trap))
    [future] = reloaded(url, "words", serializers=json_only)
    error = future.exception(60)
    assert isinstance(error, RemoteError)
    assert isinstance(error, ValueError)
    assert (error.type_name, error.message) == ("tests.test_groups.Trap", str(trap))
    assert "in fall" in error.traceback
    assert not trap.exists()
