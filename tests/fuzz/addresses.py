"""URLs and addresses: what ``connect`` and ``attach`` are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import proxyexec_connectors
from proxyexec_connectors._redis_link import Options, Place
from proxyexec_connectors.errors import ProxyExecError, UnknownSchemeError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests.fuzz import Source

_SCHEMES = ("file://", "memory://", "redis://", "rediss://", "unix://", "pigeon://", "")

SEEDS = [
    b"\0/dev/shm/x?session=session-0123456789abcdef",
    b"\0/x?session=session-0123456789abcdef&spill=/y",
    b"\0/a%00b?session=../..",
    b"\1" + b"0123456789abcdef:4194303",
    b"\2user:pass%40word@host:6379/0?ttl=1&session=x&ssl_ca_certs=/y",
    b"\2host?max_connections=1000000000000",
    b"\2%23host%3F?port=%23&host=x",
    b"\2host?timeout=nan&grace=inf",
    b"\2[::1]:6379/3?host_cache=0",
    b"\3:secret@host?ssl_password=s&ssl_cert_reqs=none",
    b"\4/run/redis.sock?db=1&password=x",
    b"\5user:secret@host?token=x",
    b"\6//[",
    b"\7deep/down",
]


def _attach(url: str) -> None:
    with suppress(ProxyExecError, ValueError):
        connector = proxyexec_connectors.attach(url)
        assert isinstance(connector, (FileConnector, MemoryConnector))
        with suppress(ProxyExecError):
            assert connector.get("key") is None
        connector.close()


def _read_redis(url: str) -> None:
    # What is done with it before anything is sent, and what goes out again.
    with suppress(ValueError):
        place = Place(url)
        options = place.with_options(Options())
        address = place.address("0123456789abcdef", options)
        again = Place(address)
        assert again.session == "0123456789abcdef"
        assert again.password is None
        assert again.with_options(Options()) == options


def _connect_to_directory(directory: Path, text: str) -> None:
    path = f"{directory}/below/{text.partition('?')[0].partition('#')[0]}"
    if ".." not in unquote(path):
        with suppress(ProxyExecError, ValueError):
            proxyexec_connectors.connect(f"file://{path}").close()


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    def read(data: bytes) -> None:
        source = Source(data)
        choice = source.byte() % (len(_SCHEMES) + 1)
        text = source.rest().decode("utf-8", "surrogateescape")
        if choice == len(_SCHEMES):
            _connect_to_directory(directory, text)
            return
        url = _SCHEMES[choice] + text
        try:
            scheme = urlsplit(url).scheme
        except ValueError:
            scheme = "?"
        if scheme in ("redis", "rediss", "unix"):
            _read_redis(url)
            return
        _attach(url)
        if scheme not in ("file", "memory"):  # which would make what the URL names
            with suppress(UnknownSchemeError, ValueError):
                proxyexec_connectors.connect(url)

    yield read
