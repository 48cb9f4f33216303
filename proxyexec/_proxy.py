"""Proxies: objects that stand for others, which are fetched when they are first used.

``Proxy`` forwards operations with :class:`wrapt.BaseObjectProxy`, in C. Ours are the reference
that it carries, pickling, the lease, and the set of special methods: there is one subclass for
each set of traits (see ``_types``) that targets have, so that ``callable(p)``, ``iter(p)``,
``hash(p)`` and ``isinstance(p, Iterable)`` answer as for the target.

A :class:`Reference` says where an object is and what it is like; its store fetches it.
This module moves no data and decides nothing about lifetimes: proxies only hold leases.
"""

from __future__ import annotations

import copy
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from wrapt import BaseObjectProxy

from proxyexec._types import find_type, namespace_for, patterns_of
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
    was handed that store, by an executor or otherwise; or when it takes neither a password to open
    it nor, as there is no digest, a secret to verify the object.
    """

    address: str
    """The session that holds it, as :attr:`Connector.address` gives it."""
    key: str
    """Its key in that session."""
    type_name: str
    """``module:qualname`` of the object's type, or ``module.qualname`` if that does not find it."""
    size: int
    """Its serialized size in bytes."""
    methods: int = 0
    """Which special methods its type has, as bits."""
    digest: bytes = b""
    """A keyed digest of what was stored, where the store has integrity; empty where not."""


class _OfBoth(str):
    """An attribute that is text for a class, and the target's for an instance."""

    __slots__ = ("_name",)
    _name: str

    def __new__(cls, name: str, text: str | None) -> _OfBoth:
        self = super().__new__(cls, text or "")
        self._name = name
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # in a pickled class's name

    def __get__(self, proxy: Any, owner: type | None = None) -> Any:
        return str(self) if proxy is None else getattr(proxy.__wrapped__, self._name)


