"""The Redis connector against the suite and real servers, and what only it promises."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("redis")

import redis as redis_py

from proxyexec_connectors import attach, connect
from proxyexec_connectors import redis as connector_module
from proxyexec_connectors import _redis_wire
from proxyexec_connectors._redis_format import Head, run_of
from proxyexec_connectors._redis_wire import Packer
from proxyexec_connectors._redis_session import remove
from proxyexec_connectors.errors import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorFullError,
    ConnectorUnavailableError,
    CorruptObjectError,
)
from proxyexec_connectors.redis import RedisConnector
from proxyexec_connectors.testing import ConnectorSuite
from tests.proxies import CuttingProxy
from tests.redis_server import redis_server

PASSWORD = "s3cret:/@ #%"


class TestRedisConnector(ConnectorSuite):
    @pytest.fixture
    def another(self, redis_url):
        opened = []

        def another():
            opened.append(RedisConnector(redis_url))
            return opened[-1]

        yield another
        for connector in opened:
            connector.close()
        with server_client(redis_url) as client:
            assert client.keys() == []

    @pytest.fixture
    def connector(self, another):
        return another()


class TestRedisConnectorInPieces(TestRedisConnector):
    """Again, with sizes at which most objects take several pieces and transactions."""

    @pytest.fixture(autouse=True)
    def small_sizes(self, monkeypatch):
        monkeypatch.setattr(connector_module, "_STRING_BYTES", 10_000)
        monkeypatch.setattr(connector_module, "_FIRST_BYTES", 10_000)
        monkeypatch.setattr(connector_module, "_PIECE_BYTES", 100_000)
        monkeypatch.setattr(connector_module, "_BATCH_BYTES", 350_000)


def server_client(url):
    return closing(redis_py.Redis.from_url(url))


@pytest.fixture
def connector(redis_url):
    with closing(RedisConnector(redis_url)) as connector:
        yield connector


@pytest.fixture
def client(redis_url):
    with server_client(redis_url) as client:
        client.flushall()
        yield client


def contents(frames):
    return [bytes(frame) for frame in frames]


def ttls(client):
    return {key: client.pttl(key) for key in client.scan_iter(count=1000)}


def run_python(code, *args):
    """Start a process that runs ``code``; it is an owner of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


# --- places --------------------------------------------------------------------------------


def in_another_process(connector):
    """What another process that has the connector unpickled reads and writes."""
    code = (
        "import pickle, sys\n"
        "connector = pickle.loads(sys.stdin.buffer.read())\n"
        "connector.put('reply', connector.get('key'))\n"
        "connector.close()\n"
    )
    process = run_python(code)
    process.communicate(pickle.dumps(connector), timeout=60)
    assert process.returncode == 0
    return contents(connector.get("reply"))


def speaks_without(secret, connector):
    for text in (repr(connector), connector.url, connector.address, str(vars(connector))):
        assert secret not in text


def test_password():
    with redis_server(requirepass=PASSWORD) as server:
        with closing(connect(server.url)) as connector:
            connector.put("key", [b"x"])
            speaks_without(PASSWORD, connector)
            speaks_without("s3cret", connector)
            assert in_another_process(connector) == [b"x"]
            # A process that has opened the place by its URL knows the password already.
            with closing(attach(connector.address)) as attached:
                assert contents(attached.get("key")) == [b"x"]
            address = connector.address
        del connector, attached
        gc.collect()
        with pytest.raises(ConnectorUnavailableError, match="password.*by its URL first"):
            attach(address)
        wrong = server.url.replace("s3cret", "wr0ng")
        with pytest.raises(ConnectorUnavailableError) as refused:
            RedisConnector(wrong)
        said = "".join((str(refused.value), repr(refused.value), str(refused.value.__cause__)))
        assert "wr0ng" not in said


def test_password_in_the_query():
    with redis_server(requirepass="s3cret") as server:
        url = f"redis://127.0.0.1:{server.port}?password=s3cret&db=3"
        with closing(RedisConnector(url)) as connector:
            speaks_without("s3cret", connector)
            assert connector.url.endswith("/3")


def test_acl_user():
    rules = ["worker", "on", ">pa55word", "~proxyexec:*", "+@all", "-@dangerous"]
    with redis_server(user=rules, requirepass="other") as server:
        url = f"redis://worker:pa55word@127.0.0.1:{server.port}/0"
        with closing(RedisConnector(url)) as connector:
            connector.put("key", [b"x"])
            speaks_without("pa55word", connector)
            assert "worker@" in connector.url
            assert in_another_process(connector) == [b"x"]
        with server.client() as client:
            client.acl_setuser(
                "reader", enabled=True, passwords=["+r"], keys=["*"], categories=["+@read"]
            )
        with pytest.raises(ConnectorUnavailableError, match="permission"):
            RedisConnector(f"redis://reader:r@127.0.0.1:{server.port}/0")


