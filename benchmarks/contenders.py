"""Who is compared: process pools and what stands in for them, all called in one way.

Each contender has its workers started and warm before it is first timed, is called as its
documentation says, and removes what it made. Those whose library is not installed are left out.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from workloads import pause

import proxyexec

__all__ = ["CONTENDERS", "Contender", "interrupts_ignored"]

# How long a warm-up task lasts, and how many are tried to get every worker to run one.
_WARM_SECONDS = 0.1
_WARM_ROUNDS = 20


class Contender(ABC):
    """A way to call functions in other processes.

    Args:
        workers: the number of processes.
        largest: the largest array in bytes that will be sent, for those who reserve memory.
    """

    name: str
    about: str
    requires: str | None = None
    """What has to be importable."""

    suits: frozenset[str] | None = None
    """The workloads that it takes part in; all, if None."""

    def __init__(self, workers: int, largest: int) -> None:
        self.workers = workers
        self.largest = largest

    @classmethod
    def is_installed(cls) -> bool:
        """Tell whether its library is there."""
        return cls.requires is None or find_spec(cls.requires) is not None

    @abstractmethod
    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run one call in a worker, and wait for its result."""

    @abstractmethod
    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Hand all calls over one by one, then wait for all results."""

    def map_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Make all calls in the way meant for many that are alike: ``map``, where there is one."""
        return self.call_many(function, calls)

    def broadcast(self, function: Callable[..., Any], array: Any, *, tasks: int) -> list[Any]:
        """Hand over one task after another with the same argument, then wait for all results."""
        return self.call_many(function, [(array,)] * tasks)

    def map_partial(
        self, function: Callable[..., Any], fixed: Any, items: Sequence[Any]
    ) -> list[Any]:
        """Run a function on each item, the first argument always being the same."""
        return self.call_many(partial(function, fixed), [(item,) for item in items])

    def chain(self, function: Callable[..., Any], first: Any, *, stages: int) -> Any:
        """Run a function on what it returned before, and so on; return the last result."""
        value = first
        for _ in range(stages):
            value = self.call(function, value)
        return value

    @abstractmethod
    def close(self) -> None:
        """Stop the workers, and remove everything."""

    def plain(self, result: Any) -> Any:
        """Return what a result is underneath, for checks outside of the time."""
        return result

    def warm_up(self, modules: Sequence[str]) -> None:
        """Have every worker run a task, and import modules."""
        seen: set[int] = set()
        for _ in range(_WARM_ROUNDS):
            seen.update(self.call_many(pause, [(_WARM_SECONDS, modules)] * self.workers))
            if len(seen) >= self.workers:
                return


class Direct(Contender):
    """The function called in this process: what no pool can beat."""

    name = "direct"
    about = "the function itself, in the calling process"

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        return [function(*arguments) for arguments in calls]

    def warm_up(self, modules: Sequence[str]) -> None:
        """There is nothing to start."""

    def close(self) -> None:
        """There is nothing to stop."""


class _Executor(Contender):
    """Anything with ``submit`` and futures."""

    executor: Any

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.executor.submit(function, *arguments).result()

    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        submit = self.executor.submit
        futures = [submit(function, *arguments) for arguments in calls]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # Nobody wants the others any more, and whoever shuts down would wait for them.
            for future in futures:
                future.cancel()
            raise

    def map_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        columns = zip(*calls, strict=True)
        return list(self.executor.map(function, *columns))

    def map_partial(
        self, function: Callable[..., Any], fixed: Any, items: Sequence[Any]
    ) -> list[Any]:
        return list(self.executor.map(partial(function, fixed), items))

    def close(self) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)


class Raw(_Executor):
    """The standard library's pool."""

    name = "raw"
    about = "concurrent.futures.ProcessPoolExecutor"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        self.executor = concurrent.futures.ProcessPoolExecutor(workers)


class ProxyExec(_Executor):
    """This library's drop-in pool, as it comes."""

    name = "proxyexec"
    about = "proxyexec.ProcessPoolExecutor"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        self.executor = proxyexec.ProcessPoolExecutor(workers)

    def map_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        columns = zip(*calls, strict=True)
        return list(self.executor.map(function, *columns, chunksize="auto"))

    def chain(self, function: Callable[..., Any], first: Any, *, stages: int) -> Any:
        future = self.executor.submit(function, first)
        for _ in range(stages - 1):
            # A future stands for its result: what is between the stages never comes here.
            future = self.executor.submit(function, future)
        return future.result()


