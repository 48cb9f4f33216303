"""Run libFuzzer on the readers: ``python -m tests.fuzz.run [--seconds N] [NAME …]``.

Each reader gets a process of its own, which is steered by what code its bytes reach. Bytes that
make a reader raise, crash, or hang are printed and end the run with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import NAMES

# Longer than any reader takes for any bytes.
_HANGS_AFTER_SECONDS = 60

_MEMORY_MB = 2048


def _fuzz(name: str, directory: str, redis_url: str, options: list[str]) -> None:
    """Be the process that runs one reader; never returns."""
    import atheris

    with atheris.instrument_imports(include=["proxyexec", "proxyexec_connectors"]):
        import proxyexec  # noqa: F401
        import proxyexec_connectors.redis  # noqa: F401
    module = importlib.import_module(f"tests.fuzz.{name}")
    with module.reader(Path(directory), redis_url or None) as read:
        atheris.Setup([sys.argv[0], *options], read)
        atheris.Fuzz()


def _run(name: str, seconds: int, redis_url: str) -> bool:
    """Fuzz one reader; tell whether nothing was found."""
    module = importlib.import_module(f"tests.fuzz.{name}")
    # The process ends without cleaning up.
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
        tempfile.TemporaryDirectory() as kept,
    ):
        corpus = Path(kept, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(module.SEEDS):
            (corpus / f"seed-{number}").write_bytes(seed)
        options = [
            f"-max_total_time={seconds}",
            f"-timeout={_HANGS_AFTER_SECONDS}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-artifact_prefix={kept}/",
            "-max_len=4096",
            "-print_final_stats=1",
            str(corpus),
        ]
        command = [sys.executable, "-m", "tests.fuzz.run", "--one", name, directory, redis_url]
        done = subprocess.run(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=seconds + 10 * _HANGS_AFTER_SECONDS,
            env={**os.environ, "TMPDIR": directory},
        )
        said = done.stdout.decode(errors="replace")
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
        executions = int(counted[1]) if counted else 0
        bad = [path for path in Path(kept).iterdir() if path.is_file()]
        failed = done.returncode != 0 or not executions or bool(bad)
        print(f"{name:15} {executions:10,} executions  {'FAILED' if failed else 'ok'}", flush=True)
        if failed:
            print(said[-8000:])
            for path in bad:
                print(f"{path.name}: {path.read_bytes()!r}")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="for each reader")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    chosen = parser.parse_args()
    names = chosen.names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such reader: {', '.join(unknown)}")
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed, so nothing was run")
        return 77
    with contextlib.ExitStack() as stack:
        redis_url = ""
        if "redis_values" in names:
            from tests.redis_server import redis_server

            redis_url = stack.enter_context(redis_server()).url
        return 0 if all([_run(name, chosen.seconds, redis_url) for name in names]) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _fuzz(*sys.argv[2:5], sys.argv[5:])
    else:
        sys.exit(main())