def test_the_rights_that_a_user_needs():
    """They are those in the documentation."""
    page = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    rights = re.search(r"`(~proxyexec:[^`]*)`", page)[1].split()
    with redis_server(user=["worker", "on", ">pw", *rights], requirepass="other") as server:
        with closing(RedisConnector(f"redis://worker:pw@127.0.0.1:{server.port}/0")) as owner:
            owner.put_many({"key": [b"x"], "large": [bytes(5 << 20)]})
            assert in_another_process(owner) == [b"x"]
            with closing(attach(owner.address)) as worker:
                assert worker.get("large")[0] == bytes(5 << 20)
                assert worker.exists("key")
            owner._ownership.beat()
            owner._ownership.renew()
            assert owner.usage().objects == 3
            owner.evict(["key", "large", "reply"])
            assert owner.usage().objects == 0


def test_an_object_that_must_not_be_read_is_not_called_corrupt(monkeypatch):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", 1)
    with redis_server(user=["worker", "on", ">pa55word", "~*", "+@all"]) as server:
        url = f"redis://worker:pa55word@127.0.0.1:{server.port}/0"
        with closing(RedisConnector(url)) as connector, server.client() as client:
            connector.put_many({"small": [b"x"], "big": [bytes(200_000)]})

            def forbid(count=2):
                if count == 2:  # the beginning of the big one has been read
                    client.execute_command("ACL SETUSER", "worker", "-hmget", "-get")

            between_requests(monkeypatch, forbid)
            for key in ("big", "small"):
                with pytest.raises(ConnectorUnavailableError, match="permission"):
                    connector.get(key)
            client.execute_command("ACL SETUSER", "worker", "+hmget", "+get")
            assert contents(connector.get("small")) == [b"x"]


def test_databases_are_places_of_their_own(redis_url):
    with closing(RedisConnector(redis_url[:-1] + "5")) as connector:
        connector.put("key", [b"x"])
        with server_client(connector.url) as client:
            assert client.exists(b"proxyexec:sessions")
        assert in_another_process(connector) == [b"x"]


def test_unix_socket():
    with redis_server(unixsocket="s.sock") as server:
        url = f"unix://{server.directory}/s.sock?db=2"
        with closing(connect(url)) as connector:
            assert connector.url == url
            connector.put("key", [b"x"])
            assert in_another_process(connector) == [b"x"]
            with closing(attach(connector.address)) as attached:
                assert contents(attached.get("key")) == [b"x"]


def test_options_in_the_query(redis_url, client):
    with closing(
        connect(f"{redis_url}?ttl=100&grace=50&max_connections=3&timeout=7&host_cache=9")
    ) as connector:
        connector.put("key", [b"x"])
        assert connector._options == (100, 50, 3, 7, 9)
        assert pickle.loads(pickle.dumps(connector))._options == connector._options
        with closing(attach(connector.address)) as attached:
            assert attached._options == connector._options
        assert 90_000 < client.pttl(connector._name("key")) <= 100_000


@pytest.mark.parametrize(
    "bad",
    [
        "?ttl=0",
        "?grace=-1",
        "?ttl=soon",
        "?db=x",
        "?colour=red",
        "?max_connections=0",
        "?host_cache=-1",
    ],
)
def test_options_that_make_no_sense(redis_url, bad):
    with pytest.raises(ValueError):
        RedisConnector(redis_url + bad)


def test_a_password_that_breaks_the_url_is_not_quoted():
    with pytest.raises(ValueError, match="percent-encoded") as error:
        RedisConnector("redis://:se/cret@127.0.0.1:6379/0")
    assert "cret" not in str(error.value)
    assert ":se" not in str(error.value)
    assert error.value.__suppress_context__


def test_an_address_without_session(redis_url):
    with pytest.raises(ValueError, match="session"):
        RedisConnector.attach(redis_url)


# --- bytes on the wire ---------------------------------------------------------------------


def test_replies_are_parsed_by_hiredis(connector):
    connection = connector._link._pool.make_connection()
    assert type(connection._parser).__name__ == "_HiredisParser"


def test_big_frames_are_sent_from_where_they_lie(connector, monkeypatch):
    sent = []
    joined = _redis_wire.joined

    def spy(buffers, small_bytes):
        sent.extend(joined(buffers, small_bytes))
        return joined(buffers, small_bytes)

    monkeypatch.setattr(_redis_wire, "joined", spy)
    frame = bytearray(1_000_000)
    connector.put("key", [b"small", frame])
    views = [buffer for buffer in sent if isinstance(buffer, memoryview)]
    assert sum(view.nbytes for view in views) == len(frame)
    assert all(view.obj is frame for view in views)
    assert max(len(buffer) for buffer in sent if isinstance(buffer, bytes)) < 10_000


def test_no_view_of_a_view_is_made():
    """Python's garbage collector crashed on these."""
    content = bytearray(100_000)
    views = [memoryview(content), pickle.PickleBuffer(content).raw(), memoryview(content)[100:]]
    run, size = run_of(views)
    found = [part.obj for part in run if isinstance(part, memoryview)]
    assert [one for one in found if one is content] == [content] * 3
    assert not any(isinstance(one, memoryview) for one in found)
    assert size > 299_900


