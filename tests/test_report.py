"""The page that shows what tuning has found out, in a real browser where there is one."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from proxyexec import ProxyNever, StoreExecutor, cli
from proxyexec._costs import CostModel, Curve
from proxyexec._report import report_page, write_report
from proxyexec._report_costs import cost_figures
from proxyexec._report_live import Live, _thinned
from proxyexec._report_parts import tick_seconds
from proxyexec._report_svg import linear, log
from proxyexec._report_timeline import _BARS, timeline_figure
from proxyexec.metrics import read_trace
from proxyexec.tune import TuneMeasured, TuneResult, TuneSpan, TuneTimeline, TuneUnread
from tests.chromium import Chromium, chromium, command
from tests.tuned import STORES, result, timeline

ROOT = Path(__file__).resolve().parent.parent

SECTIONS = ["verdict", "policies", "verified", "costs", "timeline", "live", "unread"]

# What would do harm, or look like something else, if it were not text.
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src="http://127.0.0.1:9/x.png" onerror="alert(2)">',
    "<!--<script>",
    "' onfocus='alert(3)",
    "\ud800 \u202e \x00 \x1b[31m",
    "&lt;b&gt;",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if command() is None:
        pytest.skip("there is no chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def tuned() -> TuneResult:
    return result()


@pytest.fixture(scope="module")
def report(tuned: TuneResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(tuned, path)
    return path


class Elements(HTMLParser):
    """What is in a page: elements with their attributes, whether they are closed, and texts."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open[-1] == tag:
            self.open.pop()
        else:  # of one that closed itself
            raise AssertionError(f"{tag} closes {self.open[-1]}")

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def texts(page: str) -> str:
    return " ".join(Elements(page).texts)


# What is written


def test_it_is_one_file(report):
    found = Elements(report.read_text()).found
    links = {
        value
        for tag, attributes in found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster", "style")
    }
    assert {one for one in links if not one.startswith("#")} == {"data:,"}
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one[1:] for one in links if one.startswith("#")} <= set(ids)
    assert "@import" not in report.read_text()
    assert {one for one in re.findall(r"url\(([^)]*)\)", report.read_text())} <= {
        f"#{one}" for one in ids
    }


def test_it_is_the_same_each_time(tuned):
    again = TuneResult.from_json(json.loads(json.dumps(tuned.to_json())))
    assert report_page(again) == report_page(tuned) == report_page(tuned)


def test_it_says_what_to_do(tuned):
    said = texts(report_page(tuned))
    assert f"StoreExecutor(executor, should_proxy={tuned.best.policy.python})" in said
    assert "The program took 1.09 s instead of 1.48 s, 27% less" in said
    assert "Two workers did not report" in said
    said = texts(report_page(replace(tuned, measured=())))
    assert "The run is expected to take 1.07 s instead of 1.45 s, 27% less" in said


def test_it_says_to_leave_it(tuned):
    present = replace(
        tuned,
        candidates=tuple(sorted(tuned.candidates, key=lambda one: not one.is_present)),
        measured=(),
    )
    said = texts(report_page(present))
    assert "Leave it as it is" in said
    assert "StoreExecutor(" not in said
    # What was measured counts for more than what was expected.
    slow = [
        replace(one, measured_seconds=(1.0,) if one.is_present else (2.0, 3.0, 9.0))
        for one in tuned.measured
    ]
    said = texts(report_page(replace(tuned, measured=tuple(slow))))
    assert "nothing is faster; it took 1.00 s." in said
    assert "★ ◆ never()" in said


def test_another_store_is_told():
    candidates = [one for one in result().candidates if one.store != STORES[0] or one.is_present]
    other = replace(result(), candidates=tuple(candidates), measured=())
    other = replace(other, candidates=(replace(candidates[1], seconds=0.5), *candidates))
    said = texts(report_page(other))
    assert f"StoreExecutor(executor, store={STORES[1]!r}, should_proxy=" in said


