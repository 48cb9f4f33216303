"""Compare kinds of lazy proxies: what they cost, and where one can tell them from their targets.

Beside the target itself: lazy_object_proxy (where installed), wrapt's LazyObjectProxy, and
proxyexec's Proxy, which is built on wrapt and chooses its special methods by the target's type.
The documentation's page on proxies rests on this.

    python benchmarks/proxies.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import timeit
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import wrapt
from proxyexec_connectors.memory import MemoryConnector
from screen import Progress, show_table

import proxyexec

OnFetch = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """A kind of proxy: how to prepare for a target, and then make proxies of it.

    The factory takes the target, and optionally what to call when a proxy fetches it.
    """

    name: str
    factory: Callable[..., Callable[[], Any]]


class Point:
    """A target with an attribute, known to pickle by name."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __repr__(self) -> str:
        return f"Point({self.x})"


@dataclass(frozen=True)
class Operation:
    """Something done to a resolved proxy again and again."""

    name: str
    target: Any
    run: Callable[[Any], object]


@dataclass(frozen=True)
class Question:
    """Something asked of a proxy, whose answer should be the target's."""

    name: str
    target: Any
    ask: Callable[[Any], object]


def _add_in_place(one: Any) -> object:
    one += 1
    return type(one).__name__


OPERATIONS = (
    Operation("p.x", Point(1), lambda p: p.x),
    Operation("p + 1", 41, lambda p: p + 1),
    Operation("p == 41", 41, lambda p: p == 41),
    Operation("len(p)", [1, 2, 3], len),
    Operation("p[1]", [1, 2, 3], lambda p: p[1]),
    Operation("hash(p)", "text", hash),
    Operation("for _ in p", [1, 2, 3], list),
    Operation("isinstance(p, list)", [1, 2, 3], lambda p: isinstance(p, list)),
)

