"""``${NAME}`` in texts: what only the environment of the process knows. And what is not shown.

A reference is replaced when something is built, not before: configurations are shown, compared and
carried with the reference in them. ``$${NAME}`` is the text ``${NAME}``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

__all__ = [
    "HIDDEN",
    "expanded",
    "expanded_url",
    "has_reference",
    "left_out",
    "masked",
    "masked_by_place",
    "masked_url",
    "masked_urls",
    "unset",
]

HIDDEN = "***"
"""Stands for a secret that is not shown."""

_REFERENCE = re.compile(r"\$(\$?)\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET = re.compile(
    r"passw(?:or)?d|passphrase|"
    r"(?:^|[_.-])(?:(?:pass|pwd|secret|token|credential)s?(?:$|[_.-])|"
    r"(?:api|access|account|auth|private)[_-]?keys?(?:$|[_.-])|(?:auth|authorization|cookie)$)",
    re.IGNORECASE,
)
# A number of such a name: not max_tokens, nor token_ttl.
_SECRET_NUMBER = re.compile(
    "(?:pass|passw(?:or)?d|passphrase|pwd|secret|token|key)$", re.IGNORECASE
)
_URL = re.compile(r"(?<!\S)\S*://\S*")
_SECRET_IN_QUERY = re.compile("pass|pwd|secret|token|cred|key|sig|auth", re.IGNORECASE)
_HIDDEN_IN_URL = re.compile(r":\*\*\*@|=\*\*\*(?:&|$)")


def has_reference(text: str) -> bool:
    """Tell whether a text has a reference in it.

    Raises:
        ValueError: it has something in it that looks like one and is none.
    """
    found = False
    for escaped, name in _REFERENCE.findall(text):
        if not escaped:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"${{{name}}} is no reference to a variable of the environment; write ${{NAME}}"
                    ", or $${...} for the text itself"
                )
            found = True
    return found


def unset(text: str) -> list[str]:
    """Return the names of variables that a text refers to and that are not set."""
    names = [name for escaped, name in _REFERENCE.findall(text) if not escaped]
    return [name for name in dict.fromkeys(names) if name not in os.environ]


def expanded(text: str) -> str:
    """Return a text with the values of its references in their place.

    Raises:
        ValueError: a variable is not set.
    """
    return _REFERENCE.sub(lambda found: _value(found, raw=True), text)


def expanded_url(url: str) -> str:
    """Return a URL with the values of its references in their place.

    A value that is a part of the URL, a password for one, is percent-encoded there.

    Raises:
        ValueError: a variable is not set.
    """
    whole = _REFERENCE.fullmatch(url) is not None
    return _REFERENCE.sub(lambda found: _value(found, raw=whole), url)


def masked(value: Any, name: str = "", *, is_secret: bool = False) -> Any:
    """Return a value of JSON without what may be a secret: passwords in URLs, and by name.

    References are no secrets, and stay.

    Args:
        value: of JSON.
        name: what it is called.
        is_secret: whatever it is called: it is in something that is called so.
    """
    is_secret = is_secret or _SECRET.search(_CAPITAL.sub("_", name)) is not None
    if isinstance(value, dict):
        return _masked_mapping(value, is_secret)
    if isinstance(value, (list, tuple)):
        return [masked(one, name, is_secret=is_secret) for one in value]
    if isinstance(value, str):
        hides = is_secret and value and not _is_reference(value)
        return HIDDEN if hides else masked_url(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return HIDDEN if is_secret and is_number and _SECRET_NUMBER.search(name) else value


def _masked_mapping(value: dict[Any, Any], is_secret: bool) -> dict[Any, Any]:
    call = value.get("$call")
    if not isinstance(call, str):
        is_secret = is_secret and "$name" not in value
        return {key: masked(one, str(key), is_secret=is_secret) for key, one in value.items()}
    # What a call is given by name is not all secret because of what it returns.
    shown = {key: masked(one, str(key)) for key, one in value.items()}
    if isinstance(value.get("args"), (list, tuple)):
        shown["args"] = masked_by_place(call, value["args"], is_secret=is_secret)
    return shown


def masked_by_place(call: str, args: Sequence[Any], *, is_secret: bool = False) -> list[Any]:
    """Return arguments of a call without what may be a secret, by the names that they have there.

    Args:
        call: the name of what is called.
        args: by place.
        is_secret: all of them are, by the name of what the call returns.
    """
    from proxyexec._config_signature import names_by_place  # noqa: PLC0415 - which needs this one

    names = names_by_place(call, len(args))
    return [masked(one, name, is_secret=is_secret) for name, one in zip(names, args, strict=True)]


def masked_url(url: str) -> str:
    """Return a URL without its password, and without what its query calls a secret."""
    start, mark, rest = url.partition("://")
    if not mark:
        return url
    # A password that was not encoded may have any character in it.
    login, at, rest = rest.rpartition("@")
    user, colon, password = login.partition(":")
    if colon and not _is_reference(password):
        login = f"{user}:{HIDDEN}"
    place, asks, query = rest.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    shown = "&".join(
        f"{name}={HIDDEN}"
        if equals and _SECRET_IN_QUERY.search(name) and not _is_reference(value)
        else f"{name}{equals}{value}"
        for name, equals, value in pairs
    )
    return f"{start}{mark}{login}{at}{place}{asks}{shown}"


def masked_urls(text: str) -> str:
    """Return a message without the passwords of the URLs that it quotes."""
    return _URL.sub(lambda found: masked_url(found[0]), text)


def left_out(value: Any, name: str = "") -> str | None:
    """Return how a secret is called that was left out when the value was shown, if one was."""
    if isinstance(value, dict):
        found = [left_out(one, str(key)) for key, one in value.items()]
    elif isinstance(value, (list, tuple)):
        found = [left_out(one, name) for one in value]
    elif isinstance(value, str):
        if value == HIDDEN:
            return repr(name) if name else "a secret"
        url = "://" in value and _HIDDEN_IN_URL.search(value) is not None
        return "the password of a URL" if url else None
    else:
        return None
    return next((one for one in found if one is not None), None)


def _is_reference(text: str) -> bool:
    found = _REFERENCE.fullmatch(text)
    return found is not None and not found.group(1)


def _value(found: re.Match[str], *, raw: bool) -> str:
    escaped, name = found.groups()
    if escaped:
        return f"${{{name}}}"
    value = os.environ.get(name)
    if value is None:
        raise ValueError(f"the environment variable {name} is not set, which ${{{name}}} names")
    return value if raw else quote(value, safe="")
