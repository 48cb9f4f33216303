"""The command ``top``: what it shows of a place, in a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields

import pytest

pytest.importorskip("rich")

from rich.console import Console

from proxyexec import ProxySize, Store, StoreExecutor, cli
from proxyexec import _top_store as top_store
from proxyexec._store_listing import listing_of
from proxyexec._top_store import StoreSource
from proxyexec._top_trace import TraceSource, duration_text
from proxyexec._sizes import format_size
from proxyexec._top_view import Rates, Screen, ScreenTable, View
from proxyexec.metrics import TraceHeader, TraceMoved
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.listing import StoredObject, StoredSession
from tests.functions import boom, make_list, total

ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@pytest.fixture(params=["files", "redis"])
def url(request, tmp_path):
    if request.param == "files":
        yield (tmp_path / "objects").as_uri()
        return
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    with redis_server(requirepass="secret") as server:
        yield server.url


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            status = cli.main(["top", *arguments])
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    return run


def drawn(screen, width=100, height=40, *, fits=True):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(View(screen, fits=fits))
    return console.file.getvalue()


# --- what is seen of a place -------------------------------------------------------------------


def facts(screen):
    return dict(screen.facts)


def test_a_place(url):
    with closing(StoreSource(listing_of(url))) as source, closing(Store.from_url(url)) as store:
        store.put([1])
        screen = source.screen()
        assert screen.rates is None  # one look tells of none
        assert facts(screen)["sessions"] == "1"
        assert facts(screen)["objects"] == "1"
        sessions, largest = screen.tables
        assert [row[0] for row in sessions.rows] == [store.connector._session]
        assert sessions.rows[0][2] == "alive"
        assert largest.rows[0][3] == "list"
        assert screen.history == [store.usage().bytes]
        assert "secret" not in drawn(screen)


def test_what_has_changed_since(url):
    with closing(StoreSource(listing_of(url))) as source, closing(Store.from_url(url)) as store:
        first = store.put(b"x" * 1000)
        store.put(b"x" * 2000)
        source.screen()
        before = time.monotonic()
        store.evict(first)
        large = store.put(b"x" * 300_000)
        screen = source.screen()
        longest = time.monotonic() - before + 1
        rates = screen.rates
        assert rates.put_objects == rates.evicted_objects > 0
        # What took at most so long was moved at least so fast.
        assert rates.put_bytes >= 300_000 / longest
        assert rates.put_bytes > 100 * rates.evicted_bytes >= 100 * 1000 / longest
        assert screen.tables[1].rows[0][0] == large.key
        assert len(screen.history) == 2
        assert source.screen().rates == Rates(0, 0, 0, 0)


class Listing:
    """A place that says what it is told to."""

    url = "place://"

    def __init__(self):
        self.held = {}

    def sessions(self):
        return [
            StoredSession(
                name, "session", "alive", "h", 1, 0.0, len(held), sum(one.bytes for one in held)
            )
            for name, held in self.held.items()
        ]

    def objects(self, session):
        return self.held[session]

    def start(self, session, key):
        return None

    def close(self):
        pass


def test_a_key_that_is_used_again():
    listing = Listing()
    source = StoreSource(listing)
    listing.held["a"] = [StoredObject("key", 10, 1.0)]
    source.screen()
    listing.held["a"] = [StoredObject("key", 20, 2.0)]
    rates = source.screen().rates
    assert rates.put_objects == rates.evicted_objects > 0
    assert rates.put_bytes == pytest.approx(2 * rates.evicted_bytes)


def test_too_many_objects_to_look_at(monkeypatch):
    monkeypatch.setattr(top_store, "_LISTED_AT_MOST", 3)
    listing = Listing()
    source = StoreSource(listing)
    listing.held["a"] = [StoredObject(f"{n}", 10, 1.0) for n in range(3)]
    source.screen()
    listing.held["a"] += [StoredObject(f"{n}", 10, 1.0) for n in range(3, 6)]
    screen = source.screen()
    assert "more than 3 objects" in screen.notes[0]
    assert len(screen.tables) == 1
    assert (screen.rates.put_objects > 0, screen.rates.evicted_objects) == (True, 0)
    listing.held["a"] = listing.held["a"][:1]
    rates = source.screen().rates
    assert (rates.put_objects, rates.evicted_objects > 0) == (0, True)


def test_a_server_that_goes_and_comes_back():
    pytest.importorskip("redis")
    from proxyexec.errors import ConnectorUnavailableError
    from tests.redis_server import redis_server

    with redis_server() as server:
        url = f"{server.url}?timeout=0.2"
        with closing(StoreSource(listing_of(url))) as source:
            store = Store.from_url(url)
            store.put([1])
            source.screen()
            server.stop()
            screen = source.screen()
            assert "what is shown is old" in screen.notes[0]
            assert facts(screen)["objects"] == "1"
            with closing(StoreSource(listing_of(url))) as other:
                with pytest.raises(ConnectorUnavailableError):
                    other.screen()
            server.start()
            assert not source.screen().notes
            store.close_or_log()


# --- what is seen of a trace -------------------------------------------------------------------


class Tracing:
    """Writes lines of a trace."""

    def __init__(self, path):
        self.path = path
        self.file = open(path, "w")
        self.number = 0

    def write(self, **facts):
        self.file.write(json.dumps(facts) + "\n")
        self.file.flush()

    def header(self, **facts):
        names = [one.name for one in fields(TraceHeader)]
        header = {**dict.fromkeys(names, ""), "proxyexec_trace": 1, "started": time.time()}
        self.write(**{**header, "executor": "Pool", "store": "place://", **facts})

    def task(self, function, ended, *moved, run_s=0.5, state="done"):
        self.number += 1
        self.write(
            event="task",
            t=ended,
            ended=ended,
            submitted=ended - 1,
            task=f"task-{self.number}",
            function=function,
            calls=1,
            state=state,
            error="",
            started=None,
            worker="host:1",
            wait_s=0.25,
            unpack_s=0.0,
            run_s=run_s,
            pack_s=0.0,
            moved=list(moved),
            resolved=[],
        )

    def evicted(self, t, key, size):
        self.write(event="evicted", t=t, key=key, bytes=size, stored_s=1.0, resolved=True)


def moved(what, key, size, path="store", name=None):
    names = [one.name for one in fields(TraceMoved)]
    facts = {"what": what, "key": key, "bytes": size, "path": path, "name": name, "type": "list"}
    return {**dict.fromkeys(names, ""), **facts}


@pytest.fixture
def tracing(tmp_path):
    tracing = Tracing(tmp_path / "run.jsonl")
    with closing(tracing.file):
        yield tracing


@pytest.fixture
def trace(tracing):
    with closing(TraceSource(str(tracing.path))) as source:
        yield source


def rows(screen, title):
    [table] = [table for table in screen.tables if table.title == title]
    return [tuple(row) for row in table.rows]


def test_a_trace_that_grows(tracing, trace):
    assert trace.screen().notes == ["nothing has been written there yet"]
    tracing.header()
    screen = trace.screen()
    assert "Pool, place://" in screen.title
    assert facts(screen)["tasks"] == "0"
    tracing.task("load", 2.0, moved("result", "a", 1000), run_s=3.0)
    tracing.task(
        "use", 4.0, moved("argument", "b", 500, name=0), moved("argument", "", 7, "inline")
    )
    tracing.task(
        "use", 5.0, moved("argument", "b", 500, "found", name=0), run_s=None, state="failed"
    )
    screen = trace.screen()
    assert facts(screen)["tasks"] == "3 (1 not done)"
    assert facts(screen)["inline"] == "7 B"
    assert facts(screen)["stored"] == "1.5 kB"
    assert facts(screen)["live"] == "1.5 kB in 2"
    assert screen.rates.put_objects > 0
    assert screen.rates.put_bytes == pytest.approx(750 * screen.rates.put_objects)
    assert screen.rates.evicted_objects == 0
    assert rows(screen, "Functions") == [
        ("load", "1", "0", "3 s", "250 ms", "0 B", "1 kB"),
        ("use", "2", "1", "500 ms", "500 ms", "7 B", "500 B"),
    ]
    assert [row[:3] for row in rows(screen, "Slowest tasks")] == [
        ("load", "3 s", "250 ms"),
        ("use", "500 ms", "250 ms"),
        ("use", "", "250 ms"),
    ]
    assert rows(screen, "Largest objects") == [
        ("a", "1 kB", "list", "result of load", "live"),
        ("b", "500 B", "list", "argument 0 of use", "live"),
    ]
    tracing.evicted(6.0, "a", 1000)
    tracing.file.write('{"event": "tas')  # a line that is not whole yet
    tracing.file.flush()
    screen = trace.screen()
    assert facts(screen)["live"] == "500 B in 1"
    assert screen.rates.put_objects == 0
    assert screen.rates.evicted_objects > 0
    assert screen.rates.evicted_bytes == pytest.approx(1000 * screen.rates.evicted_objects)
    assert rows(screen, "Largest objects")[0][-1] == "evicted"
    assert trace.screen().rates == Rates(0, 0, 0, 0)


def test_a_program_that_is_run_again(tracing, trace):
    tracing.header()
    tracing.task("one", 1.0, moved("argument", "k0", 1_000, name=0))
    assert facts(trace.screen())["live"] == "1 kB in 1"
    tracing.file.truncate(0)
    tracing.file.seek(0)
    tracing.header(started=time.time() + 1, executor="Another pool")
    tracing.task("two", 1.0, moved("argument", "k1", 500, name=0))
    tracing.task("two", 2.0)
    screen = trace.screen()
    assert "Another pool" in screen.title
    assert (facts(screen)["tasks"], facts(screen)["live"]) == ("2", "500 B in 1")
    assert [row[0] for row in rows(screen, "Functions")] == ["two"]


def test_a_trace_that_is_over(tracing, trace):
    tracing.header(started=1.0)
    tracing.task("load", 2.0, moved("result", "a", 1000))
    tracing.evicted(6.0, "a", 1000)
    tracing.write(event="full", t=7.0)
    tracing.write(event="end", t=10.0, left_out=3, stats=None)
    screen = trace.screen()
    assert list(vars(screen.rates).values()) == pytest.approx([0.1, 100, 0.1, 100])
    assert "full after 7 s" in screen.notes[0]
    assert "ended after 10 s, 3 events left out" in screen.notes[1]
    # Live from the second second to the sixth, of ten.
    live = [value > 0 for value in screen.history]
    assert live.count(True) == pytest.approx(len(live) * 0.4, abs=2)
    assert live.index(True) == pytest.approx(len(live) * 0.2, abs=2)
    assert screen.history[-1] == 0
    assert trace.screen().rates == screen.rates


def test_what_is_remembered_of_a_long_trace():
    from proxyexec._top_trace import _Points

    points = _Points()
    for number in range(100_000):
        points.add(number / 10, number)
    assert 500 < len(points.times) <= 2000
    assert points.times == sorted(points.times)
    drawn = points.drawn(10_000)
    assert drawn == sorted(drawn)
    for number, value in enumerate(drawn):
        assert value == pytest.approx(100_000 * (number + 1) / len(drawn), abs=500)
    assert _Points().drawn(10) == []


def test_files_that_are_no_traces(run, tmp_path):
    newer, damaged = tmp_path / "newer", tmp_path / "damaged"
    newer.write_text('{"proxyexec_trace": 999}\n')
    damaged.write_text("no trace\n")
    for path in (newer, damaged, tmp_path / "missing", tmp_path):
        status, out, err = run(str(path), "--once", "--interval", "0.01")
        assert (status, out) == (1, "")
        assert "cannot be read" in err


def test_a_real_trace(run, tmp_path):
    path = tmp_path / "run.jsonl"
    with (
        StoreExecutor(ThreadPoolExecutor(1), (tmp_path / "o").as_uri(), ProxySize(100)) as executor,
        executor.trace(path),
    ):
        assert executor.submit(total, list(range(1000))).result() == 499_500
        assert len(executor.submit(make_list, 1000).result()) == 1000
        with pytest.raises(ValueError, match="boom"):
            executor.submit(boom).result()
    status, out, err = run(str(path), "--once", "--interval", "0.01")
    assert (status, err) == (0, "")
    assert "tasks 3 (1 not done)" in out
    for expected in ("argument 0 of total", "result of make_list", "it ended after"):
        assert expected in out


# --- how it looks ------------------------------------------------------------------------------


def screen_of(rows=5):
    return Screen(
        "title",
        [("objects", "5"), ("live", "1 MB")],
        Rates(1.5, 2e6, 0, 0),
        [0.0, 1.0, 2.0, 4.0],
        [
            ScreenTable("First", ("A", "B"), [(f"a{n}", "1") for n in range(rows)], ("B",)),
            ScreenTable("Second", ("C",), [(f"c{n}",) for n in range(rows)], share=2),
        ],
        ["a note"],
    )


def test_all_of_it():
    text = drawn(screen_of())
    assert text.startswith("title")
    assert "objects 5   live 1 MB" in text
    assert "put 1.5 objects/s, 2 MB/s   evicted 0.0 objects/s, 0 B/s" in text
    assert " ▂▄█ most 4 B" in text
    assert all(f"a{n}" in text and f"c{n}" in text for n in range(5))
    assert text.rstrip().endswith("a note")


@pytest.mark.parametrize("height", [18, 20, 25, 40])
def test_rows_that_do_not_fit(height):
    text = drawn(screen_of(20), height=height)
    assert len(text.splitlines()) <= height
    assert text.rstrip().endswith("a note")
    first, second = (len(re.findall(rf"\b{name}\d+", text)) for name in "ac")
    assert first >= 1
    assert second >= first
    assert f"{20 - first:,} more" in text
    assert len(drawn(screen_of(20), height=height, fits=False).splitlines()) > 50


@pytest.mark.parametrize("width", [20, 40, 200])
def test_widths(width):
    for line in drawn(screen_of(), width=width).splitlines():
        assert len(line) <= width


@pytest.mark.parametrize("width", [60, 80])
def test_long_texts_leave_room_for_others(width):
    row = ("1b2c3d4e-12", "3.2 MB", "numpy.ndarray " * 4, "argument 0 of a_long_name " * 4, "live")
    head = ("KEY", "SIZE", "TYPE", "STORED AS", "STATE")
    screen = Screen("title", [], tables=[ScreenTable("Largest objects", head, [row], ("SIZE",))])
    *_, names, _, line = drawn(screen, width=width).rstrip().splitlines()
    assert names.split() == ["KEY", "SIZE", "TYPE", "STORED", "AS", "STATE"]
    assert line.split()[:3] == ["1b2c3d4e-12", "3.2", "MB"]
    assert "numpy.nda" in line
    assert "argument" in line
    assert line.split()[-1] == "live"


def test_an_empty_place():
    text = drawn(Screen("title", [], None, [0.0, 0.0], [ScreenTable("None", ("A",), [])]))
    assert "most 0 B" in text


def test_names_of_others_do_nothing_to_a_terminal():
    text = drawn(
        Screen(
            "\x1b[31mtitle",
            [("n", "\x1b[31m")],
            tables=[ScreenTable("T", ("A",), [("\x1b]0;x\x07",), ("[red]text[/red]",)])],
            notes=["\x1b[2J"],
        )
    )
    assert "\x1b" not in text
    assert "[red]text[/red]" in text


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5e9, "5 GB"),
        (5e15, "5,000 TB"),
    ],
)
def test_sizes(size, expected):
    assert format_size(size) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 µs"), (5e-6, "5 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (61, "1 min 1 s")],
)
def test_spans_of_time(seconds, expected):
    assert duration_text(seconds) == expected


# --- the command ---------------------------------------------------------------------------------


def test_once(run, url):
    with closing(Store.from_url(url)) as store:
        reference = store.put([1])
        status, out, err = run(url, "--once", "--interval", "0.01")
        assert (status, err) == (0, "")
        assert reference.key in out
        assert "put 0.0 objects/s" in out
        assert "secret" not in out
        assert "\x1b" not in out


def test_what_it_does_not_take(run, tmp_path):
    assert run()[0] == 2
    for interval in ("0", "-1", "nan", "inf", "x", "1e12"):
        status, _, err = run(tmp_path.as_uri(), "--interval", interval)
        assert status == 2
        assert "is no number of seconds" in err
    assert run("memory://")[0] == 2
    assert run("nonsense://")[0] == 2
    status, out, err = run("redis://:secret@127.0.0.1:1/0?timeout=0.1", "--once")
    assert (status, out) == (1, "")
    assert "secret" not in err
    status, out, _ = run("--help")
    assert status == 0
    assert "example:\n  proxyexec top file://" in out


def test_without_rich(tmp_path):
    script = (
        "import sys; sys.modules['rich'] = sys.modules['rich.console'] = None\n"
        "from proxyexec.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "top", tmp_path.as_uri()], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'proxyexec[tune]'" in done.stderr


@contextlib.contextmanager
def running(url, **options):
    command = [sys.executable, "-m", "proxyexec", "top", url, "--interval", "0.05"]
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


class Terminal:
    def __init__(self):
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.seen = b""

    def wait_for(self, wanted, after=0):
        deadline = time.monotonic() + 60
        while not re.search(wanted, self.seen[after:]):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.ours], [], [], 1)[0]:
                self.seen += os.read(self.ours, 100_000)

    def rest(self):
        while select.select([self.ours], [], [], 0)[0]:
            self.seen += os.read(self.ours, 100_000)
        return self.seen

    def close(self):
        os.close(self.ours)
        os.close(self.theirs)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_terminal_is_left_as_it_was(tmp_path, number, status):
    with closing(Terminal()) as terminal, closing(FileConnector(tmp_path)) as connector:
        descriptors = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        with running(tmp_path.as_uri(), env=environment, **descriptors) as process:
            terminal.wait_for(b"proxyexec top")
            # It goes on looking.
            connector.put("first", [b"x"])
            terminal.wait_for(b"first")
            connector.evict(["first"])
            connector.put("second", [b"x"])
            terminal.wait_for(b"second")
            process.send_signal(number)
            assert process.wait(60) == status
        seen = terminal.rest()
        assert seen.startswith(ENTER) or ENTER in seen[:200]
        assert seen.rfind(LEAVE) > seen.rfind(ENTER)
        assert seen.rfind(SHOW_CURSOR) > seen.rfind(b"\x1b[?25l")
        assert termios.tcgetattr(terminal.theirs) == terminal.before
        assert b"Traceback" not in seen


def test_a_terminal_that_can_do_nothing(tmp_path):
    with closing(Terminal()) as terminal, closing(FileConnector(tmp_path)) as connector:
        connector.put("first", [b"x"])
        descriptors = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
        with running(
            tmp_path.as_uri(), env={**os.environ, "TERM": "dumb"}, **descriptors
        ) as process:
            terminal.wait_for(b"first")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert ENTER not in terminal.rest()


def test_colours_that_are_forced_make_no_terminal(tmp_path):
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    with running(tmp_path.as_uri(), stdout=subprocess.PIPE, env=environment) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"proxyexec top" in first
        assert ENTER not in first + process.stdout.read()
        assert process.wait(60) == 0


def test_an_output_that_is_no_terminal(tmp_path):
    with closing(FileConnector(tmp_path)) as connector:
        connector.put("key", [b"x"])
        with running(tmp_path.as_uri(), stdout=subprocess.PIPE, text=True) as process:
            screens = 0
            for line in process.stdout:
                assert "\x1b" not in line
                screens += line.startswith("proxyexec top")
                if screens == 3:
                    break
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(60) == 0


def test_an_output_that_nobody_reads_any_more(tmp_path):
    with running(tmp_path.as_uri(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
