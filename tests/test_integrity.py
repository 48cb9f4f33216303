"""What was changed where it is stored is told from what was stored, and never unpickled."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

import proxyexec._integrity
import proxyexec._store
from proxyexec import (
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
    is_resolved,
    reference_of,
    resolve,
)
from proxyexec._integrity import Seal
from proxyexec._task import Task
from proxyexec.errors import (
    IntegrityError,
    ProxyExecError,
)
from proxyexec_connectors import _host_cache
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.chaos.census import eventually
from tests.chaos.places import KINDS, place_of
from tests.chaos.tampering import (
    Trap,
    everything_in,
    flip,
    put_run,
    run_in,
    run_of,
    swap,
    truncate,
)

np = pytest.importorskip("numpy")

# Read, and mapped; a string in Redis. Then a segment in shared memory, and a hash in Redis.
SIZES = (100, 100_000, 3_000_000)

HAS_CRYPTOGRAPHY = find_spec("cryptography") is not None
METHODS = ["HMAC-SHA-256", *(["AES-GMAC"] if HAS_CRYPTOGRAPHY else [])]


@pytest.fixture(scope="module", params=KINDS)
def place(request):
    with place_of(request.param) as place:
        yield place


@pytest.fixture(scope="module")
def redis_place():
    with place_of("redis") as place:
        yield place


@pytest.fixture
def store(place):
    with Store.from_url(place.url, integrity=True) as store:
        yield store


def an_object(size, n=1):
    return [n, np.arange(size // 8) + n]


def same(one, other):
    return one[0] == other[0] and np.array_equal(one[1], other[1])


def refused(error, reference, store):
    """Whether an error is the right one."""
    assert isinstance(error, (ProxyExecError, ValueError))
    assert (error.key, error.url) == (reference.key, store.connector.url)
    assert error.key in str(error) and error.url in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (IntegrityError, str(error))
    return True


# What is done to an object


@pytest.mark.parametrize("size", SIZES)
def test_what_is_left_alone_comes_back(place, store, size):
    reference = store.put(an_object(size))
    assert same(store.get(reference), an_object(size))
    put_run(place, reference.key, run_in(place, reference.key))
    assert same(store.get(reference), an_object(size))
    store.evict(reference)
    assert store.get(reference, None) is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", ["read before", "never read"])
def test_a_truncated_object_is_refused(place, store, size, before):
    reference = store.put(an_object(size))
    if before == "read before":
        assert same(store.get(reference), an_object(size))
        gc.collect()  # so that nobody has it mapped, but for the next time
    truncate(place, reference.key)
    with pytest.raises(IntegrityError) as caught:
        store.get(reference)
    assert refused(caught.value, reference, store)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "where", ["magic", "count", "length", "envelope", "pickle", "middle", "end"]
)
def test_a_flipped_bit_is_refused(place, store, size, where):
    reference = store.put(an_object(size))
    length = len(run_in(place, reference.key))
    position = {
        **{"magic": 0, "count": 9, "length": 17, "envelope": 64, "pickle": 130},
        **{"middle": (length + 128) // 2, "end": length - 1},
    }[where]
    flip(place, reference.key, position)
    with pytest.raises(IntegrityError) as caught:
        store.get(reference)
    assert refused(caught.value, reference, store)
    flip(place, reference.key, position)
    assert same(store.get(reference), an_object(size))


@pytest.mark.parametrize("size", SIZES)
def test_another_valid_object_is_refused(place, store, size):
    reference, other = store.put(an_object(size)), store.put(an_object(size, 2))
    put_run(place, reference.key, run_in(place, other.key))
    with pytest.raises(IntegrityError) as caught:
        store.get(reference)
    assert refused(caught.value, reference, store)
    assert same(store.get(other), an_object(size, 2))


@pytest.mark.parametrize("size", SIZES)
def test_objects_that_changed_places_are_refused(place, store, size):
    references = [store.put(an_object(size, n)) for n in range(2)]
    swap(place, *(reference.key for reference in references))
    for reference in references:
        with pytest.raises(IntegrityError):
            store.get(reference)


@pytest.mark.parametrize("size", SIZES)
def test_a_trap_is_not_unpickled(place, store, size, tmp_path):
    trace = tmp_path / "trace"
    reference = store.put(an_object(size))
    put_run(place, reference.key, run_of(Trap(str(trace))))
    with pytest.raises(IntegrityError) as caught:
        store.get(reference)
    assert refused(caught.value, reference, store)
    assert not trace.exists()


def test_without_integrity_the_trap_works(place, tmp_path):
    """Or the test above would show nothing."""
    trace = tmp_path / "trace"
    with Store.from_url(place.url, integrity=False) as store:
        reference = store.put([1])
        put_run(place, reference.key, run_of(Trap(str(trace))))
        store.get(reference).close()
    assert trace.exists()


@pytest.mark.parametrize("method", METHODS)
def test_lengths_of_frames_count(method):
    """No byte may move from one frame to the next, nor from the key to the header."""
    seal = Seal("memory://x", "memory://", method, bytes(32))
    tags = [
        seal._tag(key, frames, bytes(12))
        for key in ("k", "ke", "")
        for frames in ([], [b""], [b"", b""], [b"ab"], [b"a", b"b"], [b"", b"ab"], [b"ba"])
    ]
    assert len(set(tags)) == len(tags) == 21
    other = Seal("memory://x", "memory://", method, bytes(31) + b"1")
    assert other._tag("k", [b"ab"], bytes(12)) not in tags
    assert seal._tag("k", [b"ab"], bytes(11) + b"1") not in tags


@pytest.mark.parametrize("method", METHODS)
def test_each_digest_has_a_number_of_its_own(method):
    seal = Seal("memory://x", "memory://", method, bytes(32))
    digests = [seal.digest("k", [b"frame"]) for _ in range(100)]
    assert len({digest[:12] for digest in digests}) == 100
    with Store.from_url("memory://", integrity=True) as store:
        reference = store.put(1)
        for digest in (digests[0], digests[0][:-1], b"1", bytes(28), bytes(1000)):
            with pytest.raises(IntegrityError):
                store.get(reference._replace(digest=digest))


@pytest.mark.parametrize("method", METHODS)
def test_frames_of_any_length_and_form_have_digests(monkeypatch, method):
    seal = Seal("memory://x", "memory://", method, bytes(32))
    array = np.arange(1000.0).reshape(10, 10, 10)
    tag = seal._tag("k", [array, b""], bytes(12))
    for joined, at_once in ((0, 1000), (0, 7), (100_000, 1000)):
        monkeypatch.setattr(proxyexec._integrity, "_JOINED_BYTES", joined)
        monkeypatch.setattr(proxyexec._integrity, "_AT_ONCE", at_once)
        assert seal._tag("k", [array.tobytes(), b""], bytes(12)) == tag


# When it counts


def test_redis_has_it_and_others_do_not(redis_place):
    with Store.from_url(redis_place.url) as store:
        assert store.put(1).digest
    with Store.from_url(redis_place.url, integrity=False) as store:
        assert store.put(1).digest == b""
    for url in ("file://", "memory://"):
        with Store.from_url(url) as store:
            assert store.put(1).digest == b""
        with Store.from_url(url, integrity=True) as store:
            reference = store.put([1])
            assert reference.digest and store.get(reference) == [1]
    with Store("mine", FileConnector(), integrity=True) as store:
        assert store.put(1).digest


def test_the_digest_is_short_and_travels_with_the_reference(store):
    reference = store.put([b"x" * 100_000])
    assert pickle.loads(pickle.dumps(reference)) == reference
    assert len(reference.digest) == 28
    assert len(pickle.dumps(reference)) < 400


def test_a_reference_without_digest_is_refused(place):
    for cache_bytes in (0, "1 MB"):
        with Store.from_url(place.url, integrity=True, cache_bytes=cache_bytes) as store:
            reference = store.put([1])
            assert store.get(reference) == [1]
            with pytest.raises(IntegrityError, match="no digest"):
                store.get(reference._replace(digest=b""))
            with pytest.raises(IntegrityError):
                store.get(reference._replace(digest=bytes(16)))
            with pytest.raises(IntegrityError):
                store.get(reference._replace(key=store.put([2]).key))


def test_what_is_in_the_cache_was_verified(place):
    with Store.from_url(place.url, integrity=True, cache_bytes="1 MB") as store:
        reference = store.put([1])
        flip(place, reference.key, -1)
        with pytest.raises(IntegrityError):
            store.get(reference)
        flip(place, reference.key, -1)
        assert store.get(reference) == [1]
        flip(place, reference.key, -1)
        assert store.get(reference) == [1]


def test_a_store_without_integrity_has_no_way_to_tell():
    with Store.from_url("memory://") as store:
        reference = store.put([1])._replace(digest=bytes(16))
        with pytest.raises(IntegrityError, match="handed"):
            store.get(reference)


class Changing(MemoryConnector):
    """Somebody changes an array while it is being stored."""

    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after

    def put(self, key, frames):
        before, self.before = self.before, lambda: None
        before()
        super().put(key, frames)
        after, self.after = self.after, lambda: None
        after()


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_changes_while_it_is_stored_can_be_fetched(when):
    array = np.zeros(100_000)

    def change():
        array[50_000] = 1

    steps = {"before": lambda: None, "after": lambda: None, when: change}
    with Store("changing", Changing(**steps), integrity=True) as store:
        reference = store.put(array)
        assert store.get(reference).sum() in (0, 1)
        assert store.usage().objects == 1


# In executors


def wait_and_sum(started, release, array):
    functions.touch_then_wait(started, release)
    return float(np.sum(array))


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_task_does_not_get_an_argument_that_was_changed(place, tmp_path, lazy, size):
    store = Store.from_url(place.url, integrity=True)
    trace, started, release = (str(tmp_path / name) for name in ("trace", "started", "release"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as base:
        with StoreExecutor(base, store, ProxyType(np.ndarray), lazy=lazy) as executor:
            executor.submit(functions.touch_then_wait, started, release)
            futures = [executor.submit(np.sum, np.full(size // 8, n)) for n in range(3)]
            keys = sorted(place_keys(place), key=lambda key: int(key.partition("-")[2]))
            put_run(place, keys[1], run_of(Trap(trace)))
            open(release, "x").close()
            assert futures[0].result() == 0
            assert isinstance(futures[1].exception(), IntegrityError)
            assert futures[2].result() == 2 * (size // 8)
            assert executor.submit(functions.add, 1, 2).result() == 3
            assert not os.path.exists(trace)
            del futures
    eventually(lambda: place.objects() == [], "all is evicted")


def place_keys(place):
    return [name.rpartition("/")[2].rpartition(":")[2] for name in place.objects()]


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_the_caller_does_not_get_a_result_that_was_changed(place, tmp_path, lazy, size):
    store = Store.from_url(place.url, integrity=True)
    trace = str(tmp_path / "trace")
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as base:
        with StoreExecutor(base, store, ProxyType(np.ndarray), lazy=lazy) as executor:
            future = executor.submit(np.zeros, size // 8)
            settled = threading.Event()
            future.add_done_callback(lambda _: settled.set())
            assert settled.wait(60)
            [key] = place_keys(place)
            put_run(place, key, run_of(Trap(trace)))
            with pytest.raises(IntegrityError) as caught:
                resolve(future.result())
            assert caught.value.key == key
            assert not os.path.exists(trace)
            assert executor.submit(np.zeros, 3).result().sum() == 0
            del future, caught
    eventually(lambda: place.objects() == [], "the result is evicted")


def test_parts_and_what_callables_carry_are_verified(place, tmp_path):
    store = Store.from_url(place.url, integrity=True)
    trace = str(tmp_path / "trace")
    with ThreadPoolExecutor(1) as base:
        with StoreExecutor(base, store, ProxySize(1000), nested=True) as executor:
            release = threading.Event()
            executor.submit(release.wait, 60)
            future = executor.submit(lambda x: x["part"].sum(), {"part": np.zeros(1000)})
            [key] = place_keys(place)
            put_run(place, key, run_of(Trap(trace)))
            release.set()
            assert isinstance(future.exception(), IntegrityError)
            assert not os.path.exists(trace)


def upper(text):
    return bytes(text).upper()


def test_content_that_was_changed_is_not_shared(place):
    store = Store.from_url(place.url, integrity=True)
    with ThreadPoolExecutor(1) as base:
        with StoreExecutor(base, store, ProxyType(bytes), close_store=False) as executor:
            release = threading.Event()
            executor.submit(release.wait, 60)
            first = executor.submit(upper, b"a" * 5_000)
            [key] = place_keys(place)
            put_run(place, key, run_of(b"b" * 5_000))
            # Equal to what is there now, and not to what was stored.
            second = executor.submit(upper, b"b" * 5_000)
            release.set()
            assert isinstance(first.exception(), IntegrityError)
            assert second.result() == b"B" * 5_000
            del first, second
    store.close()


def test_an_unchanged_argument_is_passed_on_without_being_read_back(place):
    store = Store.from_url(place.url, integrity=True)
    with ThreadPoolExecutor(1) as base:
        with StoreExecutor(base, store, ProxyType(list)) as executor:
            mine = store.proxy([1, 2])
            resolve(mine)
            assert is_resolved(mine)
            same_one = executor.submit(functions.identity, mine).result()
            assert reference_of(same_one) == reference_of(mine)
            mine.append(3)
            other = executor.submit(functions.identity, mine).result()
            assert reference_of(other) != reference_of(mine)
            assert other == [1, 2, 3]
            del mine, same_one, other
    eventually(lambda: place.objects() == [], "all is evicted")


def test_what_the_processes_of_a_host_share_is_verified(redis_place, tmp_path):
    store = Store.from_url(redis_place.url)
    trace = str(tmp_path / "trace")
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as base:
        with StoreExecutor(base, store, ProxyType(np.ndarray)) as executor:
            array = store.proxy(np.zeros(1_000_000))
            assert executor.submit(np.sum, array).result() == 0
            session = Path(_host_cache._SHARED_MEMORY, f"proxyexec-{os.geteuid()}")
            [shared] = session.glob(f"session-{store.connector._session}/*")
            for where, what in ((4_000_000, b"\1"), (0, run_of(Trap(trace)))):
                with shared.open("r+b") as file:
                    file.seek(where)
                    file.write(what)
                error = executor.submit(np.sum, array).exception()
                assert isinstance(error, IntegrityError)
            assert not os.path.exists(trace)
            os.unlink(shared)
            assert executor.submit(np.sum, array).result() == 0
            del array
    eventually(lambda: redis_place.objects() == [], "all is evicted")


# Who has the secret


def read(store, reference):
    return store.get(reference)


def follow(reference):
    return proxyexec._store.fetch(reference)


def total_of(proxies):
    return sum(sum(proxy) for proxy in proxies)


def put_elsewhere(url):
    """Make a store in a worker, and return a proxy of what is in it, and the store."""
    store = Store.from_url(url, integrity=True)
    KEPT.append(store)
    disowned = store.put([7])
    return [proxyexec._proxy.make_proxy(disowned), store, disowned]


KEPT = []


class Lent(Executor):
    """Workers that outlive the executors around them."""

    def __init__(self, pool):
        self.submit = pool.submit

    def shutdown(self, wait=True):
        # Results can be read before the callbacks have run, which run in the order of the results.
        ended = threading.Event()
        self.submit(os.getpid).add_done_callback(lambda _: ended.set())
        assert ended.wait(60)


@pytest.fixture(scope="module")
def workers():
    """A process that has inherited no store, and no secret."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        pool.submit(os.getpid).result()
        yield Lent(pool)