class ProxyStore(_Executor):
    """ProxyStore's executor over the standard library's pool, owned results, files in memory.

    Arrays are proxied whatever their size, nothing else is; arrays in containers are not seen.
    Its cache of resolved objects is off, as it would keep gigabytes, except for a model: this is
    what it is for.
    """

    name = "proxystore"
    about = "proxystore StoreExecutor, ProxyType(ndarray), FileConnector in shared memory"
    requires = "proxystore"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        self._extract = import_module("proxystore.proxy").extract
        self._proxy = import_module("proxystore.proxy").Proxy
        self._key_of = import_module("proxystore.store.utils").get_key
        self._into_owned = import_module("proxystore.store.ref").into_owned
        self._directory = _directory_in_memory("proxystore")
        name = Path(self._directory).name
        self._store = self._new_store(name, cache_size=0)
        self._models = self._new_store(f"{name}-models", cache_size=1)
        pool = concurrent.futures.ProcessPoolExecutor(workers)
        self.executor = self._over(pool, ownership=True)
        self._passing_on = self._over(pool, ownership=False)

    def _new_store(self, name: str, *, cache_size: int) -> Any:
        store = import_module("proxystore.store").Store
        connector = import_module("proxystore.connectors.file").FileConnector
        return store(name, connector(self._directory), cache_size=cache_size)

    def _over(self, pool: Any, *, ownership: bool) -> Any:
        library = import_module("proxystore.store.executor")
        return library.StoreExecutor(
            pool, self._store, library.ProxyType(np.ndarray), ownership=ownership
        )

    def map_partial(
        self, function: Callable[..., Any], fixed: Any, items: Sequence[Any]
    ) -> list[Any]:
        # Its executor does not look into a partial, and never forgets a function it was given.
        model = self._models.proxy(fixed, populate_target=False)
        try:
            return super().map_partial(function, model, items)
        finally:
            self._models.evict(self._key_of(model))

    def chain(self, function: Callable[..., Any], first: Any, *, stages: int) -> Any:
        # An owned result would be fetched and stored once more on its way to the next stage.
        result = self._passing_on.submit(function, first).result()
        for _ in range(stages - 1):
            former, result = result, self._passing_on.submit(function, result).result()
            self._store.evict(self._key_of(former))
        return self._into_owned(result)

    def plain(self, result: Any) -> Any:
        return self._extract(result) if isinstance(result, self._proxy) else result

    def close(self) -> None:
        super().close()
        self._models.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class Loky(_Executor):
    """Joblib's process pool on its own."""

    name = "loky"
    about = "loky.get_reusable_executor"
    requires = "loky"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        # Workers stay while the others have their turn.
        self.executor = import_module("loky").get_reusable_executor(workers, timeout=3600)

    def close(self) -> None:
        # Never with kill_workers: killed while it sends, a worker leaves loky waiting forever.
        self.executor.shutdown(wait=True)


class Joblib(Contender):
    """Joblib over loky: arguments of more than 1 MB are mapped from files in shared memory.

    They are removed after each call. Within a ``with`` block they would stay until its end.
    """

    name = "joblib"
    about = "joblib.Parallel, loky backend, arguments above 1 MB memory-mapped in shared memory"
    requires = "joblib"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        joblib = import_module("joblib")
        self._directory = _directory_in_memory("joblib")
        self._delayed = joblib.delayed
        # With other options here, joblib would restart the workers between one and the other.
        parallel = partial(
            joblib.Parallel,
            n_jobs=workers,
            backend="loky",
            max_nbytes=1_000_000,
            temp_folder=self._directory,
        )
        # One task is one message, as with the others: by itself joblib batches tiny tasks.
        self._parallel = parallel(batch_size=1, pre_dispatch="all")
        self._batching = parallel()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._parallel([self._delayed(function)(*arguments)])[0]

    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        delayed = self._delayed(function)
        return list(self._parallel([delayed(*arguments) for arguments in calls]))

    def map_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        delayed = self._delayed(function)
        return list(self._batching(delayed(*arguments) for arguments in calls))

    def chain(self, function: Callable[..., Any], first: Any, *, stages: int) -> Any:
        with self._parallel:
            return super().chain(function, first, stages=stages)

    def close(self) -> None:
        import_module("joblib.externals.loky").get_reusable_executor(reuse=True).shutdown()
        shutil.rmtree(self._directory, ignore_errors=True)


