"""``python -m proxyexec.call CALL.json RESULT.json`` runs a call that has been written down.

See :mod:`proxyexec.calls` for what writes one, and docs/calls.md for what is in the records.
"""

from __future__ import annotations

import sys

from proxyexec._call_cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
