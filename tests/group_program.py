"""A program with a task group that is killed and run again, for tests.

``python -m tests.group_program STORE GROUP BASE RUNS TASKS``, where ``BASE`` is the address of a
Dask scheduler, or ``pool``. Each task appends a line to the file ``RUNS`` when it runs. The program
writes a byte to its standard output for each step that it has taken, and a line when it has found
all results right.
"""

from __future__ import annotations

import os
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed

from proxyexec import ProxySize, StoreExecutor

SIZE = 1_000_000


def data_of(number: int) -> bytes:
    """The argument of a task."""
    return (b"%08d" % number) * (SIZE // 8)


def work(number: int, data: bytes, runs: str) -> tuple[int, bytes]:
    """The task: a small part of its result, and one that is stored."""
    descriptor = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    return zlib.crc32(bytes(data)), bytes(data[: 150_000 + number])


def is_right(number: int, result: tuple[int, bytes]) -> bool:
    data = data_of(number)
    crc, part = result
    return crc == zlib.crc32(data) and bytes(part) == data[: 150_000 + number]


def main(url: str, group: str, base: str, runs: str, tasks: int) -> None:
    def step(what: bytes) -> None:
        os.write(1, what)

    if base == "pool":
        pool = ProcessPoolExecutor(2)
    else:
        from distributed import Client

        pool = Client(base, set_as_default=False)
    executor = StoreExecutor(pool, url, ProxySize("100 kB"), task_group=group, lazy=False)
    with executor:
        step(b"o")
        futures = executor.reload_tasks()
        step(b"l")
        for number in range(len(futures), tasks):
            futures.append(executor.submit(work, number, data_of(number), runs))
            step(b"s")
        for _ in as_completed(futures):
            step(b"d")
        assert executor.task_count_submitted == tasks
        assert all(is_right(number, one.result()) for number, one in enumerate(futures))
    if base != "pool":
        pool.close()
    step(b"\nright\n")


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
