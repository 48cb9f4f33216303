"""Parts: what a policy wants *inside* an object, taken out while the object is pickled.

A dict of arrays, a list of data frames, an object whose attributes are large, a
``functools.partial`` over a model: each part that the policy wants is stored by itself, and the
pickle refers to it. Identity holds: a part that occurs twice is one object on arrival.

The outermost object that a policy wants is stored whole; a policy that goes by size looks inside
first, and counts what is left. Objects that pickle in a way of their own (data frames, sparse
matrices, much that is written in C) are parts as a whole or not at all: their insides are made
for code that expects the real things. Such an object is called *opaque* here.

This module knows no stores: what is taken out is handed to whoever asked.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import time
import types
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

from proxyexec._contents import likeness_of
from proxyexec._events import Sent
from proxyexec._picklers import Parts
from proxyexec._proxy import Kept, Proxy, embed, embedding, reference_of
from proxyexec._serialize import Candidate, Serializer
from proxyexec._sizes import data_size, parse_size, root_of, size_bound
from proxyexec._types import NEVER_PROXIED
from proxyexec.errors import PolicyError, SerializationError, StoreFullError, name_of
from proxyexec.policy import Policy, ShouldProxy, is_proxied

__all__ = ["PartRules", "TakenParts"]


class PartRules:
    """What a policy says about parts of any object; made once for an executor.

    Args:
        policy: judges parts.
    """

    def __init__(self, policy: ShouldProxy) -> None:
        self.policy = policy
        self.smallest = parse_size(policy.smallest) if isinstance(policy, Policy) else 0
        # By type, whether the policy may want a part of it: asked at every object.
        self._wanted: dict[type, bool] = {}
        # Types of which nothing is taken out, nor looked at; grows as they are met.
        self.overlooked: set[type] = {*_NEVER_TAKEN, types.FunctionType, type}
        self.builtins = not all(map(self.overlooks, _BUILTIN_CONTAINERS))
        self.large_builtins: int | None = None
        if not self.builtins and not all(map(self.overlooks, _BUILTIN_DATA)):
            if self.smallest < _OWN_PIECE:
                self.builtins = True
            else:
                self.large_builtins = self.smallest - _HEADER

    def __reduce__(self) -> tuple[Any, ...]:
        return PartRules, (self.policy,)

    def overlooks(self, kind: type) -> bool:
        """Tell that the policy wants no part of exactly this type."""
        known = self._wanted.get(kind)
        if known is None:
            try:
                overlooked = isinstance(self.policy, Policy) and self.policy.overlooks(kind)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise PolicyError(repr(self.policy), "a type", name_of(kind), reason) from error
            known = self._wanted[kind] = not overlooked
        return not known

    def dismisses(self, obj: Any) -> bool:
        """Tell that the policy does not want an object, where that is known at a glance.

        Raises:
            PolicyError: the policy raised.
        """
        policy = self.policy
        bound = size_bound(obj)
        about = data_size(obj) if bound is None else bound
        try:
            return about is not None and isinstance(policy, Policy) and policy.dismisses(obj, about)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PolicyError(repr(policy), "a part", name_of(type(obj)), reason) from error


class TakenParts(Parts):
    """The parts that are taken out of one object.

    Args:
        rules: the policy's.
        serializer: makes frames of them.
        keep: stores a part, given it, its frames, and what these refer to; ``None`` is its
            answer if the part is to stay where it is.
        arrive: gives a part on arrival, from its reference.
        what: what the object is to the caller, for messages.
        only: the objects that come into question; all if ``None``.
    """

    def __init__(
        self,
        rules: PartRules,
        serializer: Serializer,
        keep: Callable[[Any, Any, list[Kept]], Kept | None],
        arrive: Callable[..., Any],
        what: str,
        only: Iterable[Any] | None = None,
    ) -> None:
        self.overlooked = rules.overlooked
        self.builtins = rules.builtins
        self.large_builtins = rules.large_builtins
        self._failed = False
        self._rules = rules
        self._serializer = serializer
        self._keep = keep
        self._arrive = arrive
        self._what = what
        self._only = None if only is None else {id(one): one for one in only}
        self.shared = False
        """Whether many tasks are going to be sent them."""
        self.sent: list[Sent] = []
        """What was measured of them."""
        self.every = False
        """Whether somebody wants to know everything of them."""
        # By identity; the objects are kept alive, so that no other gets their number.
        self._taken: dict[int, tuple[Any, Any]] = {}
        self._left: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._taken)

    def has_failed(self) -> bool:
        return self._failed

    def took(self, obj: Any) -> bool:
        """Tell whether an object is one of them."""
        return id(obj) in self._taken

    def leave(self, *objects: Any) -> None:
        """Do not take these out."""
        self._left.update((id(one), one) for one in objects)

    def take_out(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _NEVER_TAKEN:
            return None
        number = id(obj)
        if number in self._taken:
            return self._taken[number][1]
        if issubclass(kind, Proxy):
            self.leave(*reference_of(obj))
        elif kind in _BUILTIN_DATA and len(obj) < _SMALLEST_DATA:
            return None
        elif number not in self._left and self._may_be(number):
            try:
                kept = None if self._rules.overlooks(kind) else self._kept(obj)
            except Exception:
                self._failed = True
                raise
            if kept is not None:
                embed(kept)
                arrival = self._arrive, (kept.reference,)
                self._taken[number] = obj, arrival
                return arrival
        if kind is dict:
            self.leave(*filter(_may_be_taken, obj))  # keys stay what they are
        return None

    def reduce(self, obj: Any, reduced: Any, *, thoroughly: bool) -> Any:
        kind: Any = type(obj)
        opaque = is_opaque(kind)
        if not thoroughly and not opaque:
            if self._rules.overlooks(kind):
                self.overlooked.add(kind)
            return reduced
        if reduced is NotImplemented:
            if kind in _BY_NAME or issubclass(kind, type):
                return reduced
            reduced = _reduced(obj)
        if type(reduced) is tuple:
            self.leave(reduced)  # which keeps alive what was made for it
            if opaque or issubclass(kind, type):
                self._leave_inside(reduced)
            else:
                self._leave_structure(reduced, of_function=kind is types.FunctionType)
        return reduced

    def _may_be(self, number: int) -> bool:
        return self._only is None or number in self._only

    def _kept(self, obj: Any) -> Kept | None:
        policy = self._rules.policy
        if self._rules.dismisses(obj):
            return None
        candidate = Candidate(obj, self._serializer, f"a part of {self._what}")
        candidate.shared = self.shared
        with embedding() as inside:
            try:
                if not is_proxied(policy, candidate):
                    return None
                frames = candidate.frames
            except SerializationError:  # as a part of the whole it may do, with cloudpickle
                return None
            start = time.perf_counter()
            try:
                kept = self._keep(obj, frames, inside)
            except StoreFullError as error:
                raise error.about(candidate.what) from error.__cause__
        if kept is None:
            self.leave(obj)
        else:
            self._note(candidate, kept, time.perf_counter() - start)
        return kept

    def _note(self, candidate: Candidate, kept: Kept, seconds: float) -> None:
        self.sent.append(
            Sent(
                name_of(type(candidate.obj)),
                kept.reference.size,
                "found" if kept.found else "store",
                True,
                candidate.seconds,
                seconds,
                tuple(candidate.answers),
                "",
                kept.reference.key,
                likeness_of(candidate.frames) if self.every else "",
            )
        )

    def _leave_structure(self, reduced: tuple[Any, ...], *, of_function: bool) -> None:
        """Leave the tuples and dicts that pickle needs as such, but not what is in them."""
        self.leave(*reduced)
        if of_function:
            self.leave(*reduced[1])
        state = reduced[2] if len(reduced) > 2 else None
        if type(state) is tuple:
            self.leave(*state)
            for one in state:
                if of_function and type(one) is dict:  # its globals, closure, documentation, …
                    self.leave(*one.values())

    def _leave_inside(self, reduced: tuple[Any, ...]) -> None:
        """Leave all that an object hands over, as deep as pickle's own containers go."""
        pending: list[Any] = [*reduced]
        while pending:
            one = pending.pop()
            if id(one) in self._left or type(one) in _NUMBERS:
                continue
            self.leave(one)
            if type(one) is dict:
                pending.extend(one.values())
            elif type(one) in (tuple, list):
                pending.extend(one)


