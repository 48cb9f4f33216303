"""Proxies: objects that stand for others, which are fetched when they are first used.

``Proxy`` forwards operations with :class:`wrapt.BaseObjectProxy`, in C. Ours are the reference
that it carries, pickling, the lease, and the set of special methods: there is one subclass for
each set of special methods that a target's type has, so that ``callable(p)``, ``iter(p)``,
``hash(p)`` and ``isinstance(p, Iterable)`` answer as for the target.

A :class:`Reference` says where an object is and what it is like; its store fetches it.
This module moves no data and decides nothing about lifetimes: proxies only hold leases.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from wrapt import BaseObjectProxy

from proxyexec._types import find_type, namespace_for, special_methods
from proxyexec.errors import NotAProxyError, name_of

if TYPE_CHECKING:
    from proxyexec._ownership import Lease
    from proxyexec._store import Store

__all__ = [
    "Proxy",
    "Reference",
    "clone",
    "disown",
    "extract",
    "is_proxy",
    "is_resolved",
    "own",
    "reference_of",
    "resolve",
]

T = TypeVar("T")


class Reference(NamedTuple):
    """Where an object is stored, and what it is: enough to make a proxy of it anywhere.

    A reference names its store by an address without password. A process can follow it when it
    has opened that store, was handed it by an executor, or needs no password to open it.
    """

    address: str
    """The session that holds it, as :attr:`Connector.address` gives it."""
    key: str
    """Its key in that session."""
    type_name: str
    """``module:qualname`` of the object's type."""
    size: int
    """Its serialized size in bytes."""
    methods: tuple[str, ...] = ()
    """Special methods of the type, where it cannot be imported by its name."""


class Proxy(BaseObjectProxy[Any]):
    """Stands for a stored object; resolved when it is first used.

    Proxies come from executors, :meth:`Store.proxy` and unpickling. What one can do to them is
    the same as to their target; what one can ask of them are free functions: :func:`is_proxy`,
    :func:`is_resolved`, :func:`resolve`, :func:`extract`, :func:`reference_of`, :func:`own`,
    :func:`disown`, :func:`clone`.
    """

    def __init__(self, reference: Reference, lease: Lease | None) -> None:
        # Not BaseObjectProxy's: there is no target yet. wrapt keeps _self_… on the proxy.
        self._self_reference = reference
        self._self_lease = lease

    def __wrapped_factory__(self) -> Any:
        """Tell wrapt that the target is made when it is needed (it then calls the next one)."""

    def __wrapped_get__(self) -> Any:
        target = _home(self._self_reference).get(self._self_reference)
        # Two threads may get here at once: all of them use the first one's object.
        return self.__self_dict__.setdefault("_self_target", target)

    def __wrapped_setattr_fixups__(self) -> None:
        """Keep wrapt from asking the target for this."""

    @property
    def __object_proxy__(self) -> Callable[[T], T]:  # type: ignore[override]
        """What wrapt wraps the result of ``p += x`` in when targets are immutable: nothing."""
        return _itself

    @property
    def __class__(self) -> Any:
        if not is_resolved(self):
            kind = find_type(self._self_reference.type_name)
            if kind is not None:
                return kind
        return self.__wrapped__.__class__

    @__class__.setter
    def __class__(self, value: Any) -> None:
        self.__wrapped__.__class__ = value

    def __repr__(self) -> str:
        if is_resolved(self):
            return repr(self.__wrapped__)
        reference = self._self_reference
        kind = reference.type_name.replace(":", ".").removeprefix("builtins.")
        return f"<Proxy of {kind}, {reference.size} bytes, not resolved>"

    def __copy__(self) -> Any:
        return copy.copy(self.__wrapped__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        embedded = getattr(_serializing, "embedded", None)
        if embedded is not None:
            if is_resolved(self):
                # A task may have changed it: what is passed on is what it is now.
                return _itself, (self.__wrapped__,)
            embedded.append(self)
        return make_proxy, (self._self_reference,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__reduce_ex__(2)


def is_proxy(obj: object) -> bool:
    """Tell whether ``obj`` is a proxy, without resolving it."""
    return issubclass(type(obj), Proxy)


def is_resolved(proxy: Any) -> bool:
    """Tell whether a proxy's target has been fetched."""
    return "_self_target" in _proxy(proxy).__self_dict__


def resolve(proxy: Any) -> None:
    """Fetch a proxy's target now, if that has not happened yet.

    Raises:
        ObjectMissingError: the object was evicted.
    """
    _ = _proxy(proxy).__wrapped__


def extract(proxy: T) -> T:
    """Return the target itself, for code that looks at types with ``type(x) is`` or in C.

    Anything else than a proxy is returned as it is.
    """
    return cast("T", proxy.__wrapped__) if isinstance(proxy, Proxy) else proxy


def reference_of(proxy: Any) -> Reference:
    """Return the reference that a proxy carries."""
    return _proxy(proxy)._self_reference


def own(proxy: T) -> T:
    """Make a proxy keep its object alive again after :func:`disown`; return the proxy.

    Raises:
        ValueError: this process does not own the store.
    """
    one = _proxy(proxy)
    if one._self_lease is None:
        one._self_lease = _home(one._self_reference).take(one._self_reference.key)
    return proxy


def disown(proxy: T) -> T:
    """Let go of a proxy's object without evicting it; return the proxy.

    When nothing else owns it, the object stays until it is evicted by hand or its store is
    closed.
    """
    one = _proxy(proxy)
    lease, one._self_lease = one._self_lease, None
    if lease is not None:
        lease.forget()
    return proxy


def clone(proxy: T) -> T:
    """Return another proxy of the same object, unresolved, which keeps it alive on its own."""
    return cast("T", make_proxy(_proxy(proxy)._self_reference))


def make_proxy(reference: Reference, lease: Lease | None = None) -> Proxy:
    """Return a proxy for ``reference``; without a lease given, it joins the one that lives."""
    if lease is None:
        lease = _home(reference).join(reference.key)
    return _class_for(reference.type_name, reference.methods)(reference, lease)


@contextmanager
def embedding() -> Iterator[list[Proxy]]:
    """Collect the unresolved proxies inside what this thread serializes.

    Within, resolved proxies are pickled as the values that they have become.
    """
    outer = getattr(_serializing, "embedded", None)
    _serializing.embedded = found = cast("list[Proxy]", [])
    try:
        yield found
    finally:
        _serializing.embedded = outer


def lease_of(proxy: Proxy) -> Lease | None:
    """Return the lease that a proxy holds, if it holds one."""
    return proxy._self_lease


_serializing = threading.local()


def _itself(obj: T) -> T:
    return obj


def _proxy(obj: Any) -> Proxy:
    if not is_proxy(obj):
        raise NotAProxyError(name_of(type(obj)))
    return cast("Proxy", obj)


def _home(reference: Reference) -> Store:
    # Stores make proxies, and proxies find their store only when they need it.
    from proxyexec._store import store_at  # noqa: PLC0415

    return store_at(reference.address)


@functools.lru_cache(maxsize=1024)
def _class_for(type_name: str, methods: tuple[str, ...]) -> type[Proxy]:
    kind = find_type(type_name)
    names = methods if kind is None else special_methods(kind)
    return _class_with(names)


@functools.cache
def _class_with(methods: tuple[str, ...]) -> type[Proxy]:
    return type("Proxy", (Proxy,), {"__module__": __name__, **namespace_for(methods, extract)})
