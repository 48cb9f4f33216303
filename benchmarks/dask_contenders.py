"""Who is compared on Dask: the client as it is, with ``scatter``, and with ours around it.

Each has a ``LocalCluster`` of its own, started and warm before it is first timed. Its scheduler is
in this process, as Dask has it.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import distributed
import numpy as np
from contenders import Contender, interrupts_ignored
from proxyexec_connectors.file import FileConnector

from proxyexec import ProxySize, StoreExecutor

__all__ = ["BY_HAND", "OURS", "WAYS", "OnDask", "started"]

# What a client with ours around it keeps in files.
_LARGE = "100 kB"

# What Dask says of large graphs; here they are on purpose.
_ABOUT_LARGE_GRAPHS = "Sending large graph"


class OnDask(Contender):
    """A way to use a cluster of Dask.

    What it hands out as futures can be arguments of further calls.
    """

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        self._directory = tempfile.mkdtemp(prefix="dask-")
        self._closing = ExitStack()
        self._closing.callback(shutil.rmtree, self._directory, ignore_errors=True)
        try:
            self.cluster: Any = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                local_directory=self._directory,
                silence_logs=50,
            )
            self._closing.callback(self.cluster.close)
            self.client: Any = distributed.Client(self.cluster, set_as_default=False)
            self._closing.callback(self.client.close)
        except BaseException:
            self._closing.close()
            raise

    def hand_over(self, value: Any) -> Any:
        """Make data ready to be the argument of a call."""
        return value

    def hand_over_to_all(self, value: Any) -> Any:
        """Make data ready to be the argument of calls in all workers."""
        return self.hand_over(value)

    @abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Give the cluster a call; arguments may be futures."""

    @abstractmethod
    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Wait for results."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.gather([self.submit(function, *map(self._handed_over, arguments))])[0]

    def call_many(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        return self.gather([self.submit(function, *arguments) for arguments in calls])

    def broadcast(self, function: Callable[..., Any], array: Any, *, tasks: int) -> list[Any]:
        return self.call_many(function, [(self.hand_over_to_all(array),)] * tasks)

    def chain(self, function: Callable[..., Any], first: Any, *, stages: int) -> Any:
        future = self.hand_over(first)
        for _ in range(stages):
            future = self.submit(function, future)
        return self.gather([future])[0]

    def close(self) -> None:
        with interrupts_ignored():
            self._closing.close()

    def _handed_over(self, value: Any) -> Any:
        return self.hand_over(value) if isinstance(value, np.ndarray) else value

    def processes(self) -> list[int]:
        """Return the process ids of the workers."""
        return [worker.process.pid for worker in self.cluster.workers.values()]

    def connections(self) -> Iterator[socket.socket]:
        """Return the connections of the scheduler, which is in this process."""
        scheduler = self.cluster.scheduler
        for comm in (*scheduler._comms, *scheduler.rpc._created):
            stream = getattr(comm, "stream", None)
            if stream is not None and stream.socket is not None:
                yield stream.socket


class Plain(OnDask):
    """The client as it is: arguments are part of the task."""

    name = "plain"
    about = "Client.submit with the objects themselves"

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # Not pure: calls with equal arguments are to be made, not looked up.
        return self.client.submit(function, *arguments, pure=False)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(futures))


class Scattered(Plain):
    """The client, with data given to workers before the calls that need them."""

    name = "scatter"
    about = "Client.scatter, then Client.submit; to all workers where all need them"

    def hand_over(self, value: Any) -> Any:
        # By content it would have to be hashed first.
        return self.client.scatter(value, hash=False)

    def hand_over_to_all(self, value: Any) -> Any:
        return self.client.scatter(value, hash=False, broadcast=True)


class ScatteredDirectly(Scattered):
    """The same, past the scheduler: Dask does so if asked, where the client reaches the workers."""

    name = "scatter direct"
    about = "the same with direct=True, and results from workers directly"

    def hand_over(self, value: Any) -> Any:
        return self.client.scatter(value, hash=False, direct=True)

    def hand_over_to_all(self, value: Any) -> Any:
        return self.client.scatter(value, hash=False, direct=True, broadcast=True)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(futures, direct=True))


class Wrapped(OnDask):
    """The client with ours around it."""

    name = "wrapped"
    about = f"StoreExecutor(client, FileConnector(), ProxySize({_LARGE!r}), lazy=False)"

    def __init__(self, workers: int, largest: int) -> None:
        super().__init__(workers, largest)
        policy = ProxySize(_LARGE)
        # Functions get what Dask would give them, and what they are written for.
        self.executor = StoreExecutor(self.client, FileConnector(), policy, lazy=False)
        self._closing.callback(self.executor.shutdown, cancel_futures=True)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.executor.submit(function, *arguments)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [future.result() for future in futures]


class Proxied(Wrapped):
    """Ours, with data stored once by hand, as scatter is used by hand."""

    name = "wrapped proxy"
    about = "the same with executor.store.proxy(array), once, where others scatter"

    def hand_over(self, value: Any) -> Any:
        return self.executor.store.proxy(value)


WAYS: dict[str, type[OnDask]] = {
    one.name: one for one in (Plain, Scattered, ScatteredDirectly, Wrapped, Proxied)
}
OURS = frozenset({Wrapped.name, Proxied.name})
BY_HAND = Proxied.name


@contextmanager
def started(names: Sequence[str], workers: int, largest: int) -> Iterator[list[OnDask]]:
    """Start and warm up a cluster for each way; stop them at the end, whatever happens.

    Args:
        names: of the ways.
        workers: the number of processes of each.
        largest: the largest array in bytes that will be sent.
    """
    warnings.filterwarnings("ignore", message=_ABOUT_LARGE_GRAPHS)
    with ExitStack() as stack:
        ready = []
        for name in names:
            print(f"starting {name}: {WAYS[name].about}", file=sys.stderr)
            with interrupts_ignored():
                contender = WAYS[name](workers, largest)
                stack.callback(contender.close)
            contender.warm_up(["numpy"])
            ready.append(contender)
        yield ready
