"""The tests that are not to pass, and why: the one table of them.

Some look at private attributes; others expect what ``lazy=True`` is there to avoid.

They are run all the same. One that passes is reported, and so is a row that no test matches:
nothing stays in the table that need not be there.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

__all__ = ["EXPECTED_FAILURES", "Expected"]


class Expected(NamedTuple):
    """Tests that are expected to fail."""

    test: str
    """``Class.method``; a ``*`` in it stands for anything."""
    configurations: tuple[str, ...]
    reason: str

    def matches(self, test: str, configuration: str) -> bool:
        """Tell whether a test, by its class and method, is meant."""
        return configuration in self.configurations and fnmatchcase(test, self.test)


_ALL = ("dropin", "always", "always-eager")
_LAZY = ("always",)
_UNPICKLABLE = (
    "counts the processes (private) after submitting a semaphore, which cannot be pickled: the "
    "standard library starts workers before it finds out, and our executors do not"
)
_STORED = ("always", "always-eager")
_SEMAPHORE = (
    "counts the threads (private) after submitting a semaphore, which cannot be pickled, and "
    "which a policy that wants everything insists on storing"
)
_UNUSED = "lazy: the task, id(), does not look at its argument, so that it is never unpickled"
_UNREAD = "lazy: nobody looks at the result, so that it is never unpickled"

EXPECTED_FAILURES = (
    Expected("ProcessPool*ProcessPoolExecutorTest.test_saturation", _ALL, _UNPICKLABLE),
    Expected("ProcessPool*ProcessPoolShutdownTest.test_processes_terminate", _ALL, _UNPICKLABLE),
    Expected("ProcessPool*DeadlockTest.test_crash_at_task_unpickle", _LAZY, _UNUSED),
    Expected("ProcessPool*DeadlockTest.test_error_at_task_unpickle", _LAZY, _UNUSED),
    Expected("ProcessPool*DeadlockTest.test_exit_at_task_unpickle", _LAZY, _UNUSED),
    Expected("ProcessPool*ExecutorTest.test_ressources_gced_in_workers", _LAZY, _UNUSED),
    Expected(
        "ProcessPool*DeadlockTest.test_error_during_result_unpickle_in_result_handler",
        _LAZY,
        _UNREAD,
    ),
    Expected(
        "ProcessPool*DeadlockTest.test_exit_during_result_unpickle_in_result_handler",
        _LAZY,
        _UNREAD,
    ),
    Expected("ThreadPoolExecutorTest.test_saturation", _STORED, _SEMAPHORE),
    Expected("ThreadPoolShutdownTest.test_threads_terminate", _STORED, _SEMAPHORE),
    Expected(
        "ThreadPoolExecutorTest.test_executor_map_current_future_cancel",
        _LAZY,
        "lazy: expects the repr of a text, and that of a proxy does not resolve it",
    ),
)