@pytest.fixture
def files(shared_memory):
    with Store("files", FileConnector(shared_memory / "files"), integrity=True) as store:
        yield store


def test_an_address_is_not_enough(store, workers):
    reference = store.put([1])
    error = workers.submit(follow, reference).exception()
    assert isinstance(error, IntegrityError)
    assert "send the store itself" in str(error)
    assert workers.submit(read, store, reference).result() == [1]
    # From then on it is known there.
    assert workers.submit(follow, reference).result() == [1]


@pytest.mark.parametrize("policy", [ProxyAlways(), ProxyNever(), ProxySize("1 MB")])
def test_other_stores_can_be_given_to_tasks(files, workers, policy, shared_memory):
    """As arguments, inside of them, and in what callables carry; the executor has its own."""
    reference = files.put([1, 2])
    mine = Store("mine", FileConnector(shared_memory / "mine"))
    with StoreExecutor(workers, mine, policy, lazy=False) as executor:
        assert executor.submit(read, files, reference).result() == [1, 2]
        assert executor.submit(lambda: files.get(reference)).result() == [1, 2]


@pytest.mark.parametrize("form", ["itself", "in a list", "in a dict", "carried", "map"])
@pytest.mark.parametrize("policy", [ProxyAlways(), ProxyNever(), ProxySize("1 MB")])
def test_proxies_from_other_stores_can_be_used_by_tasks(
    files, workers, policy, form, shared_memory
):
    if type(policy) is ProxyNever and form in ("in a list", "in a dict"):
        pytest.skip("these calls pass through untouched")
    proxy = files.proxy([1, 2])
    mine = Store("mine", FileConnector(shared_memory / "mine"))
    with StoreExecutor(workers, mine, policy, lazy=False) as executor:
        if form == "itself":
            assert executor.submit(sum, proxy).result() == 3
        elif form == "in a list":
            assert executor.submit(total_of, [proxy, proxy]).result() == 6
        elif form == "in a dict":
            given = {"deep": [{"down": proxy}]}
            assert executor.submit(lambda x: sum(x["deep"][0]["down"]), given).result() == 3
        elif form == "carried":
            assert executor.submit(lambda: sum(proxy)).result() == 3
        else:
            assert list(executor.map(total_of, [[proxy], [proxy]], chunksize="auto")) == [3, 3]


