"""Bytes to and from a Redis server, without a copy: the protocol's version 2 over one connection.

redis-py makes a string of every value that it receives, after having put it together in a buffer
of its own. Here, a caller can have it received into memory of its choice, and a word of a command
can be several buffers, sent from where they lie. Requests are pipelined: the server works on the
next ones while the client still reads a reply.

Connections are redis-py's, which opens them and sends; see
:mod:`proxyexec_connectors._redis_link`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from redis import exceptions
from redis.exceptions import ResponseError

from proxyexec_connectors._layout import joined

if TYPE_CHECKING:
    import socket

__all__ = ["Command", "Packer", "Refusal", "Replies", "Request", "Word", "converse", "ready"]

# A list of buffers is one word, sent piecewise.
Word: TypeAlias = "bytes | str | int | float | memoryview | list[bytes | memoryview]"
Command: TypeAlias = "tuple[Word, ...]"

# Up to this size, copying a buffer is cheaper than a packet of its own, which may wake the server
# up before there is enough to work on.
_SMALL_BYTES = 128 << 10

# What is read ahead of the value that a caller wants somewhere else.
_AHEAD_BYTES = 16 << 10

# No string is longer in a Redis server, as it comes; what we store are pieces of 1 MiB. Memory is
# made ready for a string before it has been received.
_LONGEST_BYTES = 512 << 20

# No reply to our commands is nested deeper than this: a script's, in a transaction.
_DEEPEST = 8


class Request(NamedTuple):
    """Commands that are sent together.

    Attributes:
        commands: at least one, each as words, or as the bytes that have been made of it.
        atomic: run all of them, with nobody else's between them, or none.
        receive: reads the replies, all of them, and returns what it likes; a :class:`Refusal` ends
            the conversation. Without it, the replies are a list, and a refusal among them does.
    """

    commands: Sequence[Command | bytes]
    atomic: bool = False
    receive: Callable[[Replies], Any] | None = None


class Packer:
    """Commands as lists of buffers to send; a memoryview is sent from where it lies."""

    def pack(self, *command: Word) -> list[bytes | memoryview]:
        """Write ``command`` in the Redis protocol, its memoryviews being left as they are."""
        # redis-py, which uses this for its own commands, writes some as one string of two words.
        first = command[0] if isinstance(command[0], str) else str(command[0])
        words = (*first.split(), *command[1:]) if " " in first else command
        buffers: list[bytes | memoryview] = []
        text = b"*%d\r\n" % len(words)
        for word in words:
            if isinstance(word, (memoryview, list)):
                parts = word if isinstance(word, list) else [word]
                buffers += (text + b"$%d\r\n" % sum(map(len, parts)), *parts)
                text = b"\r\n"
            else:
                raw = word if isinstance(word, bytes) else str(word).encode()
                text += b"$%d\r\n%b\r\n" % (len(raw), raw)
        buffers.append(text)
        return buffers


class Replies:
    """What a server says, read from a socket.

    Everything here raises redis-py's ``ConnectionError`` when the connection ends, or when what
    comes is no reply, and its ``TimeoutError`` when nothing comes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray(_AHEAD_BYTES)
        self._ahead = memoryview(self._buffer)
        self._start = self._end = 0

    def read(self, depth: int = 0) -> Any:
        """Return the next reply, whatever it is; a refusal is returned, not raised."""
        kind, value = self._header()
        if depth > _DEEPEST:
            raise exceptions.ConnectionError("a reply is nested too deeply")
        if kind == b"$" and value is not None:
            content = bytearray(value)
            self.into(memoryview(content))
            return bytes(content)
        if kind == b"*" and value is not None:
            return [self.read(depth + 1) for _ in range(value)]
        return value

    def begin(self) -> Any:
        """Start to read a string; return its length.

        That is ``None`` where there is nothing, and an exception for a refusal.
        """
        kind, value = self._header()
        if kind not in (b"$", b"-"):
            raise exceptions.ConnectionError("a string was expected, and something else came")
        return value

    def begin_array(self, count: int) -> Any:
        """Start to read an array of so many replies; return their number, or a refusal."""
        kind, value = self._header()
        if kind != b"-" and (kind, value) != (b"*", count):
            raise exceptions.ConnectionError(
                f"{count} replies were expected, and something else came"
            )
        return value

    def string(self) -> bytes | None:
        """Return the next reply, which is a string, or nothing."""
        length = self.begin()
        if isinstance(length, ResponseError):
            raise exceptions.ConnectionError(f"a string was expected, and not: {length}")
        if length is None:
            return None
        content = bytearray(length)
        self.into(memoryview(content))
        return bytes(content)

    def into(self, target: memoryview, arrived: Callable[[int], None] | None = None) -> None:
        """Read a string that has been begun, which has the length of ``target``.

        Args:
            target: what to read it into.
            arrived: is told how much has come, each time that something has.
        """
        done = min(len(target), self._end - self._start)
        target[:done] = self._ahead[self._start : self._start + done]
        self._start += done
        while done < len(target):
            done += self._receive(target[done:])
            if arrived is not None:
                arrived(done)
        if self._line():
            raise exceptions.ConnectionError("a string is longer than the server said")

    def skip(self, length: int) -> None:
        """Read a string that has been begun, and forget it."""
        left = length + 2
        while left:
            if self._start == self._end:
                self._fill()
            taken = min(left, self._end - self._start)
            self._start += taken
            left -= taken

    def skip_these(self, expected: bytes) -> bool:
        """Pass over replies, if they are those expected; otherwise read nothing."""
        while True:
            received = self._ahead[self._start : self._end][: len(expected)]
            if received != expected[: len(received)]:
                return False
            if len(received) == len(expected):
                self._start += len(expected)
                return True
            self._fill()

    @property
    def at_end(self) -> bool:
        """Whether nothing was received that has not been read."""
        return self._start == self._end

    def _header(self) -> tuple[bytes, Any]:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return kind, rest
        if kind == b"-":
            said = rest.decode(errors="replace")
            if said.startswith("LOADING "):
                raise exceptions.BusyLoadingError(said)
            return kind, ResponseError(said)
        try:
            if kind not in (b":", b"$", b"*"):
                raise ValueError(kind)
            number = int(rest)
        except ValueError as error:
            reason = "what came is no reply of a Redis server"
            raise exceptions.ConnectionError(reason) from error
        if kind != b":" and number < 0:
            return kind, None
        if kind == b"$" and number > _LONGEST_BYTES:
            raise exceptions.ConnectionError(f"a string of {number} bytes is none of ours")
        return kind, number

    def _line(self) -> bytes:
        while True:
            start = self._start
            end = self._buffer.find(b"\r\n", start, self._end)
            if end >= 0:
                self._start = end + 2
                return bytes(self._ahead[start:end])
            if self._end - start == _AHEAD_BYTES:
                raise exceptions.ConnectionError("a line of a reply is too long")
            self._fill()

    def _fill(self) -> None:
        left = self._end - self._start
        self._ahead[:left] = bytes(self._ahead[self._start : self._end])
        self._start, self._end = 0, left
        self._end += self._receive(self._ahead[left:])

    def _receive(self, target: memoryview) -> int:
        try:
            count = self._socket.recv_into(target)
        except OSError as error:
            raise _translated(error) from error
        if not count:
            raise exceptions.ConnectionError("the server closed the connection")
        return count


