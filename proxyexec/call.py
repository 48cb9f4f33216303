"""``python -m proxyexec.call CALL.json RESULT.json`` runs a call that has been written down.

See :mod:`proxyexec.calls` for what writes one, and docs/calls.md for what is in the records.
"""

from __future__ import annotations

import os
import sys

from proxyexec._call_cli import main

__all__ = ["main"]

if __name__ == "__main__":
    status = main()
    # The function's process has ended in the usual way. Here there is nothing left to be done, and
    # an interpreter that ends in that way takes a sixth of the time that all of this does.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
