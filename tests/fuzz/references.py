"""References, and the proxies that are made of them: ``_proxy``, ``_store``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from proxyexec import Reference, Store, extract, is_resolved, reference_of, resolve
from proxyexec._proxy import make_proxy
from proxyexec._types import traits_of
from proxyexec.errors import ProxyExecError
from tests.fuzz import Source

SEEDS = [
    bytes([a, 3, 65, 66, 67, k, 1, 65, t, m, 9])
    for a in range(6)
    for k in (0, 1)
    for t, m in zip(range(8), range(0, 160, 20))
]

_TYPES = (
    "builtins:int",
    "builtins:list",
    "builtins:",
    ":",
    "",
    "builtins:no.such",
    "no!:x",
    "x" * 99,
)
_TRAITS = [traits_of(kind) for kind in (int, list, dict, str, type, object, Exception)]


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    with closing(Store.from_url("memory://")) as store:
        there = store.put([1, 2])
        addresses = (store.address, "memory://", f"file://{directory}", "file://", "!", "")

        def read(data: bytes) -> None:
            source = Source(data)
            choice, text = source.byte(), source.text()
            address = addresses[choice % len(addresses)] + (text if choice >= 32 else "")
            key = there.key if source.byte() % 2 else source.text()
            type_name = _TYPES[source.byte() % len(_TYPES)]
            choice = source.byte()
            # Not any number: there is a class for each.
            traits = _TRAITS[choice % len(_TRAITS)] if choice < 128 else -choice
            if choice >= 192:
                traits = 1 << choice
            reference = Reference(address, key, type_name, source.number(), traits)
            try:
                proxy = make_proxy(pickle.loads(pickle.dumps(reference)))
                assert repr(proxy).startswith("<Proxy of")
                assert reference_of(proxy) == reference
                assert not is_resolved(proxy)
                assert reference_of(pickle.loads(pickle.dumps(proxy))) == reference
                resolve(proxy)
            except (ProxyExecError, ValueError):
                return
            assert reference.key == there.key
            assert extract(proxy) == [1, 2]

        yield read
