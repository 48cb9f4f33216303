"""Who evicts what, and when."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest

import proxyexec
from proxyexec import (
    ProxyAlways,
    ProxyType,
    Store,
    StoreExecutor,
    clone,
    disown,
    own,
    reference_of,
)
from proxyexec.errors import ConnectorUnavailableError, ObjectMissingError, StoreClosedError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.conftest import wait_for_evictions


@pytest.fixture
def store():
    with Store("test", MemoryConnector()) as store:
        yield store


@pytest.fixture
def executor(store):
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, store, ProxyType(list, dict), close_store=False) as executor:
        yield executor


def after_callbacks(future):
    """Wait until a future's callbacks have run, the one that lets go of leases included."""
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    assert ended.wait(30)
    return future


class Waiting(MemoryConnector):
    """Evicts when it may."""

    def __init__(self):
        super().__init__()
        self.evicts, self.may_evict = threading.Event(), threading.Event()

    def evict(self, keys):
        self.evicts.set()
        assert self.may_evict.wait(30)
        super().evict(keys)


def test_a_dropped_proxy_evicts(store):
    proxy = store.proxy([1])
    assert store.usage().objects == 1
    del proxy
    assert store.usage() == (0, 0)


def test_clones_share_the_object(store):
    proxy = store.proxy([1])
    other = clone(proxy)
    del proxy
    assert other == [1]
    del other
    assert store.usage() == (0, 0)


def test_unpickled_proxies_join_the_lease_that_lives(store):
    proxy = store.proxy([1])
    other = pickle.loads(pickle.dumps(proxy))
    del proxy
    assert other == [1]
    del other
    assert store.usage() == (0, 0)


def test_an_unpickled_proxy_of_an_evicted_object_says_so(store):
    pickled = pickle.dumps(store.proxy([1]))
    assert store.usage().objects == 0
    with pytest.raises(ObjectMissingError, match="evicted"):
        len(pickle.loads(pickled))


def test_disowned_objects_stay_until_they_are_owned_again(store):
    proxy = disown(store.proxy([1]))
    other = clone(proxy)
    del proxy
    assert store.usage().objects == 1
    own(other)
    del other
    assert store.usage() == (0, 0)


def test_what_is_gone_cannot_be_owned_again(store):
    proxy = disown(store.proxy([1]))
    store.evict(proxy)
    with pytest.raises(ObjectMissingError, match="evicted") as caught:
        own(proxy)
    store.usage()  # when all is counted
    assert store._leases.held()[0] == {}
    assert caught.value  # which is kept, with what its traceback refers to


def test_owning_again_waits_for_no_other_where_somebody_holds_the_object():
    waiting = Waiting()
    with Store("test", waiting) as store:
        proxy, other = store.proxy([1]), store.proxy([2])
        holder = clone(proxy)
        store.start_evicting()
        del other
        assert waiting.evicts.wait(30)
        own(disown(proxy))
        waiting.may_evict.set()
        del holder
        assert store.usage().objects == 1


def test_what_is_owned_again_is_not_evicted_later():
    """Its eviction failed, and would be tried again."""

    class Failing(MemoryConnector):
        fails = True

        def evict(self, keys):
            if self.fails:
                raise ConnectorUnavailableError(self.url, "nobody there")
            super().evict(keys)

    with Store("test", Failing()) as store:
        proxy = store.proxy([1])
        other = clone(proxy)
        disown(proxy)
        del other
        assert store.usage().objects == 1 and store.eviction_failures == 1
        own(proxy)
        Failing.fails = False
        assert store.usage().objects == 1  # everything that is left is tried again for this
        assert proxy == [1]


def test_what_is_being_evicted_cannot_be_owned_again():
    """The last one who owned it has just let go of it, and it is there still."""

    waiting = Waiting()
    with Store("test", waiting) as store:
        proxy = store.proxy([1])
        other = clone(proxy)
        disown(proxy)
        store.start_evicting()
        del other
        assert waiting.evicts.wait(30)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            owning = threads.submit(own, proxy)
            while store._leases._messages.empty() and not owning.done():
                pass
            waiting.may_evict.set()
            with pytest.raises(ObjectMissingError, match="evicted"):
                owning.result(30)


