"""Stores by themselves: objects by reference, caching, names and misuse."""

from __future__ import annotations

import pickle

import pytest

from proxyexec import Store, clone, disown, reference_of
from proxyexec.errors import ObjectMissingError, StoreClosedError
from proxyexec_connectors.memory import MemoryConnector


class Counting(MemoryConnector):
    def __init__(self):
        super().__init__()
        self.fetched = 0

    def get(self, key):
        self.fetched += 1
        return super().get(key)


def test_put_get_evict():
    with Store("name", MemoryConnector()) as store:
        reference = store.put({"a": 1})
        assert store.get(reference) == {"a": 1}
        assert store.get(reference) is not store.get(reference)
        assert pickle.loads(pickle.dumps(reference)) == reference
        assert store.usage().objects == 1
        store.evict(reference)
        assert store.get(reference, None) is None
        with pytest.raises(ObjectMissingError, match=reference.key):
            store.get(reference)
        with pytest.raises(LookupError):
            store.get(reference)


def test_references_are_small_and_say_what_they_lead_to():
    with Store("name", MemoryConnector()) as store:
        reference = store.put([b"x" * 100_000])
        assert reference.type_name == "builtins:list"
        assert reference.size > 100_000
        assert len(pickle.dumps(reference)) < 400


def test_misuse_is_a_type_error():
    with Store("name", MemoryConnector()) as store:
        for wrong in ("key", 5, None):
            with pytest.raises(TypeError, match="expected a Reference"):
                store.get(wrong)
        with pytest.raises(TypeError, match="clone"):
            store.proxy(store.proxy([1]))


def test_a_closed_store_says_so():
    store = Store("name", MemoryConnector())
    reference = store.put(1)
    store.close()
    store.close()
    for use in (lambda: store.put(1), lambda: store.get(reference), store.usage):
        with pytest.raises(StoreClosedError, match="'name'"):
            use()


def test_stores_by_url(tmp_path):
    for url in ("memory://", f"file://{tmp_path}/objects", "file://"):
        with Store.from_url(url) as store:
            assert store.get(store.put([1])) == [1]
    with Store.from_url("memory://", name="mine") as store:
        assert store.name == "mine"


def test_an_unpickled_store_is_the_one_that_is_open_here():
    with Store("name", MemoryConnector()) as store:
        assert pickle.loads(pickle.dumps(store)) is store


def test_the_cache_saves_fetches_and_isolates():
    connector = Counting()
    with Store("cached", connector, cache_bytes="1 MB") as store:
        reference = store.put([bytearray(10_000), 1])
        first, second = store.get(reference), store.get(reference)
        assert connector.fetched == 1
        first[0][:] = b"x" * 10_000
        assert second[0] == store.get(reference)[0] == bytearray(10_000)
        store.evict(reference)
        assert store.get(reference, None) is None


def test_the_cache_is_bounded():
    connector = Counting()
    with Store("cached", connector, cache_bytes=25_000) as store:
        references = [store.put(bytes(10_000)) for _ in range(3)]
        for reference in references:
            store.get(reference)
        store.get(references[2])
        store.get(references[1])
        assert connector.fetched == 3
        store.get(references[0])  # the least recently used one had to go
        assert connector.fetched == 4
        large = store.put(bytes(100_000))
        store.get(large)
        store.get(large)
        assert connector.fetched == 6  # larger than the cache: never kept


def test_proxies_inside_a_stored_object_are_kept_with_it():
    with Store("nested", MemoryConnector()) as store:
        inner = store.proxy([1, 2])
        outer = store.proxy({"inner": inner})
        disown(clone(inner))
        del inner
        assert store.usage().objects == 2
        assert outer["inner"] == [1, 2]
        reference = reference_of(outer)
        assert store.get(reference)["inner"] == [1, 2]
        del outer
        assert store.usage() == (0, 0)


def test_a_put_that_fails_after_all_leaves_nothing():
    class Failing(MemoryConnector):
        def put(self, key, frames):
            super().put(key, frames)
            raise ConnectionError("the reply was lost")

    with Store("failing", Failing()) as store:
        for use in (store.put, store.proxy):
            with pytest.raises(ConnectionError):
                use([1, 2, 3])
            assert store.usage() == (0, 0)
