"""A plugin of pytest that puts our pools in place of the standard library's.

It is loaded by name before anything of the project under test is imported, in the process that
runs the tests; workers have the pools they are born with. ``PROXYEXEC_IN_PLACE`` says which
pools to use:

``raw``
    the standard library's.
``ours``
    ``proxyexec``'s, as they are.
``stored``
    the same, with each argument and result in the store, however small.

What came of the tests, and what the pools did, goes as JSON into the file that
``PROXYEXEC_REPORT`` names.
"""

from __future__ import annotations

import collections
import concurrent.futures.process
import concurrent.futures.thread
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proxyexec
import proxyexec.pools
import pytest
from proxyexec_connectors.file import FileConnector

MODE = os.environ["PROXYEXEC_IN_PLACE"]
REPORT = Path(os.environ["PROXYEXEC_REPORT"])

counts: collections.Counter[str] = collections.Counter()
addresses: set[str] = set()
outcomes: dict[str, str] = {}
failures: dict[str, str] = {}


def count(owner: type, method: str, name: str, note: Callable[[Any], None] | None = None) -> None:
    """Count the calls of a method that return, and note something of the object."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        counts[name] += 1
        if note is not None:
            note(self)
        return result

    setattr(owner, method, counted)


def note_address(connector: FileConnector) -> None:
    addresses.add(connector.address)


def put_in_place() -> None:
    """Replace the pools, and count what becomes of them."""
    count(concurrent.futures.process.ProcessPoolExecutor, "submit", "tasks")
    if MODE == "raw":
        count(concurrent.futures.process.ProcessPoolExecutor, "__init__", "pools")
        return
    count(proxyexec.ProcessPoolExecutor, "__init__", "pools")
    count(FileConnector, "__init__", "sessions", note_address)
    count(FileConnector, "put", "stored")
    count(FileConnector, "get", "fetched")
    if MODE == "stored":
        assert proxyexec.pools.STORED_FROM > 1
        proxyexec.pools.STORED_FROM = 1
    for name in ("ProcessPoolExecutor", "ThreadPoolExecutor"):
        ours = getattr(proxyexec, name)
        setattr(concurrent.futures, name, ours)
    concurrent.futures.process.ProcessPoolExecutor = proxyexec.ProcessPoolExecutor
    concurrent.futures.thread.ThreadPoolExecutor = proxyexec.ThreadPoolExecutor


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst that came of a test's phases and parts."""
    if report.failed:
        outcomes[report.nodeid] = "failed"
        failures.setdefault(report.nodeid, report.longreprtext)
    elif report.when == "call" or report.skipped:
        outcomes.setdefault(report.nodeid, report.outcome)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        failures[report.nodeid] = report.longreprtext


def pytest_sessionfinish() -> None:
    found = {
        "outcomes": outcomes,
        "failures": failures,
        "counts": counts,
        "addresses": sorted(addresses),
    }
    REPORT.write_text(json.dumps(found), encoding="utf-8")


put_in_place()
