"""proxyexec: process pools that move references instead of data."""

from __future__ import annotations

import sys
from pathlib import Path

# In a checkout, connectors/ lies beside this package. Whoever imports proxyexec from there, be
# it installed or not, gets both packages from the same place.
_checkout = Path(__file__).resolve().parent.parent / "connectors"
if (_checkout / "proxyexec_connectors").is_dir() and str(_checkout) not in sys.path:
    sys.path.insert(0, str(_checkout))
del _checkout

from proxyexec._executor import StoreExecutor  # noqa: E402 - needs the above
from proxyexec._future import TaskFuture  # noqa: E402
from proxyexec._progress import ProgressCounts, progress  # noqa: E402
from proxyexec._proxy import (  # noqa: E402
    Proxy,
    Reference,
    clone,
    disown,
    extract,
    is_proxy,
    is_resolved,
    own,
    reference_of,
    resolve,
)
from proxyexec._serialize import PickleSerializer, Serializer  # noqa: E402
from proxyexec._store import Store  # noqa: E402
from proxyexec.policy import (  # noqa: E402
    Policy,
    ProxyAdaptive,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
)
from proxyexec.pools import ProcessPoolExecutor, ThreadPoolExecutor  # noqa: E402

__all__ = [
    "PickleSerializer",
    "Policy",
    "ProcessPoolExecutor",
    "ProgressCounts",
    "Proxy",
    "ProxyAdaptive",
    "ProxyAlways",
    "ProxyNever",
    "ProxySize",
    "ProxyType",
    "Reference",
    "Serializer",
    "Store",
    "StoreExecutor",
    "TaskFuture",
    "ThreadPoolExecutor",
    "clone",
    "disown",
    "extract",
    "is_proxy",
    "is_resolved",
    "own",
    "progress",
    "reference_of",
    "resolve",
]

__version__ = "0.1.0"
