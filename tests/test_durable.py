"""Durable sessions of directories and of Redis against the suite, and what only each promises."""

from __future__ import annotations

import fcntl
import os
import pickle
import tempfile
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from proxyexec_connectors import _file_durable, durable
from proxyexec_connectors.errors import NotDurableError, UnsafeDirectoryError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from proxyexec_connectors.testing import DurableSuite


class TestDirectories(DurableSuite):
    @pytest.fixture
    def place(self, tmp_path):
        return (tmp_path / "groups").as_uri()

    def remains(self, place):
        return os.listdir(urlsplit(place).path)


class TestSharedMemory(TestDirectories):
    @pytest.fixture
    def place(self, shared_memory):
        with tempfile.TemporaryDirectory(dir=shared_memory) as directory:
            yield f"file://{directory}"


class TestUnnamedFilesMissing(TestDirectories):
    @pytest.fixture(autouse=True)
    def without_unnamed_files(self, monkeypatch):
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=True)


class TestRedis(DurableSuite):
    @pytest.fixture
    def place(self, redis_url):
        yield redis_url
        for one in durable.sessions(redis_url):
            durable.remove_session(redis_url, one.name)
        assert self.remains(redis_url) == []

    def remains(self, place):
        import redis

        with closing(redis.Redis.from_url(place)) as client:
            return client.keys("*")

    def test_every_key_has_the_session_s_age(self, place):
        import redis

        with (
            closing(durable.open_session(place, "a", max_age=1000)) as session,
            closing(redis.Redis.from_url(place)) as client,
        ):
            session.put_many({"small": [b"x"], "large": [b"x" * 3_000_000]})
            keys = [key for key in client.keys("*") if key != b"proxyexec:durable"]
            assert len(keys) == 4
            for key in keys:
                client.expire(key, 500)
            session.touch()
            for key in keys:
                assert 990 <= client.ttl(key) <= 1000
            # A worker stores with that age, too.
            copy = pickle.loads(pickle.dumps(session))
            copy.put("other", [b"x"])
            copy.close()
            assert 990 <= client.ttl("proxyexec:durable-a:o:other") <= 1000

    def test_a_claim_from_another_machine_runs_out(self, place):
        import redis

        with (
            closing(durable.open_session(f"{place}?grace=0.2", "a")) as session,
            closing(redis.Redis.from_url(place)) as client,
        ):
            client.set("proxyexec:durable-a:c:name", b"elsewhere/pid/1/1/token", px=300)
            assert session.claimed(["name"]) == [True]
            assert session.claim("name") is None
            while session.claimed(["name"])[0]:
                pass
            claim = session.claim("name")
            # It is renewed, as otherwise it would run out.
            before = client.pttl("proxyexec:durable-a:c:name")
            while client.pttl("proxyexec:durable-a:c:name") <= before:
                before = min(before, client.pttl("proxyexec:durable-a:c:name"))
                assert session.claimed(["name"]) == [True]
            claim.release()

    def test_a_claim_that_somebody_has_taken_is_not_taken_back(self, place):
        import redis

        with (
            closing(durable.open_session(place, "a")) as session,
            closing(redis.Redis.from_url(place)) as client,
        ):
            claim = session.claim("name")
            client.set("proxyexec:durable-a:c:name", b"elsewhere/pid/1/1/token", px=10_000)
            claim.beat()
            claim.release()
            assert client.get("proxyexec:durable-a:c:name") == b"elsewhere/pid/1/1/token"


def test_a_claim_from_another_machine(tmp_path, monkeypatch):
    """Locks may not be seen there: it counts for as long as its file changes."""
    url = (tmp_path / "groups").as_uri()
    with closing(durable.open_session(url, "a")) as session:
        path = tmp_path / "groups" / "durable-a" / "~claim-name"
        path.write_text("another boot")
        assert session.claim("name") is None
        assert session.claimed(["name"]) == [True]
        monkeypatch.setattr(_file_durable, "_FOREIGN_SECONDS", 0.0)
        os.utime(path, (1, 1))  # it has changed
        assert session.claim("name") is None
        assert session.claimed(["name"]) == [False]
        claim = session.claim("name")  # nothing is known of it by now
        assert claim is None
        claim = session.claim("name")
        assert claim is not None
        assert session.claimed(["name"]) == [True]
        claim.release()


def test_a_claim_that_is_released_while_it_is_taken(tmp_path, monkeypatch):
    """Its file loses its name between being opened and being locked: the lock guards nothing."""
    with closing(durable.open_session((tmp_path / "groups").as_uri(), "a")) as session:
        first = session.claim("name")
        flock = fcntl.flock

        def flock_later(descriptor, operation):
            if operation & fcntl.LOCK_EX:
                monkeypatch.undo()
                first.release()
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock_later)
        second = session.claim("name")
        assert second is not None
        assert session.claimed(["name"]) == [True]
        assert session.claim("name") is None
        second.release()


def test_places_that_keep_nothing(tmp_path):
    for url in ("memory://", "file://", f"file://{tmp_path}?spill=/tmp/other"):
        with pytest.raises(NotDurableError, match="use a directory"):
            durable.open_session(url, "a")
        with pytest.raises(NotDurableError):
            durable.sessions(url)
    assert not hasattr(MemoryConnector(), "durable")
    with closing(FileConnector()) as connector, pytest.raises(NotDurableError):
        connector.durable("a")


def test_a_directory_that_others_may_write_to(tmp_path):
    place = tmp_path / "groups"
    durable.open_session(place.as_uri(), "a").close()
    (place / "durable-a").chmod(0o777)
    with pytest.raises(UnsafeDirectoryError):
        durable.open_session(place.as_uri(), "a")
    (place / "durable-a").chmod(0o700)
    place.chmod(0o777)
    with pytest.raises(UnsafeDirectoryError):
        durable.open_session(place.as_uri(), "a")


def test_what_was_left_while_a_session_was_removed(tmp_path):
    place = tmp_path / "groups"
    durable.open_session(place.as_uri(), "a").close()
    (place / "durable-a").rename(place / "durable-a~going-1234")
    assert durable.sessions(place.as_uri()) == []
    assert not durable.remove_session(place.as_uri(), "a")
    assert os.listdir(place) == []


def test_a_session_without_its_facts(tmp_path):
    """Its maker was killed between two steps."""
    place = tmp_path / "groups"
    durable.open_session(place.as_uri(), "a").close()
    (place / "durable-a" / "~about").unlink()
    [known] = durable.sessions(place.as_uri())
    assert known.max_age == durable.DEFAULT_MAX_AGE
    with closing(durable.open_session(place.as_uri(), "a", max_age=7.0)) as session:
        session.touch()
    assert durable.sessions(place.as_uri())[0].max_age == 7.0
