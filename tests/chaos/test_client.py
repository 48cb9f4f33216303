"""The client is killed, or stopped, while it owns objects."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from proxyexec import ProxyAlways, Store, StoreExecutor
from tests import functions
from tests.chaos.census import eventually, family
from tests.chaos.places import KINDS, place_of
from tests.chaos.programs import hear, program, say


def own_objects(url: str, count: int) -> None:
    """Own some objects, small and large, and wait."""
    store = Store.from_url(url)
    proxies = [store.proxy(np.full(100 if n % 10 else 300_000, n)) for n in range(count)]
    say([os.getpid(), store.usage().objects])
    hear()
    say([int(proxy.sum() // proxy.size) for proxy in proxies])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_client_leaves_is_swept_by_the_next_store(kind):
    with place_of(kind) as place, family() as ours:
        url = place.url + ("?grace=1" if kind == "redis" else "")
        with Store.from_url(url) as living:
            kept = living.proxy([1])
            with program(own_objects, url, 100, family=ours) as client:
                assert client.hear()[1] == 100
                client.kill()
                client.ended()
            assert len(place.objects()) == 101

            def swept() -> bool:
                with Store.from_url(url):
                    return len(place.objects()) == 1

            eventually(swept, "the dead client's objects are removed")
            assert kept == [1]
            del kept
            assert living.usage() == (0, 0)
        if kind != "redis":
            assert place.residue() == []