class Proxy(BaseObjectProxy[Any]):
    """Stands for a stored object; resolved when it is first used.

    Proxies come from executors, :meth:`Store.proxy` and unpickling. What one can do to them is
    the same as to their target; what one can ask of them are free functions: :func:`is_proxy`,
    :func:`is_resolved`, :func:`resolve`, :func:`extract`, :func:`reference_of`, :func:`own`,
    :func:`disown`, :func:`clone`.
    """

    _self_reference: Reference
    _self_lease: Lease | None = None

    def __init__(self, reference: Reference, lease: Lease | None) -> None:
        # Not BaseObjectProxy's: there is no target yet. wrapt keeps _self_… on the proxy.
        self._self_reference = reference
        if lease is not None:
            self._self_lease = lease

    def __wrapped_factory__(self) -> Any:
        """Tell wrapt that the target is made when it is needed (it then calls the next one)."""

    def __wrapped_get__(self) -> Any:
        reference = self._self_reference
        try:
            target = _home(reference).get(reference)
        except AttributeError as error:
            # Python would take it for the proxy's lack of an attribute, and try again.
            raise RuntimeError(f"fetching the target of {self!r} failed: {error}") from error
        # Two threads may get here at once. All of them use the first one's object: setdefault
        # is atomic, with a GIL and without; and then all of them tell wrapt the same.
        return _own_dict(self).setdefault("_self_target", target)

    def __wrapped_setattr_fixups__(self) -> None:
        """Keep wrapt from asking the target for this."""

    # With object's own method in place of wrapt's, a miss raises nothing (from Python 3.12 on),
    # and attributes of the target cost a quarter.
    __getattribute__ = object.__getattribute__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    __module__ = cast("str", _OfBoth("__module__", __name__))
    __doc__ = cast("str", _OfBoth("__doc__", __doc__))

    @property
    def __class__(self) -> Any:
        if "_self_target" not in _own_dict(self):
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
        if is_embedding():
            if is_resolved(self):
                # A task may have changed it: what is passed on is what it is now.
                return _itself, (self.__wrapped__,)
            embed(keep(self))
        return make_proxy, (self._self_reference,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__reduce_ex__(2)


def is_proxy(obj: object) -> bool:
    """Tell whether ``obj`` is a proxy, without resolving it."""
    return issubclass(type(obj), Proxy)


def is_resolved(proxy: Any) -> bool:
    """Tell whether a proxy's target has been fetched."""
    return "_self_target" in _own_dict(_proxy(proxy))


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
    return cast("Any", proxy).__wrapped__ if is_proxy(proxy) else proxy


def reference_of(proxy: Any) -> Reference:
    """Return the reference that a proxy carries."""
    return _proxy(proxy)._self_reference


def own(proxy: T) -> T:
    """Make a proxy keep its object alive again after :func:`disown`; return the proxy.

    Raises:
        ObjectMissingError: it is gone: the last one who owned it let go of it meanwhile, say.
        StoreClosedError: the store is closed; one that an executor is to close is so when nobody
            owns anything any more.
        ValueError: this process does not own the store.
    """
    one = _proxy(proxy)
    if one._self_lease is None:
        one._self_lease = _home(one._self_reference).take_again(one._self_reference.key)
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
    return _class_for(reference.methods)(reference, lease)


class Kept(NamedTuple):
    """A stored object that somebody refers to, and what keeps it where it is."""

    reference: Reference
    lease: Lease | None
    found: bool = False
    """Whether it was there before it was to be stored."""


def keep(proxy: Proxy) -> Kept:
    """Hold the object of a proxy, if the proxy does, on a lease of its own."""
    reference, lease = proxy._self_reference, proxy._self_lease
    return Kept(reference, None if lease is None else _home(reference).join(reference.key))


class Embedded(list[Kept]):
    """What the objects that a thread serializes refer to."""

    __slots__ = ("addresses",)
    addresses: set[str]
    """Of stores that they refer to, or into; also for what is inside of parts."""


@contextmanager
def embedding() -> Iterator[Embedded]:
    """Collect what the objects that this thread serializes refer to.

    Those are unresolved proxies, and parts that are stored by themselves. Within, resolved
    proxies are pickled as the values that they have become. What was collected is let go of
    when serializing fails.
    """
    outer: Embedded | None = getattr(_serializing, "embedded", None)
    _serializing.embedded = found = Embedded()
    found.addresses = set() if outer is None else outer.addresses
    try:
        yield found
    except BaseException:
        # Not left to the collector: the caller may keep the error, hence its traceback.
        for kept in found:
            if kept.lease is not None:
                kept.lease.release()
        raise
    finally:
        _serializing.embedded = outer


def embed(kept: Kept) -> None:
    """Add to what is being collected: what is serialized refers to this."""
    embedded: Embedded = _serializing.embedded
    embedded.append(kept)
    embed_store(kept.reference.address)


def is_embedding() -> bool:
    """Tell whether what this thread serializes may be stored."""
    return getattr(_serializing, "embedded", None) is not None


def embed_store(address: str) -> None:
    """Add to what is being collected: what is serialized refers to a store, or into it."""
    embedded: Embedded = _serializing.embedded
    embedded.addresses.add(address)


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


# What proxy classes are called: under these names, pickle finds them in every process.
_CLASS = "Proxy_"


def __getattr__(name: str) -> type[Proxy]:
    try:
        if name.startswith(_CLASS):
            return _class_for(int(name.removeprefix(_CLASS), 16))
    except ValueError:
        pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _class_for(traits: int) -> type[Proxy]:
    namespace = namespace_for(traits)
    namespace["__qualname__"] = f"{_CLASS}{traits:x}"
    namespace["__module__"] = _OfBoth("__module__", __name__)
    namespace["__doc__"] = _OfBoth("__doc__", Proxy.__doc__)
    kind = type("Proxy", (Proxy,), namespace)
    for pattern in patterns_of(traits):
        pattern.register(kind)
    return kind


def _own_dict(proxy: Proxy) -> dict[str, Any]:
    """What a proxy itself has; wrapt's stubs do not know the attribute."""
    own: dict[str, Any] = proxy.__self_dict__  # pyright: ignore[reportAttributeAccessIssue]
    return own


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Proxy, other: Any) -> Any:
        target = self.__wrapped__
        result = operation(target, extract(other))
        # wrapt puts the result into the proxy, where others who have it would see a new value
        # in place of an immutable one.
        return self if result is target else result

    method.__name__ = f"__{operation.__name__}__"
    return method


for _operation in (
    operator.iadd,
    operator.iand,
    operator.ifloordiv,
    operator.ilshift,
    operator.imatmul,
    operator.imod,
    operator.imul,
    operator.ior,
    operator.ipow,
    operator.irshift,
    operator.isub,
    operator.itruediv,
    operator.ixor,
):
    setattr(Proxy, f"__{_operation.__name__}__", _in_place(_operation))
