"""Policies that come into question for a run, judging what a trace tells of objects.

They decide as those of :mod:`proxyexec.policy` would, by types and sizes; a trace has no objects.
A type is known by its name there, so subclasses are types of their own.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from proxyexec._costs import KINDS, SIDES, CostModel
from proxyexec._limits import Limits, limits_of_arguments, limits_of_results
from proxyexec._tune_result import TunePolicy
from proxyexec.errors import name_of
from proxyexec.policy import (
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    ShouldProxy,
    combined,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxyexec._tune_run import Item, Run

__all__ = ["AdaptiveRule", "PlainRule", "PolicyRule", "RecordedRule", "Rule", "plain_rules"]

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)

# So many types are tried, those with the most bytes first; and so much of all bytes each has.
_TYPES_AT_MOST = 6
_LEAST_SHARE = 0.005

# With types, so many sizes are combined: those nearest to where storing begins to pay.
_SIZES_WITH_TYPES = 3

# Never stored, whatever the policy.
_NEVER = frozenset(
    {"NoneType", "bool", "ellipsis", "NotImplementedType", "type", "module", "function"}
)


# As large.
_NOTHING_IS = 1 << 62


class Rule(Protocol):
    """What tells of an object whether it is stored."""

    @property
    def policy(self) -> TunePolicy:
        """The policy that decides so."""
        ...

    def wants(self, item: Item, *, repeated: bool, found: bool) -> bool:
        """Tell whether an object is stored.

        Args:
            item: the object.
            repeated: whether the same has been sent before.
            found: whether the same is stored.
        """
        ...


@dataclass(frozen=True)
class RecordedRule:
    """What was done in the run itself."""

    policy: TunePolicy

    def wants(self, item: Item, *, repeated: bool, found: bool) -> bool:
        return item.path != "inline"


@dataclass(frozen=True)
class PlainRule:
    """A policy that goes by size and type.

    Args:
        policy: how it is written.
        minimum: bytes, at least.
        types: names of types; all if there are none.
        excluded: whether it is these types that are not stored.
        or_larger: of other types, what has at least so many bytes is stored, too.
    """

    policy: TunePolicy
    minimum: int = 0
    types: frozenset[str] = frozenset()
    excluded: bool = False
    or_larger: int | None = None

    def wants(self, item: Item, *, repeated: bool, found: bool) -> bool:
        return self.takes(item.type, item.bytes)

    @property
    def is_size(self) -> bool:
        """Whether it goes by nothing but size."""
        return not self.types and 0 < self.minimum < _NOTHING_IS

    def takes(self, name: str, size: int) -> bool:
        """Tell whether an object of a type, and of so many bytes, is stored."""
        if name in _NEVER:
            return False
        if self.or_larger is not None and size >= self.or_larger:
            return True
        if self.types and (name in self.types) is self.excluded:
            return False
        return size >= self.minimum


@dataclass(frozen=True)
class AdaptiveRule:
    """What :class:`~proxyexec.policy.ProxyAdaptive` does, once it knows the costs and the program.

    Args:
        arguments: from which sizes on it stores these.
        results: and these, by function.
        dedupe: whether what is stored is looked for.
    """

    arguments: Limits
    results: dict[str, Limits]
    dedupe: bool = True
    policy: TunePolicy = field(
        default=TunePolicy(
            "ProxyAdaptive",
            "ProxyAdaptive()",
            {"kind": "adaptive"},
        )
    )

    @classmethod
    def of(cls, model: CostModel, run: Run, *, directly: bool = False) -> AdaptiveRule:
        """Return what it comes to with some costs, for a run.

        Args:
            model: the costs.
            run: the run.
            directly: whether results reach the tasks that get them past the client.

        Raises:
            ValueError: too little was measured.
        """
        made: Counter[str] = Counter()
        given: Counter[str] = Counter()
        for step in run.steps:
            made[step.function] += len(step.returned)
            for item in step.given:
                if item.maker is not None:
                    given[run.steps[item.maker].function] += 1
        results = {
            name: limits_of_results(model, given[name] / number, directly=directly)
            for name, number in made.items()
            if number
        }
        contents = Counter(
            one.content
            for step in run.steps
            for item in step.given
            for one in (item, *item.parts)
            if one.content and not one.is_mapped
        )
        repeated = [number for number in contents.values() if number > 1]
        # As it expects, before it has seen more: two.
        others = sum(repeated) / len(repeated) - 1 if repeated else 2.0
        return cls(limits_of_arguments(model, others), results, run.dedupe)

    def wants(self, item: Item, *, repeated: bool, found: bool) -> bool:
        if item.type in _NEVER:
            return False
        if item.what == "result":
            limits = self.results.get(item.function)
            return limits is not None and item.bytes >= limits.of(item.kind)
        if item.bytes >= self.arguments.of(item.kind):
            return True
        if item.is_mapped:
            return item.bytes >= self.arguments.of_shared(item.kind)
        if not self.dedupe:
            return False
        if found:
            return item.bytes >= self.arguments.of_found(item.kind)
        return repeated and item.bytes >= self.arguments.of_repeated(item.kind)


@dataclass(frozen=True)
class PolicyRule:
    """A policy that is given as such.

    Raises:
        ValueError: it, or a part of it, goes by more than types and sizes.
    """

    policy: TunePolicy
    given: ShouldProxy

    @classmethod
    def of(cls, name: str, given: ShouldProxy) -> PolicyRule:
        """Return the rule of a policy, under a name."""
        return cls(TunePolicy(name, repr(given), _config_of(given)), given)

    def wants(self, item: Item, *, repeated: bool, found: bool) -> bool:
        return item.type not in _NEVER and _judged(self.given, item)


def _judged(policy: Any, item: Item) -> bool:
    parts = combined(policy)
    if parts is not None:
        kind, policies = parts
        if kind == "not":
            return not _judged(policies[0], item)
        answers = (_judged(one, item) for one in policies)
        return all(answers) if kind == "all" else any(answers)
    if type(policy) is ProxySize:
        return item.bytes >= policy.minimum
    if type(policy) is ProxyType:
        of = _class_of(item.type)
        if of is None:
            return item.type in map(name_of, policy.types)
        return issubclass(of, policy.types)
    return isinstance(policy, ProxyAlways)


def _class_of(name: str) -> type | None:
    """Return the class of that name, if it is there already: nothing is imported for this."""
    module, _, kind = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), kind, None)
    return found if isinstance(found, type) else None


def _config_of(policy: Any) -> Any:
    """Return what a configuration has for a policy.

    Raises:
        ValueError: it goes by more than types and sizes.
    """
    parts = combined(policy)
    if parts is not None:
        kind, policies = parts
        configs = [_config_of(one) for one in policies]
        return (
            {"kind": "not", "policy": configs[0]}
            if kind == "not"
            else {
                "kind": kind,
                "policies": configs,
            }
        )
    if type(policy) in (ProxyAlways, ProxyNever):
        return "always" if type(policy) is ProxyAlways else "never"
    if type(policy) is ProxySize:
        return {"kind": "size", "minimum": policy.minimum}
    if type(policy) is ProxyType:
        types = [f"{one.__module__}:{one.__qualname__}" for one in policy.types]
        return {"kind": "type", "types": types}
    raise ValueError(f"a trace has no objects that {policy!r} could be asked about")


def never() -> PlainRule:
    """Return what stores nothing."""
    return PlainRule(TunePolicy("never", "ProxyNever()", "never"), minimum=_NOTHING_IS)


def plain_rules(run: Run, models: Iterable[CostModel]) -> list[PlainRule]:
    """Return the policies that are tried for a run, the simple ones first.

    Of those that decide alike about all of its objects, the simplest is taken; and of sizes, a
    round one in the middle, which is the farthest from deciding otherwise.

    Args:
        run: the run.
        models: costs, for sizes where storing begins to pay.
    """
    crossings = _crossings(models)
    items = [
        one
        for step in run.steps
        for item in (*step.given, *step.returned)
        for one in (item, *item.parts)
    ]
    sizes = sorted({*SIZES, *crossings})
    near = _near(sizes, crossings)
    types = _types(items)
    looks = list(dict.fromkeys((one.type, one.bytes) for one in items))
    alike: dict[tuple[bool, ...], list[PlainRule]] = defaultdict(list)
    for rule in _all(sizes, near, types):
        alike[tuple(rule.takes(*one) for one in looks)].append(rule)
    return [_chosen(rules) for rules in alike.values()]


def _chosen(rules: list[PlainRule]) -> PlainRule:
    first = rules[0]
    if not first.is_size:
        return first
    by_size = [one for one in rules if one.is_size]
    by_size = [one for one in by_size if one.minimum in SIZES] or by_size
    return by_size[len(by_size) // 2]


def _all(sizes: list[int], near: list[int], types: list[str]) -> Iterator[PlainRule]:
    yield never()
    for size in sizes:
        yield _by_size(size)
    yield PlainRule(TunePolicy("always", "ProxyAlways()", "always"))
    for one in types:
        yield _by_type([one])
    for one in types:
        yield _by_type([one], excluded=True)
    if len(types) > 2:
        yield from (_by_type([types[0], one]) for one in types[1:])
    for one in types:
        for size in near:
            yield _by_type([one], size)
            yield _by_type([one], size, excluded=True)
            yield _by_type([one], or_larger=size)


def _by_size(size: int) -> PlainRule:
    text = _exact(size)
    return PlainRule(TunePolicy(f"size {text}", f"ProxySize({text!r})", text), size)


def _by_type(
    types: list[str], size: int = 0, *, excluded: bool = False, or_larger: int | None = None
) -> PlainRule:
    names = ", ".join(types)
    python = f"{'~' if excluded else ''}ProxyType({names})"
    config: Any = {"kind": "type", "types": [_address(one) for one in types]}
    name = names
    if excluded:
        name, config = f"not {names}", {"kind": "not", "policy": config}
    if size:
        text = _exact(size)
        name, python = f"{name} & {text}", f"ProxySize({text!r}) & {python}"
        config = {"kind": "all", "policies": [text, config]}
    if or_larger is not None:
        text = _exact(or_larger)
        name, python = f"{name} | {text}", f"{python} | ProxySize({text!r})"
        config = {"kind": "any", "policies": [config, text]}
    policy = TunePolicy(name, python, config)
    return PlainRule(policy, size, frozenset(types), excluded, or_larger)


def _exact(size: int) -> str:
    """Return a size as people write it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _address(name: str) -> str:
    """Return a type as configurations have it: ``module:qualname``."""
    if name.startswith("__main__."):  # a module that has no others in it
        return name.replace(".", ":", 1)
    module, _, kind = name.rpartition(".")
    return f"{module or 'builtins'}:{kind}"


def _crossings(models: Iterable[CostModel]) -> list[int]:
    """Return the sizes from which on storing pays, as people write sizes."""
    found = set()
    for model in models:
        for side in SIDES:
            for kind in KINDS:
                size = model.threshold(side, kind)
                if size is not None:
                    # Two figures: costs are not known better.
                    digits = max(0, len(str(size)) - 2)
                    found.add(round(size, -digits))
    return sorted(found)


def _near(sizes: list[int], crossings: list[int]) -> list[int]:
    middle = crossings[len(crossings) // 2] if crossings else 300_000
    nearest = sorted(sizes, key=lambda size: abs(size / middle - 1))[:_SIZES_WITH_TYPES]
    return sorted(nearest)


def _types(items: Iterable[Item]) -> list[str]:
    """Return the types that most of the bytes are of."""
    bytes_of: Counter[str] = Counter()
    for item in items:
        bytes_of[item.type] += item.bytes
    least = _LEAST_SHARE * sum(bytes_of.values())
    return [
        name
        for name, size in bytes_of.most_common(_TYPES_AT_MOST)
        # A class that a function has made has no name that others could find it by.
        if size >= max(least, 1) and name not in _NEVER and "<" not in name
    ]
