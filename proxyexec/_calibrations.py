"""Calibrations kept on disk, for the next program of this user on this machine.

One file for each setting, in ``$XDG_CACHE_HOME/proxyexec/costs`` (``~/.cache`` if that is not set):
the machine, the Python, what the executor and the store are. A file is replaced as a whole. One
that cannot be read, or is of another setting, is as good as none; and so is a directory that cannot
be written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import proxyexec
from proxyexec._cores import usable_cores
from proxyexec._costs import KINDS, CostModel
from proxyexec._limits import Costs
from proxyexec.errors import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxyexec._executor import StoreExecutor

__all__ = ["load", "place_of", "save", "setting_of"]


def setting_of(executor: StoreExecutor) -> dict[str, str]:
    """Return all that costs depend on, as far as it can be told beforehand."""
    base, store = getattr(executor, "_base", executor), executor.store
    context = getattr(base, "_mp_context", None)
    start = context.get_start_method() if context is not None else ""
    return {
        "machine": f"{platform.node()} {platform.machine()} {usable_cores()} processors",
        "python": f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}",
        "executor": " ".join(filter(None, [name_of(type(base)), start])),
        "workers": str(executor._workers),
        "store": _place(store.connector.url),
        "integrity": str(store.seal is not None),
        "serializer": name_of(type(executor._context.serializer)),
        "arrays": str("numpy" in sys.modules),
        "lazy": str(executor._context.lazy),
        "proxyexec": proxyexec.__version__,
    }


def load(setting: Mapping[str, str]) -> CostModel | None:
    """Return what was measured with a setting; ``None`` if nothing was, or it cannot be read."""
    try:
        model = CostModel.from_json(json.loads(place_of(setting).read_text(encoding="utf-8")))
        for kind in KINDS:
            Costs(model, kind)  # there is enough in it to tell which path is cheaper
    except (OSError, ValueError, OverflowError, RecursionError):
        return None
    return model if model.setting == setting else None


def save(model: CostModel) -> bool:
    """Keep what was measured with a setting; tell whether that could be done."""
    path = place_of(model.setting)
    text = json.dumps(model.to_json(), indent=1) + "\n"
    temporary = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False
    return True


def place_of(setting: Mapping[str, str]) -> Path:
    """Return the file for a setting."""
    # As the specification has it, what is not absolute counts for nothing.
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~"), ".cache")
    text = json.dumps(sorted(setting.items()))
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    return root / "proxyexec" / "costs" / f"{name}.json"


def _place(url: str) -> str:
    """A store's URL without what tells who uses it."""
    parts = urlsplit(url)
    if parts.hostname is None:
        return f"{parts.scheme}:{parts.path}"
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname}{port}"
