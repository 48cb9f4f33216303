"""Run CPython's own tests of ``concurrent.futures`` against our executors.

They come from the ``test`` package of the interpreter that runs this, which some installations
leave out. Nothing is patched by importing this module: spawned workers import it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import multiprocessing
import pkgutil
import sys
import threading
import time
import unittest
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from tests.stdlib.expected import EXPECTED_FAILURES
from tests.stdlib.patches import patched

SUITE = "test.test_concurrent_futures"

# By configuration, the module with the executors to test.
EXECUTORS = {
    "stdlib": "concurrent.futures",
    "dropin": "proxyexec",
    "always": "tests.stdlib.always",
    "always-eager": "tests.stdlib.eager",
}

# The exit status of a test program that has nothing to test, with automake and others.
NO_SUITE = 77

# What takes longer hangs: no test, and nothing between two tests, takes 20 seconds.
HANGS_AFTER_S = 120

# What a test started and did not wait for ends by itself, and soon.
ENDS_WITHIN_S = 10


class Tally(NamedTuple):
    """What came of the tests in one configuration."""

    configuration: str
    run: int
    passed: int
    failed: int
    expected: int
    skipped: int
    seconds: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = _options(arguments)
    try:
        modules = _import_suite()
    except ImportError as error:
        print(f"Nothing was run: {sys.executable} comes without {SUITE} ({error}).")
        return NO_SUITE
    tallies = [_run(modules, configuration, options) for configuration in options.config]
    print("\n" + "".join(f"{name:>14}" for name in Tally._fields))
    for tally in tallies:
        print("".join(f"{value:>14}" for value in tally))
    return 1 if any(tally.failed for tally in tallies) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stdlib.run",
        description="Run CPython's own tests of concurrent.futures against our executors.",
        epilog="Example: python -m tests.stdlib.run --config dropin -k Fork test_shutdown",
    )
    parser.add_argument("modules", nargs="*", help="modules of the suite; all by default")
    parser.add_argument(
        "--config",
        nargs="+",
        choices=list(EXECUTORS),
        default=["dropin", "always", "always-eager"],
        help="which executors: our drop-in pools, or a StoreExecutor that stores everything "
        "around the standard library's pools, lazy or not; these three by default. With stdlib, "
        "the standard library's own, to see what fails without us",
    )
    parser.add_argument(
        "-k",
        dest="patterns",
        action="append",
        metavar="PATTERN",
        help="only tests whose names contain this or match it, as with unittest; may be repeated",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="name each test")
    return parser.parse_args(arguments)


def _import_suite() -> list[ModuleType]:
    suite = importlib.import_module(SUITE)
    if not hasattr(suite, "__path__"):  # one module, up to Python 3.11
        return [suite]
    names = [found.name for found in pkgutil.iter_modules(suite.__path__)]
    return [importlib.import_module(f"{SUITE}.{name}") for name in names]


def _run(modules: Sequence[ModuleType], configuration: str, options: argparse.Namespace) -> Tally:
    print(f"\n{configuration}: {EXECUTORS[configuration]}", flush=True)
    sys.modules["test.support"].verbose = options.verbose
    began = time.monotonic()
    with patched(modules, EXECUTORS[configuration]):
        tests = list(_load(modules, options))
        stale = _expect_failures(tests, configuration)
        verbosity = 2 if options.verbose else 1
        runner = unittest.TextTestRunner(sys.stdout, verbosity=verbosity, resultclass=_Result)
        result: Any = runner.run(unittest.TestSuite(tests))
    if options.modules or options.patterns:
        stale = []
    for test in stale:
        print(f"ERROR: no test is called {test}, of which a failure is expected")
    failures = [*result.failures, *result.errors, *result.unexpectedSuccesses, *stale]
    return Tally(
        configuration,
        result.testsRun,
        result.passed,
        len(failures),
        len(result.expectedFailures),
        len(result.skipped),
        round(time.monotonic() - began),
    )


def _load(
    modules: Sequence[ModuleType], options: argparse.Namespace
) -> Iterator[unittest.TestCase]:
    loader = unittest.TestLoader()
    loader.testNamePatterns = options.patterns and [
        pattern if "*" in pattern else f"*{pattern}*" for pattern in options.patterns
    ]
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        if name.startswith("test_") and name in (options.modules or [name]):
            for tests in loader.loadTestsFromModule(module):
                yield from tests


def _expect_failures(tests: Sequence[unittest.TestCase], configuration: str) -> list[str]:
    """Mark the tests that are expected to fail; return the names of those that there are not."""
    stale = []
    for expected in EXPECTED_FAILURES:
        matching = [test for test in tests if expected.matches(_name(test), configuration)]
        for test in matching:
            test.__unittest_expecting_failure__ = True
        if not matching and configuration in expected.configurations:
            stale.append(expected.test)
    return stale


def _name(test: unittest.TestCase) -> str:
    return f"{type(test).__name__}.{test._testMethodName}"


class _Result(unittest.TextTestResult):
    """Counts what passed, ends a run that hangs, and fails what leaves workers behind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passed = self._passed_before = 0
        self._running_before: list[Any] = []

    def startTest(self, test: unittest.TestCase) -> None:
        _watch()
        self._passed_before = self.passed
        self._running_before = [*threading.enumerate(), *multiprocessing.active_children()]
        super().startTest(test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        started = [*threading.enumerate(), *multiprocessing.active_children()]
        for one in started:
            if one not in self._running_before:
                one.join(ENDS_WITHIN_S)
        left = [one for one in started if one.is_alive() and one not in self._running_before]
        if left:
            self.addFailure(test, (AssertionError, AssertionError(f"left behind: {left}"), None))
            return
        self.passed += 1
        super().addSuccess(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        if self.passed == self._passed_before:
            # Workers of an executor that a failure left behind; clearing up would wait for them.
            for process in multiprocessing.active_children():
                process.kill()
        _watch()  # what follows: clearing up behind a class or module

    def stopTestRun(self) -> None:
        super().stopTestRun()
        faulthandler.cancel_dump_traceback_later()


def _watch() -> None:
    """End this process, with the tracebacks of all threads, unless called again in time."""
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)


if __name__ == "__main__":
    sys.exit(main())
