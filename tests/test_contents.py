"""What is stored already is not stored again, while somebody holds it."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from proxyexec import (
    ProcessPoolExecutor,
    ProxyAlways,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
    disown,
    is_proxy,
)
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.conftest import settle


class Watched(MemoryConnector):
    """Counts puts and gets."""

    def __init__(self):
        super().__init__()
        self.puts, self.gets = [], []

    def put(self, key, frames):
        self.puts.append(key)
        super().put(key, frames)

    def get(self, key):
        self.gets.append(key)
        return super().get(key)


@pytest.fixture
def store():
    with Store("contents", Watched()) as store:
        yield store


@pytest.fixture
def gate():
    """Tasks wait for it, so that what they hold is held."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def executor(store, gate):
    base = concurrent.futures.ThreadPoolExecutor(1)
    policy = ProxyType(bytes, bytearray, str, list)
    with StoreExecutor(base, store, policy, close_store=False) as executor:
        yield executor
        gate.set()


def held(gate):
    return lambda *args: gate.wait(60) and [bytes(one) for one in args]


@pytest.mark.parametrize("size", [10, 5_000, 1_000_000])
def test_content_that_is_held_is_stored_once(store, executor, gate, size):
    futures = [executor.submit(held(gate), bytes(size)) for _ in range(64)]
    assert len(store.connector.puts) == 1
    gate.set()
    assert all(future.result() == [bytes(size)] for future in futures)
    settle(executor)
    del futures
    assert store.usage() == (0, 0)


def test_the_processes_of_a_pool_share_an_array():
    np = pytest.importorskip("numpy")
    array = np.arange(100_000.0)
    with ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(np.sum, array) for _ in range(64)]
        assert pool.store.usage().bytes < 2 * array.nbytes
        assert {future.result() for future in futures} == {array.sum()}


def test_what_has_changed_is_stored_anew(store, executor, gate):
    changing = bytearray(1_000_000)
    futures = []
    for place in (0, 400_000, 999_999):  # also where a fingerprint does not look
        futures.append(executor.submit(held(gate), changing))
        changing[place] = 1
    futures.append(executor.submit(held(gate), changing))
    assert len(store.connector.puts) == 4
    gate.set()
    ones = [sum(future.result()[0]) for future in futures]
    assert ones == [0, 1, 2, 3]


def test_alike_is_not_the_same(store, executor, gate):
    """Of equal length, and equal wherever a fingerprint looks."""
    alike = [bytes(400_000) + bytes([n]) + bytes(600_000) for n in range(5)]
    futures = [executor.submit(held(gate), *pair) for pair in zip(alike, alike[1:])]
    assert len(store.connector.puts) == 5
    gate.set()
    assert [future.result() for future in futures] == list(map(list, zip(alike, alike[1:])))


def test_types_are_told_apart(executor):
    with StoreExecutor(concurrent.futures.ThreadPoolExecutor(1), None, ProxyAlways()) as executor:
        values = (1, 1.0, "1", b"1", bytearray(b"1"), [1], (1,))
        futures = [executor.submit(functions.kind, value) for value in values]
        kinds = [future.result()[0] for future in futures]
        results = [executor.submit(functions.identity, value) for value in values]
        assert [type(one.result().__wrapped__) for one in results] == list(map(type, values))
        assert kinds == ["Proxy"] * 7


def test_frames_do_not_run_into_each_other(executor, store):
    np = pytest.importorskip("numpy")
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), store, ProxyType(tuple), close_store=False
    ) as other:
        one = (np.zeros(3_000), np.zeros(4_000))
        two = (np.zeros(4_000), np.zeros(3_000))
        futures = [other.submit(lambda x: [len(part) for part in x], x) for x in (one, two)]
        assert [future.result() for future in futures] == [[3_000, 4_000], [4_000, 3_000]]


def test_what_is_not_held_any_more_is_stored_again(store, executor):
    for _ in range(3):
        executor.submit(functions.identity, b"content").result()
        settle(executor)
        store.usage()  # evicted
    assert len(set(store.connector.puts)) >= 3


def test_what_was_evicted_by_hand_is_stored_again(store, executor, gate):
    first = store.proxy(b"content")  # not what an executor stored: not known by content
    future = executor.submit(held(gate), b"content")
    (key,) = [key for key in store.connector.puts if key != store.connector.puts[0]]
    store.evict_keys([key])
    again = executor.submit(held(gate), b"content")
    gate.set()
    assert again.result() == [b"content"]
    assert future.exception() is not None
    assert first == b"content"


def test_what_was_let_go_of_for_good_is_not_taken(store, executor, gate):
    result = executor.submit(functions.identity, b"content").result()
    disown(result)
    settle(executor)
    assert executor.submit(functions.identity, b"content").result() == b"content"