def test_parts_may_refer_to_other_stores(files, workers, shared_memory):
    proxy = files.proxy([1, 2])
    mine = Store("mine", FileConnector(shared_memory / "mine"))
    with StoreExecutor(workers, mine, ProxyType(list), nested=True) as executor:
        given = {"part": [proxy, files]}
        assert executor.submit(lambda x: sum(x["part"][0]), given).result() == 3


@pytest.mark.parametrize("policy", [ProxyAlways(), ProxySize("1 MB")])
def test_results_may_come_from_stores_of_a_worker(place, workers, policy, shared_memory):
    mine = Store("mine", FileConnector(shared_memory / "mine"))
    with StoreExecutor(workers, mine, policy) as executor:
        proxy, theirs, reference = executor.submit(put_elsewhere, place.url).result()
        assert proxy == [7]
        assert theirs.get(reference) == [7]
        theirs.close()


class Recording(FileConnector):
    """Remembers what is stored."""

    def put(self, key, frames):
        RECORDED.extend(map(bytes, frames))
        super().put(key, frames)


RECORDED = []


def test_executors_can_be_wrapped(workers, shared_memory):
    """The inner one may store the outer one's tasks, which would hold the outer one's secret."""
    RECORDED.clear()
    inner = Store("inner", Recording(shared_memory / "inner"), integrity=True)
    outer = Store("outer", Recording(shared_memory / "outer"), integrity=True)
    with StoreExecutor(workers, inner, ProxyType(Task)) as first:
        with StoreExecutor(first, outer, ProxyType(list)) as second:
            assert second.submit(functions.append, [1], 2).result() == [1, 2]
    recorded = b"".join(RECORDED)
    assert b"proxyexec._task" in recorded
    assert not any(store.seal._secret in recorded for store in (inner, outer))


