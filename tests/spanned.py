"""What tests of spans call in workers, and how these write their spans down."""

from __future__ import annotations

import json
import os
import sys

from proxyexec import _spans


class Spans:
    """All that have ended, here and in the workers."""

    def __init__(self, directory):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.directory = directory
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("mine")

    def all(self):
        found = [facts_of(span) for span in self.exporter.get_finished_spans()]
        for file in self.directory.iterdir():
            found += map(json.loads, file.read_text().splitlines())
        return found

    def named(self, name):
        return [one for one in self.all() if one["name"] == name]

    def one(self, name):
        [one] = self.named(name)
        return one

    def below(self, parent):
        """The names of the spans right below one, and what they have."""
        return {one["name"]: one for one in self.all() if one["parent"] == parent["id"]}


def export_to(directory, in_batches=False):
    """Have this process write its spans to a file of its own, as lines of JSON."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SimpleSpanProcessor,
    )

    out = open(os.path.join(directory, f"{os.getpid()}.jsonl"), "a")
    exporter = ConsoleSpanExporter(
        out=out, formatter=lambda span: json.dumps(facts_of(span)) + "\n"
    )
    provider = TracerProvider()
    kind = BatchSpanProcessor if in_batches else SimpleSpanProcessor
    provider.add_span_processor(kind(exporter))
    trace._TRACER_PROVIDER = None  # that of an earlier test
    trace._TRACER_PROVIDER_SET_ONCE._done = False
    trace.set_tracer_provider(provider)
    _spans.active = None


def facts_of(span):
    return {
        "name": span.name,
        "trace": f"{span.context.trace_id:x}",
        "id": f"{span.context.span_id:x}",
        "parent": None if span.parent is None else f"{span.parent.span_id:x}",
        "kind": span.kind.name,
        "attributes": dict(span.attributes),
        "status": span.status.status_code.name,
        "said": span.status.description,
        "events": [event.name for event in span.events],
        "seconds": (span.end_time - span.start_time) / 1e9,
        "process": os.getpid(),
    }


def without_opentelemetry(log):
    """Have this process be as if it were not installed, and log to a file."""
    import logging

    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        del sys.modules[name]
    sys.modules["opentelemetry"] = None
    logging.basicConfig(filename=log, force=True)


def double(data):
    """Works in a span of its own."""
    from opentelemetry import trace

    with trace.get_tracer("mine").start_as_current_span("doubling"):
        return data * 2


def baggage(name):
    from opentelemetry import baggage

    return baggage.get_baggage(name)


def submit_inside(data):
    """Uses an executor of its own."""
    import proxyexec

    with proxyexec.ThreadPoolExecutor(1) as pool:
        return pool.submit(len, data).result()