@functools.lru_cache(maxsize=1024)
def is_opaque(kind: type) -> bool:
    """Tell whether objects of a type pickle in a way of their own, and may contain parts."""
    if kind in _TRANSPARENT or kind in _BY_NAME or issubclass(kind, (Proxy, type, enum.Enum)):
        return False
    root = root_of(kind)
    if root in _OPAQUE:
        return True
    if root in _WITHOUT_PARTS or (root == "numpy" and kind.__name__ != "MaskedArray"):
        return False
    if kind is types.CodeType or kind in copyreg.dispatch_table:
        return True
    for base in kind.__mro__:
        if base is object or base in _TRANSPARENT:
            return False
        if "__reduce_ex__" in base.__dict__ or "__reduce__" in base.__dict__:
            return True
    return False


def _may_be_taken(obj: Any) -> bool:
    kind = type(obj)
    return kind not in _NEVER_TAKEN and not (kind in _BUILTIN_DATA and len(obj) < _SMALLEST_DATA)


def _reduced(obj: Any) -> Any:
    reduce = copyreg.dispatch_table.get(type(obj))
    return obj.__reduce_ex__(5) if reduce is None else reduce(obj)


# Pickle's own types whose objects may be parts: it asks about them at a price.
_BUILTIN_CONTAINERS = (list, dict)
_BUILTIN_DATA = (str, bytes, bytearray)

# Text and bytes below this many are no longer than a reference; names never are.
_SMALLEST_DATA = 1024

# Text and bytes from this many on are written by pickle as a piece of their own.
_OWN_PIECE = 1 << 16

# What pickle writes beside text or bytes, at most.
_HEADER = 32

_NUMBERS = frozenset({type(None), bool, int, float, complex})

# Exact types whose objects stay where they are. Tuples and sets are looked into: the former
# pickle needs as such, and the latter have to be hashed on arrival.
_NEVER_TAKEN = _NUMBERS | {
    tuple,
    set,
    frozenset,
    types.BuiltinFunctionType,
    types.CodeType,
    types.CellType,
    *(kind for kind in NEVER_PROXIED if kind is not enum.Enum),
}

# What pickle writes as a name, if it can.
_BY_NAME = frozenset({types.FunctionType, types.BuiltinFunctionType})

# Containers that hand over what they contain as it is.
_TRANSPARENT = frozenset(
    {
        BaseException,
        ChainMap,
        Counter,
        OrderedDict,
        defaultdict,
        deque,
        functools.partial,
        types.BuiltinMethodType,
        types.CellType,
        types.MethodType,
        types.SimpleNamespace,
    }
)

# Libraries whose objects hand what is inside of them to code in C, however they pickle.
_OPAQUE = frozenset({"pandas", "polars", "pyarrow", "scipy", "sklearn", "torch", "xarray"})

# Modules whose objects have a way of their own, and nothing large inside.
_WITHOUT_PARTS = frozenset(
    {"datetime", "decimal", "fractions", "ipaddress", "pathlib", "re", "uuid", "zoneinfo"}
)
