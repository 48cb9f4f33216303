"""Seeing what moves: counts and times of an executor, and traces of runs.

See :meth:`StoreExecutor.stats`, :meth:`StoreExecutor.explain` and :meth:`StoreExecutor.trace`, and
"Seeing what moves" in the documentation.
"""

from __future__ import annotations

from proxyexec._events import Moved
from proxyexec._explain import Explanation
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

__all__ = [
    "Explanation",
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
    "read_trace",
]
