"""Redis over TLS, with real servers and certificates made here; and where the password is not."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("redis")

from proxyexec import ProxyAlways, Store, StoreExecutor, reference_of
from proxyexec.errors import ConnectorUnavailableError
from proxyexec_connectors import _redis_link, attach, connect
from proxyexec_connectors._redis_link import Link, Place
from proxyexec_connectors.redis import RedisConnector
from tests import functions
from tests.conftest import wait_for_evictions
from tests.proxies import cutting_proxy
from tests.redis_server import RedisServer, free_port, redis_server

PASSWORD = "s3cret:/@ #%"


class Authority:
    """Somebody who signs certificates."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        directory.mkdir()
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def signed(self, name: str, hosts: str, *, days: int = 2) -> tuple[Path, Path]:
        """A certificate for some hosts, and its key."""
        key, request, certificate, names = (
            self._directory / f"{name}.{kind}" for kind in ("key", "csr", "pem", "names")
        )
        # Python 3.13 wants the identifier.
        names.write_text(f"subjectAltName={hosts}\nauthorityKeyIdentifier=keyid\n")
        self._openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-keyout", key, "-out", request),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key),
            *("-CAcreateserial", "-days", str(days), "-extfile", names, "-out", certificate),
        )
        return certificate, key

    @staticmethod
    def _openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Attempts wait little for each other."""
    monkeypatch.setattr(_redis_link, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(_redis_link, "_LONGEST_WAIT", 0.01)


HERE = "IP:127.0.0.1,DNS:localhost"


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@contextmanager
def tls_server(
    authority: Authority, certificate: tuple[Path, Path], **config: str
) -> Iterator[RedisServer]:
    files = {
        "tls_cert_file": str(certificate[0]),
        "tls_key_file": str(certificate[1]),
        "tls_ca_cert_file": str(authority.certificate),
    }
    try:
        server = redis_server(**files, **config)
        entered = server.__enter__()
    except RuntimeError as error:
        if "tls-" not in str(error) or "FATAL CONFIG" not in str(error):
            raise
        pytest.skip("this redis-server was built without TLS")
    try:
        yield entered
    finally:
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def server(authority) -> Iterator[RedisServer]:
    """A server that speaks TLS only, and wants a password."""
    with tls_server(authority, authority.signed("here", HERE), requirepass=PASSWORD) as server:
        yield server


def large(items):
    """Three megabytes for each item."""
    return [bytes([item]) * 3_000_000 for item in items]


def read_elsewhere(connector):
    """What another process reads that has the connector unpickled."""
    code = (
        "import pickle, sys\n"
        "connector = pickle.loads(sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(b''.join(connector.get('key')))\n"
        "connector.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(connector),
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout


# --- whom a client trusts ------------------------------------------------------------------


def test_a_connector_unpickled_and_attached(server):
    content = os.urandom(3_000_000)
    with closing(connect(server.url)) as connector:
        connector.put("key", [content])
        assert connector.url == f"rediss://127.0.0.1:{server.port}/0"
        assert read_elsewhere(connector) == content
        with closing(attach(connector.address)) as attached:
            assert bytes(attached.get("key")[0]) == content


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(server, start):
    context = multiprocessing.get_context(start)
    with StoreExecutor(
        ProcessPoolExecutor(2, mp_context=context), server.url, ProxyAlways()
    ) as executor:
        futures = [executor.submit(large, [n, n + 1]) for n in range(3)]
        added = executor.submit(functions.add, futures[0], [b"small"])
        assert added.result() == [*large([0, 1]), b"small"]
        assert [future.result() for future in futures] == [large([n, n + 1]) for n in range(3)]
        del futures, added
        assert executor.store.usage().objects == 0
    wait_for_evictions()
    with server.client() as client:
        assert client.keys() == []


def test_a_client_certificate(authority):
    certificate, key = authority.signed("client", "DNS:client")
    here = authority.signed("choosy", HERE)
    with tls_server(authority, here) as server:
        own = f"&ssl_certfile={certificate}&ssl_keyfile={key}"
        with server.client() as client:
            client.config_set("tls-auth-clients", "yes")
        with pytest.raises(ConnectorUnavailableError):
            RedisConnector(server.url)
        with closing(RedisConnector(server.url + own)) as connector:
            connector.put("key", [b"x"])
            assert read_elsewhere(connector) == b"x"
            with closing(attach(connector.address)) as attached:
                assert bytes(attached.get("key")[0]) == b"x"


@pytest.fixture
def attempts(monkeypatch):
    """How often it was tried to talk to a server."""
    counted = []
    attempt = Link._attempt

    def count(link, commands, atomic):
        counted.append(link.place.public)
        return attempt(link, commands, atomic)

    monkeypatch.setattr(Link, "_attempt", count)
    return counted


@pytest.mark.parametrize("wrong", ["host", "authority", "expired", "no authority given"])
def test_a_wrong_certificate_is_refused(authority, tmp_path, attempts, wrong):
    trusted = f"?ssl_ca_certs={authority.certificate}"
    if wrong == "host":
        certificate = authority.signed("elsewhere", "DNS:elsewhere.example")
        match = "(?i)certificate.*127.0.0.1"
    elif wrong == "authority":
        certificate = Authority(tmp_path / "theirs").signed("here", HERE)
        match = "(?i)certificate verify failed"
    elif wrong == "expired":
        certificate = authority.signed("expired", HERE, days=-1)
        match = "(?i)certificate.*expired"
    else:
        certificate, trusted = authority.signed("here too", HERE), ""
        match = "(?i)certificate verify failed"
    # Its own client has to trust the server, to see that it has started: by way of a plain port.
    with plain_and_tls_server(authority, certificate) as (server, port):
        url = f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0{trusted}"
        with pytest.raises(ConnectorUnavailableError, match=match) as refused:
            Store.from_url(url)
        assert refused.value.url == f"rediss://127.0.0.1:{port}/0"
        assert len(attempts) == 1, "it will be refused again"
        assert_hidden("".join(traceback.format_exception(refused.value)))
        with server.client() as client:
            assert client.keys() == []
            assert client.info("commandstats").get("cmdstat_auth", {}).get("calls", 0) <= 1, (
                "the password was sent to somebody whose certificate is wrong"
            )


@contextmanager
def plain_and_tls_server(
    authority: Authority, certificate: tuple[Path, Path]
) -> Iterator[tuple[RedisServer, int]]:
    """A server, and a second port of it, where it speaks TLS."""
    with tls_server(authority, authority.signed("probe", HERE)):
        pass  # or the test is skipped
    with redis_server() as server, server.client() as client:
        client.execute_command(
            *("CONFIG", "SET", "tls-cert-file", str(certificate[0])),
            *("tls-key-file", str(certificate[1]), "tls-ca-cert-file", str(authority.certificate)),
            *("tls-auth-clients", "no", "tls-port", str(free_port())),
        )
        yield server, int(client.config_get("tls-port")["tls-port"])


def test_the_host_name_is_checked_by_every_version_of_redis_py():
    """Before 6.0, it was not, if not asked for."""
    assert Place("rediss://h").settings["ssl_check_hostname"] is True
    assert "ssl_check_hostname" not in Place("redis://h").settings
    for chosen in ("ssl_check_hostname=false", "ssl_cert_reqs=none"):
        assert not Place(f"rediss://h?{chosen}").settings.get("ssl_check_hostname")


def test_a_certificate_that_is_not_to_be_checked(server):
    url = server.url.partition("?")[0] + "?ssl_cert_reqs=none"
    with closing(RedisConnector(url)) as connector:
        connector.put("key", [b"x"])
        assert read_elsewhere(connector) == b"x"


def test_a_server_that_turns_into_another_one(authority, server):
    """Somebody else answers from some time on: neither data nor password are sent to him."""
    theirs = authority.signed("somebody", "DNS:elsewhere.example")
    query = server.url.partition("?")[2]
    with (
        plain_and_tls_server(authority, theirs) as (other, port),
        cutting_proxy(server.port) as proxy,
    ):
        url = f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{proxy.own_port}/0?{query}"
        with StoreExecutor(ProcessPoolExecutor(1), url, ProxyAlways()) as executor:
            assert executor.submit(large, [1]).result() == large([1])
            proxy.port = port
            with server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            future = executor.submit(large, [2])
            with pytest.raises(ConnectorUnavailableError, match="(?i)certificate") as refused:
                future.result()
            assert f"rediss://127.0.0.1:{proxy.own_port}/0" in str(refused.value)
            with other.client() as client:
                assert client.keys() == []
            proxy.port = server.port
            assert executor.submit(large, [3]).result() == large([3])
            del future
        wait_for_evictions()
    with server.client() as client:
        assert client.keys() == []


# --- passwords -----------------------------------------------------------------------------


def assert_hidden(text: str | bytes) -> None:
    """Fail if a text holds the password, in whichever form."""
    text = text if isinstance(text, str) else text.decode("latin-1")
    for form in (PASSWORD, quote(PASSWORD, safe=""), "s3cret"):
        assert form not in text


def command_lines() -> str:
    """The command lines of all processes."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                found.append(Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    # The server is told its password there, by the tests.
    return "\n".join(line for line in found if "redis-server" not in line)


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_no_process_is_told_the_password_in_its_command_line(start):
    context = multiprocessing.get_context(start)
    with redis_server(requirepass=PASSWORD) as server:
        base = ProcessPoolExecutor(1, mp_context=context)
        with StoreExecutor(base, server.url, ProxyAlways()) as executor:
            [own] = executor.submit(functions.identity, [1]).result()
            assert own == 1
            assert_hidden(command_lines())
        wait_for_evictions()


