"""What an outcome is to the client: a value, or an object in a store, with the leases on it.

Knows nothing of tasks and futures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._context import Context, Inline, Stored
from proxyexec._future import Deferred
from proxyexec._proxy import Reference, make_proxy
from proxyexec._store import store_at

if TYPE_CHECKING:
    from proxyexec._ownership import Lease

__all__ = ["open_outcome"]


def open_outcome(outcome: Any, key: str, context: Context, called: str, *, owns: bool) -> Any:
    """Return the result that the outcome of one call stands for.

    Args:
        outcome: what came back.
        key: the result's, if it is stored.
        context: what client and workers have in common.
        called: the name of what was called, for messages.
        owns: whether results are evicted when nobody holds them any more.
    """
    if type(outcome) is Inline:
        leases = _leases_on(outcome.embedded, key, owns=owns)
        try:
            # Proxies in it join the leases.
            return context.unpack(outcome, _result_of(called))
        finally:
            del leases
    if type(outcome) is not Stored:
        return outcome
    reference = outcome.reference
    store = store_at(reference.address)
    companions = _leases_on(outcome.embedded, key, owns=owns)
    if not owns:
        store.spare(reference.key)
    lease = store.join(reference.key)
    if lease is None and reference.key == key:
        store.count(reference)
        if owns:
            lease = store.take(key, companions)
            store.start_evicting()
    if context.lazy:
        return make_proxy(reference, lease)
    return Deferred(store, reference, lease, _result_of(called))


def _leases_on(references: Sequence[Reference], key: str, *, owns: bool) -> list[Lease]:
    """Hold what the result under ``key`` refers to: parts of it, and what it was given."""
    leases = []
    for reference in references:
        store = store_at(reference.address)
        if not owns:
            store.spare(reference.key)
        lease = store.join(reference.key)
        if lease is None and reference.key.startswith(f"{key}+"):
            store.count(reference)
            if owns:
                lease = store.take(reference.key)
                store.start_evicting()
        if lease is not None:
            leases.append(lease)
    return leases


def _result_of(called: str) -> str:
    """What a result is to the caller, for messages."""
    return f"the result of {called}"
