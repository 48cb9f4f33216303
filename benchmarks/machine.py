"""What a run was made on: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from screen import size_name

__all__ = ["available_memory", "describe_machine", "in_a_line"]


def describe_machine(distributions: Iterable[str]) -> dict[str, Any]:
    """Return the processor, memory, kernel, Python and versions, ready for JSON.

    Args:
        distributions: names of the packages whose versions count; those not installed are
            left out.
    """
    memory = _memory_fields()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
        "transparent_huge_pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average": os.getloadavg(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "start_method_default": _start_method(),
        "versions": _versions(distributions),
    }


def in_a_line(machine: dict[str, Any], *more: str) -> str:
    """Return what counts most of a machine's description, and what else is said, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = (
        machine["processor"],
        f"{machine['cores']} cores",
        size_name(machine["memory_bytes"] or 0),
        f"{machine['system']} {machine['kernel']}",
        machine["python"],
        *more,
    )
    return f"{', '.join(facts)}; {versions}"


def available_memory() -> int | None:
    """Return how many bytes programs can have before the machine swaps, where it tells."""
    return _memory_fields().get("MemAvailable")


def _memory_fields() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, _, value in fields}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _start_method() -> str:
    # Python 3.14 changed the default on Linux; asking would also fix it for this process.
    return "forkserver" if sys.version_info >= (3, 14) else "fork"


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
