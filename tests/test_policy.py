"""What the policies pick, and how they combine."""

from __future__ import annotations

import concurrent.futures
import enum
import pickle
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyexec import (
    PickleSerializer,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
)
from proxyexec._serialize import Candidate, frames_size
from proxyexec._sizes import container_bound, size_bound
from proxyexec.errors import PolicyError
from proxyexec.policy import is_proxied
from proxyexec_connectors.memory import MemoryConnector
from tests import functions


plain = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.booleans(),
    st.complex_numbers(),
)
hashable = st.one_of(st.integers(), st.text(), st.booleans())
containers = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=5),
        st.frozensets(hashable, max_size=5),
        st.sets(hashable, max_size=5),
    ),
    max_leaves=20,
)


@given(containers)
def test_containers_of_plain_objects_are_not_larger_than_their_bound(value):
    bound = container_bound(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        assert bound is not None
        assert frames_size(PickleSerializer().dumps(value)) <= bound
        assert len(pickle.dumps(value)) <= bound
    else:
        assert bound is None


def test_what_is_not_plain_or_not_small_has_no_bound():
    loop = []
    loop.append(loop)
    for value in ([object()], {1: object()}, list(range(1000)), [[0] * 100] * 2, loop):
        assert container_bound(value) is None


def test_small_containers_pass_at_a_glance_where_only_large_ones_are_wanted():
    """They are pickled once, by the base executor."""
    pickled = []

    class Watching(PickleSerializer):
        def dumps(self, obj, parts=None):
            pickled.append(obj)
            return super().dumps(obj, parts)

    for policy, pickles in ((ProxySize(10_000), 0), (ProxyType(set) & ProxySize(10_000), 0)):
        with StoreExecutor(
            concurrent.futures.ThreadPoolExecutor(1),
            Store("watching", MemoryConnector(), serializer=Watching()),
            policy,
            nested=True,
        ) as executor:
            small = {"a": [1, 2.5, "text"], "b": (None, b"bytes")}
            assert executor.submit(functions.identity, small).result() is small
            assert len(pickled) == pickles


def test_small_containers_are_looked_into_where_types_are_wanted():
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), should_proxy=ProxyType(list), nested=True
    ) as executor:
        assert executor.submit(functions.seen, {"a": [1], "b": 2}).result() == {
            "a": True,
            "b": False,
        }


@given(plain, st.integers(0, 200))
def test_size_is_the_exact_serialized_size(value, minimum):
    size = frames_size(PickleSerializer().dumps(value))
    assert ProxySize(minimum)(value) == (size >= minimum)
    assert size <= size_bound(value)


def test_size_bounds_of_arrays():
    np = pytest.importorskip("numpy")
    for dtype in "?bhilqBHILQefdgFDG":
        array = np.zeros((3, 7), dtype)
        for one in (array, array.T, array[::2], array[0, 0:0]):
            assert frames_size(PickleSerializer().dumps(one)) <= size_bound(one)
    assert size_bound(np.array([None])) is None
    assert size_bound(np.zeros(3, dtype=[("a", "i4")])) is None
    assert size_bound([1]) is None
    for kind in (np.float64, np.int8, np.bool_, np.complex128, np.longdouble):
        assert frames_size(PickleSerializer().dumps(kind(1))) <= size_bound(kind(1))
    assert size_bound(np.datetime64("2020")) is None
    assert ProxySize("1 MB")(np.zeros(200_000))
    assert not ProxySize("1 MB")(np.zeros(100_000))


def test_objects_are_serialized_once_however_many_policies_ask():
    class Counting(PickleSerializer):
        calls = 0

        def dumps(self, obj):
            type(self).calls += 1
            return super().dumps(obj)

    candidate = Candidate([1, 2], Counting())
    policy = (ProxySize(10_000) | ProxySize(10)) & ProxySize(5) & ~ProxySize(10**6)
    assert policy.judge(candidate)
    assert len(candidate.frames) == 2
    assert Counting.calls == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 MB", 10**6),
        ("1MB", 10**6),
        ("1.5 MiB", 3 * 2**19),
        ("100 kB", 10**5),
        ("2 GiB", 2**31),
        ("12", 12),
        ("12 B", 12),
        (77, 77),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert ProxySize(text).minimum == size


@pytest.mark.parametrize("text", ["", "MB", "1 XB", "-1", -1, "1 MB 2"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="size"):
        ProxySize(text)


@pytest.mark.parametrize("types", [(), (5,), ("list",)])
def test_types_have_to_be_classes(types):
    with pytest.raises(TypeError, match="classes"):
        ProxyType(*types)


def test_combinations():
    text_or_list = ProxyType(str) | ProxyType(list)
    assert text_or_list("x")
    assert text_or_list([])
    assert not text_or_list(5)
    assert (ProxyType(list) & (lambda obj: len(obj) > 2))([1, 2, 3])
    assert not ((lambda obj: len(obj) > 2) & ProxyType(list))([1])
    assert ((lambda obj: len(obj) > 2) | ProxyType(list))([1])
    assert (~ProxyType(list))(5)
    assert ProxyAlways()(5)
    assert not ProxyNever()(5)
    assert repr(~ProxyType(list) & ProxySize(5)) == "(~ProxyType(list) & ProxySize(5))"
    policy = pickle.loads(pickle.dumps(~ProxyType(list) & ProxySize(5)))
    assert policy("x" * 10)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value", [None, True, False, ..., NotImplemented, int, types, Colour.RED], ids=repr
)
def test_singletons_classes_and_modules_are_never_proxied(value):
    assert not is_proxied(ProxyAlways(), Candidate(value, PickleSerializer()))
    with StoreExecutor(
        concurrent.futures.ThreadPoolExecutor(1), should_proxy=ProxyAlways()
    ) as executor:
        assert executor.submit(functions.identity, value).result() is value


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_policy_that_raises_fails_the_future(in_worker):
    def picky(obj):
        if (obj == "argument") != in_worker:
            raise KeyError("picky")
        return False

    base = concurrent.futures.ProcessPoolExecutor(1)
    with StoreExecutor(base, should_proxy=picky) as executor:
        error = executor.submit(str.upper, "argument").exception()
        assert isinstance(error, PolicyError)
        assert isinstance(error, RuntimeError)
        assert "picky" in str(error)
        assert ("the result" if in_worker else "argument 0 of str.upper") in str(error)


def test_a_policy_that_fails_at_a_glance_fails_the_future():
    class Picky(ProxySize):
        def dismisses(self, obj, bound):
            raise KeyError("picky")

        judge = dismisses

    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, should_proxy=Picky(10), nested=True) as executor:
        for argument in ("text", ["text" * 1000]):
            error = executor.submit(functions.identity, argument).exception()
            assert isinstance(error, PolicyError)
