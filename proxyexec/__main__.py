"""``python -m proxyexec`` is the command ``proxyexec``."""

from __future__ import annotations

import sys

from proxyexec.cli import main

if __name__ == "__main__":
    sys.exit(main())
