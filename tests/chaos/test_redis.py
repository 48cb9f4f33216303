"""The Redis server is stopped, killed, cut off, slow, or drops keys, in the middle of the work."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

redis = pytest.importorskip("redis")

from proxyexec import ProxySize, Store, StoreExecutor, extract, reference_of, resolve
from proxyexec.errors import ConnectorError, ConnectorUnavailableError, ObjectMissingError
from proxyexec_connectors import _redis_wire
from proxyexec_connectors.redis import RedisConnector
from tests.chaos.census import PATIENCE, descriptors, eventually, family
from tests.chaos.places import RedisPlace
from tests.chaos.programs import hear, program, say
from tests.conftest import wait_for_evictions
from tests.proxies import cutting_proxy
from tests.redis_server import RedisServer, redis_server

LONG = "PROXYEXEC_LONG" in os.environ

# How long a server is stopped that goes on within the timeout.
STOPPED_SECONDS = 5.0 if LONG else 0.3

# Takes several pieces and transactions, and is shared by the workers of a host.
LARGE = 8_000_000


# --- what runs in workers ------------------------------------------------------------------


def double(x):
    return x * 2


def double_and_suffer(x, at: int, fault: str, url: str, process: int):
    """As :func:`double`, with a fault between the replies of the server that come from now on."""
    at_reply(at, lambda: hurt(fault, url, process))
    return extract(x) * 2


def at_reply(count: int, act: Callable[[], object]) -> None:
    """Do something when so many more requests for objects have been answered."""
    received = _redis_wire._received
    left = [count]

    def spy(replies, request):
        result = received(replies, request)
        left[0] -= 1
        if not left[0]:
            _redis_wire._received = received
            act()
        return result

    _redis_wire._received = spy


def hurt(fault: str, url: str, process: int) -> None:
    """What a fault begins with."""
    if fault == "cut":
        with closing(redis.Redis.from_url(url)) as client:
            client.client_kill_filter(_type="normal", skipme=True)
    else:
        os.kill(process, signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)


# --- what drives them ----------------------------------------------------------------------


class Nurse(threading.Thread):
    """Has a server that was stopped go on, and one that was killed started again, once."""

    def __init__(self, server: RedisServer, fault: str) -> None:
        super().__init__()
        self._server = server
        self._fault = fault
        self.wanted = threading.Event()
        self.gone = threading.Event()
        if fault != "gone":
            self.wanted.set()

    def run(self) -> None:
        process = self._server.process
        if self._fault == "cut":
            return
        if self._fault == "stopped":
            eventually(lambda: state_of(process.pid) == "T", "the server is stopped")
            # It is the timeout that this is shorter than.
            time.sleep(STOPPED_SECONDS)
            process.send_signal(signal.SIGCONT)
            return
        process.wait(PATIENCE)
        self.gone.set()
        self.wanted.wait(PATIENCE)
        self._server.kill()
        self._server.start()


def state_of(process: int) -> str:
    """``T`` for one that is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def threads_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/task"))


