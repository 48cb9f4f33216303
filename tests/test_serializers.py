"""Strategies and payloads: there and back, and what is refused."""

from __future__ import annotations

import datetime
import functools
import json
import math
import operator
import pickle
import subprocess
import sys
import threading
from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyexec import PickleSerializer, Store
from proxyexec._serialize import PAYLOAD_MARK
from proxyexec.errors import (
    DeserializationError,
    ForeignPayloadError,
    MissingExtraError,
    NoStrategyError,
    ProxyExecError,
    SerializationError,
)
from proxyexec.serializers import Payload, Serializers, decode, encode, names, register
from tests import functions, written
from tests.written import Account, Savings, Touches

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

PICKLES = ["pickle", "cloudpickle", "dill"]
DATA = [
    None,
    -(10**40),
    "ä\0\U0001f600",
    b"\0" * 5000,
    bytearray(b"x" * 5000),
    {"a": [1, (2.5, True)], 3: {4}},
    datetime.timedelta(days=1),
    Account(5),
    [[]],
]


def there_and_back(obj, strategies, **options):
    """Through frames, and through JSON, which have to give the same."""
    payload = encode(obj, strategies, **options)
    by_frames = decode(Payload.from_frames([bytes(one) for one in payload.to_frames()]))
    by_json = decode(Payload.from_json(json.loads(json.dumps(payload.to_json()))))
    if not callable(obj):
        assert (by_frames, type(by_frames)) == (by_json, type(by_json))
    return by_frames


def code(function, strategies):
    return there_and_back(function, strategies, code=True)


@pytest.fixture(autouse=True)
def _dill(request):
    if "dill" in request.node.name:
        pytest.importorskip("dill")


@pytest.mark.parametrize("strategy", PICKLES)
@pytest.mark.parametrize("obj", DATA, ids=lambda obj: type(obj).__name__)
def test_pickles_do_any_data(strategy, obj):
    arrived = there_and_back(obj, strategy)
    assert arrived == obj
    assert type(arrived) is type(obj)


@pytest.mark.parametrize("strategy", PICKLES)
def test_large_buffers_are_not_copied_and_come_back_writable(strategy):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000.0)
    payload = encode({"a": array}, strategy)
    if strategy != "dill":  # which has a way of its own with arrays
        assert any(numpy.shares_memory(numpy.asarray(memoryview(f)), array) for f in payload.frames)
    arrived = decode(Payload.from_frames([bytes(one) for one in payload.to_frames()]))
    assert (arrived["a"] == array).all()
    arrived["a"][0] = 7


def test_a_header_says_who_wrote_what():
    frames = encode([1], "json").to_frames()
    assert frames == [f"Pxpayload json 1 {HERE}".encode(), b"[1]"]
    assert frames[0].startswith(PAYLOAD_MARK)


@pytest.mark.parametrize("strategy", ["json", "pickle", "reference", "source"])
def test_a_payload_in_json_says_all_of_it(strategy):
    is_code = strategy in ("reference", "source")
    payload = encode(written.plain if is_code else [1], strategy, code=is_code)
    value = payload.to_json()
    body = value.pop("body")
    assert value == {
        "strategy": strategy,
        "version": 1,
        "python": HERE,
        "encoding": {"json": "json", "pickle": "base64"}.get(strategy, "text"),
    }
    expected = {"json": [1], "reference": "tests.written:plain"}.get(strategy, body)
    assert body == expected
    assert type(body) is {"json": list, "pickle": list}.get(strategy, str)


# What JSON would change is not written.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def types_of(obj):
    if type(obj) is list:
        return [types_of(one) for one in obj]
    if type(obj) is dict:
        return [(type(key), key, types_of(one)) for key, one in obj.items()]
    return type(obj), math.copysign(1, obj) if type(obj) is float else None


@given(json_values)
def test_json_gives_back_exactly_what_it_takes(obj):
    arrived = there_and_back(obj, "json")
    assert arrived == obj
    assert types_of(arrived) == types_of(obj)


class Colour(IntEnum):
    RED = 1


class Text(str):
    pass


surrogates = st.text(st.characters(categories=["Cs"]), min_size=1)
not_json = (
    st.tuples(st.integers())
    | st.binary()
    | st.sampled_from([math.nan, math.inf, -math.inf, 1j, {1}, Colour.RED, Text("x"), object()])
    | st.dictionaries(st.integers() | st.none() | st.booleans(), st.none(), min_size=1)
    | surrogates
    | surrogates.map(lambda text: {text: 1})
)


