"""What an executor says of itself: what it did, what it holds, what it was made of.

Nothing here takes part in running tasks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from proxyexec._sizes import parse_size
from proxyexec._stats import stats_of
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from proxyexec._config_stack import StoreExecutorSpec
    from proxyexec._context import Context
    from proxyexec._explain import Explanation
    from proxyexec._leaks import Leaks
    from proxyexec._stats import Stats
    from proxyexec._store import Store
    from proxyexec._tasks import Tasks
    from proxyexec._trace_writer import TraceWriter

__all__ = ["TUNED", "Described"]

TUNED = "PROXYEXEC_TUNE"
"""The environment variable that says that a program is run by the tuner."""


class Described:
    """The part of a :class:`~proxyexec.StoreExecutor` that describes the rest of it."""

    # What it was made of: the base executor as it was given, or a configuration.
    _given: Any = None
    _spec: StoreExecutorSpec | None = None

    if TYPE_CHECKING:
        _store: Store
        _context: Context
        _tasks: Tasks
        _crosses: bool

    @classmethod
    def from_config(
        cls, source: Any = None, *, allow: Sequence[str] | None = None, environment: bool = True
    ) -> Self:
        """Make an executor, with its base executor, store and policy, from a configuration.

        Nothing is started before all of it has been checked. What it names is imported for that.

        Args:
            source: the path of a file of JSON, TOML or YAML, a mapping, or a
                :class:`~proxyexec.config.StoreExecutorSpec`. ``None`` is the file that
                ``PROXYEXEC_CONFIG`` names, if it does.
            allow: modules that may be imported, with all that are in them; any for ``None``.
            environment: whether variables such as ``PROXYEXEC_STORE`` fill in what ``source`` does
                not say, and come before what a file says.

        Raises:
            ConfigError: something is wrong with it; says where, and what.
            OSError: the file cannot be read.
            MissingExtraError: pydantic is not installed, or what reads such a file.
            Exception: what opening the store, or making the base executor, raised.
        """
        from proxyexec.config import load  # noqa: PLC0415 - most programs need no pydantic

        executor: Self = load(source, allow=allow, environment=environment).build(cls)
        return executor

    def config(self) -> StoreExecutorSpec:
        """Return what this executor was made of, as a configuration.

        Raises:
            ConfigError: data cannot describe it: a policy without a name, say. Says which part.
            MissingExtraError: pydantic is not installed.
        """
        if self._spec is None:
            from proxyexec.config import described  # noqa: PLC0415

            executor: Any = self
            return described(executor)
        return self._spec

    def leaks(self) -> Leaks:
        """Return what is in the store now, and who holds it; see :meth:`Store.leaks`."""
        return self._store.leaks()

    def stats(self) -> Stats:
        """Return what was done so far, in numbers: what moved, how, and what it took.

        Over all processes: workers report with each outcome. Of calls that are small and run for
        next to no time, each worker's last fifth of a millisecond may be missing. See "Seeing what
        moves" in the documentation.
        """
        return stats_of(self._tasks)

    def trace(self, path: str | os.PathLike[str], max_bytes: int | str = "100 MB") -> TraceWriter:
        """Write what happens from now on into a file: a line of JSON for each event.

        It ends when the context manager that this returns does, or its ``close()`` is called, and
        with the executor. See "A trace of a run" in the documentation.

        Objects whose size nobody can tell are serialized for that where calls pass untouched.

        Args:
            path: of the file; what is there is written over.
            max_bytes: how large it may become, in bytes or as ``"100 MB"``. What comes later is
                only counted.

        Raises:
            OSError: the file cannot be written.
            ValueError: ``max_bytes`` is not a size, or below 10 kB.
        """
        # Only now: most programs write none.
        from proxyexec._trace_writer import TraceWriter  # noqa: PLC0415

        if TUNED in os.environ:
            from proxyexec._tune_override import TimedSection  # noqa: PLC0415

            return TimedSection(self._tasks, path)
        return TraceWriter(self._tasks, path, parse_size(max_bytes), self._facts())

    def explain(self, future: Future[Any], /) -> Explanation:
        """Say what was sent for a call, which way, why, and what it cost.

        Of objects that were serialized, stored, or passed on as references, that is known. Those
        that pass at a glance are listed if a trace was being written; and so are all of calls that
        pass untouched, where there is no policy. Nothing is fetched or asked for this.

        Args:
            future: what :meth:`submit` returned. It need not be done; more is known then.

        Raises:
            TypeError: it is not a future of ours.
            ValueError: it is one of another executor.
        """
        from proxyexec._explain import explained  # noqa: PLC0415 - most programs ask for none

        return explained(future, self._tasks)

    def _facts(self) -> dict[str, Any]:
        """Say what is traced."""
        base: Any = getattr(self, "_base", self)
        base = base.client if hasattr(base, "client") else getattr(base, "executor", base)
        workers = getattr(base, "__dict__", {}).get(
            "_max_workers"
        )  # not those that would be started to tell
        url, context = self._store.connector.url, self._context
        return {
            "executor": name_of(type(base)),
            "workers": workers if isinstance(workers, int) else None,
            "crosses": self._crosses,
            "store": url,
            "scheme": url.partition(":")[0],
            "policy": repr(context.policy),
            "lazy": context.lazy,
            "nested": context.nested,
            "dedupe": self._tasks.dedupe,
        }
