"""Every check and every program of the project, each in an environment of its own.

Run ``nox --list`` to see them, ``nox -s tests`` for the tests on every Python that is installed.
"""

from __future__ import annotations

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)

# Tests wait for other processes half of their time, so two of them run at once.
TWO_AT_ONCE = ["--numprocesses=2"]

# Long, and run by ``nox -s engines``.
BY_ENGINES = [
    "--ignore=tests/engines/test_commands.py",
    "--ignore=tests/engines/test_groups_pools.py",
]


def without(*names: str) -> list[str]:
    """Return the options that leave modules of tests out."""
    return [f"--ignore=tests/test_{name}.py" for name in names]


# What happens to programs from outside is much the same for each Python, and so is what commands
# do: the newest is enough.
WITHOUT_FAULTS = [*TWO_AT_ONCE, *BY_ENGINES, "--ignore=tests/chaos"]
IN_CORE = [*WITHOUT_FAULTS, *without("report", "tune"), "--ignore=tests/engines"]
WITHOUT_COMMANDS = [
    *WITHOUT_FAULTS,
    *without(
        "calls_running", "command_executor", "config_cli", "report", "store_cli", "top", "tune"
    ),
]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "tests_core", "connectors", "lint", "types", "docs"]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install the project as a user would, and what the session's programs need beside it."""
    needs = [need for group in groups for need in nox.project.dependency_groups(PYPROJECT, group)]
    session.install(f".{extras}", *needs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, with every extra, on each Python that is installed."""
    install(session, "test", "redis-server", extras="[redis]")
    is_newest = session.python == PYTHONS[-1]
    arguments = session.posargs or ([*TWO_AT_ONCE, *BY_ENGINES] if is_newest else WITHOUT_COMMANDS)
    session.run("pytest", *arguments, env={"PROXYEXEC_REQUIRE_REDIS": "1"})


@nox.session
def tests_core(session: nox.Session) -> None:
    """Run the tests with nothing installed that the core can do without."""
    install(session, "test-core")
    session.run("pytest", *(session.posargs or IN_CORE))


@nox.session
def tests_long(session: nox.Session) -> None:
    """Run the long form of the tests that have one: every value in every setting, long programs."""
    install(session, "test", extras="[redis]")
    session.install("pyarrow", "scipy")
    modules = session.posargs or [
        "tests/test_differential.py",
        "tests/test_fuzz.py",
        "tests/test_groups_killed.py",
        "tests/test_machine.py",
    ]
    session.run("pytest", *modules, env={"PROXYEXEC_LONG": "1"})


@nox.session
def engines(session: nox.Session) -> None:
    """Run the tests with every executor of other libraries: MPI, Dask, Parsl, loky, ...

    MPI has to be there already: Debian's openmpi-bin and libopenmpi, for instance. With
    ``PROXYEXEC_LONG=1``, the long form.
    """
    install(session, "engines", "redis-server", extras="[redis]")
    # Each engine starts processes of its own, for all tests of a class.
    session.run("pytest", *(session.posargs or [*TWO_AT_ONCE, "--dist=loadscope", "tests/engines"]))
    if not session.posargs:
        session.run("pytest", "tests/test_examples.py", "-k", "engines")


@nox.session
def chaos(session: nox.Session) -> None:
    """Do to programs what can happen to them, many times, and write docs/reliability.md."""
    install(session, "test", "redis-server", extras="[redis]")
    environment = {"PROXYEXEC_REQUIRE_REDIS": "1"}
    session.run("python", "-m", "tests.chaos.report", *session.posargs, env=environment)


@nox.session(python=["3.12", "3.13"])
def stdlib(session: nox.Session) -> None:
    """Run CPython's own tests of its pools on ours, in some 10 minutes; -- --help says more.

    With ``nox -s stdlib-3.13 -- --config dropin -k Spawn test_shutdown``, a part of them.
    """
    # The tests run here, so that their workers and scripts find what they import.
    session.install("-e", ".")
    # 77: the interpreter came without its tests, as some do; the program says so.
    session.run("python", "-m", "tests.stdlib.run", *session.posargs, success_codes=[0, 77])


@nox.session
def users(session: nox.Session) -> None:
    """Run the tests of projects that use pools with ours in place of the standard library's."""
    install(session, "users")
    session.run("python", "-m", "tests.users.run", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed what reads foreign bytes with what libFuzzer makes up: nox -s fuzz -- --seconds 9.

    Without names, every reader of ``tests/fuzz``, each for 30 seconds.
    """
    try:
        # Building it takes a compiler of its own.
        session.install("--only-binary", "atheris", *PYPROJECT["dependency-groups"]["fuzz"])
    except nox.command.CommandFailed:
        session.skip("there is no wheel of atheris for this Python and this machine")
    # The programs run here, and so does what they import.
    needs = nox.project.dependency_groups(PYPROJECT, "test", "redis-server")
    session.install("-e", ".[redis]", *needs)
    session.run("python", "-m", "tests.fuzz.run", *session.posargs)


@nox.session
def connectors(session: nox.Session) -> None:
    """Import every connector with only connectors/ on the path: they never need proxyexec."""
    session.install("redis>=5.3", "hiredis>=3.0", "typing-extensions")
    session.chdir("connectors")
    for name in ("protocol", "errors", "memory", "file", "redis", "registry"):
        session.run("python", "-c", f"import proxyexec_connectors.{name}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and form with ruff."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy (strict) and pyright, the public interface's included."""
    install(session, "types", extras="[redis]")
    session.run("mypy")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error. Pages are in docs/_build/html."""
    install(session, "docs", extras="[redis,config]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def demo(session: nox.Session) -> None:
    """Run real pipelines with the standard library's pool and with ours, and compare."""
    install(session, "demo")
    session.run("python", "benchmarks/demo.py", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run every benchmark and make their page in docs/: nox -s benchmarks -- --quick."""
    install(session, "benchmarks")
    session.run("python", "benchmarks/all.py", *session.posargs)