@given(not_json, st.sampled_from([lambda x: x, lambda x: [1, {"a": x}]]))
def test_json_refuses_what_would_come_back_as_something_else(obj, inside):
    with pytest.raises(NoStrategyError, match="an object, of type .*: json: "):
        encode(inside(obj), "json")


def test_json_takes_integers_as_long_as_python_writes():
    most = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else 4300
    assert there_and_back(10 ** (most - 1), "json") == 10 ** (most - 1)
    if hasattr(sys, "get_int_max_str_digits"):
        with pytest.raises(NoStrategyError):
            encode(10**most, "json")


def test_json_refuses_what_contains_itself_or_is_too_deep():
    endless: list = []
    endless.append({"a": endless})
    with pytest.raises(NoStrategyError):
        encode(endless, "json")
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NoStrategyError, match="RecursionError"):
        encode(deep, "json")
    while deep:
        deep = deep.pop()


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"{", b"[1] 2", b"\xff"])
def test_json_reads_nothing_but_json(text):
    with pytest.raises(DeserializationError):
        decode(Payload("json", 1, HERE, [text]))


# Code.


@pytest.mark.parametrize(
    "function",
    [
        written.plain,
        written.decorated,
        Account,
        Account.empty,
        Savings.empty,
        Account.of,
        Account.deposit,
        operator.add,
        len,
        math.sqrt,
        datetime.date.fromtimestamp,
    ],
    ids=lambda function: function.__qualname__,
)
def test_what_has_a_name_travels_by_reference(function):
    payload = encode(function, "reference", code=True)
    assert len(payload.frames[0]) < 100
    assert code(function, "reference") == function
    assert encode(function, "combined", code=True).strategy == "reference"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (written.adds_one, "written:<lambda> cannot be imported"),
        (written.outer(1)[0], "captures cannot be imported: it is made by a call"),
        (Account().deposit, "is another object|no name"),
        (functools.partial(written.plain, 1), "no name"),
        (functools.wraps(written.plain)(lambda x: x), "another object"),
    ],
)
def test_what_has_no_name_does_not_travel_by_reference(function, why):
    with pytest.raises(NoStrategyError, match=why):
        encode(function, "reference", code=True)
    arrived = code(function, "combined")
    assert arrived(3) == function(3)


def test_a_reference_that_leads_nowhere_is_an_error():
    for text in (b"no.such.module:f", b"tests.written:nothing", b"os", b":f", b"os:", b""):
        with pytest.raises(DeserializationError, match="cannot be unpickled"):
            decode(Payload("reference", 1, HERE, [text]))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (written.plain, (2.5,)),
        (written.counting_down, (3,)),
        (written.annotated, ("ab",)),
        (written.outer(1)[1], (4,)),
        (functions.add, (1, 2)),
        (functions.append, ([1], 2)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_function_that_needs_nothing_else_travels_by_source(function, arguments):
    arrived = code(function, "source")
    assert arrived is not function
    assert arrived(*arguments) == function(*arguments)
    assert arrived.__name__ == function.__name__
    assert arrived.__defaults__ == function.__defaults__
    # Once more, from where it has arrived.
    assert code(arrived, "source")(*arguments) == function(*arguments)


def test_a_coroutine_function_travels_by_source():
    coroutine = code(written.waiting, "source")(1)
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_tracebacks_show_the_lines_of_a_source_that_has_arrived():
    import traceback

    arrived = code(written.plain, "source")
    try:
        arrived("text")
    except TypeError as error:
        text = "".join(traceback.format_exception(error))
    assert "return math.floor(x) * y, z" in text


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (written.adds_one, "a lambda has no source of its own"),
        (written.outer(1)[0], "closure over n"),
        (written.with_global, "needs FACTOR, math from its module"),
        (written.with_default, "the default of y is not a literal"),
        (written.with_attribute, "attributes would be lost: note"),
        (written.decorated, "functools._lru_cache_wrapper has no source"),
        (written.returned_by_its_decorator, "decorated"),
        (Account().deposit, "type method has no source"),
        (Account.mangles, "text is not what it was compiled from"),
        (math.sqrt, "has no source"),
    ],
)
def test_a_source_that_is_not_all_of_a_function_is_refused(function, why):
    with pytest.raises(NoStrategyError, match=why):
        encode(function, "source", code=True)


