"""Where the pipelines of ``tuning.py`` run: executors and stores, and the policies that are tried.

All policies of one setup share its workers, and have a store each, in the same place. So none is
helped or hurt by what its workers have kept.
"""

from __future__ import annotations

import concurrent.futures
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import distributed
import numpy as np
import pandas as pd
from contenders import interrupts_ignored
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.redis import RedisConnector
from sklearn.base import BaseEstimator

from proxyexec import (
    ProxyAdaptive,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    StoreExecutor,
)

if TYPE_CHECKING:
    from proxyexec.policy import ShouldProxy

__all__ = ["ADAPTIVE", "FIXED", "NEVER", "QUICK", "SETUPS", "executors", "policy_named"]

NEVER = "never"
ADAPTIVE = "ProxyAdaptive()"

_DATA = (np.ndarray, pd.DataFrame)

# By what they are called: all that is searched for the best one.
FIXED: dict[str, Callable[[], ShouldProxy]] = {
    NEVER: ProxyNever,
    "always": ProxyAlways,
    **{
        f"size {size}": lambda size=size: ProxySize(size)
        for size in ("10 kB", "30 kB", "100 kB", "300 kB", "1 MB", "3 MB", "10 MB")
    },
    "arrays, frames": lambda: ProxyType(*_DATA),
    "arrays, frames & 100 kB": lambda: ProxyType(*_DATA) & ProxySize("100 kB"),
    "texts, counts": lambda: ProxyType(bytes, Counter),
    "models": lambda: ProxyType(BaseEstimator),
    "models | 1 MB": lambda: ProxyType(BaseEstimator) | ProxySize("1 MB"),
}

# Of these, those of a smoke run.
QUICK = (NEVER, "always", "size 100 kB", "size 1 MB")

_ABOUT_LARGE_GRAPHS = "Sending large graph"


def policy_named(name: str) -> ShouldProxy:
    """Return a policy."""
    return ProxyAdaptive() if name == ADAPTIVE else FIXED[name]()


@contextmanager
def _processes(workers: int) -> Iterator[Any]:
    with interrupts_ignored():
        pool = concurrent.futures.ProcessPoolExecutor(workers)
        list(pool.map(abs, range(workers)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _dask(workers: int) -> Iterator[Any]:
    warnings.filterwarnings("ignore", message=_ABOUT_LARGE_GRAPHS)
    with ExitStack() as stack:
        with interrupts_ignored():
            directory = tempfile.mkdtemp(prefix="dask-")
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                local_directory=directory,
                silence_logs=50,
            )
            stack.callback(cluster.close)
            client = distributed.Client(cluster, set_as_default=False)
            stack.callback(client.close)
        yield client


SETUPS: dict[str, tuple[Callable[[int], Any], Callable[[str], Any]]] = {
    "processes, files": (_processes, lambda _: FileConnector()),
    "processes, Redis": (_processes, RedisConnector),
    "Dask, Redis": (_dask, RedisConnector),
}


@contextmanager
def executors(
    setup: str, policies: list[str], workers: int, redis_url: str
) -> Iterator[dict[str, StoreExecutor]]:
    """Start workers, and an executor around them for each policy; stop all at the end.

    Args:
        setup: one of ``SETUPS``.
        policies: names of them.
        workers: how many.
        redis_url: of a server.
    """
    base, connector = SETUPS[setup]
    with base(workers) as started, ExitStack() as stack:
        made = {}
        for name in policies:
            # Functions get what they are written for.
            executor = StoreExecutor(started, connector(redis_url), policy_named(name), lazy=False)
            stack.callback(executor.shutdown, cancel_futures=True)
            made[name] = executor
        yield made