def test_every_policy_is_in_the_table(tuned):
    page = report_page(tuned)
    rows = re.findall(r"<tr.*?</tr>", page[page.index('id="policies"') :], re.DOTALL)
    for one, row in zip(tuned.candidates, rows[1:], strict=False):
        assert one.policy.python in texts(row).replace("&amp;", "&")
        assert one.store in texts(row)
        assert ("◆" in row) == one.is_present
        assert ("★" in row) == (one is tuned.best)


def test_one_store_needs_no_name():
    page = report_page(result(stores=1))
    table = page[page.index('id="policies"') : page.index('id="verified"')]
    assert "file://" not in table


def test_the_crossover_is_marked(tuned):
    page = report_page(tuned)
    [place, _] = tuned.places
    limit = place.costs.threshold("argument", "buffers")
    chart = page[page.index('id="costs0-argument-buffers"') :]
    chart = chart[: chart.index("</figure>")]
    share = log(4000, 4_000_000).share(limit)
    [found] = re.findall(r'<line x1="([\d.]+)%"[^>]*class="limit"', chart)
    assert float(found) == pytest.approx(100 * share, abs=0.01)
    assert "store from 262 kB" in texts(chart)
    assert limit == 262_144


@pytest.mark.parametrize(
    ("inline", "stored", "said"),
    [
        (2.0, 1.0, "Storing is always cheaper."),
        (1.0, 2.0, "Storing is never cheaper."),
        (1.0, 1.0, "Storing is never cheaper."),
    ],
)
def test_where_lines_do_not_cross(inline, stored, said):
    curves = {
        ("result", "pickle", "inline"): Curve(((4000, inline), (1_000_000, 10 * inline))),
        ("result", "pickle", "store"): Curve(((4000, stored), (1_000_000, 10 * stored))),
    }
    drawn = cost_figures(CostModel(curves), "x")
    assert said in texts(drawn)
    assert "what is stored already" not in texts(drawn)
    assert drawn.count("<figure") == 1
    assert 'class="limit"' not in drawn