def test_the_secret_is_stored_nowhere(place, workers):
    store = Store.from_url(place.url, integrity=True)
    with Store.from_url(place.url, integrity=True) as other:
        secrets = [one.seal._secret for one in (store, other)]
        assert all(len(secret) == 32 for secret in secrets)
        pickles = [store.put(one) for one in (store, [other], {"x": (store.seal, other.connector)})]
        with StoreExecutor(workers, store, ProxyAlways(), nested=True) as executor:
            results = [
                executor.submit(functions.identity, one).result()
                for one in (store, [store, other], {"other": other})
            ]
            reference = other.put([5])
            assert [resolve(one) for one in results] == [None] * 3
            assert results[2]["other"].get(reference) == [5]
            stored = everything_in(place)
            assert len(stored) > 1000
            for secret in secrets:
                assert secret not in stored
                for text in (repr(store), repr(store.seal), repr(pickles), store.address):
                    assert repr(secret)[2:-1] not in text
                    assert secret.hex() not in text
            # And it is where it has to be: the check looks for the right thing.
            assert secrets[0] in pickle.dumps(store)
            del results


def test_secrets_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(proxyexec._integrity, "_HANDED_AT_MOST", 3)
    seals = [Seal.new(f"memory://{n}", "memory://") for n in range(5)]
    for seal in seals:
        pickle.loads(pickle.dumps(seal))
    known = [proxyexec._integrity.handed_seal(seal.address) is not None for seal in seals]
    assert known == [False, False, True, True, True]
    for seal in seals:
        proxyexec._integrity._handed.pop(seal.address, None)


