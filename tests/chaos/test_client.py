"""The client is killed, or stopped for longer than its heartbeat, while it owns objects."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from proxyexec import ProxyAlways, Store, StoreExecutor
from tests.chaos import suffering
from tests.chaos.census import eventually, family
from tests.chaos.places import KINDS, place_of
from tests.chaos.programs import hear, program, say

# Seconds for which an owner may be silent in Redis.
GRACE = 2


@pytest.fixture(params=KINDS)
def place(request):
    with place_of(request.param) as place:
        yield place


@pytest.fixture
def url(place):
    return place.url + (f"?grace={GRACE}" if place.url.startswith("redis") else "")


def own_objects(url: str, count: int) -> None:
    """Own some objects, small and large, and wait."""
    store = Store.from_url(url)
    proxies = [store.proxy(np.full(100 if n % 10 else 300_000, n)) for n in range(count)]
    say(store.usage().objects)
    hear()
    say([int(proxy.sum() // proxy.size) for proxy in proxies])
    hear()


def have_workers(url: str) -> None:
    """Have tasks under way, and results that nobody has asked for."""
    with StoreExecutor(ProcessPoolExecutor(2), url, ProxyAlways()) as executor:
        results = [executor.submit(suffering.grow, np.full(300_000, n)) for n in range(20)]
        [result.result() for result in results]
        results += [executor.submit(suffering.grow, np.full(300_000, n)) for n in range(200)]
        say([process for process in executor._base._processes])
        hear()


def test_what_a_killed_client_leaves_is_swept_by_the_next_store(place, url):
    with Store.from_url(url) as living, family() as ours:
        kept = [living.proxy(np.full(size, size)) for size in (10, 300_000)]
        with program(own_objects, url, 100, family=ours) as client:
            assert client.hear() == 100
            client.kill()
            client.ended()
        assert len(place.objects()) == 102
        _sweep(place, url, but=2)
        assert [int(proxy.sum() // proxy.size) for proxy in kept] == [10, 300_000]
        del kept
        assert living.usage() == (0, 0)
    _nothing_is_left(place)


def test_workers_whose_client_was_killed_keep_nothing_alive(place, url):
    """They outlive it, as the standard library's do, and may be storing results."""
    with family() as ours:
        with program(have_workers, url, family=ours) as client:
            workers = client.hear()
            client.kill()
            assert client.process.wait()
            assert set(ours.members()) <= {*workers} or ours.members()
            _sweep(place, url, but=0)
            ours.kill()
            _sweep(place, url, but=0)
    _nothing_is_left(place)


def test_what_a_stopped_client_has_is_not_swept_from_under_it(place, url):
    with family() as ours, program(own_objects, url, 20, family=ours) as client:
        assert client.hear() == 20
        client.kill(signal.SIGSTOP)
        if url.startswith("redis"):
            with Store.from_url(url):
                assert len(place.objects()) == 20
            _sweep(place, url, but=0)
            client.kill()
        else:
            for _ in range(3):
                with Store.from_url(url):
                    assert len(place.objects()) == 20
            client.kill(signal.SIGCONT)
            client.tell()
            assert client.hear() == list(range(20))
            client.tell()
            assert client.ended() == (0, "")
    _nothing_is_left(place)


def _sweep(place, url: str, but: int) -> None:
    """Open stores until the dead client's objects are gone; in Redis, that takes the grace."""

    def swept() -> bool:
        with Store.from_url(url):
            return len(place.objects()) == but

    eventually(swept, f"{len(place.objects())} objects become {but}")


def _nothing_is_left(place) -> None:
    if place.url.startswith("redis"):
        assert place.objects() == []
        assert not [name for name in place.residue() if name.count(":") > 1]
    else:
        assert place.residue() == []