@pytest.mark.parametrize(
    "lacking",
    [
        {"candidates": ()},
        {"places": ()},
        {"unread": ()},
        {"measured": ()},
        {"notes": ()},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_is_not_known_is_left_out(tuned, lacking):
    if "candidates" in lacking:
        bare = [replace(one, timeline=None) for one in tuned.candidates]
        run = replace(tuned.run, timeline=None)
        lacking = {"candidates": tuple(bare), "run": run}
    if "places" in lacking:
        bare = [replace(one, costs=CostModel({})) for one in tuned.places]
        lacking = {"places": tuple(bare)}
    page = report_page(replace(tuned, **lacking))
    Elements(page)
    assert ('id="verified"' in page) == ("measured" not in lacking)


def test_a_run_that_took_no_time(tuned):
    nothing = TuneTimeline(0.0, (), ())
    candidates = [
        replace(one, seconds=0.0, simulated_seconds=0.0, timeline=nothing)
        for one in tuned.candidates[:3]
    ]
    candidates[0] = replace(candidates[0], is_present=True)
    run = replace(tuned.run, seconds=0.0, timeline=nothing, tasks=0)
    measured = [
        TuneMeasured(one.policy, one.store, one.is_present, 0.0, (0.0,)) for one in candidates
    ]
    Elements(
        report_page(replace(tuned, candidates=tuple(candidates), run=run, measured=tuple(measured)))
    )


def test_large_runs_make_no_large_pages():
    spans = [
        TuneSpan("put" if step % 2 else "run", f"worker {step % 40}", step, step + 0.9, step, "f")
        for step in range(100_000)
    ]
    large = TuneTimeline(100_000.0, tuple(spans), (), left_out=7)
    chart = timeline_figure(large, name="x", title="x", says="x", scale=1.0, seconds=large.seconds)
    assert chart.count('class="bar') <= _BARS
    assert len(chart) < 1_000_000
    assert "16 more workers not shown" in texts(chart)
    assert "7 later spans left out" in texts(chart)
    # Each span is told of: the first 24 lanes in the chart, and all of them in the table.
    stops = json.loads(re.search(r"<script[^>]*>(.*?)</script>", chart)[1])
    counts = [re.search(r", (\d+) times", one[4]) for one in stops]
    assert sum(int(one[1]) if one else 1 for one in counts) == 24 * 2500
    assert chart.count("<tr>") == 1 + 40


def test_small_runs_are_drawn_as_they_are():
    small = timeline(30, 2, stored=True)
    chart = timeline_figure(small, name="x", title="x", says="x", scale=1, seconds=small.seconds)
    assert chart.count('class="bar') == len(small.spans)


def test_what_is_too_short_to_be_seen_is_put_together():
    spans = [TuneSpan("run", "worker 1", 0.0, 1.0, 0, "long")]
    for step in range(10):
        start = 1.0 + 0.0002 * step
        spans.append(TuneSpan("run", "worker 1", start, start + 0.0001, 1 + step, "short"))
        spans.append(TuneSpan("put", "worker 1", start + 0.0001, start + 0.0002, 1 + step, "short"))
    spans.append(TuneSpan("run", "worker 1", 1.5, 2.0, 11, "long"))
    spans.append(TuneSpan("run", "worker 1", 2.0, 3.0, 12, "long"))
    chart = timeline_figure(
        TuneTimeline(3.0, tuple(spans), ()), name="x", title="x", says="x", scale=1, seconds=3.0
    )
    told = [one[4] for one in json.loads(re.search(r"<script[^>]*>(.*?)</script>", chart)[1])]
    assert [one.split("\n")[0] for one in told] == [
        "long, task 0",
        "function, 10 times",
        "long, task 11",
        "long, task 12",
        "storing, 10 times",
    ]
    assert told[1].split("\n")[1:] == ["1.0 ms in all", "short", "worker 1, 1.00 s to 1.00 s"]


def test_lines_keep_their_peaks():
    points = [(step / 1000, 5) for step in range(100_000)]
    points[43_210] = (43.210, 9_000_000)
    points[70_000:] = [(at, 77) for at, _ in points[70_000:]]
    drawn = _thinned(Live("x", points, 100.0))
    assert len(drawn) < 1100
    assert (43.210, 9_000_000) in drawn
    assert drawn[-1] == (100.0, 77)
    assert [at for at, _ in drawn] == sorted(at for at, _ in drawn)


@pytest.mark.parametrize("high", [1e-7, 0.0031, 0.999, 1, 7, 10, 61.3, 98_765])
def test_axes_have_round_ticks(high):
    axis = linear(high)
    assert 3 <= len(axis.ticks) <= 7
    assert axis.ticks[-1] <= axis.high * 1.0001
    assert axis.high == pytest.approx(high)
    rounded = linear(high, is_rounded=True)
    assert rounded.high == rounded.ticks[-1] >= high * 0.999
    assert (axis.share(0), axis.share(high)) == (0, 1)
    for tick in axis.ticks:
        assert len(f"{tick:.4g}".replace("0", "").replace(".", "").split("e")[0]) <= 2


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0"),
        (2e-5, "20 µs"),
        (2.5, "2.5 s"),
        (5000, "5000 s"),
        (1e4, "10,000 s"),
        (2e5, "200,000 s"),
    ],
)
def test_ticks_are_written_without_exponents(seconds, said):
    assert tick_seconds(seconds) == said


def test_axes_of_ratios():
    axis = log(4000, 4_000_000)
    assert axis.ticks == (1e3, 1e4, 1e5, 1e6, 1e7)
    assert axis.share(1e5) == pytest.approx(0.5)
    assert (axis.share(1), axis.share(1e12)) == (0, 1)
    assert log(1000, 1000).ticks == (1e3, 1e4)


# What the command writes


