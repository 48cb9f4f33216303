"""The conformance suites for connectors, as classes to subclass. Needs pytest; measures nothing.

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
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import pytest

from proxyexec_connectors.durable import (
    DEFAULT_MAX_AGE,
    DurableConnector,
    collect,
    open_session,
    remove_session,
    sessions,
)
from proxyexec_connectors.errors import (
    ConnectorClosedError,
    ConnectorUnavailableError,
    ForeignProcessError,
    SessionMissingError,
)
from proxyexec_connectors.listing import ListingConnector, StoredSession, open_listing
from proxyexec_connectors.protocol import Connector
from proxyexec_connectors.registry import connect

if TYPE_CHECKING:
    from proxyexec_connectors.listing import Listing
    from proxyexec_connectors.protocol import Frames

__all__ = ["ConnectorSuite", "DurableSuite", "ListingSuite"]

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


class DurableSuite:
    """Every promise of :class:`~proxyexec_connectors.durable.DurableConnector`, as a test.

    A subclass has a fixture ``place``: the URL of a place that has no durable sessions yet.
    """

    def test_it_follows_the_protocol(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            assert isinstance(session, DurableConnector)
            assert session.url
            assert session.address

    def test_it_outlives_its_connectors(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            session.put("key", [b"small"])
            session.put("large", [b"x" * 3_000_000])
        # Whoever opens a session that has an owner sweeps those whose owners are dead.
        with closing(connect(place)):
            pass
        with closing(open_session(place, "a", create=False)) as session:
            assert _contents(session.get("key")) == [b"small"]
            assert _contents(session.get("large")) == [b"x" * 3_000_000]

    def test_it_outlives_a_process_that_is_killed(self, place: str) -> None:
        child = os.fork()
        if child == 0:
            try:
                open_session(place, "a").put("key", [b"x"])
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with closing(connect(place)), closing(open_session(place, "a", create=False)) as session:
            assert _contents(session.get("key")) == [b"x"]

    def test_names_are_sessions_of_their_own(self, place: str) -> None:
        with closing(open_session(place, "a")) as one, closing(open_session(place, "a.b")) as two:
            one.put("key", [b"one"])
            assert two.get("key") is None
            two.put("key", [b"two"])
            assert one.usage().objects == 1
            assert one.address != two.address
            assert remove_session(place, "a")
            assert _contents(two.get("key")) == [b"two"]

    def test_many_open_it_at_once(self, place: str) -> None:
        def race(number: int, barrier: threading.Barrier) -> list[bytes]:
            barrier.wait(60)
            with closing(open_session(place, "a")) as session:
                session.put("key", [b"%d" % number])
                session.put(f"key.{number}", [])
                return _contents(session.get("key"))

        seen = _together(8, race)
        assert seen == [seen[0]] * 8
        [known] = sessions(place)
        assert (known.name, known.objects) == ("a", 9)

    @pytest.mark.parametrize("size", [10, 1_000_000])
    def test_one_of_many_puts_wins_whole(self, place: str, size: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        with (
            closing(open_session(place, "a")) as session,
            spawn.Manager() as manager,
            ProcessPoolExecutor(3, mp_context=spawn) as pool,
        ):
            barrier = manager.Barrier(3)
            futures = [
                pool.submit(_put_at_once, session, barrier, number, size) for number in range(3)
            ]
            seen = [future.result(120) for future in futures]
            for one in zip(*seen, strict=True):
                assert len(set(one)) == 1
            assert session.usage().objects == _ROUNDS

    def test_what_cannot_be_a_name(self, place: str) -> None:
        for name in ("", ".", "..", "a/b", "../a", "-a", "a b", "a\n", "ä", "x" * 101, "a~b"):
            with pytest.raises(ValueError, match="no name for a durable session"):
                open_session(place, name)
        assert sessions(place) == []

    def test_a_session_that_is_not_there(self, place: str) -> None:
        with pytest.raises(SessionMissingError):
            open_session(place, "a", create=False)
        assert not remove_session(place, "a")
        assert sessions(place) == []

    def test_listing(self, place: str) -> None:
        assert sessions(place) == []
        before = time.time()
        with closing(open_session(place, "b", max_age=100.0)) as session:
            session.put("key", [b"x" * 1000])
        with closing(open_session(place, "a")):
            pass
        a, b = sessions(place)
        assert (a.name, a.objects, a.bytes, a.max_age) == ("a", 0, 0, DEFAULT_MAX_AGE)
        assert (b.name, b.objects, b.max_age) == ("b", 1, 100.0)
        assert 1000 <= b.bytes < 9200
        for one in (a, b):
            assert before - 2 <= one.created <= time.time() + 2
            assert before - 2 <= one.used <= time.time() + 2
            assert not one.is_expired()

    def test_its_age_is_stored_and_can_be_changed(self, place: str) -> None:
        open_session(place, "a", max_age=100.0).close()
        open_session(place, "a").close()
        assert sessions(place)[0].max_age == 100.0
        open_session(place, "a", max_age=5000.0).close()
        assert sessions(place)[0].max_age == 5000.0
        for wrong in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="max_age"):
                open_session(place, "a", max_age=wrong)

    def test_keys(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            assert session.keys() == []
            items: dict[str, Frames] = {f"b.{n:04d}": [b"x"] for n in range(1500)}
            session.put_many({**items, "a.1": [b"x" * 2_000_000], "c.1+2": []})
            claim = session.claim("b.claim")
            assert session.keys() == sorted([*items, "a.1", "c.1+2"])
            assert session.keys("a.") == ["a.1"]
            assert session.keys("b.") == sorted(items)
            session.evict(["a.1", "b.0000"])
            assert session.keys("a.") == []
            assert len(session.keys()) == 1500
            assert session.usage().objects == 1500
            assert claim is not None
            claim.release()

    def test_removing(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            session.put_many({f"key.{n}": [b"x"] for n in range(1500)})
            session.put("large", [b"x" * 3_000_000])
            claim = session.claim("name")
            assert claim is not None
            assert remove_session(place, "a")
            assert sessions(place) == []
            assert session.get("key.1") is None
            for size in (1, 3_000_000):
                with pytest.raises(ConnectorUnavailableError, match="gone"):
                    session.put("key", [b"x" * size])
            with pytest.raises(ConnectorUnavailableError, match="gone"):
                session.claim("other")
            claim.release()
        assert not remove_session(place, "a")
        assert self.remains(place) == []
        with closing(open_session(place, "a")) as session:
            assert session.keys() == []

    def remains(self, place: str) -> list[Any]:
        """Return what there is in a place without sessions."""
        return []

    def test_collecting(self, place: str) -> None:
        open_session(place, "young").close()
        with closing(open_session(place, "old", max_age=0.2)) as session:
            session.put("key", [b"x"])
        deadline = time.monotonic() + 30
        while "old" in [one.name for one in sessions(place)] and not collect(place):
            assert time.monotonic() < deadline
        assert [one.name for one in sessions(place)] == ["young"]
        assert collect(place) == []

    def test_what_is_used_is_not_collected(self, place: str) -> None:
        with closing(open_session(place, "a", max_age=1.5)) as session:
            session.put("key", [b"x"])
            claim = session.claim("name")
            assert claim is not None
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                assert collect(place) == []
                time.sleep(0.05)
            assert _contents(session.get("key")) == [b"x"]
            claim.release()

    def test_claims(self, place: str) -> None:
        with closing(open_session(place, "a")) as one, closing(open_session(place, "a")) as two:
            claim = one.claim("name")
            assert claim is not None
            assert claim.name == "name"
            assert two.claim("name") is None
            assert one.claim("name") is None
            assert two.claimed(["name", "other"]) == [True, False]
            other = two.claim("other")
            assert other is not None
            claim.release()
            claim.release()
            assert one.claimed(["name", "other"]) == [False, True]
            again = two.claim("name")
            assert again is not None
            claim.release()
            assert one.claim("name") is None
            again.release()
            other.release()
            assert one.usage() == (0, 0)

    def test_one_gets_a_claim(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:

            def race(_: int, barrier: threading.Barrier) -> list[int]:
                got = []
                for number in range(20):
                    barrier.wait(60)
                    claim = session.claim(f"name.{number}")
                    barrier.wait(60)  # nobody lets go before all have tried
                    if claim is not None:
                        got.append(number)
                        claim.release()
                return got

            assert sorted(chain(*_together(4, race))) == list(range(20))

    def test_a_claim_goes_with_its_process(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            readable, writable = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    signal.alarm(60)
                    claim = session.claim("name")
                    os.write(writable, b"1" if claim is not None else b"0")
                    signal.pause()
                finally:
                    os._exit(1)
            assert os.read(readable, 1) == b"1"
            assert session.claimed(["name"]) == [True]
            assert session.claim("name") is None
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(readable)
            os.close(writable)
            assert session.claimed(["name"]) == [False]
            claim = session.claim("name")
            assert claim is not None
            claim.release()

    def test_a_forked_child_keeps_no_claim(self, place: str) -> None:
        """An orphan of a holder that was killed must not be taken for him."""
        with closing(open_session(place, "a")) as session:
            readable, writable = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    signal.alarm(60)
                    session.claim("name")
                    orphan = os.fork()
                    if orphan == 0:
                        signal.alarm(60)
                        os.write(writable, b"%d\n" % os.getpid())
                        signal.pause()
                    signal.pause()
                finally:
                    os._exit(1)
            with os.fdopen(readable) as pipe:
                orphan = int(pipe.readline())
            os.close(writable)
            try:
                assert session.claimed(["name"]) == [True]
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                assert session.claimed(["name"]) == [False]
                claim = session.claim("name")
                assert claim is not None
                claim.release()
            finally:
                os.kill(orphan, signal.SIGKILL)

    def test_a_forked_child_releases_nothing(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            claim = session.claim("name")
            assert claim is not None
            _in_a_fork(claim.release)
            assert session.claimed(["name"]) == [True]
            claim.release()

    def test_unpickled_and_attached_elsewhere(self, place: str) -> None:
        with closing(open_session(place, "a")) as session:
            session.put("key", [b"from here"])
            assert _elsewhere(_exchange, session) == [b"from here"]
            session.evict(["reply"])
            assert _elsewhere(_attach_and_exchange, type(session), session.address) == [
                b"from here"
            ]
            assert _contents(session.get("reply")) == [b"from there"]

    def test_from_a_connector_of_the_same_place(self, place: str) -> None:
        with closing(connect(place)) as connector:
            assert isinstance(connector, DurableConnector)
            with closing(connector.durable("a", max_age=50.0)) as session:
                session.put("key", [b"x"])
        [known] = sessions(place)
        assert (known.name, known.objects, known.max_age) == ("a", 1, 50.0)


# How often processes meet to put something under the same key.
_ROUNDS = 20


def _put_at_once(session: DurableConnector, barrier: Any, number: int, size: int) -> list[bytes]:
    seen = []
    for turn in range(_ROUNDS):
        barrier.wait(60)
        session.put(f"key.{turn}", [bytes([number]) * size])
        seen.append(_contents(session.get(f"key.{turn}"))[0][:1])
    return seen


class ListingSuite:
    """Every promise of :class:`~proxyexec_connectors.listing.ListingConnector`, as a test.

    A subclass has a fixture ``place``: the URL of a place that has no sessions yet.
    """

    crosses_processes: ClassVar[bool] = True
    """Whether a session is seen from other processes."""

    knows_keys: ClassVar[bool] = True
    """Whether keys of any characters are told as they are, and not something in their place."""

    @pytest.fixture
    def listing(self, place: str) -> Iterator[Listing]:
        with closing(open_listing(place)) as listing:
            yield listing

    def test_it_follows_the_protocol(self, place: str, listing: Listing) -> None:
        with closing(connect(place)) as connector:
            assert isinstance(connector, ListingConnector)
        assert listing.url

    def test_a_place_with_nothing_in_it(self, listing: Listing) -> None:
        assert listing.sessions() == []
        assert listing.objects("session-0123456789abcdef") == []
        assert listing.start("session-0123456789abcdef", "key") is None

    def test_a_session_and_its_owner(self, place: str, listing: Listing) -> None:
        before = time.time()
        with closing(connect(place)) as connector:
            connector.put_many({"a": [b"x" * 1000], "b": [b"y" * 3_000_000]})
            [session] = listing.sessions()
            assert (session.kind, session.state) == ("session", "alive")
            assert (session.host, session.pid) == (socket.gethostname(), os.getpid())
            assert session.since is not None
            assert before - 1 <= session.since <= time.time() + 1
            assert (session.objects, session.bytes) == connector.usage()
            assert session.name in connector.address
        assert listing.sessions() == []

    def test_objects(self, place: str, listing: Listing) -> None:
        before = time.time()
        with closing(_listable(place)) as connector:
            connector.put_many({"b": [b"y" * 3_000_000], "a": [b"x" * 1000]})
            [session] = listing.sessions()
            a, b = listing.objects(session.name)
            assert (a.key, b.key) == ("a", "b")
            assert 1000 <= a.bytes < 1000 + 8192
            assert 3_000_000 <= b.bytes < 3_000_000 + 8192
            for one in (a, b):
                assert one.since is not None
                assert before - 1 <= one.since <= time.time() + 1
            assert connector.objects() == [a, b]
            connector.evict(["b"])
            assert listing.objects(session.name) == [a]
            assert connector.objects() == [a]

    def test_a_second_put_changes_nothing(self, place: str, listing: Listing) -> None:
        with closing(_listable(place)) as connector:
            connector.put("key", [b"x"])
            before = connector.objects()
            connector.put("key", [b"xy"])
            assert connector.objects() == before

    def test_how_an_object_begins(self, place: str, listing: Listing) -> None:
        frames: dict[str, list[bytes]] = {
            "none": [],
            "empty": [b""],
            "small": [b"one", b"", b"two"],
            "large": [b"head", b"z" * 3_000_000, b"tail"],
            "many": [b"%d" % n for n in range(20_000)],
        }
        with closing(connect(place)) as connector:
            connector.put_many(frames)
            [session] = listing.sessions()
            for key, given in frames.items():
                start = listing.start(session.name, key)
                assert start is not None
                assert list(start.lengths) == [len(one) for one in given][: len(start.lengths)]
                for one, whole in zip(start.starts, given, strict=False):
                    assert whole.startswith(one)
                if key != "many":
                    assert len(start.lengths) == len(given)
                    assert list(start.starts[:1]) == [one[:100] for one in given[:1]]
            assert listing.start(session.name, "missing") is None

    def test_odd_keys(self, place: str, listing: Listing) -> None:
        with closing(_listable(place)) as connector:
            for key in _ODD_KEYS:
                connector.put(key, [key.encode()])
            [session] = listing.sessions()
            found = listing.objects(session.name)
            assert session.objects == len(found) == len(_ODD_KEYS)
            if self.knows_keys:
                assert [one.key for one in found] == sorted(_ODD_KEYS)
            starts = [listing.start(session.name, one.key) for one in found]
            contents = {start.starts[0] for start in starts if start is not None}
            assert contents == {key.encode() for key in _ODD_KEYS}

    def test_names_that_lead_elsewhere(self, place: str, listing: Listing) -> None:
        with closing(connect(place)) as connector:
            connector.put("key", [b"x"])
            [session] = listing.sessions()
            for name in (
                "",
                ".",
                "..",
                "../..",
                "/etc",
                "a\0b",
                f"{session.name}/../{session.name}",
            ):
                assert listing.objects(name) == []
                assert listing.start(name, "key") is None
            for key in ("", ".", "..", "../key", "/etc/passwd", "a\0b"):
                assert listing.start(session.name, key) is None

    def test_several_sessions(self, place: str, listing: Listing) -> None:
        with closing(connect(place)) as one, closing(connect(place)) as two:
            one.put("key", [b"one"])
            two.put_many({"key": [b"two"], "more": [b"two"]})
            found = {session.name: session for session in listing.sessions()}
            assert list(found) == sorted(found)
            assert sorted(session.objects for session in found.values()) == [1, 2]
            for name, session in found.items():
                assert len(listing.objects(name)) == session.objects

    def test_from_another_process(self, place: str, listing: Listing) -> None:
        with closing(connect(place)) as connector:
            connector.put("key", [b"x"])
            seen = _elsewhere(_sessions_of, place)
            if self.crosses_processes:
                assert seen == listing.sessions()
                assert [one.state for one in seen] == ["alive"]
            else:
                assert seen == []
            # Nobody who looks changes anything.
            assert _contents(connector.get("key")) == [b"x"]

    def test_an_owner_that_was_killed(self, place: str, listing: Listing) -> None:
        if not self.crosses_processes:
            pytest.skip("what a process has goes with it")
        child = os.fork()
        if child == 0:
            try:
                connector = connect(place)
                connector.put_many({"key": [b"x"], "large": [b"x" * 3_000_000]})
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        for _ in range(2):  # it sweeps nothing
            [session] = listing.sessions()
            assert (session.state, session.pid, session.objects) == ("dead", child, 2)
            assert [one.key for one in listing.objects(session.name)] == ["key", "large"]
            start = listing.start(session.name, "key")
            assert start is not None
            assert list(start.starts) == [b"x"]

    def test_an_owner_that_was_not_waited_for(self, place: str, listing: Listing) -> None:
        if not self.crosses_processes:
            pytest.skip("what a process has goes with it")
        child = os.fork()
        if child == 0:
            try:
                connector = connect(place)
                connector.put("key", [b"x"])
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # from now on, it is a zombie
        try:
            assert [one.state for one in listing.sessions()] == ["dead"]
        finally:
            os.waitpid(child, 0)

    def test_while_objects_come_and_go(self, place: str, listing: Listing) -> None:
        with closing(_listable(place)) as connector:
            connector.put("stays", [b"x" * 400_000])
            done = threading.Event()

            def race(number: int, barrier: threading.Barrier) -> bool:
                barrier.wait(60)
                if number == 0:
                    try:
                        [session] = listing.sessions()
                        seen = [
                            {one.key for one in listing.objects(session.name)} for _ in range(50)
                        ]
                        return all({"stays"} <= one <= {"stays", "1", "2"} for one in seen)
                    finally:
                        done.set()
                while not done.is_set():
                    connector.put(f"{number}", [b"x" * 400_000])
                    assert connector.objects()
                    connector.evict([f"{number}"])
                return True

            assert all(_together(3, race))


def _listable(place: str) -> ListingConnector:
    connector = connect(place)
    assert isinstance(connector, ListingConnector)
    return connector


def _sessions_of(place: str) -> list[StoredSession]:
    with closing(open_listing(place)) as listing:
        return listing.sessions()