class Ray(Contender):
    """Ray on this machine: large arguments go into its object store by themselves."""

    name = "ray"
    about = "ray remote functions, local node; results are read-only arrays in its store"
    requires = "ray"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = import_module("ray")
        # The path of a socket in here must not get long.
        self._directory = tempfile.mkdtemp(prefix="ray-")
        self._remote: dict[Callable[..., Any], Any] = {}
        self._ray.init(
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=max(4 * largest, 500_000_000),
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=self._directory,
        )

    def _submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        remote = self._remote.get(function)
        if remote is None:
            remote = self._remote[function] = self._ray.remote(function)
        return remote.remote(*arguments)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._ray.get(self._submit(function, arguments))

    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        return list(self._ray.get([self._submit(function, arguments) for arguments in calls]))

    def broadcast(self, function: Callable[..., Any], array: Any, *, tasks: int) -> list[Any]:
        # Given the array itself, it would store that for each task.
        return super().broadcast(function, self._ray.put(array), tasks=tasks)

    def map_partial(
        self, function: Callable[..., Any], fixed: Any, items: Sequence[Any]
    ) -> list[Any]:
        model = self._ray.put(fixed)
        return self.call_many(function, [(model, item) for item in items])

    def chain(self, function: Callable[..., Any], first: Any, *, stages: int) -> Any:
        result = self._submit(function, (first,))
        for _ in range(stages - 1):
            result = self._submit(function, (result,))
        return self._ray.get(result)

    def close(self) -> None:
        self._ray.shutdown()
        shutil.rmtree(self._directory, ignore_errors=True)


class Dask(Contender):
    """A local Dask cluster: what many tasks share is scattered once.

    Only for such workloads: what else is large would be sent within the task's
    description, which Dask itself warns of.
    """

    name = "dask"
    about = "dask.distributed LocalCluster of processes; Client.scatter, to all workers"
    requires = "distributed"
    suits = frozenset({"broadcast", "partial"})

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        distributed = import_module("distributed")
        self._directory = tempfile.mkdtemp(prefix="dask-")
        self._cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,
            local_directory=self._directory,
            silence_logs=50,
        )
        self._client = distributed.Client(self._cluster)

    def _gather(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        # Not pure: calls with equal arguments are to be made, not looked up.
        futures = [self._client.submit(function, *one, pure=False) for one in calls]
        return list(self._client.gather(futures))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._gather(function, [arguments])[0]

    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        return self._gather(function, calls)

    def map_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        columns = zip(*calls, strict=True)
        return list(self._client.gather(self._client.map(function, *columns, pure=False)))

    def _scatter(self, value: Any) -> Any:
        # By content it would have to be hashed first.
        return self._client.scatter(value, broadcast=True, hash=False)

    def broadcast(self, function: Callable[..., Any], array: Any, *, tasks: int) -> list[Any]:
        return self._gather(function, [(self._scatter(array),)] * tasks)

    def map_partial(
        self, function: Callable[..., Any], fixed: Any, items: Sequence[Any]
    ) -> list[Any]:
        model = self._scatter(fixed)
        return self._gather(function, [(model, item) for item in items])

    def close(self) -> None:
        self._client.close()
        self._cluster.close()
        shutil.rmtree(self._directory, ignore_errors=True)


CONTENDERS: dict[str, type[Contender]] = {
    # Those that fork come first, while this process has few threads.
    one.name: one
    for one in (Direct, Raw, ProxyExec, ProxyStore, Loky, Joblib, Ray, Dask)
}


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Let processes that start within ignore Ctrl-C: it is this process that ends them.

    Nor do they inherit what this process does when it is terminated.
    """
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)


def _directory_in_memory(name: str) -> str:
    memory = Path("/dev/shm")
    return tempfile.mkdtemp(prefix=f"compare-{name}-", dir=memory if memory.is_dir() else None)
