"""What works on a proxy and what needs ``extract``, as a table, each cell of which is a test.

The documentation shows the table. After a change, write it there with::

    python -m tests.test_proxy_table --write
"""

from __future__ import annotations

import copy
import decimal
import functools
import hashlib
import io
import json
import math
import operator
import os
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxyexec import Store, extract
from proxyexec_connectors.memory import MemoryConnector

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

PAGE = Path(__file__).resolve().parent.parent / "docs" / "proxies.md"
START, END = "<!-- table: start -->", "<!-- table: end -->"

TARGETS: dict[str, Callable[[], Any]] = {
    "int": lambda: 3,
    "str": lambda: "abc",
    "bytes": lambda: b"abcdefgh",
    "dict": lambda: {"a": 1, "b": 2},
    "ndarray": lambda: np.arange(6.0).reshape(2, 3),
    "DataFrame": lambda: pd.DataFrame({"a": [1, 2, 3], "b": [4.0, 5.0, 6.0]}),
}

WORKS, EXTRACT, SINCE_312, BEFORE_312, BEFORE_PANDAS_3, NOTHING = "WESBP-"

SHOWN = {
    WORKS: "works",
    EXTRACT: "needs `extract`",
    SINCE_312: "3.12+",
    BEFORE_312: "before 3.12",
    BEFORE_PANDAS_3: "before pandas 3",
    NOTHING: "",
}


class Row(NamedTuple):
    label: str
    """The operation, as Markdown."""
    verdicts: str
    """One letter for each target."""
    operations: dict[str, Callable[[Any], Any]]
    """What is done to each target."""


def row(
    label: str, verdicts: str, each: Callable[[Any], Any] | None = None, **one: Callable[[Any], Any]
) -> Row:
    """A row: one operation for all targets, or one for each."""
    assert len(verdicts) == len(TARGETS)
    given = [name for name, verdict in zip(TARGETS, verdicts) if verdict != NOTHING]
    operations = {name: one.get(name, each) for name in given}
    assert all(operations.values()) and set(one) <= set(given), label
    return Row(label, verdicts, operations)


def attempt(*operations: Callable[[], Any]) -> list[Any]:
    """Results, or types of exceptions where these are the results."""
    results = []
    for operation in operations:
        try:
            results.append(operation())
        except TypeError as error:
            results.append(type(error))
    return results


def match_class(p: Any) -> Any:
    match p:
        case int():
            return "int"
        case str():
            return "str"
        case bytes():
            return "bytes"
        case dict():
            return "dict"
        case np.ndarray(ndim=2):
            return "ndarray"
        case pd.DataFrame(columns=_):
            return "DataFrame"


def match_value(p: Any) -> Any:
    match p:
        case 3 | "abc" | b"abcdefgh":
            return True


def match_pattern(p: Any) -> Any:
    match p:
        case {"a": first, **rest}:
            return first, rest
        case [*rest]:
            return rest
        case _:
            return "neither"


def augmented(value: Any, operation: Any, p: Any) -> Any:
    """What ``value += p`` makes, and whether others who have ``value`` see it."""
    alias = value
    value = operation(value, p)
    return extract(value), value is alias


def changed(p: Any, change: Callable[[Any], Any]) -> Any:
    change(p)
    return p


def written(p: Any) -> Any:
    a = np.arange(6.0).reshape(2, 3)
    np.multiply(a, 2, out=p)
    return p


def read(p: Any) -> Any:
    """``open(p)``, where ``p`` names no file."""
    try:
        open(p)
    except FileNotFoundError as error:
        return error.filename


def frame() -> Any:
    return pd.DataFrame({"abc": [1, 2, 3], "b": [4.0, 5.0, 6.0]}, index=[1, 2, 3])


def updated(p: Any) -> dict[Any, Any]:
    d = {"z": 0}
    d.update(p)
    return d


def extended(p: Any) -> list[Any]:
    items = [0]
    items.extend(p)
    return items


COLLECTION_CLASSES = (Iterable, Iterator, Callable, Mapping, Sequence)

