"""The command ``proxyexec``.

What a sub-command needs is imported when it is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import proxyexec
from proxyexec import _call_cli, _config_cli, _group_cli, _store_cli, _top, _tune_cli

__all__ = ["main"]

_EXAMPLE = """\
example:
  proxyexec config check pipeline.toml
  proxyexec call call.json result.json
  proxyexec group list file:///shared/groups
  proxyexec store ls redis://host:6379/0
  proxyexec tune run.jsonl

'proxyexec COMMAND --help' says more of each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="proxyexec",
        description="Check configurations, run what has been written down, and see what is stored.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"proxyexec {proxyexec.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for room in (_call_cli, _config_cli, _group_cli, _store_cli, _top, _tune_cli):
        room.add_to(commands)
    options = parser.parse_args(argv)
    status: int = options.run(options)
    return status
