"""The commands ``proxyexec config …``, and the files of the documentation."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pydantic_settings")

from proxyexec import StoreExecutor
from proxyexec._config_trial import try_out
from proxyexec.cli import main
from proxyexec.config import StoreExecutorSpec, load, schema
from tests.test_examples import ROOT, files_of

POOL = "concurrent.futures:ProcessPoolExecutor"
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("PROXYEXEC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "stack.json"
        path.write_text(json.dumps(data))
        return str(path)

    return write


class TestCheck:
    def test_a_tree(self, write, capsys):
        path = write(
            {
                "executor": {
                    "type": POOL,
                    "max_workers": 2,
                    "mp_context": {"$call": "multiprocessing:get_context", "args": ["spawn"]},
                    "initializer": {"$name": "tests.configured:start"},
                    "initargs": [1],
                },
                "store": {
                    "url": f"redis://:{SECRET}@cache:6379/0",
                    "max_bytes": "2 GB",
                    "cache_bytes": 1500,
                    "full_timeout": None,
                },
                "should_proxy": {
                    "kind": "any",
                    "policies": [
                        {"kind": "all", "policies": ["1 MB", {"kind": "not", "policy": "always"}]},
                        {"kind": "type", "types": ["builtins:str", "builtins:bytes"]},
                        {
                            "kind": "custom",
                            "policy": "tests.configured:Longer",
                            "kwargs": {"limit": 3},
                        },
                    ],
                },
                "lazy": False,
                "serializers": {"data": ["json", "pickle"]},
            }
        )
        assert main(["config", "check", path]) == 0
        assert capsys.readouterr().out == (
            "StoreExecutor\n"
            "├── executor: concurrent.futures:ProcessPoolExecutor (shut down with it)\n"
            "│   ├── max_workers: 2\n"
            "│   ├── mp_context: multiprocessing:get_context(...)\n"
            "│   │   └── 0: spawn\n"
            "│   ├── initializer: tests.configured:start\n"
            "│   └── initargs: [1]\n"
            "├── store: redis://:***@cache:6379/0\n"
            "│   ├── full_timeout: none\n"
            "│   ├── max_bytes: 2 GB\n"
            "│   └── cache_bytes: 1.5 kB\n"
            "├── should_proxy: any of\n"
            "│   ├── all of\n"
            "│   │   ├── at least 1 MB\n"
            "│   │   └── not\n"
            "│   │       └── everything\n"
            "│   ├── instances of builtins:str or builtins:bytes\n"
            "│   └── as tests.configured:Longer says\n"
            "│       └── limit: 3\n"
            "├── serializers\n"
            "│   └── data: json, pickle\n"
            "└── lazy: no\n"
        )

    def test_what_may_do_something_to_a_terminal(self, write, capsys):
        name = "\x1b[2J\nstore: redis://"
        assert main(["config", "check", write({"store": {"url": "memory://", "name": name}})]) == 0
        assert "│   └── name: \\x1b[2J\\nstore: redis://\n" in capsys.readouterr().out.replace(
            "    └── ", "│   └── "
        )
        assert main(["config", "check", write({name: 1})]) == 1
        assert "\x1b" not in capsys.readouterr().err

    def test_secrets_of_the_store(self, write, capsys):
        arguments = {"a": 1, "password": SECRET}
        serializer = {"callable": "tests.configured:rest", "kwargs": arguments}
        store = {"url": "memory://", "name": f"x://:{SECRET}@h", "serializer": serializer}
        assert main(["config", "check", write({"store": store})]) == 0
        out = capsys.readouterr().out
        assert "password: ***\n" in out
        assert SECRET not in out

    def test_notes(self, write, capsys):
        path = write({"store": "redis://:${NOT_SET_HERE}@cache"})
        assert main(["config", "check", path]) == 0
        assert capsys.readouterr().out.endswith(
            "\n\nnote: nothing goes through the store: say what should, as in "
            'should_proxy = "1 MB"\n'
            "note: the environment variable NOT_SET_HERE is not set here\n"
        )

    def test_what_is_wrong(self, write, capsys):
        path = write({"lazy": "x", "store": f"rdis://:{SECRET}@h"})
        assert main(["config", "check", path]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith(f"proxyexec: {path} has 2 problems:\n  store.url: no connector for")
        assert SECRET not in err

    def test_no_file(self, tmp_path, capsys):
        assert main(["config", "check", str(tmp_path / "no.toml")]) == 2
        assert capsys.readouterr().err.endswith("no.toml: No such file or directory\n")

    def test_allowed_modules(self, write, capsys):
        path = write({"should_proxy": "tests.configured:is_long"})
        assert main(["config", "check", path, "--allow", "tests"]) == 0
        assert main(["config", "check", path, "--allow", "concurrent", "--allow", "json"]) == 1
        assert "which is not allowed; concurrent, json is" in capsys.readouterr().err

    def test_the_environment(self, write, capsys, monkeypatch):
        path = write({})
        monkeypatch.setenv("PROXYEXEC_SHOULD_PROXY", "7 MB")
        main(["config", "check", path])
        assert "should_proxy: at least 7 MB" in capsys.readouterr().out
        main(["config", "check", path, "--no-environment"])
        assert "should_proxy: nothing" in capsys.readouterr().out


class TestTry:
    @pytest.mark.parametrize(
        ("more", "sent"),
        [
            ({"should_proxy": "100 kB"}, "; a text of 1 MB was sent through the store"),
            ({}, "; a text of 1 MB was sent inline"),
            ({"should_proxy": "100 kB", "lazy": False}, ""),
            (
                {"serializers": {"code": "reference", "data": "json"}},
                "; a text of 1 MB was sent inline",
            ),
        ],
    )
    def test_works(self, more, sent, write, capsys, tmp_path):
        path = write(
            {"executor": {"max_workers": 1}, "store": f"file://{tmp_path}/objects", **more}
        )
        assert main(["config", "check", path, "--try"]) == 0
        out, err = capsys.readouterr()
        assert not err
        number = r"\d+\.\d\d"
        assert re.search(
            rf"\nbuilt in {number} s\n"
            rf"a worker was there after {number} s\n"
            rf"a task ran in process \d+ in {number} s, and read 1 MB from the store{sent}\n"
            rf"taken down in {number} s\n$",
            out,
        )
        assert not list((tmp_path / "objects").glob("*/*"))

    def test_leaves_task_groups_alone(self, write, capsys, tmp_path):
        path = write(
            {
                "executor": {"type": "concurrent.futures:ThreadPoolExecutor", "life": "persistent"},
                "store": f"file://{tmp_path}/groups",
                "task_group": "survey",
            }
        )
        assert main(["config", "check", path, "--try"]) == 0
        assert "a task ran in this process" in capsys.readouterr().out
        assert main(["group", "list", f"file://{tmp_path}/groups", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (
                {"executor": {"type": "tests.configured:Picky", "max_workers": 9}},
                "it cannot be built: ConfigError: executor: too many",
            ),
            (
                {"store": "redis://:${NOT_SET_HERE}@h"},
                "it cannot be built: ConfigError: store: the environment variable NOT_SET_HERE is not "
                "set, which ${NOT_SET_HERE} names",
            ),
            (
                {
                    "store": "memory://",
                    "executor": {"max_workers": 1},
                    "should_proxy": "100 kB",
                },
                "a task failed: ForeignProcessError: memory:// lives in the memory of process",
            ),
        ],
    )
    def test_does_not(self, data, message, write, capsys):
        assert main(["config", "check", write(data), "--try"]) == 1
        assert message in capsys.readouterr().err

    def test_workers_that_never_start(self, write, capsys):
        path = write({"executor": {"max_workers": 1, "initializer": {"$name": "signal:pause"}}})
        command = [sys.executable, "-m", "proxyexec", "config", "check", path, "--try"]
        done = subprocess.run(
            [*command, "--timeout", "0.5"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert "proxyexec: no worker ran a task within 0.5 s\n" in done.stderr

    def test_nobody_reads_on(self, write, tmp_path):
        spec = load(write({"store": f"file://{tmp_path}/objects", "executor": {"max_workers": 1}}))
        lines = try_out(spec, 60)
        assert next(lines).startswith("built in ")
        assert list((tmp_path / "objects").glob("*/*"))
        lines.close()
        assert not list((tmp_path / "objects").glob("*/*"))

    def test_interrupted(self, write, tmp_path):
        fifo = tmp_path / "started"
        os.mkfifo(fifo)
        path = write(
            {
                "executor": {
                    "max_workers": 1,
                    "initializer": {"$name": "tests.test_config_cli:hang"},
                    "initargs": [str(fifo)],
                },
                "store": f"file://{tmp_path}/objects",
            }
        )
        with subprocess.Popen(
            [sys.executable, "-m", "proxyexec", "config", "check", path, "--try"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as command:
            fifo.read_text()  # its worker has started, and hangs
            command.send_signal(signal.SIGINT)
            _, err = command.communicate(timeout=60)
        assert command.returncode == 130
        assert "proxyexec: interrupted; what was built has been taken down\n" in err
        assert not list((tmp_path / "objects").glob("*/*"))


def hang(fifo):
    Path(fifo).write_text("started")
    signal.pause()


class TestSchema:
    def test_is_one(self, capsys):
        jsonschema = pytest.importorskip("jsonschema")
        assert main(["config", "schema"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed == schema()
        jsonschema.Draft202012Validator.check_schema(printed)

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"executor": POOL, "store": "memory://", "should_proxy": 5},
            {"executor": {"max_workers": 2}},
            {"executor": {"type": POOL, "life": "persistent", "kwargs": {"max_workers": 2}}},
            {
                "should_proxy": {
                    "kind": "all",
                    "policies": ["1 MB", {"kind": "not", "policy": "never"}],
                }
            },
            {
                "store": {
                    "url": "memory://",
                    "max_bytes": "2 GB",
                    "serializer": "proxyexec:PickleSerializer",
                }
            },
            StoreExecutorSpec(executor=POOL, store="memory://", should_proxy="1 MB").model_dump(),
        ],
    )
    def test_what_is_right(self, data):
        jsonschema = pytest.importorskip("jsonschema")
        load(data)
        jsonschema.validate(data, schema())

    @pytest.mark.parametrize(
        "data",
        [
            {"exector": POOL},
            {"lazy": "perhaps"},
            {"store": {"max_bytes": 5}},
            {"executor": {"life": "forever"}},
            {"should_proxy": {"kind": "siz"}},
            {"should_proxy": {"minimum": 5}},
        ],
    )
    def test_what_is_wrong(self, data):
        jsonschema = pytest.importorskip("jsonschema")
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, schema())


class TestDocumentation:
    FILES = files_of(ROOT / "docs" / "configuration.md")

    @pytest.mark.parametrize("name", FILES)
    def test_files(self, name, tmp_path, monkeypatch):
        if name == "cluster.yaml":
            pytest.importorskip("distributed")
        path = tmp_path / name
        path.write_text(self.FILES[name])
        spec = load(path)
        assert StoreExecutorSpec.model_validate_json(spec.model_dump_json()) == spec
        if name == "workers.json":
            with StoreExecutor.from_config(path) as executor:
                assert executor.submit(pow, 2, 3).result() == 8
