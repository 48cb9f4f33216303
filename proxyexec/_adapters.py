"""What has to be known of a base executor, found out from the outside."""

from __future__ import annotations

import sys
from collections.abc import Callable

# Now, and not when they are used: programs may put other pools in place of these.
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from proxyexec._engines import foreign
from proxyexec._lent import Lent, lent
from proxyexec._tasks import Tasks
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from proxyexec._future import TaskFuture

__all__ = ["Base", "adapt", "forget_pending"]


class Base(NamedTuple):
    """A base executor, and what it does to what it is given."""

    executor: Any
    crosses: bool
    """Whether tasks leave this process (or interpreter), so that they have to be pickled."""
    main: Literal["reference", "value"]
    """How functions of ``__main__`` reach the workers."""
    like_pools: bool = False
    """Whether it pickles as the pools of multiprocessing do."""
    options: frozenset[str] = frozenset()
    """Names of keyword arguments that are its own; it has a method ``with_options`` then."""
    is_local: bool = True
    """Whether its workers are on this machine, as far as one can tell."""
    link: Callable[[TaskFuture[Any]], Any] | None = None
    """Returns what a call is to be given in place of a future, if the executor can wait for it."""


def adapt(executor: Any) -> Base:
    """Look at a base executor.

    Raises:
        TypeError: it is not one; the message says what it lacks.
    """
    if isinstance(executor, Lent):
        base = adapt(executor.executor)
        return base._replace(executor=lent(base.executor, executor.end))
    distributed = sys.modules.get("distributed")
    if distributed is not None and isinstance(
        executor, (distributed.Client, distributed.cfexecutor.ClientExecutor)
    ):
        # Only now: it takes a library that most programs do without.
        from proxyexec._dask import OPTIONS, DaskClientExecutor, DaskExecutor  # noqa: PLC0415

        is_client = isinstance(executor, distributed.Client)
        cluster = DaskExecutor(executor) if is_client else DaskClientExecutor(executor)
        return Base(
            cluster,
            crosses=True,
            main="value",
            options=OPTIONS,
            is_local=cluster.is_local,
            link=cluster.link,
        )
    commands = sys.modules.get("proxyexec._command_executor")
    if commands is not None and isinstance(executor, commands.CommandExecutor):
        # A program of its own has another __main__.
        return Base(executor, crosses=True, main="value")
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"{executor!r} is not an executor: it needs a method submit(fn, /, *args, **kwargs) "
            "that returns a future, as concurrent.futures.Executor has"
        )
    if isinstance(executor, ThreadPoolExecutor):
        # 3.14's pool of interpreters is one of threads, and pickles.
        crosses = name_of(type(executor)).endswith("InterpreterPoolExecutor")
        return Base(executor, crosses, "value" if crosses else "reference")
    if isinstance(executor, ProcessPoolExecutor):
        return Base(executor, crosses=True, main=_main_in_workers(executor), like_pools=True)
    if isinstance(getattr(executor, "_tasks", None), Tasks):  # one of ours
        return Base(executor, crosses=True, main="value")
    return Base(foreign(executor), crosses=True, main="value")


def forget_pending(executor: Any) -> None:
    """Have a pool that was shut down, its pending tasks cancelled, keep no futures.

    When it cancels, the standard library's pool of processes takes to a new table of tasks, and
    keeps the old one for as long as it is kept itself. The futures in there hold results.
    """
    if isinstance(executor, ProcessPoolExecutor):
        executor._pending_work_items = {}  # pyright: ignore[reportAttributeAccessIssue]


def _main_in_workers(
    executor: ProcessPoolExecutor,
) -> Literal["reference", "value"]:
    """By reference where a worker's ``__main__`` has what ours has, as far as one can tell.

    A forked worker's is a copy of ours. Others import ours again, unless it came from nowhere
    that can be imported (an interactive session, ``python -c``).
    """
    context = executor._mp_context
    if context is not None and context.get_start_method() == "fork":
        return "reference"
    main = sys.modules["__main__"]
    importable = getattr(main, "__spec__", None) or getattr(main, "__file__", None)
    return "reference" if importable else "value"
