"""What processes of a host share: fetched once, never a wrong byte, nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from proxyexec_connectors import _host_cache, _segments
from proxyexec_connectors._host_cache import HostCache, Known

SESSION = "0123456789abcdef"
ONE, OTHER = Known("key", b"1" * 16), Known("key", b"2" * 16)


class Server:
    """What is current, and what was fetched."""

    def __init__(self):
        self.gone = set()
        self.asked = []
        self.fetched = []

    def are_current(self, objects):
        self.asked.append(list(objects))
        return [known not in self.gone for known in objects]

    def receive(self, known, content):
        def receive(write):
            self.fetched.append(known)
            middle = len(content) // 2
            write(memoryview(content)[middle:], middle)
            write(memoryview(content)[:middle], 0)

        return receive


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def caches(server):
    """Makes one for each "process"."""
    made = []

    def make(limit=1 << 30):
        made.append(HostCache(SESSION, limit, server.are_current))
        return made[-1]

    yield make
    for cache in made:
        cache.leave()


def obtain(cache, server, known, content):
    memory = cache.obtain(known, len(content), server.receive(known, content))
    return None if memory is None else bytes(memory)


def files(cache):
    return sorted(os.listdir(cache._place)) if os.path.exists(cache._place) else []


def test_it_is_fetched_once(caches, server):
    one, two = caches(), caches()
    for cache in (one, two, one):
        assert obtain(cache, server, ONE, b"content") == b"content"
    assert server.fetched == [ONE]
    assert len(files(one)) == 1


def test_each_has_memory_of_its_own(caches, server):
    one, two = caches(), caches()
    memory = one.obtain(ONE, 5000, server.receive(ONE, bytes(5000)))
    memory[:] = b"x" * 5000
    assert obtain(two, server, ONE, bytes(5000)) == bytes(5000)
    assert memory[:] == b"x" * 5000


def test_nobody_else_may_read_it(caches, server):
    cache = caches()
    obtain(cache, server, ONE, b"content")
    assert stat.S_IMODE(os.stat(cache._place).st_mode) == 0o700
    [file] = files(cache)
    assert stat.S_IMODE(os.stat(f"{cache._place}/{file}").st_mode) == 0o600


def test_another_object_under_the_same_key_takes_its_place(caches, server):
    one, two = caches(), caches()
    kept = one.obtain(ONE, 5000, server.receive(ONE, b"o" * 5000))
    assert obtain(two, server, OTHER, b"n" * 6000) == b"n" * 6000
    assert kept[:] == b"o" * 5000
    assert len(files(one)) == 1
    assert obtain(one, server, OTHER, b"n" * 6000) == b"n" * 6000
    assert server.fetched == [ONE, OTHER]


@pytest.mark.parametrize("key", ["", "a/b", "\0", "ключ", "\udc80", "x" * 1000])
def test_odd_keys(caches, server, key):
    known = Known(key, b"t" * 16)
    for _ in range(2):
        assert obtain(caches(), server, known, b"content") == b"content"
    assert server.fetched == [known]


def test_what_is_kept_is_found(caches, server):
    one, two = caches(), caches()
    assert two.find("key") is None
    assert not os.path.exists(two._root), "nothing was made for who only looks"
    obtain(one, server, ONE, b"content")
    known, memory = two.find("key")
    assert (known, memory[:]) == (ONE, b"content")
    memory[:] = b"changed"
    assert two.find("key")[1][:] == b"content"
    assert two.find("other") is None
    one.leave()
    # Who has looked is in it as well.
    assert two.find("key")[1][:] == b"content"
    two.forget(["key"])
    assert two.find("key") is None
    assert server.asked == [[ONE]]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_what_is_no_object_is_not_found(caches, server, content):
    cache = caches()
    obtain(cache, server, ONE, b"content")
    Path(cache._path("key")).write_bytes(content)
    Path(cache._path("other")).write_bytes(b"content" + _host_cache._trailer(ONE, 7))
    Path(cache._path("empty")).write_bytes(_host_cache._trailer(Known("empty", b"1" * 16), 0))
    for key in ("key", "other", "empty"):
        assert cache.find(key) is None


def in_thread(function, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()

    def result():
        thread.join(60)
        [value] = results
        return value

    return result


def waits(monkeypatch):
    """An event that is set when somebody waits for who fetches, however long that takes."""
    waiting = threading.Event()
    locks = _host_cache._locks

    def announced(descriptor):
        locked = locks(descriptor)
        # Who makes room looks at locks as well, and waits for none.
        if not locked and sys._getframe(1).f_code.co_name == "_wait_for":
            waiting.set()
        return locked

    monkeypatch.setattr(_host_cache, "_locks", announced)
    monkeypatch.setattr(_host_cache, "_PATIENCE", 600)
    return waiting


def test_others_wait_for_who_fetches(caches, server, monkeypatch):
    one, two = caches(), caches()
    waiting, fetching = waits(monkeypatch), threading.Event()

    def receive(write):
        fetching.set()
        assert waiting.wait(60)
        server.receive(ONE, b"content")(write)

    first = in_thread(one.obtain, ONE, 7, receive)
    assert fetching.wait(60)
    second = in_thread(obtain, two, server, ONE, b"content")
    memory = first()
    assert second() == memory[:] == b"content"  # while the first one has it mapped
    assert server.fetched == [ONE]


def test_a_failed_fetch_leaves_nothing_and_the_next_one_fetches(caches, server):
    one, two = caches(), caches()

    def fail(write):
        write(memoryview(b"con"), 0)
        raise KeyError("gone")

    with pytest.raises(KeyError):
        one.obtain(ONE, 7, fail)
    assert files(one) == []
    assert obtain(two, server, ONE, b"content") == b"content"


FETCHER = """
import sys
from proxyexec_connectors import _host_cache
_host_cache._SHARED_MEMORY, session, until = sys.argv[1:]
cache = _host_cache.HostCache(session, 1 << 30, lambda objects: [True] * len(objects))
def receive(write):
    write(memoryview(b"wrong"), 0)
    if until == "middle":
        print("there", flush=True)
        sys.stdin.readline()
    write(memoryview(b"x" * 5000), 0)
