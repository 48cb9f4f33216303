"""Stores: objects by key, over a connector (where) and a serializer (how).

A store is one session of its connector: two stores in one place do not touch each other's
objects. The process that made it owns it; everywhere else, unpickling a store, or following a
reference into it, opens the same session without owning it.

A store knows nothing of executors.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import proxyexec_connectors

from proxyexec import _spans
from proxyexec._cache import FrameCache
from proxyexec._contents import Content, Contents, are_equal
from proxyexec._integrity import Seal, handed_seal, untouched, verified
from proxyexec._live import Live
from proxyexec._ownership import Lease, Leases
from proxyexec._proxy import Kept, Reference, embedding, is_proxy, make_proxy, reference_of
from proxyexec._quota import Quota
from proxyexec._record import here
from proxyexec._serialize import Candidate, PickleSerializer, Serializer, frames_size
from proxyexec._sizes import parse_size
from proxyexec._spans import NOTHING
from proxyexec._types import NEVER_PROXIED, describe
from proxyexec.errors import (
    ConnectorFullError,
    ObjectMissingError,
    StoreClosedError,
    StoreFullError,
    name_of,
)

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Connector, Frames, Usage
    from typing_extensions import Self

    from proxyexec._leaks import Leaks
    from proxyexec._spans import Tracing

__all__ = ["Store", "fetch", "is_in_memory", "leases_of", "note_all", "seal_of", "store_at"]

_log = logging.getLogger("proxyexec.store")

T = TypeVar("T")

# Marks the absence of a default, which may be None.
_RAISE: Any = object()

# Stores of other processes that this one keeps open for references that lead into them.
_ATTACHED_AT_MOST = 32


class Store:
    """Objects in one session of a connector.

    Args:
        name: a label for messages; two stores may have the same.
        connector: where objects are kept; the store closes it. One connector serves one store.
        serializer: how objects become frames; pickle protocol 5 with out-of-band buffers, then
            cloudpickle, when not given.
        cache_bytes: fetched frames to keep in this process's memory, in bytes or as ``"64 MB"``.
            Saves repeated fetches over a network; of no use with files, which are mapped.
        integrity: whether every reference carries a digest of what was stored, made with a secret
            of this store, and nothing is unpickled that does not have it. ``None`` is what
            connectors over a network get, Redis for one, and others do not.
        max_bytes: how much the store may hold, in bytes or as ``"2 GB"``; for ``None``, as much as
            there is room for. Whoever stores more waits until something has been evicted. Results
            are counted and wait for nothing, nor do those who would wait for themselves: see
            "How much is stored at most" in the documentation.
        full_timeout: seconds to wait for that; ``None`` for as long as it takes. Then storing fails
            with :class:`~proxyexec.errors.StoreFullError`, for a call through its future.

    Raises:
        ValueError: ``cache_bytes`` or ``max_bytes`` is not a size, or ``full_timeout`` is negative.
    """

    def __init__(
        self,
        name: str,
        connector: Connector,
        *,
        serializer: Serializer | None = None,
        cache_bytes: int | str = 0,
        integrity: bool | None = None,
        max_bytes: int | str | None = None,
        full_timeout: float | None = 60.0,
    ) -> None:
        if full_timeout is not None and not full_timeout >= 0:
            raise ValueError(f"full_timeout must be a number of seconds or None: {full_timeout!r}")
        quota = None
        if max_bytes is not None:
            quota = Quota(parse_size(max_bytes), full_timeout, connector.url)
        is_remote = getattr(connector, "is_remote", False)
        if is_remote if integrity is None else integrity:
            seal = Seal.new(connector.address, connector.url)
        else:
            seal = None
        serializer = serializer or PickleSerializer()
        self._set_up(name, connector, serializer, parse_size(cache_bytes), seal, quota)
        self.live: Live | None = Live()
        self._contents: Contents | None = Contents(
            untouched(connector.url, seal, connector.get), ahead=is_remote
        )
        self._leases: Leases | None = Leases(
            name, self._evictor(), self, getattr(connector, "release_idle", None)
        )
        # A store that is dropped without being closed ends its thread, which then drops the
        # connector. No joining here: the collector may be running anywhere.
        weakref.finalize(self, self._leases.post, None).atexit = False
        _log.debug("store %r: opened a session in %s", name, connector.url)

    def _set_up(
        self,
        name: str,
        connector: Connector,
        serializer: Serializer,
        cache_bytes: int,
        seal: Seal | None,
        quota: Quota | None = None,
    ) -> None:
        self.name = name
        self.connector = connector
        self.serializer = serializer
        self.address = connector.address
        self._cache = FrameCache(cache_bytes) if cache_bytes else None
        self._seal = seal
        # Where objects are not read back, nothing tells that one was lost.
        self._is_remote: bool = getattr(connector, "is_remote", False)
        self.quota = quota
        self._contents = None
        self._leases = None
        self.live = None
        self._closed = False
        # Executors that use this store; adding and taking away are atomic.
        self._users: set[int] = set()
        self._user_numbers = itertools.count()
        self._closing = False
        self._renew_keys()
        _open[self.address] = self

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        name: str | None = None,
        serializer: Serializer | None = None,
        cache_bytes: int | str = 0,
        integrity: bool | None = None,
        max_bytes: int | str | None = None,
        full_timeout: float | None = 60.0,
    ) -> Self:
        """Open a store in the place that ``url`` names: ``file:///dir``, ``redis://host``, ….

        The other arguments are the constructor's.

        Raises:
            UnknownSchemeError: no connector is known for the URL.
            MissingExtraError: the connector's library is not installed.
        """
        connector = proxyexec_connectors.connect(url)
        label = name if name is not None else connector.url
        return cls(
            label,
            connector,
            serializer=serializer,
            cache_bytes=cache_bytes,
            integrity=integrity,
            max_bytes=max_bytes,
            full_timeout=full_timeout,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        cache_bytes = self._cache.capacity if self._cache else 0
        facts = self.name, self.connector, self.serializer, cache_bytes, self._seal
        return _reopen, (type(self), *facts)

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {self.connector!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def put(self, obj: Any) -> Reference:
        """Store an object; it stays until it is evicted or the store is closed.

        Raises:
            SerializationError: the object cannot be pickled.
            StoreFullError: there is no room for it.
        """
        reference, _ = self._put(obj)
        return reference

    def get(self, reference: Reference, default: Any = _RAISE) -> Any:
        """Return a new object, equal to the one that was stored.

        Args:
            reference: what :meth:`put` or :func:`proxyexec.reference_of` returned.
            default: returned when the object is not there any more.

        Raises:
            ObjectMissingError: the object is not there, and no default was given.
            IntegrityError: what is there is not what was stored, or this process cannot tell.
        """
        tracing = _spans.active
        if tracing is not None:
            facts = self.connector.url, _checked(reference).key, reference.type_name, reference.size
            with tracing.resolve(*facts):
                return self._get(reference, default)
        return self._get(reference, default)

    def _get(self, reference: Reference, default: Any) -> Any:
        start = time.perf_counter()
        frames = self.fetch(_checked(reference))
        if frames is not None:
            arrived = time.perf_counter()
            obj = self.serializer.loads(frames)
            self._note(reference, arrived - start, time.perf_counter() - arrived)
            return obj
        if default is _RAISE:
            raise ObjectMissingError(reference.key, self.connector.url)
        return default

    def proxy(self, obj: T) -> T:
        """Store an object and return a proxy that owns it.

        When the proxy, its clones and the tasks that use it are gone, the object is evicted.
        Where this process does not own the store, the object stays until the store is closed.

        Raises:
            TypeError: singletons, classes and modules cannot be proxied usefully, nor can proxies.
            SerializationError: the object cannot be pickled.
            StoreFullError: there is no room for it.
        """
        if is_proxy(obj):
            raise TypeError("this is a proxy already; proxyexec.clone() makes another one")
        if isinstance(obj, NEVER_PROXIED):
            raise TypeError(f"{obj!r} is never proxied: programs tell it apart with 'is'")
        reference, embedded = self._put(obj)
        lease = self.take(reference.key, leases_of(embedded)) if self.is_owner else None
        if lease is not None:
            lease.note(("proxy", None, "", reference.type_name))
        self.start_evicting()
        return cast("T", make_proxy(reference, lease))

    def evict(self, *objects: Reference | Any) -> None:
        """Remove objects now, whoever still holds them.

        Args:
            objects: references or proxies. What is not there any more is passed over.
        """
        references = [reference_of(one) if is_proxy(one) else _checked(one) for one in objects]
        self.evict_keys([reference.key for reference in references])

    def usage(self) -> Usage:
        """Count what the store holds, after evicting what has been released by now."""
        self._check_open()
        if self._leases is not None:
            self._leases.flush()
            self._check_open()  # the last lease may just have been the one that closes the store
        return self.connector.usage()

    def leaks(self) -> Leaks:
        """Return what is stored now, as what, since when, and who holds it.

        Nothing is recorded for this, so it takes a moment: tasks, futures and proxies are looked
        for among all objects of this process.

        Raises:
            ValueError: the store is owned by another process.
        """
        from proxyexec._leaks import leaks_of  # noqa: PLC0415 - few ask

        return leaks_of(self)

    def close(self) -> None:
        """Close the connector. In the owning process, all objects go. Closing twice is fine."""
        was_open, self._closed = not self._closed, True
        if self.quota is not None:
            self.quota.close()
        if self._leases is not None:
            self._leases.stop()
        self.connector.close()
        if self.live is not None:
            self.live.clear()
        if was_open:
            _log.debug("store %r: closed", self.name)

    # For proxies and executors; not part of the public interface.

    def close_or_log(self) -> None:
        """Close where nobody asked for it: a backend that is gone is no error of the caller's."""
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 - what goes on has nothing to do with the store
            _log.warning("store %r: what it held could not be removed: %s", self.name, error)

    @property
    def is_owner(self) -> bool:
        """Whether objects of this store are leased, hence evicted, by this process."""
        return self._leases is not None

    @property
    def eviction_failures(self) -> int:
        """How often evicting has failed, in the owning process."""
        return 0 if self._leases is None else self._leases.failures

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called in this process."""
        return self._closed

    @property
    def seal(self) -> Seal | None:
        """What its objects are verified with, if they are."""
        return self._seal

    def new_key(self) -> str:
        """Make up a key that no process using this session makes up again."""
        return f"{self._prefix}{next(self._numbers)}"

    def hold(self, obj: Any, frames: Frames, embedded: Sequence[Kept], *, dedupe: bool) -> Kept:
        """Store ``obj``, which ``frames`` represent, and hold it.

        Args:
            obj: the object.
            frames: what represents it.
            embedded: what it refers to; held for as long.
            dedupe: whether to take what has the same content, if somebody holds that.

        Raises:
            ValueError: this process does not own the store, so that nobody would ever evict it.
        """
        self._check_owner()
        contents = self._contents if dedupe else None
        content = Content(frames) if contents is not None else None
        if contents is not None and content is not None:
            found = self._find(content)
            if found is not None:
                return found
            contents.expect(content)
        key = self.new_key()
        try:
            reference = self.keep(obj, key, frames, content)
        except BaseException:
            self.evict_soon([key], twice=True)  # a put that failed may have been carried out
            raise
        kept = Kept(reference, self.take(key, leases_of(embedded)))
        if contents is not None and content is not None:
            contents.add(reference, content)
        return kept

    def is_repeated(self, frames: Frames) -> bool:
        """Tell whether something like what ``frames`` represent was asked about, or is stored."""
        return self._contents is not None and self._contents.is_repeated(Content(frames))

    def keep(self, obj: Any, key: str, frames: Frames, content: Content | None = None) -> Reference:
        """Store an object. If that fails, the caller evicts it: it may have been carried out.

        Args:
            obj: the object.
            key: where; nobody else knows it yet.
            frames: what represents it.
            content: the frames', if it has been made.

        Raises:
            StoreFullError: there is no room for it.
        """
        self._check_open()
        digest = b""
        if self.quota is not None:
            if not self.quota.has_room(frames_size(frames)):
                self.start_evicting()
            self.quota.take(key, frames_size(frames), _what(obj))
            self._check_open()
        tracing = _spans.active
        try:
            with NOTHING if tracing is None else self._span_of_put(tracing, obj, key, frames):
                if self._seal is None:
                    self.connector.put(key, frames)
                else:
                    digest = self._put_sealed(self._seal, key, frames, content or Content(frames))
        except ConnectorFullError as error:
            raise StoreFullError(_what(obj), error.url, error.needed, error.free) from error
        if self.live is not None:
            self.live.add(key, frames_size(frames))
        type_name, methods = describe(type(obj))
        return Reference(self.address, key, type_name, frames_size(frames), methods, digest)

    def fetch(self, reference: Reference) -> Frames | None:
        """Return the frames that a reference leads to, from the cache if there is one.

        Raises:
            IntegrityError: they are not what was stored, or this process cannot tell.
        """
        self._check_open()
        cache = self._cache
        if cache is None:
            return self._fetch(reference)
        frames = cache.get(reference.key, reference.digest)
        if frames is None:
            frames = self._fetch(reference)
            if frames is not None:
                frames = cache.put(reference.key, reference.digest, frames)
        return frames

    def is_stored(self, frames: Frames, reference: Reference) -> bool:
        """Tell whether ``frames`` are what a reference leads to."""
        self._check_open()
        if self._seal is not None and reference.digest:
            # As they have its digest, or do not, they need not come from afar to be compared.
            return self._seal.fits(reference, frames) and self.connector.exists(reference.key)
        stored = self.fetch(reference)
        return stored is not None and are_equal(stored, frames)

    def evict_keys(self, keys: Sequence[str]) -> None:
        """Remove the objects under ``keys`` now."""
        self._check_open()
        self._evictor()(keys)
        if self._leases is not None:
            self._leases.part_from_companions(keys)

    def evict_soon(self, keys: Sequence[str], *, twice: bool = False) -> None:
        """Remove the objects under ``keys``, without waiting for it.

        Args:
            keys: of the objects.
            twice: do so again later, as they may not have arrived yet.
        """
        if self._leases is not None and not self._closed:
            self._leases.evict(keys, twice=twice)

    def count(self, reference: Reference) -> None:
        """Count an object, which a worker has stored."""
        if self.live is not None:
            self.live.add(reference.key, reference.size)
        if self.quota is not None:
            self.quota.count(reference.key, reference.size)

    def take(self, key: str, companions: Sequence[Lease] = ()) -> Lease:
        """Hold the object under ``key``, and for as long also its companions."""
        return self._check_owner().take(key, companions)

    def take_again(self, key: str) -> Lease:
        """Hold the object under ``key``, which nobody may hold any more.

        If so, this waits until what others have let go of is evicted: it may be among that, or have
        been the last thing that kept the store open.

        Raises:
            ObjectMissingError: it is gone.
            StoreClosedError: the store is closed, perhaps as nobody held anything any more.
            ValueError: this process does not own the store.
        """
        lease = self._check_owner().take_again(key)
        try:
            self._check_open()
            if not self.connector.exists(key):
                raise ObjectMissingError(key, self.connector.url)
        except BaseException:
            lease.forget()  # the caller may keep the error, hence this frame
            raise
        return lease

    def start_evicting(self) -> None:
        """Evict from now on what nobody holds any more."""
        if self._leases is not None:
            self._leases.start()

    def join(self, key: str) -> Lease | None:
        """Hold the object under ``key`` if this process owns the store and somebody holds it."""
        return self._leases.join(key) if self._leases is not None else None

    def touch(self, keys: Sequence[str]) -> None:
        """Note that objects may have been fetched, with all that they refer to."""
        if self.live is not None and self._leases is not None:
            self.live.touch(self._leases.reached(keys))

    def spare(self, key: str) -> None:
        """Do not evict the object under ``key`` when the leases that are on it now are gone."""
        if self._leases is not None:
            self._leases.spare(key)

    def enter(self) -> None:
        """Count one more executor that uses this store."""
        self._users.add(next(self._user_numbers))

    def leave(self, *, close: bool) -> None:
        """Count one executor less; after the last, close as soon as no object is held.

        Args:
            close: whether this executor asks for closing; one of them is enough.
        """
        self._users.pop()
        self._closing |= close
        if self._closing and not self._users and self._leases is not None and not self._closed:
            self._leases.close_when_none(self.close_or_log)

    def _note(self, reference: Reference, get_s: float, load_s: float) -> None:
        """Say what fetching an object took."""
        record = here.mine.record
        if record is not None:
            record.resolve(reference, get_s, load_s)
        elif self.live is not None:
            self.live.fetched(reference, get_s, load_s)

    def _span_of_put(self, tracing: Tracing, obj: Any, key: str, frames: Frames) -> Any:
        type_name, _ = describe(type(obj))
        return tracing.put(self.connector.url, key, type_name, frames_size(frames))

    def _put_sealed(self, seal: Seal, key: str, frames: Frames, content: Content) -> bytes:
        """Store frames; return the digest of what has been stored."""
        if content.may_change:
            content.digest()
        digest = seal.digest(key, frames)
        self.connector.put(key, frames)
        if content.settle(confirm=True):
            return digest
        # Another thread changed an array meanwhile, as it may: what was stored may be neither what
        # it was before nor what it is now. A copy does not change.
        frames = [bytes(frame) for frame in frames]
        self.connector.evict([key])
        self.connector.put(key, frames)
        return seal.digest(key, frames)

    def _fetch(self, reference: Reference) -> Frames | None:
        if self._seal is None and not reference.digest:
            return self.connector.get(reference.key)
        if self._seal is None:
            self._seal = handed_seal(self.address)
        return verified(reference, self.connector.url, self._seal, self.connector.get)

    def _put(self, obj: Any) -> tuple[Reference, list[Kept]]:
        with embedding() as embedded:
            frames = Candidate(obj, self.serializer).frames
        key = self.new_key()
        try:
            return self.keep(obj, key, frames), embedded
        except BaseException:
            self.evict_soon([key])  # a put that failed may have been carried out
            raise

    def _find(self, content: Content) -> Kept | None:
        contents = self._contents
        if contents is None:
            return None
        for stored in contents.candidates(content):
            reference, _ = stored
            # First hold it, so that it stays while it is looked at and from then on.
            lease = self.join(reference.key)
            if lease is None:  # and nobody will hold it again
                contents.forget([reference.key])
            elif contents.is_same(content, stored):
                if not self._is_remote or self.connector.exists(reference.key):
                    return Kept(reference, lease, found=True)
                contents.forget([reference.key])  # the server has lost it
        return None

    def _check_owner(self) -> Leases:
        if self._leases is None:
            raise ValueError(f"the store {self.name!r} is owned by another process")
        return self._leases

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(self.name)

    def _evictor(self) -> Any:
        cache, connector, contents = self._cache, self.connector, self._contents
        quota, live = self.quota, self.live

        def evict(keys: Sequence[str]) -> None:
            if contents is not None:
                contents.forget(keys)
            if cache is not None:
                cache.evict(keys)
            try:
                connector.evict(keys)
            finally:
                # Were it counted for ever, an outage would leave less room for the rest of the day.
                if quota is not None:
                    quota.give_back(keys)
            if live is not None:
                live.remove(keys)

        return evict

    def _renew_keys(self) -> None:
        self._prefix = secrets.token_hex(4) + "-"
        self._numbers = itertools.count()

    def _after_fork(self) -> None:
        self._renew_keys()
        if self._cache is not None:
            self._cache.renew_lock()
        if self._leases is not None:
            self._leases.abandon()
            self._leases = None
        self._contents = None
        self.live = None
        self.quota = None  # what is stored here is not counted there


def store_at(address: str) -> Store:
    """Return this process's store for an address, opened without owning it if need be.

    Raises:
        ConnectorError: the place cannot be opened.
    """
    found = _open.get(address)
    if found is None or (found._closed and not found.is_owner):
        connector = proxyexec_connectors.attach(address)
        seal = handed_seal(address)
        found = _reopen(Store, connector.url, connector, PickleSerializer(), 0, seal)
    return found


def fetch(reference: Reference) -> Any:
    """Return a new object, equal to the one that a reference leads to.

    Raises:
        ObjectMissingError: it is not there any more.
        IntegrityError: what is there is not what was stored, or this process cannot tell.
    """
    return store_at(reference.address).get(reference)


def is_in_memory(reference: Reference) -> bool:
    """Tell whether only the process that stored an object can reach it."""
    return reference.address.startswith("memory:")


def seal_of(address: str) -> Seal | None:
    """Return what the objects of a session are verified with, if this process knows."""
    store = _open.get(address)
    seal = None if store is None else store.seal
    return handed_seal(address) if seal is None else seal


def leases_of(embedded: Iterable[Kept]) -> list[Lease]:
    """Return the leases on what is embedded in an object."""
    return [kept.lease for kept in embedded if kept.lease is not None]


def note_all(kept: Iterable[Kept], what: str, name: int | str | None, called: str) -> None:
    """Note what objects that are held are to a call; see :class:`proxyexec._ownership.Note`."""
    for one in kept:
        if one.lease is not None:
            one.lease.note((what, name, called, one.reference.type_name))


def _reopen(
    cls: type[Store],
    name: str,
    connector: Connector,
    serializer: Serializer,
    cache_bytes: int,
    seal: Seal | None,
) -> Store:
    """Unpickle a store: the one that is open here, or one for another process's session."""
    found = _open.get(connector.address)
    if found is not None and (found.is_owner or not found._closed):
        if not found.is_owner:
            if found._seal is None:  # it was opened by its address
                found._seal = seal
            if type(found.serializer) is PickleSerializer:  # then, or before it was given another
                found.serializer = serializer
        return found
    store = cls.__new__(cls)
    store._set_up(name, connector, serializer, cache_bytes, seal)
    _log.debug("store %r: opened the session of another process in %s", name, connector.url)
    with _attached_lock:
        _attached[store.address] = store
        while len(_attached) > _ATTACHED_AT_MOST:
            _attached.popitem(last=False)
    return store


def _what(obj: Any) -> str:
    return f"an object of type {name_of(type(obj))}"


def _checked(reference: Any) -> Reference:
    if not isinstance(reference, Reference):
        raise TypeError(f"expected a Reference, not an object of type {name_of(type(reference))}")
    return reference


_open: weakref.WeakValueDictionary[str, Store] = weakref.WeakValueDictionary()
_attached: OrderedDict[str, Store] = OrderedDict()
_attached_lock = threading.Lock()


def _close_all() -> None:
    for store in list(_open.values()):
        if store.is_owner:
            store.close_or_log()


def _after_fork() -> None:
    global _attached_lock
    _attached_lock = threading.Lock()
    for store in list(_open.values()):
        store._after_fork()


os.register_at_fork(after_in_child=_after_fork)

# Exit hooks run last in, first out. The first finalizer registers weakref's own, which closes
# connectors; so ours, registered after it, can still evict what it has to.
weakref.finalize(Store, int)
atexit.register(_close_all)
