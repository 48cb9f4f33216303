"""The conformance suite for connectors, as a class to subclass. Needs pytest; measures nothing.

::

    import pytest
    from proxyexec_connectors.testing import ConnectorSuite

    class TestMyConnector(ConnectorSuite):
        @pytest.fixture
        def another(self):
            opened = []

            def another():
                opened.append(MyConnector("the://place"))
                return opened[-1]

            yield another
            for connector in opened:
                connector.close()

        @pytest.fixture
        def connector(self, another):
            return another()

For readable failures, call ``pytest.register_assert_rewrite("proxyexec_connectors.testing")``
in ``conftest.py``. Processes are started by the spawn method and by :func:`os.fork`.
"""

from __future__ import annotations

import array
import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import pytest

from proxyexec_connectors.errors import ConnectorClosedError, ForeignProcessError
from proxyexec_connectors.protocol import Connector

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["ConnectorSuite"]

_T = TypeVar("_T")
_Another: TypeAlias = Callable[[], Connector]

_ODD_KEYS = [
    *("", " ", ".", "..", "a/b", "/etc/passwd", "../../up", "a\\b", "a:b", "*", "%2F", "-", "~"),
    *("A", "a", "new\nline", "nul\0", "ключ", "鍵", "\N{PILE OF POO}", "e\u0301", "\xe9"),
    *("x" * 1000, "x" * 999 + "y", "ж" * 1000),
]


