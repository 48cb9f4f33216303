"""Any value survives, exactly; what cannot be pickled says so."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import pickle
import struct
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxyexec import PickleSerializer, Store
from proxyexec._serialize import frames_size
from proxyexec._context import Inline, joined
from proxyexec.errors import DeserializationError, SerializationError
from proxyexec_connectors._copying import bytearray_of, bytes_of
from proxyexec_connectors._layout import flatten, pieces, split
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.functions import BreaksOnArrival, Unpicklable

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=5000)
    | st.datetimes()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
)
hashable = st.recursive(
    atoms, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
values = st.recursive(
    hashable | st.builds(bytearray, st.binary(max_size=5000)),
    lambda inner: st.lists(inner) | st.dictionaries(hashable, inner) | st.sets(hashable),
    max_leaves=20,
)


@pytest.fixture(params=[MemoryConnector, FileConnector])
def store(request):
    with Store("values", request.param()) as store:
        yield store


def same(one, other):
    assert one == other
    assert type(one) is type(other)
    assert repr(one) == repr(other) or isinstance(one, (set, frozenset, dict, list, tuple))


@given(value=values)
@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one store for all is fine
)
def test_any_value_survives_a_store(store, value):
    reference = store.put(value)
    same(store.get(reference), value)
    store.evict(reference)


@given(value=values)
@settings(deadline=None)
def test_any_value_survives_a_message(value):
    serializer = PickleSerializer()
    frames = serializer.dumps(value)
    inline = pickle.loads(pickle.dumps(Inline(joined(frames))))
    same(serializer.loads(split(inline.blob)), value)


@given(frames=st.lists(st.binary(max_size=300), max_size=8))
def test_layout_round_trips(frames):
    parts, size = pieces(frames)
    whole = b"".join(parts)
    assert len(whole) == size
    assert [bytes(frame) for frame in split(whole)] == frames


@given(damaged=st.binary(max_size=200))
def test_layout_refuses_what_it_did_not_write(damaged):
    try:
        split(damaged)
    except ValueError:
        return
    assert b"".join(pieces(list(split(damaged)))[0]) == damaged


class Colour(enum.Enum):
    RED = 1


class Text(str):
    pass


class Blob(bytes):
    pass


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Text("text"),
        Blob(b"x" * 100_000),
        Point(1, [2]),
        collections.OrderedDict(a=1),
        datetime.timedelta(1),
        decimal.Decimal("1.50"),
        range(10),
        slice(1, 2),
        [b"x" * 200_000, "y" * 200_000, bytearray(300_000)],
        ValueError("with", "state"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_types_are_kept_exactly(store, value):
    got = store.get(store.put(value))
    assert type(got) is type(value)
    assert repr(got) == repr(value)
    if isinstance(value, enum.Enum):
        assert got is value


def test_recursive_structures(store):
    value = [1]
    value.append(value)
    got = store.get(store.put(value))
    assert got[1] is got


def test_arrays_are_kept_exactly(store):
    np = pytest.importorskip("numpy")
    plain = np.arange(12_000.0).reshape(100, 120)
    frozen = plain.copy()
    frozen.flags.writeable = False
    arrays = {
        "plain": plain,
        "fortran": np.asfortranarray(plain),
        "view": plain[::2, ::3],
        "0-d": np.array(5.0),
        "empty": np.empty((0, 5)),
        "masked": np.ma.masked_less(plain, 100),
        "structured": np.zeros(1000, dtype=[("a", "i4"), ("b", "f8")]),
        "objects": np.array([{"a": 1}, None, "x"], dtype=object),
        "strings": np.array(["a", "bcd"] * 1000),
        "read-only": frozen,
        "matrix of bools": plain > 5,
    }
    for name, array in arrays.items():
        got = store.get(store.put(array))
        assert type(got) is type(array), name
        assert got.dtype == array.dtype, name
        assert got.flags.f_contiguous == array.flags.f_contiguous or "view" in name, name
        assert got.flags.writeable == array.flags.writeable, name
        np.testing.assert_array_equal(got, array, err_msg=name)
    np.testing.assert_array_equal(
        store.get(store.put(arrays["masked"])).mask, arrays["masked"].mask
    )


def test_data_frames_are_kept_exactly(store):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "number": range(1000),
            "text": ["x"] * 1000,
            "kind": pd.Categorical(["a", "b"] * 500),
            "missing": pd.array([1, None] * 500, dtype="Int64"),
            "time": pd.date_range("2020", periods=1000),
        }
    )
    got = store.get(store.put(frame))
    pd.testing.assert_frame_equal(got, frame)
    got.loc[0, "number"] = 7
    assert frame.loc[0, "number"] == 0


def test_buffers_are_not_copied_into_the_pickle():
    np = pytest.importorskip("numpy")
    array = np.arange(100_000.0)
    frames = PickleSerializer().dumps(array)
    assert np.shares_memory(np.frombuffer(frames[-1]), array)
    large = b"x" * 1_000_000
    assert any(frame is large for frame in PickleSerializer().dumps([large, 1]))
    assert frames_size(frames) == sum(len(bytes(frame)) for frame in frames)


def test_lambdas_and_local_classes(store):
    class Local:
        value = 5

    assert store.get(store.put(lambda x: x + 1))(1) == 2
    assert store.get(store.put(Local())).value == 5


def test_proxies_of_functions_are_sent_as_references(store):
    payload = b"x" * 100_000
    proxy = store.proxy(lambda: payload)
    sent = PickleSerializer().dumps([proxy, lambda: 1])  # the second one takes cloudpickle
    assert frames_size(sent) < 10_000
    assert PickleSerializer().loads(sent)[0]() == payload


def test_what_cannot_be_pickled_says_so(store):
    for error in (pickle.PicklingError, TypeError, SerializationError):
        with pytest.raises(error, match="Unpicklable, cannot be pickled: RuntimeError: not for"):
            store.put(Unpicklable())
    with pytest.raises(SerializationError):
        store.put([sys._getframe()])
    assert isinstance(store.get(store.put([1])), list)


def test_what_cannot_be_unpickled_says_so(store):
    reference = store.put(BreaksOnArrival())
    for error in (pickle.UnpicklingError, DeserializationError):
        with pytest.raises(error, match="not to be made here"):
            store.get(reference)


@pytest.mark.parametrize("frames", [[b""], [b"x"], [b"x\0\0\0\0", b""], [b"p\5\0\0\0", b"a"]])
def test_frames_that_are_no_object_say_so(frames):
    with pytest.raises(DeserializationError):
        PickleSerializer().loads(frames)


def test_functions_of_main_travel_by_reference_or_by_value(monkeypatch):
    main = sys.modules["__main__"]
    exec("def in_main(x):\n    return x + 1", main.__dict__)
    try:
        by_reference = PickleSerializer().dumps(main.in_main)
        by_value = PickleSerializer(main="value").dumps(main.in_main)
    finally:
        del main.in_main
    assert PickleSerializer().loads(by_value)(1) == 2
    with pytest.raises(DeserializationError, match="in_main"):
        PickleSerializer().loads(by_reference)


@pytest.mark.parametrize("like_pools", [False, True])
def test_what_pickle_can_do_is_left_to_pickle(monkeypatch, like_pools):
    """Cloudpickle is several times slower, and hides why pickle fails."""

    def fail(*args, **kwargs):
        raise AssertionError("cloudpickle was asked")

    monkeypatch.setattr(cloudpickle.Pickler, "dump", fail)
    serializer = PickleSerializer(like_pools=like_pools)
    for obj in ([1, "x"], {"a": (1,)}, Path("x"), functions.add, functions.Carrier([1])):
        assert type(serializer.loads(serializer.dumps(obj))) is type(obj)


def test_arrays_arrive_as_from_a_pool():
    np = pytest.importorskip("numpy")
    serializer = PickleSerializer(like_pools=True)
    for size in (1, 10, 100_000):
        array = np.arange(float(size))
        array.flags.writeable = False
        stored = [bytes(flatten(frame)) for frame in serializer.dumps([array])]
        (arrived,) = serializer.loads(stored)
        assert np.array_equal(arrived, array)
        assert arrived.flags.writeable == (pickle.DEFAULT_PROTOCOL < 5)
        (other,) = PickleSerializer().loads(PickleSerializer().dumps([array]))
        assert not other.flags.writeable
        if arrived.flags.writeable:
            arrived[0] = 5
        assert array[0] == 0


class Registered:
    pass


def test_reducers_of_multiprocessing_are_used(monkeypatch):
    monkeypatch.setitem(ForkingPickler._extra_reducers, Registered, lambda obj: (str, ("sent",)))
    assert PickleSerializer(like_pools=True).loads(
        PickleSerializer(like_pools=True).dumps([Registered()])
    ) == ["sent"]
    other = PickleSerializer().loads(PickleSerializer().dumps([Registered()]))
    assert type(other[0]) is Registered


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_long_pickles_are_read_in_pieces_of_any_length(protocol):
    value = [*map(str, range(20_000)), b"b" * 1_500_000]
    pickled = pickle.dumps(value, protocol)
    for length in (997, 1 << 16, len(pickled)):
        pieces = [pickled[start : start + length] for start in range(0, len(pickled), length)]
        envelope = struct.pack("<cI", b"p", len(pieces))
        assert PickleSerializer().loads([envelope, *pieces]) == value
        with pytest.raises(DeserializationError):
            cut = [*pieces[:-1], pieces[-1][:-10]]
            PickleSerializer().loads([envelope, *cut])


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, 3_000_001])
def test_copies_are_copies(kind, size):
    copied = {bytes: bytes_of, bytearray: bytearray_of}[kind]
    original = bytearray(bytes(range(256)) * (size // 256 + 1))[:size]
    copy = copied(original)
    assert type(copy) is kind and copy == original and len(copy) == size
    assert hash(bytes(copy)) == hash(bytes(original))
    assert copied(memoryview(original)) == original
    if size:
        original[-1] ^= 1
        assert copy != original
    if kind is bytearray:
        copy += b"it grows"
        assert copy.endswith(b"it grows") and len(copy) == size + 8
