"""Count the bytes that pass through this process's pipes to and from workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Traffic", "counted_traffic"]


@dataclass
class Traffic:
    """Bytes since the counting began."""

    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        """Both directions together."""
        return self.sent + self.received


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Count what goes through ``multiprocessing`` connections of this process.

    These two methods are below all others of a connection, and private; there is no public
    place where all messages pass. The method itself does the work, so counting costs nothing
    that could be measured.
    """
    traffic = Traffic()
    connection: Any = Connection
    send, receive = connection._send_bytes, connection._recv_bytes

    def counting_send(self: Any, data: Any) -> Any:
        traffic.sent += len(data)
        return send(self, data)

    def counting_receive(self: Any, *args: Any) -> Any:
        buffer = receive(self, *args)
        traffic.received += buffer.getbuffer().nbytes
        return buffer

    connection._send_bytes, connection._recv_bytes = counting_send, counting_receive
    try:
        yield traffic
    finally:
        connection._send_bytes, connection._recv_bytes = send, receive