ROWS = [
    row("`p + x`, `x + p`, `p * 2`, `p \\| x`, …", "WWWWWW", lambda p: [p + p, p + extract(p), extract(p) + p, p * 2, 2 * p], str=lambda p: [p + p, p + "x", "x" + p, p * 2, 2 * p, p % ()], dict=lambda p: [p | {"z": 1}, {"z": 1} | p]),
    row("`p += x`", "WWWWWW", lambda p: operator.iadd(p, extract(p)), dict=lambda p: operator.ior(p, {"z": 1})),
    row("`x += p`", "WWWWWW", int=lambda p: augmented(1, operator.iadd, p), str=lambda p: augmented("x", operator.iadd, p), bytes=lambda p: augmented(b"x", operator.iadd, p), dict=lambda p: augmented({}, operator.ior, p), ndarray=lambda p: augmented(np.ones((2, 3)), operator.iadd, p), DataFrame=lambda p: augmented(p + 1, operator.iadd, p)),
    row("`x += p` with a list `x`", "-EEEWW", lambda p: augmented([], operator.iadd, p), ndarray=lambda p: augmented([1, 2, 3], operator.iadd, p), DataFrame=lambda p: augmented([1, 2], operator.iadd, p)),
    row("`p == x`, `x == p`, `p == p`", "WWWWWW", lambda p: [p == extract(p), extract(p) == p, p == p, p != extract(p)]),
    row("`p < x`, `x < p`", "WWW-WW", lambda p: [p < extract(p), extract(p) <= p]),
    row("`bool(p)`, `not p`", "WWWW--", lambda p: [bool(p), not p]),
    row("`hash(p)`, `{x: …}[p]`, `p in {x}`", "WWWWWW", lambda p: [hash(p), {extract(p): 1}[p], p in {extract(p)}], dict=lambda p: attempt(lambda: hash(p)), ndarray=lambda p: attempt(lambda: hash(p)), DataFrame=lambda p: attempt(lambda: hash(p))),
    row("`len(p)`, `for x in p`, `[*p]`, `reversed(p)`", "WWWWWW", lambda p: [len(p), [x for x in p], [*p], list(reversed(p))], int=lambda p: attempt(lambda: len(p), lambda: iter(p)), DataFrame=lambda p: [len(p), [x for x in p], [*p]]),
    row("`p[i]`, `p[i:j]`", "-WWWWW", lambda p: [p[0], p[1:2]], dict=lambda p: p["a"], DataFrame=lambda p: [p["a"], p[1:2]]),
    row("`p[i] = x`, `del p[i]`", "---WWW", dict=lambda p: changed(p, lambda p: (p.__setitem__("c", 1), p.__delitem__("a"))), ndarray=lambda p: changed(p, lambda p: p.__setitem__((0, slice(None)), 9)), DataFrame=lambda p: changed(p, lambda p: (p.__setitem__("c", 1), p.__delitem__("a")))),
    row("`x in p`", "-WWWWW", lambda p: ["a" in p, "q" in p], bytes=lambda p: [b"a" in p, 98 in p], ndarray=lambda p: [1.0 in p, 9.0 in p]),
    row("`p in \"abc\"`, `\"abc\".startswith(p)`, `.split(p)`", "-ES---", str=lambda p: [p in "xabc", "abc".startswith(p), "xabcx".split(p)], bytes=lambda p: b"abcdefghi".startswith(p)),
    row("methods and attributes", "WWWWWW", int=lambda p: [p.bit_length(), p.real], str=lambda p: [p.upper(), p.split("b"), p.join("xy")], bytes=lambda p: [p.hex(), p.split(b"b")], dict=lambda p: [list(p.items()), p.get("a"), p.copy()], ndarray=lambda p: [p.sum(), p.T, p.shape, p.dtype], DataFrame=lambda p: [p.a, p.shape, p.describe(), list(p.groupby("a"))]),
    row("the type's method: `str.upper(p)`, `dict.get(p, k)`, …", "EEEEEW", int=lambda p: int.bit_length(p), str=lambda p: str.upper(p), bytes=lambda p: bytes.hex(p), dict=lambda p: dict.get(p, "a"), ndarray=lambda p: np.ndarray.sum(p), DataFrame=lambda p: pd.DataFrame.sum(p)),
    row("`str(p)`, `f\"{p}\"`, `\"%s\" % p`, `print(p)`", "WWWWWW", lambda p: [str(p), f"{p}", "%s" % p, print(p, file=io.StringIO())], dict=lambda p: [str(p), f"{p}", "%(a)s" % p]),
    row("`repr(p)`, `f\"{p!r}\"`, once resolved", "WWWWWW", lambda p: [p == p, repr(p), f"{p!r}"]),
    row("`f\"{p:>9}\"`, `format(p, spec)`", "WW----", lambda p: [f"{p:>9}", format(p, "<9")]),
    row("`int(p)`, `float(p)`, `complex(p)`, `round(p)`", "WWWWW-", int=lambda p: [int(p), float(p), complex(p), round(p), abs(p), -p, ~p], str=lambda p: [int(p[:0] + "7"), float(p[:0] + "7"), *attempt(lambda: abs(p))], bytes=lambda p: [int.from_bytes(p, "big"), *attempt(lambda: abs(p))], dict=lambda p: attempt(lambda: int(p), lambda: float(p), lambda: -p), ndarray=lambda p: [int(p[:1, 1:2].sum()), p.round(), abs(p), -p]),
    row("`range(p)`, `x[p]`, `bin(p)`, `math.sqrt(p)`", "W-----", lambda p: [range(p), [0, 1, 2, 3][p], bin(p), chr(p), math.sqrt(p), math.floor(p), divmod(7, p), pow(2, p), 1 << p]),
    row("`Decimal(p)`, `pow(a, b, p)`", "E-----", lambda p: [decimal.Decimal(p), pow(2, 5, p)]),
    row("`\"\".join([p])`", "-ES---", str=lambda p: "".join([p]), bytes=lambda p: b"".join([p])),
    row("`bytes(p)`, `bytearray(p)`", "W-W-S-", lambda p: [bytes(p), bytearray(p)]),
    row("`str(p, encoding)`, `bytes(p, encoding)`", "-ES---", str=lambda p: bytes(p, "utf-8"), bytes=lambda p: str(p, "utf-8")),
    row("buffers: `memoryview(p)`, `struct.unpack(f, p)`, `hashlib.md5(p)`, `file.write(p)`", "--S-S-", lambda p: [bytes(memoryview(p)), struct.unpack(f"{memoryview(p).nbytes}s", p), hashlib.sha256(p).hexdigest(), io.BytesIO().write(p)]),
    row("writing text: `file.write(p)`", "-E----", lambda p: io.StringIO().write(p)),
    row("`re.match(…, p)`", "-ES---", str=lambda p: re.match("a", p).span(), bytes=lambda p: re.match(b"a", p).span()),
    row("`re.match(p, …)`, `re.compile(p)`", "-ES---", str=lambda p: re.match(p, "abc").span(), bytes=lambda p: re.match(p, b"abcdefgh").span()),
    row("`open(p)`, `os.path.join(d, p)`, `Path(p)`", "-WW---", lambda p: [os.fsencode(read(p)), os.path.join(b"/", p), os.fspath(p)], str=lambda p: [read(p), os.path.join("/", p), Path(p), Path("/") / p]),
    row("`os.stat(p)`, `os.path.exists(p)`", "-EE---", os.path.exists),
    row("`getattr(x, p)`, `setattr(x, p, …)`", "-E----", lambda p: getattr(type("X", (), {"abc": 1}), p)),
    row("`list(p)`, `tuple(p)`, `set(p)`, `sorted(p)`, `x.extend(p)`", "-WWWWW", lambda p: [list(p), tuple(p), set(p), sorted(p), extended(p)], ndarray=lambda p: [list(p[0]), sorted(p[0]), extended(p)]),
    row("`sum(p)`, `max(p)`, `zip(p)`, `map(f, p)`", "-WWWWW", lambda p: [max(p), list(zip(p, p)), list(map(str, p))], bytes=lambda p: [sum(p), max(p), list(zip(p, p))], ndarray=lambda p: [sum(p), max(p[0]), list(map(str, p))]),
    row("`x.update(p)`, `{**p}`, `f(**p)`", "---W-W", lambda p: [updated(p), {**p}, dict(**p)], DataFrame=lambda p: updated(p)),
    row("`dict(p)`, `p \\| x`, `p.items()`", "---W--", lambda p: [dict(p), p | {"z": 1}, [*p.items()]]),
    row("`match p: case T():`", "WWWWWW", match_class),
    row("`match p: case \"abc\":`", "WWW---", match_value),
    row("`match p: case {…}:`, `case […]:`", "WWWW--", match_pattern),
    row("`isinstance(p, T)`, `isinstance(p, Mapping)`, `callable(p)`", "WWWWWW", lambda p: [isinstance(p, (int, str, bytes, dict, np.ndarray, pd.DataFrame)), [isinstance(p, abc) for abc in COLLECTION_CLASSES], callable(p), p.__class__]),
    row("`type(p) is T`, `type(p)(…)`, `singledispatch`", "EEEEEE", lambda p: [type(p) in (int, str, bytes, dict, np.ndarray, pd.DataFrame), functools.singledispatch(lambda x: type(x))(p)]),
    row("`p is x`", "EEEEEE", lambda p: p is extract(p)),
    row("`copy.copy(p)`, `pickle.dumps(p)`", "WWWWWW", lambda p: [copy.copy(p), copy.deepcopy(p), pickle.loads(pickle.dumps(p))]),
    row("`json.dumps(p)`", "EE-E--", json.dumps),
    row("`json.dumps(p, default=extract)`", "WW-W--", lambda p: json.dumps([p], default=extract)),
    row("`np.asarray(p)`, `np.array(p)`", "WWB-WW", lambda p: [np.asarray(p), np.array(p)]),
    row("`np.array([p, p])`", "WWE-WW", lambda p: np.array([p, p])),
    row("`np.frombuffer(p)`", "--S-S-", np.frombuffer),
    row("`np.add(p, x)`, `a + p`, `a * p`", "W---WW", lambda p: [np.add(p, 1), np.add(1.0, p), np.ones((2, 3)) + p, p * np.ones((2, 3)), np.add.reduce([p, p])], DataFrame=lambda p: [np.add(p, 1), np.log(p), np.add(extract(p), p)]),
    row("`np.add(a, b, out=p)`", "----W-", written),
    row("`np.concatenate([p])`, `np.where(m, p, 0)`, `np.dot(p, p)`, …", "W---WW", lambda p: [np.concatenate([p, p]), np.where(p > 1, p, 0), np.dot(p, p.T), np.linalg.norm(p), np.sort(p), np.mean(p)], int=lambda p: [np.where([True], p, 0), np.full(2, p), np.mean(p)]),
    row("`a[p]`, `a[:, p]`", "W-----", lambda p: [np.arange(9)[p], np.ones((2, 9))[:, p]]),
    row("`a[p > 1]`, `p[m]`", "----W-", lambda p: [p[p > 1], np.ones((2, 3))[p > 1], p[:, [0, 1]]]),
    row("`pd.DataFrame(p)`", "---WWW", lambda p: pd.DataFrame(p), dict=lambda p: pd.DataFrame(p, index=[0])),
    row("`pd.concat([p, p])`, `df.merge(p)`, `df.join(p)`", "-----W", lambda p: [pd.concat([p, p]), p.merge(p, on="a"), extract(p).merge(p, on="a"), extract(p)[["a"]].join(p[["b"]])]),
    row("`df[p]`, `df.loc[p]`: a label", "EP----", int=lambda p: frame().loc[p], str=lambda p: [frame()[p], frame().loc[1, p]]),
    row("`df.iloc[:p]`, `df.head(p)`", "E-----", lambda p: [frame().iloc[:p], frame().head(p)]),
    row("`df[p]`, `df.loc[p]`: a mask or a list of labels", "----W-", lambda p: [frame()[p[0] > 0], frame().loc[p[0] > 0], frame()["b"][p[0] > 0]]),
    row("`df.assign(c=p)`, `df[\"c\"] = p`: types of columns", "E---WW", int=lambda p: frame().assign(c=p), ndarray=lambda p: frame().assign(c=p[0]), DataFrame=lambda p: frame().assign(c=p["b"])),
    row("`pd.Series([p])`: type of the values", "EP----", lambda p: pd.Series([p])),
    row("`df.rename(columns=p)`", "---E--", lambda p: frame().rename(columns=p)),
    row("`df.compare(p)`, `assert_frame_equal(df, p)`", "-----E", lambda p: [extract(p).compare(p), pd.testing.assert_frame_equal(extract(p), p)]),
]  # fmt: skip


