"""One configuration, in each form of file, for each executor."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("pydantic_settings")
distributed = pytest.importorskip("distributed")
pytest.importorskip("loky")

from distributed import Client
from pydantic import ValidationError

from proxyexec import StoreExecutor, is_proxy
from proxyexec.config import (
    ContextExecutor,
    ExecutorSpec,
    PersistentExecutor,
    StoreExecutorSpec,
    load,
)
from tests.engines.dask_cluster import cluster

EXECUTORS = {
    "threads": {"type": "concurrent.futures:ThreadPoolExecutor", "max_workers": 2},
    "processes": {"type": "concurrent.futures:ProcessPoolExecutor", "max_workers": 2},
    "loky": {"type": "loky:ProcessPoolExecutor", "max_workers": 2},
    "reusable": {"type": "loky:get_reusable_executor", "max_workers": 2},
    "dask": {"type": "distributed:Client"},
}


@pytest.fixture(scope="module")
def address():
    with cluster("only") as running:
        yield running.address


def as_toml(data, name=""):
    """Tables of texts and numbers."""
    lines = [f"[{name}]"] if name else []
    lines += [
        f"{key} = {json.dumps(one)}" for key, one in data.items() if not isinstance(one, dict)
    ]
    for key, one in data.items():
        if isinstance(one, dict):
            lines += as_toml(one, f"{name}.{key}" if name else key)
    return lines


def as_yaml(data, indent=""):
    lines = []
    for key, one in data.items():
        if isinstance(one, dict):
            lines += [f"{indent}{key}:", *as_yaml(one, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(one)}")
    return lines


WRITERS = {
    "json": json.dumps,
    "toml": lambda data: "\n".join(as_toml(data)),
    "yaml": lambda data: "\n".join(as_yaml(data)),
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("name", EXECUTORS)
def test_each_executor_from_each_form(name, form, tmp_path, address):
    executor = dict(EXECUTORS[name])
    if name == "dask":
        executor["address"] = address
    data = {
        "executor": executor,
        "store": f"file://{tmp_path}/objects",
        "should_proxy": {"kind": "size", "minimum": "10 kB"},
    }
    path = tmp_path / f"stack.{form}"
    path.write_text(WRITERS[form](data))
    with StoreExecutor.from_config(path) as executor:
        lengths = list(executor.map(len, [b"1" * 10, b"2" * 50_000]))
        large = executor.submit(bytes, 50_000)
        linked = executor.submit(len, large)
        assert executor.config() == load(data)
    assert lengths == [10, 50_000]
    assert linked.result() == 50_000
    # Also of a client that is closed by now.
    assert is_proxy(large.result())
    assert bytes(large.result()) == bytes(50_000)


def test_workers_that_never_start(tmp_path):
    path = tmp_path / "stack.json"
    data = {"executor": {**EXECUTORS["loky"], "initializer": {"$name": "signal:pause"}}}
    path.write_text(json.dumps(data))
    command = [sys.executable, "-m", "proxyexec", "config", "check", str(path), "--try"]
    done = subprocess.run([*command, "--timeout", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "proxyexec: no worker ran a task within 1 s\n" in done.stderr


class TestClients:
    def test_made_for_each_use(self, address):
        spec = ContextExecutor[Client](address=address)
        assert spec.shutdown_method == "close"
        with spec as executor:
            futures = [executor.submit(pow, 2, number) for number in range(20)]
            client = executor._base.client
        assert [future.result() for future in futures] == [2**number for number in range(20)]
        assert client.status == "closed"
        with spec as executor:
            assert executor.submit(int).result() == 0

    def test_made_once(self, address):
        spec = PersistentExecutor[Client](address=address)
        stack = StoreExecutorSpec(executor=spec, store="file://", should_proxy="1 kB")
        with spec as executor:
            assert executor.submit(pow, 2, 3).result() == 8
        with spec as executor:
            client = executor._base.client
        for _ in range(2):
            with stack.build() as executor:
                assert len(executor.submit(bytes, 5000).result()) == 5000
                assert executor._base.client is client
        with spec as executor:
            assert executor.submit(pow, 2, 3).result() == 8
        assert client.status == "running"
        spec.shutdown()
        assert client.status == "closed"

    def test_closed_later(self, address):
        spec = StoreExecutorSpec(
            executor={"type": "distributed:Client", "address": address},
            store="file://",
        )
        executor = spec.build()
        client = executor._base.client
        futures = [executor.submit(pow, 2, number) for number in range(20)]
        executor.shutdown(wait=False)
        assert [future.result() for future in futures] == [2**number for number in range(20)]
        executor.shutdown(wait=True)
        assert client.status == "closed"

    def test_an_executor_of_one(self, address):
        with Client(address) as client:
            given = client.get_executor()
            spec = ExecutorSpec(executor=given)
            assert spec.build() is given
            dumped = spec.model_dump_json()
            assert json.loads(dumped)["live"]
            for one in (given, client):
                stack = StoreExecutorSpec(
                    executor={"executor": one, "life": "persistent"}, store="file://"
                )
                for _ in range(2):
                    with stack.build() as executor:
                        assert executor.submit(pow, 2, 3).result() == 8
            assert given.submit(pow, 2, 3).result() == 8
            assert client.submit(pow, 2, 3).result() == 8
            with StoreExecutor(client, "file://") as executor:
                assert executor.config().executor.live
        with pytest.raises(ValidationError, match="this was a live executor of type"):
            ExecutorSpec.model_validate_json(dumped)
