"""The commands ``group …`` and ``store gc``."""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest

from proxyexec import ProxySize, StoreExecutor, _group_cli, _store_cli
from proxyexec.groups import Group, collect_groups, list_groups
from proxyexec_connectors import durable
from tests.functions import add, boom


@pytest.fixture
def run(capsys):
    """Run a command; returns its exit status, and what it has written to both streams."""

    def run(*arguments):
        parser = argparse.ArgumentParser(prog="proxyexec")
        commands = parser.add_subparsers(required=True)
        for room in (_group_cli, _store_cli):
            room.add_to(commands)
        try:
            chosen = parser.parse_args(arguments)
            status = chosen.run(chosen)
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def url(tmp_path):
    return (tmp_path / "groups").as_uri()


def fill(url, group="survey"):
    with StoreExecutor(ThreadPoolExecutor(1), url, ProxySize(1000), task_group=group) as executor:
        wait([executor.submit(add, 1, 2), executor.submit(boom), executor.submit(add, 3, 4)])


def test_listing(run, url):
    assert run("group", "list", url) == (0, "no groups\n", "")
    assert run("group", "list", url, "--json") == (0, "[]\n", "")
    fill(url)
    fill(url, "other")
    status, out, err = run("group", "list", url)
    head, *rows = out.splitlines()
    assert (status, err) == (0, "")
    assert head.split() == ["GROUP", "CREATED", "LAST", "USED", "MAX", "AGE", "OBJECTS", "BYTES"]
    assert [row.split()[0] for row in rows] == ["other", "survey"]
    assert "604,800 s" in rows[0]
    [other, survey] = json.loads(run("group", "list", url, "--json")[1])
    assert survey["name"] == "survey"
    assert survey["objects"] == 6
    assert other["bytes"] > 0


def test_showing(run, url):
    fill(url)
    status, out, _ = run("group", "show", url, "survey")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["TASK", "FUNCTION", "STATE", "SUBMITTED", "SECONDS", "ERROR"]
    assert [line.split()[1:3] for line in lines[1:4]] == [
        ["add", "done"],
        ["boom", "failed"],
        ["add", "done"],
    ]
    assert "ValueError: boom" in lines[2]
    assert lines[4] == "2 done, 1 failed"
    assert len(run("group", "show", url, "survey", "--state", "failed")[1].splitlines()) == 3
    shown = json.loads(run("group", "show", url, "survey", "--json", "--state", "done")[1])
    assert shown["counts"] == {"submitted": 0, "running": 0, "done": 2, "failed": 1, "cancelled": 0}
    assert [task["state"] for task in shown["tasks"]] == ["done", "done"]


def test_an_empty_group(run, url):
    durable.open_session(url, "empty").close()
    assert run("group", "show", url, "empty") == (0, "no tasks\n", "")


def test_cancelling_and_deleting(run, url):
    with closing(durable.open_session(url, "survey")) as session:
        from proxyexec._group_records import CallRecord

        session.put("call.00000001-a", CallRecord("add").frames())
    assert run("group", "show", url, "survey")[1].endswith("1 submitted\n")
    assert run("group", "cancel", url, "survey") == (0, "cancelled 1 task of survey\n", "")
    assert run("group", "show", url, "survey")[1].endswith("1 cancelled\n")
    assert json.loads(run("group", "cancel", url, "survey", "--json")[1]) == {
        "id": "survey",
        "cancelled": 0,
    }
    assert run("group", "delete", url, "survey") == (0, "deleted survey\n", "")
    assert list_groups(url) == []
    status, out, err = run("group", "delete", url, "survey")
    assert (status, out) == (1, "")
    assert "there is no durable session 'survey'" in err


def test_collecting(run, url, tmp_path):
    fill(url, "old")
    fill(url, "young")
    assert run("store", "gc", url) == (0, "removed 0 groups, 0 bytes\n", "")
    weeks_ago = time.time() - 30 * 24 * 3600
    os.utime(tmp_path / "groups" / "durable-old" / "~about", (weeks_ago, weeks_ago))
    with StoreExecutor(ThreadPoolExecutor(1), url, task_group="open"):
        os.utime(tmp_path / "groups" / "durable-open" / "~about", (weeks_ago, weeks_ago))
        status, out, _ = run("store", "gc", url)
        assert status == 0
        assert out.splitlines()[1].split()[0] == "old"
        assert out.splitlines()[-1].startswith("removed 1 group, ")
        assert json.loads(run("store", "gc", url, "--json")[1]) == []
        assert collect_groups(url) == []
        assert [one.name for one in list_groups(url)] == ["open", "young"]


@pytest.mark.parametrize("store", ["memory://", "file://", "nonsense://x", "redis://:se cret@h:x"])
def test_places_that_are_none(run, store):
    for command in (["group", "list", store], ["store", "gc", store]):
        status, out, err = run(*command)
        assert (status, out) == (2, "")
        assert err.startswith("proxyexec: ")
        assert "cret" not in err


def test_usage(run, url):
    assert run("group")[0] == 2
    assert run("group", "show", url)[0] == 2
    assert run("group", "list", url, "--state")[0] == 2
    assert run("store")[0] == 2
    assert run("group", "show", url, "a/b")[0] == 2
    for command in (
        ["group"],
        ["store"],
        *(["group", name] for name in ("list", "show", "cancel", "delete")),
        ["store", "gc"],
    ):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert "example:\n  proxyexec " in out


def test_a_place_from_the_environment(run, url, monkeypatch):
    monkeypatch.setenv("PLACE", url)
    fill(url)
    assert run("group", "list", "env:PLACE") == run("group", "list", url)
    status, _, err = run("group", "list", "env:MISSING")
    assert status == 2
    assert "there is no environment variable 'MISSING'" in err


def test_passwords_are_never_told(run):
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server(requirepass="secret") as server:
        fill(server.url)
        for command in (
            ["group", "list", server.url],
            ["group", "show", server.url, "survey"],
            ["group", "show", server.url, "missing"],
            ["group", "list", server.url.replace("secret", "secretly")],
            [
                "group",
                "list",
                f"redis://:secret@127.0.0.1:{server.port + 1 if server.port < 65535 else 1}/0?timeout=0.1",
            ],
            ["store", "gc", server.url],
            ["group", "cancel", server.url, "survey"],
        ):
            _, out, err = run(*command)
            assert "secret" not in out + err
            assert out or err
        with Group(server.url, "survey") as group:
            assert "secret" not in repr(group)
        assert run("group", "delete", server.url, "survey")[0] == 0
