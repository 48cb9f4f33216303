"""Who owns a session: facts that its owner leaves beside it, for those who look from outside.

They are for people to read, and decide nothing: what is swept is decided by locks and heartbeats.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import NamedTuple

__all__ = ["Owner", "here"]


class Owner(NamedTuple):
    """What a session's owner has said of itself."""

    pid: int
    host: str
    machine: str
    """Equal where processes see each other by their ids."""
    born: int
    """When the process was started, in the kernel's ticks: ids are used again."""
    since: float
    """When the session was opened, in seconds since the epoch."""

    def written(self) -> bytes:
        """The facts as JSON."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def read(cls, written: bytes | None) -> Owner | None:
        """Understand what :meth:`written` returned; ``None`` if it makes no sense."""
        try:
            facts = json.loads(written or b"")
            return cls(
                int(facts["pid"]),
                str(facts["host"]),
                str(facts["machine"]),
                int(facts["born"]),
                float(facts["since"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def is_running(self) -> bool | None:
        """Tell whether the process is there still; ``None`` where that cannot be seen."""
        if not self.machine or self.machine != _machine():
            return None
        return bool(self.born) and _born(self.pid) == self.born


def here() -> Owner:
    """The facts of this process, for a session that it opens now."""
    process = os.getpid()
    return Owner(process, socket.gethostname(), _machine(), _born(process), time.time())


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(process: int) -> int:
    """When a process was started; 0 if there is none of that id that runs."""
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            # The name of the program comes before, in parentheses, and may have some itself.
            state, *fields = stat.read().rpartition(b") ")[2].split()
    except (OSError, ValueError):
        return 0
    return 0 if state in (b"Z", b"X") else int(fields[18])
