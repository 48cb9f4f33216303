"""What is left: processes, descriptors, and what a place still holds."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Set for every process that a family starts, and inherited by all their children.
MARK = "PROXYEXEC_TEST_FAMILY"

# Nothing here takes so long, however loaded the machine is.
PATIENCE = 60.0


class Family:
    """Processes that descend from a marked one, whoever their parent is by now."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a process that is to be of the family."""
        return {**os.environ, MARK: self.name}

    def members(self) -> dict[int, str]:
        """Process ids and command lines of those that are alive; zombies are not."""
        wanted = f"{MARK}={self.name}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) == os.getpid():
                continue
            try:
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes()
                    found[int(entry)] = command.replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended meanwhile, or is somebody else's
                continue
        return found

    def kill(self) -> None:
        """End all of them."""
        deadline = time.monotonic() + PATIENCE
        while members := self.members():
            for process, command in members.items():
                # These remove what the others have left, when all of them are gone, and end.
                if "resource_tracker" in command and time.monotonic() < deadline:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.01)


@contextmanager
def family() -> Iterator[Family]:
    """A family of which nobody outlives the context."""
    one = Family()
    try:
        yield one
    finally:
        one.kill()


def descriptors(process: int | None = None) -> Counter[str]:
    """What the descriptors of a process are open on.

    Without the numbers of pipes and sockets: a leak is one more of the kind.
    """
    directory = f"/proc/{process or os.getpid()}/fd"
    found: Counter[str] = Counter()
    for name in os.listdir(directory):
        try:
            target = os.readlink(f"{directory}/{name}")
        except FileNotFoundError:  # the one of listdir itself
            continue
        found[target.partition("[")[0].partition(" (deleted)")[0]] += 1
    return found


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so; fail if it does not become so.

    For what another process does on its own; not for what ought to be so already.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(0.01)
