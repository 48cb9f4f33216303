"""What a policy wants inside of objects: found, stored by itself, and put back in its place."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import gc
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from proxyexec import ProxyAlways, ProxySize, ProxyType, Store, StoreExecutor, is_proxy, resolve
from proxyexec.errors import ConnectorFullError, PolicyError, SerializationError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.conftest import settle, wait_for_evictions


def make(policy, *, base="fork", **options):
    pool = (
        concurrent.futures.ThreadPoolExecutor(1)
        if base == "thread"
        else concurrent.futures.ProcessPoolExecutor(1)
    )
    store = Store("parts", FileConnector())
    return StoreExecutor(pool, store, policy, close_store=False, nested=True, **options)


@pytest.fixture
def run(request):
    """Submit with a policy, and see that nothing is left once the result is dropped."""
    executors = {}

    def submit(policy, function, *args, base="fork", **options):
        key = (repr(policy), base, *options.items())
        if key not in executors:
            executors[key] = make(policy, base=base, **options)
        return executors[key].submit(function, *args).result()

    yield submit
    for executor in executors.values():
        executor.shutdown()
        gc.collect()
        assert executor.store.usage() == (0, 0)
        executor.store.close()


@dataclasses.dataclass
class Plain:
    items: list
    name: str = "plain"


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    items: list
    name: str


Pair = collections.namedtuple("Pair", "items name")


class Stateful:
    def __init__(self, items):
        self.items = items
        self.lock = threading.Lock()

    def __getstate__(self):
        return {"items": self.items}

    def __setstate__(self, state):
        self.__dict__.update(state, lock=threading.Lock())


class Opaque:
    """Pickles in a way of its own."""

    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        return Opaque, (self.items,)


@pytest.mark.parametrize("base", ["fork", "thread"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"items": x},
        lambda x: Plain(x),
        lambda x: SimpleNamespace(items=x),
        lambda x: Stateful(x),
        lambda x: collections.OrderedDict(items=x),
        lambda x: collections.defaultdict(int, items=x),
    ],
    ids=["dict", "dataclass", "namespace", "getstate", "ordered", "defaultdict"],
)
def test_parts_of_containers_and_objects_are_proxied(run, wrap, base):
    assert run(ProxyType(list), functions.seen, wrap([1, 2]), base=base)["items"] is True
    assert run(ProxyType(set), functions.seen, wrap([1, 2]), base=base)["items"] is False


@pytest.mark.parametrize("wrap", [Slotted, Pair], ids=["slots", "namedtuple"])
def test_parts_of_what_has_no_dict_are_proxied(run, wrap):
    see = lambda x: (is_proxy(x.items), list(x.items), is_proxy(x.name))
    assert run(ProxyType(list), see, wrap([1, 2], "name")) == (True, [1, 2], False)


@pytest.mark.parametrize("wrap", [list, tuple, collections.deque], ids=lambda kind: kind.__name__)
def test_parts_of_sequences_are_proxied(run, wrap):
    see = lambda x: [is_proxy(one) for one in x]
    assert run(ProxyType(dict), see, wrap([{1: 2}, 3])) == [True, False]


def test_parts_are_found_at_any_depth(run):
    deep = {"a": [{"b": (Plain([1]),)}]}
    see = lambda x: (is_proxy(x["a"][0]["b"][0].items), x["a"][0]["b"][0].items[0])
    assert run(ProxyType(list) & (lambda one: one == [1]), see, deep) == (True, 1)


def test_parts_of_results_are_proxied(run):
    result = run(ProxyType(list), lambda: {"a": [1], "b": Plain([2]), "c": 3})
    assert functions.seen(result) == {"a": True, "b": False, "c": False}
    assert is_proxy(result["b"].items)
    assert (result["a"], result["b"].items) == ([1], [2])


@pytest.mark.parametrize("base", ["fork", "thread"])
def test_without_laziness_nobody_sees_a_proxy(run, base):
    see = lambda x: (type(x["a"]), type(x["b"].items))
    value = {"a": [1], "b": Plain([2])}
    assert run(ProxyType(list), see, value, base=base, lazy=False) == (list, list)
    result = run(ProxyType(list), functions.identity, value, base=base, lazy=False)
    assert type(result["a"]) is list
    assert type(result["b"].items) is list
    assert result == value


@pytest.mark.parametrize("lazy", [True, False])
def test_a_part_that_occurs_twice_is_one_object(run, lazy):
    part = [1, 2]
    see = lambda x: functions.same_objects([x["a"], x["b"], x["c"].items])
    value = {"a": part, "b": part, "c": Plain(part)}
    assert run(ProxyType(list), see, value, lazy=lazy) is True
    result = run(ProxyType(list), functions.identity, value, lazy=lazy)
    assert see(result) is True


def test_recursive_structures(run):
    loop = {"items": [1]}
    loop["self"] = loop
    result = run(ProxyType(list), functions.identity, loop)
    assert result["self"] is result
    assert result["items"] == [1]


def test_what_the_policy_wants_is_stored_whole(run):
    whole = run(ProxyType(dict), lambda x: (is_proxy(x), is_proxy(x["a"])), {"a": {"b": 1}})
    assert whole == (True, False)
    assert run(ProxyAlways(), lambda x: (is_proxy(x), is_proxy(x[0])), [[1]]) == (True, False)


def test_a_size_counts_what_is_left():
    with make(ProxySize(50_000)) as executor:
        see = lambda x: (is_proxy(x), functions.seen(x))
        large, small = bytes(100_000), bytes(10_000)
        assert executor.submit(see, {"a": large, "b": small}).result() == (
            False,
            {"a": True, "b": False},
        )
        # Together the small ones are large.
        proxied, parts = executor.submit(see, {n: bytes([n]) * 10_000 for n in range(8)}).result()
        assert proxied and not any(parts.values())
        executor.store.close()


@pytest.mark.parametrize("minimum", [20_000, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda n: "é" * n], ids=["b", "ba", "str"])
def test_large_text_and_bytes_are_parts(run, minimum, kind):
    value = {"large": kind(200_000), "small": kind(2_000)}
    assert run(ProxySize(minimum), functions.seen, value) == {"large": True, "small": False}
    returned = run(ProxySize(minimum), functions.identity, value)
    assert functions.seen(returned) == {"large": True, "small": False}
    assert returned == value


def test_short_text_and_bytes_stay_where_they_are(run):
    assert run(ProxyType(str), functions.seen, {"a": "x" * 100}) == {"a": False}
    assert run(ProxyType(str), functions.seen, {"a": "x" * 5_000}) == {"a": True}


def test_keys_stay_what_they_are(run):
    long = "k" * 5_000
    keys = lambda x: [type(key) for key in x]
    assert run(ProxyType(str), keys, {long: 1}) == [str]


def test_the_insides_of_what_pickles_in_its_own_way_stay_real(run):
    see = lambda x: (is_proxy(x), is_proxy(x.items))
    assert run(ProxyType(list), see, Opaque([1])) == (False, False)
    assert run(ProxyType(list), lambda x: see(x["a"]), {"a": Opaque([1])}) == (False, False)
    assert run(ProxyType(Opaque), lambda x: see(x["a"]), {"a": Opaque([1])}) == (True, False)


def test_arrays_and_data_frames(run):
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    array = np.arange(1000.0)
    frame = pd.DataFrame({"a": array, "b": array > 5})
    value = {"array": array, "frame": frame, "number": 5}
    arrays = run(ProxyType(np.ndarray), functions.seen, value)
    assert arrays == {"array": True, "frame": False, "number": False}
    sizes = run(ProxySize(5_000), functions.seen, value)
    assert sizes == {"array": True, "frame": True, "number": False}
    inside = run(ProxyType(np.ndarray), lambda x: float(x["frame"]["a"].sum()), value)
    assert inside == array.sum()
    result = run(ProxySize(5_000), lambda: {"frames": [frame, frame], "array": array})
    assert is_proxy(result["array"])
    assert [is_proxy(one) for one in result["frames"]] == [True, True]
    pd.testing.assert_frame_equal(resolved(result["frames"][0]), frame)


def resolved(proxy):
    resolve(proxy)
    return proxy.__wrapped__


def test_functions_and_classes_inside_are_never_parts(run):
    local = lambda: 5

    class Local:
        text = "long" * 1000

    value = {"a": local, "b": Local, "c": functions.add, "d": len}
    assert not any(run(ProxyType(object), functions.seen, Plain([value])).values())
    policy = ProxyType(list, str, bytes)  # names and code are text and bytes
    see = lambda x: (x["a"](), x["b"].text[:4], x["c"](1, 2), x["d"]("ab"))
    assert run(policy, see, value) == (5, "long", 3, 2)


def test_unresolved_proxies_inside_are_passed_on(run):
    with make(ProxyType(dict)) as executor:
        kept = executor.store.proxy([1, 2])
        result = executor.submit(lambda x: x["part"]["proxy"][0], Plain([1])).exception()
        assert isinstance(result, TypeError)
        inner = {"proxy": kept}
        assert executor.submit(lambda x: x[0]["proxy"][1], (inner,)).result() == 2
        del kept, inner, result
        settle(executor)
        assert executor.store.usage() == (0, 0)
        executor.store.close()


def test_a_policy_that_raises_about_a_part_fails_the_future():
    def picky(obj):
        if obj == [13]:
            raise KeyError("picky")
        return False

    with make(picky) as executor:
        error = executor.submit(functions.identity, {"a": [13]}).exception()
        assert isinstance(error, PolicyError)
        assert "a part of argument 0 of identity" in str(error)
        error = executor.submit(lambda: {"a": [13]}).exception()
        assert isinstance(error, PolicyError)
        assert "a part of the result" in str(error)
        executor.store.close()


@pytest.mark.parametrize("base", ["fork", "thread"])
def test_parts_of_what_cannot_be_pickled_are_not_left(base):
    with make(ProxyType(list), base=base) as executor:
        bad = {"a": [1], "b": functions.Unpicklable()}
        if base == "fork":
            assert isinstance(executor.submit(len, bad).exception(), SerializationError)
            error = executor.submit(lambda: {"a": [1], "b": functions.Unpicklable()}).exception()
            assert isinstance(error, SerializationError)
        else:  # threads can pass it on as it is
            assert executor.submit(functions.seen, bad).result() == {"a": False, "b": False}
        settle(executor)
        assert executor.store.usage() == (0, 0)
        executor.store.close()


class Small(FileConnector):
    """Has room for one object."""

    def put(self, key, frames):
        if self.usage().objects:
            raise ConnectorFullError(self.url, 1, 0)
        super().put(key, frames)


def test_a_store_that_fills_up_half_way_keeps_no_part():
    executor = StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1),
        Store("small", Small()),
        ProxyType(list),
        nested=True,
    )
    with executor:
        error = executor.submit(len, {"a": [1], "b": [2]}).exception()
        assert isinstance(error, ConnectorFullError)
        settle(executor)
        assert executor.store.usage() == (0, 0)


def test_a_worker_that_dies_between_parts_leaves_none():
    class Deadly:
        def __reduce__(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with make(ProxyType(list)) as executor:
        future = executor.submit(lambda kind: {"a": [1], "b": kind()}, Deadly)
        assert isinstance(future.exception(), concurrent.futures.BrokenExecutor)
    assert executor.store.usage() == (0, 0)
    executor.store.close()


def test_parts_beyond_the_bound_stay_in_their_result(run):
    result = run(ProxyType(list), lambda: {n: [n] for n in range(300)})
    kinds = [is_proxy(one) for one in result.values()]
    assert kinds == [True] * 256 + [False] * 44
    assert list(result.values()) == [[n] for n in range(300)]


def test_parts_of_the_results_of_a_chunk(run):
    with make(ProxyType(list)) as executor:
        results = list(executor.map(lambda n: {"a": [n]}, range(5), chunksize=2))
        assert all(is_proxy(one["a"]) for one in results)
        assert [one["a"][0] for one in results] == list(range(5))
        settle(executor)
        assert executor.store.usage().objects == 5
        del results
        settle(executor)
        assert executor.store.usage() == (0, 0)
        executor.store.close()


def test_parts_are_kept_by_what_the_caller_keeps(run):
    with make(ProxyType(list)) as executor:
        future = executor.submit(lambda: {"a": [1], "b": [2]})
        a = future.result()["a"]
        settle(executor)
        assert executor.store.usage().objects == 2
        del future
        settle(executor)
        assert executor.store.usage().objects == 1
        assert a == [1]
        del a
        settle(executor)
        assert executor.store.usage() == (0, 0)
        executor.store.close()


def test_without_ownership_parts_of_results_stay():
    with make(ProxyType(list), ownership=False) as executor:
        result = executor.submit(lambda: {"a": [1]}).result()
        assert result["a"] == [1]
        del result
        settle(executor)
        assert executor.store.usage().objects == 1
    executor.store.close()


def test_other_serializers_cannot_take_parts_out():
    class Other:
        def dumps(self, obj):
            return [b""]

        def loads(self, frames):
            return None

    store = Store("other", MemoryConnector(), serializer=Other())
    with concurrent.futures.ThreadPoolExecutor(1) as base:
        with pytest.raises(TypeError, match="nested"):
            StoreExecutor(base, store, ProxyAlways(), nested=True)
    store.close()


def test_threads_get_what_has_no_parts_as_it_is():
    with make(ProxyType(list), base="thread") as executor:
        value = {"a": 1}
        assert executor.submit(functions.identity, value).result() is value
        executor.store.close()
    wait_for_evictions()


def test_a_policy_that_fails_about_a_type_fails_the_future():
    class Picky(ProxyType):
        def overlooks(self, kind):
            if kind is Plain:
                raise KeyError("picky")
            return super().overlooks(kind)

    with make(Picky(set)) as executor:
        error = executor.submit(functions.identity, {"a": Plain([1])}).exception()
        assert isinstance(error, PolicyError)
        assert "picky" in str(error)
        executor.store.close()


def test_a_policys_smallest_size_may_have_a_unit():
    class Large(ProxyType):
        smallest = "1 kB"

    with make(Large(list)) as executor:
        assert executor.submit(functions.seen, {"a": [1]}).result() == {"a": False}
        executor.store.close()


def test_small_parts_are_stored_together_until_they_are_sent_again():
    with make(ProxySize(1000), base="thread", lazy=False) as executor:

        def stored(parts):
            return executor.store.usage().objects, [len(one) for one in parts]

        def parts(number):
            return [bytes([number + one]) * 2000 for one in range(3)]

        three = [2000] * 3
        assert executor.submit(stored, parts(1)).result() == (1, three)
        assert executor.submit(stored, parts(1)).result() == (3, three)
        assert executor.submit(stored, parts(1)).result() == (3, three)
        assert executor.submit(stored, parts(11)).result() == (1, three)
        large = [bytes([one]) * 5_000_000 for one in range(3)]
        assert executor.submit(stored, large).result() == (3, [5_000_000] * 3)
        settle(executor)
        executor.store.close()


@pytest.mark.parametrize("lazy", [True, False])
def test_a_small_part_that_occurs_twice_is_one_object_however_it_is_stored(run, lazy):
    part = bytes(2000)
    same = lambda x: functions.same_objects([x["a"], x["b"]])
    for _ in range(2):
        assert run(ProxySize(1000), same, {"a": part, "b": part}, lazy=lazy) is True
