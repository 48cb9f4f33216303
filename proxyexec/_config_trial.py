"""One task through what a configuration describes, to see that it works."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from proxyexec._proxy import is_proxy
from proxyexec._sizes import format_size

if TYPE_CHECKING:
    from proxyexec._config_stack import StoreExecutorSpec
    from proxyexec._executor import StoreExecutor

__all__ = ["TrialError", "try_out"]

# Large enough for most policies, small enough for any place.
_SIZE = 1_000_000


class TrialError(Exception):
    """A configuration is right, and what it describes does not work here."""


def try_out(spec: StoreExecutorSpec, timeout: float) -> Iterator[str]:
    """Build an executor, run one task through it, and take it down; yield a line for each.

    Args:
        spec: of the executor. Nothing is written into its task group.
        timeout: seconds that the task may take.

    Raises:
        TrialError: one of these failed; says which, and why.
    """
    if spec.task_group is not None:
        spec = spec.model_copy(update={"task_group": None, "task_group_max_age": None})
    clock = time.perf_counter
    start = clock()
    try:
        executor = spec.build()
    except Exception as error:
        raise TrialError(f"it cannot be built: {_told(error)}") from error
    try:
        yield f"built in {clock() - start:.2f} s"
        yield from _run(executor, timeout)
        start = clock()
        try:
            executor.shutdown()
            if spec.executor.life == "persistent":
                spec.executor.shutdown()
            # Now, and not as soon as its last object is gone.
            executor.store.close()
        except Exception as error:
            raise TrialError(f"it cannot be taken down: {_told(error)}") from error
    except BaseException:
        _abandon(executor, spec)
        raise
    yield f"taken down in {clock() - start:.2f} s"


def _run(executor: StoreExecutor, timeout: float) -> Iterator[str]:
    """Run a task that reads something from the store, and is given as much as an argument."""
    clock, payload = time.perf_counter, "x" * _SIZE
    start = clock()
    try:
        # First have a worker start: one that is forked has what was in memory before.
        executor.submit(os.getpid).result(timeout)
        yield f"a worker was there after {clock() - start:.2f} s"
        start = clock()
        handed = executor.store.proxy(payload)
        task = executor.submit(_look, handed, payload)
        pid, host, length, came_as_proxy = task.result(timeout)
    except FutureTimeoutError:
        raise TrialError(f"no worker ran a task within {timeout:g} s") from None
    except Exception as error:
        raise TrialError(f"a task failed: {_told(error)}") from error
    if length != 2 * _SIZE:
        raise TrialError("a worker has read something else than what was stored")
    where = "this process" if pid == os.getpid() else f"process {pid}"
    if host != socket.gethostname():
        where += f" on {host}"
    size = format_size(_SIZE)
    text = f"a task ran in {where} in {clock() - start:.2f} s, and read {size} from the store"
    if executor._context.lazy:
        text += f"; a text of {size} was sent {'through the store' if came_as_proxy else 'inline'}"
    yield text


def _look(handed: Any, given: Any) -> list[Any]:
    """Read all that a task is given; the result is one that every strategy can send."""
    is_right = set(handed) == set(given) == {"x"}
    length = len(handed) + len(given) if is_right else 0
    return [os.getpid(), socket.gethostname(), length, is_proxy(given)]


def _abandon(executor: StoreExecutor, spec: StoreExecutorSpec) -> None:
    """Take down what does not answer."""
    # Pools forget them when they are shut down, and then wait for them at the program's end.
    pool = getattr(executor._base, "executor", executor._base)  # of another library
    processes = list((getattr(pool, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    if spec.executor.life == "persistent":
        spec.executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    executor.store.close_or_log()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