def converse(connection: Any, requests: Iterable[Request], window: int) -> list[Any]:
    """Send requests and return what each received.

    Args:
        connection: of redis-py; no reply is due on it.
        requests: looked at one after the other, each when it is sent.
        window: how many requests may be sent before the reply to the first has been read.

    Raises:
        ResponseError: the server refused; later requests were not sent. The connection can be
            used again after this error only.
    """
    sock = connection._sock
    if sock is None:  # closed by another thread
        raise exceptions.ConnectionError("the connection was closed")
    replies = Replies(sock)
    waiting: deque[Request] = deque()
    received: list[Any] = []
    for request in requests:
        # No check of the connection's health, which would be in the middle of our replies.
        connection.send_packed_command(joined(_packed(request), _SMALL_BYTES), check_health=False)
        waiting.append(request)
        if len(waiting) >= window:
            received.append(_received(replies, waiting.popleft()))
            if isinstance(received[-1], Refusal):
                break
    received += [_received(replies, request) for request in waiting]
    if not replies.at_end:
        raise exceptions.ConnectionError("the server said more than it was asked for")
    for one in received:
        if isinstance(one, Refusal):
            raise one.error
    return received


class Refusal(NamedTuple):
    """In place of the replies to a request that the server did not carry out."""

    error: ResponseError


def _received(replies: Replies, request: Request) -> Any:
    if request.receive is not None:
        return request.receive(replies)
    if not request.atomic:
        results = [replies.read() for _ in request.commands]
    else:
        # MULTI and each command are acknowledged, then come the replies.
        count = len(request.commands)
        acknowledged = count < _LONG and replies.skip_these(_ACKNOWLEDGED + count * _QUEUED)
        said = [replies.read() for _ in range(1 if acknowledged else count + 2)]
        results = said[-1] if isinstance(said[-1], list) else said
    refused = [result for result in results if isinstance(result, ResponseError)]
    return Refusal(refused[0]) if refused else results


_PACKER = Packer()


def ready(*command: Word) -> bytes:
    """Make the bytes of a command that is sent again and again."""
    return b"".join(_PACKER.pack(*command))


_MULTI, _EXEC = ready("MULTI"), ready("EXEC")
_ACKNOWLEDGED, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"

# As many acknowledgements can be looked at together.
_LONG = _AHEAD_BYTES // 16


def _packed(request: Request) -> list[bytes | memoryview]:
    buffers: list[bytes | memoryview] = [_MULTI] if request.atomic else []
    for command in request.commands:
        if isinstance(command, bytes):
            buffers.append(command)
        else:
            buffers += _PACKER.pack(*command)
    if request.atomic:
        buffers.append(_EXEC)
    return buffers


def _translated(error: OSError) -> Exception:
    """What redis-py would have raised, and those who try again look for."""
    timed_out = isinstance(error, TimeoutError)
    kind = exceptions.TimeoutError if timed_out else exceptions.ConnectionError
    return kind(str(error) or type(error).__name__)
