"""Seeing what moves, and what is stored: counts and times of an executor, and traces of runs.

See :meth:`StoreExecutor.stats`, :meth:`StoreExecutor.explain`, :meth:`StoreExecutor.trace` and
:meth:`StoreExecutor.leaks`, and "Seeing what moves" and "What is stored" in the documentation.
"""

from __future__ import annotations

from proxyexec._events import Moved
from proxyexec._explain import Explanation
from proxyexec._holders import Holder
from proxyexec._leaks import HeldObject, Leaks
from proxyexec._stats import Stats
from proxyexec._trace import (
    Trace,
    TraceEnd,
    TraceEvicted,
    TraceHeader,
    TraceMoved,
    TraceReader,
    TraceResolved,
    TraceTask,
    read_trace,
)
from proxyexec._trace_writer import TraceWriter

__all__ = [
    "Explanation",
    "HeldObject",
    "Holder",
    "Leaks",
    "Moved",
    "Stats",
    "Trace",
    "TraceEnd",
    "TraceEvicted",
    "TraceHeader",
    "TraceMoved",
    "TraceReader",
    "TraceResolved",
    "TraceTask",
    "TraceWriter",
    "read_trace",
]