def test_the_command_writes_it(browser, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = (tmp_path / "objects").as_uri()
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    with StoreExecutor(pool, store=store, should_proxy=ProxyNever()) as executor:
        with executor.trace(tmp_path / "run.jsonl"):
            assert list(executor.map(len, [bytes(3_000_000)] * 6)) == [3_000_000] * 6
    page = tmp_path / "report.html"
    tune = ["tune", str(tmp_path / "run.jsonl")]
    assert cli.main([*tune, "--report", str(page), "--json"]) == 0
    known = TuneResult.from_json(json.loads(capsys.readouterr().out))
    with browser.open(page) as shown:
        assert shown.complaints() == []
        assert shown.requested() == [shown.url]
        policies = shown.run(
            "[...document.querySelectorAll('#policies tbody tr')]"
            ".map((one) => one.cells[1].firstChild.textContent.replace(/^[★◆ ]+/, ''))"
        )
        assert policies == [one.policy.name for one in known.candidates]
        charts = shown.run("[...document.querySelectorAll('figure')].map((one) => one.id)")
        assert {"timeline-run", "timeline0", "live-chart"} <= set(charts)
        assert "costs0-argument-buffers" in charts

    assert cli.main([*tune, "--report", str(tmp_path / "none" / "report.html")]) == 1
    said, complained = capsys.readouterr()
    assert "No such file or directory" in complained
    assert complained.count("\n") == 1
    assert said.startswith("6 tasks on ")


def test_the_run_of_the_pictures(tmp_path):
    pytest.importorskip("pandas")
    program = "import cells, sys; cells.SIDE = 40; cells.main(sys.argv[1])"
    path = [str(ROOT), str(ROOT / "connectors"), str(ROOT / "docs" / "pictures"), *sys.path]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run.jsonl")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        check=True,
    )
    trace = read_trace(tmp_path / "run.jsonl")
    assert {one.function for one in trace.tasks} == {
        "load",
        "sharpen",
        "preview",
        "measure",
        "count",
    }
    assert {one.state for one in trace.tasks} == {"done"}


# What is seen


def test_all_is_shown(browser, report):
    with browser.open(report) as page:
        assert page.complaints() == []
        assert page.requested() == [page.url]
        shown = page.run(
            "[...document.querySelectorAll('main > section')]"
            ".filter((one) => one.getBoundingClientRect().height > 60).map((one) => one.id)"
        )
        assert shown == SECTIONS
        assert page.run("document.title") == "Tuning of a run on example"
        # Each chart has something in it.
        drawn = page.run(
            "[...document.querySelectorAll('.plot')].filter((one) => one.checkVisibility())"
            ".map((one) => one.querySelectorAll('path.line, rect.bar, .range').length)"
        )
        assert len(drawn) == 1 + 4 + 2 + 1
        assert min(drawn) >= 2


def hostile() -> TuneResult:
    plain = result(tasks=12, stores=2)
    words = iter(HOSTILE * 1000)
    line = timeline(12, 2, stored=True)
    spans = [
        replace(one, function=next(words), what=next(words), type=next(words)) for one in line.spans
    ]
    line = replace(line, spans=tuple(spans))

    candidates = [
        replace(
            one,
            policy=replace(one.policy, name=next(words), python=next(words)),
            store=next(words),
            timeline=one.timeline and line,
        )
        for one in plain.candidates
    ]
    return replace(
        plain,
        run=replace(
            plain.run,
            policy=next(words),
            store=next(words),
            host=next(words),
            executor=next(words),
            version=next(words),
            timeline=line,
        ),
        candidates=tuple(candidates),
        places=tuple(replace(one, store=next(words), source=next(words)) for one in plain.places),
        measured=tuple(
            TuneMeasured(one.policy, one.store, one.is_present, one.seconds, (one.seconds,))
            for one in candidates[:5]
        ),
        unread=tuple(TuneUnread(one, one, one, 1, 1) for one in HOSTILE),
        notes=HOSTILE,
    )