def test_a_store_whose_secret_is_elsewhere_stores_nothing():
    address = "memory://elsewhere"
    seal = Seal(address, "memory://", "HMAC-SHA-256", None)
    with pytest.raises(IntegrityError, match="handed"):
        seal.digest("key", [b"frame"])


def without_cryptography(code):
    """Run code in an interpreter that cannot import cryptography."""
    blocked = "import sys; sys.modules['cryptography'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False
    )


def test_it_works_without_cryptography_where_the_store_is_made_without(tmp_path):
    code = f"""
from proxyexec import Store
from proxyexec.errors import IntegrityError
with Store.from_url({f"file://{tmp_path}/objects"!r}, integrity=True) as store:
    assert store.seal.method == "HMAC-SHA-256"
    one, other = store.put([1]), store.put([2])
    assert store.get(one) == [1]
    try:
        store.get(one._replace(key=other.key))
    except IntegrityError:
        print("refused")
"""
    ended = without_cryptography(code)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


def test_cryptography_is_asked_for_where_it_is_needed():
    code = """
from proxyexec._integrity import Seal
from proxyexec._task import Task
from proxyexec.errors import MissingExtraError
try:
    Seal("memory://x", "memory://", "AES-GMAC", bytes(32)).digest("key", [])
except MissingExtraError as error:
    print(error)
"""
    ended = without_cryptography(code)
    assert "AES-GMAC needs the extra 'redis'" in ended.stdout, ended.stderr