def works_here(verdict: str) -> bool:
    return {
        WORKS: True,
        EXTRACT: False,
        SINCE_312: sys.version_info >= (3, 12),
        BEFORE_312: sys.version_info < (3, 12),
        BEFORE_PANDAS_3: int(pd.__version__.partition(".")[0]) < 3,
    }[verdict]


def check(expected: Any, found: Any) -> None:
    """Fail unless the two are equal and of the same type, inside of containers too."""
    expected, found = extract(expected), extract(found)
    assert type(found) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(expected, found):
            check(one, other)
    elif isinstance(expected, dict):
        check(list(expected.items()), list(found.items()))
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(found, expected)
    else:
        assert found == expected


CELLS = [
    pytest.param(verdict, name, one.operations[name], id=f"{one.label} - {name}")
    for one in ROWS
    for name, verdict in zip(TARGETS, one.verdicts)
    if verdict != NOTHING
]


@pytest.mark.parametrize(("verdict", "name", "operation"), CELLS)
def test_cell(verdict: str, name: str, operation: Callable[[Any], Any]) -> None:
    make = TARGETS[name]
    expected = operation(make())
    with Store("table", MemoryConnector()) as store:
        check(expected, operation(extract(store.proxy(make()))))
        if works_here(verdict):
            check(expected, operation(store.proxy(make())))
        else:
            with pytest.raises(Exception):  # noqa: B017 - it fails, or check finds a difference
                check(expected, operation(store.proxy(make())))


def table() -> str:
    lines = [
        "| operation | " + " | ".join(TARGETS) + " |",
        "|---|" + "---|" * len(TARGETS),
        *(
            f"| {one.label} | " + " | ".join(SHOWN[verdict] for verdict in one.verdicts) + " |"
            for one in ROWS
        ),
    ]
    return "\n".join(lines)


def parts_of_page() -> tuple[str, str, str]:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    shown, _, after = rest.partition(END)
    return before, shown, after


def test_documentation_shows_the_table() -> None:
    assert parts_of_page()[1].strip() == table(), "run: python -m tests.test_proxy_table --write"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    before, _, after = parts_of_page()
    PAGE.write_text(f"{before}{START}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
