"""Who holds what is stored: found when somebody asks, and recorded nowhere.

All that holds an object has a lease on it: tasks in flight, futures, proxies, other objects. These
are found among all objects that Python's collector knows, as it knows who refers to whom. Looking
takes up to a second for a million objects, resolves no proxy, and keeps nothing alive afterwards.

Where a proxy or a future is itself kept (a list, an attribute, a variable of a module) is found in
the same way. Python does not tell of variables of functions that are running.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import (
    AsyncGeneratorType,
    CellType,
    CoroutineType,
    FrameType,
    GeneratorType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any

from proxyexec._carried import callable_name
from proxyexec._future import Deferred, TaskFuture
from proxyexec._mapped import MappedFunction
from proxyexec._ownership import Lease
from proxyexec._proxy import Proxy, is_resolved
from proxyexec._task import TimedOutcome
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from proxyexec._ownership import Leases

__all__ = ["Holder", "Pending", "holders_of"]

# For so many objects, asking Python who refers to them is faster than looking at all there is.
_FEW = 50

# Places that are named of each holder.
_PLACES_AT_MOST = 3


@dataclass(frozen=True)
class Holder:
    """Somebody who holds a stored object."""

    kind: str
    """``"task"``, ``"future"``, ``"proxy"``, ``"map"``, ``"object"``, ``"group"``, or for
    whatever else ``"other"``."""
    name: str
    """Of the function that was called; of the type, for a proxy; of the key, for an object."""
    state: str = ""
    """Of a task ``"pending"`` or ``"running"``; of a proxy, whether it is resolved."""
    where: tuple[str, ...] = ()
    """Where a future or a proxy is kept, as far as Python tells."""

    def __str__(self) -> str:
        words = {"task": "task", "future": "future of", "map": "a map of", "object": "object"}
        text = f"{words.get(self.kind, self.kind)} {self.name}".rstrip()
        more = "; ".join(filter(None, (self.state, *self.where)))
        return f"{text} ({more})" if more else text


@dataclass(frozen=True)
class Pending:
    """A task whose result may be stored already."""

    key: str
    name: str

    def is_of(self, key: str) -> bool:
        """Tell whether an object is the result of the task, or a part of it."""
        return key == self.key or key.startswith((f"{self.key}+", f"{self.key}."))


def holders_of(leases: Leases) -> tuple[dict[str, list[Holder]], list[Pending]]:
    """Return who holds the objects of a store, by key, and the tasks that have not ended."""
    found = _Found()
    _, companions = leases.held()
    by_lease: dict[int, list[Holder]] = defaultdict(list)
    for part in (_futures, _proxies, _functions):
        for lease, holder in part(found):
            by_lease[id(lease)].append(holder)
    for key, some in companions.items():
        for lease in some:
            by_lease[id(lease)].append(Holder("object", key))
    holders: dict[str, list[Holder]] = defaultdict(list)
    for lease in found.leases:
        if lease._leases is leases:
            holders[lease.key] += by_lease.get(id(lease)) or [Holder("other", "")]
    return holders, [
        Pending(getattr(one._call, "key", ""), _name_of(one._call))
        for one in found.futures
        if not one.done()
    ]


def _futures(found: _Found) -> Iterator[tuple[Lease | None, Holder]]:
    for future in found.futures:
        call = future._call
        if future.done():
            holder = Holder("future", _name_of(call), "", found.places(future))
            for one in _results(future._result):
                yield _lease_of(one), holder
        else:
            state = "running" if future.running() else "pending"
            for lease in _flat(getattr(call, "_held", None), set()):
                yield lease, Holder("task", _name_of(call), state)


def _proxies(found: _Found) -> Iterator[tuple[Lease | None, Holder]]:
    in_futures = {id(one) for future in found.futures for one in _results(future._result)}
    for proxy in found.proxies:
        where = found.places(proxy)
        if where or id(proxy) not in in_futures:
            state = "resolved" if is_resolved(proxy) else "not resolved"
            kind = proxy._self_reference.type_name.replace(":", ".").removeprefix("builtins.")
            yield _lease_of(proxy), Holder("proxy", kind, state, where)


def _functions(found: _Found) -> Iterator[tuple[Lease | None, Holder]]:
    for function in found.functions:
        packed = function._packed
        for kept in packed.embedded if packed is not None else ():
            yield kept.lease, Holder("map", callable_name(function.function))


class _Found:
    """What holds leases in this process, and where that is kept."""

    def __init__(self) -> None:
        leases, proxies, futures, functions = _holding_leases()
        self.leases: list[Lease] = leases
        self.proxies = [one for one in proxies if _lease_of(one) is not None]
        # Those that failed before they were tasks have no call.
        self.futures: list[TaskFuture[Any]] = [one for one in futures if hasattr(one, "_call")]
        self.functions: list[MappedFunction] = functions
        # Or these would be found among what refers to proxies.
        del proxies, futures
        self._places: dict[int, list[str]] = defaultdict(list)
        self._find_places([*self.proxies, *self.futures])

    def places(self, obj: Any) -> tuple[str, ...]:
        """Return where something is kept."""
        places = sorted(set(self._places.get(id(obj), ())))
        more = ("...",) if len(places) > _PLACES_AT_MOST else ()
        return (*places[:_PLACES_AT_MOST], *more)

    def _find_places(self, objects: list[Any]) -> None:
        ours = {id(self.proxies), id(self.futures), id(objects)}
        known = self._look_at_referrers(objects, ours)
        # What nothing else refers to, to compare with: there are as many references here.
        counts = [sys.getrefcount(one) for one in [*self.proxies, object()]]
        for proxy, count in zip(self.proxies, counts, strict=False):
            # In two lists more: of proxies, and of objects.
            if count > counts[-1] + 2 + known[id(proxy)]:
                self._places[id(proxy)].append("a variable of a function")

    def _look_at_referrers(self, objects: list[Any], ours: set[int]) -> Counter[int]:
        """Find places; return how many references there are to each object, as Python tells."""
        known: Counter[int] = Counter()
        of_calls = {id(one) for future in self.futures for one in _kept_by(future._call)}
        modules: dict[int, str] = {}
        for name, module in list(sys.modules.items()):
            if type(module) is ModuleType:
                modules.setdefault(id(vars(module)), name)
        wanted = set(map(id, objects))
        referrers = [one for one in _referrers(objects) if id(one) not in ours]
        owners = _owners([one for one in referrers if type(one) is dict and id(one) not in modules])
        for referrer in referrers:
            place = _Place(referrer, modules, owners)
            for one in gc.get_referents(referrer):
                if id(one) in wanted:
                    known[id(one)] += 1
                    if not (place.is_ours or id(referrer) in of_calls):
                        self._places[id(one)].append(place.of(one))
        return known


def _holding_leases() -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Return all leases, and what may have some: proxies, futures and functions of maps."""
    found: tuple[list[Any], list[Any], list[Any], list[Any]] = ([], [], [], [])
    leases, proxies, futures, functions = found
    # By the types' ids: not all types can be hashed.
    groups: dict[int, list[Any] | None] = {
        id(TaskFuture): futures,
        id(MappedFunction): functions,
    }
    for obj in gc.get_objects():
        kind = type(obj)  # asking isinstance() might resolve a proxy, or run code of others
        number = id(kind)
        if number not in groups:
            group = leases if issubclass(kind, Lease) else None
            groups[number] = proxies if issubclass(kind, Proxy) else group
        group = groups[number]
        if group is not None:
            group.append(obj)
    return found


