"""What travels between client and worker, and how it is made ready and unpacked.

An object travels as a reference (:class:`Stored`), in serialized form (:class:`Inline`), or as
it is. :meth:`Context.pack` decides, in the client for arguments and in the worker for results;
:meth:`Context.unpack` undoes it on the other side.

This module knows nothing of futures and leases: those are the client's.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pickle import PickleBuffer
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from proxyexec_connectors._layout import pieces, split

from proxyexec._carried import FUNCTIONS, callable_name, carried_by
from proxyexec._carrying import objects_in
from proxyexec._contents import likeness_of
from proxyexec._events import Sent
from proxyexec._parts import PartRules, TakenParts
from proxyexec._proxy import (
    Embedded,
    Kept,
    Reference,
    embedding,
    extract,
    is_proxy,
    is_resolved,
    keep,
    make_proxy,
    reference_of,
)
from proxyexec._record import here
from proxyexec._serialize import Candidate, PickleSerializer, Serializer, frames_size
from proxyexec._sizes import TINY, about_size, container_bound, data_size, size_bound
from proxyexec._store import Store, fetch, is_in_memory, seal_of, store_at
from proxyexec._types import find_function
from proxyexec.errors import (
    DeserializationError,
    ProxyExecError,
    SerializationError,
    StoreFullError,
    arrival_error,
    name_of,
)
from proxyexec.policy import Policy, ProxyNever, ShouldProxy, dismissal_of, is_proxied

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._integrity import Seal
    from proxyexec._record import Record

__all__ = [
    "LARGE_FUNCTION",
    "LARGE_INLINE",
    "SEALED",
    "Context",
    "Inline",
    "Keeper",
    "Packed",
    "Stored",
    "deliver_nothing",
    "joined",
    "kept_by",
    "part_key",
]


class Stored(NamedTuple):
    """An object that travels as a reference."""

    reference: Reference
    embedded: tuple[Reference, ...] = ()
    """What a stored result itself refers to."""
    seals: tuple[Seal, ...] = ()
    """Of other stores than the executor's that it takes to use the object: travel beside it, as
    they are never stored. Unpickling them is all there is to do."""


class Inline:
    """An object that travels in its serialized form."""

    __slots__ = ("blob", "embedded", "seals")

    def __init__(
        self,
        blob: Any,
        embedded: tuple[Reference, ...] = (),
        seals: tuple[Seal, ...] = (),
    ) -> None:
        self.blob = blob  # bytes, or a view of such
        self.embedded = embedded  # what a result refers to
        self.seals = seals  # as in Stored

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        more = (self.embedded, self.seals) if self.embedded or self.seals else ()
        if protocol >= 5 and len(self.blob) >= LARGE_INLINE:
            # Whoever moves buffers past the pickle need not copy it.
            return _inline, (PickleBuffer(self.blob), *more)
        return Inline, (self.blob, *more)


class Packed(NamedTuple):
    """An object ready to travel."""

    travels: Any
    """What is sent: :class:`Stored`, :class:`Inline`, or the object."""
    embedded: Sequence[Kept] = ()
    """What that refers to: needed for as long as it is."""
    sent: Sent | None = None
    """What was measured."""


class Keeper(Protocol):
    """Stores what one side of a call wants stored, and knows who holds it."""

    takes_parts: bool
    """Whether parts of objects may be stored by themselves."""

    shares: bool
    """Whether many tasks are going to be sent what it keeps."""

    @property
    def every(self) -> bool:
        """Whether somebody wants to know everything of what is sent."""
        ...

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        """Store an object, which ``frames`` represent, and all of what it refers to."""
        ...

    def keep_part(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept | None:
        """Store a part of an object, unless it is to stay in it."""
        ...


class Context(NamedTuple):
    """What client and workers of one executor have in common."""

    store: Store
    policy: ShouldProxy
    serializer: Serializer
    lazy: bool
    nested: bool
    rules: PartRules
    client: int
    """The client's process id."""

    def passes(self, obj: Any) -> bool:
        """Tell that an object travels as it is, where that is known at a glance."""
        try:
            return self._passes(obj)
        except Exception:  # noqa: BLE001 - a policy's: it is asked again where that is seen to
            return False

    def atoms_pass(self, objects: Sequence[Any]) -> bool:
        """Tell that objects that cannot change travel as they are; many cost next to nothing."""
        if not self._smallest or not _ATOMS.issuperset(map(type, objects)):
            return False
        # No atom's pickle is more than twice as large as what it occupies, and a bit.
        sizes = list(map(sys.getsizeof, objects))
        largest = 2 * max(sizes, default=0) + _WORD_BYTES
        return largest < self._smallest and 2 * sum(sizes) < _FEW_BYTES

    def words(self) -> frozenset[type]:
        """Return types whose objects travel as they are; so do integers, if they are not long."""
        return _WORDS if self._smallest > _WORD_BYTES else frozenset()

    @property
    def _smallest(self) -> float:
        """The policy wants no atom of a smaller serialized size, in bytes."""
        return math.inf if type(self.policy) is ProxyNever else self.rules.smallest

    def may_change(self, obj: Any) -> bool:
        """Tell whether an object that passes may be changed by its owner."""
        return type(obj) not in _ATOMS

    def _passes(self, obj: Any) -> bool:
        bound = size_bound(obj)
        if bound is None:
            # Where nothing as small as the whole is wanted, no part of it is.
            smallest = self.rules.smallest
            bound = container_bound(obj) if smallest else None
            return bound is not None and bound < smallest
        policy = self.policy
        return isinstance(policy, Policy) and policy.dismisses(obj, bound)

    def glanced_at(self, obj: Any) -> Sent:
        """Say what there is to say of an object that passes."""
        size = about_size(obj) or size_bound(obj) or 0
        why = dismissal_of(self.policy, obj, size)
        return Sent(_kind_of(obj), size, "inline", False, 0.0, 0.0, (), why)

    def weighed(self, obj: Any, *, crossing: bool) -> Sent:
        """Say all that there is to say of an object that passes.

        It is serialized for that, unless it is small, or stays in this process.
        """
        sent = self.glanced_at(obj)
        if not crossing or 0 < sent.bytes < _WEIGHED:
            return sent
        candidate = Candidate(obj, self.serializer)
        try:
            size = candidate.size
        except Exception:  # noqa: BLE001 - who sends it sees to that
            return sent
        return sent._replace(
            bytes=size,
            exact=True,
            serialize_s=candidate.seconds,
            content=likeness_of(candidate.frames),
        )

    def pack(self, obj: Any, keeper: Keeper, what: str, *, crossing: bool) -> Packed:
        """Make an object ready to travel.

        Args:
            obj: the object.
            keeper: stores what is to be stored.
            what: what the object is to the caller, for messages.
            crossing: whether it goes to another process, where objects cannot go as they are.

        Raises:
            ProxyExecError: it cannot be serialized or stored, or the policy raised.
        """
        proxy, reachable = (obj if is_proxy(obj) else None), True
        if proxy is not None:
            reachable = not (crossing and is_in_memory(reference_of(proxy)))
            if reachable and (not is_resolved(proxy) or type(extract(proxy)) in _ATOMS):
                return self.refer(keep(proxy))
            obj = extract(proxy)
        # What a resolved proxy stands for was stored whole: so it can be compared.
        parts = self._parts(obj, keeper, what) if self.nested and proxy is None else None
        candidate = Candidate(obj, self.serializer, what, parts)
        with embedding() as embedded:
            if proxy is not None and reachable and _is_unchanged(reference_of(proxy), candidate):
                return self.refer(keep(proxy))
            return self._pack(candidate, keeper, embedded, crossing=crossing)

    def travels_by_name(self, function: Any) -> bool:
        """Tell whether workers find a callable by its name."""
        return (
            type(function) in _BY_NAME
            and find_function(function)
            and not (getattr(self.serializer, "main", "") == "value" and _is_in_main(function))
        )

    def pack_function(self, function: Any, keeper: Keeper, *, crossing: bool) -> Packed:
        """Make a callable ready to travel: by name where that is enough, in full otherwise.

        What it carries is judged as arguments are.
        """
        if not crossing or self.travels_by_name(function):
            return Packed(function)
        what = f"the function {callable_name(function)}"
        if not isinstance(function, FUNCTIONS):  # but an object that can be called
            return self.pack(function, keeper, what, crossing=crossing)
        only = None if self.nested else carried_by(function)
        parts = None if only == [] else self._parts(function, keeper, what, only)
        candidate = Candidate(function, self.serializer, what, parts)
        candidate.shared = keeper.shares
        with embedding() as embedded:
            frames = candidate.frames
            is_stored = frames_size(frames) >= LARGE_FUNCTION and is_proxied(self.policy, candidate)
            packed = (self._stored if is_stored else self._inline)(candidate, keeper, embedded)
        return self._noting_carried(packed, candidate, parts) if keeper.every else packed

    def refer(self, kept: Kept, addresses: Iterable[str] = (), sent: Sent | None = None) -> Packed:
        """Make a reference to a stored object ready to travel.

        Args:
            kept: the object.
            addresses: of the stores that the object refers to, or into, if that is known.
            sent: what was measured, if it has just been stored.
        """
        reference = kept.reference
        if sent is None:
            kind = reference.type_name.replace(":", ".").removeprefix("builtins.")
            why = "it is stored already"
            sent = Sent(kind, reference.size, "reference", True, 0.0, 0.0, (), why, reference.key)
        travels = Stored(reference, (), self._seals((*addresses, reference.address)))
        return Packed(travels, [kept], sent)

    def unpack(self, travelled: Any, what: str) -> Any:
        """Turn what has travelled into what a function is to get.

        Raises:
            ArrivalError: it cannot be unpickled; the error says what it was.
        """
        try:
            if type(travelled) is Stored:
                reference = travelled.reference
                return make_proxy(reference) if self.lazy else fetch(reference)
            if type(travelled) is Inline:
                return self.serializer.loads(split(travelled.blob))
        except DeserializationError as error:
            raise arrival_error(what, error) from error
        return travelled

    def errors(self) -> Serializer:
        """Return what serializes what calls raise: the store's serializer need not be able to."""
        serializer = self.serializer
        return serializer if isinstance(serializer, PickleSerializer) else PickleSerializer()

    def unpack_function(self, travelled: Any) -> Any:
        """Turn what has travelled for a callable into that; see :meth:`unpack`."""
        start = time.perf_counter()
        function = self.unpack(travelled, "the function")
        record = here.mine.record
        if record is not None:
            record.unpack_s += time.perf_counter() - start
        return function

    def unpack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any], function: Any
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """Unpack the arguments of a call. What travelled once is one object here, too."""
        if SEALED.isdisjoint(map(type, args)) and SEALED.isdisjoint(map(type, kwargs.values())):
            return args, kwargs  # as most are
        start = time.perf_counter()
        names = [*range(len(args)), *kwargs]
        called = callable_name(function)
        objects = {
            id(one): self.unpack(one, f"argument {name!r} of {called}")
            for name, one in zip(names, (*args, *kwargs.values()), strict=True)
            if type(one) in SEALED
        }
        record = here.mine.record
        if record is not None:
            record.unpack_s += time.perf_counter() - start
        return (
            [objects.get(id(one), one) for one in args],
            {name: objects.get(id(one), one) for name, one in kwargs.items()},
        )

    def deliver(
        self,
        result: Any,
        key: str,
        what: Callable[[], str],
        record: Record | None = None,
        *,
        alone: bool = True,
    ) -> Any:
        """Make a result ready to travel to the client.

        Args:
            result: what a call returned.
            key: where to store it.
            what: says what it is to the caller, for messages.
            record: of the task, if it is measured.
            alone: whether it travels alone. What others travel with may be changed, or be one
                object with theirs, unless it is serialized now.
        """
        if not _delivers:
            return None
        if self.passes(result) and (alone or not self.may_change(result)):
            if record is not None and (type(result) not in TINY or record.every):
                self._see(result, record)
            return result
        keeper = ResultKeeper(self, key, every=record is not None and record.every)
        try:
            packed = self.pack(result, keeper, what(), crossing=os.getpid() != self.client)
        except BaseException:
            keeper.evict_parts()
            raise
        travels, embedded, sent = packed
        if record is not None and sent is not None:
            record.send(sent)
            if sent.is_estimate and os.getpid() != self.client and type(travels) not in TINY:
                record.see(about_size(travels))
        if type(travels) is Inline and embedded:
            travels.embedded = tuple(kept.reference for kept in embedded)
        elif type(travels) is Stored and keeper.embedded:
            travels = travels._replace(embedded=keeper.embedded)
        return travels

    def _see(self, result: Any, record: Record) -> None:
        """Note a result that passes."""
        crossing = os.getpid() != self.client
        exact = False
        if record.every:
            sent = self.weighed(result, crossing=crossing)
            record.send(sent)
            exact = sent.exact  # which counts then
        if crossing and not exact and type(result) not in TINY:
            record.see(about_size(result))

    def _pack(
        self, candidate: Candidate, keeper: Keeper, embedded: Embedded, *, crossing: bool
    ) -> Packed:
        obj = candidate.obj
        try:
            proxied = is_proxied(self.policy, candidate)
            if proxied:
                candidate.keep_whole()
            elif type(obj) in _ATOMS or not (crossing or candidate.has_parts):
                return Packed(obj, (), as_it_is(candidate))
        except SerializationError:
            if crossing:
                raise
            # A lock, say: threads can pass it on as it is.
            return Packed(obj, (), as_it_is(candidate))
        return (self._stored if proxied else self._inline)(candidate, keeper, embedded)

    def _stored(self, candidate: Candidate, keeper: Keeper, embedded: Embedded) -> Packed:
        frames = candidate.frames
        start = time.perf_counter()
        kept = kept_by(keeper, candidate.obj, frames, embedded, candidate.what)
        seconds = time.perf_counter() - start
        sent = sent_in_frames(candidate, keeper, kept, seconds)
        return self.refer(kept, embedded.addresses, sent)

    def _inline(self, candidate: Candidate, keeper: Keeper, embedded: Embedded) -> Packed:
        sent = sent_in_frames(candidate, keeper)
        travels = Inline(joined(candidate.frames), seals=self._seals(embedded.addresses))
        return Packed(travels, embedded, sent)

    def _noting_carried(
        self, packed: Packed, candidate: Candidate, parts: TakenParts | None
    ) -> Packed:
        """Say what a callable carries that went with it, to who observes everything."""
        sent = packed.sent
        if sent is None or (self.nested and parts):  # parts of what it carries may have gone
            return packed
        try:
            carries = objects_in(
                candidate.obj,
                sent.bytes,
                travels_by_name=self.travels_by_name,
                is_elsewhere=lambda one: parts is not None and parts.took(one),
            )
        except Exception:  # noqa: BLE001 - objects of others, which may be anything
            return packed
        return packed._replace(sent=sent._replace(carries=carries))

    def _seals(self, addresses: Iterable[str]) -> tuple[Seal, ...]:
        """The seals of stores that the other side may not have been handed."""
        own = self.store.address  # which it has
        others = {address for address in addresses if address != own}
        return tuple(seal for seal in map(seal_of, others) if seal is not None) if others else ()

    def _parts(
        self, obj: Any, keeper: Keeper, what: str, only: Sequence[Any] | None = None
    ) -> TakenParts | None:
        if (
            not keeper.takes_parts
            or type(self.policy) is ProxyNever
            or type(obj) is bytearray
            or size_bound(obj) is not None
        ):
            return None
        arrive = make_proxy if self.lazy else fetch
        parts = TakenParts(self.rules, self.serializer, keeper.keep_part, arrive, what, only)
        parts.shared = keeper.shares
        parts.every = keeper.every
        parts.leave(obj)  # which is judged as a whole
        return parts


