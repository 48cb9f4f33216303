"""From URLs to connectors, imported when they are used.

Built in are ``memory``, ``file``, ``redis``, ``rediss`` and ``unix`` (Redis over a unix
socket); other distributions add schemes with an entry point in the group
``proxyexec.connectors`` that names a class following the connector protocol.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from proxyexec_connectors.errors import MissingExtraError, UnknownSchemeError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector

__all__ = ["attach", "connect", "connector_class", "without_password"]

_GROUP = "proxyexec.connectors"

_SCHEME = re.compile(r"(?:[^/:@]*:)?//").match

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
        ValueError: the URL cannot be read.
    """
    return connector_class(url).from_url(url)


def attach(address: str) -> Connector:
    """Open the session that a connector's ``address`` names, without owning it.

    Raises what :func:`connect` does.
    """
    return connector_class(address).attach(address)


def connector_class(url: str) -> type[Connector]:
    """Return the class of connectors for a URL; raises what :func:`connect` does."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        # Not chained: the message may quote the password.
        raise ValueError(f"this {url.partition(':')[0]}:// URL could not be read") from None
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
    raise UnknownSchemeError(without_password(url), tuple(known))


def without_password(url: str) -> str:
    """Return ``url`` with what may be a password in it starred out, whatever its scheme."""
    # A password may hold any character, if it was not written as a URL wants it. So it ends at the
    # last of these; or, in a query, with the URL.
    login, found, rest = url.rpartition("@")
    scheme = _SCHEME(login)
    start = scheme.end() if scheme else 0
    user = re.split("[:?]", login[start:], maxsplit=1)[0]
    if "?" in login:
        return f"{login[:start]}{user}***"
    rest, has_query, _ = rest.partition("?")
    password = ":***" if ":" in login[start:] else ""
    return f"{login[:start]}{user}{password}{found}{rest}{'?***' if has_query else ''}"