def test_a_source_that_was_edited_since_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "edited_since.py"
    path.write_text("def f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import edited_since

    assert code(edited_since.f, "source")(1) == 2
    path.write_text("def f(x):\n    return x - 1000\n")
    with pytest.raises(NoStrategyError, match="the file may have changed"):
        encode(edited_since.f, "source", code=True)
    path.write_text("def f(x, y=3):\n    return x + 1\n")
    with pytest.raises(NoStrategyError, match="defaults are not those in its text"):
        encode(edited_since.f, "source", code=True)


@pytest.mark.parametrize("text", [b"1 + 1", b"def f(): pass\ndef g(): pass", b"def", b"import os"])
def test_a_source_that_is_no_function_is_not_run(text):
    with pytest.raises(DeserializationError):
        decode(Payload("source", 1, HERE, [text]))


@pytest.mark.parametrize("strategy", ["cloudpickle", "dill"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1,
        written.outer(5)[0],
        Account(3).deposit,
        functools.partial(written.with_global, 2),
        written.with_global,
    ],
    ids=["lambda", "closure", "method", "partial", "global"],
)
def test_functions_of_all_kinds_travel_by_value(strategy, function):
    arguments = () if isinstance(function, functools.partial) else (7,)
    assert code(function, strategy)(*arguments) == function(*arguments)


# Several strategies.


def test_the_first_strategy_that_can_is_taken():
    assert encode([1], ["json", "pickle"]).strategy == "json"
    assert encode((1,), ["json", "pickle"]).strategy == "pickle"
    assert encode(lambda: 1, ["json", "pickle", "cloudpickle"]).strategy == "cloudpickle"


def test_if_none_can_the_error_lists_the_reason_of_each():
    with pytest.raises(NoStrategyError) as caught:
        encode(threading.Lock(), ["json", "pickle", "cloudpickle"], what="argument 0 of f")
    error = caught.value
    assert [name for name, _ in error.reasons] == ["json", "pickle", "cloudpickle"]
    assert str(error).startswith("argument 0 of f, of type _thread.lock, cannot be sent: json: ")
    assert "; pickle: TypeError: cannot pickle" in str(error)
    assert isinstance(error, SerializationError)
    assert isinstance(error, (pickle.PicklingError, TypeError))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.reasons) == (type(error), str(error), error.reasons)


def test_a_refusal_survives_pickling():
    error = ForeignPayloadError("argument 0 of f", "it is not allowed")
    assert isinstance(error, DeserializationError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert str(error) == "argument 0 of f was not loaded: it is not allowed"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"code": "cloudpikle"}, "known are pickle, cloudpickle, dill, reference, source, .*comb"),
        ({"code": "json"}, "no strategy 'json' for code"),
        ({"data": "reference"}, "no strategy 'reference' for data; known are pickle, .*json"),
        ({"data": "combined"}, "no strategy 'combined' for data"),
        ({"results": ["json", "yaml"]}, "results: there is no strategy 'yaml'"),
        ({"results": []}, "results names no strategy"),
        ({"data": "json", "allowed": ["yaml"]}, "allowed: there is no strategy 'yaml'"),
        ({"data": "json", "results": "pickle", "allowed": ["json"]}, "leaves out pickle"),
    ],
)
def test_serializers_are_checked_when_they_are_made(options, why):
    with pytest.raises(ValueError, match=why):
        Serializers(**options)


@pytest.mark.parametrize("given", [3, None, b"json", ["json", 3], {"json"}])
def test_strategies_are_given_by_name(given):
    with pytest.raises(TypeError, match="name of a strategy"):
        Serializers(data=given)


def test_serializers_are_values():
    one = Serializers(code=["reference", "combined"], data="json", results=["json", "pickle"])
    assert one.code == ("reference", "cloudpickle", "dill")
    assert one == Serializers(code="combined", data=["json"], results=("json", "pickle", "json"))
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))
    assert pickle.loads(pickle.dumps(one)) == one
    assert Serializers(data="json").results == ("json",)
    with pytest.raises(AttributeError):
        one.data = "pickle"


# Refused: before anything is loaded.


@pytest.fixture
def trap(tmp_path):
    """A payload whose loading leaves a file behind, and that file."""
    path = tmp_path / "loaded"
    payload = encode(Touches(path), "pickle")
    yield payload, path
    assert not path.exists(), "it was loaded"
    decode(payload)
    assert path.exists()  # or nothing was shown


def changed(payload, **facts):
    return Payload(**{**vars(payload), **facts})


def test_what_is_not_allowed_is_not_loaded(trap):
    payload, _ = trap
    with pytest.raises(ForeignPayloadError, match="it is 'pickle', and only json is allowed here"):
        decode(payload, allowed=["json"], what="the result of f")
    with pytest.raises(ForeignPayloadError, match="only cloudpickle is allowed"):
        decode(payload, allowed="cloudpickle")
    with pytest.raises(ForeignPayloadError, match="only nothing is allowed"):
        decode(payload, allowed=[])
    with pytest.raises(ForeignPayloadError):
        Serializers(data="json", allowed=["json"]).loads(payload.to_frames())