def test_names_do_nothing(browser, tmp_path):
    write_report(hostile(), tmp_path / "report.html")
    with browser.open(tmp_path / "report.html") as page:
        assert page.complaints() == []
        assert page.requested() == [page.url]
        assert page.run("document.images.length") == 0
        assert page.run("document.querySelectorAll('script:not([type])').length") == 1
        assert page.run("document.querySelectorAll('[onfocus], [onerror]').length") == 0
        told = page.run(
            "[...document.querySelectorAll('#unread tbody tr')].map((one) => one.cells[1].textContent)"
        )
        shown = "\\ud800 \\u202e \\x00 \\x1b[31m"
        assert told == [*HOSTILE[:4], shown, HOSTILE[5]]
        page.run("document.querySelector('#timeline-run .plot').focus()")
        page.press("Home")
        assert HOSTILE[1] in page.run("document.querySelector('#timeline-run .tip').textContent")
        assert page.complaints() == []


def test_it_may_not_ask_for_anything(browser, report):
    refused = (
        "new Promise((done) => {{ addEventListener('securitypolicyviolation',"
        "(event) => done(event.effectiveDirective)); {} }})"
    )
    script = "const s = document.createElement('script'); s.text = 'a = 1'; document.body.append(s)"
    with browser.open(report) as page:
        for what, directive in (
            ("new Image().src = 'http://127.0.0.1:9/x.png'", "img-src"),
            ("fetch('http://127.0.0.1:9/').catch(() => 0)", "connect-src"),
            (
                "document.head.insertAdjacentHTML('beforeend', '<style>p {}</style>')",
                "style-src-elem",
            ),
            (script, "script-src-elem"),
        ):
            assert page.run(refused.format(what)) == directive
        assert page.run("typeof a") == "undefined"


def test_it_can_be_read_without_scripts(browser, report, tuned):
    with browser.open(report, script=False) as page:
        assert page.complaints() == []
        assert page.run("document.querySelectorAll('button, select, output').length") == 0
        rows = page.run(
            "[...document.querySelectorAll('#policies tbody tr')]"
            ".filter((one) => one.checkVisibility()).length"
        )
        assert rows == len(tuned.candidates)
        figures = page.run(
            "[...document.querySelectorAll('figure')].map((one) => one.checkVisibility())"
        )
        assert figures == [True] * (1 + 8 + 5 + 1)


TIP = "(() => {{ const t = document.querySelector('{} .tip'); return t.hidden ? null : t.textContent }})()"


def test_pointing_tells_values(browser, report, tuned):
    [place, _] = tuned.places
    with browser.open(report) as page:
        tip = TIP.format("#costs0-argument-buffers")
        assert page.run(tip) is None
        box = page.box("#costs0-argument-buffers .plot")
        page.point(box["x"] + box["width"] * 0.75, box["y"] + 50)
        inline = place.costs.seconds("argument", "buffers", "inline", 1_000_000)
        assert page.run(tip).split("\n") == [
            "1 MB",
            f"sent inline: {inline * 1000:.1f} ms",
            "stored: 1.1 ms",
            "stored already: 510 µs",
        ]
        inside = page.run(
            "(() => { const p = document.querySelector('#costs0-argument-buffers .plot');"
            "const [a, b] = [p, p.querySelector('.tip')].map((one) => one.getBoundingClientRect());"
            "return b.left >= a.left && b.right <= a.right + 1 })()"
        )
        assert inside
        page.point(2, 2)
        assert page.run(tip) is None

        # Of a bar: the first function that ran.
        first = next(one for one in tuned.run.timeline.spans if one.kind == "run")
        box = page.box("#timeline-run .plot")
        middle = (first.start + first.end) / 2 / max(tuned.run.seconds, tuned.best.seconds)
        lane = int(first.lane.split()[1])
        page.point(box["x"] + box["width"] * middle, box["y"] + 39 * lane + 9)
        assert page.run(TIP.format("#timeline-run")).startswith(
            f"{first.function}, task {first.task}\n"
        )
        assert page.complaints() == []