class ResultKeeper:
    """Stores a result under the key that the client made up, and its parts under others.

    The client cannot know whether a worker that died had stored parts. So their number is bounded,
    and it can evict all that there may be.
    """

    def __init__(self, context: Context, key: str, *, every: bool) -> None:
        self.every = every
        self.takes_parts = context.lazy  # or it would be fetched in pieces, for nothing
        self.shares = False
        self.embedded: tuple[Reference, ...] = ()
        """What the stored result refers to."""
        self._store = context.store
        self._key = key
        self._parts: list[str] = []

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        self.embedded = tuple(kept.reference for kept in embedded)
        return Kept(self._store.keep(obj, self._key, frames), None)

    def keep_part(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept | None:
        # A part that refers to something in its turn would need a lease on that at the client.
        if embedded or len(self._parts) == PARTS_AT_MOST:
            return None
        key = part_key(self._key, len(self._parts))
        self._parts.append(key)
        return Kept(self._store.keep(obj, key, frames), None)

    def evict_parts(self) -> None:
        """Remove the parts of a result that cannot be delivered."""
        if self._parts:
            with contextlib.suppress(ProxyExecError):  # the client will try again
                self._store.evict_keys(self._parts)


def deliver_nothing() -> None:
    """Have results of this process go nowhere: it is one of several that run the same call."""
    global _delivers
    _delivers = False


def part_key(key: str, number: int) -> str:
    """The key of part ``number`` of the result under ``key``."""
    return f"{key}+{number}"


def kept_by(keeper: Keeper, obj: Any, frames: Frames, embedded: Sequence[Kept], what: str) -> Kept:
    """Have ``keeper`` store an object that is ``what`` to the caller."""
    try:
        return keeper.keep(obj, frames, embedded)
    except StoreFullError as error:
        raise error.about(what) from error.__cause__


def sent_in_frames(
    candidate: Candidate, keeper: Keeper, kept: Kept | None = None, seconds: float = 0.0
) -> Sent:
    """Say what is to be said of an object that was serialized, and stored if it is kept."""
    size = candidate.size  # for which it is serialized, at the latest
    parts: tuple[Sent, ...] = tuple(getattr(candidate.parts, "sent", ()))
    own = candidate.seconds - sum(part.serialize_s + part.put_s for part in parts)
    return Sent(
        _kind_of(candidate.obj),
        size,
        "inline" if kept is None else "found" if kept.found else "store",
        True,
        max(own, 0.0),
        seconds,
        tuple(candidate.answers),
        "",
        "" if kept is None else kept.reference.key,
        likeness_of(candidate.frames) if keeper.every else "",
        parts=parts,
    )


def as_it_is(candidate: Candidate) -> Sent:
    """Say what is to be said of an object that a thread is given as it is."""
    obj = candidate.obj
    size = candidate.size if candidate.is_serialized else data_size(obj) or 0
    answers = tuple(candidate.answers)
    return Sent(_kind_of(obj), size, "inline", False, candidate.seconds, 0.0, answers)


def _kind_of(obj: Any) -> str:
    return name_of(type(obj))


def _is_unchanged(reference: Reference, candidate: Candidate) -> bool:
    """Tell whether the object that a reference leads to still is what the candidate is."""
    try:
        return store_at(reference.address).is_stored(candidate.frames, reference)
    except ProxyExecError:  # its store is closed, or out of reach: the value is what we have
        return False


def _inline(blob: Any, *more: Any) -> Inline:
    return Inline(blob if type(blob) is bytes else memoryview(blob).cast("B"), *more)


def joined(frames: Frames) -> bytes:
    """Return frames in one piece, which :func:`proxyexec_connectors._layout.split` takes apart."""
    parts, _ = pieces(frames)
    return b"".join(parts)


def _is_in_main(function: Any) -> bool:
    return getattr(function, "__module__", None) == "__main__"


_delivers = True

# Results have no more parts than this that are stored by themselves.
PARTS_AT_MOST = 256

# From so many bytes on, the serialized form of an object is moved as a buffer, if it can be.
LARGE_INLINE = 1 << 16

# What is left of a function, its code for instance, is stored from this many bytes on.
LARGE_FUNCTION = 1 << 16

# Objects that pass and are smaller are not looked at more closely, in bytes.
_WEIGHED = 1000

# Types of what stands for something else on its way.
SEALED = frozenset({Inline, Stored})

# Types whose objects cannot contain others and cannot change.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})

# Of these, the types whose objects are as good as nothing, integers apart: they may be long.
_WORDS = frozenset({type(None), bool, float, complex})

# What the serialized form of one takes at most, in bytes.
_WORD_BYTES = 128

# Objects that are larger together are looked at one by one.
_FEW_BYTES = 2_000_000

# Types of callables that pickle knows by their names.
_BY_NAME = frozenset({FunctionType, BuiltinFunctionType, type})
