"""Run the long form of all fault tests, and write what was tried, and what was left, into the docs.

python -m tests.chaos.report
python -m tests.chaos.report --count 20 --short --docs /tmp/pages
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path

from tests.chaos.schedules import Outcome

_ROOT = Path(__file__).resolve().parents[2]

_HEAD = """\
# Reliability

<!-- Made by tests/chaos/report.py; changes here are lost. -->

What was done to programs that use proxyexec, how many times, and what came of it. Processes and
servers are real ones: they are killed, stopped and forked, and places really are full. Afterwards,
objects, files, keys, descriptors, processes and shared memory are counted. What is promised is in
[](lifetimes.md), [](errors.md) and [](connectors.md).

`nox -s chaos` does all of it again, and makes this page; `python -m tests.chaos.schedules --seed N`
runs one schedule, with its steps shown.
"""


def main() -> int:
    """Run, and write the page; return 1 if something did not hold."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: python -m tests.chaos.report --count 20 --short --docs /tmp/pages",
    )
    parser.add_argument("--count", type=int, default=200, help="schedules (default: 200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--short", action="store_true", help="the short form of the tests")
    parser.add_argument(
        "--docs", type=Path, default=_ROOT / "docs", help="where the page goes", metavar="DIR"
    )
    options = parser.parse_args()
    options.docs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        cases = _run_tests(Path(directory, "tests.xml"), short=options.short)
        outcomes = _run_schedules(Path(directory, "outcomes.json"), options.first, options.count)
    page = options.docs / "reliability.md"
    page.write_text("\n".join([_HEAD, *_of_tests(cases), *_of_schedules(outcomes, options.first)]))
    print(f"written: {page}", file=sys.stderr)
    held = all(state != "failed" for states in cases.values() for state in states)
    return 0 if held and all(outcome.passed for outcome in outcomes) else 1


def _run_tests(result: Path, *, short: bool) -> dict[str, Counter[str]]:
    """Run the tests of single faults; return, by module, how often each came to what."""
    environment = {**os.environ, **({} if short else {"PROXYEXEC_LONG": "1"})}
    command = [sys.executable, "-m", "pytest", "tests/chaos", f"--junitxml={result}"]
    # They have a table of their own.
    command.append("--ignore=tests/chaos/test_schedules.py")
    subprocess.run(command, cwd=_ROOT, env=environment, check=False)
    cases: dict[str, Counter[str]] = {}
    for case in xml.etree.ElementTree.parse(result).iter("testcase"):
        tags = {child.tag for child in case}
        state = "failed" if tags & {"failure", "error"} else "skipped" if tags else "held"
        cases.setdefault(case.get("classname", ""), Counter())[state] += 1
    return cases


def _run_schedules(result: Path, first: int, count: int) -> list[Outcome]:
    command = [sys.executable, "-m", "tests.chaos.schedules", "--json", str(result)]
    command += ["--first", str(first), "--count", str(count)]
    subprocess.run(command, cwd=_ROOT, check=False)
    return [Outcome(**outcome) for outcome in json.loads(result.read_text())]


def _of_tests(cases: dict[str, Counter[str]]) -> list[str]:
    lines = ["## One fault at a time", ""]
    lines += ["| what happens | cases | held | not | skipped |", "| --- | --: | --: | --: | --: |"]
    for name, states in sorted(cases.items()):
        about = (importlib.import_module(name).__doc__ or name).partition("\n")[0].rstrip(".")
        numbers = (sum(states.values()), states["held"], states["failed"], states["skipped"])
        lines.append(f"| {about} | {' | '.join(map(str, numbers))} |")
    return [*lines, ""]


def _of_schedules(outcomes: list[Outcome], first: int) -> list[str]:
    places = sorted({outcome.place for outcome in outcomes})
    times = Counter((fault, one.place) for one in outcomes for fault in one.faults)
    # What an outcome has been spoilt by cannot be said of one of its faults.
    spoilt = Counter(fault for one in outcomes if not one.passed for fault in {*one.faults})
    lines = ["## Many faults, in an order drawn by chance", ""]
    lines.append(
        f"{len(outcomes)} schedules, seeds {first} to {first + len(outcomes) - 1}: "
        f"{sum(one.right for one in outcomes)} futures and maps came to what they must, "
        f"{sum(one.excused for one in outcomes)} failed as a fault before them excuses; "
        f"{sum(len(one.wrong) for one in outcomes)} were wrong, "
        f"{sum(one.hung for one in outcomes)} programs hung, and "
        f"{sum(len(one.left) for one in outcomes)} things were left."
    )
    lines += ["", f"| fault | {' | '.join(places)} | in schedules that did not hold |"]
    lines.append(f"| --- | {'--: | ' * len(places)}--: |")
    for fault in sorted({fault for fault, _ in times}):
        numbers = " | ".join(str(times[fault, place] or "") for place in places)
        lines.append(f"| {fault.replace('_', ' ')} | {numbers} | {spoilt[fault]} |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
