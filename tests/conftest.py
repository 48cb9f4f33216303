"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_server import redis_server

# Before anything imports it, so that its failures say what was compared.
pytest.register_assert_rewrite("proxyexec_connectors.testing")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real server, one for the whole run."""
    with redis_server() as server:
        yield server.url
