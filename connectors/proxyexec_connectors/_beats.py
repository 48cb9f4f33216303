"""One thread a process that keeps its claims alive.

A claim that has to be renewed is, for as long as it is held. The thread starts with the first such
claim, and ends when there has been none for a while. In a forked child there are no claims.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Protocol

from proxyexec_connectors.errors import ConnectorClosedError, ConnectorError

__all__ = ["Beating", "hold", "let_go"]

_logger = logging.getLogger("proxyexec.connectors.claims")

# The thread ends when there was nothing to do for so long.
_IDLE_SECONDS = 5.0


class Beating(Protocol):
    """What has to be renewed."""

    interval: float
    """How many seconds may pass between two beats."""

    def beat(self) -> None:
        """Renew it."""
        ...


class _Beats:
    def __init__(self) -> None:
        # When each claim is to be renewed next.
        self.due: dict[Beating, float] = {}
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.wakes = 0.0

    def add(self, claim: Beating) -> None:
        due = time.monotonic() + claim.interval
        with self.changed:
            self.due[claim] = due
            if self.thread is None:
                self.wakes = due
                self.thread = threading.Thread(
                    target=self._work, name="proxyexec-claims", daemon=True
                )
                self.thread.start()
            elif due < self.wakes:
                self.changed.notify()

    def discard(self, claim: Beating) -> None:
        with self.changed:
            self.due.pop(claim, None)

    def _work(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self.changed:
                now = time.monotonic()
                if self.due:
                    idle_since = now
                elif now - idle_since >= _IDLE_SECONDS:
                    self.thread = None
                    return
                self.wakes = min(self.due.values(), default=now + _IDLE_SECONDS)
                self.changed.wait(max(0.0, self.wakes - now))
                now = time.monotonic()
                claims = [claim for claim, due in self.due.items() if due <= now]
                for claim in claims:
                    self.due[claim] = now + claim.interval
            for claim in claims:
                try:
                    claim.beat()
                except ConnectorClosedError:  # its connector was closed before it was released
                    self.discard(claim)
                except (ConnectorError, OSError) as error:
                    _logger.warning("a claim could not be renewed: %s", error)


def hold(claim: Beating) -> None:
    """Renew a claim from now on."""
    _beats.add(claim)


def let_go(claim: Beating) -> None:
    """Renew a claim no more; a beat may be under way."""
    _beats.discard(claim)


_beats = _Beats()


def _after_fork() -> None:
    global _beats
    _beats = _Beats()


os.register_at_fork(after_in_child=_after_fork)
