"""Drop-in replacements for the standard library's pools: real objects in, real objects out.

Only the import changes. Nothing is lazy here: functions and callers never see a proxy.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxyexec._executor import StoreExecutor
from proxyexec.policy import ProxySize

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor"]

# From this serialized size on, a file in shared memory beats a pipe; see benchmarks/.
STORED_FROM = 200_000


class ProcessPoolExecutor(StoreExecutor):
    """``concurrent.futures.ProcessPoolExecutor``, with large data in shared memory.

    Args:
        max_workers: number of worker processes; as many as there are processors by default.
        mp_context: how workers are started, from :func:`multiprocessing.get_context`.
        initializer: called in each worker when it starts.
        initargs: arguments of ``initializer``.
        max_tasks_per_child: after how many tasks a worker is replaced (Python 3.11 and later).
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        newer = {} if max_tasks_per_child is None else {"max_tasks_per_child": max_tasks_per_child}
        base = concurrent.futures.ProcessPoolExecutor(
            max_workers, mp_context, initializer, initargs, **newer
        )
        super().__init__(base, should_proxy=ProxySize(STORED_FROM), lazy=False)


class ThreadPoolExecutor(StoreExecutor):
    """``concurrent.futures.ThreadPoolExecutor``.

    Threads share their memory: there is no data to move, and programs may rely on seeing what
    a task does to its arguments. So calls pass through untouched. To isolate tasks from each
    other as processes are, wrap a pool of threads in a :class:`StoreExecutor` with a policy.

    Args:
        max_workers: number of threads.
        thread_name_prefix: for their names.
        initializer: called in each thread when it starts.
        initargs: arguments of ``initializer``.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        base = concurrent.futures.ThreadPoolExecutor(
            max_workers, thread_name_prefix, initializer, initargs
        )
        super().__init__(base, lazy=False)
