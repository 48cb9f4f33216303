"""Our executors in place of the standard library's, wherever the tests look those up.

That is: in the name ``futures`` of each module, in the ``executor_type`` of each mixin, and in the
scripts that some tests run in a new interpreter. ``concurrent.futures`` itself stays as it is: our
executors are built on it. Tests of futures alone get those that our executors return.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from proxyexec._future import TaskFuture

__all__ = ["patched"]

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def patched(modules: Sequence[ModuleType], executors: str) -> Iterator[None]:
    """Have the tests in ``modules`` use our executors.

    Args:
        modules: test modules, and those that they share.
        executors: the name of a module with a ``ProcessPoolExecutor`` and a
            ``ThreadPoolExecutor``.
    """
    futures = _Futures(executors)
    replacements = list(_replacements(modules, futures))
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for replacement in replacements:
            setattr(*replacement)
        yield
    finally:
        for original in originals:
            setattr(*original)


class Future(TaskFuture[Any]):
    """A future of our executors, made by hand: its task's outcome is its result.

    Has the name of the one that it stands in for, which its ``repr`` shows.
    """

    class _Call:
        quota = None

        def open(self, outcome: Any) -> Any:
            return outcome

        def end(self, error: BaseException | None = None) -> None:
            pass

    _call = _Call()


class _Futures(ModuleType):
    """``concurrent.futures`` with other executors."""

    def __init__(self, executors: str) -> None:
        super().__init__(executors)
        ours = importlib.import_module(executors)
        self.ProcessPoolExecutor = ours.ProcessPoolExecutor
        self.ThreadPoolExecutor = ours.ThreadPoolExecutor
        self.Future = Future

    def __getattr__(self, name: str) -> Any:
        return getattr(concurrent.futures, name)


def _replacements(
    modules: Sequence[ModuleType], futures: _Futures
) -> Iterator[tuple[Any, str, Any]]:
    """Yield what is to be replaced: where it is, its name, and what replaces it."""
    mixins = set()
    for module in modules:
        for name, value in vars(module).items():
            if value is concurrent.futures:
                yield module, name, futures
            elif value is concurrent.futures.Future:
                yield module, name, Future
            elif type(value) is concurrent.futures.Future:  # one that several tests share
                yield value, "__class__", Future
            elif name == "assert_python_ok":
                yield module, name, _with_executors(value, futures.__name__)
            elif isinstance(value, type) and "executor_type" in vars(value):
                mixins.add(value)
    for mixin in mixins:
        yield mixin, "executor_type", getattr(futures, mixin.executor_type.__name__)


def _with_executors(assert_python_ok: Callable[..., Any], executors: str) -> Callable[..., Any]:
    """Wrap the function that runs scripts, so that these import our executors."""

    def run(*arguments: str) -> Any:
        *options, script = arguments
        theirs = "from concurrent.futures import "
        if theirs not in script:
            raise ValueError(f"a script that does not import executors as expected: {script}")
        script = script.replace(theirs, f"from {executors} import ")
        return assert_python_ok(*options, script, PYTHONPATH=str(ROOT))

    return run