known = _host_cache.Known("key", b"1" * 16)
memory = cache.obtain(known, 5000, receive)
assert memory[:] == b"x" * 5000
print("there", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def fetcher(until):
    """Another process that has fetched an object, or is in the middle of that."""
    process = subprocess.Popen(
        [sys.executable, "-c", FETCHER, _host_cache._SHARED_MEMORY, SESSION, until],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"there\n"
        yield process


def test_who_is_killed_in_the_middle_is_not_waited_for(caches, server):
    cache = caches()
    with fetcher("middle") as process:
        process.kill()
        process.wait()
        cache._join()
        assert obtain(cache, server, ONE, b"y" * 5000) == b"y" * 5000
        assert len(files(cache)) == 1
        assert obtain(caches(), server, ONE, b"y" * 5000) == b"y" * 5000
        assert server.fetched == [ONE]


def test_who_is_killed_while_others_wait_is_replaced(caches, server, monkeypatch):
    cache = caches()
    waiting = waits(monkeypatch)
    with fetcher("middle") as process:
        result = in_thread(obtain, cache, server, ONE, b"y" * 5000)
        assert waiting.wait(60)
        process.kill()
        assert result() == b"y" * 5000


def test_who_is_stopped_is_not_waited_for(caches, server, monkeypatch):
    monkeypatch.setattr(_host_cache, "_PATIENCE", 0.01)
    cache = caches()
    with fetcher("middle") as process:
        process.send_signal(signal.SIGSTOP)
        assert obtain(cache, server, ONE, b"y" * 5000) == b"y" * 5000
        process.send_signal(signal.SIGCONT)
        # It goes on, gets what it fetched, and disturbs nobody.
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"there\n"
        assert obtain(cache, server, ONE, b"y" * 5000) == b"y" * 5000
        assert len(files(cache)) == 1
        process.communicate(b"\n", timeout=60)
        assert process.returncode == 0
    assert server.fetched == [ONE]


def test_who_fetches_anew_makes_progress(caches, server, monkeypatch):
    """Over another connection, after the first was cut: what comes is there already."""
    cache = caches()
    obtain(cache, server, Known("other", b"1" * 16), b"content")
    work = cache._path("key") + "~"
    now, turns = 0.0, 0
    with open(work, "w+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"content")

        def turn(pause):
            nonlocal now, turns
            now, turns = now + 0.9 * _host_cache._PATIENCE, turns + 1
            if turns == 5:
                fcntl.flock(file, fcntl.LOCK_UN)
                return
            before = os.fstat(file.fileno()).st_mtime_ns
            while os.fstat(file.fileno()).st_mtime_ns == before:  # clocks of files are coarse
                os.pwrite(file.fileno(), b"content", 0)

        monkeypatch.setattr(_host_cache.time, "monotonic", lambda: now)
        monkeypatch.setattr(_host_cache.time, "sleep", turn)
        _host_cache._wait_for(work)
    assert turns == 5


def test_a_dead_writers_file_is_never_written_again(caches, server):
    """It was killed when the file had its name and had not lost the other one."""
    one, two = caches(), caches()
    memory = one.obtain(ONE, 5000, server.receive(ONE, b"o" * 5000))
    path = one._path("key")
    os.link(path, path + "~")
    one.forget(["key"])
    assert obtain(two, server, OTHER, b"n" * 10) == b"n" * 10
    assert memory[:] == b"o" * 5000
    assert len(files(one)) == 1


def test_an_object_evicted_while_it_is_fetched_is_not_kept(caches, server):
    cache = caches()

    def receive(write):
        server.receive(ONE, b"content")(write)
        server.gone.add(ONE)
        cache.forget(["key"])  # finds nothing yet

    # It was there when the fetch began, and all of it came.
    assert bytes(cache.obtain(ONE, 7, receive)) == b"content"
    assert files(cache) == []


def test_a_server_that_does_not_say_whether_it_is_there(caches, server):
    cache = caches()

    def fail(objects):
        raise KeyError("no answer")

    cache._are_current = fail
    with pytest.raises(KeyError):
        obtain(cache, server, ONE, b"content")
    assert files(cache) == []


def test_what_another_host_has_evicted_goes_when_something_comes(caches, server):
    cache = caches()
    obtain(cache, server, ONE, b"content")
    server.gone.add(ONE)
    obtain(cache, server, Known("next", b"n" * 16), b"more")
    assert len(files(cache)) == 1


def test_it_is_bounded_and_the_oldest_go(caches, server, monkeypatch):
    cache = caches(limit=20_000)
    objects = [Known(f"key {n}", b"%016d" % n) for n in range(4)]
    for number, known in enumerate(objects[:3]):
        obtain(cache, server, known, bytes(6000))
        os.utime(cache._path(known.key), (number, number))
    assert len(files(cache)) == 3
    obtain(cache, server, objects[0], bytes(6000))  # used: not the oldest any more
    obtain(cache, server, objects[3], bytes(6000))
    assert server.fetched == objects
    left = [known for known in objects if os.path.exists(cache._path(known.key))]
    assert left == [objects[0], objects[2], objects[3]]
    assert obtain(cache, server, Known("big", b"b" * 16), bytes(20_001)) is None
    assert len(files(cache)) == 3


def test_what_is_being_written_counts(caches, server):
    one, two = caches(limit=10_000), caches(limit=10_000)

    def receive(write):
        assert obtain(two, server, Known("other", b"o" * 16), bytes(6000)) is None
        server.receive(ONE, bytes(6000))(write)

    assert bytes(one.obtain(ONE, 6000, receive)) == bytes(6000)
    assert len(files(one)) == 1


def test_nothing_is_kept_when_that_is_not_wanted(caches, server):
    assert obtain(caches(limit=0), server, ONE, b"content") is None
    assert obtain(HostCache("../up", 1 << 30, server.are_current), server, ONE, b"x") is None
    assert not os.path.exists(caches()._place)


def test_full_shared_memory_is_no_caching(server, small_tmpfs, monkeypatch):
    monkeypatch.setattr(_host_cache, "_SHARED_MEMORY", str(small_tmpfs))
    cache = HostCache(SESSION, 1 << 30, server.are_current)
    content = bytes(80 << 20)
    assert obtain(cache, server, ONE, content) is None  # looked first
    assert server.fetched == []
    monkeypatch.setattr(_host_cache, "_free_bytes", lambda place: 1 << 40)
    assert obtain(cache, server, ONE, content) is None  # ran into it
    assert files(cache) == []
    assert obtain(cache, server, ONE, b"small") == b"small"
    cache.leave()
    assert os.listdir(small_tmpfs) == []


def test_no_shared_memory_is_no_caching(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_host_cache, "_SHARED_MEMORY", str(tmp_path / "file" / "none"))
    (tmp_path / "file").touch()
    assert obtain(HostCache(SESSION, 1 << 30, server.are_current), server, ONE, b"x") is None


def test_a_directory_that_others_may_write_into_is_no_caching(caches, server):
    cache = caches()
    os.mkdir(cache._root)
    os.chmod(cache._root, 0o777)
    try:
        assert obtain(cache, server, ONE, b"content") is None
        assert os.listdir(cache._root) == []
    finally:
        os.rmdir(cache._root)


def test_a_directory_that_is_just_being_removed_is_no_caching(caches, server):
    """The last process that leaves, or a sweeper, has the lock."""
    cache = caches()
    os.mkdir(cache._root, 0o700)
    with open(cache._place + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert obtain(cache, server, ONE, b"content") is None
    assert obtain(cache, server, ONE, b"content") == b"content"


def test_a_file_that_cannot_be_named_is_fetched_once_all_the_same(caches, server, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    cache = caches()
    assert obtain(cache, server, ONE, b"content") == b"content"
    assert server.fetched == [ONE]
    assert files(cache) == []


# --- processes come and go -----------------------------------------------------------------


def test_the_last_to_leave_removes_it(caches, server):
    one, two = caches(), caches()
    obtain(one, server, ONE, b"content")
    obtain(two, server, ONE, b"content")
    one.leave()
    assert len(files(two)) == 1
    two.leave()
    assert not os.path.exists(two._root)
    # And one who comes back starts anew.
    assert obtain(one, server, ONE, b"content") == b"content"


def test_what_killed_processes_left_is_swept(caches, server):
    with fetcher("end") as process:
        process.kill()
    cache = caches()
    assert len(files(cache)) == 1
    cache._join()
    assert files(cache) == []


def test_a_process_that_ends_leaves(caches):
    cache = caches()
    with fetcher("end") as process:
        assert len(files(cache)) == 1
        process.communicate(b"\n", timeout=60)
    assert not os.path.exists(cache._root)


def test_the_owner_removes_it_whoever_is_in_it(caches, server):
    one, owner = caches(), caches()
    memory = one.obtain(ONE, 5000, server.receive(ONE, b"o" * 5000))
    owner.remove()
    assert not os.path.exists(owner._root)
    assert obtain(one, server, ONE, bytes(5000)) is None
    assert memory[:] == b"o" * 5000
    owner.remove()


def test_who_was_in_what_was_removed_removes_nothing_new(caches, server):
    one, two = caches(), caches()
    obtain(one, server, ONE, b"content")
    obtain(two, server, ONE, b"content")
    one.remove()
    obtain(one, server, ONE, b"content")
    two.leave()
    assert len(files(one)) == 1


def test_a_forked_child_is_not_in_it(caches, server):
    cache = caches()
    obtain(cache, server, ONE, b"content")
    ready, go = multiprocessing.Pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            cache.leave()
            assert len(files(cache)) == 1
            go.send("left")
            ready.close()
            assert go.recv() == "go"  # the parent has left meanwhile
            assert files(cache) == []
            assert obtain(cache, Server(), ONE, b"content") == b"content"
            cache.leave()
            status = 0
        finally:
            os._exit(status)
    with ready, go:
        assert ready.recv() == "left"
        cache.leave()
        assert not os.path.exists(cache._root)
        ready.send("go")
        assert os.waitpid(child, 0)[1] == 0


# --- with a real server and real workers ---------------------------------------------------


def pieces_fetched(client):
    """How often HMGET was called: once for each get, and once for each piece but the first."""
    return client.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"]


def total(array):
    array[0] += 1  # private to the task
    return float(array.sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_fetch_a_broadcast_object_once(redis_url, shared_memory, method):
    np = pytest.importorskip("numpy")
    pytest.importorskip("redis")
    import redis

    from proxyexec import ProxySize, Store, StoreExecutor
    from proxyexec_connectors.redis import RedisConnector

    array = np.ones(2_500_000)  # 20 MB: a first piece, and 19 more
    with (
        contextlib.closing(redis.Redis.from_url(redis_url)) as client,
        ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool,
    ):
        store = Store("broadcast", RedisConnector(redis_url))
        place = Path(store.connector._host_cache._root)
        with StoreExecutor(pool, store, ProxySize("1 MB"), lazy=False) as executor:
            proxy = store.proxy(array)
            before = pieces_fetched(client)
            futures = [executor.submit(total, proxy) for _ in range(12)]
            assert [future.result() for future in futures] == [2_500_001.0] * 12
            # Both workers may have asked for the beginning, and one has fetched the rest.
            assert pieces_fetched(client) - before in (1 + 19, 2 + 19)
            del proxy
            store.usage()  # evicts
            if method == "fork":  # which alone inherits where tests have shared memory
                assert [one for one in place.glob("session-*/*")] == []
        del executor
    assert store.closed
    assert not place.exists()


def test_an_evicted_object_is_missing_whatever_is_kept(redis_url):
    pytest.importorskip("redis")
    from proxyexec_connectors import attach
    from proxyexec_connectors.redis import RedisConnector

    with contextlib.closing(RedisConnector(redis_url)) as owner:
        owner.put("key", [bytes(2_500_000)])
        assert owner.get("key") is not None
        cache = owner._host_cache
        assert files(cache) == []  # the owner fetches for itself
        with contextlib.closing(attach(owner.address)) as worker:
            assert bytes(worker.get("key")[0]) == bytes(2_500_000)
            [file] = files(cache)
            # What a sweeper takes for a segment it cuts short, whoever has it mapped.
            assert not _segments.is_segment(f"{cache._place}/{file}")
            # Another host evicts: no file of this one goes.
            forget, cache.forget = cache.forget, lambda keys: None
            owner.evict(["key"])
            assert files(cache) == [file]
            assert worker.get("key") is None
            owner.put("key", [b"x" * 3_000_000])
            assert bytes(worker.get("key")[0]) == b"x" * 3_000_000
            assert len(files(cache)) == 1
            owner.evict(["key"])
            owner.put("key", [b"small"])
            owner.put("next", [b"y" * 3_000_000])
            assert bytes(worker.get("next")[0]) == b"y" * 3_000_000
            assert len(files(cache)) == 1, "what is no object of this form any more is still kept"
            assert bytes(worker.get("key")[0]) == b"small"
            owner.evict(["key", "next"])
            owner.put("key", [b"x" * 3_000_000])
            worker.get("key")
            assert len(files(cache)) == 1
            cache.forget = forget
            owner.evict(["key"])
            assert files(cache) == []
            owner.put("key", [b"x" * 3_000_000])
            worker.get("key")
    assert not os.path.exists(cache._root)


def test_what_is_kept_is_not_fetched_again(redis_url):
    pytest.importorskip("redis")
    import redis

    from proxyexec_connectors import attach
    from proxyexec_connectors.redis import RedisConnector

    with (
        contextlib.closing(redis.Redis.from_url(redis_url)) as client,
        contextlib.closing(RedisConnector(redis_url)) as owner,
        contextlib.closing(attach(owner.address)) as worker,
    ):
        owner.put("one", [bytes(2_500_000)])
        owner.put("two", [b"x" * 3_000_000])
        owner.put("gone", [b"y" * 4_000_000])
        owner.put("small", [b"small"])
        for key in ("one", "two", "gone"):
            worker.get(key)
        worker._host_cache.forget(["two"])
        owner._host_cache.forget = lambda keys: None  # as on another host
        owner.evict(["gone"])
        before = pieces_fetched(client)
        found = worker.get_many(["one", "small", "gone", "none", "one", "two"])
        # The beginning of "two" and three pieces; nothing of "one".
        assert pieces_fetched(client) - before == 1 + 3
        one, small, gone, none, again, two = found
        assert gone is none is None
        assert [bytes(*frames) for frames in (one, small, again, two)] == [
            bytes(2_500_000),
            b"small",
            bytes(2_500_000),
            b"x" * 3_000_000,
        ]
        memoryview(one[0])[:1] = b"z"
        assert again[0][0] == 0
        assert worker.get("one")[0][0] == 0


def test_what_was_kept_for_a_session_that_is_over_goes(redis_url):
    """Its owner was on another host, and nothing tells this one that it has gone."""
    pytest.importorskip("redis")
    from proxyexec_connectors import attach
    from proxyexec_connectors.redis import RedisConnector

    def far_owner():
        owner = RedisConnector(redis_url)
        owner._host_cache.remove = lambda: None
        owner.put("key", [bytes(2_500_000)])
        return owner

    owners = [far_owner() for _ in range(3)]
    workers = [attach(owner.address) for owner in owners]
    [first, second, third] = [worker._host_cache for worker in workers]
    for worker in workers[:2]:
        worker.get("key")
    owners[0].close()
    assert len(files(first)) == len(files(second)) == 1
    workers[2].get("key")
    assert files(first) == []
    assert len(files(second)) == len(files(third)) == 1
    for one in (*owners, *workers):
        one.close()
    assert not os.path.exists(first._root)


def test_who_has_closed_is_not_in_it_again(redis_url):
    pytest.importorskip("redis")
    from proxyexec_connectors import attach
    from proxyexec_connectors.errors import ConnectorClosedError
    from proxyexec_connectors.redis import RedisConnector

    with contextlib.closing(RedisConnector(redis_url)) as owner:
        owner.put("key", [bytes(2_500_000)])
        one, other = (attach(owner.address) for _ in range(2))
        for worker in (one, other):
            worker.get("key")
        one.close()
        with pytest.raises(ConnectorClosedError):
            one.get("key")
        other.close()
        assert not os.path.exists(one._host_cache._root)


def test_of_what_comes_slowly_a_part_is_passed_on():
    """So that those who wait for it see that there is progress."""
    pytest.importorskip("redis")
    from proxyexec_connectors._redis_format import Head
    from proxyexec_connectors._redis_reading import PieceReceiver
    from proxyexec_connectors._redis_wire import Replies

    head = Head(b"0" * 16, 3_000_000, 1_000_000, 1_000_000)
    content, memory = os.urandom(1_000_000), memoryview(bytearray(1_000_000))
    passed_on = queue.Queue()

    def write(data, offset):
        passed_on.put((offset, bytes(data)))

    near, far = socket.socketpair()
    with near, far:
        receiver = PieceReceiver(head, *head.place(1), lambda start, end: memory, write)
        received = in_thread(receiver, Replies(near))
        far.sendall(b"*2\r\n$%d\r\n%b\r\n$1000000\r\n" % (len(head.written()), head.written()))
        far.sendall(content[:500_000])
        parts = [passed_on.get(timeout=60)]
        assert 0 < len(parts[0][1]) <= 500_000
        far.sendall(content[500_000:] + b"\r\n")
        assert received() is True
    while not passed_on.empty():
        parts.append(passed_on.get())
    whole = bytearray(1_000_000)
    for offset, data in parts:
        whole[offset - 1_000_000 : offset - 1_000_000 + len(data)] = data
    assert whole == content
    assert sum(len(data) for _, data in parts) == len(content)


def test_switched_off(redis_url):
    pytest.importorskip("redis")
    from proxyexec_connectors import attach
    from proxyexec_connectors.redis import RedisConnector

    with contextlib.closing(RedisConnector(redis_url, host_cache=0)) as owner:
        owner.put("key", [bytes(2_500_000)])
        with contextlib.closing(attach(owner.address)) as worker:
            assert bytes(worker.get("key")[0]) == bytes(2_500_000)
            assert not os.path.exists(worker._host_cache._root)


def test_a_failing_fetch_is_said_and_not_hidden(redis_url, caplog):
    """An error of the server is no lack of room."""
    pytest.importorskip("redis")
    from proxyexec_connectors import attach
    from proxyexec_connectors.errors import ConnectorUnavailableError
    from proxyexec_connectors.redis import RedisConnector
    from tests.redis_server import redis_server

    caplog.set_level(logging.DEBUG, "proxyexec.connectors.redis")
    with redis_server() as server, contextlib.closing(RedisConnector(server.url)) as owner:
        owner.put("key", [bytes(2_500_000)])
        with contextlib.closing(attach(owner.address)) as worker:
            fetch = worker._fetch

            def down(*args):
                server.kill()
                return fetch(*args)

            worker._fetch = down
            with pytest.raises(ConnectorUnavailableError):
                worker.get("key")
            assert files(worker._host_cache) == []
        server.start()