class ConnectorSuite:
    """Every promise of :class:`~proxyexec_connectors.protocol.Connector`, as a test.

    A subclass (or its module) has two fixtures. ``another`` is a function that opens a new
    connector, owned by this process and the same place each time, all closed when the test
    has ended. ``connector`` is one of them.
    """

    crosses_processes: ClassVar[bool] = True
    """Whether a session can be used from other processes; elsewhere its use must raise
    :class:`~proxyexec_connectors.errors.ForeignProcessError`."""

    # --- frames ------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "frames",
        [
            pytest.param([], id="no frames"),
            pytest.param([b""], id="an empty frame"),
            pytest.param([b"", b"", b""], id="empty frames"),
            pytest.param([b"one"], id="one"),
            pytest.param([b"a", b"", b"bc", b""], id="empty ones between"),
            pytest.param([bytes([n % 256]) * (n % 70) for n in range(2000)], id="many"),
            pytest.param([bytes(range(256)) * 40_000, b"tail"], id="ten megabytes"),
            pytest.param([b"\r\n$5\r\n", b"\0" * 65, b"+", b" "], id="what a format may trip on"),
        ],
    )
    def test_frames_come_back(self, connector: Connector, frames: list[bytes]) -> None:
        connector.put("key", frames)
        assert _contents(connector.get("key")) == frames

    @pytest.mark.parametrize("size", [0, 3, 100_000])
    def test_frames_of_any_kind_of_buffer(self, connector: Connector, size: int) -> None:
        data = os.urandom(size * 8)
        buffers: list[Any] = [
            data,
            bytearray(data),
            memoryview(data),
            memoryview(bytearray(data)).cast("d"),
            array.array("d", data),
            pickle.PickleBuffer(bytearray(data)),
            pickle.PickleBuffer(data).raw(),
            (ctypes.c_ubyte * len(data)).from_buffer_copy(data),
        ]
        if size:
            buffers.append(memoryview(data).cast("B", (size, 2, 4)))
            buffers.append(memoryview(b"xy" + data)[2:])
        connector.put("key", buffers)
        assert _contents(connector.get("key")) == [data] * len(buffers)

    def test_frames_are_buffers_of_bytes(self, connector: Connector) -> None:
        connector.put("key", [array.array("i", [1, 2, 3]), b"abc"])
        frames = _found(connector.get("key"))
        assert [memoryview(frame).nbytes for frame in frames] == [12, 3]

    def test_a_put_takes_a_snapshot(self, connector: Connector) -> None:
        mine = [bytearray(b"x" * size) for size in (10, 10_000_000)]
        connector.put("key", mine)
        for frame in mine:
            frame[:] = b"y" * len(frame)
        assert _contents(connector.get("key")) == [b"x" * 10, b"x" * 10_000_000]

    def test_the_list_of_frames_stays_the_callers(self, connector: Connector) -> None:
        mine = [b"a", b"b"]
        connector.put("key", mine)
        mine.append(b"c")
        assert _contents(connector.get("key")) == [b"a", b"b"]

    @pytest.mark.parametrize("size", [10, 10_000_000])
    def test_what_is_written_into_frames_is_private(self, connector: Connector, size: int) -> None:
        connector.put("key", [b"x" * size])
        for _ in range(2):
            for frame in _found(connector.get("key")):
                view = memoryview(frame)
                assert bytes(view) == b"x" * size
                if not view.readonly:
                    view.cast("B")[:] = b"y" * size
        assert _contents(connector.get("key")) == [b"x" * size]

    def test_frames_outlive_eviction_and_close(self, another: _Another) -> None:
        connector = another()
        connector.put("key", [b"small", b"x" * 10_000_000])
        frames = connector.get("key")
        connector.evict(["key"])
        connector.close()
        assert _contents(frames) == [b"small", b"x" * 10_000_000]

    # --- keys --------------------------------------------------------------------------

    def test_odd_keys_are_keys_like_others(self, connector: Connector) -> None:
        for key in _ODD_KEYS:
            connector.put(key, [key.encode()])
        assert connector.usage().objects == len(_ODD_KEYS)
        for key in _ODD_KEYS:
            assert connector.exists(key)
            assert _contents(connector.get(key)) == [key.encode()]
        connector.evict(_ODD_KEYS)
        assert connector.usage().objects == 0

    def test_a_missing_key(self, connector: Connector) -> None:
        assert connector.get("missing") is None
        assert not connector.exists("missing")

    def test_exists(self, connector: Connector) -> None:
        connector.put("key", [])
        assert connector.exists("key")
        connector.evict(["key"])
        assert not connector.exists("key")

    # --- first write wins --------------------------------------------------------------

    def test_the_first_put_wins(self, connector: Connector) -> None:
        connector.put("key", [b"first"])
        before = connector.usage()
        connector.put("key", [b"second", b"x" * 1000])
        connector.put_many({"key": [b"third"], "other": [b"other"]})
        assert _contents(connector.get("key")) == [b"first"]
        connector.evict(["other"])
        assert connector.usage() == before

    def test_a_key_is_free_again_after_its_eviction(self, connector: Connector) -> None:
        connector.put("key", [b"first"])
        connector.evict(["key"])
        connector.put("key", [b"second"])
        assert _contents(connector.get("key")) == [b"second"]

    @pytest.mark.parametrize("size", [10, 1_000_000])
    def test_one_of_many_concurrent_puts_wins_whole(self, connector: Connector, size: int) -> None:
        def race(number: int, barrier: threading.Barrier) -> list[bytes]:
            barrier.wait(60)
            connector.put("key", [bytes([number]) * size, bytes([number])])
            # Whoever comes out of a put finds the winner there.
            return _contents(connector.get("key"))

        seen = _together(8, race)
        winner = seen[0][1]
        assert winner in [bytes([number]) for number in range(8)]
        assert seen == [[winner * size, winner]] * 8
        assert connector.usage().objects == 1

    def test_readers_see_all_or_nothing(self, connector: Connector) -> None:
        whole = [b"x" * 5_000_000] * 4
        written = threading.Event()

        def race(number: int, barrier: threading.Barrier) -> bool:
            barrier.wait(60)
            if number == 0:
                try:
                    connector.put("key", whole)
                finally:
                    written.set()
                return True
            while not written.is_set():
                frames = connector.get("key")
                if frames is not None and _contents(frames) != whole:
                    return False
            return _contents(connector.get("key")) == whole

        assert all(_together(4, race))

    def test_threads_on_keys_of_their_own(self, connector: Connector) -> None:
        def race(number: int, barrier: threading.Barrier) -> bool:
            barrier.wait(60)
            for turn in range(20):
                key, frames = f"{number}-{turn}", [b"%d" % number * turn, b"%d" % turn]
                connector.put(key, frames)
                if _contents(connector.get(key)) != frames:
                    return False
                connector.evict([key])
            return True

        assert all(_together(8, race))
        assert connector.usage().objects == 0

    # --- batches, eviction, usage ------------------------------------------------------

    def test_batches(self, connector: Connector) -> None:
        items: dict[str, Frames] = {f"key {n}": [b"%d" % n, b"x" * n] for n in range(300)}
        connector.put_many(items)
        keys = [*reversed(items), "missing", "key 7", "key 7"]
        for key, frames in zip(keys, connector.get_many(keys), strict=True):
            assert (frames and _contents(frames)) == items.get(key), key

    def test_a_batch_of_objects_big_and_small(self, connector: Connector) -> None:
        items: dict[str, Frames] = {
            f"key {n}": [bytes([n]) * size] for n, size in enumerate([1, 40 << 20, 30 << 20, 0, 9])
        }
        connector.put_many(items)
        for key, frames in zip(items, connector.get_many(list(items)), strict=True):
            assert _contents(frames) == items[key], key

    def test_empty_batches(self, connector: Connector) -> None:
        connector.put_many({})
        connector.evict([])
        assert connector.get_many([]) == []

    def test_evict_takes_many_keys_and_passes_over_missing_ones(self, connector: Connector) -> None:
        connector.put_many({f"key {n}": [b"x"] for n in range(2500)})
        connector.evict(key for n in range(2400) for key in (f"key {n}", f"missing {n}"))
        assert connector.usage().objects == 100
        assert not connector.exists("key 0")
        assert connector.exists("key 2499")
        connector.evict(["key 0", "key 0"])

    def test_usage(self, connector: Connector) -> None:
        assert connector.usage() == (0, 0)
        connector.put("a", [b"x" * 1000, b"y" * 500])
        connector.put("b", [b"z" * 100_000])
        objects, size = connector.usage()
        assert objects == 2
        # Headers and padding count, and are small.
        assert 101_500 <= size < 101_500 + 2 * 8192
        connector.evict(["b"])
        objects, size = connector.usage()
        assert objects == 1
        assert 1500 <= size < 1500 + 8192
        connector.evict(["a"])
        assert connector.usage() == (0, 0)

    # --- sessions and closing ----------------------------------------------------------

    def test_it_follows_the_protocol(self, connector: Connector) -> None:
        assert isinstance(connector, Connector)
        assert connector.url
        assert connector.address

    def test_sessions_in_one_place_do_not_disturb_each_other(self, another: _Another) -> None:
        one, two = another(), another()
        one.put("key", [b"one"])
        assert two.get("key") is None
        two.put("key", [b"two"])
        two.put("more", [b"two"])
        one.evict(["more"])
        assert _contents(one.get("key")) == [b"one"]
        assert _contents(two.get("more")) == [b"two"]
        assert one.usage().objects == 1
        one.close()
        three = another()
        assert _contents(two.get("key")) == [b"two"]
        assert three.get("key") is None
        assert three.usage() == (0, 0)
        assert one.address != two.address

    def test_closing_twice(self, connector: Connector) -> None:
        connector.put("key", [b"x"])
        connector.close()
        connector.close()

    def test_threads_may_close_at_once(self, connector: Connector) -> None:
        connector.put("key", [b"x"])

        def race(_: int, barrier: threading.Barrier) -> None:
            barrier.wait(60)
            connector.close()

        _together(4, race)

    @pytest.mark.parametrize(
        "use",
        [
            pytest.param(lambda it: it.put("key", [b"x"]), id="put"),
            pytest.param(lambda it: it.get("key"), id="get"),
            pytest.param(lambda it: it.exists("key"), id="exists"),
            pytest.param(lambda it: it.evict(["key"]), id="evict"),
            pytest.param(lambda it: it.put_many({"key": [b"x"]}), id="put_many"),
            pytest.param(lambda it: it.get_many(["key"]), id="get_many"),
            pytest.param(lambda it: it.usage(), id="usage"),
        ],
    )
    def test_use_after_close(
        self, connector: Connector, use: Callable[[Connector], object]
    ) -> None:
        connector.put("key", [b"x"])
        connector.close()
        with pytest.raises(ConnectorClosedError):
            use(connector)

    # --- other processes ---------------------------------------------------------------

    def test_unpickled_elsewhere(self, connector: Connector) -> None:
        connector.put("key", [b"from here", b""])
        if not self.crosses_processes:
            with pytest.raises(ForeignProcessError):
                _elsewhere(_exchange, connector)
            return
        assert _elsewhere(_exchange, connector) == [b"from here", b""]
        # The other process has closed its connector, and has removed nothing by that.
        assert _contents(connector.get("key")) == [b"from here", b""]
        assert _contents(connector.get("reply")) == [b"from there"]

    def test_attached_elsewhere(self, connector: Connector) -> None:
        connector.put("key", [b"from here", b""])
        call = (_attach_and_exchange, type(connector), connector.address)
        if not self.crosses_processes:
            with pytest.raises(ForeignProcessError):
                _elsewhere(*call)
            return
        assert _elsewhere(*call) == [b"from here", b""]
        assert _contents(connector.get("key")) == [b"from here", b""]
        assert _contents(connector.get("reply")) == [b"from there"]
        connector.evict(["key", "reply"])
        assert connector.usage() == (0, 0)

    def test_unpickled_here(self, connector: Connector) -> None:
        connector.put("key", [b"x"])
        copy = pickle.loads(pickle.dumps(connector))
        assert _contents(copy.get("key")) == [b"x"]
        assert (copy.url, copy.address) == (connector.url, connector.address)
        if self.crosses_processes:
            copy.close()
            assert _contents(connector.get("key")) == [b"x"]

    def test_a_forked_child(self, connector: Connector) -> None:
        connector.put("key", [b"from here"])

        def child() -> list[bytes]:
            try:
                connector.put("reply", [b"from there"])
                return _contents(connector.get("key"))
            finally:
                connector.close()

        if not self.crosses_processes:
            with pytest.raises(ForeignProcessError):
                _in_a_fork(child)
        else:
            assert _in_a_fork(child) == [b"from here"]
            assert _contents(connector.get("reply")) == [b"from there"]
        assert _contents(connector.get("key")) == [b"from here"]

    def test_a_fork_among_busy_threads(self, connector: Connector) -> None:
        connector.put("key", [b"x" * 1000])
        done = threading.Event()

        def race(number: int, barrier: threading.Barrier) -> object:
            barrier.wait(60)
            if number == 0:
                try:
                    return [_in_a_fork(child) for _ in range(5)]
                finally:
                    done.set()
            while not done.is_set():
                connector.put(f"key {number}", [b"x"])
                connector.get("key")
                connector.evict([f"key {number}"])
            return None

        def child() -> int:
            # Using the connector, or being told that it cannot be used here, must not hang on
            # a lock that some thread of the parent held at the fork.
            try:
                return len(_contents(connector.get("key"))[0])
            except ForeignProcessError:
                return 1000
            finally:
                connector.close()

        assert _together(4, race)[0] == [1000] * 5
        assert _contents(connector.get("key")) == [b"x" * 1000]


