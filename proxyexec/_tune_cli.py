"""The command ``proxyexec tune``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from proxyexec._cli_parts import command, print_json, say, shown, store_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from proxyexec._tune_result import TuneResult

__all__ = ["add_to"]

_EXAMPLE = """\
proxyexec tune run.jsonl
proxyexec tune run.jsonl --store redis://host:6379/0 --top 5
proxyexec tune run.jsonl --report report.html
proxyexec tune run.jsonl --config stack.toml --write stack.toml
proxyexec tune run.jsonl --verify program.py --rows 1000"""

_MORE = """\
The trace is what an executor's trace() writes. The run is replayed under each policy that comes
into question, with what moving objects costs: that is measured, in a few seconds, with workers like
those of the run. Costs are kept, and measured once for a machine, an executor and a store.

'--verify' comes last: all that follows is the program and its arguments. It is run under the best
policies and as it is, in turns; it need not be changed for that.
"""

_TRIED = 3

# Of terminals that do not tell how wide they are.
_COLUMNS = 80


def add_to(subparsers: Any) -> None:
    """Add the command to those of a parser; see :func:`proxyexec._group_cli.add_to`."""
    tune = command(
        subparsers,
        "tune",
        "find the policy, and the store, that would make a traced run fastest",
        _EXAMPLE,
        _tune,
        _MORE,
    )
    tune.usage = "%(prog)s [OPTION ...] TRACE [--verify PROGRAM [ARGUMENT ...]]"
    tune.add_argument("trace", metavar="TRACE", help="the path of the trace")
    tune.add_argument(
        "--store",
        action="append",
        default=[],
        type=store_url,
        metavar="URL",
        help="a store to consider, too (repeatable); that of the run with its password; or "
        "env:NAME, to take it from the environment",
    )
    tune.add_argument(
        "--config",
        metavar="FILE",
        help="describes the executor of the run, to measure with that one; what --write writes is "
        "this with another policy",
    )
    tune.add_argument(
        "--calibrate", action="store_true", help="measure costs again, though they are known"
    )
    tune.add_argument(
        "--top", type=_number, default=10, metavar="N", help="how many are listed (10)"
    )
    tune.add_argument("--json", action="store_true", help="write JSON, for programs")
    tune.add_argument(
        "--write",
        metavar="FILE",
        help="write the best one as a configuration: .json, .toml or .yaml, without the comments "
        "of --config",
    )
    tune.add_argument(
        "--report",
        metavar="FILE",
        help="write a page that shows what was found: one file of HTML, which needs no other",
    )
    tune.add_argument(
        "--print-python", action="store_true", help="print nothing but the best one, as Python"
    )
    tune.add_argument(
        "--rounds", type=_number, default=3, metavar="N", help="for --verify: runs of each (3)"
    )
    tune.add_argument(
        "--verify",
        nargs=argparse.REMAINDER,
        metavar="PROGRAM",
        help=f"run this under the best {_TRIED} and as it is, and compare with what was expected",
    )
    parse: Any = functools.partial(_parsed, tune.parse_known_args)
    tune.parse_known_args = parse  # type: ignore[method-assign]


def _parsed(
    parse: Callable[..., tuple[argparse.Namespace, list[str]]],
    arguments: Sequence[str],
    namespace: Any = None,
) -> tuple[argparse.Namespace, list[str]]:
    """Parse arguments, of which ``argparse`` would leave out all from a ``--`` on."""
    given = list(arguments)
    place = given.index("--verify") + 1 if "--verify" in given else len(given)
    options, unknown = parse(given[:place], namespace)
    if given[place:]:
        options.verify = given[place:]
        if options.verify[0] == "--":  # as many commands want it before another one
            del options.verify[0]
    return options, unknown


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return number


def _tune(options: argparse.Namespace) -> int:
    if options.verify is not None and not options.verify:
        print("proxyexec: --verify needs a program to run", file=sys.stderr)  # noqa: T201
        return 2
    if options.write is not None:
        from proxyexec._tune_writing import check_name  # noqa: PLC0415 - "--help" needs none of it

        check_name(options.write)  # before much is measured
    with _status_line() as show:
        result, urls = _result(options, show)
        if options.verify:
            result = _verified(options, result, urls, show)
    with contextlib.ExitStack() as last:
        # What took long to find out is told, whatever files cannot be written.
        last.callback(_print, options, result)
        last.callback(_report, options, result)
        _write(options, result, urls)
    return 0


def _result(
    options: argparse.Namespace, show: Callable[[str], object]
) -> tuple[TuneResult, dict[str, str]]:
    """Tune; return what was found, and the URLs of stores with their passwords."""
    from proxyexec._trace import read_trace  # noqa: PLC0415 - "--help" needs none of it
    from proxyexec._tune_costs import places_for  # noqa: PLC0415
    from proxyexec._tune_ranking import tune  # noqa: PLC0415
    from proxyexec._tune_run import workers_of  # noqa: PLC0415
    from proxyexec.errors import TraceError  # noqa: PLC0415

    show(f"reading {options.trace}")
    try:
        trace = read_trace(options.trace)
    except OSError as error:
        raise TraceError(options.trace, error.strerror or str(error)) from error
    moved = [one for task in trace.tasks for one in task.moved]
    places, notes = places_for(
        trace.header,
        options.store,
        workers=workers_of(trace),
        largest=max((one.bytes for one in moved), default=0),
        arrays=any(one.type.startswith(("numpy.", "pandas.")) for one in moved),
        executor=_executor_spec(options.config),
        again=options.calibrate,
        say=show,
    )
    result = tune(
        trace, places, progress=lambda done, total: show(f"replayed {done} of {total} candidates")
    )
    return replace(result, notes=(*result.notes, *notes)), _with_passwords(options.store)


def _with_passwords(urls: list[str]) -> dict[str, str]:
    from proxyexec_connectors.registry import without_password  # noqa: PLC0415

    return {without_password(url): url for url in urls}


def _executor_spec(path: str | None) -> Any:
    if path is None:
        return None
    from proxyexec.config import load  # noqa: PLC0415 - most need no pydantic
    from proxyexec.errors import TuneError  # noqa: PLC0415

    try:
        return load(path).executor
    except OSError as error:
        raise TuneError(path, error.strerror or str(error)) from error


def _verified(
    options: argparse.Namespace,
    result: TuneResult,
    urls: dict[str, str],
    show: Callable[[str], object],
) -> TuneResult:
    from proxyexec._tune_verify import Trial, verify  # noqa: PLC0415

    present = result.present
    best = [one for one in result.candidates[: _TRIED + 1] if not one.is_present][:_TRIED]
    trials = [
        Trial(one, None if one.store == present.store else urls.get(one.store, one.store))
        for one in (*best, present)
    ]
    measured = verify(
        options.verify,
        trials,
        rounds=options.rounds,
        trace=options.trace,
        progress=lambda done, total, name: show(f"run {done + 1} of {total}: {name}"),
    )
    return result.verified(measured)


def _write(options: argparse.Namespace, result: TuneResult, urls: dict[str, str]) -> None:
    if options.write is None:
        return
    from proxyexec._tune_writing import merged, write  # noqa: PLC0415

    data: dict[str, Any] = {}
    if options.config is not None:
        from proxyexec._config_load import read  # noqa: PLC0415

        data = read(options.config)
    best = result.fastest
    if best.is_present:
        say_not = "nothing is faster than what there is: nothing was written"
        print(f"proxyexec: {say_not}", file=sys.stderr)  # noqa: T201
        return
    # Passwords stay out of files.
    store = None if best.store == result.present.store else best.store
    write(options.write, merged(data, best, store), like=options.config)
    if urls.get(best.store, best.store) != best.store and store is not None:
        note = f"{options.write} has no password of {best.store}: add a reference to one"
        print(f"proxyexec: {note}", file=sys.stderr)  # noqa: T201


def _report(options: argparse.Namespace, result: TuneResult) -> None:
    if options.report is None:
        return
    from proxyexec._report import write_report  # noqa: PLC0415
    from proxyexec.errors import TuneError  # noqa: PLC0415

    try:
        write_report(result, options.report)
    except OSError as error:
        raise TuneError(options.report, error.strerror or str(error)) from error


def _print(options: argparse.Namespace, result: TuneResult) -> None:
    from proxyexec._tune_table import text_of  # noqa: PLC0415
    from proxyexec._tune_writing import as_python  # noqa: PLC0415

    if options.json:
        print_json(result.to_json(timelines=False))
    elif options.print_python:
        best = result.fastest
        say(as_python(best, with_store=best.store != result.present.store))
    else:
        for line in text_of(result, top=options.top):
            say(line)


@contextlib.contextmanager
def _status_line() -> Iterator[Callable[[str], object]]:
    """Say what goes on in a line that is written over, where somebody is looking."""
    stream = sys.stderr
    if not stream.isatty():
        yield lambda _: None
        return
    try:
        yield lambda text: print(
            f"\r\x1b[K{shown(text)[: _columns(stream) - 1]}", end="", file=stream, flush=True
        )
    finally:
        print("\r\x1b[K", end="", file=stream, flush=True)


def _columns(stream: TextIO) -> int:
    """Return how wide a terminal is."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS
