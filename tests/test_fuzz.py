"""Whatever lies where objects are kept, or comes instead of one: a named error, and no more.

No crash, no hang, no unpickling of what nobody vouches for, no error without a name. The readers
are in ``tests/fuzz``, where libFuzzer can be let loose on them as well. What was found stands below
as tests of its own.

Set ``PROXYEXEC_LONG`` for many more bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import socket
import struct
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import proxyexec_connectors
import proxyexec_connectors.registry
from proxyexec import Store
from proxyexec._proxy import Reference, make_proxy
from proxyexec._serialize import PickleSerializer
from proxyexec._store import store_at
from proxyexec.errors import (
    ConnectorUnavailableError,
    CorruptObjectError,
    DeserializationError,
    ForeignProcessError,
    ProxyExecError,
    UnknownSchemeError,
)
from proxyexec_connectors import _host_cache, _segment
from proxyexec_connectors._host_cache import HostCache, Known
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import fuzz

try:
    from proxyexec_connectors._redis_link import Options, Place
except ModuleNotFoundError:  # without the extra
    Options = Place = None

LONG = bool(os.environ.get("PROXYEXEC_LONG"))

SETTINGS = settings(
    max_examples=5_000 if LONG else 150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

LARGE = 512 * 1024

# Numbers as they stand in headers, where they are too large, or negative.
ODD = [0, 1, 255, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@st.composite
def mutated(draw, seeds):
    """Bytes of which some are not as they were."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        new = draw(
            st.one_of(
                st.binary(max_size=9),
                st.sampled_from(ODD).map(lambda number: struct.pack("<Q", number)),
            )
        )
        how = draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        if how == "overwrite":
            data[start : start + len(new)] = new
        elif how == "insert":
            data[start:start] = new
        elif how == "delete":
            del data[start : start + len(new)]
        else:
            del data[start:]
    return bytes(data)


def reader_of(name):
    return importlib.import_module(f"tests.fuzz.{name}")


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def feed(name, directory, redis_url=None):
    """Let a reader read its seeds, and what comes of them."""
    module = reader_of(name)
    with module.reader(directory, redis_url) as read:
        for seed in module.SEEDS:
            read(seed)

        @SETTINGS
        @given(st.one_of(mutated(module.SEEDS), st.binary(max_size=300)))
        def run(data):
            read(data)

        run()


@pytest.mark.parametrize("name", [name for name in fuzz.NAMES if name != "redis_values"])
def test_whatever_is_read(name, directory):
    if name == "serialized":
        pytest.importorskip("numpy")
    if name in ("addresses", "replies"):
        pytest.importorskip("redis")
    feed(name, directory)


def test_whatever_is_in_redis(directory, redis_url):
    feed("redis_values", directory, redis_url)


# --- addresses and URLs --------------------------------------------------------------------

SECRET = "s3cr3t"
JUNK = st.text(st.sampled_from("ab:/@?#%[]\u2100 \t\\&="), max_size=6)


def heard(url):
    """All that is said about a URL, by whoever has to do with it; nothing is sent anywhere."""
    said = []
    for call in (class_for, place_of, attach_unknown):
        try:
            said += call(url)
        except (ValueError, ProxyExecError) as error:
            said.append(error)
            if not error.__suppress_context__:
                said.append(error.__context__)
    return "".join(f"{one}{one!r}" for one in said)


def class_for(url):
    return [proxyexec_connectors.registry.connector_class(url)]


def place_of(url):
    place = Place(url)
    options = place.with_options(Options())
    return [place.public, place.address("0123456789abcdef", options)]


def attach_unknown(url):
    if url.startswith("pigeon"):
        proxyexec_connectors.attach(url)
    return []


@pytest.mark.parametrize("form", ["login", "query"])
@SETTINGS
@given(
    scheme=st.sampled_from(["redis", "rediss", "unix", "pigeon"]),
    slashes=st.sampled_from(["//", "", "/"]),
    before=JUNK,
    after=JUNK,
    rest=JUNK,
)
def test_nobody_quotes_a_password(form, scheme, slashes, before, after, rest):
    """However the password and what is around it are written, or miswritten."""
    pytest.importorskip("redis")
    secret = f"{before}{SECRET}{after}"
    if form == "login":
        url = f"{scheme}:{slashes}user:{secret}@host/{rest}"
    else:
        url = f"{scheme}:{slashes}host/?password={secret}&{rest}"
    assert SECRET not in heard(url)


