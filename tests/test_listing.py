"""Places seen from outside against the suite, and what only each of them promises."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from proxyexec_connectors import _file_listing, _owners, _sessions, durable
from proxyexec_connectors._owners import Owner
from proxyexec_connectors.errors import (
    ConnectorUnavailableError,
    CorruptObjectError,
    NotListableError,
)
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.listing import open_listing
from proxyexec_connectors.memory import MemoryConnector
from proxyexec_connectors.testing import ListingSuite


class TestMemory(ListingSuite):
    crosses_processes = False

    @pytest.fixture
    def place(self):
        with closing(open_listing("memory://")) as listing:
            assert listing.sessions() == []
        return "memory://"

    def test_a_fork_has_none(self, place, listing):
        from proxyexec_connectors.testing import _in_a_fork

        with closing(MemoryConnector()):
            assert len(listing.sessions()) == 1
            assert _in_a_fork(listing.sessions) == []


class TestDirectories(ListingSuite):
    knows_keys = False

    @pytest.fixture
    def place(self, tmp_path):
        return (tmp_path / "objects").as_uri()


class TestSharedMemory(TestDirectories):
    @pytest.fixture
    def place(self, shared_memory):
        with tempfile.TemporaryDirectory(dir=shared_memory) as directory:
            yield f"file://{directory}"

    def test_memory_that_is_kept_is_no_object(self, place, listing):
        with closing(FileConnector.from_url(place)) as connector:
            connector.put("key", [b"x" * 3_000_000])
            connector.evict(["key"])
            [session] = listing.sessions()
            assert (session.objects, session.bytes) == (0, 0)
            assert session.idle_bytes >= 3_000_000
            connector.put("next", [b"y" * 3_000_000])
            [session] = listing.sessions()
            assert (session.objects, session.idle_bytes) == (1, 0)
            assert [one.key for one in listing.objects(session.name)] == ["next"]
            assert listing.start(session.name, "next").starts[0].startswith(b"yyy")


class TestUnnamedFilesMissing(TestDirectories):
    @pytest.fixture(autouse=True)
    def without_unnamed_files(self, monkeypatch):
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=True)


class TestRedis(ListingSuite):
    @pytest.fixture
    def place(self):
        pytest.importorskip("redis")
        from tests.redis_server import redis_server

        with redis_server() as server:
            yield server.url

    def test_looking_changes_no_key(self, place, listing):
        import redis

        child = os.fork()
        if child == 0:
            try:
                from proxyexec_connectors.redis import RedisConnector

                connector = RedisConnector(place)
                connector.put("key", [b"x"])
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        durable.open_session(place, "group").close()
        with closing(redis.Redis.from_url(place)) as client:
            client.delete(*client.keys("*:alive"))
            client.sadd("proxyexec:durable", "durable-vanished")

            def state():
                return {
                    key: (client.object("encoding", key), client.dump(key), client.expiretime(key))
                    for key in client.keys("*")
                }

            before = state()
            found = {one.name: one for one in listing.sessions()}
            dead = next(name for name in found if name != "durable-group")
            assert [one.key for one in listing.objects(dead)] == ["key"]
            assert listing.start(dead, "key") is not None
            assert state() == before
        assert found[dead].state == "dead"
        assert found["durable-group"].kind == "durable"
        assert len(found) == 2

    def test_an_owner_whose_process_is_not_seen(self, place, listing):
        import redis

        with (
            closing(open_connector(place)) as connector,
            closing(redis.Redis.from_url(place)) as client,
        ):
            names = connector._names
            elsewhere = _owners.here()._replace(host="elsewhere", machine="another", pid=1)
            client.set(names.owner, elsewhere.written())
            [session] = listing.sessions()
            assert (session.state, session.host, session.pid) == ("alive", "elsewhere", 1)
            client.delete(names.alive)
            assert listing.sessions()[0].state == "dead"
            for nonsense in (b"", b"x", b"[]", b"{}", b'{"pid": "x"}', b"[" * 10_000):
                client.set(names.owner, nonsense)
                [session] = listing.sessions()
                assert (session.state, session.host, session.pid) == ("dead", None, None)

    def test_a_session_that_is_closed_meanwhile_has_not_died(self, place, listing, monkeypatch):
        link = listing._link
        run = link.run
        with closing(open_connector(place)) as stays:
            leaves = open_connector(place)

            def running(commands, **options):
                replies = run(commands, **options)
                leaves.close()
                return replies

            monkeypatch.setattr(link, "run", running)
            [session] = listing.sessions()
            assert (session.name, session.state) == (stays._names.session.decode(), "alive")

    def test_a_server_that_drops_keys(self, listing):
        from tests.redis_server import redis_server

        with redis_server(maxmemory="3mb", maxmemory_policy="allkeys-lru") as server:
            with (
                closing(open_connector(server.url)) as connector,
                server.client() as client,
                closing(open_listing(server.url)) as listing,
            ):
                for number in range(20):
                    connector.put(f"{number}", [b"x" * 500_000])
                assert client.info("stats")["evicted_keys"]
                elsewhere = _owners.here()._replace(machine="another")
                client.sadd("proxyexec:sessions", connector._names.session)
                client.set(connector._names.owner, elsewhere.written())
                client.delete(connector._names.alive)
                assert [one.state for one in listing.sessions()] == ["unknown"]
                # What the server has lost is not there.
                there = [one.key for one in listing.objects(connector._session)]
                assert there and all(map(connector.exists, there))
                assert len(there) < 20

    def test_what_others_have_put_there(self, place, listing):
        import redis

        with (
            closing(open_connector(place)) as connector,
            closing(redis.Redis.from_url(place)) as client,
        ):
            connector.put("key", [b"x"])
            session = connector._session
            client.lpush(connector._names.prefix + b"o:list", "x")
            client.set(connector._names.prefix + b"o:text", "no object")
            for key in ("list", "text"):
                with pytest.raises(CorruptObjectError):
                    listing.start(session, key)
            client.hset(connector._names.index, b"o:more", b"nonsense")
            with pytest.raises(CorruptObjectError):
                listing.sessions()

    def test_a_user_who_may_only_read(self, place, listing):
        import redis

        with (
            closing(open_connector(place)) as connector,
            closing(redis.Redis.from_url(place)) as client,
        ):
            connector.put("key", [b"x"])
            client.acl_setuser(
                "reader",
                enabled=True,
                passwords=["+secret"],
                keys=["proxyexec:*"],
                categories=["+@read", "+@connection"],
            )
            url = place.replace("redis://", "redis://reader:secret@")
            with closing(open_listing(url)) as theirs:
                assert "secret" not in theirs.url
                assert theirs.sessions() == listing.sessions()
                [session] = theirs.sessions()
                assert theirs.objects(session.name) == connector.objects()
                assert theirs.start(session.name, "key").starts == [b"x"]

    def test_a_server_that_is_gone(self, place):
        with pytest.raises(ConnectorUnavailableError) as caught:
            with closing(open_listing("redis://:secret@127.0.0.1:1/0?timeout=0.1")) as listing:
                listing.sessions()
        assert "secret" not in str(caught.value)


def open_connector(place):
    from proxyexec_connectors.redis import RedisConnector

    return RedisConnector(place)


# --- directories -----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    return tmp_path / "objects"


def sessions(place):
    with closing(open_listing(place.as_uri())) as listing:
        return listing.sessions()


def test_the_usual_place(shared_memory):
    with closing(FileConnector()) as connector, closing(open_listing("file://")) as listing:
        connector.put("key", [b"x"])
        [session] = [one for one in listing.sessions() if one.pid == os.getpid()]
        assert session.name == connector._session
        assert [one.key for one in listing.objects(session.name)] == ["key"]


def test_a_session_in_two_directories(tmp_path, monkeypatch):
    url = f"{(tmp_path / 'one').as_uri()}?spill={tmp_path / 'two'}"
    with closing(FileConnector.from_url(url)) as connector, closing(open_listing(url)) as listing:
        connector.put("first", [b"x"])
        from proxyexec_connectors import file

        monkeypatch.setattr(file, "_free_bytes", lambda place: 0)
        connector.put("second", [b"x" * 2_000_000])
        assert os.path.exists(f"{connector._places[1]}/second")
        [session] = listing.sessions()
        assert (session.objects, session.bytes) == connector.usage()
        assert [one.key for one in listing.objects(session.name)] == ["first", "second"]
        assert listing.start(session.name, "second").starts[0].startswith(b"xxx")


def test_durable_sessions_are_among_them(place):
    url = place.as_uri()
    with closing(durable.open_session(url, "group")) as session:
        session.put("key", [b"x" * 100])
        with closing(FileConnector(place)):
            owned, group = sorted(sessions(place), key=lambda one: one.kind, reverse=True)
        assert owned.kind == "session"
        assert (group.name, group.kind, group.state) == ("durable-group", "durable", "")
        assert (group.objects, group.host, group.pid) == (1, None, None)
        with closing(open_listing(url)) as listing:
            assert [one.key for one in listing.objects("durable-group")] == ["key"]


def test_copies_of_remote_objects(shared_memory):
    from proxyexec_connectors._host_cache import HostCache, Known

    cache = HostCache("0123456789abcdef", 1 << 30, lambda objects: [True] * len(objects))
    known = Known("key", b"t" * 16)
    try:
        mapped = cache.obtain(
            known, 3_000_000, lambda write: write(memoryview(bytes(3_000_000)), 0)
        )
        assert len(mapped) >= 3_000_000
        with closing(open_listing("file://")) as listing:
            [session] = [one for one in listing.sessions() if one.kind == "copies"]
        assert (session.state, session.pid, session.objects) == ("", None, 1)
        assert session.bytes >= 3_000_000
    finally:
        cache.leave()


def test_a_live_session_s_lock_is_not_touched(place, monkeypatch):
    """Its owner's process is seen, and so are dead ones: nobody else's lock is ever tried."""
    with closing(FileConnector(place)):
        monkeypatch.setattr(fcntl, "flock", None)
        assert [one.state for one in sessions(place)] == ["alive"]


def sign(place, **changes):
    [lock] = place.glob("*.lock")
    lock.write_text(json.dumps({**json.loads(lock.read_bytes()), **changes}))


def test_an_owner_on_another_machine(place):
    with closing(FileConnector(place)) as connector:
        sign(place, machine="another", host="elsewhere", pid=7)
        [session] = sessions(place)
        assert (session.state, session.host, session.pid) == ("alive", "elsewhere", 7)
        # Where nobody is seen to hold the lock, that machine's locks may not be seen at all.
        os.rename(f"{connector._places[0]}.lock", place / "aside")
        Path(f"{connector._places[0]}.lock").write_bytes((place / "aside").read_bytes())
        assert [one.state for one in sessions(place)] == ["unknown"]


def test_an_owner_who_has_not_signed(place):
    with closing(FileConnector(place)) as connector:
        for said in (b"", b"nonsense", b'{"pid": 1}'):
            Path(f"{connector._places[0]}.lock").write_bytes(said)
            [session] = sessions(place)
            assert (session.state, session.host, session.pid) == ("alive", None, None)


def test_a_directory_that_is_removed_meanwhile(place, monkeypatch):
    connector = FileConnector(place)
    connector.put("key", [b"x"])
    read_lock = _sessions.read_lock

    def reading(path):
        connector.close()
        return read_lock(path)

    monkeypatch.setattr(_sessions, "read_lock", reading)
    with closing(open_listing(place.as_uri())) as listing:
        assert listing.sessions() == []


def test_a_process_id_that_was_used_again(place):
    with closing(FileConnector(place)):
        sign(place, born=_owners.here().born - 1)
        assert [one.state for one in sessions(place)] == ["dead"]


def test_owners():
    here = _owners.here()
    assert Owner.read(here.written()) == here
    assert here.is_running() is True
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = here._replace(pid=child.pid, born=_owners._born(child.pid))
    assert other.is_running() is True
    child.communicate(b"\n")
    assert other.is_running() is False
    assert here._replace(machine="another").is_running() is None
    assert here._replace(machine="").is_running() is None


def test_other_things_in_the_directory(place):
    with closing(FileConnector(place)) as connector:
        connector.put("key", [b"x"])
        (place / "notes").mkdir()
        (place / "session-not").mkdir()
        (place / "session-0123456789abcdef~").mkdir()
        (place / "file.lock").write_text("precious")
        session = Path(connector._places[0])
        os.mkfifo(session / "pipe")
        (session / "folder").mkdir()
        (session / "link").symlink_to("/etc/passwd")
        [one] = sessions(place)
        assert one.objects == 1
        with closing(open_listing(place.as_uri())) as listing:
            assert [each.key for each in listing.objects(one.name)] == ["key"]
            for key in ("pipe", "folder"):
                with pytest.raises((CorruptObjectError, ConnectorUnavailableError)):
                    listing.start(one.name, key)
            with pytest.raises(ConnectorUnavailableError):
                listing.start(one.name, "link")


def test_a_directory_that_cannot_be_read(tmp_path):
    (tmp_path / "file").touch()
    with closing(open_listing((tmp_path / "file").as_uri())) as listing:
        with pytest.raises(ConnectorUnavailableError):
            listing.sessions()


def test_what_somebody_else_keeps_to_himself(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    with closing(FileConnector(tmp_path)), closing(open_listing(tmp_path.as_uri())) as listing:
        [one] = listing.sessions()
        monkeypatch.setattr("os.scandir", scandir)
        with pytest.raises(ConnectorUnavailableError, match="Permission denied"):
            listing.sessions()
        with pytest.raises(ConnectorUnavailableError, match="Permission denied"):
            listing.objects(one.name)
        monkeypatch.undo()


def test_an_object_that_is_written_anew_while_it_is_looked_at(place):
    with closing(FileConnector(place)) as connector:
        connector.put("key", [b"x"])
        path = f"{connector._places[0]}/key"
        from proxyexec_connectors._segment import header

        Path(path).write_bytes(header("another", 10) + bytes(10))
        with pytest.raises(FileNotFoundError):
            _file_listing._beginning(path, "key")


class Closed:
    """A connector that does not tell."""


def test_places_that_do_not_tell(monkeypatch):
    from proxyexec_connectors import listing

    monkeypatch.setattr(listing, "connector_class", lambda url: Closed)
    with pytest.raises(NotListableError) as caught:
        open_listing("closed://user:secret@host")
    assert "secret" not in str(caught.value)


def test_urls_that_are_none():
    from proxyexec_connectors.errors import UnknownSchemeError

    with pytest.raises(UnknownSchemeError):
        open_listing("nonsense://x")