def test_where_the_password_is_not(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with redis_server(requirepass=PASSWORD) as server:
        url = server.url + "?timeout=5"
        with StoreExecutor(ProcessPoolExecutor(1), url, ProxyAlways()) as executor:
            store = executor.store
            result = executor.submit(functions.identity, [1]).result()
            failing = executor.submit(functions.boom, [1])
            assert failing.exception() is not None
            for one in (store, store.connector, executor, failing, reference_of(result)):
                assert_hidden(repr(one))
                assert_hidden(str(one))
            assert_hidden(pickle.dumps(reference_of(result)))
            assert_hidden(pickle.dumps(result))
            assert_hidden(store.address)
            server.kill()
            ways = (
                lambda: executor.submit(functions.identity, [2]).result(),
                lambda: store.get(reference_of(result)),
                lambda: store.put([1]),
                lambda: executor.submit(functions.make_list, 3).result(),
                lambda: Store.from_url(url),
            )
            for way in ways:
                with pytest.raises(ConnectorUnavailableError) as error:
                    way()
                said = "".join(traceback.format_exception(error.value))
                assert f"redis://127.0.0.1:{server.port}/0" in said
                assert_hidden(said)
                assert_hidden(repr(error.value))
                assert_hidden(str(error.value.__dict__))
            del result, failing
        wait_for_evictions()
    assert caplog.records
    assert_hidden(caplog.text)
    out, err = capfd.readouterr()
    assert_hidden(out + err)
