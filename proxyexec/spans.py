"""Spans of OpenTelemetry for what executors do: submit, put, run, resolve.

Off until :func:`enable` is called. Needs the extra ``otel``, in workers as well.
"""

from __future__ import annotations

from proxyexec._spans import disable, enable

__all__ = ["disable", "enable"]
