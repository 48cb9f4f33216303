"""Watching the calls of a group that others run: one thread an executor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from proxyexec._group_records import CANCELLED, OutcomeRecord, outcome_key, task_claim
from proxyexec.errors import ProxyExecError

if TYPE_CHECKING:
    from proxyexec_connectors.durable import DurableConnector

    from proxyexec._group_call import GroupCall

__all__ = ["Watcher"]

# How often the thread looks: at first, and when nothing has happened for long.
_SOON, _LATER = 0.02, 1.0


class Watcher:
    """Ends calls when their outcomes are there, and goes on without workers that have died.

    Args:
        session: of the group.
    """

    def __init__(self, session: DurableConnector) -> None:
        self._session = session
        self._calls: dict[str, list[GroupCall]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, call: GroupCall) -> None:
        """Watch a call."""
        with self._changed:
            self._calls.setdefault(call.key, []).append(call)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="proxyexec-watch", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        wait = _SOON
        while True:
            with self._changed:
                for key in [key for key, calls in self._calls.items() if _are_over(calls)]:
                    del self._calls[key]
                if not self._calls:
                    self._thread = None
                    return
                watched = {key: list(calls) for key, calls in self._calls.items()}
            try:
                news = self._look(watched)
            except ProxyExecError as error:
                for calls in watched.values():
                    for call in calls:
                        call.fail(error)
                continue
            wait = _SOON if news else min(2 * wait, _LATER)
            with self._changed:
                if not news and self._changed.wait(wait):
                    wait = _SOON

    def _look(self, watched: dict[str, list[GroupCall]]) -> bool:
        """See what has become of the calls; tell whether anything has."""
        keys = list(watched)
        # Claims first: whoever lets go of one has written the outcome by then.
        claimed = self._session.claimed([task_claim(key) for key in keys])
        found = self._session.get_many([CANCELLED, *map(outcome_key, keys)])
        news = False
        for key, is_claimed, frames in zip(keys, claimed, found[1:], strict=True):
            if frames is None and is_claimed:
                continue
            news = True
            with self._changed:
                calls = self._calls.pop(key, [])
            for call in calls:
                if frames is not None:
                    call.settle_with(frames)
                elif found[0] is not None:
                    call.settle(OutcomeRecord("cancelled", call.name))
                else:
                    call.lose()
        return news


def _are_over(calls: list[GroupCall]) -> bool:
    return all(call.future is None for call in calls)