def _referrers(objects: list[Any]) -> list[Any]:
    """Return what refers to some objects."""
    if len(objects) > _FEW:  # the function below compares everything with each of them
        wanted = set(map(id, objects))
        return [
            one
            for one in gc.get_objects()
            if one is not objects and not wanted.isdisjoint(map(id, gc.get_referents(one)))
        ]
    # Of tuples, the call's own may be found: they are told by what is nowhere else.
    mark = object()
    return [
        one
        for one in gc.get_referrers(*objects, mark)
        if one is not objects and not (type(one) is tuple and one and one[-1] is mark)
    ]


class _Place:
    """Something that refers to others, in words."""

    def __init__(self, referrer: Any, modules: dict[int, str], owners: dict[int, str]) -> None:
        self._referrer = referrer
        self._owner = owners.get(id(referrer))
        self._module = modules.get(id(referrer))
        kind = type(referrer)
        self._kind = kind
        module = str(getattr(kind, "__module__", ""))
        self.is_ours = (
            issubclass(kind, (Future, Lease))
            or module.startswith(("proxyexec.", "concurrent.futures"))
            or (kind is dict and "_waiters" in referrer and "_condition" in referrer)  # a future's
            or (kind is FrameType and _is_frame_of_ours(referrer))
        )

    def of(self, one: Any) -> str:
        if self._kind is dict:
            name = next((key for key, value in list(self._referrer.items()) if value is one), None)
            owner = self._module or self._owner
            if owner is not None:
                return f"{owner}.{name}"
            return f"a dict, at {name!r}" if type(name) in (str, int) else "a dict"
        if self._kind is CellType:
            return "a variable that a function has captured"
        if id(self._kind) in _CONTAINERS:
            return f"a {self._kind.__name__}"
        if self._kind is FrameType:
            return f"a variable of {self._referrer.f_code.co_name}"
        if id(self._kind) in _RUNNING:
            return f"a variable of {self._referrer.__qualname__}"
        for attribute, value in list(_attributes(self._referrer).items()):
            if value is one:
                return f"{name_of(self._kind)}.{attribute}"
        return f"a {name_of(self._kind)}"


