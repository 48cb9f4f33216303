"""Seeing what moves: counts and times of an executor, and what is stored.

See :meth:`StoreExecutor.stats` and :meth:`StoreExecutor.leaks`, and "Seeing what moves" and
"What is stored" in the documentation.
"""

from __future__ import annotations

from proxyexec._holders import Holder
from proxyexec._leaks import HeldObject, Leaks
from proxyexec._stats import Stats

__all__ = ["HeldObject", "Holder", "Leaks", "Stats"]
