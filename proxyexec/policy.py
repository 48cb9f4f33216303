"""``should_proxy`` policies: which arguments and results travel as references.

A policy is any callable that takes an object and returns whether it is worth storing. Those
here can be combined with ``&``, ``|`` and ``~``, among themselves and with other callables::

    ProxyType(np.ndarray, pd.DataFrame) & ProxySize("1 MB")
    ProxySize("1 MB") & ~ProxyType(str)
    ProxyType(list) | (lambda obj: hasattr(obj, "__dataframe__"))

Whatever a policy says, ``None``, ``True``, ``False``, enum members and other singletons,
classes and modules are never proxied: programs compare them with ``is``.

Policies know nothing of stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from proxyexec._costs import CostModel
from proxyexec._serialize import Candidate, PickleSerializer
from proxyexec._sizes import holds_data, parse_size, size_bound
from proxyexec._types import NEVER_PROXIED
from proxyexec.errors import PolicyError, SerializationError, name_of

__all__ = [
    "CostModel",
    "Decision",
    "Policy",
    "ProxyAdaptive",
    "ProxyAlways",
    "ProxyNever",
    "ProxySize",
    "ProxyType",
    "ShouldProxy",
    "attach",
    "combined",
    "dismissal_of",
    "is_proxied",
    "reason_of",
]

ShouldProxy: TypeAlias = Callable[[Any], bool]


class Policy:
    """A policy that can be combined. Subclasses define :meth:`judge`."""

    __slots__ = ()

    def judge(self, candidate: Candidate) -> bool:
        """Tell whether the candidate is worth storing."""
        raise NotImplementedError

    def dismisses(self, obj: Any, bound: int) -> bool:
        """Tell that :meth:`judge` would say no, where that is known at a glance.

        Args:
            obj: the object.
            bound: its serialized size is at most this, in bytes.
        """
        return False

    def overlooks(self, kind: type) -> bool:
        """Tell that no object of exactly this type is wanted as a part of another.

        It is then not even asked about: looking into large objects goes much faster.
        """
        return False

    @property
    def smallest(self) -> int:
        """The smallest serialized size, in bytes, of what may be wanted; 0 is anything.

        Smaller objects are not stored.
        """
        return 0

    def reason(self, kind: str, size: int | None, wanted: bool) -> str:
        """Say why :meth:`judge` has said what it did, in a few words.

        Args:
            kind: the name of the object's type.
            size: its serialized size in bytes, or about that; ``None`` if it is not known.
            wanted: what it said.
        """
        return f"{self!r}: {'wanted' if wanted else 'not wanted'}"

    def __call__(self, obj: Any) -> bool:
        return self.judge(Candidate(obj, PickleSerializer()))

    def __and__(self, other: ShouldProxy) -> Policy:
        return _All(self, other)

    def __rand__(self, other: ShouldProxy) -> Policy:
        return _All(other, self)

    def __or__(self, other: ShouldProxy) -> Policy:
        return _Any(self, other)

    def __ror__(self, other: ShouldProxy) -> Policy:
        return _Any(other, self)

    def __invert__(self) -> Policy:
        return _Not(self)


class ProxyAlways(Policy):
    """Everything that may be proxied is."""

    __slots__ = ()

    def judge(self, candidate: Candidate) -> bool:
        return True

    def __repr__(self) -> str:
        return "ProxyAlways()"


class ProxyNever(Policy):
    """Nothing is proxied: calls pass through untouched."""

    __slots__ = ()

    def judge(self, candidate: Candidate) -> bool:
        return False

    def dismisses(self, obj: Any, bound: int) -> bool:
        return True

    def overlooks(self, kind: type) -> bool:
        return True

    def __repr__(self) -> str:
        return "ProxyNever()"


class ProxyType(Policy):
    """Instances of the given types, subclasses included.

    Args:
        types: one or more classes.

    Raises:
        TypeError: there are none, or one is not a class.
    """

    __slots__ = ("types",)

    def __init__(self, *types: type) -> None:
        if not types or not all(isinstance(one, type) for one in types):
            raise TypeError("ProxyType takes one or more classes, like ProxyType(list, str)")
        self.types = types

    def judge(self, candidate: Candidate) -> bool:
        return isinstance(candidate.obj, self.types)

    def dismisses(self, obj: Any, bound: int) -> bool:
        return not isinstance(obj, self.types)

    def overlooks(self, kind: type) -> bool:
        return not issubclass(kind, self.types)

    def reason(self, kind: str, size: int | None, wanted: bool) -> str:
        return f"{self!r}: {kind}"

    def __repr__(self) -> str:
        return f"ProxyType({', '.join(map(name_of, self.types))})"


class ProxySize(Policy):
    """Objects whose serialized size is at least ``minimum``.

    The size is the exact one, of pickle and buffers together. Objects are serialized to learn
    it, once, and then stored or sent in that form.

    Args:
        minimum: bytes, or a string with a unit: ``"100 kB"``, ``"1 MB"``, ``"1.5 MiB"``.

    Raises:
        ValueError: ``minimum`` is negative, or not a size.
    """

    __slots__ = ("minimum",)

    def __init__(self, minimum: int | str) -> None:
        self.minimum = parse_size(minimum)

    def judge(self, candidate: Candidate) -> bool:
        bound = size_bound(candidate.obj)
        return (bound is None or bound >= self.minimum) and candidate.size >= self.minimum

    def dismisses(self, obj: Any, bound: int) -> bool:
        return bound < self.minimum

    def overlooks(self, kind: type) -> bool:
        # The size of others would have to be found out by pickling them, each on its own.
        return not holds_data(kind)

    @property
    def smallest(self) -> int:
        return self.minimum

    def reason(self, kind: str, size: int | None, wanted: bool) -> str:
        return super().reason(kind, size, wanted) if size is None else f"{self!r}: {size} bytes"

    def __repr__(self) -> str:
        return f"ProxySize({self.minimum})"


class _All(Policy):
    __slots__ = ("first", "second")

    def __init__(self, first: ShouldProxy, second: ShouldProxy) -> None:
        self.first, self.second = first, second

    def judge(self, candidate: Candidate) -> bool:
        return _judge(self.first, candidate) and _judge(self.second, candidate)

    def dismisses(self, obj: Any, bound: int) -> bool:
        return _dismisses(self.first, obj, bound) or _dismisses(self.second, obj, bound)

    def overlooks(self, kind: type) -> bool:
        return _overlooks(self.first, kind) or _overlooks(self.second, kind)

    @property
    def smallest(self) -> int:
        return max(_smallest(self.first), _smallest(self.second))

    def __repr__(self) -> str:
        return f"({self.first!r} & {self.second!r})"


class _Any(Policy):
    __slots__ = ("first", "second")

    def __init__(self, first: ShouldProxy, second: ShouldProxy) -> None:
        self.first, self.second = first, second

    def judge(self, candidate: Candidate) -> bool:
        return _judge(self.first, candidate) or _judge(self.second, candidate)

    def dismisses(self, obj: Any, bound: int) -> bool:
        return _dismisses(self.first, obj, bound) and _dismisses(self.second, obj, bound)

    def overlooks(self, kind: type) -> bool:
        return _overlooks(self.first, kind) and _overlooks(self.second, kind)

    @property
    def smallest(self) -> int:
        return min(_smallest(self.first), _smallest(self.second))

    def __repr__(self) -> str:
        return f"({self.first!r} | {self.second!r})"


class _Not(Policy):
    __slots__ = ("policy",)

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def judge(self, candidate: Candidate) -> bool:
        return not _judge(self.policy, candidate)

    def __repr__(self) -> str:
        return f"~{self.policy!r}"


def is_proxied(policy: ShouldProxy, candidate: Candidate) -> bool:
    """Tell whether ``candidate`` is to be stored: what may be, and what the policy wants.

    Raises:
        PolicyError: the policy raised.
        SerializationError: the policy asked for the size of what cannot be serialized.
        Exception: it asked for the size of what has a part that cannot be stored; what that raised.
    """
    if isinstance(candidate.obj, NEVER_PROXIED):
        return False
    try:
        return _judge(policy, candidate)
    except SerializationError:
        raise
    except Exception as error:
        if candidate.parts is not None and candidate.parts.has_failed():
            raise
        kind, reason = name_of(type(candidate.obj)), f"{type(error).__name__}: {error}"
        raise PolicyError(repr(policy), candidate.what, kind, reason) from error


def combined(policy: ShouldProxy) -> tuple[str, tuple[ShouldProxy, ...]] | None:
    """Return how a policy is made of others: ``"all"``, ``"any"`` or ``"not"``, and of which."""
    if isinstance(policy, _Not):
        return "not", (policy.policy,)
    if isinstance(policy, (_All, _Any)):
        return "all" if isinstance(policy, _All) else "any", (policy.first, policy.second)
    return None


def attach(policy: ShouldProxy, executor: Any) -> None:
    """Hand an executor to those terms of its policy that have a method ``attach``: they learn."""
    for term in {id(one): one for one in _terms_of(policy)}.values():
        method = getattr(term, "attach", None)
        if callable(method):
            method(executor)


def _terms_of(policy: ShouldProxy) -> list[ShouldProxy]:
    """Return what a policy is combined of: itself, if it is not."""
    found = combined(policy)
    return [policy] if found is None else [one for part in found[1] for one in _terms_of(part)]


def reason_of(policy: ShouldProxy, answers: Sequence[bool], kind: str, size: int | None) -> str:
    """Say which terms of a policy decided, and why.

    Args:
        policy: the policy.
        answers: those of the terms that were asked, in order.
        kind: the name of the object's type.
        size: its serialized size in bytes, or about that; ``None`` if it is not known.
    """
    if not answers:
        return f"{kind}: never proxied"
    _, reason = _decided(policy, iter(answers), kind, size)
    return reason


def dismissal_of(policy: ShouldProxy, obj: Any, size: int) -> str:
    """Say which terms of a policy dismiss an object of about this size at a glance."""
    if isinstance(policy, _All):
        decides = policy.first if _would_dismiss(policy.first, obj, size) else policy.second
        return dismissal_of(decides, obj, size)
    if isinstance(policy, _Any):
        return " and ".join(dismissal_of(one, obj, size) for one in (policy.first, policy.second))
    kind = name_of(type(obj))
    return _reason(policy, kind, size, wanted=False)


def _would_dismiss(policy: ShouldProxy, obj: Any, size: int) -> bool:
    try:
        return _dismisses(policy, obj, size)
    except Exception:  # noqa: BLE001 - it is asked for words only
        return False


def _decided(
    policy: ShouldProxy, answers: Iterator[bool], kind: str, size: int | None
) -> tuple[bool, str]:
    if isinstance(policy, _Not):
        answer, reason = _decided(policy.policy, answers, kind, size)
        return not answer, f"~{reason}"
    if isinstance(policy, (_All, _Any)):
        first, reason = _decided(policy.first, answers, kind, size)
        if first is isinstance(policy, _Any):  # which decides
            return first, reason
        second, other = _decided(policy.second, answers, kind, size)
        return second, other if second is not first else f"{reason} and {other}"
    answer = next(answers, False)
    return answer, _reason(policy, kind, size, wanted=answer)


def _reason(policy: ShouldProxy, kind: str, size: int | None, *, wanted: bool) -> str:
    try:
        if isinstance(policy, Policy):
            return str(policy.reason(kind, size, wanted))
        called = getattr(policy, "__qualname__", None) or repr(policy)
    except Exception:  # noqa: BLE001 - nothing fails for want of words
        called = name_of(type(policy))
    return f"{called}: {'wanted' if wanted else 'not wanted'}"


def _judge(policy: ShouldProxy, candidate: Candidate) -> bool:
    if isinstance(policy, (_All, _Any, _Not)):
        return policy.judge(candidate)
    answers = candidate.answers
    number = len(answers)
    answer = policy.judge(candidate) if isinstance(policy, Policy) else bool(policy(candidate.obj))
    # One for each term, though it may have asked others in its turn.
    answers[number:] = (bool(answer),)
    return answer


def _dismisses(policy: ShouldProxy, obj: Any, bound: int) -> bool:
    return isinstance(policy, Policy) and policy.dismisses(obj, bound)


def _overlooks(policy: ShouldProxy, kind: type) -> bool:
    return isinstance(policy, Policy) and policy.overlooks(kind)


def _smallest(policy: ShouldProxy) -> int:
    return policy.smallest if isinstance(policy, Policy) else 0


# It is a policy, so it needs the above.
from proxyexec._adaptive import Decision, ProxyAdaptive  # noqa: E402
