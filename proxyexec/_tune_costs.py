"""What moving objects costs where a traced run could go: measured here, with workers like its own.

A trace says of which kind its base executor was, not how to make it again: a pool of as many
processes is made, a local cluster for Dask, or what a configuration describes. What was measured
before with such workers and such a store is taken from the user's cache.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from proxyexec import _calibrate
from proxyexec._costs import KINDS, SIDES, CostModel, Curve, Kind
from proxyexec._executor import StoreExecutor
from proxyexec._store import Store
from proxyexec._tune_ranking import Place
from proxyexec.errors import MissingExtraError, ProxyExecError, TuneError
from proxyexec.policy import ProxyAdaptive

if TYPE_CHECKING:
    from proxyexec._trace import TraceHeader

__all__ = ["places_for"]

# How long it may measure, where a program would not wait for it.
_SECONDS = 3.0

# Objects up to this size are measured, in bytes; and again, if they are so many times as large as
# what was measured before.
_LARGEST = 64_000_000
_BEYOND = 2

# What is measured of a store where tasks stay in the process, in bytes.
_SIZES = (4_000, 100_000, 1_000_000, 4_000_000)
_ROUNDS = 5


def places_for(
    header: TraceHeader,
    stores: list[str],
    *,
    workers: int,
    largest: int = 0,
    arrays: bool = False,
    executor: Any = None,
    again: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[list[Place], list[str]]:
    """Measure what moving objects costs, in the store of a trace and in others.

    Args:
        header: of the trace.
        stores: URLs of others; one may be the trace's own, with its password.
        workers: how many tasks ran at a time.
        largest: bytes of the largest object of the run.
        arrays: whether the run had arrays, which some executors know better than other memory.
        executor: the specification of the base executor; ``None`` to make one like the trace's.
        again: whether to measure what was measured before, too.
        say: told what goes on, in words.

    Returns:
        What was measured, the trace's own store first; and what there is to say of that.

    Raises:
        TuneError: no store could be reached, or nothing be measured.
    """
    if arrays:
        with contextlib.suppress(ImportError):  # what is loaded is measured
            importlib.import_module("numpy")
    found: dict[str, Place] = {}
    notes: list[str] = []
    failures: list[str] = []
    urls = [*stores, header.store]
    for url in urls:
        own = url == header.store
        if own and header.store in found:  # given with its password
            continue
        try:
            place = _place(header, url, workers, largest, executor, notes, again=again, say=say)
        except (ProxyExecError, OSError, ValueError, RuntimeError) as error:
            failures.append(str(error))
            if not own:
                raise TuneError("a store cannot be tried", str(error)) from error
            notes.append(f"the run's own store cannot be tried: {error}")
        else:
            found.setdefault(place.store, place)
    if not found:
        hint = "give it, with a password if it needs one, or another one with --store"
        raise TuneError("no store could be tried", f"{'; '.join(failures)}: {hint}")
    own_first = sorted(found.values(), key=lambda one: one.store != header.store)
    return own_first, list(dict.fromkeys(notes))


def _place(
    header: TraceHeader,
    url: str,
    workers: int,
    largest: int,
    executor: Any,
    notes: list[str],
    *,
    again: bool,
    say: Callable[[str], object],
) -> Place:
    if not header.crosses:
        with contextlib.closing(Store.from_url(url)) as store:
            return Place(store.connector.url, _of_one_process(store), "measured in one process")
    with _base(header, workers, executor, notes) as base:
        policy = ProxyAdaptive()
        with StoreExecutor(base, url, policy, lazy=header.lazy) as measuring:
            shown = measuring.store.connector.url
            costs, source = policy.costs, "measured before, and kept"
            largest = min(largest, _LARGEST)
            if costs is None or again or largest > _BEYOND * _largest_of(costs):
                say(f"measuring {shown}")
                _calibrate_with(measuring, largest)
                costs, source = policy.costs, "measured just now"
    if costs is None:
        raise TuneError(shown, "nothing was measured")
    return Place(shown, costs, source)


def _calibrate_with(executor: StoreExecutor, largest: int) -> None:
    learner = executor._learner
    assert learner is not None  # noqa: S101 - it has the policy
    learner.calibrate(_SECONDS, largest)


def _largest_of(costs: CostModel) -> int:
    """Return the largest size that was measured."""
    return max(size for curve in costs.curves.values() for size, _ in curve.points)


@contextlib.contextmanager
def _base(header: TraceHeader, workers: int, spec: Any, notes: list[str]) -> Iterator[Any]:
    """Make a base executor like that of a trace."""
    if spec is not None:
        with _uninterrupted():
            raw = spec.build()
        try:
            yield spec.base_of(raw)
        finally:
            spec.close(raw)
        return
    name = header.executor
    if name.startswith(("distributed.", "dask.")):
        notes.append(f"costs are those of a local Dask cluster with {workers} workers")
        with _dask(workers) as client:
            yield client
        return
    if not name.endswith("ProcessPoolExecutor"):
        notes.append(
            f"costs are those of a pool of {workers} processes, which stands for {name}: "
            "describe yours with --config to have it measured"
        )
    # Shut down with the executor around it, for which its workers have to live.
    yield ProcessPoolExecutor(
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have processes that are started meanwhile overhear who interrupts: this one ends them.

    Without workers, a cluster would be waited for in vain. What comes in meanwhile is not lost.
    """
    resource_tracker.ensure_running()  # which would have the signal come through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _dask(workers: int) -> Iterator[Any]:
    try:
        import distributed  # noqa: PLC0415 - most need no Dask
    except ModuleNotFoundError as missing:
        raise MissingExtraError("a trace of a Dask cluster", "dask") from missing
    made: Any = distributed  # none of its constructors is typed
    with contextlib.ExitStack() as undo:
        with _uninterrupted():
            cluster = undo.enter_context(
                made.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    # On any port: the usual one may be that of the user's own cluster.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=50,
                )
            )
        yield undo.enter_context(made.Client(cluster, set_as_default=False))


def _of_one_process(store: Store) -> CostModel:
    """Return the costs where objects can stay as they are: nothing, if they are not stored."""
    nothing = Curve(((0, 0.0),))
    curves: dict[Any, Curve] = {}
    for kind in KINDS:
        put, get = _timed(store, kind)
        curves["argument", kind, "put"] = put
        curves["argument", kind, "get"] = get
        whole = Curve.through(
            {size: put.seconds(size) + get.seconds(size) for size, _ in put.points}
        )
        for side in SIDES:
            curves[side, kind, "inline"] = nothing
            curves[side, kind, "store"] = whole
        curves["argument", kind, "found"] = get
    return CostModel(curves)


def _timed(store: Store, kind: Kind) -> tuple[Curve, Curve]:
    puts: dict[int, float] = {}
    gets: dict[int, float] = {}
    for size in _SIZES:
        obj = _calibrate.made(kind, size, arrays=False)
        samples = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            reference = store.put(obj)
            stored = time.perf_counter()
            _calibrate.read(store.get(reference))
            samples.append((stored - start, time.perf_counter() - stored))
            store.evict(reference)
        puts[size] = min(one for one, _ in samples)
        gets[size] = min(one for _, one in samples)
    return Curve.through(puts), Curve.through(gets)
