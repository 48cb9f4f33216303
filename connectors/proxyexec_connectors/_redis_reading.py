"""What a server says of an object, read into the memory where it stays.

Knows nothing of sessions or keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import ResponseError

from proxyexec_connectors._anonymous import allocate
from proxyexec_connectors._redis_format import HEAD, Head
from proxyexec_connectors._redis_wire import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyexec_connectors._host_cache import Write
    from proxyexec_connectors._redis_wire import Replies

__all__ = ["WAYS", "PieceReceiver", "Start", "Way"]


# Less than this is not worth passing on.
_PORTION_BYTES = 128 << 10


class Start(NamedTuple):
    """What was returned of an object: nothing, all of it, or head and first piece."""

    head: Head | None = None
    memory: memoryview | None = None
    problem: str | None = None


class Way(NamedTuple):
    """How to ask for one form of objects."""

    command: str
    fields: tuple[bytes, ...]
    receive: Callable[[Replies], Start | Refusal | None]


def _receive_string(replies: Replies) -> Start | Refusal | None:
    length = replies.begin()
    if isinstance(length, ResponseError):
        return None if _is_other_form(length) else Refusal(length)
    if length is None:
        return Start()
    memory = allocate(length)
    replies.into(memory)
    return Start(memory=memory)


def _receive_hash(replies: Replies) -> Start | Refusal | None:
    answer = replies.begin_array(2)
    if isinstance(answer, ResponseError):
        return None if _is_other_form(answer) else Refusal(answer)
    raw = replies.string()
    length = replies.begin()
    if isinstance(length, ResponseError):
        return Refusal(length)
    if raw is None and length is None:
        return Start()
    head = None if raw is None else Head.read(raw)
    if head is not None and head.first == length:
        memory = allocate(length)
        replies.into(memory)
        return Start(head, memory)
    if length is not None:
        replies.skip(length)
    if raw is None:
        return Start(problem="its head is missing")
    return Start(
        problem="its head is unreadable" if head is None else "a piece is missing or cut short"
    )


WAYS = (Way("GET", (), _receive_string), Way("HMGET", (HEAD, b"0"), _receive_hash))
"""How to ask for each form, in the order that is tried."""


@dataclass(frozen=True)
class PieceReceiver:
    """Receives one piece, if it is one of the expected object."""

    head: Head
    start: int
    end: int
    place: Callable[[int, int], memoryview]
    received: Write | None

    def __call__(self, replies: Replies) -> bool | Refusal:
        answer = replies.begin_array(2)
        if isinstance(answer, ResponseError):
            return False if _is_other_form(answer) else Refusal(answer)
        head = replies.string()
        length = replies.begin()
        if isinstance(length, ResponseError):
            return Refusal(length)
        if head == self.head.written() and length == self.end - self.start:
            memory = self.place(self.start, self.end)
            if self.received is None:
                replies.into(memory)
            else:
                self._hand_on(replies, memory, self.received)
            return True
        if length is not None:
            replies.skip(length)
        return False

    def _hand_on(self, replies: Replies, memory: memoryview, received: Write) -> None:
        """Receive a piece, and pass on what has come of it: on a slow network, that is progress."""
        done = 0

        def arrived(count: int) -> None:
            nonlocal done
            if count - done >= _PORTION_BYTES:
                received(memory[done:count], self.start + done)
                done = count

        replies.into(memory, arrived)
        if done < len(memory):
            received(memory[done:], self.start + done)


def _is_other_form(refusal: ResponseError) -> bool:
    """Tell whether it was the key's value that was refused; otherwise it was the command."""
    return str(refusal).startswith("WRONGTYPE")
