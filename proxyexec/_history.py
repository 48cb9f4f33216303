"""What a ``ProxyAdaptive`` has seen, and the plain policy that would have been best for that.

Counts by size and kind, and the types that were met; no objects.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterable

from proxyexec._carried import FUNCTIONS
from proxyexec._costs import KINDS, CostModel, Kind, Side
from proxyexec._limits import NEVER, Costs
from proxyexec.errors import name_of
from proxyexec.policy import Policy, ProxyNever, ProxySize, ProxyType

__all__ = ["History"]

# Types that are told apart, of each kind.
_TYPES_AT_MOST = 32

# Modules of types whose objects are memory, mostly.
_WITH_BUFFERS = frozenset({"numpy", "pandas", "polars", "pyarrow", "scipy", "torch"})


class History:
    """What was sent: how many objects of which size, kind and side; and of which types."""

    def __init__(self) -> None:
        # By side, kind, the size's bit length, and how many tasks each was passed on to.
        self._sent: Counter[tuple[Side, Kind, int, float]] = Counter()
        self._kinds: dict[str, Kind] = {}
        self._types: dict[Kind, list[type]] = {kind: [] for kind in KINDS}
        # What was made ready once for many tasks: by type, its kind and the largest size.
        self._shared: dict[type, tuple[Kind, int]] = {}
        # The names of types of results.
        self._returned: set[str] = set()

    def add_argument(self, kind: Kind, of: type, size: int) -> None:
        """Count an argument, of a type and a serialized size in bytes."""
        self._sent["argument", kind, size.bit_length(), 0.0] += 1
        types = self._types[kind]
        if of not in types and len(types) < _TYPES_AT_MOST:
            types.append(of)
            self._kinds[name_of(of)] = kind

    def add_shared(self, kind: Kind, of: type, size: int) -> None:
        """Count what is made ready once for many tasks: the callable of a ``map``, or a part."""
        if of in FUNCTIONS and of is not functools.partial:
            return  # of which many types have no name to be written with
        before = self._shared.get(of)
        if before is not None or len(self._shared) < _TYPES_AT_MOST:
            self._shared[of] = kind, max(size, 0 if before is None else before[1])
            self._kinds[name_of(of)] = kind

    def add_result(self, of: str, size: int, passed: float) -> None:
        """Count a result, of a type by that name, and how many tasks were given it."""
        if len(self._returned) < _TYPES_AT_MOST:
            self._returned.add(of)
        self._sent["result", self.kind_of(of), size.bit_length(), passed] += 1

    def kind_of(self, of: str) -> Kind:
        """Return the kind that objects of a type by that name are, as a rule."""
        kind = self._kinds.get(of)
        if kind is not None:
            return kind
        memory = of in ("bytes", "bytearray") or of.partition(".")[0] in _WITH_BUFFERS
        return "buffers" if memory else "pickle"

    def best(
        self,
        model: CostModel,
        kind: Kind,
        limits: Iterable[int],
        *,
        directly: bool,
        pickling: float,
    ) -> int | None:
        """Return which limit would have been cheapest for objects of a kind.

        Args:
            model: the costs.
            kind: of the objects.
            limits: sizes in bytes; the first one is taken where it makes no difference.
            directly: whether results that are passed on reach tasks past the client.
            pickling: how many times as long as measured pickling takes.

        Returns:
            ``None`` if no such object was seen.
        """
        # Others may count meanwhile.
        seen = [(*key, number) for key, number in list(self._sent.items()) if key[1] == kind]
        if not seen:
            return None
        costs = Costs(model, kind, pickling=pickling)

        def total(limit: int) -> float:
            seconds = 0.0
            for side, _, bits, passed, number in seen:
                size = 3 << bits >> 2  # in the middle of those of so many bits
                stored = size >= limit
                if side == "argument":
                    one = costs.argument_stored(size) if stored else costs.argument_inline(size)
                elif stored:
                    one = costs.result_stored(size, passed)
                else:
                    one = costs.result_inline(size, passed, directly=directly)
                seconds += number * one
            return seconds

        return min(limits, key=total)

    def policy(self, limits: dict[Kind, int], shared: dict[Kind, int] | None = None) -> Policy:
        """Return a plain policy.

        Args:
            limits: a size for each kind.
            shared: one for each kind of what is made ready once for many tasks; ``None``: none of
                that is stored for it. A policy does not know that of an object, but may know it
                by its type.
        """
        policy = self._by_size(limits)
        if shared is None:
            return policy
        by_kind: dict[Kind, list[type]] = {kind: [] for kind in KINDS}
        for one, (kind, size) in list(self._shared.items()):
            if shared[kind] <= size < limits[kind] and not self._others_are(one):
                by_kind[kind].append(one)
        for kind, types in by_kind.items():
            if types:
                more = ProxyType(*types) & ProxySize(shared[kind])
                policy = more if isinstance(policy, ProxyNever) else policy | more
        return policy

    def _others_are(self, of: type) -> bool:
        """Tell whether what is not shared may be of a type, too."""
        sent = [list(types) for types in self._types.values()]
        if max(map(len, (*sent, self._returned))) >= _TYPES_AT_MOST:
            return True  # there were more than are known
        if any(issubclass(one, of) for types in sent for one in types):
            return True
        return name_of(of) in self._returned

    def _by_size(self, limits: dict[Kind, int]) -> Policy:
        low, high = sorted(KINDS, key=lambda kind: limits[kind])
        if limits[low] == NEVER:
            return ProxyNever()
        if limits[low] == limits[high]:
            return ProxySize(limits[low])
        special = ProxyType(*(self._types[low] or _usual(low))) & ProxySize(limits[low])
        return special if limits[high] == NEVER else special | ProxySize(limits[high])


def _usual(kind: Kind) -> list[type]:
    """Types of a kind, where none has been seen."""
    if kind == "pickle":
        return [dict, list, str, tuple]
    # Those of libraries only where the program has loaded them.
    places = (("numpy", "ndarray"), ("pandas", "DataFrame"))
    there = ((sys.modules.get(module), name) for module, name in places)
    found = [getattr(module, name) for module, name in there if hasattr(module, name)]
    return [bytes, bytearray, *found]