def _found(frames: Frames | None) -> Frames:
    assert frames is not None
    return frames


def _contents(frames: Frames | None) -> list[bytes]:
    return [bytes(frame) for frame in _found(frames)]


def _together(count: int, race: Callable[[int, threading.Barrier], _T]) -> list[_T]:
    """Call ``race`` in threads that meet at a barrier before they run."""
    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return [
            future.result()
            for future in [pool.submit(race, number, barrier) for number in range(count)]
        ]


def _elsewhere(function: Callable[..., _T], *args: Any) -> _T:
    """Call ``function`` in a process that was spawned, not forked."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result(timeout=120)


def _exchange(connector: Connector) -> list[bytes]:
    try:
        connector.put("reply", [b"from there"])
        return _contents(connector.get("key"))
    finally:
        connector.close()


def _attach_and_exchange(kind: type[Connector], address: str) -> list[bytes]:
    return _exchange(kind.attach(address))


def _in_a_fork(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a forked child; return or raise here what it did there."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        # A child that hangs is killed, and the test fails for want of an outcome.
        signal.alarm(60)
        try:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = function(), None
            except BaseException as error:  # noqa: BLE001 - carried to the parent
                outcome = None, error
            with os.fdopen(writable, "wb") as pipe:
                pickle.dump(outcome, pipe)
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        received = pipe.read()
    os.waitpid(child, 0)
    assert received, "the forked child was killed: it hung or crashed"
    value, raised = pickle.loads(received)
    if raised is not None:
        raise raised
    return value
