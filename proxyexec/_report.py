"""The page that shows what tuning has found out: one file, which asks for no other.

All of it is there without scripts, which only tell values when somebody points at them. The page
allows the browser nothing but its own style and script, so names in a trace cannot do anything.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterable
from importlib.resources import files
from statistics import median
from typing import TYPE_CHECKING

from proxyexec._cli_parts import many
from proxyexec._report_costs import cost_figures
from proxyexec._report_live import Live, live_figure
from proxyexec._report_policies import measured_figure, names_of, policy_table, unread_table
from proxyexec._report_svg import element, text
from proxyexec._report_timeline import timeline_figure, timeline_key
from proxyexec._sizes import format_size
from proxyexec._table import seconds_text
from proxyexec._tune_writing import as_python

if TYPE_CHECKING:
    from proxyexec._tune_result import TuneCandidate, TuneResult

__all__ = ["report_page", "write_report"]


def write_report(result: TuneResult, path: str | os.PathLike[str]) -> None:
    """Write what tuning has found out as a page: one file that asks for no other.

    Args:
        result: what is shown.
        path: of the file, ``report.html``; what is there is written over.

    Raises:
        OSError: it cannot be written.
    """
    page = report_page(result)
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def report_page(result: TuneResult) -> str:
    """Return the page; see :func:`write_report`."""
    style = _resource("_report.css")
    script = _resource("_report.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:"
    )
    head = element(
        "head",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        # So that no browser looks for one.
        '<link rel="icon" href="data:,">',
        element("title", text(f"Tuning of a run on {result.run.host}")),
        element("style", style),
    )
    body = element("body", _resource("_report.svg"), *_sections(result), element("script", script))
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}</html>\n'


def _resource(name: str) -> str:
    return files("proxyexec").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _sections(result: TuneResult) -> Iterable[str]:
    yield element("header", element("h1", "Tuning report"), _facts(result))
    yield element("main", *_main(result))
    yield element(
        "footer",
        element(
            "p",
            text(
                f"Made by proxyexec from a trace of version {result.run.version}. What is expected "
                "was simulated with measured costs, and corrected by what replaying the run itself "
                "has shown."
            ),
        ),
    )


def _main(result: TuneResult) -> Iterable[str]:
    yield _section("verdict", "What to do", _verdict(result), _notes(result))
    yield _section("policies", "Policies", policy_table(result))
    if result.measured:
        yield _section("verified", "Verified", measured_figure(result, "verified-chart"))
    yield _section("costs", "What moving an object costs", *_costs(result))
    yield _section("timeline", "Who was busy when", *_timelines(result))
    yield _section("live", "What is stored", *_live(result))
    yield _section("unread", "Stored for nothing", _unread(result))


def _section(name: str, title: str, *content: str) -> str:
    head = element("h2", text(title), id=f"{name}-title")
    return element("section", head, *content, id=name, aria_labelledby=f"{name}-title")


def _facts(result: TuneResult) -> str:
    run = result.run
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    facts = [
        ("run", f"{when} on {run.host}" + ("" if run.is_whole else ", not all of it traced")),
        ("executor", f"{run.executor.rpartition('.')[2]}, {many(run.workers, 'worker')}"),
        ("store", run.store),
        ("policy", run.policy),
        ("took", f"{seconds_text(run.seconds)} for {many(run.tasks, 'task')}"),
        (
            "moved",
            (
                f"{format_size(run.inline_bytes)} inline, {format_size(run.stored_bytes)} stored, "
                f"{format_size(run.peak_bytes)} at a time"
            ),
        ),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", text(name)), element("dd", text(fact)))
            for name, fact in facts
        ),
    )


def _verdict(result: TuneResult) -> str:
    best, present = result.fastest, result.present
    seconds, before = _took(result, best), _took(result, present)
    if best.is_present:
        took = f"; it took {seconds_text(seconds)}" if seconds is not None else ""
        words = f"Leave it as it is: of what was tried, nothing is faster{took}."
        return element("p", text(words), class_="verdict")
    if seconds is not None and before is not None:
        words = "The program took"
    else:
        words = "The run is expected to take"
        seconds, before = best.seconds, present.seconds
    less = 1 - seconds / before if before else 0.0
    words += f" {seconds_text(seconds)} instead of {seconds_text(before)}, {less:.0%} less, with"
    line = as_python(best, with_store=best.store != present.store)
    return element("p", text(words), class_="verdict") + element(
        "pre", element("code", text(line)), tabindex=0
    )


def _took(result: TuneResult, candidate: TuneCandidate) -> float | None:
    """Return what a candidate took in the middle, if it was run."""
    for one in result.measured:
        if (one.policy, one.store) == (candidate.policy, candidate.store):
            return median(one.measured_seconds)
    return None


def _notes(result: TuneResult) -> str:
    if not result.notes:
        return ""
    said = (element("li", text(note[:1].upper() + note[1:])) for note in result.notes)
    return element("ul", *said, class_="notes")


def _costs(result: TuneResult) -> Iterable[str]:
    yield element(
        "p",
        "Seconds that an object costs a task, by its size: the lower line is the cheaper way. "
        "Marks are what was measured; beyond them, lines just go on.",
    )
    several = len(result.places) > 1
    parts = []
    for number, place in enumerate(result.places):
        present = ", the store of the run" if place.is_present and several else ""
        parts.append(
            element(
                "div",
                element("h3", text(f"{place.store}{present}")),
                element("p", text(f"Costs: {place.source}."), class_="source"),
                cost_figures(place.costs, f"costs{number}"),
                data_choice=f"{place.store}{present}",
            )
        )
    yield element("div", *parts, class_="choice", data_label="Store")


def _timelines(result: TuneResult) -> Iterable[str]:
    shown = _shown(result)
    run = result.run.timeline
    ends = [one.seconds for one in shown] + ([run.seconds] if run is not None else [])
    if not ends:
        yield element("p", "The trace does not tell.")
        return
    yield timeline_key()
    if run is not None:
        yield timeline_figure(
            run,
            name="timeline-run",
            title="The run, as it was.",
            says=f"It took {seconds_text(run.seconds)}.",
            scale=1.0,
            seconds=max(ends),
        )
    parts = []
    for number, (one, name) in enumerate(zip(shown, names_of(shown), strict=True)):
        if one.timeline is None:
            continue
        chart = timeline_figure(
            one.timeline,
            name=f"timeline{number}",
            title=f"{name}.",
            says=f"The run is expected to take {seconds_text(one.seconds)}.",
            scale=_scale(one),
            seconds=max(ends),
        )
        parts.append(element("div", chart, data_choice=_signs(result, one) + name))
    yield element("div", *parts, class_="choice", data_label="Expected with")


def _shown(result: TuneResult) -> list[TuneCandidate]:
    """Return the candidates of which more is known, the one to take first."""
    known = [one for one in result.candidates if one.timeline is not None]
    return sorted(known, key=lambda one: one is not result.fastest)


def _scale(one: TuneCandidate) -> float:
    return one.seconds / one.simulated_seconds if one.simulated_seconds > 0 else 1.0


def _signs(result: TuneResult, one: TuneCandidate) -> str:
    return ("★ " if one is result.fastest else "") + ("◆ " if one.is_present else "")


def _live(result: TuneResult) -> Iterable[str]:
    run = result.run.timeline
    drawn = [Live("measured", run.live, run.seconds)] if run is not None and run.live else []
    shown = _shown(result)
    for one, name in zip(shown, names_of(shown), strict=True):
        if one.timeline is not None:
            scale = _scale(one)
            # What is removed after the end counts as if it was removed then.
            points = [(min(at * scale, one.seconds), size) for at, size in one.timeline.live]
            drawn.append(Live(_signs(result, one) + name, points, one.seconds))
    if drawn:
        yield live_figure(drawn, name="live-chart", seconds=max(one.end for one in drawn))
    else:
        yield element("p", "The trace does not tell.")


def _unread(result: TuneResult) -> str:
    if not result.unread:
        stored = "All that was stored has been fetched by somebody."
        return element("p", stored if result.run.stored_bytes else "Nothing was stored in the run.")
    wasted = sum(one.bytes for one in result.unread)
    words = (
        f"{format_size(wasted)} were stored that nobody fetched before they were removed. Leave "
        "them where they are, or do not return them."
    )
    return element("p", text(words)) + unread_table(result.unread)
