"""What executors have to keep to, with a task group: what a program computes is the same."""

from __future__ import annotations

import concurrent.futures
import itertools

import pytest

import proxyexec.testing
from proxyexec import ProxySize, StoreExecutor
from proxyexec.testing import ExecutorConformance

_numbers = itertools.count()


@pytest.fixture(scope="class", autouse=True)
def in_groups():
    """Have the suite's executors use a new group each."""

    def around(base, place, **options):
        options = {"should_proxy": ProxySize(proxyexec.testing._STORED_FROM), **options}
        group = f"g{next(_numbers)}"
        return StoreExecutor(base, (place / "groups").as_uri(), task_group=group, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxyexec.testing, "_around", around)
        # What is written down stays.
        patch.setattr(proxyexec.testing, "_stores_nothing", lambda executor: True)
        patch.setattr(proxyexec.testing, "_is_empty", lambda place: True)
        yield


class InGroups(ExecutorConformance):
    # What is written down is in the store, with or without a policy, and belongs to the group.
    test_results_that_nobody_owns = None
    test_without_a_policy = None


class TestThreads(InGroups):
    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        return lambda: concurrent.futures.ThreadPoolExecutor(2)


class TestProcesses(InGroups):
    runs_main = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls):
        return lambda: concurrent.futures.ProcessPoolExecutor(2)