def test_an_object_that_goes_while_it_is_looked_at_is_stored_again(store, executor, gate):
    """Its last lease is released between finding it and taking hold of it."""
    blocker = executor.submit(gate.wait, 60)
    first = executor.submit(functions.identity, b"content")
    contents = store._contents
    found = contents.candidates

    def find_late(content):
        candidates = found(content)
        if candidates:
            first.cancel()
            store.usage()  # evicted
        return candidates

    contents.candidates = find_late
    second = executor.submit(functions.identity, b"content")
    contents.candidates = found
    gate.set()
    assert blocker.result() is True
    assert first.cancelled()
    assert second.result() == b"content"


def test_it_can_be_switched_off(store, gate):
    base = concurrent.futures.ThreadPoolExecutor(1)
    policy = ProxySize(100)
    with StoreExecutor(base, store, policy, dedupe=False, close_store=False) as executor:
        futures = [executor.submit(held(gate), bytes(1_000)) for _ in range(5)]
        assert len(store.connector.puts) == 5
        gate.set()
        assert len(futures) == 5


def test_new_content_is_not_read_back(store, executor, gate):
    futures = [executor.submit(held(gate), bytes([n]) * 5_000) for n in range(20)]
    assert store.connector.gets == []
    gate.set()
    assert [future.result() for future in futures] == [[bytes([n]) * 5_000] for n in range(20)]


class Remote(Watched):
    """Reading an object back is dear; while it is stored, it may be changed."""

    is_remote = True

    def __init__(self):
        super().__init__()
        self.before = self.after = lambda: None

    def put(self, key, frames):
        self.before()
        super().put(key, frames)
        self.after()


@pytest.fixture
def remote(gate):
    base = concurrent.futures.ThreadPoolExecutor(1)
    with Store("remote", Remote()) as store:
        with StoreExecutor(base, store, ProxyType(bytes, bytearray), close_store=False) as executor:
            yield executor
            gate.set()


@pytest.mark.parametrize("size", [10, 5_000, 1_000_000])
def test_nothing_is_read_back_from_afar(remote, gate, size):
    futures = [remote.submit(held(gate), bytes(size)) for _ in range(64)]
    assert len(remote.store.connector.puts) == 1
    assert remote.store.connector.gets == []
    gate.set()
    assert all(future.result() == [bytes(size)] for future in futures)


def test_what_was_lost_afar_is_stored_again(remote, gate):
    """By a server that started again empty, say."""
    lost = remote.submit(held(gate), b"content")
    connector = remote.store.connector
    connector.evict(connector.puts[:])
    again = remote.submit(held(gate), b"content")
    once_more = remote.submit(held(gate), b"content")
    assert len(connector.puts) == 2
    gate.set()
    assert again.result() == once_more.result() == [b"content"]
    assert lost.exception() is None or lost.exception().key == connector.puts[0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_changes_while_it_is_stored_is_not_taken_for_what_it_was(remote, gate, when):
    def change():
        changing[400_000] = 1  # where a fingerprint does not look

    changing = bytearray(1_000_000)
    old, new = bytearray(changing), bytearray(changing)
    new[400_000] = 1
    connector = remote.store.connector
    setattr(connector, when, change)
    first = remote.submit(held(gate), changing)
    setattr(connector, when, lambda: None)
    others = [remote.submit(held(gate), one) for one in (old, new)]
    gate.set()
    assert first.result() in ([bytes(old)], [bytes(new)])
    assert [future.result() for future in others] == [[bytes(old)], [bytes(new)]]


def test_parts_share_their_place_too(gate):
    store = Store("parts", FileConnector())
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, store, ProxySize(1_000), nested=True) as executor:
        model = bytes(100_000)
        blocker = executor.submit(gate.wait, 60)
        futures = [
            executor.submit(lambda x: (is_proxy(x["model"]), x["n"]), {"model": model, "n": n})
            for n in range(10)
        ]
        assert store.usage().objects == 1
        gate.set()
        assert [future.result() for future in futures] == [(True, n) for n in range(10)]
        assert blocker.result() is True


def test_objects_that_refer_to_others_are_stored_once_too(store, executor, gate):
    proxy = store.proxy([1, 2])
    futures = [executor.submit(lambda x: gate.wait(60) and x[0][1], [proxy]) for _ in range(5)]
    assert len(store.connector.puts) == 2
    del proxy
    gate.set()
    assert [future.result() for future in futures] == [2] * 5
    settle(executor)
    assert store.usage() == (0, 0)


def test_what_nobody_holds_is_not_looked_at_for_ever(store):
    base = concurrent.futures.ThreadPoolExecutor(1)
    options = {"ownership": False, "close_store": False}
    with StoreExecutor(base, store, ProxyType(bytes), **options) as executor:
        for _ in range(20):
            executor.submit(functions.identity, b"content").result()
            settle(executor)
            store._leases.flush()
    assert sum(map(len, store._contents._stored.values())) <= 1