def test_commands_are_written_as_by_others(connector):
    connection = connector._link._pool.make_connection()
    theirs = redis_py.connection.PythonRespSerializer(6000, connection.encoder.encode)
    for command in (("HSET", b"key", b"0", memoryview(b"xyz")), ("CONFIG GET", "a", 1, 2.5)):
        assert b"".join(Packer().pack(*command)) == b"".join(theirs.pack(*command))
    pieces = [memoryview(b"xy"), b"", b"z"]
    assert b"".join(Packer().pack("SET", pieces)) == b"".join(theirs.pack("SET", b"xyz"))


def test_objects_are_received_into_one_piece_of_writable_memory(connector):
    frames = [os.urandom(3_000_000), b"small", os.urandom(1_000_001)]
    connector.put("key", frames)
    first, _, third = connector.get("key")
    assert not first.readonly
    assert first.obj is third.obj
    first[:] = bytes(len(first))
    assert contents(connector.get("key")) == frames


def test_an_object_above_the_batch_size_goes_in_several_transactions(connector, client):
    frames = [os.urandom(70 << 20), b"", os.urandom(5 << 20)]
    connector.put("key", frames)
    assert contents(connector.get("key")) == frames
    assert not [key for key in client.keys() if b":t:" in key]


def test_pieces_are_of_the_given_sizes(connector, client, monkeypatch):
    monkeypatch.setattr(connector_module, "_STRING_BYTES", 30)
    monkeypatch.setattr(connector_module, "_FIRST_BYTES", 30)
    monkeypatch.setattr(connector_module, "_PIECE_BYTES", 40)
    frames = [b"x" * 25, b"", b"y" * 70]
    connector.put("key", frames)
    stored = client.hgetall(connector._name("key"))
    head = Head.read(stored.pop(b"h"))
    assert head[1:] == (198, 30, 40)
    assert [len(stored[b"%d" % number]) for number in range(head.pieces)] == [30, 40, 40, 40, 40, 8]
    assert len(stored) == 6
    # A reader with other sizes reads it all the same.
    monkeypatch.undo()
    assert contents(connector.get("key")) == frames


@pytest.mark.parametrize("size", [1, 29, 30, 31, 69, 70, 71, 110, 150])
def test_a_head_says_where_pieces_lie(size):
    head = Head(b"t" * 16, size, min(size, 30), 40)
    places = [head.place(number) for number in range(head.pieces)]
    assert places[0][0] == 0
    assert places[-1][1] == size
    assert [end for _, end in places[:-1]] == [start for start, _ in places[1:]]
    assert all(0 < end - start <= 40 for start, end in places)
    assert Head.read(head.written()) == head


def test_small_objects_take_one_round_trip(connector, monkeypatch):
    conversations = []
    converse = connector._link._converse

    def counted(requests, window):
        requests = list(requests)
        conversations.append(len(requests))
        return converse(requests, window)

    monkeypatch.setattr(connector._link, "_converse", counted)
    connector.put("key", [bytes(200_000)])
    assert contents(connector.get("key")) == [bytes(200_000)]
    connector.put_many({f"key {n}": [b"x" * 1000] for n in range(100)})
    assert None not in connector.get_many([f"key {n}" for n in range(100)])
    assert conversations == [1, 1, 1, 100]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_object_of_the_other_form_comes_in_between(connector, monkeypatch, at):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", 1)
    connector.put("key", [b"o" * 200_000])
    with closing(attach(connector.address)) as other:

        def replace(count=at):
            if count == at:
                other.evict(["key"])
                other.put("key", [b"n" * 10])

        between_requests(monkeypatch, replace)
        assert contents(connector.get("key")) == [b"n" * 10]


def test_an_object_changes_its_form_all_the_time(connector, monkeypatch):
    small_pieces(monkeypatch)
    sizes = iter([200_000, 10] * 2)
    with closing(attach(connector.address)) as other:

        def replace(count):
            # After each of our requests, but not after what it causes itself.
            if (size := next(sizes, None)) is not None and not replacing:
                replacing.append(True)
                other.evict(["key"])
                other.put("key", [b"x" * size])
                replacing.clear()

        replacing = []
        connector.put("key", [b"x" * 200_000])
        between_requests(monkeypatch, replace)
        [found] = contents(connector.get("key"))
        assert found in (b"x" * 10, b"x" * 200_000)


def test_fortran_order(connector):
    numpy = pytest.importorskip("numpy")
    array = numpy.asfortranarray(numpy.arange(6).reshape(2, 3))
    connector.put("key", [pickle.PickleBuffer(array), numpy.array(7)])
    assert contents(connector.get("key")) == [array.tobytes(order="F"), numpy.array(7).tobytes()]


def test_connections_are_bounded(redis_url, client):
    with closing(RedisConnector(redis_url, max_connections=2)) as connector:
        before = len(client.client_list())
        barrier = threading.Barrier(12)

        def use():
            barrier.wait(60)
            for _ in range(20):
                connector.put("key", [b"x" * 10_000])
                connector.get("key")

        threads = [threading.Thread(target=use) for _ in range(11)]
        for thread in threads:
            thread.start()
        barrier.wait(60)
        for thread in threads:
            thread.join()
        assert len(client.client_list()) <= before + 2


def test_lost_connections_are_made_anew(connector, client):
    connector.put("key", [b"x"])
    client.client_kill_filter(_type="normal", skipme=True)
    assert contents(connector.get("key")) == [b"x"]
    client.client_kill_filter(_type="normal", skipme=True)
    connector.put("other", [b"x"])


@pytest.mark.parametrize("big", [False, True])
def test_a_put_whose_answer_was_lost_is_repeated_without_harm(connector, client, monkeypatch, big):
    if big:
        small_pieces(monkeypatch)
    frames = [os.urandom(150_000), b"tail"]
    converse = connector._link._converse
    lost = []

    def lose_the_first_answer(requests, window):
        requests = list(requests)
        replies = converse(requests, window)
        if not lost:
            lost.append(len(requests))
            raise redis_py.ConnectionError("lost on the way back")
        return replies

    monkeypatch.setattr(connector._link, "_converse", lose_the_first_answer)
    connector.put("key", frames)
    monkeypatch.undo()
    assert lost == [2 if big else 1]
    assert contents(connector.get("key")) == frames
    assert connector.usage().objects == 1
    assert not [key for key in client.keys() if b":t:" in key]


def small_pieces(monkeypatch):
    """Have objects of some 100 kB take several transactions."""
    monkeypatch.setattr(connector_module, "_STRING_BYTES", 10_000)
    monkeypatch.setattr(connector_module, "_FIRST_BYTES", 10_000)
    monkeypatch.setattr(connector_module, "_PIECE_BYTES", 60_000)
    monkeypatch.setattr(connector_module, "_BATCH_BYTES", 100_000)


def between_requests(monkeypatch, act):
    """Call ``act`` with the number of replies so far, whenever one has been received."""
    received = _redis_wire._received
    count = [0]

    def spy(replies, request):
        result = received(replies, request)
        count[0] += 1
        act(count[0])
        return result

    monkeypatch.setattr(_redis_wire, "_received", spy)


def test_a_big_object_that_lost_a_part_on_the_way_is_never_seen(connector, client, monkeypatch):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", 1)
    between_requests(
        monkeypatch,
        lambda _: client.delete(*[key for key in client.keys() if b":t:" in key] or [b"none"]),
    )
    with pytest.raises(ConnectorUnavailableError, match="lost a part"):
        connector.put("key", [bytes(200_000)])
    monkeypatch.undo()
    assert not connector.exists("key")
    assert connector.usage() == (0, 0)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_object_that_goes_while_it_is_fetched_is_missing(
    redis_url, connector, monkeypatch, window, at
):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", window)
    connector.put("key", [os.urandom(200_000)])
    with closing(attach(connector.address)) as other:
        between_requests(monkeypatch, lambda count: count == at and other.evict(["key"]))
        found = connector.get("key")
        # With the last pieces on their way already, it was there.
        assert found is None or window > 1 or at == 4
        assert connector.get("key") is None


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("again", [200_000, 70_000, 5])
def test_objects_are_never_mixed(redis_url, connector, monkeypatch, window, again):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", window)
    old, new = b"o" * 200_000, b"n" * again
    connector.put("key", [old])
    with closing(attach(connector.address)) as other:
        replaced = []

        def replace(count):
            if count == 2 and not replaced:
                replaced.append(True)
                other.evict(["key"])
                other.put("key", [new])

        between_requests(monkeypatch, replace)
        [found] = contents(connector.get("key"))
        assert found == new or (window > 1 and found == old)
        assert contents(connector.get("key")) == [new]


def test_a_refusal_in_the_middle_stops_the_rest(connector, client, monkeypatch):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", 2)
    seen = []

    def fill(count):
        seen.append(count)
        if count == 2:
            client.config_set("maxmemory", 1)

    try:
        between_requests(monkeypatch, fill)
        with pytest.raises(ConnectorFullError):
            connector.put("key", [bytes(2_000_000)])
    finally:
        client.config_set("maxmemory", 0)
    assert len(seen) < 7
    monkeypatch.undo()
    # The connection has no reply left over.
    connector.put("key", [b"x"])
    assert contents(connector.get("key")) == [b"x"]
    assert connector.usage().objects == 1
    assert not [key for key in client.keys() if b":t:" in key]


@pytest.mark.parametrize("sizes", [[100], [3_000_000, 5, 2_000_000]])
@pytest.mark.parametrize(
    "cut",
    [
        pytest.param((None, 40), id="in a line"),
        pytest.param((None, 150), id="in the first piece"),
        pytest.param((None, 1_500_000), id="in a later piece"),
        pytest.param((300, None), id="while sending"),
        pytest.param((1_500_000, None), id="while sending a later piece"),
    ],
)
def test_cut_connections(redis_url, connector, sizes, cut):
    frames = [os.urandom(size) for size in sizes]
    proxy = CuttingProxy(urlsplit(redis_url).port, [cut, cut, cut])
    link = connector._link
    try:
        place = connector_module.Place(proxy.url)
        connector._link = connector_module.Link(place, connector._options)
        connector.put("key", frames)
        assert contents(connector.get("key")) == frames
        connector._link.close()
    finally:
        connector._link = link
        proxy.close()
    assert contents(connector.get("key")) == frames
    assert connector.usage().objects == 1


class Silly:
    """A server that answers anything with the same bytes."""

    def __init__(self, answer):
        self._answer = answer

    def ask(self, **options):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            connection = redis_py.Connection(port=port, socket_timeout=10, protocol=2)
            connection._sock = connection._connect()  # without a handshake
            theirs, _ = listener.accept()
            with theirs:
                theirs.sendall(self._answer)
                theirs.shutdown(socket.SHUT_WR)
                request = _redis_wire.Request([("PING",)], **options)
                try:
                    return _redis_wire.converse(connection, [request], 1)
                finally:
                    connection.disconnect()


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"+PO", b"+PONG\r", b"$5\r\nab", b"$2\r\nabcd\r\n", b"*2\r\n:1\r\n"),
        *(b"?\r\n", b"$x\r\n", b"\r\n", b"+PONG\r\n+PONG\r\n", b"+" + b"x" * 50_000),
    ],
)
def test_answers_that_are_none(answer):
    with pytest.raises(redis_py.ConnectionError):
        Silly(answer).ask()


def test_answers_of_every_kind():
    answer = b"*6\r\n+OK\r\n:-7\r\n$-1\r\n$3\r\na\r\n\r\n*-1\r\n*1\r\n$0\r\n\r\n"
    assert Silly(answer).ask() == [[[b"OK", -7, None, b"a\r\n", None, [b""]]]]
    with pytest.raises(redis_py.ResponseError, match="ERR what"):
        Silly(b"-ERR what\r\n").ask()
    with pytest.raises(redis_py.exceptions.BusyLoadingError):
        Silly(b"-LOADING yet\r\n").ask()
    skipped = b"$40000\r\n" + bytes(40_000) + b"\r\n"
    assert Silly(skipped).ask(receive=lambda replies: replies.skip(replies.begin())) == [None]


# --- time to live, sessions, sweeping ------------------------------------------------------


def test_every_key_has_a_time_to_live(redis_url, client, monkeypatch):
    small_pieces(monkeypatch)
    monkeypatch.setattr(connector_module, "_WINDOW", 1)
    seen = {}
    with closing(RedisConnector(redis_url, ttl=500, grace=50)) as connector:
        between_requests(monkeypatch, lambda _: seen.update(ttls(client)))
        connector.put("key", [b"x" * 200_000])
        connector.put("other", [])
    assert [key for key in seen if b":t:" in key], "the temporary key was not looked at"
    kinds = {
        **{kind: 500 for kind in (b":o:", b":t:", b":index", b":owner")},
        b":alive": 50,
        b":sessions": 7 * 86400,
    }
    for key, ttl in seen.items():
        [most] = [seconds for kind, seconds in kinds.items() if kind in key]
        assert 0 < ttl <= most * 1000, key
    assert client.keys() == []


def test_a_heartbeat_renews(redis_url, client):
    with closing(RedisConnector(redis_url, ttl=1000, grace=100)) as connector:
        connector.put("key", [b"x"])
        names = connector._names
        for key in (
            names.alive,
            names.index,
            names.owner,
            connector._name("key"),
            b"proxyexec:sessions",
        ):
            client.expire(key, 10)
        connector._ownership.beat()
        assert client.ttl(names.alive) > 90
        assert client.ttl(b"proxyexec:sessions") > 1000
        # Not due yet: a third of the time to live has not passed.
        assert client.ttl(connector._name("key")) <= 10
        connector._ownership._renewed -= 400
        connector._ownership.beat()
        assert client.ttl(connector._name("key")) > 900
        assert client.ttl(names.index) > 900


def test_the_thread_beats_by_itself(redis_url, monkeypatch):
    beaten = threading.Event()
    with closing(RedisConnector(redis_url, grace=0.03)) as connector:
        monkeypatch.setattr(connector._ownership, "beat", beaten.set)
        assert beaten.wait(30)


def test_a_lost_heartbeat_is_not_the_last(redis_url, monkeypatch, caplog):
    beaten = threading.Event()

    def beat():
        if not caplog.records:
            raise ConnectorUnavailableError("redis://there", "gone")
        beaten.set()

    caplog.set_level(logging.WARNING, "proxyexec.connectors.redis")
    with closing(RedisConnector(redis_url, grace=0.03)) as connector:
        monkeypatch.setattr(connector._ownership, "beat", beat)
        assert beaten.wait(30)


OWNER = """
import sys
from proxyexec_connectors.redis import RedisConnector
connector = RedisConnector(sys.argv[1], grace=1000)
connector.put("key", [b"x"])
print(connector.address, flush=True)
sys.stdin.read()
"""


def killed_owner(redis_url):
    """The address of a session whose owner was killed a moment ago."""
    process = run_python(OWNER, redis_url)
    address = process.stdout.readline().decode().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return address


def test_a_dead_owners_session_is_swept(redis_url, client):
    address = killed_owner(redis_url)
    with closing(attach(address)) as orphan:
        assert orphan.exists("key")
        temporary = orphan._names.new_temporary("key")
        client.hset(orphan._names.prefix + temporary, "0", b"a part")
        client.hset(orphan._names.index, temporary, b"")
        with closing(RedisConnector(redis_url)):
            assert orphan.exists("key"), "swept before its grace had run out"
        # Stands for the time of grace.
        client.delete(orphan._names.alive)
        with closing(RedisConnector(redis_url)) as connector:
            assert not orphan.exists("key")
            assert not [key for key in client.keys() if orphan._names.prefix in key]
            # A worker of the dead owner comes late: after one more time of grace, the next one who
            # opens cleans up after it.
            orphan.put("late", [b"x"])
            with closing(RedisConnector(redis_url)):
                assert orphan.exists("late")
            assert 0 < client.ttl(orphan._names.alive) <= 1000
            client.delete(orphan._names.alive)
            with closing(RedisConnector(redis_url)):
                assert not orphan.exists("late")
            assert connector.usage() == (0, 0)
    assert client.keys() == []


def test_a_living_session_is_not_swept(redis_url, connector):
    connector.put("key", [b"x"])
    with closing(RedisConnector(redis_url)) as other:
        other.put("key", [b"y"])
        with closing(RedisConnector(redis_url)):
            assert contents(connector.get("key")) == [b"x"]
            assert contents(other.get("key")) == [b"y"]


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_session_that_the_server_forgot_is_alive_with_its_next_object(
    redis_url, client, connector, monkeypatch, size
):
    """As it would be swept before the next heartbeat otherwise."""
    small_pieces(monkeypatch)
    client.flushall()  # as by a restart
    connector.put("key", [bytes(size)])
    with closing(RedisConnector(redis_url)):
        assert contents(connector.get("key")) == [bytes(size)]
    # Nor is its time of grace longer than another's.
    assert 0 < client.ttl(connector._names.alive) <= 60
    client.pexpire(connector._names.alive, 1000)
    connector.put("another", [bytes(size)])
    assert client.pttl(connector._names.alive) <= 1000


def test_a_server_that_drops_keys_may_have_dropped_those_of_the_living():
    with redis_server(maxmemory="20mb", maxmemory_policy="allkeys-lru") as server:
        with closing(RedisConnector(server.url)) as living, server.client() as client:
            for number in range(40):
                living.put(f"filling {number}", [bytes(900_000)])
            assert client.info("stats")["evicted_keys"] > 0
            client.config_set("maxmemory", 0)
            client.flushall()  # or what it had dropped of the index would be left
            dead = attach(living.address.replace(living._session, "d" * 16))
            for one in (living, dead):
                one.put("key", [b"x"])
                client.delete(one._names.alive)
            with closing(RedisConnector(server.url)) as sweeper:
                assert living.exists("key")
                assert dead.exists("key")
                living._ownership.beat()
                sweeper._ownership.beat()
                assert dead.exists("key"), "swept before its grace had run out"
                client.delete(living._names.alive)  # once more; it was seen alive meanwhile
                sweeper._ownership._suspected -= 100
                sweeper._ownership.beat()
                assert living.exists("key")
                assert not dead.exists("key")
                living._ownership.beat()
            dead.close()
        with server.client() as client:
            assert client.keys() == []


def test_objects_stored_while_their_session_is_removed_are_not_forgotten(
    connector, client, monkeypatch
):
    late = iter(["one", "two"])
    run = connector._link.run

    def run_and_store(commands, **options):
        replies = run(commands, **options)
        if commands[0][0] == "HKEYS" and (key := next(late, None)):
            connector.put(key, [b"x"])
        return replies

    connector.put("key", [b"x"])
    monkeypatch.setattr(connector._link, "run", run_and_store)
    remove(connector._link, connector._names)
    assert client.keys() == []


def test_many_objects_are_removed(redis_url, client):
    connector = RedisConnector(redis_url)
    connector.put_many({f"key {n}": [b"x"] for n in range(3500)})
    assert connector.usage().objects == 3500
    connector._ownership.renew()
    connector.close()
    assert client.keys() == []


def test_a_dropped_connector_removes_its_session(redis_url, client):
    connector = RedisConnector(redis_url)
    connector.put("key", [b"x"])
    thread, dropped = connector._ownership._thread, weakref.ref(connector)
    del connector
    gc.collect()
    assert dropped() is None
    assert not thread.is_alive()
    assert client.keys() == []


