"""What a call costs a cluster of Dask beside time: bytes through its scheduler, memory of workers.

Bytes are those that the kernel has counted of the scheduler's connections. Memory is what workers
take at most beyond what they took before: their peak resident memory, which the kernel keeps (a
page that several map counts for each), and the most that was seen of their proportional share (each
page counts once).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_contenders import OnDask

__all__ = ["Costs", "Watch"]

# Where struct tcp_info of Linux has the bytes that were sent and acknowledged, and those received.
_COUNTED = struct.Struct("=QQ")
_COUNTED_AT = 120

# Takes the peak of a process's memory back to what it takes now; see proc(5), clear_refs.
_FORGET_PEAK = "5"

# How often the share is looked at, in seconds.
_PAUSE = 0.002


@dataclass
class Costs:
    """Bytes."""

    scheduler: int = 0
    """To and from the scheduler."""
    resident: int = 0
    """Peak resident memory of the workers, together, beyond what it was."""
    share: int = 0
    """The most that was seen of the same, each page counted once."""


class Watch:
    """Counts from ``with`` on.

    Args:
        contender: whose cluster.
    """

    def __init__(self, contender: OnDask) -> None:
        self.costs = Costs()
        self._contender = contender
        self._workers = contender.processes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Costs:
        for worker in self._workers:
            Path(f"/proc/{worker}/clear_refs").write_text(_FORGET_PEAK)
        self._resident = sum(_field(worker, "status", "VmRSS") for worker in self._workers)
        self._share = self._shares()
        self._bytes = _counted(self._contender.connections())
        self._thread.start()
        return self.costs

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        costs = self.costs
        costs.scheduler = _counted(self._contender.connections()) - self._bytes
        peak = sum(_field(worker, "status", "VmHWM") for worker in self._workers)
        costs.resident = max(0, peak - self._resident)

    def _look(self) -> None:
        while True:
            self.costs.share = max(self.costs.share, self._shares() - self._share)
            if self._over.wait(_PAUSE):
                return

    def _shares(self) -> int:
        return sum(_field(worker, "smaps_rollup", "Pss") for worker in self._workers)


def _counted(connections: Iterable[socket.socket]) -> int:
    total = 0
    for one in connections:
        try:
            told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        except OSError:  # closed meanwhile
            continue
        total += sum(_COUNTED.unpack_from(told, _COUNTED_AT))
    return total


def _field(process: int, file: str, name: str) -> int:
    """Return bytes that the system tells of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
