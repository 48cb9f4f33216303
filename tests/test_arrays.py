"""Arrays go around pickle, and nobody can tell."""

from __future__ import annotations

import copyreg
import pickle

import pytest

from proxyexec import PickleSerializer
from proxyexec.errors import DeserializationError

np = pytest.importorskip("numpy")


def arrays():
    """Arrays of more and less than what is pickled, of all that makes a difference."""
    for char in "?bhilqpBHILQPefdgFDG":
        yield char, np.arange(3000).reshape(50, 60).astype(char)
    square = np.arange(10_000.0).reshape(100, 100)
    yield "Fortran", np.asfortranarray(square)
    yield "rows apart", square[::2]
    yield "columns", square[:, 10:90]
    yield "transposed", square.reshape(10, 10, 100).transpose(1, 0, 2)
    yield "swapped", square.astype(">f8")
    yield "objects", np.array([[1], "a", None] * 1000, dtype=object)
    yield "records", np.zeros(1000, dtype=[("a", "i4"), ("b", "f8")])
    yield "text", np.array(["abc", "d"] * 1000)
    yield "dates", np.arange(1000).astype("M8[s]")
    yield "metadata", np.zeros(1000, dtype=np.dtype("f8", metadata={"unit": "m"}))
    yield "empty", np.zeros((0, 7))
    yield "one number", np.array(1.5)
    yield "small", np.arange(10)
    yield "many dimensions", np.arange(4096).reshape((2,) * 12)
    yield "record array", np.rec.array(np.zeros(1000, dtype=[("a", "i4")]))
    yield "masked", np.ma.masked_less(square, 50)
    read_only = square.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only


@pytest.mark.parametrize("array", [pytest.param(one, id=name) for name, one in arrays()])
def test_arrays_come_back_as_from_pickle(array):
    expected = pickle.loads(pickle.dumps(array, 5))
    result = through_memory(PickleSerializer().dumps(array))
    assert type(result) is type(expected)
    assert (result.dtype, result.dtype.char) == (expected.dtype, expected.dtype.char)
    assert result.dtype.metadata == expected.dtype.metadata
    assert (result.shape, result.strides) == (expected.shape, expected.strides)
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "ALIGNED"):
        assert result.flags[flag] == expected.flags[flag], flag
    assert result.flags.writeable == array.flags.writeable
    assert np.array_equal(np.asarray(result), np.asarray(expected))
    if result.size and result.flags.writeable:
        result.flat[0] = result.flat[-1]
        assert np.array_equal(np.asarray(array), np.asarray(expected))


def through_memory(frames):
    return PickleSerializer().loads([memoryview(bytearray(frame)) for frame in frames])


@pytest.mark.parametrize("read_only", [True, False])
def test_an_arrays_memory_is_neither_copied_nor_pickled(read_only):
    array = np.arange(10_000.0)
    array.flags.writeable = not read_only
    envelope, memory = PickleSerializer().dumps(array)
    assert np.shares_memory(np.frombuffer(memory), array)
    result = PickleSerializer().loads([envelope, memory])
    assert np.shares_memory(result, array)
    assert result.flags.writeable == (not read_only)


def test_an_array_that_was_writable_arrives_so_from_memory_that_is_not():
    frames = PickleSerializer().dumps(np.arange(10_000.0))
    result = PickleSerializer().loads([bytes(frame) for frame in frames])
    result[0] = 7
    assert result[0] == 7


def test_a_reducer_for_arrays_is_asked(monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda array: (len, ("reduced",)))
    assert PickleSerializer().loads(PickleSerializer().dumps(np.arange(10_000.0))) == 7


def test_an_envelope_of_another_array_is_an_error():
    one, other = np.arange(10_000.0), np.arange(1000.0)
    envelope, _ = PickleSerializer().dumps(one)
    with pytest.raises(DeserializationError):
        PickleSerializer().loads([envelope, PickleSerializer().dumps(other)[1]])