def array(number: int, size: int = LARGE) -> Any:
    return np.full(size // 8, number)


class Scene:
    """An executor at work, with a server that something happens to."""

    def __init__(self, server: RedisServer, fault: str, options: str) -> None:
        self.server = server
        self.fault = fault
        self.place = RedisPlace(server)
        self.public = f"redis://127.0.0.1:{server.port}/0"
        self.base = ProcessPoolExecutor(2)
        self.executor = StoreExecutor(self.base, server.url + options, ProxySize("10 kB"))
        self.store = self.executor.store
        self._work: list[tuple[Any, Any]] = []

    def start(self, function: Callable[..., Any], number: int, size: int, *more: Any) -> None:
        """Submit a call whose argument and result are of that size."""
        future = self.executor.submit(function, array(number, size), *more)
        self._work.append((future, number * 2))

    def work(self, rounds: int = 1) -> None:
        """Submit calls, of small things and large ones."""
        for number in range(1, rounds + 1):
            for size in (80, 40_000, LARGE):
                self.start(double, number, size)

    def settled(self) -> list[type[BaseException]]:
        """Wait for all calls, look at what came of them, and return the types of the errors."""
        work, self._work = self._work, []
        undone = wait([future for future, _ in work], PATIENCE).not_done
        assert not undone, "this hangs"
        return [error for future, right in work if (error := self.error_of(future, right))]

    def error_of(self, future: Any, right: int) -> type[BaseException] | None:
        """What a call came to: nothing wrong, or an error that says what it should."""
        try:
            result = future.result(0)
            assert (result == right).all()
        except (ConnectorError, ObjectMissingError) as error:
            assert self.public in str(error)
            if isinstance(error, ObjectMissingError):
                assert error.key in str(error)
            return type(error)  # its traceback refers to results
        return None

    def hurt(self) -> None:
        """Let the fault begin, here and now."""
        assert self.server.process is not None
        hurt(self.fault, self.server.url, self.server.process.pid)

    @property
    def facts(self) -> tuple[str, str, int]:
        """For :func:`hurt` elsewhere."""
        assert self.server.process is not None
        return self.fault, self.server.url, self.server.process.pid

    def holdings(self) -> Counter[str]:
        """Descriptors and threads of the workers, and threads of this process."""
        found: Counter[str] = Counter()
        for worker in self.base._processes:
            found += descriptors(worker)
            found["threads"] += threads_of(worker)
        return found


@contextmanager
def scene(fault: str, options: str = "", **config: Any) -> Iterator[Scene]:
    """An executor at work; afterwards, nothing may be left."""
    threads = threading.active_count()
    with redis_server(**config) as server:
        one = Scene(server, fault, options)
        with one.executor:
            # All that workers open, they have opened after this.
            one.work(rounds=4)
            assert one.settled() == []
            before = one.holdings()
            yield one
            if not one.base._shutdown_thread:
                # The pool lives on, as does the work.
                one.work(rounds=4)
                assert one.settled() == []
                # The traceback of an error refers to the frame that got it, and so to futures.
                gc.collect()
                eventually(lambda: one.store.usage().objects == 0, "all is evicted")
                assert one.place.objects() == []
                # A worker talks to the server by one connection, and another host cache may be.
                more = one.holdings() - before
                assert more["threads"] == 0
                assert more["socket:"] <= 2
        gc.collect()
        wait_for_evictions()
        assert one.place.residue() == []
    assert threading.active_count() <= threads


STEPS = ("before a put", "in a put", "in a get", "in a result's put", "at eviction", "at close")
FAULTS = ("stopped", "restarted", "cut", "gone")

# All of them take some time: the short form has each step and each fault, though not together.
SHORT = {
    "before a put": ("restarted",),
    "in a put": ("stopped", "restarted", "cut"),
    "in a get": ("stopped", "gone"),
    "in a result's put": ("stopped", "restarted"),
    "at eviction": ("restarted",),
    "at close": ("stopped", "gone"),
}


@pytest.mark.parametrize(
    ("step", "fault"),
    [(step, fault) for step in STEPS for fault in (FAULTS if LONG else SHORT[step])],
)
def test_a_server_that_is(step, fault):
    """It is stopped and goes on, killed and started again empty, cut off, or gone for a while."""
    with scene(fault) as one:
        nurse = Nurse(one.server, fault)
        one.work()
        held = [one.executor.submit(double, array(3)).result() for _ in range(3)]
        errors = one.settled()
        assert errors == []
        nurse.start()
        if step == "before a put":
            one.hurt()
            one.work()
        elif step == "in a put":
            at_reply(2, one.hurt)
            one.work()
        elif step == "in a get":
            # The beginning, and a part of the rest, have been received.
            one.start(double_and_suffer, 5, LARGE, 2, *one.facts)
            one.work()
        elif step == "in a result's put":
            # Nothing is fetched, as the argument travels with the call.
            one.start(enlarge_and_suffer, 5, 80, 3, *one.facts)
            one.work()
        elif step == "at eviction":
            one.hurt()
            held.clear()
            one.work()
        else:
            one.hurt()
            one.executor.shutdown()
        errors += one.settled()
        if fault in ("stopped", "cut"):
            assert errors == [], "nothing was lost, but time"
        nurse.wanted.set()
        nurse.join(PATIENCE)
        assert not nurse.is_alive()
        if fault in ("restarted", "gone") and step != "at close":
            while held:
                assert_lost(held.pop())
            if fault == "gone":
                assert errors
        held.clear()


def assert_lost(result: Any) -> None:
    """Fail if a result is there, or if the error does not say which one is not."""
    with pytest.raises(ObjectMissingError, match=reference_of(result).key):
        resolve(result)


def enlarge_and_suffer(x, at: int, fault: str, url: str, process: int):
    """A large result from a small argument, with a fault while it is stored."""
    at_reply(at, lambda: hurt(fault, url, process))
    return np.full(LARGE // 8, x[0] * 2)


def test_a_server_that_is_silent_for_longer_than_anybody_waits():
    """What it has been sent, it reads when it goes on: long after the calls have failed."""
    with scene("stopped", "?timeout=0.3") as one:
        one.hurt()
        try:
            one.work()
            errors = one.settled()
            assert errors
            assert set(errors) == {ConnectorUnavailableError}
        finally:
            one.server.process.send_signal(signal.SIGCONT)


def test_closing_while_the_server_is_silent():
    """The executor ends; what is left goes with the next store that is opened, in time."""
    threads = threading.active_count()
    with redis_server() as server:
        place, base = RedisPlace(server), ProcessPoolExecutor(1)
        executor = StoreExecutor(base, server.url + "?timeout=0.3&grace=0.9", ProxySize("10 kB"))
        with executor:
            assert (executor.submit(double, array(1)).result() == 2).all()
            server.process.send_signal(signal.SIGSTOP)
        wait_for_evictions()
        assert executor.store.closed
        server.process.send_signal(signal.SIGCONT)

        def swept() -> bool:
            Store.from_url(server.url).close()
            return place.residue() == []

        eventually(swept, "what could not be removed is swept")
    assert threading.active_count() <= threads


def test_connections_that_are_slow_and_cut(seed=None):
    """Again and again, at any byte; each call is right in the end."""
    seed = random.randrange(1 << 32) if seed is None else seed
    print(f"seed {seed}")
    chance = random.Random(seed)

    def budgets():
        for _ in range(400 if LONG else 40):
            # One in two is cut, on its way up or down: never six times in a row.
            size = int(10 ** chance.uniform(1.5, 6.5))
            yield chance.choice([(size, None), (None, size)])
            yield (None, None)

    with (
        redis_server() as server,
        cutting_proxy(server.port, budgets(), delay=0.0005) as proxy,
    ):
        place = RedisPlace(server)
        with StoreExecutor(ProcessPoolExecutor(2), proxy.url, ProxySize("10 kB")) as executor:
            for turn in range(40 if LONG else 5):
                work = [
                    (executor.submit(double, array(n, size)), 2 * n)
                    for n in range(3)
                    for size in (80, 40_000, 3_000_000)
                ]
                assert not wait([future for future, _ in work], PATIENCE).not_done
                for future, right in work:
                    assert (future.result() == right).all(), f"turn {turn}, seed {seed}"
                # The next turn begins with connections that are all new.
                with server.client() as client:
                    client.client_kill_filter(_type="normal", skipme=True)
                del work, future
            assert executor.store.usage().objects == 0
        wait_for_evictions()
        assert proxy.cuts
        assert place.residue() == []


def test_a_server_that_drops_keys():
    """Results are right, or missing; nobody's session is swept."""
    config = {"maxmemory": "60mb", "maxmemory_policy": "allkeys-lru"}
    with redis_server(**config) as server:
        place = RedisPlace(server)
        with Store.from_url(server.url) as bystander:
            kept = bystander.proxy(array(7, 40_000))
            with StoreExecutor(ProcessPoolExecutor(2), server.url, ProxySize("10 kB")) as executor:
                missing = 0
                futures = [executor.submit(double, array(n)) for n in range(12)]
                assert not wait(futures, PATIENCE).not_done
                for number, future in enumerate(futures):
                    try:
                        assert (future.result() == number * 2).all()
                    except (ObjectMissingError, ConnectorUnavailableError) as error:
                        assert f"redis://127.0.0.1:{server.port}/0" in str(error)
                        missing += 1
                with server.client() as client:
                    assert client.info("stats")["evicted_keys"]
                    # The keys that say so may have been among them; now they are.
                    client.delete(*client.keys("*:alive"))
                assert missing
                del futures, future
                assert (executor.submit(double, array(8)).result() == 16).all()
                with Store.from_url(server.url):
                    with server.client() as client:
                        sizes = [client.exists(name) for name in place.objects()]
                    try:
                        assert (kept == 7).all()
                    except ObjectMissingError:
                        pass  # dropped, as any may be
                    assert all(sizes)
                assert (executor.submit(double, array(9)).result() == 18).all()
                gc.collect()
                assert executor.store.usage().objects == 0
            wait_for_evictions()
            del kept
            assert bystander.usage() == (0, 0)
        assert place.residue() == []


# --- owners that are stopped, or die -------------------------------------------------------


def own_and_be_stopped(url: str) -> None:
    """Own an object, and say what has become of it after a while."""
    store = Store.from_url(url)
    first = store.proxy([1])
    say(store.usage().objects)
    hear()
    try:
        say(sum(first))
    except ObjectMissingError as error:
        say(str(error))
    second = store.proxy([2])
    # A heartbeat, at the latest, has the session listed again.
    with closing(redis.Redis.from_url(url.partition("?")[0])) as client:
        session = store.connector._session.encode()
        eventually(
            lambda: (
                client.sismember("proxyexec:sessions", session)
                and client.exists(f"proxyexec:{session.decode()}:alive")
            ),
            "the session is there again",
        )
    say(store.usage().objects)
    hear()
    say(sum(second))
    store.close()


def test_an_owner_who_is_stopped_loses_his_objects_after_the_grace_only():
    with redis_server() as server, family() as ours:
        place = RedisPlace(server)
        with program(own_and_be_stopped, server.url + "?grace=3", family=ours) as owner:
            assert owner.hear() == 1
            owner.kill(signal.SIGSTOP)
            with server.client() as client:
                [alive] = client.keys("*:alive")
                # He has been silent for a while, not for as long as is allowed.
                eventually(lambda: client.pttl(alive) < 1900, "a heartbeat is due")
                with Store.from_url(server.url):
                    if client.exists(alive):
                        assert len(place.objects()) == 1
                eventually(lambda: not client.exists(alive), "the grace has passed")
                assert len(place.objects()) == 1
                with Store.from_url(server.url):
                    assert place.objects() == []
            owner.kill(signal.SIGCONT)
            owner.tell()
            assert f"redis://127.0.0.1:{server.port}/0" in owner.hear()
            assert owner.hear() == 1
            with Store.from_url(server.url):
                assert len(place.objects()) == 1
            owner.tell()
            assert owner.hear() == 2
            assert owner.ended() == (0, "")
        assert place.residue() == []


@pytest.mark.parametrize("end", ["lives", "dies"])
def test_a_session_in_a_server_that_started_again_empty(end):
    """Its heartbeat makes it known again; so it is spared while its owner lives, and swept after."""
    with redis_server() as server, family() as ours:
        place = RedisPlace(server)
        with program(own_and_be_stopped, server.url + "?grace=1", family=ours) as owner:
            assert owner.hear() == 1
            server.kill()
            server.start()
            assert place.objects() == []
            owner.tell()
            assert f"redis://127.0.0.1:{server.port}/0" in owner.hear()
            assert owner.hear() == 1
            if end == "lives":
                with Store.from_url(server.url):
                    assert len(place.objects()) == 1
                owner.tell()
                assert owner.hear() == 2
                assert owner.ended()[0] == 0
            else:
                owner.kill()
                owner.ended()

                def swept() -> bool:
                    RedisConnector(server.url).close()
                    return place.residue() == []

                eventually(swept, "what a dead owner stored after the restart goes")
        assert place.residue() == []
