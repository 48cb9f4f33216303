"""Bytes by key: the places where proxyexec keeps objects.

Connectors know nothing of objects, proxies or executors and never import :mod:`proxyexec`.
Backends are imported from their own modules (:mod:`proxyexec_connectors.memory`,
:mod:`proxyexec_connectors.file`, :mod:`proxyexec_connectors.redis`) or opened by URL.
"""

from proxyexec_connectors.protocol import Connector, Usage
from proxyexec_connectors.registry import attach, connect

__all__ = ["Connector", "Usage", "attach", "connect"]