def test_keys_tell_values(browser, report):
    with browser.open(report) as page:
        tip = TIP.format("#timeline-run")
        page.run("document.querySelector('#timeline-run .plot').focus()")
        told = []
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "End", "Home"):
            page.press(key)
            told.append(page.run(tip))
        assert told[0].startswith("serializing: argument 0, numpy.ndarray, ")
        assert told[1].startswith("sending inline: argument 0, ")
        assert "\nworker 1, " in told[2] and told[2].startswith("load, task")
        assert told[3].startswith("sending inline") and "\nworker 1, " in told[3]
        assert told[4].startswith("load, task")
        assert "\nworker 4, " in told[5]
        assert told[6] == told[0]
        page.press("Escape")
        assert page.run(tip) is None
        page.press("ArrowRight")
        page.press("Tab")
        assert page.run(tip) is None
        assert page.run("document.activeElement.tagName") == "SUMMARY"


def test_all_can_be_reached_by_keys(browser, report):
    with browser.open(report) as page:
        reached = []
        for _ in range(80):
            page.press("Tab")
            reached.append(
                page.run(
                    "(() => { const e = document.activeElement; return e === document.body ? null :"
                    "[e.className || e.tagName, getComputedStyle(e).outlineStyle,"
                    "e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent]})()"
                )
            )
            if reached[-1] is None:
                break
        reached = [one for one in reached if one is not None]
        assert all(outline in ("solid", "auto") for _, outline, _ in reached)
        assert all(words for _, _, words in reached)
        kinds = [kind for kind, _, _ in reached]
        assert kinds.count("plot") == 1 + 4 + 2 + 1
        assert kinds.count("SELECT") == 2
        assert kinds.count("all") == 1
        assert kinds.count("BUTTON") == 9 + 5


