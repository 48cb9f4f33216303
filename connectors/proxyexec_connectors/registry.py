"""From URLs to connectors, imported when they are used.

Built in are ``memory``, ``file``, ``redis``, ``rediss`` and ``unix`` (Redis over a unix
socket); other distributions add schemes with an entry point in the group
``proxyexec.connectors`` that names a class following the connector protocol.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from proxyexec_connectors.errors import MissingExtraError, UnknownSchemeError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector

__all__ = ["attach", "connect"]

_GROUP = "proxyexec.connectors"

_BUILT_IN = {
    "file": ("proxyexec_connectors.file", "FileConnector", None),
    "memory": ("proxyexec_connectors.memory", "MemoryConnector", None),
    "redis": ("proxyexec_connectors.redis", "RedisConnector", "redis"),
    "rediss": ("proxyexec_connectors.redis", "RedisConnector", "redis"),
    "unix": ("proxyexec_connectors.redis", "RedisConnector", "redis"),
}


def connect(url: str) -> Connector:
    """Open a new session in the place that ``url`` names.

    Raises:
        UnknownSchemeError: no connector is known for the URL's scheme.
        MissingExtraError: the connector's library is not installed.
    """
    return _connector_class(url).from_url(url)


def attach(address: str) -> Connector:
    """Open the session that a connector's ``address`` names, without owning it.

    Raises what :func:`connect` does.
    """
    return _connector_class(address).attach(address)


def _connector_class(url: str) -> type[Connector]:
    scheme = urlsplit(url).scheme
    if scheme in _BUILT_IN:
        module, name, extra = _BUILT_IN[scheme]
        try:
            return cast("type[Connector]", getattr(import_module(module), name))
        except ModuleNotFoundError as missing:
            if extra is None:
                raise
            raise MissingExtraError(f"a {scheme}:// store", extra) from missing
    installed = entry_points(group=_GROUP)
    for point in installed:
        if point.name == scheme:
            return cast("type[Connector]", point.load())
    known = sorted({*_BUILT_IN, *(point.name for point in installed)})
    raise UnknownSchemeError(_without_password(url), tuple(known))


def _without_password(url: str) -> str:
    """``url`` with a password in it starred out, whatever its scheme."""
    head, found, tail = url.rpartition("@")
    if not found or ":" not in head.split("//", 1)[-1]:
        return url
    return f"{head[: head.rindex(':')]}:***@{tail}"
