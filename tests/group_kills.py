"""Kills a program with a task group at a random step, runs it again, and looks at what it did."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from proxyexec_connectors import durable

TASKS = 200

SEEDS = range(50 if os.environ.get("PROXYEXEC_LONG") == "1" else 2)


def killed_and_run_again(
    seed: int, url: str, base: str, directory: Path, settle: Callable[[], None] = lambda: None
) -> None:
    """Do all this, and check what has to hold.

    Args:
        seed: of when the program is killed, and with what.
        url: of the store.
        base: what runs its tasks, as the program takes it.
        directory: for files.
        settle: waits until nothing of the first program runs any more.
    """
    chance = random.Random(f"{seed} {base == 'pool'} {url[:4]}")
    runs = directory / f"runs-{seed}"
    runs.touch()
    group = f"killed-{seed}"
    command = [sys.executable, "-m", "tests.group_program", url, group, base, str(runs), str(TASKS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with open(directory / f"errors-{seed}", "w+b") as errors:
        first = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
        )
        try:
            # Two steps before the tasks, one when each is submitted, one when it is done.
            steps = chance.randrange(2 + 2 * TASKS)
            said = first.stdout.read(steps) if steps else b""
            assert len(said) == steps, Path(errors.name).read_text()
            # A pool's workers outlive their program for as long as they have tasks, or die with it.
            if chance.random() < 0.5:
                os.killpg(first.pid, signal.SIGKILL)
            else:
                first.kill()
            first.wait()
            first.stdout.close()
            # In this order: what the workers that are left finish now has run before.
            finished = finished_tasks(url, group)
            before = Counter(map(int, runs.read_text().split()))
            second = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, env=environment, timeout=300
            )
            assert second.returncode == 0, Path(errors.name).read_text()
        finally:
            try:
                os.killpg(first.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    assert second.stdout.endswith(b"\nright\n")
    after = Counter(map(int, runs.read_text().split()))
    assert set(after) == set(range(TASKS))
    again = {number for number in finished if after[number] > before[number]}
    assert not again, f"tasks that had finished ran again: {again}"
    settle()
    assert durable.remove_session(url, group)
    assert durable.sessions(url) == []


def finished_tasks(url: str, group: str) -> set[int]:
    """The numbers of the tasks whose outcomes are written down."""
    try:
        session = durable.open_session(url, group, create=False)
    except LookupError:
        return set()
    try:
        outcomes = session.keys("outcome.")
    finally:
        session.close()
    # The program submits them in order.
    return {int(key.removeprefix("outcome.").partition("-")[0]) - 1 for key in outcomes}