def test_nothing_is_owned_again_in_a_store_that_closed_meanwhile(store):
    executor = StoreExecutor(concurrent.futures.ThreadPoolExecutor(1), store)
    proxy = store.proxy([1])
    executor.shutdown()
    disown(proxy)  # nobody owns anything now
    wait_for_evictions()
    assert store.closed
    with pytest.raises(StoreClosedError):
        own(proxy)


def test_disowning_waits_its_turn(store):
    """A lease released before is counted before, though it may still be in the queue."""
    proxy = store.proxy([1])
    other = clone(proxy)
    reference = proxyexec.reference_of(proxy)
    with store._leases._lock:  # the evicting thread counts nothing meanwhile
        del other
        disown(proxy)
    assert store.usage().objects == 1
    assert store.get(reference) == [1]


def test_inputs_go_with_their_task_and_results_with_their_holders(store, executor):
    future = after_callbacks(executor.submit(functions.append, [1], 2))
    assert store.usage().objects == 1
    result = future.result()
    del future
    assert store.usage().objects == 1
    assert result == [1, 2]
    del result
    assert store.usage() == (0, 0)


def test_a_dropped_future_lets_its_result_go(store, executor):
    after_callbacks(executor.submit(functions.make_list, 5))
    assert store.usage() == (0, 0)


def test_results_passed_on_are_borrowed(store, executor):
    first = executor.submit(functions.make_list, 3).result()
    running, release = threading.Event(), threading.Event()

    def use(items):
        running.set()
        assert release.wait(30)
        return sum(items)

    future = executor.submit(use, first)
    assert running.wait(30)
    assert store.usage().objects == 1  # not stored again
    del first  # the task keeps it
    assert store.usage().objects == 1
    release.set()
    assert future.result() == 3
    after_callbacks(future)
    del future
    assert store.usage() == (0, 0)


def test_resolved_results_passed_on_are_borrowed_unless_changed(store, executor):
    result = executor.submit(functions.make_list, 3).result()
    assert result == [0, 1, 2]
    before = store.usage().objects
    assert after_callbacks(executor.submit(functions.total, result)).result() == 3
    assert store.usage().objects == before  # compared, not stored again
    result.append(10)
    assert after_callbacks(executor.submit(functions.total, result)).result() == 13


def test_returned_arguments_keep_their_object(store, executor):
    result = after_callbacks(executor.submit(functions.identity, [1, 2])).result()
    assert store.usage().objects == 1
    assert result == [1, 2]


def test_proxies_inside_results_keep_their_objects(store, executor):
    result = after_callbacks(executor.submit(functions.pair, [1, 2])).result()
    assert store.usage().objects == 2
    assert proxyexec.is_proxy(result["x"])
    inner = result["x"]
    del result
    assert inner == [1, 2]
    assert store.usage().objects == 1
    del inner
    assert store.usage() == (0, 0)


def test_proxies_inside_arguments_are_kept_until_the_task_has_ended(store, executor):
    inner = store.proxy([1, 2])
    running, release = threading.Event(), threading.Event()

    def use(pair):
        running.set()
        assert release.wait(30)
        return sum(pair["x"])

    future = executor.submit(use, {"x": inner})
    assert running.wait(30)
    del inner
    store.usage()
    release.set()
    assert future.result() == 3


@pytest.mark.parametrize("ownership", [True, False])
def test_without_ownership_results_stay_and_inputs_go(store, ownership):
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(
        base, store, ProxyType(list), ownership=ownership, close_store=False
    ) as executor:
        future = after_callbacks(executor.submit(functions.append, [1], 2))
        result = future.result()
        del future
        reference = proxyexec.reference_of(result)
        del result
    assert store.usage().objects == (0 if ownership else 1)
    store.evict(reference)
    assert store.usage() == (0, 0)


def test_without_ownership_returned_arguments_stay_too():
    base = concurrent.futures.ThreadPoolExecutor(1)
    store = Store("kept", MemoryConnector())
    with StoreExecutor(base, store, ProxyType(list, dict), ownership=False) as executor:
        alone = after_callbacks(executor.submit(functions.identity, [1, 2])).result()
        inside = after_callbacks(executor.submit(functions.pair, [3, 4])).result()
        late = executor.submit(functions.make_list, 2)
    store._leases.flush()
    assert alone == [1, 2]
    assert inside["x"] == [3, 4]
    assert late.result() == [0, 1]
    reference = proxyexec.reference_of(alone)
    del alone
    store._leases.flush()
    assert store.get(reference) == [1, 2]
    store.close()


