"""One thread a process that keeps its claims alive.

A claim that has to be renewed is, for as long as it is held. The thread starts with the first such
claim, and ends when there has been none for a while. In a forked child there are no claims.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Protocol

from proxyexec_connectors.errors import ConnectorError

__all__ = ["Beating", "hold", "let_go"]

_logger = logging.getLogger("proxyexec_connectors")

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
        self.claims: set[Beating] = set()
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def add(self, claim: Beating) -> None:
        with self.changed:
            self.claims.add(claim)
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self._work, name="proxyexec-claims", daemon=True
                )
                self.thread.start()
            # Otherwise it wakes up often enough, unless this one is more impatient.
            elif len(self.claims) == 1 or claim.interval < min(
                one.interval for one in self.claims if one is not claim
            ):
                self.changed.notify()

    def discard(self, claim: Beating) -> None:
        with self.changed:
            self.claims.discard(claim)

    def _work(self) -> None:
        while True:
            with self.changed:
                interval = min((one.interval for one in self.claims), default=_IDLE_SECONDS)
                if not self.changed.wait(interval) and not self.claims:
                    self.thread = None
                    return
                claims = list(self.claims)
            for claim in claims:
                try:
                    claim.beat()
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
