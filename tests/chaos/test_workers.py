"""A worker is killed before its call, during it, while and after storing the result, or later."""

from __future__ import annotations

import contextlib
import itertools
import os
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, wait

import numpy as np
import pytest

from proxyexec import ProxySize, Store, StoreExecutor
from tests.chaos import suffering
from tests.chaos.census import PATIENCE
from tests.chaos.places import KINDS, place_of

WORKERS = 2

# Small ones are a file, or a string; large ones a segment, or a hash of pieces.
SIZES = [20_000, 600_000]


@pytest.fixture(scope="module", params=KINDS)
def place(request):
    with place_of(request.param) as place:
        yield place


def arrays(size):
    return [np.full(size, number, np.int64) for number in range(8)]


CASES = list(itertools.product(suffering.STAGES, SIZES, ["lazy", "eager", "nested"]))


@pytest.mark.parametrize(
    ("stage", "size", "how"),
    CASES if os.environ.get("PROXYEXEC_LONG") else CASES[::5],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_worker_that_is_killed_fails_futures_as_the_bare_pool_does(place, stage, size, how):
    with Store.from_url(place.url) as store:
        empty = sorted(place.residue())
        executor = StoreExecutor(
            ProcessPoolExecutor(WORKERS),
            store,
            ProxySize(1000),
            close_store=False,
            lazy=how != "eager",
            nested=how == "nested",
        )
        with executor:
            before = [executor.submit(suffering.grow, array) for array in arrays(size)]
            assert [int(future.result()[-1]) for future in before] == list(range(1, 9))
            beside = [executor.submit(suffering.grow, array) for array in arrays(size)]
            given = suffering.arguments_for(stage, np.full(size, 3, np.int64))
            doomed = executor.submit(stage, *given)
            with contextlib.suppress(BrokenExecutor):  # when it is known already
                beside += [executor.submit(suffering.grow, array) for array in arrays(size)]
            assert not wait([doomed, *beside], PATIENCE).not_done
            assert isinstance(doomed.exception(), BrokenExecutor)
            for number, future in enumerate(beside):
                # Those that another worker had delivered by then have their values.
                if future.exception() is None:
                    assert int(future.result()[-1]) == number % 8 + 1
                else:
                    assert isinstance(future.exception(), BrokenExecutor)
            with pytest.raises(BrokenExecutor):
                executor.submit(suffering.grow, 1)
            # What had been delivered is there.
            assert [int(future.result()[0]) for future in before] == list(range(1, 9))
        del before, doomed, beside, future
        assert store.usage() == (0, 0)
        assert place.objects() == []
        # The store goes on, with a new pool.
        with StoreExecutor(
            ProcessPoolExecutor(1), store, ProxySize(1000), close_store=False
        ) as again:
            assert int(again.submit(suffering.grow, np.full(size, 5)).result()[-1]) == 6
        assert store.usage() == (0, 0)
        assert _without_ballast(place.residue()) == _without_ballast(empty)
    assert place.objects() == []


def _without_ballast(names):
    """What is in a place, but for free segments, and marks that say nothing of objects."""
    return sorted(
        name for name in names if "/~" not in name and not name.endswith((":index", ":sessions"))
    )
