"""The short form of the conformance suite, for executors that take seconds to start workers."""

from __future__ import annotations

import os

import pytest

LONG = "PROXYEXEC_LONG" in os.environ


def lazy_in_short(lazy):
    """Return the fixture of that name: in the short form of the tests, one of its two values."""

    @pytest.fixture(params=[True, False] if LONG else [lazy])
    def fixture(self, request):
        return request.param

    return fixture
