"""Values of every kind, by name: what programs may send to a pool and get back.

Each is a function that makes the value anew, so that a test can tell what was done to one from
what it was. Nothing here knows of stores or executors.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import importlib.util
import io
import math
import operator
import pathlib
import re
import string
import sys
import tempfile
import types
import uuid
from collections.abc import Callable
from typing import Any

Make = Callable[[], Any]

# How many items make a value that the drop-in pool keeps in its store, and one that it does not.
LARGE = 27_000
SMALL = 4


class Colour(enum.Enum):
    RED = "r"
    BLUE = ("b", [1])


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


Point = collections.namedtuple("Point", "x y")


class Named(Point):
    """A named tuple with a dictionary."""


@dataclasses.dataclass
class Open:
    name: str
    items: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    name: str
    items: tuple[Any, ...] = ()


@dataclasses.dataclass(slots=True)
class Slotted:
    name: str
    items: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    name: str
    items: tuple[Any, ...] = ()


class HalfSlotted:
    """Slots, one of them empty, and a dictionary."""

    __slots__ = ("__dict__", "empty", "full")

    def __init__(self) -> None:
        self.full = [1]
        self.more = [2]


class Node:
    """One of a tree that knows its parent."""

    def __init__(self, name: str, parent: Node | None = None) -> None:
        self.name = name
        self.parent = parent
        self.children: list[Node] = []
        if parent is not None:
            parent.children.append(self)

    def path(self) -> str:
        return self.name if self.parent is None else f"{self.parent.path()}/{self.name}"


class Text(str):
    """A string with attributes."""


class Number(int):
    """An integer with attributes."""


class Items(list):
    """A list with attributes."""


class Table(dict):
    """A dictionary with attributes, and an answer for what is missing."""

    def __missing__(self, key: Any) -> Any:
        return key


class Group(set):
    """A set with attributes."""


class Blob(bytes):
    """Bytes with attributes."""


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    def __eq__(self, other: object) -> Any:
        return NotImplemented  # equal to nothing else, and not hashable


class Stateful:
    """Keeps a part of itself to itself, and makes it again on arrival."""

    def __init__(self) -> None:
        self.kept = [1, 2]
        self.cache = {"made": "here"}

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, cache={"made": "there"})


class Singleton:
    """One in each process."""

    def __reduce__(self) -> str:
        return "SINGLETON"


SINGLETON = Singleton()


class WithArguments:
    """Made by calling its class, with keyword arguments too."""

    def __new__(cls, *, size: int) -> WithArguments:
        self = super().__new__(cls)
        self.size = size
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": self.size}


class Nosy:
    """Asked for any attribute, answers; asked for a special one, refuses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class PlainError(Exception):
    pass


class StateError(Exception):
    """Has more to say than its arguments."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.detail = ["d"]


class KeywordError(ValueError):
    """Is made of what its arguments do not say, and knows how to travel."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _keyword_error, (self.code,)


def _keyword_error(code: int) -> KeywordError:
    return KeywordError(code=code)


def with_attributes(value: Any, **attributes: Any) -> Any:
    vars(value).update(attributes)
    return value


def recursive_list() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


def recursive_dict() -> dict[str, Any]:
    table: dict[str, Any] = {"a": [1]}
    table["self"] = [table, (table,)]
    return table


def recursive_tuple() -> tuple[Any, ...]:
    inner: list[Any] = []
    whole = (inner, "x")
    inner.append(whole)
    return whole


def recursive_object() -> Open:
    value = Open("loop")
    value.items.append(value)
    return value


def tree() -> Node:
    root = Node("root")
    for name in "ab":
        Node(name + "1", Node(name, root))
    return root