def test_another_pythons_payload_is_not_loaded(trap):
    payload, _ = trap
    with pytest.raises(ForeignPayloadError, match=f"Python 3.1 wrote it .* this is Python {HERE}"):
        decode(changed(payload, python="3.1"))


def test_another_versions_payload_is_not_loaded(trap):
    payload, _ = trap
    with pytest.raises(ForeignPayloadError, match="version 2 of the strategy 'pickle' wrote it"):
        decode(changed(payload, version=2))


def test_an_unknown_strategys_payload_is_not_loaded(trap):
    payload, _ = trap
    with pytest.raises(ForeignPayloadError, match="no strategy 'pickled' here; known are pickle"):
        decode(changed(payload, strategy="pickled"))


def test_what_is_no_payload_is_not_loaded(trap):
    payload, _ = trap
    good = payload.to_frames()[0]
    headers = [
        b"",
        b"P",
        good[1:],
        good + b" ",
        good + b"\n",
        good + b"x" * 10_000_000,
        good.replace(b"pickle", b"pick le"),
        good.replace(b" 1 ", b" -1 "),
        good.replace(b" 1 ", b" x "),
        good.replace(b"3.", b"3,"),
        b"\xff" * 30,
    ]
    for header in headers:
        with pytest.raises(ForeignPayloadError, match="does not say which strategy"):
            Payload.from_frames([header, *payload.frames])
    with pytest.raises(ForeignPayloadError):
        Payload.from_frames([])
    with pytest.raises(ForeignPayloadError):
        restricted = Serializers(data="json", allowed=["json"])
        restricted.loads(PickleSerializer().dumps(Touches(trap[1])))


def test_json_that_is_no_payload_is_refused(trap):
    value = trap[0].to_json()
    for fact, wrong in [
        ("strategy", "pick le"),
        ("strategy", None),
        ("version", "1"),
        ("version", 1.0),
        ("version", True),
        ("python", 3.11),
        ("python", "3"),
        ("encoding", "hex"),
        ("body", 3),
        ("body", ["*"]),
        ("body", "text"),
    ]:
        with pytest.raises(ForeignPayloadError, match="no payload in JSON"):
            Payload.from_json({**value, fact: wrong})
        missing = dict(value)
        del missing[fact]
        with pytest.raises(ForeignPayloadError):
            Payload.from_json(missing)
    by_name = encode(len, "reference", code=True).to_json()
    for wrong in (None, [], "text", 3, {**by_name, "body": 3}, {**by_name, "body": None}):
        with pytest.raises(ForeignPayloadError):
            Payload.from_json(wrong)


@given(st.binary(max_size=60), st.lists(st.binary(max_size=20), max_size=3))
def test_any_bytes_are_refused_or_read(header, frames):
    try:
        decode(Payload.from_frames([header, *frames]), allowed=["json"])
    except ProxyExecError:
        pass


@pytest.mark.parametrize("strategy", ["json", "reference", "source"])
def test_portable_payloads_are_read_from_other_pythons(strategy):
    is_code = strategy != "json"
    payload = encode(functions.add if is_code else [1], strategy, code=is_code)
    arrived = decode(changed(payload, python="3.99"))
    assert arrived(1, 2) == 3 if is_code else arrived == [1]


def test_an_object_that_ends_the_program_when_it_is_loaded_is_an_error():
    class Exits:
        def __reduce__(self):
            return sys.exit, (3,)

    with pytest.raises(DeserializationError, match="SystemExit"):
        decode(encode(Exits(), "cloudpickle"))


# Those of third parties.


class Reversed:
    """JSON, backwards."""

    name = "reversed"
    version = 4
    portable = True

    def dumps(self, obj):
        return [json.dumps(obj).encode()[::-1]]

    def loads(self, frames):
        return json.loads(bytes(frames[0])[::-1])


@pytest.fixture
def registered():
    register(Reversed(), for_data=True)
    yield "reversed"
    from proxyexec import _strategies

    del _strategies._known["reversed"]


def test_a_strategy_of_ones_own(registered):
    register(Reversed(), for_data=True)  # as when its module is imported again
    assert "reversed" in names()
    assert "reversed" in names("data")
    assert "reversed" not in names("code")
    assert there_and_back([1, 2], "reversed") == [1, 2]
    assert encode([1], "reversed").to_frames() == [f"Pxpayload reversed 4 {HERE}".encode(), b"]1["]
    with pytest.raises(ValueError, match="for code"):
        Serializers(code="reversed")