def test_assistive_programs_get_names(browser, report):
    with browser.open(report) as page:
        nodes = page.do("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
        assert {role for role, name in named if not name} & {
            "button",
            "combobox",
            "region",
        } == set()
        charts = [name for role, name in named if "Arrow keys tell its values." in name]
        assert len(charts) == 1 + 4 + 2 + 1
        headings = [name for role, name in named if role == "heading"]
        assert headings[:3] == ["Tuning report", "What to do", "Policies"]


def test_tables_are_sorted(browser, report, tuned):
    column = (
        "[...document.querySelectorAll('#policies tbody tr')].filter((one) => !one.hidden)"
        ".map((one) => one.cells[{}].textContent)"
    )
    heads = (
        "[...document.querySelectorAll('#policies th')].map((one) => one.getAttribute('aria-sort'))"
    )
    ranks = [str(place) for place in range(1, len(tuned.candidates) + 1)]
    with browser.open(report) as page:
        assert page.run(column.format(0)) == ranks[:12]
        page.click("#policies th:nth-child(1) button")
        page.click("#policies th:nth-child(1) button")
        assert page.run(column.format(0)) == ranks[::-1][:12]
        assert page.run(heads) == ["descending", *[None] * 8]
        page.click("#policies .all")
        assert page.run(column.format(0)) == ranks[::-1]
        assert page.run("document.querySelector('#policies .all')") is None
        # By how large something is, not by how it is written.
        page.click("#policies th:nth-child(5) button")
        sizes = page.run(column.format(4))
        assert sizes[0] == "40 kB"
        assert sizes[-1] == "480 MB"
        page.click("#unread th:nth-child(1) button")
        names = page.run(
            "[...document.querySelectorAll('#unread tbody tr')].map((one) => one.cells[0].textContent)"
        )
        assert names == ["load", "sharpen"]
        assert page.complaints() == []


def test_one_of_several_is_chosen(browser, report, tuned):
    shown = (
        "[...document.querySelectorAll('#timeline .choice > div')]"
        ".filter((one) => one.checkVisibility()).map((one) => one.dataset.choice)"
    )
    names = "[...document.querySelectorAll('#timeline option')].map((one) => one.text)"
    with browser.open(report) as page:
        options = page.run(names)
        assert len(options) == 4
        assert options[0].startswith("★ ")
        assert page.run(shown) == options[:1]
        page.run("document.querySelector('#timeline select').focus()")
        page.press("ArrowDown")
        page.press("ArrowDown")
        assert page.run(shown) == [options[2]]


@pytest.mark.parametrize("width", [320, 360, 768, 1100, 1900])
def test_it_fits_any_width(browser, report, width):
    with browser.open(report, width=width, height=780) as page:
        assert page.run("document.documentElement.scrollWidth") == width
        # Texts are as large as ever, within the page, and not upon each other.
        ticks = page.run(
            "[...document.querySelectorAll('.plot > svg')].filter((one) => one.checkVisibility())"
            ".map((svg) => [...svg.querySelectorAll('text.tick')].filter((one) =>"
            " one.checkVisibility()).map((one) => one.getBoundingClientRect())"
            ".map((box) => [box.left, box.right, box.top, box.bottom]))"
        )
        assert len(ticks) == 8
        for chart in ticks:
            assert len(chart) >= 3
            for left, right, top, bottom in chart:
                assert bottom - top >= 12
                assert left >= 0
                assert right <= width
            for place, one in enumerate(chart):
                for other in chart[place + 1 :]:
                    apart = (
                        one[1] <= other[0]
                        or other[1] <= one[0]
                        or one[3] <= other[2] + 3
                        or other[3] <= one[2] + 3
                    )
                    assert apart, (one, other)


CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255);
  const light = (text) => {
    const [r, g, b] = rgb(text).map((one) =>
      one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = getComputedStyle(document.body).backgroundColor;
  const ratio = (colour) => {
    const [dark, bright] = [light(colour), light(back)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const least = {};
  const look = (what, selector, property) => {
    for (const one of document.querySelectorAll(selector)) {
      const colour = getComputedStyle(one)[property];
      if (colour.startsWith("rgb"))
        least[what] = Math.min(least[what] ?? Infinity, ratio(colour));
    }
  };
  look("words", "p, dt, dd, td, th, li, h1, h2, h3, summary, caption", "color");
  look("labels", "text", "fill");
  look("lines", "path.line, .range, line.limit, .end", "stroke");
  look("bars", ".bar", "stroke");
  return {...least, back: light(back)};
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_seen(browser, report, dark):
    with browser.open(report, dark=dark) as page:
        least = page.run(CONTRAST)
    assert (least["back"] < 0.1) == dark
    # What the W3C's guidelines ask for: of text, and of signs.
    assert least["words"] >= 4.5
    assert least["labels"] >= 4.5
    assert least["lines"] >= 3
    assert least["bars"] >= 3


def test_no_colours_are_needed(browser, report):
    with browser.open(report) as page:
        # Lines of a chart have dashes of their own, and marks.
        dashes = page.run(
            "[...document.querySelectorAll('.plot')].map((one) =>"
            "[...one.querySelectorAll('path.line')].map((line) =>"
            "getComputedStyle(line).strokeDasharray))"
        )
        assert sum(map(bool, dashes)) == 8 + 1
        assert all(len(set(one)) == len(one) for one in dashes)
        marks = page.run(
            "[...document.querySelectorAll('#costs0-argument-buffers .mark')]"
            ".map((one) => one.getAttribute('href'))"
        )
        assert set(marks) == {"#mark-inline", "#mark-store", "#mark-found"}
        # Bars are told apart by their patterns, or their heights.
        fills = page.run(
            "[...document.querySelectorAll('#timeline .key rect')].map((one) =>"
            "getComputedStyle(one).fill.startsWith('url') ? getComputedStyle(one).fill :"
            "one.classList[1])"
        )
        assert len(fills) == len(set(fills)) == 6


def test_it_can_be_printed(browser, report, tuned):
    with browser.open(report, media="print", width=700, dark=True) as page:
        assert page.run("document.documentElement.scrollWidth") == 700
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        shown = page.run(
            "[...document.querySelectorAll('figure')].filter((one) => one.checkVisibility()).length"
        )
        assert shown == 1 + 8 + 5 + 1
        assert not page.run(
            "[...document.querySelectorAll('select')].some((one) => one.checkVisibility())"
        )
        printed = page.printed()
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 3