def forest() -> Node:
    """A tree with many leaves, and much in each."""
    root = Node("root")
    for number in range(LARGE // 80):
        Node(f"{number:0800}", root)
    return root


def indexed() -> dict[str, Any]:
    """Many objects in a list, some of them also by name."""
    items = [Open(f"{number:0800}") for number in range(LARGE // 80)]
    return {"items": items, "by name": {item.name: item for item in items[:3]}}


def shelf() -> dict[str, Any]:
    """An object with much in it, a piece of which is also held by something else."""
    items = [Open(f"{number:0800}") for number in range(LARGE // 80)]
    return {"all": Open("all", items), "first": items[0], "again": Open("again", items)}


def nodes() -> Node:
    """Objects with much in each, of which all know all."""
    root = Node("root")
    root.notes = [f"{number:0800}" for number in range(LARGE // 80)]
    child = Node("child", root)
    child.notes = [*root.notes]
    return root


def ring() -> list[Any]:
    """Many objects, each of which knows the next."""
    items = [Open(f"{number:0100}") for number in range(12)]
    for one, other in zip(items, items[1:] + items[:1], strict=True):
        one.items = [other, bytes(30_000)]
    return items


def shared() -> dict[str, Any]:
    items, text = [1, 2], "text" * 10
    return {"one": items, "two": [items, {"three": items}], "texts": (text, text)}


def chained() -> Exception:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise StateError("second", 5) from error
    except StateError as error:
        return error


def noted() -> Exception:
    error = PlainError("noted")
    error.__notes__ = ["a note"]
    return error


def error_of_the_system() -> OSError:
    try:
        open("/nonexistent/file")
    except OSError as error:
        return error
    raise AssertionError


def _zone() -> datetime.tzinfo:
    return datetime.timezone(datetime.timedelta(hours=5, minutes=30), "here")


def plain() -> dict[str, Make]:
    """Values that need nothing but the standard library."""
    utc = datetime.timezone.utc
    return {
        "none": lambda: None,
        "true": lambda: True,
        "ellipsis": lambda: ...,
        "not-implemented": lambda: NotImplemented,
        "int": lambda: 5,
        "int-big": lambda: -(7**5000),
        "int-huge": lambda: 1 << 2_000_000,
        "nan": lambda: math.nan,
        "inf": lambda: -math.inf,
        "negative-zero": lambda: -0.0,
        "complex": lambda: complex(math.nan, -0.0),
        "str": lambda: "täxt\0\U0001f600",
        "str-surrogates": lambda: "a\udc80\ud800b",
        "str-large": lambda: string.ascii_letters * (LARGE // 5),
        "str-surrogates-large": lambda: "x" * 300_000 + "\udc80",
        "bytes": lambda: b"bytes\0",
        "bytes-large": lambda: bytes(range(256)) * 1000,
        "bytearray": lambda: bytearray(b"bytes\0"),
        "bytearray-empty": bytearray,
        "bytearray-large": lambda: bytearray(range(256)) * 1000,
        "list": lambda: [1, "two", [3.0, None], {"four": b"4"}],
        "list-large": lambda: [[number, "x" * 1000] for number in range(LARGE // 90)],
        "list-of-large-bytes": lambda: [bytes(100_000), bytearray(100_000), bytes(100_000)],
        "tuple": lambda: (1, [2], ()),
        "dict": lambda: {"b": 1, "a": [2], 3: {None: ()}},
        "dict-large": lambda: {f"{number:01000}": [number] for number in range(LARGE // 90)},
        "set": lambda: {1, "two", (3,)},
        "frozenset": lambda: frozenset([1, frozenset([2])]),
        "deque": lambda: collections.deque([1, [2]], maxlen=5),
        "ordered-dict": lambda: collections.OrderedDict([("b", 1), ("a", [2])]),
        "defaultdict": lambda: collections.defaultdict(list, a=[1]),
        "counter": lambda: collections.Counter("abracadabra"),
        "chain-map": lambda: collections.ChainMap({"a": [1]}, {"b": 2}),
        "user-dict": lambda: collections.UserDict(a=[1]),
        "namespace": lambda: types.SimpleNamespace(a=[1], b=types.SimpleNamespace()),
        "mapping-proxy-of-class": lambda: Colour.__members__["RED"],
        "enum": lambda: Colour.BLUE,
        "enum-int": lambda: Level.LOW,
        "enum-flag": lambda: Right.READ | Right.WRITE,
        "namedtuple": lambda: Point(1, [2]),
        "namedtuple-with-dict": lambda: with_attributes(Named(1, [2]), unit=["m"]),
        "dataclass": lambda: Open("open", [1]),
        "dataclass-large": lambda: Open("open", [bytes(300_000)]),
        "dataclass-frozen": lambda: Frozen("frozen", (1, [2])),
        "dataclass-slots": lambda: Slotted("slotted", [1]),
        "dataclass-frozen-slots": lambda: FrozenSlotted("both", (1, [2])),
        "half-slotted": HalfSlotted,
        "str-subclass": lambda: with_attributes(Text("text"), unit=["m"]),
        "int-subclass": lambda: with_attributes(Number(5), unit=["m"]),
        "list-subclass": lambda: with_attributes(Items([1, [2]]), unit=["m"]),
        "dict-subclass": lambda: with_attributes(Table(a=[1]), unit=["m"]),
        "set-subclass": lambda: with_attributes(Group([1, 2]), unit=["m"]),
        "bytes-subclass-large": lambda: with_attributes(Blob(300_000), unit=["m"]),
        "with-meta": lambda: with_attributes(WithMeta(), a=[1]),
        "with-state": Stateful,
        "with-arguments": lambda: WithArguments(size=5),
        "singleton": lambda: SINGLETON,
        "nosy": Nosy,
        "object": object,
        "exception": lambda: PlainError("plain", [1]),
        "exception-with-state": lambda: StateError("state", 5),
        "exception-with-keywords": lambda: KeywordError(code=5),
        "exception-chained": chained,
        "exception-noted": noted,
        "exception-of-system": error_of_the_system,
        "exception-unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
        "exception-stop": lambda: StopIteration(5),
        "exception-large": lambda: PlainError(bytes(300_000)),
        "recursive-list": recursive_list,
        "recursive-dict": recursive_dict,
        "recursive-tuple": recursive_tuple,
        "recursive-object": recursive_object,
        "tree": tree,
        "tree-from-a-leaf": lambda: tree().children[1].children[0],
        "tree-large": forest,
        "indexed-large": indexed,
        "ring-large": ring,
        "shelf-large": shelf,
        "nodes-large": nodes,
        "shared": shared,
        "same-twice": lambda: [[1]] * 2,
        "range": lambda: range(5, 1 << 70, 3),
        "slice": lambda: slice(1, None, [2]),
        "fraction": lambda: fractions.Fraction(22, 7),
        "decimal": lambda: decimal.Decimal("-0.10"),
        "decimal-nan": lambda: decimal.Decimal("sNaN5"),
        "datetime": lambda: datetime.datetime(2024, 10, 27, 2, 30, tzinfo=utc),
        "datetime-fold": lambda: datetime.datetime(2024, 10, 27, 2, 30, fold=1),
        "zone": lambda: datetime.datetime(2024, 10, 27, tzinfo=_zone()),
        "date": lambda: datetime.date(2024, 2, 29),
        "time": lambda: datetime.time(1, 2, 3, 4),
        "timedelta": lambda: datetime.timedelta(-1, 5, 7),
        "path": lambda: pathlib.Path("a/b"),
        "pure-windows-path": lambda: pathlib.PureWindowsPath("C:/a"),
        "uuid": lambda: uuid.UUID(int=5),
        "regex": lambda: re.compile("a+(b)", re.IGNORECASE),
        "partial": lambda: functools.partial(pow, 2, mod=5),
        "partial-with-dict": lambda: with_attributes(functools.partial(sorted, [2, 1]), a=[1]),
        "bound-method": lambda: Open("bound", [1]).__eq__,
        "bound-method-of-list": lambda: [1, 2].append,
        "method-of-tree": lambda: tree().children[0].path,
        "class": lambda: Open,
        "class-with-meta": lambda: WithMeta,
        "builtin-class": lambda: dict,
        "generic-alias": lambda: dict[str, list[int]],
        "union": lambda: int | None,
        "function": lambda: recursive_list,
        "function-in-c": lambda: math.sqrt,
        "method-of-class": lambda: str.upper,
        "unbound-method": lambda: Node.path,
        "itemgetter": lambda: operator.itemgetter(1, "a"),
        "methodcaller": lambda: operator.methodcaller("split", ",", maxsplit=1),
        "iterator": lambda: iter([1, [2]]),
        "count": lambda: iter(range(5)),
        "string-io": lambda: io.StringIO("text"),
        "bytes-io": lambda: io.BytesIO(bytes(300_000)),
        "code-of-error": lambda: SystemExit(3),
        "implementation": lambda: sys.version_info[:2],
    }


def arrays(np: Any) -> dict[str, Make]:
    """Arrays of every layout and kind, and scalars."""
    zoo: dict[str, Make] = {}
    for size, n in (("small", SMALL), ("large", LARGE)):
        zoo |= {f"array-{name}-{size}": make for name, make in _arrays(np, n).items()}
    return zoo | {
        "array-0d": lambda: np.array(5.0),
        "array-0d-object": lambda: np.array([1], dtype=object)[0:1].reshape(()),
        "array-empty": lambda: np.empty((0, 3)),
        "array-empty-fortran": lambda: np.empty((3, 0), order="F"),
        "array-no-bytes": lambda: np.empty(5, dtype="V0"),
        "array-of-arrays": lambda: _objects(np, [np.arange(3), [1], None, np.arange(2.0)[::-1]]),
        "array-object-recursive": lambda: _recursive(np),
        "array-dtype-with-metadata": lambda: np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
        "arrays-that-share": lambda: (lambda a: [a, a, a[1:], {"a": a}])(np.arange(5.0)),
        "arrays-that-share-large": lambda: (lambda a: [a, a, {"a": a}])(np.arange(27_000.0)),
        "array-in-dataclass-large": lambda: Open("array", [np.arange(27_000.0)]),
        "array-one-by-one": lambda: np.ones((1, 1)),
        "scalar-float16": lambda: np.float16(1.1),
        "scalar-longdouble": lambda: np.longdouble("0.1"),
        "scalar-complex": lambda: np.complex64(1 - 0j),
        "scalar-bool": lambda: np.bool_(True),
        "scalar-str": lambda: np.str_("täxt"),
        "scalar-bytes": lambda: np.bytes_(b"x\0y"),
        "scalar-datetime": lambda: np.datetime64("2024-02-29", "D"),
        "scalar-nat": lambda: np.timedelta64("NaT"),
        "scalar-record": lambda: np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
        "scalar-void": lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
        "dtype": lambda: np.dtype([("a", ">i4", (2, 2)), ("b", "O")], align=True),
        "masked-constant": lambda: np.ma.masked,
        "ufunc": lambda: np.add,
        "generator": lambda: np.random.default_rng(5),
        "poly": lambda: np.polynomial.Polynomial([1, 2, 3]),
        "matrix": lambda: np.matrix([[1, 2], [3, 4]]),
    }


def _arrays(np: Any, n: int) -> dict[str, Make]:
    """Arrays of ``n`` items, more or less."""

    def floats(*shape: int) -> Any:
        values = np.arange(float(max(n, math.prod(shape))))
        values[1] = np.nan
        return values[: math.prod(shape)].reshape(shape) if shape else values

    def read_only(array: Any) -> Any:
        array.flags.writeable = False
        return array

    structured = np.dtype([("a", "u1"), ("b", ">f8"), ("c", "S3"), ("d", "i2", (2,))], align=True)
    half = max(n // 2, 2)
    zoo: dict[str, Make] = {
        "c": lambda: floats(2, half),
        "fortran": lambda: np.asfortranarray(floats(2, half)),
        "transposed": lambda: floats(half, 2).T,
        "permuted": lambda: floats(half // 2, 2, 2).transpose(1, 2, 0),
        "strided": lambda: floats(2 * n)[::2],
        "columns": lambda: floats(half, 4)[:, 1:3],
        "reversed": lambda: floats()[::-1],
        "broadcast": lambda: np.broadcast_to(floats(half), (2, half)),
        "read-only": lambda: read_only(floats()),
        "read-only-fortran": lambda: read_only(np.asfortranarray(floats(2, half))),
        "read-only-strided": lambda: read_only(floats(2 * n)[::2]),
        "swapped": lambda: floats().astype(">f8"),
        "swapped-ints": lambda: np.arange(2 * n, dtype=">i4"),
        "float16": lambda: (floats(4, n) % 1000).astype("f2"),
        "longdouble": lambda: floats().astype(np.longdouble),
        "complex": lambda: floats() * (1 - 2j),
        "bool": lambda: np.arange(8 * n) % 3 == 0,
        "datetime": lambda: np.arange(n).astype("M8[us]"),
        "timedelta": lambda: np.arange(n).astype("m8[25m]"),
        "unicode": lambda: np.array(["täxt", "x", ""] * n),
        "bytes": lambda: np.array([b"text", b"x", b""] * n, dtype="S5"),
        "void": lambda: np.frombuffer(bytes(range(200)) * (n // 20 or 1), dtype="V10").copy(),
        "structured": lambda: np.zeros(n, structured),
        "structured-objects": lambda: np.array(
            [(1, "x" * n), (2, [n])], dtype=[("a", "i4"), ("o", "O")]
        ),
        "field-of-structured": lambda: np.zeros(3 * n, structured)["b"],
        "record": lambda: np.rec.array([(1, 2.0)] * n, dtype=[("a", "i4"), ("b", "f8")]),
        "object": lambda: _objects(np, [[1], "x" * 10 * n, None, {"a": (1,)}]),
        "object-fortran": lambda: np.asfortranarray(
            _objects(np, [[1], "x" * 10 * n, None, 5]).reshape(2, 2)
        ),
        "masked": lambda: np.ma.masked_invalid(floats(2, half)),
        "masked-no-mask": lambda: np.ma.array(floats(), fill_value=-1),
        "masked-hard": lambda: np.ma.array(floats(), mask=floats() > 2, hard_mask=True),
        "masked-structured": lambda: np.ma.array(
            np.zeros(n, structured), mask=[(True, False, True, (True, False))] * n
        ),
        "memmap": lambda: _memmap(np, n),
        "matrix": lambda: np.matrix(floats(2, half)),
        "chararray": lambda: np.char.array(["text"] * n),
    }
    if hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType"):  # from NumPy 2 on
        strings = np.dtypes.StringDType
        zoo |= {
            "string-dtype": lambda: np.array(["text", "x" * 10 * n], strings()),
            "string-missing": lambda: np.array(["x" * 10 * n, None], strings(na_object=None)),
        }
    return zoo


def _objects(np: Any, items: list[Any]) -> Any:
    array = np.empty(len(items), dtype=object)
    for number, item in enumerate(items):
        array[number] = item
    return array


def _recursive(np: Any) -> Any:
    array = _objects(np, [1, None])
    array[1] = [array]
    return array


def _memmap(np: Any, n: int) -> Any:
    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, dtype="f8", mode="w+", shape=(n,))
        array[:] = range(n)
        return array


def frames(np: Any, pd: Any) -> dict[str, Make]:
    """Data frames, series and indexes with columns of every kind."""
    zoo: dict[str, Make] = {}
    for size, n in (("small", SMALL), ("large", LARGE)):
        zoo |= {f"frame-{name}-{size}": make for name, make in _frames(np, pd, n).items()}
    zoo |= {
        f"series-{name}-large": functools.partial(lambda make: pd.Series(make()), make)
        for name, make in _columns(np, pd, LARGE).items()
    }
    zoo |= {
        f"index-{name}": functools.partial(lambda make: pd.Index(make()), make)
        for name, make in _columns(np, pd, SMALL).items()
    }
    return zoo | {
        "frame-empty": pd.DataFrame,
        "series-of-lists": lambda: pd.Series([[1], {"a": [2]}, None], name=("a", 1)),
        "index-range": lambda: pd.RangeIndex(5, 1000, 3, name="r"),
        "index-multi": lambda: pd.MultiIndex.from_product([[1, 2], ["a", "b"]], names=["n", None]),
        "index-multi-large": lambda: pd.MultiIndex.from_product([range(3000), list("abcdefghij")]),
        "timestamp": lambda: pd.Timestamp("2024-10-27 01:30", tz=_zone()),
        "interval": lambda: pd.Interval(1, 2, closed="both"),
        "missing": lambda: pd.NA,
        "not-a-time": lambda: pd.NaT,
        "offset": lambda: pd.offsets.BusinessDay(5),
        "categorical-dtype": lambda: pd.CategoricalDtype(["b", "a"], ordered=True),
    }


def _columns(np: Any, pd: Any, n: int) -> dict[str, Make]:
    """What a column may hold."""

    def nullable(values: Any) -> Any:
        array = pd.array(values)
        array[1] = None
        return array

    columns: dict[str, Make] = {
        "float": lambda: np.arange(float(n)),
        "int8": lambda: np.arange(8 * n).astype("i1"),
        "bool": lambda: np.arange(8 * n) % 2 == 0,
        "str": lambda: pd.array(["täxt", "x" * n, "y"] * 5, dtype="str"),
        "string-python": lambda: pd.array(["täxt", None, "x" * 10 * n], dtype="string[python]"),
        "object": lambda: np.array([None, "x" * 10 * n, 5], dtype=object),
        "categorical": lambda: pd.Categorical.from_codes(
            np.resize([0, 1, -1], 8 * n), ["b", "a", "c"], ordered=True
        ),
        "categories": lambda: pd.Categorical(np.arange(n // 3).astype(str)),
        "nullable-int": lambda: nullable(np.arange(n)),
        "nullable-bool": lambda: nullable(np.arange(4 * n) % 2 == 0),
        "nullable-float": lambda: nullable(np.arange(2 * n).astype("f4")),
        "datetime": lambda: pd.date_range("2024-01-01", periods=n, freq="h"),
        "datetime-zone": lambda: pd.date_range("2024-01-01", periods=n, freq="h", tz=_zone()),
        "timedelta": lambda: pd.to_timedelta(np.arange(n), unit="s"),
        "period": lambda: pd.period_range("2024-01", periods=n, freq="M"),
        "interval": lambda: pd.interval_range(0, n),
    }
    if importlib.util.find_spec("pyarrow"):
        columns |= {
            "arrow-int": lambda: pd.array(np.arange(n), dtype="int64[pyarrow]"),
            "arrow-str": lambda: pd.array(["täxt", None, "x" * 10 * n], dtype="string[pyarrow]"),
            "arrow-sliced": lambda: pd.array(np.arange(3 * n), dtype="int64[pyarrow]")[n:-1],
        }
    return columns


def _frames(np: Any, pd: Any, n: int) -> dict[str, Make]:
    def numbers() -> Any:
        return pd.DataFrame(np.arange(n * 4.0).reshape(n, 4), columns=list("abcd"))

    def mixed() -> Any:
        columns = _columns(np, pd, SMALL)
        return pd.DataFrame(
            {
                name: pd.Series(values.take(np.resize(np.arange(len(values)), n // 12 + 3)))
                for name, values in ((name, make()) for name, make in columns.items())
            }
        )

    def described() -> Any:
        frame = numbers()
        frame.attrs["source"] = ["here"]
        return frame.set_flags(allows_duplicate_labels=False)

    return {
        "floats": numbers,
        "mixed": mixed,
        "sliced": lambda: numbers().iloc[::2, 1:3],
        "transposed": lambda: pd.DataFrame(np.arange(n * 4.0).reshape(4, -1)).T,
        "many-blocks": lambda: numbers().assign(e=1, f=2.0, g="x", h=np.arange(n)),
        "multi-index": lambda: pd.DataFrame(
            {("a", 1): np.arange(n), ("a", 2): np.arange(n) / 2},
            index=pd.MultiIndex.from_arrays([np.arange(n), np.arange(n) % 3], names=["i", "j"]),
        ),
        "time-index": lambda: numbers().set_index(pd.date_range("2024", periods=n, freq="min")),
        "duplicate-columns": lambda: numbers().set_axis(list("aabb"), axis=1),
        "with-attrs": described,
        "read-only": lambda: pd.DataFrame(np.broadcast_to(np.arange(4.0), (n, 4))),
        "objects": lambda: pd.DataFrame({"a": [[1], None], "b": [b"x" * 10 * n, {"k": [1]}]}),
    }


def matrices(np: Any, sparse: Any) -> dict[str, Make]:
    """Sparse matrices of every format."""
    kinds = [(kind, SMALL) for kind in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")]
    kinds += [(kind, LARGE) for kind in ("csr", "coo", "dia")]
    return {
        f"sparse-{kind}-{name}-{'large' if n == LARGE else 'small'}": functools.partial(
            make, n, format=kind
        )
        for kind, n in kinds
        for name, make in (("matrix", sparse.eye), ("array", sparse.eye_array))
    }


def tensors(torch: Any) -> dict[str, Make]:
    return {
        "tensor": lambda: torch.arange(5.0),
        "tensor-large": lambda: torch.arange(60_000.0).reshape(2, -1),
        "tensor-transposed": lambda: torch.arange(60_000.0).reshape(2, -1).T,
        "tensor-bfloat": lambda: torch.arange(5, dtype=torch.bfloat16),
        "tensor-leaf": lambda: torch.ones(3, requires_grad=True),
    }


def _module(name: str) -> Any:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def everything() -> dict[str, Make]:
    """All that can be made with what is installed."""
    zoo = plain()
    np, pd = _module("numpy"), _module("pandas")
    if np:
        zoo |= arrays(np)
    if np and pd:
        zoo |= frames(np, pd)
    if np and importlib.util.find_spec("scipy"):
        zoo |= matrices(np, importlib.import_module("scipy.sparse"))
    if importlib.util.find_spec("torch"):
        zoo |= tensors(importlib.import_module("torch"))
    return zoo
