"""The standard library's pools behind a ``StoreExecutor`` that stores whatever can be stored.

Classes have the names and signatures of those that they stand in for: the tests ask for them.

Floats are not stored: ``time.sleep``, which many of the tests submit, is written in C and takes no
proxy of a float. In ``eager`` they are.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

from proxyexec import StoreExecutor
from proxyexec.policy import ProxyAlways, ProxyType

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor"]


class _PoolExecutor(StoreExecutor):
    """An executor that makes its base executor, of the arguments that this one takes."""

    pool: type[concurrent.futures.Executor]
    policy = ProxyAlways() & ~ProxyType(float)
    lazy = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(self.pool(*args, **kwargs), should_proxy=self.policy, lazy=self.lazy)

    def __getattr__(self, name: str) -> Any:
        """Let tests look at the processes, threads and queues of the base executor."""
        if name == "_base":  # not made: the pool refused its arguments
            raise AttributeError(name)
        return getattr(self._base, name)


class ProcessPoolExecutor(_PoolExecutor):
    """Processes, and proxies of everything."""

    pool = concurrent.futures.ProcessPoolExecutor


class ThreadPoolExecutor(_PoolExecutor):
    """Threads, and proxies of everything."""

    pool = concurrent.futures.ThreadPoolExecutor
