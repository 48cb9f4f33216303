"""Drop-in replacements for the standard library's pools: real objects in, real objects out.

Only the import changes. They are subclasses of the standard library's, and nothing is lazy here:
functions and callers never see a proxy.
"""

from __future__ import annotations

from collections.abc import Callable

# Now, and not when they are used: programs may put our pools in place of these.
from concurrent.futures import ProcessPoolExecutor as _ProcessPool
from concurrent.futures import ThreadPoolExecutor as _ThreadPool
from typing import TYPE_CHECKING, Any

from proxyexec._adapters import adapt, forget_pending
from proxyexec._executor import StoreExecutor
from proxyexec.policy import ProxySize

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor"]

# From this serialized size on, a file in shared memory beats a pipe; see benchmarks/.
STORED_FROM = 700_000


class ProcessPoolExecutor(StoreExecutor, _ProcessPool):
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
        _ProcessPool.__init__(self, max_workers, mp_context, initializer, initargs, **newer)
        self._set_up(adapt(self), None, ProxySize(STORED_FROM), lazy=False, nested=True)

    # This executor is its own base executor: the standard library's, which it inherits from.

    def _submit_to_base(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _ProcessPool.submit(self, fn, *args, **kwargs)

    def _shut_base_down(self, *, wait: bool, cancel_futures: bool) -> None:
        _ProcessPool.shutdown(self, wait, cancel_futures=cancel_futures)
        if cancel_futures:
            forget_pending(self)


class ThreadPoolExecutor(StoreExecutor, _ThreadPool):
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
        _ThreadPool.__init__(self, max_workers, thread_name_prefix, initializer, initargs)
        self._set_up(adapt(self), None, None, lazy=False, nested=True)

    def _submit_to_base(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _ThreadPool.submit(self, fn, *args, **kwargs)

    def _shut_base_down(self, *, wait: bool, cancel_futures: bool) -> None:
        _ThreadPool.shutdown(self, wait, cancel_futures=cancel_futures)
