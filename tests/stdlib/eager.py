"""As in ``always``, with the objects themselves where there are proxies."""

from __future__ import annotations

from proxyexec.policy import ProxyAlways
from tests.stdlib import always

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor"]


class ProcessPoolExecutor(always.ProcessPoolExecutor):
    """Processes; everything is stored, and fetched where it is needed."""

    policy = ProxyAlways()
    lazy = False


class ThreadPoolExecutor(always.ThreadPoolExecutor):
    """Threads; everything is stored, and fetched where it is needed."""

    policy = ProxyAlways()
    lazy = False