@pytest.mark.parametrize(
    "url",
    [
        "pigeon://user:s3:cret@coop",
        "pigeon:user:s3cret@coop",
        "pigeon://coop?token=s3cret",
        "pigeon://user:s3\u2100cret@coop",
        "redis://user:s3\u2100cret@coop",
        "redis://user:?s3cret=@coop",
        "redis://user:/s3cret@coop",
        "redis://user:@s3cret?=@coop",
        "unix://user:/s3cret?@coop",
        "unix://user:@/s3cret?=@coop",
        "user:s3cret//x@coop",
    ],
)
def test_a_password_with_odd_characters_is_not_quoted(url):
    if not url.startswith(("pigeon", "user")):
        pytest.importorskip("redis")
    with pytest.raises(ValueError) as error:
        proxyexec_connectors.connect(url)
    assert "s3" not in str(error.value)
    assert "cret" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize(
    "address",
    [
        "file:///dev/shm",
        "file:///dev/shm?session=",
        "file:///dev/shm?session=..",
        "file:///dev/shm?session=../..",
        "file:///dev/shm?session=session-0123456789ABCDEF",
        "file://relative?session=session-0123456789abcdef",
        "file:///a%00b?session=session-0123456789abcdef",
        "file:///a?session=session-0123456789abcdef&spill=b",
        "memory://",
        "memory://session",
        "memory://session:port",
        "memory://../..:1",
    ],
)
def test_what_is_no_address_is_not_attached_to(address):
    with pytest.raises(ValueError, match="address of a session"):
        proxyexec_connectors.attach(address)


def test_processes_have_larger_numbers_than_ports():
    connector = MemoryConnector()
    address = connector.address.replace(f":{os.getpid()}", ":4194303")
    connector.close()
    del connector
    with pytest.raises(ForeignProcessError) as error:
        proxyexec_connectors.attach(address).get("key")
    assert error.value.owner == 4194303


@pytest.mark.parametrize(
    "query",
    [
        "ttl=nan",
        "ttl=inf",
        "grace=1e300",
        "timeout=inf",
        "timeout=1e99",
        "max_connections=1000000000",
    ],
)
def test_options_that_no_clock_and_no_queue_takes(query):
    redis_module = pytest.importorskip("proxyexec_connectors.redis")
    with pytest.raises(ValueError, match="above zero|too large"):
        redis_module.RedisConnector(f"redis://127.0.0.1:1/0?{query}")


@pytest.mark.parametrize("host", ["a%23b", "a%3Fb", "[fe80::1%25eth0]", "%E2%82%AC"])
def test_a_host_with_odd_characters_is_found_by_its_address(host):
    pytest.importorskip("redis")
    place = Place(f"redis://user:pw@{host}:1/2")
    again = Place(place.address("0123456789abcdef", Options()))
    assert again.session == "0123456789abcdef"
    assert again.settings["host"] == place.settings["host"]
    assert again.public == place.public


@pytest.mark.parametrize("query", ["port=1%23", "host=x", "path=/x", "connection_class=x"])
def test_a_query_names_no_place(query):
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match="unknown option"):
        Place(f"redis:///0?{query}")


# --- references ----------------------------------------------------------------------------


@pytest.mark.parametrize("traits", [-1, 1 << 60, "1", None])
def test_traits_that_there_are_not(traits):
    with closing(Store.from_url("memory://")) as store:
        reference = store.put([1])._replace(methods=traits)
        with pytest.raises(ValueError, match="no traits"):
            make_proxy(reference)


def test_a_reference_leads_to_no_file_but_an_object(directory):
    (directory / "precious").write_bytes(b"precious")
    reference = Reference(f"file://{directory}?session=.", "precious", "builtins:bytes", 1)
    with pytest.raises(ValueError, match="address of a session"):
        store_at(reference.address)
    assert (directory / "precious").exists()


# --- files ---------------------------------------------------------------------------------