QUESTIONS = (
    Question("callable(p), int", 41, callable),
    Question("callable(p), function", len, callable),
    Question("isinstance(p, Iterable), int", 41, lambda p: isinstance(p, Iterable)),
    Question("isinstance(p, Iterable), list", [1], lambda p: isinstance(p, Iterable)),
    Question("isinstance(p, Iterator), list", [1], lambda p: isinstance(p, Iterator)),
    Question("isinstance(p, Sized), int", 41, lambda p: isinstance(p, Sized)),
    Question("isinstance(p, Hashable), list", [1], lambda p: isinstance(p, Hashable)),
    Question("isinstance(p, Hashable), str", "text", lambda p: isinstance(p, Hashable)),
    Question("hash(p), list", [1], hash),
    Question("hash(p), str", "text", hash),
    Question("iter(p), int", 41, iter),
    Question("isinstance(p, list)", [1], lambda p: isinstance(p, list)),
    Question("p.__class__ is list", [1], lambda p: p.__class__ is list),
    Question("hasattr(p, '__await__'), list", [1], lambda p: hasattr(p, "__await__")),
    Question("hasattr(p, '__fspath__'), str", "text", lambda p: hasattr(p, "__fspath__")),
    Question("hasattr(p, '__enter__'), list", [1], lambda p: hasattr(p, "__enter__")),
    Question("type of p + 1, int", 41, lambda p: type(p + 1).__name__),
    Question("type of p += 1, int", 41, _add_in_place),
    Question("f'{p:>4}', str", "ab", lambda p: f"{p:>4}"),
    Question("[10, 20][p], int", 1, lambda p: [10, 20][p]),
    Question("'-'.join(p), list", ["a", "b"], "-".join),
    Question("1 + p, int", 41, lambda p: 1 + p),
    Question("sorted by p < q, int", 41, lambda p: sorted([42, p]) == [41, 42]),
    Question("repr(p), resolved", Point(1), lambda p: (p.x, repr(p))[1]),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and ask, and print both tables; return the exit code."""
    options = _options(arguments)
    store = proxyexec.Store("proxies", MemoryConnector())
    with store:
        kinds = _kinds(store)
        _show_costs(kinds, options.repeat, options.number)
        _show_answers(kinds)
        _show_unresolved(kinds)
    return 0


def _kinds(store: proxyexec.Store) -> list[Kind]:
    def itself(target: Any, _on_fetch: OnFetch = _nothing) -> Callable[[], Any]:
        return lambda: target

    def of_store(target: Any, _on_fetch: OnFetch = _nothing) -> Callable[[], Any]:
        # That one was fetched is for is_resolved() to tell.
        first = store.proxy(target)
        return lambda: proxyexec.clone(first)

    kinds = [Kind("target", itself)]
    if find_spec("lazy_object_proxy") is not None:
        lazy = import_module("lazy_object_proxy").Proxy
        kinds.append(Kind("lazy-object-proxy", _by_factory(lazy)))
    kinds.append(Kind("wrapt", _by_factory(wrapt.LazyObjectProxy)))
    kinds.append(Kind("proxyexec", of_store))
    return kinds


def _by_factory(make: Callable[[Callable[[], Any]], Any]) -> Callable[..., Callable[[], Any]]:
    """A kind whose proxies are made from a function that returns the target."""

    def factory(target: Any, on_fetch: OnFetch = _nothing) -> Callable[[], Any]:
        def fetch() -> Any:
            on_fetch()
            return target

        return lambda: make(fetch)

    return factory


def _nothing() -> None:
    pass


def _show_costs(kinds: Sequence[Kind], repeat: int, number: int) -> None:
    # One sample of everything, then the next: what disturbs the machine disturbs all alike.
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for kind in kinds:
        if kind.name != "target":
            runs["make one", kind.name] = kind.factory([1, 2, 3])
        for operation in OPERATIONS:
            obj = kind.factory(operation.target)()
            if _answer(operation.run, obj) == "TypeError":  # asking has resolved it, too
                continue
            runs[operation.name, kind.name] = _bound(operation, obj)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with Progress(repeat) as progress:
        for _ in range(repeat):
            for key, run in runs.items():
                samples[key].append(timeit.timeit(run, number=number) / number)
            progress.step("timing operations")
    rows = []
    for name in ("make one", *(operation.name for operation in OPERATIONS)):
        cells = [samples.get((name, kind.name)) for kind in kinds]
        rows.append(
            [name, *(f"{statistics.median(cell) * 1e9:.0f}" if cell else "-" for cell in cells)]
        )
    show_table(
        "Nanoseconds an operation, medians; proxies are resolved",
        ["operation", *(kind.name for kind in kinds)],
        rows,
        notes=[
            "-: that proxy cannot. Each includes about 50 ns for the call that is timed.",
            "proxyexec's carry a reference and join the lease on their object when they are made.",
        ],
    )


def _bound(operation: Operation, obj: Any) -> Callable[[], object]:
    run = operation.run
    return lambda: run(obj)


def _show_answers(kinds: Sequence[Kind]) -> None:
    rows = []
    wrong = dict.fromkeys((kind.name for kind in kinds), 0)
    for question in QUESTIONS:
        # Everyone gets a new proxy for each question: asking may resolve it.
        answers = [_answer(question.ask, kind.factory(question.target)()) for kind in kinds]
        cells = [answers[0]]
        for kind, answer in zip(kinds[1:], answers[1:], strict=True):
            wrong[kind.name] += answer != answers[0]
            cells.append("same" if answer == answers[0] else f"NOT: {answer}")
        rows.append([question.name, *cells])
    rows.append(["different answers", "", *(str(wrong[kind.name]) for kind in kinds[1:])])
    show_table(
        "Answers of the target, and whether its proxy gives the same",
        ["question", *(kind.name for kind in kinds)],
        rows,
    )


def _answer(ask: Callable[[Any], object], obj: Any) -> str:
    try:
        answer = ask(obj)
    except Exception as error:  # noqa: BLE001 - an error is an answer
        return type(error).__name__
    if isinstance(answer, bool | int | str):
        text = str(answer)
        return text if len(text) < 12 else f"{text[:10]}.."
    return type(answer).__name__


def _show_unresolved(kinds: Sequence[Kind]) -> None:
    questions: dict[str, Callable[[Any], object]] = {
        "repr(p)": repr,
        "isinstance(p, list)": lambda p: isinstance(p, list),
        "isinstance(p, Iterable)": lambda p: isinstance(p, Iterable),
        "callable(p)": callable,
        "type(p)": type,
        "bool(p)": bool,
    }
    proxies = [kind for kind in kinds if kind.name != "target"]
    rows = [
        [name, *("resolves" if _resolves(kind, ask) else "does not" for kind in proxies)]
        for name, ask in questions.items()
    ]
    show_table(
        "Whether looking at a proxy of a list fetches the list",
        ["question", *(kind.name for kind in proxies)],
        rows,
    )


def _resolves(kind: Kind, ask: Callable[[Any], object]) -> bool:
    fetched: list[bool] = []
    proxy = kind.factory([1, 2, 3], lambda: fetched.append(True))()
    ask(proxy)
    return proxyexec.is_resolved(proxy) if proxyexec.is_proxy(proxy) else bool(fetched)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: python benchmarks/proxies.py --repeat 5",
    )
    parser.add_argument(
        "--repeat", type=int, default=15, metavar="N", help="samples of each (default: 15)"
    )
    parser.add_argument(
        "--number", type=int, default=20_000, metavar="N", help="calls a sample (default: 20000)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