def test_a_connector_dropped_by_its_own_heartbeat(redis_url, client, monkeypatch):
    connector = RedisConnector(redis_url, grace=0.03)
    connector.put("key", [b"x"])
    ownership = connector._ownership
    beat = ownership.beat
    holder = [connector]

    def collected_in_the_middle():
        holder.clear()
        beat()

    del connector
    monkeypatch.setattr(ownership, "beat", collected_in_the_middle)
    ownership._thread.join(30)
    assert not ownership._thread.is_alive()
    assert client.keys() == []


def test_the_end_of_the_interpreter_removes_the_session(redis_url, client):
    process = run_python(OWNER, redis_url)
    assert process.stdout.readline()
    process.communicate(b"", timeout=60)
    assert process.returncode == 0
    assert client.keys() == []


def test_the_heartbeat_stops_at_close(redis_url):
    connector = RedisConnector(redis_url)
    thread = connector._ownership._thread
    assert thread.is_alive()
    connector.close()
    assert not thread.is_alive()


# --- what can go wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 100])
def test_a_full_server(pieces, monkeypatch):
    size = 40_000_000
    monkeypatch.setattr(connector_module, "_PIECE_BYTES", size // pieces)
    monkeypatch.setattr(connector_module, "_BATCH_BYTES", size // pieces)
    with redis_server(maxmemory="20mb", maxmemory_policy="noeviction") as server:
        with closing(RedisConnector(server.url)) as connector, server.client() as client:
            connector.put("small", [b"x"])
            with pytest.raises(ConnectorFullError) as full:
                connector.put("big", [bytes(size)])
            assert full.value.needed >= size
            assert not [key for key in client.keys() if b":t:" in key]
            assert contents(connector.get("small")) == [b"x"]
            assert not connector.exists("big")
            assert connector.usage().objects == 1
            # The server keeps the connection's big buffer for a while, hence does not come down
            # below its limit at once.
            client.config_set("maxmemory", "200mb")
            connector.put("after", [b"x"])


def test_a_full_server_still_evicts_and_hears_heartbeats(monkeypatch):
    with redis_server(maxmemory="20mb", maxmemory_policy="noeviction") as server:
        with closing(RedisConnector(server.url)) as connector, server.client() as client:
            connector.put("key", [bytes(5_000_000)])
            client.config_set("maxmemory", 1)
            with pytest.raises(ConnectorFullError):
                connector.put("other", [b"x"])
            client.pexpire(connector._names.alive, 1000)
            connector._ownership.beat()
            connector._ownership.renew()
            assert client.pttl(connector._names.alive) > 1000
            assert connector.get("key") is not None
            connector.evict(["key"])
            assert connector.usage() == (0, 0)
            with pytest.raises(ConnectorFullError):
                RedisConnector(server.url)
            orphan = connector._names
            client.delete(orphan.alive)
            # No memory for a session of its own, and yet it sweeps the dead one.
            with pytest.raises(ConnectorFullError):
                RedisConnector(server.url)
            assert client.keys() == []


def test_a_server_that_went_down_and_came_back():
    with redis_server() as server:
        connector = RedisConnector(server.url)
        connector.put("key", [b"x"])
        server.kill()
        for use in (
            lambda: connector.put("key", [b"x"]),
            lambda: connector.get("key"),
            lambda: RedisConnector(server.url),
            lambda: attach(connector.address),
        ):
            with pytest.raises(ConnectorUnavailableError, match=str(server.port)):
                use()
        server.start()
        assert connector.get("key") is None
        connector.put("key", [b"y"])
        assert contents(connector.get("key")) == [b"y"]
        connector._ownership.beat()
        connector.close()
        with server.client() as client:
            assert client.keys() == []


def test_a_silent_server_is_asked_twice():
    """Each time, somebody waits for the whole timeout."""
    with redis_server() as server:
        connector = RedisConnector(server.url + "?timeout=0.2&max_connections=1")
        attempts = []
        attempt = connector._link._attempt

        def counted(commands, atomic):
            attempts.append(commands)
            return attempt(commands, atomic)

        connector._link._attempt = counted
        assert not connector.exists("key")
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(2):  # in a connection that is there, and in one that is to be made
                attempts.clear()
                with pytest.raises(ConnectorUnavailableError, match=str(server.port)):
                    connector.exists("key")
                assert len(attempts) == 2
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert not connector.exists("key")
        connector.close()


def test_evicting_many_from_a_server_that_is_gone():
    with redis_server() as server:
        connector = RedisConnector(server.url)
        run = connector._link.run
        asked = []

        def counted(commands, **options):
            asked.append(commands)
            return run(commands, **options)

        connector._link.run = counted
        server.kill()
        with pytest.raises(ConnectorUnavailableError):
            connector.evict([f"key {n}" for n in range(5000)])
        assert len(asked) == 1
        server.start()
        connector.close()


def test_closing_when_the_server_is_gone():
    with redis_server() as server:
        connector = RedisConnector(server.url)
        server.kill()
        with pytest.raises(ConnectorUnavailableError):
            connector.close()
        connector.close()
        with pytest.raises(ConnectorClosedError):
            connector.get("key")


def test_a_close_in_the_middle_of_another_threads_command():
    with redis_server() as server:
        connector = RedisConnector(server.url)
        server.process.send_signal(signal.SIGSTOP)
        waiting = threading.Event()
        converse = connector._link._converse

        def announced(requests, window):
            waiting.set()
            return converse(requests, window)

        connector._link._converse = announced
        outcome = []

        def use():
            try:
                outcome.append(connector.get("key"))
            except ConnectorError as error:
                outcome.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        waiting.wait(30)
        connector._link.close()
        server.process.send_signal(signal.SIGCONT)
        thread.join(30)
        connector.close()
        # Nobody can say whether the command came first; nothing else may come out, and
        # either way no connection stays open.
        [result] = outcome
        assert result is None or isinstance(result, ConnectorClosedError)
        assert not any(one._sock for one in connector._link._pool._connections)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda client, key: client.hdel(key, "h"), id="no head"),
        pytest.param(lambda client, key: client.hset(key, "h", "x"), id="unreadable head"),
        pytest.param(
            lambda client, key: client.hset(key, "h", Head(b"t" * 16, 90, 60, 0).written()),
            id="a head that makes no sense",
        ),
        pytest.param(
            lambda client, key: client.hset(key, "h", Head(b"t" * 16, 90, 60, 10).written()),
            id="another head",
        ),
        pytest.param(lambda client, key: client.hdel(key, "0"), id="no first piece"),
        pytest.param(lambda client, key: client.hdel(key, "2"), id="no piece"),
        pytest.param(lambda client, key: client.hset(key, "0", "sh"), id="short first piece"),
        pytest.param(lambda client, key: client.hset(key, "1", "sh"), id="short piece"),
        pytest.param(lambda client, key: client.hset(key, "0", b"x" * 60), id="another content"),
        pytest.param(lambda client, key: client.set(key, "x"), id="no layout"),
        pytest.param(
            lambda client, key: (client.delete(key), client.lpush(key, "x")), id="another type"
        ),
    ],
)
def test_damaged_objects(connector, client, monkeypatch, damage):
    monkeypatch.setattr(connector_module, "_STRING_BYTES", 60)
    monkeypatch.setattr(connector_module, "_FIRST_BYTES", 60)
    monkeypatch.setattr(connector_module, "_PIECE_BYTES", 40)
    connector.put("key", [b"abc" * 30, b"defg"])
    connector.put("whole", [b"x"])
    damage(client, connector._name("key"))
    with pytest.raises(CorruptObjectError, match="'key'"):
        connector.get("key")
    assert contents(connector.get("whole")) == [b"x"]