def in_a_child(function, *arguments):
    """Run something that might crash; return the exit code."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    hangs = process.exitcode is None
    if hangs:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    assert not hangs
    return code


def read_a_segment_again_that_was_cut(directory):
    connector = FileConnector(directory / "objects")
    [place] = connector._places
    connector.put("key", [b"x" * LARGE])
    # Its mapping is kept from now on.
    assert bytes(connector.get("key")[0]) == b"x" * LARGE
    os.truncate(f"{place}/key", LARGE - 4096 * 10)
    with pytest.raises(CorruptObjectError):
        bytes(connector.get("key")[0])
    connector.close()


def write_into_a_segment_that_was_cut(directory):
    connector = FileConnector(directory / "objects")
    [place] = connector._places
    for size in (LARGE, LARGE - 1000):  # the second one into the first one's segment
        connector.put("key", [b"x" * size])
        connector.evict(["key"])
    [free] = os.listdir(f"{place}/~free")
    os.truncate(f"{place}/~free/{free}", 4096)
    connector.put("key", [b"y" * LARGE])
    assert bytes(connector.get("key")[0]) == b"y" * LARGE
    connector.close()


@pytest.mark.parametrize(
    "scene", [read_a_segment_again_that_was_cut, write_into_a_segment_that_was_cut]
)
def test_a_segment_that_was_cut_kills_nobody(directory, scene):
    """A mapping of it is a trap: looking at pages that the file has no more is a signal."""
    assert in_a_child(scene, directory) == 0


def test_a_segment_that_changes_while_it_is_read(directory, monkeypatch):
    """Its header says one thing when it is looked for, and another when it is read."""
    with closing(FileConnector(directory / "objects")) as connector:
        connector.put("key", [b"x" * LARGE])
        path = Path(connector._places[0], "key")
        locked = _segment.Segment.lock

        def cut_then_lock(segment, kind):
            with path.open("r+b") as file:
                file.write(_segment.header("key", 1 << 40))
            return locked(segment, kind)

        monkeypatch.setattr(_segment.Segment, "lock", cut_then_lock)
        with pytest.raises(CorruptObjectError, match="bytes in a segment"):
            connector.get("key")


def bind(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink("/etc/passwd", path),
        bind,
    ],
    ids=["pipe", "directory", "link", "socket"],
)
def test_what_is_no_file_is_no_object(directory, make):
    def read():
        with pytest.raises(CorruptObjectError):
            connector.get("key")

    with closing(FileConnector(directory / "objects")) as connector:
        make(f"{connector._places[0]}/key")
        # A reader might wait for a pipe's other end for ever.
        assert in_a_child(read) == 0


def test_other_files_among_free_segments(directory):
    with closing(FileConnector(directory / "objects")) as connector:
        for name in ("x", "1-2-3-4", "0-zz-1", "-", "00-1-ffffffffffffffffffff"):
            Path(connector._places[0], "~free", name).touch()
        for _ in range(20):
            connector.put("key", [b"x" * LARGE])
            assert connector.get("key")[0] == b"x" * LARGE
            connector.evict(["key"])
        connector.release_idle()


# --- the host cache ------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["key", "pipe", "work"])
def test_what_is_no_object_in_the_host_cache(directory, monkeypatch, damage):
    def obtain():
        with contextlib.ExitStack() as stack:
            cache = HostCache("0123456789abcdef", 1 << 20, lambda objects: [True] * len(objects))
            stack.callback(cache.remove)
            assert (
                bytes(
                    cache.obtain(
                        Known("a", b"t" * 16), 3, lambda write: write(memoryview(b"abc"), 0)
                    )
                )
                == b"abc"
            )
            path = cache._path("b")
            if damage == "key":
                known = Known("b", b"t" * 16)
                trailer = _host_cache._trailer(known, 3).replace(b"b", b"\xff", 1)
                Path(path).write_bytes(b"abc" + trailer)
            else:
                os.mkfifo(path + ("~" if damage == "work" else ""))
            found = cache.obtain(
                Known("b", b"t" * 16), 3, lambda write: write(memoryview(b"def"), 0)
            )
            assert found is None or bytes(found) == b"def"

    monkeypatch.setattr(_host_cache, "_SHARED_MEMORY", str(directory))
    assert in_a_child(obtain) == 0


# --- envelopes and arrays ------------------------------------------------------------------


def array_header(char, *shape):
    return (
        b"n\1\0\0\0"
        + struct.pack("<cc?", char, b"C", True)
        + struct.pack(f"<{len(shape)}q", *shape)
    )


@pytest.mark.parametrize(
    "header",
    [
        array_header(b"O", 300),  # objects: the bytes would be taken for their addresses
        array_header(b"V", 2400),
        array_header(b"d", 1 << 61, 8, 1),
        array_header(b"d", -1),
        array_header(b"d", 299),
        array_header(b"d", 301),
        array_header(b"d", *[1] * 70),
    ],
)
def test_what_does_not_describe_its_array(header):
    pytest.importorskip("numpy")
    with pytest.raises(DeserializationError):
        PickleSerializer().loads([header, bytearray(2400)])


# --- Redis ---------------------------------------------------------------------------------


class Impostor:
    """A server that says what it likes, to everybody, whatever they ask."""

    def __init__(self, said):
        self._said = said
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            peer, _ = self._listening.accept()
            with peer:
                asked = peer.recv(1 << 16)
                if asked == b"end":
                    return
                with contextlib.suppress(OSError):
                    peer.sendall(self._said)

    def close(self):
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"end")
        self._thread.join()
        self._listening.close()


@pytest.mark.parametrize(
    "said",
    [
        b"+OK\r\n",
        b":5\r\n12345\r\n",
        b"*3\r\n$1\r\nx\r\n$1\r\ny\r\n$1\r\nz\r\n",
        b"*2\r\n:7\r\n$1\r\nx\r\n",
        b"*1\r\n" * 100_000,
        b"$1000000000000000\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_a_server_that_does_not_speak_like_redis(said, monkeypatch):
    redis_module = pytest.importorskip("proxyexec_connectors.redis")
    from proxyexec_connectors import _redis_link, _redis_wire

    monkeypatch.setattr(_redis_link, "_RETRIES", 1)
    with closing(Impostor(said)) as impostor:
        place = _redis_link.Place(f"redis://127.0.0.1:{impostor.port}/0")
        link = _redis_link.Link(place, _redis_link.Options())
        for way in redis_module.WAYS:
            request = _redis_wire.Request([(way.command, "key", *way.fields)], receive=way.receive)
            with pytest.raises(ConnectorUnavailableError):
                link.exchange(lambda one=request: [one], window=1)
        with pytest.raises(ConnectorUnavailableError):
            link.exchange(lambda: [_redis_wire.Request([("GET", "key")] * 2)], window=1)
        link.close()


def test_a_head_that_tells_of_more_pieces_than_there_are(redis_url):
    """Of 10^18: asking for each of them takes for ever, and there is no memory for them."""
    import redis

    from proxyexec_connectors._redis_format import Head
    from proxyexec_connectors.redis import RedisConnector

    with closing(RedisConnector(redis_url)) as owner, redis.Redis.from_url(redis_url) as client:
        with closing(RedisConnector.attach(owner.address)) as worker:
            for size in (10**7, 10**10, 10**18, (1 << 64) - 1):
                for piece in (1, 1 << 20, 1 << 63):
                    head = Head(b"t" * 16, size, 4, piece)
                    client.hset(owner._name("key"), mapping={"h": head.written(), "0": "1234"})
                    for connector in (owner, worker):
                        with pytest.raises(CorruptObjectError):
                            connector.get("key")
        owner.evict(["key"])


def test_sessions_and_sizes_that_are_none(redis_url):
    import redis

    from proxyexec_connectors._redis_session import SESSIONS
    from proxyexec_connectors.redis import RedisConnector

    with redis.Redis.from_url(redis_url) as client:
        client.sadd(SESSIONS, b"\xff\xfe", b"")
        with closing(RedisConnector(redis_url)) as connector:
            assert not client.sismember(SESSIONS, b"\xff\xfe")
            client.hset(connector._names.index, "o:key", "many")
            with pytest.raises(CorruptObjectError, match="no number"):
                connector.usage()


def test_an_unknown_scheme_is_an_error_of_its_own():
    with pytest.raises(UnknownSchemeError):
        proxyexec_connectors.attach("pigeon://coop")
