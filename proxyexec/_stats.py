"""What an executor has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyexec._measures import Counts
from proxyexec._sizes import format_size
from proxyexec._table import html_table, seconds_text, text_table

if TYPE_CHECKING:
    from proxyexec._tasks import Tasks

__all__ = ["Stats", "stats_of"]


@dataclass(frozen=True, repr=False)
class Stats:
    """What an executor has done so far, over all processes; printed, it is a table.

    Seconds are sums over all tasks, in whichever process. What is stored, evicted and fetched here
    is that of the executor's store, whoever uses it.
    """

    tasks_submitted: int
    tasks_done: int
    tasks_failed: int
    tasks_cancelled: int
    tasks_in_flight: int
    calls_done: int
    """Those of tasks that are done; there are several in a chunk of a map."""
    objects_inline: int
    """Sent through the base executor, serialized; not those that pass at a glance, as small."""
    bytes_inline: int
    objects_stored: int
    bytes_stored: int
    objects_deduplicated: int
    """Not stored, as something with the same content was."""
    bytes_deduplicated: int
    objects_referenced: int
    """Results and proxies that were passed on, as references."""
    bytes_referenced: int
    objects_resolved: int
    """Fetched from the store, once for each time, by tasks and in this process."""
    bytes_resolved: int
    objects_never_resolved: int
    """Gone from the store, and never fetched. Not counted are those given to a task that failed."""
    bytes_never_resolved: int
    serialize_seconds: float
    put_seconds: float
    """Storing, and looking whether the same is stored; waiting for room included."""
    wait_seconds: float
    """From giving a task to the base executor to having its outcome, less what its worker took.

    Of tasks that are done. That is waiting for a worker, and being sent there and back.
    """
    unpack_seconds: float
    """What tasks took to make objects of what they were given, fetching included."""
    resolve_seconds: float
    """Fetching, and making objects of what was fetched, by tasks and in this process."""
    call_seconds: float
    """In the functions that were called, resolving their proxies included."""
    objects_live: int
    """Stored now."""
    bytes_live: int
    bytes_peak: int
    """The most that was stored at a time."""
    evictions: int
    bytes_evicted: int
    eviction_failures: int
    """How often evicting failed; it is tried again."""

    def __repr__(self) -> str:
        tasks = (
            f"{self.tasks_submitted} tasks submitted: {self.tasks_done} done "
            f"({self.calls_done} calls), {self.tasks_failed} failed, "
            f"{self.tasks_cancelled} cancelled, {self.tasks_in_flight} in flight"
        )
        return f"{tasks}\n{text_table(_COLUMNS, self._rows())}"

    def _repr_html_(self) -> str:
        first, _, _ = repr(self).partition("\n")
        return f"<p>{first}</p>{html_table(_COLUMNS, self._rows())}"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        facts: list[tuple[str, int | None, int | None, float | None]] = [
            ("sent inline", self.objects_inline, self.bytes_inline, None),
            ("stored", self.objects_stored, self.bytes_stored, self.put_seconds),
            ("found stored already", self.objects_deduplicated, self.bytes_deduplicated, None),
            ("passed on as references", self.objects_referenced, self.bytes_referenced, None),
            ("serializing", None, None, self.serialize_seconds),
            ("fetched", self.objects_resolved, self.bytes_resolved, self.resolve_seconds),
            ("never fetched", self.objects_never_resolved, self.bytes_never_resolved, None),
            ("stored now", self.objects_live, self.bytes_live, None),
            ("stored at most", None, self.bytes_peak, None),
            ("evicted", self.evictions, self.bytes_evicted, None),
            ("evicting failed", self.eviction_failures, None, None),
            ("waiting for workers", None, None, self.wait_seconds),
            ("unpacking arguments", None, None, self.unpack_seconds),
            ("in functions", None, None, self.call_seconds),
        ]
        return [
            (
                what,
                "" if number is None else f"{number}",
                "" if size is None else format_size(size),
                "" if seconds is None else seconds_text(seconds),
            )
            for what, number, size, seconds in facts
        ]


_COLUMNS = ("", "objects", "bytes", "time")


def stats_of(tasks: Tasks) -> Stats:
    """Return what there is to say of an executor's tasks, and of its store."""
    counts = tasks.measures.settled()
    live = tasks.store.live
    in_flight = tasks.in_flight()
    ended = counts.tasks_done + counts.tasks_failed + counts.tasks_cancelled
    # In a forked child, nothing is known of what is stored.
    read = Counts() if live is None else live.read
    return Stats(
        tasks_submitted=ended + in_flight,
        tasks_done=counts.tasks_done,
        tasks_failed=counts.tasks_failed,
        tasks_cancelled=counts.tasks_cancelled,
        tasks_in_flight=in_flight,
        calls_done=counts.calls,
        objects_inline=counts.objects_inline,
        bytes_inline=counts.bytes_inline,
        objects_stored=counts.objects_stored,
        bytes_stored=counts.bytes_stored,
        objects_deduplicated=counts.objects_found,
        bytes_deduplicated=counts.bytes_found,
        objects_referenced=counts.objects_reference,
        bytes_referenced=counts.bytes_reference,
        objects_resolved=counts.objects_resolved + read.objects_resolved,
        bytes_resolved=counts.bytes_resolved + read.bytes_resolved,
        objects_never_resolved=0 if live is None else live.unread,
        bytes_never_resolved=0 if live is None else live.unread_bytes,
        serialize_seconds=counts.serialize_s,
        put_seconds=counts.put_s,
        wait_seconds=max(0.0, counts.turnaround_s - counts.worker_s),
        unpack_seconds=counts.unpack_s,
        resolve_seconds=counts.get_s + counts.load_s + read.get_s + read.load_s,
        call_seconds=counts.run_s,
        objects_live=0 if live is None else len(live),
        bytes_live=0 if live is None else live.bytes,
        bytes_peak=0 if live is None else live.peak_bytes,
        evictions=0 if live is None else live.evicted,
        bytes_evicted=0 if live is None else live.evicted_bytes,
        eviction_failures=tasks.store.eviction_failures,
    )