def test_objects_that_ran_out_are_missing(connector, client):
    connector.put("key", [b"x"])
    client.delete(connector._name("key"))
    assert connector.get("key") is None
    connector.put("key", [b"longer"])
    assert connector.usage().bytes >= 6
    connector.evict(["key"])
    assert connector.usage() == (0, 0)


def test_urls_of_every_kind_can_be_spoken_of():
    for url, public in {
        "redis://": "redis://localhost:6379/0",
        "redis://u:p@h:1/2?ttl=3": "redis://u@h:1/2",
        "rediss://:p@h": "rediss://h:6379/0",
        "redis://[::1]:7/": "redis://[::1]:7/0",
        "unix://u:p@/a/b c?db=4": "unix://u@/a/b%20c?db=4",
    }.items():
        place = connector_module.Place(url)
        assert place.public == public
        again = connector_module.Place(place.address("s", connector_module._DEFAULT))
        assert again.public == public
        assert again.session == "s"
        assert urlsplit(again.given).password is None


def test_what_a_dead_writer_left_goes_when_its_key_is_evicted(redis_url, connector, client):
    """A worker that is killed in the middle: its client evicts the key that nobody can see."""
    whole, half = connector._names, b"x" * (3 << 20)
    writer = multiprocessing.get_context("fork").Process(target=_die_in_a_put, args=(connector,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    left = client.keys(whole.prefix + b"t:*")
    assert len(left) == 1
    connector.put("another", [half])
    connector.evict(["something else", "victi"])
    assert client.keys(whole.prefix + b"t:*") == left
    connector.evict(["victim"])
    assert not client.keys(whole.prefix + b"t:*")
    assert client.hkeys(whole.index) == [b"o:another"]
    assert connector.get("another") == [half]


def _die_in_a_put(connector):
    requests = connector._put_in_steps

    def some(parcel, field):
        yield next(iter(requests(parcel, field)))
        os.kill(os.getpid(), signal.SIGKILL)

    connector._put_in_steps = some

    connector_module._WINDOW = (
        1  # the first one has been carried out before the second is asked for
    )
    connector.put("victim", [b"x" * (3 << 20)])