def test_failures_leave_nothing(store, executor):
    future = after_callbacks(executor.submit(functions.boom, [1], {"x": [2]}))
    assert isinstance(future.exception(), ValueError)
    del future
    gc.collect()
    assert store.usage() == (0, 0)


def test_a_submit_that_fails_half_way_leaves_nothing(store):
    with StoreExecutor(
        concurrent.futures.ProcessPoolExecutor(1), FileConnector(), ProxyAlways()
    ) as executor:
        future = executor.submit(functions.add, [1], functions.Unpicklable())
        error = future.exception()
        assert isinstance(error, pickle.PicklingError)
        assert "argument 1 of add" in str(error)
        assert executor.store.usage() == (0, 0)
        assert executor.submit(functions.add, [1], [2]).result() == [1, 2]


def test_submit_after_shutdown_stores_nothing(store):
    executor = StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), store, ProxyAlways(), close_store=False
    )
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(functions.add, [1], [2])
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(functions.identity, [[1]])
    assert store.usage() == (0, 0)


def test_a_base_that_refuses_leaves_nothing(store):
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, store, ProxyAlways(), close_store=False) as executor:
        base.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(functions.add, [1], [2])
        assert store.usage() == (0, 0)


class SlowConnector(MemoryConnector):
    """Evicts when it is told to."""

    def __init__(self):
        super().__init__()
        self.evicting, self.go_on = threading.Event(), threading.Event()

    def evict(self, keys):
        self.evicting.set()
        assert self.go_on.wait(30)
        super().evict(keys)


def test_slow_eviction_delays_no_result():
    connector = SlowConnector()
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), connector, ProxyAlways()
    ) as executor:
        first = executor.submit(functions.add, [1], [2])
        assert first.result() == [1, 2]
        assert connector.evicting.wait(30)
        assert executor.submit(functions.add, [3], [4]).result() == [3, 4]
        connector.go_on.set()


class FailingConnector(MemoryConnector):
    def evict(self, keys):
        raise ConnectionError("no")


def test_failed_evictions_are_counted_and_logged_once(caplog):
    store = Store("failing", FailingConnector())
    with caplog.at_level(logging.WARNING, "proxyexec"):
        for _ in range(3):
            store.proxy([1])
            store.usage()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "failing" in caplog.text
    assert store._leases.failures == 3
    store.close()


class Flaky(MemoryConnector):
    """Fails to evict until it is told to work, and says when it has evicted."""

    def __init__(self):
        super().__init__()
        self.works = False
        self.asked, self.evicted = [], threading.Event()

    def evict(self, keys):
        self.asked.append(sorted(keys))
        if not self.works:
            raise ConnectionError("not now")
        super().evict(keys)
        self.evicted.set()


def test_what_could_not_be_evicted_is_tried_again(monkeypatch):
    monkeypatch.setattr(proxyexec._ownership, "_RETRY_SECONDS", 0.05)
    connector = Flaky()
    with Store("flaky", connector) as store:
        store.proxy([1])
        assert store.usage().objects == 1
        assert store._leases.failures
        connector.works = True
        assert connector.evicted.wait(30)
        assert connector.usage().objects == 0
        # What has gone is not asked for any more.
        store.proxy([2])
        assert store.usage().objects == 0
        assert len(connector.asked[-1]) == 1


def test_what_could_not_be_evicted_is_tried_again_for_who_wants_to_know():
    connector = Flaky()
    with Store("flaky", connector) as store:
        store.proxy([1])
        assert store.usage().objects == 1
        connector.works = True
        assert store.usage().objects == 0


def test_a_put_that_failed_is_evicted_twice():
    """It may arrive after the first time: from a connection that was given up."""
    late = []

    class Late(MemoryConnector):
        def put(self, key, frames):
            late.append((key, [bytes(frame) for frame in frames]))
            raise ConnectorUnavailableError("far://away", "silence")

    connector = Late()
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), connector, ProxyAlways(), close_store=False
    ) as executor:
        store = executor.store
        with pytest.raises(ConnectorUnavailableError):
            executor.submit(functions.identity, [1]).result()
        assert store.usage().objects == 0
        for key, frames in late:
            MemoryConnector.put(connector, key, frames)
        assert store.usage().objects == 0
    store.close()


class Gone(MemoryConnector):
    def close(self):
        super().close()
        raise ConnectionError("nobody there")


