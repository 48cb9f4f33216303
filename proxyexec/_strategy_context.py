"""What travels between client and worker when it does so by strategies of the user's choice.

Then nothing is sent as it is: the function, each argument and each result is a payload, inline or
in the store, be they ever so small, and with a pool of threads, too. What is a reference remains
one. See :mod:`proxyexec.serializers`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from proxyexec_connectors._layout import split

from proxyexec._carried import callable_name
from proxyexec._context import (
    LARGE_FUNCTION,
    Context,
    Keeper,
    Packed,
    Stored,
)
from proxyexec._payloads import Payload, Serializers, decode, encode
from proxyexec._proxy import Embedded, embedding, extract
from proxyexec._serialize import Candidate, PickleSerializer, Serializer, frames_size
from proxyexec._store import Store, store_at
from proxyexec.errors import DeserializationError, ObjectMissingError, arrival_error
from proxyexec.policy import is_proxied

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._record import Record

__all__ = ["StrategyContext", "have_read"]


class StrategyContext(Context):
    """A context whose serializer is :class:`~proxyexec.serializers.Serializers`."""

    __slots__ = ()

    @property
    def serializers(self) -> Serializers:
        """The serializer, by the type that it has."""
        return cast("Serializers", self.serializer)

    def passes(self, obj: Any) -> bool:
        return False

    def atoms_pass(self, objects: Sequence[Any]) -> bool:
        return False

    def words(self) -> frozenset[type]:
        return frozenset()

    def travels_by_name(self, function: Any) -> bool:
        return False

    def pack_function(self, function: Any, keeper: Keeper, *, crossing: bool) -> Packed:
        function = extract(function)
        what = f"the function {callable_name(function)}"
        candidate = Candidate(function, _ForCode(self.serializers.code), what)
        with embedding() as embedded:
            worth_storing = frames_size(candidate.frames) >= LARGE_FUNCTION
            if worth_storing and is_proxied(self.policy, candidate):
                return self._stored(candidate, keeper, embedded)
        return self._inline(candidate, keeper, embedded)

    def errors(self) -> Serializer:
        serializers = self.serializers
        return super().errors() if serializers.allowed is None else _ForErrors(serializers)

    def unpack_function(self, travelled: Any) -> Any:
        try:
            if type(travelled) is Stored:
                reference = travelled.reference
                store = store_at(reference.address)
                frames = store.fetch(reference)
                if frames is None:
                    raise ObjectMissingError(reference.key, store.connector.url)
            else:
                frames = split(travelled.blob)
            return decode(Payload.from_frames(frames), allowed=self.serializers.code)
        except DeserializationError as error:
            raise arrival_error("the function", error) from error

    def deliver(
        self,
        result: Any,
        key: str,
        what: Callable[[], str],
        record: Record | None = None,
        *,
        alone: bool = True,
    ) -> Any:
        by_results = self._replace(serializer=_for_results(self.serializers))
        return super(StrategyContext, by_results).deliver(result, key, what, record, alone=alone)

    def _pack(
        self, candidate: Candidate, keeper: Keeper, embedded: Embedded, *, crossing: bool
    ) -> Packed:
        proxied = is_proxied(self.policy, candidate)
        return (self._stored if proxied else self._inline)(candidate, keeper, embedded)


class _ForCode:
    """Writes functions.

    Args:
        strategies: names of those to try.
    """

    def __init__(self, strategies: str | Sequence[str]) -> None:
        self._strategies = strategies

    def dumps(self, obj: Any) -> Frames:
        return encode(obj, self._strategies, code=True).to_frames()

    def loads(self, frames: Frames) -> Any:
        return decode(Payload.from_frames(frames), allowed=self._strategies)


class _ForErrors:
    """Writes what calls raise in words, and the exception itself if its reader allows that.

    Args:
        serializers: of the executor.
    """

    def __init__(self, serializers: Serializers) -> None:
        self._serializers = serializers

    def dumps(self, obj: Any) -> Frames:
        from proxyexec._call_payloads import Raised  # noqa: PLC0415 - most calls return

        raised = Raised.of(obj, self._serializers.results or ())
        return encode(raised.to_json(), "json").to_frames()

    def loads(self, frames: Frames) -> Any:
        from proxyexec._call_payloads import Raised  # noqa: PLC0415

        facts = decode(Payload.from_frames(frames), allowed="json")
        return Raised.from_json(facts).load("the call", self._serializers.allowed)


@functools.lru_cache(maxsize=64)
def _for_results(serializers: Serializers) -> Serializers:
    """Return what writes results as ``serializers`` do, and reads what they read."""
    assert serializers.results is not None  # noqa: S101 - they are the same as data, or others
    return replace(serializers, data=serializers.results)


def have_read(store: Store, serializers: Serializers) -> None:
    """See to it that a store reads what executors with ``serializers`` keep there, and no more.

    Raises:
        ValueError: it cannot: it has a serializer of its own, or allows others.
    """
    own = store.serializer
    if type(own) is PickleSerializer:
        if serializers.allowed is not None:  # or it reads all payloads, as it is
            store.serializer = serializers
    elif not isinstance(own, Serializers):
        raise ValueError(f"the store has a serializer of its own, {own!r}: give it these, or none")
    elif own.allowed != serializers.allowed:
        raise ValueError(
            f"the store's serializers allow {_listed(own)}, and the executor's "
            f"{_listed(serializers)}: let that be the same"
        )


def _listed(serializers: Serializers) -> str:
    return "anything" if serializers.allowed is None else ", ".join(serializers.allowed)