def _attributes(obj: Any) -> dict[str, Any]:
    if issubclass(type(obj), Proxy):  # which might be resolved
        return {}
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except Exception:  # noqa: BLE001 - it may be a property of somebody's
        return {}
    return attributes if type(attributes) is dict else {}


def _owners(dicts: list[Any]) -> dict[int, str]:
    """The names of types of objects whose attributes are in some dicts, by the dicts' ids."""
    wanted = set(map(id, dicts))
    owners = {}
    for owner in _referrers(dicts) if dicts else ():
        attributes = _attributes(owner)
        if id(attributes) in wanted:
            owners[id(attributes)] = name_of(type(owner))
    return owners


def _is_frame_of_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("proxyexec.")


def _kept_by(call: Any) -> Iterator[Any]:
    """What a call keeps its result, its arguments and those whose results it needs in."""
    yield getattr(call, "_opened", None)
    yield getattr(call, "_held", None)
    packed = getattr(call, "_packed", None)
    if type(packed) is dict:
        yield from list(packed.values())


def _results(result: Any) -> Iterator[Any]:
    """The results that a future has: one, or those of a chunk."""
    if type(result) is TimedOutcome:
        result = result.results
    if type(result) is list:
        for one in result:
            if _is_holder(one):
                yield one
    elif _is_holder(result):
        yield result


def _is_holder(obj: Any) -> bool:
    return type(obj) is Deferred or issubclass(type(obj), Proxy)


def _lease_of(obj: Any) -> Lease | None:
    return obj._lease if type(obj) is Deferred else obj._self_lease


def _flat(held: Any, seen: set[int]) -> Iterator[Lease]:
    """The leases in what a call holds: lists, within lists, with futures among them."""
    if held is None or id(held) in seen:
        return
    seen.add(id(held))
    for one in list(held):
        if isinstance(one, Lease):
            yield one
        elif type(one) is list:
            yield from _flat(one, seen)


def _name_of(call: Any) -> str:
    name = getattr(call, "_called", None) or getattr(call, "name", None)
    return name if isinstance(name, str) else ""


# The ids of types.
_CONTAINERS = frozenset(map(id, (list, tuple, set, frozenset)))
_RUNNING = frozenset(map(id, (GeneratorType, CoroutineType, AsyncGeneratorType)))