@pytest.mark.parametrize("used", [False, True])
def test_a_store_that_cannot_be_closed_keeps_no_executor_from_ending(used, caplog):
    failures = []
    base = concurrent.futures.ThreadPoolExecutor(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", failures.append)
        executor = StoreExecutor(base, Gone(), ProxyAlways())
        if used:
            assert executor.submit(functions.add, [1], [2]).result() == [1, 2]
        executor.shutdown()
        for thread in threading.enumerate():
            if thread.name.startswith("proxyexec-evict"):
                thread.join(30)
    assert executor.store.closed
    assert not failures
    assert "nobody there" in caplog.text
    with pytest.raises(RuntimeError):
        base.submit(functions.add, 1, 2)


def test_closing_a_store_by_hand_says_what_went_wrong():
    with pytest.raises(ConnectionError, match="nobody there"):
        Store("gone", Gone()).close()


def test_the_store_closes_with_the_last_result():
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), should_proxy=ProxyAlways()
    ) as executor:
        future = executor.submit(functions.make_list, 3)
    result = future.result()
    store = executor.store
    assert result == [0, 1, 2]
    assert store.usage().objects == 1
    del future, result
    with pytest.raises(StoreClosedError):
        store.usage()


def test_a_store_is_left_open_on_request(store, executor):
    executor.shutdown()
    assert store.get(store.put([1])) == [1]


def test_shutdown_without_waiting_lets_tasks_finish(store):
    release = threading.Event()

    def use(items):
        assert release.wait(30)
        return [*items, "done"]

    executor = StoreExecutor(concurrent.futures.ThreadPoolExecutor(1), None, ProxyAlways())
    futures = [executor.submit(use, [n]) for n in range(3)]
    executor.shutdown(wait=False)
    release.set()
    assert [future.result() for future in futures] == [[n, "done"] for n in range(3)]


def test_an_executor_that_is_dropped_lets_go_of_its_store():
    executor = StoreExecutor(concurrent.futures.ThreadPoolExecutor(1), None, ProxyAlways())
    store = executor.store
    result = executor.submit(functions.make_list, 3).result()
    executor._base.shutdown()
    del executor
    gc.collect()
    assert result == [0, 1, 2]
    del result
    with pytest.raises(StoreClosedError):
        store.usage()


def test_a_proxy_keeps_a_dropped_store_alive():
    proxy = Store("dropped", MemoryConnector()).proxy([1, 2])
    gc.collect()
    assert proxy == [1, 2]


def test_two_stores_with_one_name_and_place_do_not_meet(tmp_path):
    first = Store("same", FileConnector(tmp_path))
    second = Store("same", FileConnector(tmp_path))
    one, other = first.proxy([1]), second.proxy([2])
    first.close()
    assert other == [2]
    with pytest.raises(StoreClosedError):
        len(one)
    second.close()


def test_a_forked_child_evicts_nothing(store):
    proxy = store.proxy([1, 2])
    child = os.fork()
    if not child:
        try:
            del proxy
            gc.collect()
            store.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert proxy == [1, 2]


def test_a_fork_while_the_locks_are_held_does_not_block_the_child():
    store = Store("locked", FileConnector())
    proxy = store.proxy([1, 2])
    with store._leases._lock:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if clone(proxy) == [1, 2] and proxyexec.is_proxy(disown(proxy)) else 2
            finally:
                os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    store.close()


def test_finalizers_may_run_inside_the_critical_section(store):
    """The garbage collector can drop a proxy while this thread holds the lock."""
    proxy = store.proxy([1])
    with store._leases._lock:
        del proxy
    assert store.usage() == (0, 0)


def test_many_owned_results_are_freed(store):
    proxies = [store.proxy(n) for n in range(5000)]
    assert store.usage().objects == 5000
    del proxies
    assert store.usage() == (0, 0)


def test_a_worker_that_is_killed_leaves_nothing():
    executor = StoreExecutor(
        concurrent.futures.ProcessPoolExecutor(1), FileConnector(), ProxyAlways(), close_store=False
    )
    future = executor.submit(functions.die, [1, 2])
    assert isinstance(future.exception(), concurrent.futures.BrokenExecutor)
    with pytest.raises(concurrent.futures.BrokenExecutor):
        executor.submit(functions.add, [1], [2])
    executor.shutdown()
    assert executor.store.usage() == (0, 0)
    executor.store.close()


