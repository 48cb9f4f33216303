"""Run the tests of projects that use process pools, with our pools in their place.

Each project's tests run three times: with the standard library's pools, with ours, and with
ours storing every argument and result, however small. What passes with the first has to pass
with the others, they have to have had something to do, and nothing of theirs may be left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.users.projects import PROJECTS, Project

PLUGIN = Path(__file__).parent / "plugin"
MODES = ("raw", "ours", "stored")

# A test that takes longer hangs, and so does a run of many.
TEST_TIMEOUT_S = 120
RUN_TIMEOUT_S = 900

# Of what pytest says of a failure, the end says most.
MESSAGE_LINES = 12

# With fewer projects the program has shown too little.
ENOUGH = 2

COLUMNS = ("project", "version", "tests", *MODES, "pools", "tasks", "stored", "seconds")


class Run(NamedTuple):
    """What came of a project's tests with one kind of pools."""

    outcomes: dict[str, str]
    """By test, ``passed``, ``failed`` or ``skipped``."""
    failures: dict[str, str]
    """By test, or file that could not be imported, what pytest says of it."""
    counts: dict[str, int]
    """How many ``pools`` were made, ``tasks`` given to them, and objects ``stored``."""
    left: list[str]
    """What is left of the pools' stores."""
    output: str

    @property
    def passed(self) -> set[str]:
        """The tests that passed."""
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = _options(arguments)
    projects = [one for one in PROJECTS if one.name in (options.projects or [one.name])]
    versions = {one.name: version for one in projects if (version := _version(one.name))}
    missing = {one.name for one in projects} - set(versions)
    if missing:
        print(f"Not installed: {', '.join(sorted(missing))}.")
    if (missing and options.projects) or len(versions) < min(ENOUGH, len(projects)):
        return 2
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        sources = _sources(versions, Path(folder).resolve())
        rows, problems = [], []
        for project in projects:
            if project.name in versions:
                row, found = _check(project, sources[project.name], versions[project.name])
                rows.append(row)
                problems += found
    _show(rows, problems)
    return 1 if problems else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [one.name for one in PROJECTS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.users.run",
        description="Run other projects' tests with proxyexec's pools in place of the standard "
        "library's. The projects, at the versions to test, have to be installed: the dependency "
        "group 'users' has them. Their tests come from their source distributions.",
        epilog="Example: python -m tests.users.run adaptive pqdm. "
        "The exit status is 1 if a test passes with the standard library's pools but not with "
        "ours, 2 if projects are missing.",
    )
    parser.add_argument(
        "projects",
        nargs="*",
        metavar="project",
        help=f"of {', '.join(names)}; all that are installed by default",
    )
    parser.add_argument("--folder", help="where to unpack the sources, and to leave them")
    options = parser.parse_args(arguments)
    unknown = set(options.projects).difference(names)
    if unknown:
        parser.error(f"no such project: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources(versions: dict[str, str], folder: Path) -> dict[str, Path]:
    """Download and unpack source distributions; pip knows from where."""
    archives = folder / "archives"
    shutil.rmtree(archives, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(archives)]
    pins = [f"{name}=={version}" for name, version in versions.items()]
    subprocess.run([*pip, "--no-binary", ",".join(versions), *pins], check=True)
    sources = {}
    for name in versions:
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        (archive,) = archives.glob(f"{name}-*")
        shutil.unpack_archive(archive, target, filter="data")
        (sources[name],) = target.iterdir()
    return sources


def _check(project: Project, source: Path, version: str) -> tuple[tuple[Any, ...], list[str]]:
    """Run one project's tests with each kind of pools; return a row and what is wrong."""
    began = time.monotonic()
    runs = {mode: _run(project, source, mode) for mode in MODES}
    raw, ours, stored = runs.values()
    problems = [
        f"{project.name}, {mode}: {problem}"
        for mode, run in runs.items()
        for problem in _problems(raw, run, mode)
    ]
    row = (
        project.name,
        version,
        len(raw.outcomes),
        *(len(run.passed) for run in runs.values()),
        ours.counts["pools"],
        ours.counts["tasks"],
        stored.counts["stored"],
        round(time.monotonic() - began),
    )
    return row, problems


def _run(project: Project, source: Path, mode: str) -> Run:
    print(f"{project.name}: {mode} ...", flush=True)
    report = source.parent / f"{mode}.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        *_pytest_options(),
        *project.options,
    ]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(PLUGIN),
        "PROXYEXEC_IN_PLACE": mode,
        "PROXYEXEC_REPORT": str(report),
    }
    output = _output(
        [*command, *project.tests], report.with_suffix(".log"), cwd=source, env=environment
    )
    found = {"outcomes": {}, "failures": {}, "counts": {}, "addresses": []}
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(report.read_text(encoding="utf-8"))
    left = [place for one in found.pop("addresses") for place in _places(one) if place.exists()]
    counts = {"pools": 0, "tasks": 0, "stored": 0, **found.pop("counts")}
    return Run(**found, counts=counts, left=list(map(str, left)), output=output)


def _pytest_options() -> list[str]:
    """What is the same for all projects: our plugin, limits, and nothing of their own taste."""
    return [
        *("-p", "proxyexec_in_place", "-p", "no:cacheprovider", "-p", "pytest_timeout"),
        *("-o", "addopts=", "-o", f"timeout={TEST_TIMEOUT_S}", "-o", "timeout_method=signal"),
    ]


def _output(command: Sequence[str], log: Path, **options: Any) -> str:
    """Run a command and all it starts, for so long; return what it says."""
    with log.open("wb") as file:  # a pipe would be read for as long as a worker is left
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        try:
            process.wait(RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print("It hangs.")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


def _places(address: str) -> list[Path]:
    """The directories of a store at ``file:///root?session=NAME&spill=/other``."""
    parts = urlsplit(address)
    options = parse_qs(parts.query)
    roots = [unquote(parts.path), *options.get("spill", [])]
    return [Path(root) / options["session"][0] for root in roots]


def _problems(raw: Run, run: Run, mode: str) -> list[str]:
    """What is wrong with a run, beside one with the standard library's pools."""
    if not run.outcomes:
        return [f"no test ran\n{_end(run.output)}"]
    problems = [
        f"{test} {run.outcomes.get(test, 'is missing')}\n{_end(run.failures.get(test, ''))}"
        for test in sorted(raw.passed - run.passed)
    ]
    problems += [f"left behind: {place}" for place in run.left]
    needed = ["pools", "tasks"] + ["stored"] * (mode == "stored")
    problems += [f"no {name}: the tests show nothing" for name in needed if not run.counts[name]]
    return problems


def _end(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-MESSAGE_LINES:])


def _show(rows: Sequence[tuple[Any, ...]], problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"\n{problem}")
    print("\n" + "".join(f"{name:>10}" for name in COLUMNS))
    for row in rows:
        print("".join(f"{value:>10}" for value in row))
    print(f"\nProblems: {len(problems)}" if problems else "\nAll that passes there passes here.")


if __name__ == "__main__":
    sys.exit(main())
