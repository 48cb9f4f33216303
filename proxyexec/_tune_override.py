"""What ``proxyexec tune --verify`` has a program do: other policies, and telling how long it took.

Executors of a program obey these environment variables, which the tuner sets:

- ``PROXYEXEC_TUNE``: the file that durations are added to. Without it, the others count for
  nothing.
- ``PROXYEXEC_TUNE_POLICY``: the policy in place of the program's own, as JSON: what
  ``should_proxy`` is in a configuration.
- ``PROXYEXEC_TUNE_STORE``: the URL of the store in place of the program's own.

No trace is written then: where the program would, that part of it is timed. So what is measured is
what was predicted. Workers inherit the variables, and obey none.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Any

from proxyexec._trace_writer import TraceWriter
from proxyexec.policy import (
    Policy,
    ProxyAdaptive,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    ShouldProxy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyexec._tasks import Tasks

__all__ = ["POLICY", "PROCESS", "REPORT", "STORE", "TimedSection", "obeys", "overridden", "timed"]

REPORT = "PROXYEXEC_TUNE"
POLICY = "PROXYEXEC_TUNE_POLICY"
STORE = "PROXYEXEC_TUNE_STORE"

PROCESS = "PROXYEXEC_TUNE_PROCESS"
"""Set by the first process that obeys: those that it starts inherit it."""


def obeys() -> bool:
    """Tell whether this is the process that the tuner has started."""
    return os.environ.setdefault(PROCESS, str(os.getpid())) == str(os.getpid())


def overridden(
    store: Any, policy: ShouldProxy | None, task_group: Any
) -> tuple[Any, ShouldProxy | None]:
    """Return a store and a policy, or those that the tuner wants in their place.

    Args:
        store: the program's.
        policy: the program's.
        task_group: whether calls are written down: that stays where it is.

    Raises:
        ValueError: what it wants is no policy.
    """
    if not obeys():
        return store, policy
    text = os.environ.get(POLICY)
    if text is not None:
        policy = _built(json.loads(text))
    if STORE in os.environ and task_group is None:
        store = os.environ[STORE]
    return store, policy


def _built(data: Any) -> Policy:
    """Return the policy that a configuration has so.

    Without pydantic, which programs need not have; of all kinds that the tuner writes.
    """
    if isinstance(data, (str, int)):
        if data in ("always", "never"):
            return ProxyAlways() if data == "always" else ProxyNever()
        return ProxySize(data)
    kind = data["kind"]
    if kind == "size":
        return ProxySize(data["minimum"])
    if kind == "type":
        return ProxyType(*map(_found, data["types"]))
    if kind == "not":
        return ~_built(data["policy"])
    if kind in ("all", "any"):
        first, *others = map(_built, data["policies"])
        for other in others:
            first = first & other if kind == "all" else first | other
        return first
    if data == {"kind": "adaptive"}:
        return ProxyAdaptive()
    raise ValueError(f"the tuner writes no policy like {data!r}")


def _found(address: str) -> type:
    module, _, name = address.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    kind: type = found
    return kind


class TimedSection(TraceWriter):
    """In place of a trace: tells how long it would have been.

    Args:
        tasks: those of the executor.
        path: of the trace.
    """

    def __init__(self, tasks: Tasks, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._told = weakref.finalize(tasks, _tell, self.path, time.perf_counter())

    def close(self) -> None:
        """Tell it. Closing twice is fine."""
        self._told()


def timed(tasks: Tasks) -> Callable[[], object]:
    """Return what tells how long an executor was in use, when it is called, or at the end."""
    return weakref.finalize(tasks, _tell, "", time.perf_counter())


def _tell(path: str, start: float) -> None:
    if not obeys():
        return  # a forked child
    line = json.dumps({"trace": path, "seconds": time.perf_counter() - start})
    with open(os.environ[REPORT], "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