@pytest.mark.parametrize("end", ["pass", "executor.shutdown()", "os.kill(os.getpid(), 15)"])
def test_programs_leave_nothing_however_they_end(tmp_path, end):
    script = f"""
        import concurrent.futures, os, signal, sys
        from proxyexec import ProxyAlways, StoreExecutor
        if __name__ == "__main__":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            base = concurrent.futures.ProcessPoolExecutor(1)
            executor = StoreExecutor(base, "file://{tmp_path}/objects", ProxyAlways())
            results = [executor.submit(sorted, [2, 1]).result() for _ in range(3)]
            assert results[0] == [1, 2]
            pending = executor.submit(sorted, [4, 3])
            {end}
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    said = done.stderr
    if sys.version_info < (3, 12) and "_python_exit" in said and "Bad file descriptor" in said:
        said = ""  # the base executor's: it wakes a thread that has just closed what it wakes it by
    assert (done.returncode, done.stdout, said) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_store_that_is_being_closed_when_the_program_ends_is_closed(tmp_path):
    """It is the evicting thread that closes it, and the program does not wait for that one."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, threading
            from proxyexec import ProxyAlways, StoreExecutor, Store
            from proxyexec_connectors import _sessions
            from concurrent.futures import ThreadPoolExecutor

            entered, ending = threading.Event(), threading.Event()
            remove = _sessions.Session.remove

            def slow_remove(self):
                entered.set()
                ending.wait(60)
                remove(self)

            _sessions.Session.remove = slow_remove
            store = Store.from_url(sys.argv[1])
            with StoreExecutor(ThreadPoolExecutor(1), store, ProxyAlways()) as executor:
                assert executor.submit(len, [1]).result() == 1
            assert entered.wait(60)
            threading._register_atexit(ending.set)
            """
        )
    )
    place = tmp_path / "place"
    subprocess.run([sys.executable, program, place.as_uri()], check=True, timeout=60)
    assert not place.exists() or os.listdir(place) == []


def test_who_waits_for_evictions_waits_for_what_the_evicted_referred_to():
    done = threading.Event()
    late = []

    class Watched(MemoryConnector):
        def evict(self, keys):
            late.append(done.is_set())
            super().evict(keys)

    with Store("watched", Watched()) as store:
        proxy = store.proxy([1])
        for _ in range(20):
            proxy = store.proxy([proxy])
        with store._leases._lock:  # so that it is asked for before the first is seen to be free
            del proxy
            store._leases.post(done)
        assert done.wait(60)
        assert store.usage() == (0, 0)
        assert not any(late)


def test_a_store_is_closed_after_what_was_to_be_evicted_before(caplog):
    """The thread may be at an earlier batch when it is asked to evict, and then to close."""
    entered, released = threading.Event(), threading.Event()

    class Slow(MemoryConnector):
        def evict(self, keys):
            entered.set()
            assert released.wait(60)
            super().evict(keys)

    store = Store("slow", Slow())
    del_soon = store.proxy([1])
    del del_soon
    assert entered.wait(60)
    store.evict_soon(["a key of a worker that died"])
    store.enter()
    store.leave(close=True)
    thread = store._leases._thread
    released.set()
    thread.join(60)
    assert store.closed
    assert store._leases.failures == 0
    assert not caplog.records


def test_a_store_that_held_nothing_is_closed_at_once():
    store = Store("idle", MemoryConnector())
    store.enter()
    store.leave(close=True)
    assert store.closed
    assert store._leases._thread is None


def test_evicting_by_hand_lets_go_of_what_the_object_held():
    with Store("by hand", MemoryConnector()) as store:
        part = store.proxy([1, 2, 3])
        whole = store.proxy({"part": part})
        reference = reference_of(disown(whole))
        del part, whole
        assert store.usage().objects == 2
        store.evict(reference)
        assert store.usage() == (0, 0)


def test_where_no_thread_can_be_started_any_more_results_are_delivered(store, monkeypatch):
    """At the end of a program, by some versions of Python."""

    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, store, ProxyType(list), close_store=False) as executor:
        executor.submit(functions.add, 1, 1).result()  # the pool's thread is there
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert executor.submit(functions.make_list, 3).result() == [0, 1, 2]
            after_callbacks(executor.submit(functions.append, [1], 2))
    assert store.usage() == (0, 0)
