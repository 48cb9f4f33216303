"""What type checkers must see of the public interface; checked by mypy and pyright, not run."""

from __future__ import annotations

import concurrent.futures
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_type

from proxyexec import (
    Policy,
    ProcessPoolExecutor,
    ProgressCounts,
    Proxy,
    ProxyAdaptive,
    ProxySize,
    ProxyType,
    Reference,
    Store,
    StoreExecutor,
    TaskFuture,
    ThreadPoolExecutor,
    clone,
    extract,
    own,
    progress,
    reference_of,
)
from proxyexec.aio import AsyncStoreExecutor, Handle
from proxyexec.groups import Group, GroupTaskInfo
from proxyexec.policy import CostModel, Decision
from proxyexec.serializers import Arrived, Payload, Serializers, check, encode
from proxyexec_connectors.durable import DurableConnector, open_session
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector

if TYPE_CHECKING:
    from proxyexec_connectors import Connector


def concat(base: str, *, num: int) -> str:
    return f"{base}-{num}"


def length(text: str) -> int:
    return len(text)


def add(one: int, other: int) -> int:
    return one + other


def show(counts: ProgressCounts) -> None:
    assert_type(counts.total, "int | None")


def submits(
    executor: StoreExecutor, pool: ProcessPoolExecutor, threads: ThreadPoolExecutor
) -> None:
    assert_type(executor.submit(concat, "a", num=1), TaskFuture[str])
    assert_type(pool.submit(length, "a").result(), int)
    assert_type(threads.submit(length, "a").exception(), "BaseException | None")
    future: Future[str] = executor.submit(concat, "a", num=1)
    executor.submit(concat, 5, num=1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(concat, "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    del future


def chains(executor: StoreExecutor, pool: ProcessPoolExecutor) -> None:
    text = executor.submit(concat, "a", num=1)
    assert_type(executor.submit(length, text), TaskFuture[int])
    assert_type(pool.submit(add, 1, executor.submit(length, text)).result(), int)
    assert_type(list(pool.map(length, [text])), "list[int]")


def pools(pool: ProcessPoolExecutor, threads: ThreadPoolExecutor) -> None:
    standard: concurrent.futures.ProcessPoolExecutor = pool
    other: concurrent.futures.ThreadPoolExecutor = threads
    ours: list[StoreExecutor] = [pool, threads]
    StoreExecutor(standard, nested=True, dedupe=False, lazy=False, ownership=False)
    del other, ours


def proxies(proxy: Proxy, executor: StoreExecutor) -> None:
    assert_type(reference_of(proxy), Reference)
    # What a policy has made a proxy of is, to its users, what it stands for.
    assert_type(executor.submit(length, "a").result() + 1, int)


def maps(executor: StoreExecutor) -> None:
    assert_type(executor.map(length, ["a"]), Iterator[int])
    assert_type(
        list(executor.map(length, ["a"], chunksize=5, buffersize=2, timeout=1)), "list[int]"
    )
    assert_type(executor.map(length, ["a"], chunksize="auto"), Iterator[int])
    assert_type(executor.map(length, ["a"], progress=True), Iterator[int])
    assert_type(executor.map(length, ["a"], progress=show), Iterator[int])
    executor.map(length, ["a"], progress=length)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for future in progress([executor.submit(length, "a")], total=1, callback=show):
        assert_type(future.result(), int)
    executor.map(length, ["a"], chunksize="fast")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def coroutines(executor: AsyncStoreExecutor, texts: AsyncIterator[str]) -> None:
    text = executor.submit(concat, "a", num=1)
    assert_type(text, Handle[str])
    assert_type(await text, str)
    assert_type(await executor.retrieve(text), str)
    assert_type(await executor.retrieve("a proxy, to all who look"), str)
    assert_type(executor.submit(length, text), Handle[int])
    assert_type(await executor.submit(add, 1, executor.submit(length, text)), int)
    executor.submit(concat, 5, num=1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert_type(executor.map(length, ["a"]), AsyncGenerator[int, None])
    async for one in executor.map(add, texts, [1], buffersize=2, timeout=1.5):
        assert_type(one, int)
    async with executor as same:
        assert_type(same, AsyncStoreExecutor)
    await executor.shutdown(wait=False, cancel_futures=True)


def serializers() -> None:
    chosen = Serializers(code="reference", data=["json", "pickle"], results=["json"])
    assert_type(StoreExecutor(None, serializers=chosen).submit(length, "a"), TaskFuture[int])
    assert_type(check(length, "a", isolated=True, serializers=chosen), Arrived)
    assert_type(encode(1, "json", what="one"), Payload)
    Serializers(data=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def policies() -> None:
    assert_type(ProxyType(list) & ProxySize("1 MB"), Policy)
    assert_type(~ProxyType(list), Policy)
    adaptive = ProxyAdaptive("1 GB", calibrate=False)
    assert_type(adaptive & ~ProxyType(str), Policy)
    assert_type(adaptive.frozen(), Policy)
    assert_type(adaptive.explain([], "result"), Decision)
    assert_type(adaptive.costs, CostModel | None)
    StoreExecutor(None, should_proxy=lambda obj: obj is not None)
    StoreExecutor(None, "memory://", ProxySize(5) | (lambda obj: bool(obj)))


def stores(store: Store) -> None:
    assert_type(store.put([1]), Reference)
    assert_type(store.proxy([1]), "list[int]")
    assert_type(clone(own(store.proxy("a"))), str)
    assert_type(extract(store.proxy("a")), str)


def connectors() -> None:
    made: list[Connector] = [FileConnector(), MemoryConnector()]
    del made
    durable: DurableConnector = FileConnector()
    assert_type(durable.keys("call."), list[str])
    assert_type(open_session("file:///directory", "name"), DurableConnector)


def task_groups() -> None:
    executor = StoreExecutor(None, "file:///directory", task_group=True, task_group_max_age=3600)
    StoreExecutor(None, "file:///directory", task_group="name")
    assert_type(executor.task_group_id, "str | None")
    assert_type(executor.task_count_submitted, int)
    assert_type(executor.reload_tasks(resubmit=False), list[TaskFuture[Any]])
    assert_type(executor.register(length), str)
    assert_type(executor.submit_registered("id", "text", n=1), TaskFuture[Any])
    with executor.batch():
        assert_type(executor.submit(length, "text"), TaskFuture[int])
    with Group("file:///directory", "name") as group:
        assert_type(group.tasks(), list[GroupTaskInfo])
