"""Seeing what moves: counts and times of an executor.

See :meth:`StoreExecutor.stats`, and "Seeing what moves" in the documentation.
"""

from __future__ import annotations

from proxyexec._stats import Stats

__all__ = ["Stats"]
