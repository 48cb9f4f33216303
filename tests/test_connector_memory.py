"""The memory connector against the suite, and what only it promises."""

from __future__ import annotations

import gc
import weakref

import pytest

from proxyexec_connectors import attach
from proxyexec_connectors.errors import ConnectorClosedError
from proxyexec_connectors.memory import MemoryConnector
from proxyexec_connectors.testing import ConnectorSuite


class TestMemoryConnector(ConnectorSuite):
    crosses_processes = False

    @pytest.fixture
    def another(self):
        opened = []

        def another():
            opened.append(MemoryConnector())
            return opened[-1]

        yield another
        for connector in opened:
            connector.close()

    @pytest.fixture
    def connector(self, another):
        return another()


def test_attaching_here_gives_the_sessions_own_connector():
    connector = MemoryConnector()
    assert attach(connector.address) is connector


def test_frames_come_back_read_only():
    connector = MemoryConnector()
    connector.put("key", [bytearray(b"x")])
    assert connector.get("key")[0].readonly


def test_a_dropped_connector_takes_its_objects_along():
    connector = MemoryConnector()
    connector.put("key", [b"x"])
    address, dropped = connector.address, weakref.ref(connector)
    del connector
    gc.collect()
    assert dropped() is None
    with pytest.raises(ConnectorClosedError):
        attach(address).get("key")


def test_every_memory_url_is_this_process():
    assert MemoryConnector.from_url("memory://").url == MemoryConnector().url == "memory://"