def test_a_strategy_may_say_that_it_writes_text(registered, monkeypatch):
    monkeypatch.setattr(Reversed, "body", "text", raising=False)
    value = encode(["ä"], "reversed").to_json()
    assert (value["encoding"], value["body"]) == ("text", json.dumps(["ä"])[::-1])
    assert there_and_back(["ä"], "reversed") == ["ä"]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"name": "pickle"}, "there is a strategy called 'pickle'"),
        ({"name": "combined"}, "there is a strategy called"),
        ({"name": "Two Words"}, "no name"),
        ({"name": ""}, "no name"),
        ({"version": "1"}, "version"),
        ({"version": -1}, "version"),
    ],
)
def test_what_is_no_strategy_is_not_registered(facts, why):
    strategy = type("Mine", (Reversed,), facts)()
    before = names()
    with pytest.raises(ValueError, match=why):
        register(strategy, for_data=True)
    with pytest.raises(ValueError, match="say what"):
        register(Reversed())
    assert names() == before


def test_serializers_take_the_strategies_they_name_along(registered, tmp_path):
    data = pickle.dumps(Serializers(data="reversed"))
    (tmp_path / "serializers").write_bytes(data)
    program = (
        "import pickle, sys\n"
        "serializers = pickle.load(open(sys.argv[1], 'rb'))\n"
        "from proxyexec.serializers import names\n"
        "assert 'reversed' in names('data') and 'reversed' not in names('code')\n"
        "print(b''.join(serializers.dumps([1])[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "serializers"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.stdout == "b']1['\n", done.stderr


def test_an_installed_strategy_is_found_by_its_entry_point(tmp_path, monkeypatch):
    from proxyexec import _strategies

    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[proxyexec.strategies]\nupper = mine_upper\n")
    (tmp_path / "mine_upper.py").write_text(
        "from proxyexec.serializers import register\n"
        "class Upper:\n"
        "    name, version, portable = 'upper', 1, True\n"
        "    dumps = lambda self, obj: [obj.upper().encode()]\n"
        "    loads = lambda self, frames: bytes(frames[0]).decode()\n"
        "register(Upper(), for_data=True)\n"
    )
    with pytest.raises(ValueError, match="no strategy 'upper'"):
        Serializers(data="upper")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert Serializers(data="upper").data == ("upper",)
        assert there_and_back("abc", "upper") == "ABC"
    finally:
        _strategies._known.pop("upper", None)
        sys.modules.pop("mine_upper", None)


def test_without_its_library_a_strategy_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "dill", None)
    from proxyexec import _strategies

    _strategies._dill_pickler.cache_clear()
    with pytest.raises(MissingExtraError, match=r"proxyexec\[dill\]"):
        encode([1], "dill")
    with pytest.raises(MissingExtraError):
        decode(Payload("dill", 1, HERE, encode([1], "pickle").frames))
    with pytest.raises(NoStrategyError, match=r"json: .*; dill: .*proxyexec\[dill\]"):
        encode((1,), ["json", "dill"])
    assert encode(lambda: 1, "combined", code=True).strategy == "cloudpickle"


def test_dill_is_imported_only_when_it_is_used():
    program = (
        "import sys\n"
        "from proxyexec.serializers import Serializers, encode\n"
        "Serializers(code='dill', data='dill', results=['dill'])\n"
        "encode(len, 'combined', code=True)\n"
        "assert 'dill' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# As serializers of stores.


def test_a_store_keeps_objects_by_strategies():
    with Store.from_url(
        "memory://", serializer=Serializers(data="json", allowed=["json"])
    ) as store:
        reference = store.put([1, 2])
        assert store.get(reference) == [1, 2]
        assert bytes(store.fetch(reference)[0]) == f"Pxpayload json 1 {HERE}".encode()
        with pytest.raises(SerializationError, match="there is no tuple in JSON"):
            store.put((1,))


def test_the_usual_serializer_reads_payloads():
    frames = Serializers(data="json").dumps([1])
    assert PickleSerializer().loads(frames) == [1]
    refused = [frames[0].replace(b" 1 ", b" 2 "), *frames[1:]]
    with pytest.raises(ForeignPayloadError):
        PickleSerializer().loads(refused)
    for serializer in (PickleSerializer(), Serializers()):  # what they read is data
        with pytest.raises(ForeignPayloadError, match="it is 'source', and only"):
            serializer.loads(encode(functions.add, "source", code=True).to_frames())
