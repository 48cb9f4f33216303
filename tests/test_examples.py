"""Every Python example of the README and of the documentation, executed.

The examples of a page are one script; those of the README are a script each. A comment on the
line before a fence changes that:

- ``<!-- example: needs redis -->`` gives the page's script the URL of a server in ``REDIS_URL``;
- ``<!-- example: needs mpi -->`` runs the page's script under ``mpiexec``;
- ``<!-- example: run again -->`` says that the page's script kills itself the first time, and is
  run again;
- ``<!-- example: not run -->`` leaves one out: a sketch that is not a program.

``<!-- file: NAME -->`` before any other fence says that the scripts of the page find it under that
name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engines.mpi import MPI

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "engines").glob("*.md")),
]

# Skips the script's test where it is not installed.
LIBRARIES = "numpy|pandas|pytest|distributed|loky|joblib|mpi4py|parsl|ipyparallel"

# The only examples that are not run, as page and first line.
NOT_RUN: set[tuple[str, str]] = set()


class Example(NamedTuple):
    line: int
    code: str
    marks: frozenset[str]


class Script(NamedTuple):
    name: str
    code: str
    files: dict[str, str]
    needs_redis: bool
    needs_mpi: bool
    is_run_again: bool


def examples_of(page: Path) -> list[Example]:
    """The fences of a page that say ``python``, with the comments that stand before them."""
    found = []
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    before = ""
    for number, line in lines:
        fence = re.fullmatch(r"(`{3,}|~{3,}|:{3,})\s*(\S*).*", line.strip())
        if fence is None:
            before = line.strip() or before
            continue
        mark, language = fence.groups()
        body = []
        for _, inner in lines:
            if inner.strip() == mark:
                break
            body.append(inner)
        else:
            raise ValueError(f"{page.name}:{number}: the fence is not closed")
        if language.lower() in ("python", "py", "python3", "{code-block}", "pycon"):
            comment = re.fullmatch(r"<!-- example: (.+) -->", before)
            marks = frozenset(comment[1].split(", ")) if comment else frozenset()
            assert marks <= {"needs mpi", "needs redis", "not run", "run again"}, (
                f"{page.name}:{number}: {before}"
            )
            assert language == "python", f"{page.name}:{number}: write ```python, so that it is run"
            found.append(Example(number + 1, "\n".join(body) + "\n", marks))
        before = ""
    return found


def files_of(page: Path) -> dict[str, str]:
    """The fences of a page that are files, by their names."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == text.count("<!-- file:")
    return dict(found)


def scripts_of(page: Path, *, without: str = "not run") -> list[Script]:
    run = [one for one in examples_of(page) if not one.marks & {"not run", without}]
    groups = [[one] for one in run] if page.name == "README.md" else [run] if run else []
    scripts = []
    for group in groups:
        code = ""
        for one in group:
            # Line numbers in a traceback are the page's.
            code += "\n" * (one.line - 1 - code.count("\n")) + one.code
        stem = page.stem if page.parent.name != "engines" else f"engines-{page.stem}"
        name = stem if len(groups) == 1 else f"{stem}-{group[0].line}"
        marks = frozenset[str]().union(*(one.marks for one in group))
        facts = (one in marks for one in ("needs redis", "needs mpi", "run again"))
        scripts.append(Script(name, code, files_of(page), *facts))
    return scripts


SCRIPTS = [script for page in PAGES for script in scripts_of(page)]
PLAIN = [
    pytest.param(one, id=one.name)
    for one in SCRIPTS
    if not (one.needs_redis or one.needs_mpi or one.is_run_again)
]
RUN_AGAIN = [pytest.param(one, id=one.name) for one in SCRIPTS if one.is_run_again]
WITH_MPI = [pytest.param(one, id=one.name) for one in SCRIPTS if one.needs_mpi]
WITH_REDIS = [pytest.param(one, id=one.name) for one in SCRIPTS if one.needs_redis]


def write(script: Script, directory: Path) -> Path:
    """Write a script, or skip its test for want of a library that it imports."""
    wanted = re.findall(rf"^\s*(?:import|from) ({LIBRARIES})\b", script.code, re.MULTILINE)
    if "from proxyexec.config " in script.code:
        wanted.append("pydantic_settings")
    for library in wanted:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{script.name} needs {library}")
    path = directory / f"{script.name.replace('-', '_').lower()}_examples.py"
    path.write_text(script.code, encoding="utf-8")
    for name, text in script.files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return path


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "IPYTHONDIR": str(cwd),  # not the user's
        # Dask's usual one for its dashboard, which another test has.
        "PYTHONWARNINGS": "ignore:Port 8787:UserWarning",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("script", PLAIN)
def test_examples(script: Script, tmp_path: Path) -> None:
    done = run(write(script, tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("script", RUN_AGAIN)
def test_examples_that_are_run_again(script: Script, tmp_path: Path) -> None:
    path = write(script, tmp_path)
    with subprocess.Popen(
        [sys.executable, path], cwd=tmp_path, stdin=subprocess.DEVNULL, start_new_session=True
    ) as first:
        try:
            assert first.wait(120) == -signal.SIGKILL
            done = run(path, cwd=tmp_path)
        finally:
            # The workers of its pool do not see that it is gone.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(first.pid, signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("script", WITH_REDIS)
def test_examples_with_redis(script: Script, tmp_path: Path, redis_url: str) -> None:
    done = run(write(script, tmp_path), cwd=tmp_path, REDIS_URL=redis_url)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("script", WITH_MPI)
def test_examples_with_mpi(script: Script, tmp_path: Path, mpiexec: MPI) -> None:
    done = mpiexec.run(write(script, tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_connector_keeps_its_promises(tmp_path: Path) -> None:
    [script] = scripts_of(ROOT / "docs" / "connectors.md", without="needs redis")
    path = write(script, tmp_path)
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path)
    done = run("-m", "pytest", *options, path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d passed", done.stdout), done.stdout


def test_every_page_with_examples_has_a_script() -> None:
    with_fences = {page for page in PAGES if "```python" in page.read_text(encoding="utf-8")}
    assert with_fences == {page for page in PAGES if examples_of(page)}
    for page in with_fences:
        assert scripts_of(page), f"nothing of {page.name} is run"


def test_few_examples_are_not_run() -> None:
    left_out = {
        (page.name, one.code.splitlines()[0])
        for page in PAGES
        for one in examples_of(page)
        if "not run" in one.marks
    }
    assert left_out == NOT_RUN


def test_examples_check_what_they_say() -> None:
    for script in SCRIPTS:
        assert "assert " in script.code, f"{script.name} asserts nothing"
