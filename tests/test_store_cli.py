"""The commands ``store ls``, ``show`` and ``du``; for ``gc`` see ``test_group_cli``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime

import pytest

from proxyexec import PickleSerializer, ProxyAlways, Store, StoreExecutor, _cli_parts, _store_cli
from proxyexec._cli_parts import ago, shown
from proxyexec._looks import type_of
from proxyexec.serializers import Serializers
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.listing import ObjectStart
from tests.functions import Carrier, add


@pytest.fixture
def run(capsys):
    """Run a command; returns its exit status, and what it has written to both streams."""

    def run(*arguments):
        parser = argparse.ArgumentParser(prog="proxyexec")
        _store_cli.add_to(parser.add_subparsers(required=True))
        try:
            chosen = parser.parse_args(arguments)
            status = chosen.run(chosen)
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(params=["files", "redis"])
def url(request, tmp_path):
    if request.param == "files":
        yield (tmp_path / "objects").as_uri()
        return
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server(requirepass="secret") as server:
        yield server.url


OWNER = """
import sys
from proxyexec import Store

store = Store.from_url(sys.argv[1])
store.put([1, 2, 3])
store.put("x" * 500_000)
print(store.address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def owner(url):
    """A process that owns a session; yields it and the session's name."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline()
        yield process, address.partition("session=")[2].partition("&")[0].strip()
    finally:
        process.communicate("")


def row(out, session):
    [line] = [line for line in out.splitlines() if line.startswith(session)]
    return line.split()


def test_nothing(run, url):
    place = url.replace(":secret@", "")
    assert run("store", "ls", url) == (0, "0 sessions, 0 objects, 0 bytes\n", "")
    assert run("store", "ls", url, "--json") == (0, "[]\n", "")
    assert run("store", "show", url) == (1, "", f"proxyexec: there is no session in {place}\n")
    assert "total" in run("store", "du", url)[1]


def test_another_process_s_store(run, url):
    with owner(url) as (process, session):
        status, out, err = run("store", "ls", url)
        head, *_, total = out.splitlines()
        assert (status, err) == (0, "")
        assert head.split() == ["SESSION", "OWNER", "STATE", "SINCE", "AGE", "OBJECTS", "BYTES"]
        cells = row(out, session)
        assert cells[1:3] == [f"{socket.gethostname()}:{process.pid}", "alive"]
        assert cells[-2] == "2"
        assert total.startswith("1 session, 2 objects, 500,")
        [told] = json.loads(run("store", "ls", url, "--json")[1])
        assert (told["name"], told["pid"], told["state"]) == (session, process.pid, "alive")
        assert abs(told["since"] - time.time()) < 60
        # It is still what it was.
        with closing(Store.from_url(url)):
            assert run("store", "ls", url)[1].splitlines()[-1].startswith("2 sessions, 2 objects")
        assert row(run("store", "ls", url)[1], session)[2] == "alive"
    assert run("store", "ls", url)[1] == "0 sessions, 0 objects, 0 bytes\n"


def test_a_store_whose_owner_died(run, url):
    with owner(url) as (process, session):
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(2):
            status, out, _ = run("store", "ls", url)
            assert (status, row(out, session)[2]) == (0, "dead")
            assert "of dead owners: 1 session, 2 objects" in out
        status, out, _ = run("store", "show", url)
        assert status == 0
        assert f"{socket.gethostname()}:{process.pid}" in out
        assert "leaks()" not in out
        sums = json.loads(run("store", "du", url, "--json")[1])
        assert (sums["sessions"], sums["objects"]) == (1, 2)
        assert list(sums["by_state"]) == ["dead"]


def test_showing_a_session(run, url):
    with closing(Store.from_url(url)) as store:
        references = [store.put([1, 2]), store.put("x" * 300_000), store.put({"a": 1})]
        status, out, err = run("store", "show", url)
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].split() == ["session", store.connector._session]
        start = next(place for place, line in enumerate(lines) if line.startswith("KEY"))
        rows = [line.split() for line in lines[start + 1 : start + 4]]
        assert rows[0][0] == references[1].key  # the largest comes first
        assert {cells[-1] for cells in rows} == {"list", "str", "dict"}
        assert "leaks()" in lines[-1]
        for order, expected in (
            ("key", sorted(one.key for one in references)),
            ("since", [one.key for one in references]),
        ):
            shown = json.loads(run("store", "show", url, "--sort", order, "--json")[1])
            assert [one["key"] for one in shown["objects"]] == expected
        status, out, _ = run("store", "show", url, "--limit", "1")
        assert "2 more: --limit 0 shows all" in out
        assert references[0].key not in out
        shown = json.loads(run("store", "show", url, "--limit", "1", "--json")[1])
        assert (len(shown["objects"]), shown["left_out"]) == (1, 2)
        assert (
            len(json.loads(run("store", "show", url, "--limit", "0", "--json")[1])["objects"]) == 3
        )


def test_showing_an_object(run, url):
    with closing(Store.from_url(url)) as store:
        reference = store.put(b"x" * 300_000)
        session = store.connector._session
        for name in (session, session[:-1], session.removeprefix("session-")[:6]):
            status, out, _ = run("store", "show", url, name, reference.key)
            facts = dict(line.split(maxsplit=1) for line in out.splitlines())
            assert status == 0
            assert (facts["key"], facts["session"]) == (reference.key, session)
            assert (facts["type"], facts["frames"]) == ("bytes", "5, 300,000")
        shown = json.loads(run("store", "show", url, session, reference.key, "--json")[1])
        assert shown["object"]["frames"] == [5, 300_000]
        status, out, err = run("store", "show", url, session, "missing")
        assert (status, out) == (1, "")
        assert "there is no object 'missing'" in err


def test_which_session(run, url):
    with closing(Store.from_url(url)) as one, closing(Store.from_url(url)) as other:
        status, out, err = run("store", "show", url)
        assert (status, out) == (1, "")
        assert one.connector._session in err
        assert other.connector._session in err
        status, _, err = run("store", "show", url, "missing")
        assert status == 1
        assert "there is no session 'missing'" in err
        # The address of a store, as in references, is enough; it has no password, though.
        separator = "&" if "?" in url else "?"
        address = f"{url}{separator}session={one.connector._session}"
        assert one.connector._session in run("store", "show", address)[1]


def test_sums(run, url):
    with closing(Store.from_url(url)) as one, closing(Store.from_url(url)) as other:
        one.put(b"x" * 1000)
        other.put(b"x" * 200_000)
        lines = run("store", "du", url)[1].splitlines()
        assert lines[0].split() == ["BYTES", "IDLE", "OBJECTS", "STATE", "SESSION"]
        assert lines[1].split()[-1] == other.connector._session
        assert lines[2].split()[-1] == one.connector._session
        total = sum(store.usage().bytes for store in (one, other))
        assert lines[3].split()[0] == f"{total:,}"
        assert json.loads(run("store", "du", url, "--json")[1])["bytes"] == total


def test_groups_are_told_of(run, url):
    with StoreExecutor(ThreadPoolExecutor(1), url, ProxyAlways(), task_group="survey") as executor:
        assert executor.submit(add, 1, 2).result() == 3
        status, out, _ = run("store", "ls", url)
        assert row(out, "durable-survey")[1] == "group"
        status, out, _ = run("store", "show", url, "durable-survey")
        assert status == 0
        assert "call add" in out
        assert "proxyexec group show STORE survey" in out


def test_passwords_are_never_told(run, url):
    with closing(Store.from_url(url)) as store:
        store.put([1])
        for command in ("ls", "show", "du"):
            for more in ((), ("--json",)):
                _, out, err = run("store", command, url, *more)
                assert out
                assert "secret" not in out + err
        for command in ("ls", "show", "du"):
            _, out, err = run("store", command, url.replace("secret", "secretly"))
            assert "secret" not in out + err


@pytest.mark.parametrize("store", ["memory://", "nonsense://x", "redis://:se cret@h:x"])
def test_places_that_are_none(run, store):
    for command in ("ls", "show", "du"):
        status, out, err = run("store", command, store)
        assert (status, out) == (2, "")
        assert err.startswith("proxyexec: ")
        assert "cret" not in err


def test_usage(run):
    assert run("store", "ls")[0] == 2
    assert run("store", "show", "file:///x", "a", "b", "c")[0] == 2
    for limit in ("-1", "x"):
        status, _, err = run("store", "show", "file:///x", "--limit", limit)
        assert status == 2
        assert "is no number of objects" in err
    for name in ("ls", "show", "du", "gc"):
        status, out, _ = run("store", name, "--help")
        assert status == 0
        assert "example:\n  proxyexec store " in out


def test_names_of_others_do_nothing_to_a_terminal(run, tmp_path):
    with closing(FileConnector(tmp_path)) as connector:
        connector.put("key", [b"Pxpayload \x1b[31m 1 3.11", b""])
        out = run("store", "show", tmp_path.as_uri())[1]
        assert "\x1b" not in out
        assert "\\x1b[31m" in out
    assert shown("a\x1b\n\ud800ж") == "a\\x1b\\n\\ud800ж"


def test_names_of_sessions_in_messages_do_nothing_to_a_terminal(run, redis_url):
    redis = pytest.importorskip("redis")
    from proxyexec_connectors._redis_session import SESSIONS

    with closing(redis.Redis.from_url(redis_url)) as client:
        client.sadd(SESSIONS, b"a\x1b[31m", b"a\x1b[32m")
        status, out, err = run("store", "show", redis_url, "a")
        client.srem(SESSIONS, b"a\x1b[31m", b"a\x1b[32m")
    assert (status, out) == (1, "")
    assert "\x1b" not in err
    assert "\\x1b[31m" in err


@pytest.mark.parametrize("since", ["NaN", "Infinity", "-1e300", "1e30"])
def test_times_that_are_none(run, tmp_path, since):
    with closing(FileConnector(tmp_path)):
        [lock] = tmp_path.glob("*.lock")
        lock.write_text(re.sub(r'"since": [^}]*', f'"since": {since}', lock.read_text()))
        status, out, err = run("store", "ls", tmp_path.as_uri())
        assert (status, err) == (0, "")
        assert "?" in out
        assert run("store", "show", tmp_path.as_uri())[0] == 0


def test_keys_of_any_characters(run, redis_url):
    from proxyexec_connectors.redis import RedisConnector

    with closing(RedisConnector(redis_url)) as connector:
        connector.put("\x1b[2J", [b"x"])
        out = run("store", "show", redis_url, connector._session)[1]
        assert "\\x1b[2J" in out
        assert "\x1b" not in out


def test_ctrl_c_while_a_server_does_not_answer():
    pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        command = [sys.executable, "-m", "proxyexec", "store", "ls", url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            server.settimeout(30)
            with server.accept()[0] as connection:
                assert connection.recv(1000)
                process.send_signal(signal.SIGINT)
                assert process.stderr.read() == "proxyexec: interrupted\n"
        assert process.returncode == 130


def test_an_output_that_is_not_read_to_its_end(tmp_path):
    with closing(FileConnector(tmp_path)) as connector:
        for number in range(3000):
            connector.put(f"{number}", [b"x"])
        command = [sys.executable, "-m", "proxyexec", "store", "show", tmp_path.as_uri(), "--limit"]
        with subprocess.Popen(
            [*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 40 + 5, "40 d"),
        (float("nan"), "?"),
        (float("-inf"), "?"),
    ],
)
def test_spans_of_time(seconds, expected):
    assert ago(seconds) == expected


def start_of(frames, cut=65536):
    views = [bytes(memoryview(one).cast("B")) if memoryview(one).nbytes else b"" for one in frames]
    return ObjectStart([len(one) for one in views], [one[:cut] for one in views])


@pytest.mark.parametrize(
    ("obj", "name"),
    [
        ([1], "list"),
        ({"a": [1]}, "dict"),
        ((1, 2), "tuple"),
        (([1], [2]), "tuple"),
        (tuple(range(50_000)), "tuple"),
        (list(range(50_000)), "list"),
        (["x" * 500_000], "list"),
        ("text", "str"),
        ("x" * 500_000, "str"),
        (b"x", "bytes"),
        (b"x" * 500_000, "bytes"),
        (bytearray(5), "bytearray"),
        (1, "int"),
        (1 << 100, "int"),
        (1.5, "float"),
        (None, "NoneType"),
        (True, "bool"),
        ({1}, "set"),
        (frozenset({1}), "frozenset"),
        (datetime(2000, 1, 1), "datetime.datetime"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (Counter("aa"), "collections.Counter"),
        (deque([1]), "collections.deque"),
        (Carrier([1]), "tests.functions.Carrier"),
        (add, "tests.functions.add"),
        (lambda: 1, "function"),
    ],
)
def test_types_are_read_off_without_unpickling(obj, name, monkeypatch):
    start = start_of(PickleSerializer().dumps(obj))
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    assert type_of(start) == name


def test_types_of_arrays_and_tables():
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    for obj, name in (
        (numpy.zeros((3, 4000)), "numpy.ndarray float64[3, 4000]"),
        (numpy.zeros(5000, "int8"), "numpy.ndarray int8[5000]"),
        (numpy.zeros(5), "numpy.ndarray"),
        (numpy.array(["a"]), "numpy.ndarray"),
    ):
        assert type_of(start_of(PickleSerializer().dumps(obj))) == name
    assert type_of(start_of(PickleSerializer().dumps(pandas.DataFrame({"a": [1]})))).endswith(
        "DataFrame"
    )


def test_other_forms():
    assert type_of(start_of(Serializers(data="json").dumps([1]))) == "by json"
    for frames in ([], [b""], [b"p"], [b"n"], [b"p\1\0\0\0", b"\x80\x05]."[:2]], [b"zzz"], [b"{"]):
        assert type_of(start_of(frames)) == ""


def test_bytes_of_anybody():
    rng = __import__("random").Random(0)
    good = start_of(PickleSerializer().dumps({"a": (1, [Carrier(1)])}))
    for _ in range(2000):
        stream = bytearray(good.starts[1])
        for _ in range(rng.randrange(1, 4)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        assert isinstance(type_of(ObjectStart([], [good.starts[0], bytes(stream)])), str)


def test_an_environment_variable(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", tmp_path.as_uri())
    assert run("store", "ls", "env:PLACE") == run("store", "ls", tmp_path.as_uri())
    assert os.environ["PLACE"]
    with pytest.raises(argparse.ArgumentTypeError):
        _cli_parts.store_url("env:MISSING_ONE")
