"""What comes over the wire from a Redis server: ``_redis_wire``, ``_redis_reading``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis.exceptions import RedisError

from proxyexec_connectors._redis_format import Head
from proxyexec_connectors._redis_reading import WAYS, PieceReceiver
from proxyexec_connectors._redis_wire import Replies, Request, converse
from tests.fuzz import Source

_HEAD = Head(b"t" * 16, 25, 10, 10)


def _string(content: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(content), content)


_START = b"*2\r\n" + _string(_HEAD.written()) + _string(b"x" * 10)
_REFUSED = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"

SEEDS = [
    b"\0*3\r\n:1\r\n+OK\r\n" + _string(b"x"),
    b"\0" + b"*1\r\n" * 200,
    b"\0-ERR no\r\n-LOADING it\r\n$-1\r\n*-1\r\n",
    b"\1" + _string(b"x" * 100),
    b"\1" + _REFUSED,
    b"\2" + _START,
    b"\2*2\r\n$-1\r\n$-1\r\n",
    b"\2" + _REFUSED,
    b"\3" + _START,
    b"\3*2\r\n" + _string(_HEAD.written()) + b"$-1\r\n",
    b"\4+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n",
    b"\4+OK\r\n-ERR\r\n+QUEUED\r\n-EXECABORT\r\n",
    b"\5:1\r\n+OK\r\n" + _string(b"x"),
]

_AT_MOST = 64 * 1024


class _Connection:
    """The part of redis-py's that is used, to a server that has said all it has to say."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send_packed_command(self, buffers, check_health):
        assert not check_health


def _read_all(replies: Replies) -> None:
    while True:
        replies.read()


def read(data: bytes) -> None:
    source = Source(data)
    how = source.byte() % 6
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(30)
        far.sendall(source.rest()[:_AT_MOST])
        far.shutdown(socket.SHUT_WR)
        replies = Replies(near)
        pieces = bytearray(25)
        try:
            if how == 0:
                _read_all(replies)
            elif how == 1:
                WAYS[0].receive(replies)
            elif how == 2:
                WAYS[1].receive(replies)
            elif how == 3:
                where = memoryview(pieces)
                PieceReceiver(_HEAD, 10, 20, lambda start, end: where[start:end], None)(replies)
            else:
                commands = [("SET", "key", "value"), ("GET", "key")]
                converse(_Connection(near), [Request(commands, atomic=how == 4)] * 2, 2)
        except RedisError:
            pass
        assert pieces[:10] == bytes(10)
        assert pieces[20:] == bytes(5)


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    yield read
