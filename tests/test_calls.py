"""Calls and results as records: there and back, and what is said of those that are none."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import pickle
import stat
import tarfile
import traceback
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyexec._call_fields import publish
from proxyexec._call_files import collect, unpack
from proxyexec.calls import Call, CallResult, Requirements, Streams, command_line
from proxyexec.errors import (
    ArchiveError,
    CallDiedError,
    CallRecordError,
    CallTimeoutError,
    CommandError,
    ForeignPayloadError,
    NoStrategyError,
    RemoteError,
)
from proxyexec.serializers import Serializers
from tests import called

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
more_values = st.recursive(
    values
    | st.binary(max_size=200)
    | st.complex_numbers(allow_nan=False)
    | st.sets(texts, max_size=3),
    lambda inner: st.tuples(inner, inner) | st.frozensets(st.integers(), max_size=3),
    max_leaves=5,
)
names = st.text("abcXYZ_", min_size=1, max_size=8)
paths = st.lists(st.text("abc*?[]. ", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)
paths = paths.filter(lambda one: ".." not in one.split("/"))
requirements = st.builds(
    Requirements,
    ranks=st.none() | st.integers(1, 10_000),
    threads=st.none() | st.integers(1, 256),
    timeout=st.none() | st.floats(0.001, 1e9) | st.integers(1, 10_000),
)


def calls(values, data):
    return st.builds(
        Call,
        st.sampled_from([called.add, called.fail, len, functools.reduce, dict.fromkeys]),
        st.lists(values, max_size=4),
        st.dictionaries(names, values, max_size=4),
        environment=st.dictionaries(names, st.none() | texts.filter(lambda one: "\0" not in one)),
        directory=st.none() | st.just("some/where"),
        archive=st.none() | st.just("/some/where.tar"),
        outputs=st.lists(paths, max_size=3),
        requirements=requirements,
        serializers=st.just(Serializers(data=data, results=["json", "pickle"])),
        path=st.lists(texts, max_size=3),
        id=names,
    )


def there_and_back(record):
    return json.loads(json.dumps(record))


def facts_of(call):
    return {
        name: getattr(call, name)
        for name in ("name", "environment", "directory", "archive", "outputs", "requirements")
        + ("path", "id", "function", "args", "kwargs")
    } | {"results": call.serializers.results}


@settings(deadline=None)
@given(calls(values, "json") | calls(more_values, "pickle") | calls(more_values, "cloudpickle"))
def test_calls_come_back(call):
    record = there_and_back(call.to_json())
    back = Call.from_json(record)
    assert back.to_json() == record
    assert facts_of(back) == facts_of(call)


@settings(deadline=None)
@given(
    value=more_values,
    facts=st.fixed_dictionaries(
        {
            "call": names,
            "name": texts,
            "stdout": st.none() | st.just("/there/out"),
            "stderr": st.none() | st.just("/there/err"),
            "ranks": st.lists(st.builds(Streams, st.just("/there/out"), st.just("/there/err"))),
            "directory": st.none() | st.just("/there/outputs"),
            "outputs": st.lists(paths),
            "missing": st.lists(paths),
            "started": st.floats(0, 1e10),
            "seconds": st.floats(0, 1e10),
        }
    ),
    base=st.sampled_from([None, "/there", "/elsewhere"]),
)
def test_results_come_back(value, facts, base):
    result = CallResult(value, **facts)
    record = there_and_back(result.to_json(relative_to=base))
    back = CallResult.from_json(record, base=base)
    assert back.to_json(relative_to=base) == record
    assert back.return_value == value
    assert back.value() == value
    assert (back.exception, back.succeeded) == (None, True)
    expected = {**facts, **{name: tuple(facts[name]) for name in ("ranks", "outputs", "missing")}}
    assert {name: getattr(back, name) for name in facts} == expected


@settings(deadline=None)
@given(record=calls(values, "json"), data=st.data())
def test_a_record_with_a_field_of_another_kind_is_refused_by_name(record, data):
    record = there_and_back(record.to_json())
    field = data.draw(st.sampled_from(sorted(record)))
    wrong = {"version": "1", "environment": [], "requirements": [1], "outputs": {}, "results": 5}
    record[field] = wrong.get(field, 7)
    with pytest.raises(CallRecordError) as caught:
        Call.from_json(record)
    assert field in str(caught.value.field)
    assert str(caught.value.field) in str(caught.value)


def places_in(value, path=()):
    """Where there is something in a record."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places_in(one, (*path, name))


RAISED = CallResult(exception=KeyError("x"), outputs=["a"], ranks=[Streams("a", "b")])


@settings(deadline=None, max_examples=300)
@given(data=st.data(), other=values | st.sampled_from(["3.11", "json", [], {}, -1, 1e400]))
def test_records_that_are_anything_are_read_or_refused(data, other):
    kind, whole = data.draw(
        st.sampled_from(
            [
                (Call, by_hand(args=[{"strategy": "json", "body": 1}], environment={"A": "1"})),
                (Call, Call(called.add, (1,), outputs=["a"], path=["b"]).to_json()),
                (CallResult, CallResult({1}, stdout="out").to_json()),
                (CallResult, RAISED.to_json()),
            ]
        )
    )
    record = there_and_back(whole)
    path = data.draw(st.sampled_from(list(places_in(record))))
    if path:
        *way, last = path
        functools.reduce(lambda one, name: one[name], way, record)[last] = other
    else:
        record = other
    try:
        read = kind.from_json(record)
    except CallRecordError:
        return
    assert isinstance(read, kind)
    there_and_back(read.to_json())


def by_hand(**fields):
    return {
        "format": "proxyexec.call",
        "version": 1,
        "function": {"strategy": "reference", "body": "tests.called:add"},
        **fields,
    }


def test_a_record_written_by_hand():
    args = [{"strategy": "json", "body": [1]}]
    call = Call.from_json(by_hand(args=args, kwargs={"other": {"strategy": "json", "body": [2]}}))
    assert (call.function, call.args, call.kwargs) == (called.add, ([1],), {"other": [2]})
    assert call.name == "add"
    again = Call.from_json(there_and_back(call.to_json()))
    assert (again.args, again.kwargs, again.id) == (call.args, call.kwargs, call.id)
    both = {"strategy": "json", "body": [[1], {"other": 2}]}
    assert Call.from_json(by_hand(arguments=both)).kwargs == {"other": 2}
    assert Call.from_json(by_hand()).args == ()


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"format": "other"}, "format", "expected 'proxyexec.call'"),
        ({"version": 2}, "version", "2 was written, and 1 is read here"),
        ({"version": True}, "version", "expected an integer, not true or false"),
        ({"function": None}, "function", "it is missing"),
        ({"function": "tests.called:add"}, "function", "expected an object, not a text"),
        ({"function": {"body": "a:b"}}, "function.strategy", "it is missing"),
        ({"function": {"strategy": "reference"}}, "function.body", "it is missing"),
        ({"function": {"strategy": "pickle", "body": []}}, "function.python", "it is missing"),
        ({"function": {"strategy": "mine", "body": []}}, "function.version", "unknown for"),
        ({"function": {"strategy": "reference", "body": 5}}, "function", ""),
        (
            {"function": {"strategy": "reference", "encoding": "base64", "body": []}},
            "function.encoding",
            "'reference' is written as 'text'",
        ),
        ({"args": {}}, "args", "expected a list, not an object"),
        ({"args": [5]}, "args[0]", "expected an object, not an integer"),
        ({"kwargs": {"x": {}}}, "kwargs.x.strategy", "it is missing"),
        ({"arguments": {"strategy": "json", "body": []}, "args": []}, "args", "has arguments"),
        ({"outputs": ["a", 5]}, "outputs[1]", "expected a text"),
        ({"outputs": ["../a"]}, "outputs[0]", "paths within the directory"),
        ({"outputs": ["/a"]}, "outputs[0]", "paths within the directory"),
        ({"environment": {"A": 5}}, "environment", "are texts, or None"),
        ({"environment": {"A=B": "5"}}, "environment", "no environment variable"),
        ({"requirements": {"rank": 2}}, "requirements.rank", "no such field"),
        ({"requirements": {"ranks": 0}}, "requirements", "ranks must be 1 or more"),
        ({"requirements": {"timeout": "1"}}, "requirements.timeout", "expected a number"),
        ({"results": ["nonesuch"]}, "results", "nonesuch"),
        ({"output": []}, "output", "no such field"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(changes, field, says):
    with pytest.raises(CallRecordError, match="my.json") as caught:
        Call.from_json(by_hand(**changes), name="my.json")
    assert caught.value.field == field
    assert says in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("record", [None, [], "text", 5])
def test_a_record_is_an_object(record):
    for kind in (Call, CallResult):
        with pytest.raises(CallRecordError, match="expected an object"):
            kind.from_json(record)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"exception": {"type": "X", "message": "y"}}, "return_value"),
        ({"return_value": None}, "return_value"),
        ({"return_value": None, "exception": {"type": "X"}}, "exception.message"),
        ({"ranks": [{"stdout": "a"}]}, "ranks[0].stderr"),
        ({"seconds": "1"}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"version": 10**100}, "version"),
    ],
)
def test_what_is_wrong_with_the_record_of_a_result_is_said(changes, field):
    with pytest.raises(CallRecordError) as caught:
        CallResult.from_json({**CallResult(1).to_json(), **changes})
    assert caught.value.field == field


def test_arguments_of_a_record_that_are_none():
    for body in ([], [1, 2, 3], [1, {}], [[], []], [[], 5]):
        call = Call.from_json(by_hand(arguments={"strategy": "json", "body": body}))
        with pytest.raises(CallRecordError, match="expected a list of arguments"):
            call.load()
    call = Call.from_json(by_hand(function={"strategy": "reference", "body": "os:sep"}))
    with pytest.raises(CallRecordError, match="cannot be called"):
        call.load()


def test_an_object_that_is_passed_twice_is_one_object():
    items = [1]
    back = Call.from_json(there_and_back(Call(called.same, (items, items), {"c": items}).to_json()))
    assert back.args[0] is back.args[1] is back.kwargs["c"]


def test_the_part_that_cannot_travel_is_named():
    with pytest.raises(NoStrategyError, match=r"argument 1 of add"):
        Call(called.add, (1, called.lock())).to_json()
    with pytest.raises(NoStrategyError, match=r"argument 'other' of add"):
        Call(called.add, (1,), {"other": {1}}, serializers=Serializers(data="json")).to_json()
    with pytest.raises(NoStrategyError, match="the function .*<lambda>, of type function"):
        Call(lambda: 1, serializers=Serializers(code="reference")).to_json()


def test_nothing_is_loaded_of_what_is_not_allowed(tmp_path):
    there = tmp_path / "there"

    class Writes:
        def __reduce__(self):
            return os.mkdir, (str(there),)

    record = Call(called.add, (Writes(),), {"other": 1}).to_json()
    # The function comes first, and is allowed.
    record["args"] = [record.pop("arguments")]
    record["kwargs"] = {"other": {"strategy": "json", "body": 1}}
    for allowed in (["reference", "json"], ["json"], []):
        with pytest.raises(ForeignPayloadError):
            Call.from_json(record).load(allowed)
        assert not there.exists()
    Call.from_json(record).load(["reference", "pickle", "json"])
    assert there.exists()

    result = CallResult.from_json(CallResult({1}).to_json(), allowed=["json"])
    with pytest.raises(ForeignPayloadError):
        result.value()
    raised = CallResult.from_json(CallResult(exception=KeyError(1)).to_json(), allowed=["json"])
    assert type(raised.exception) is not KeyError
    assert isinstance(raised.exception, (RemoteError, KeyError))
    assert "only json is allowed" in str(raised.exception)


def test_files_are_whole_and_for_nobody_else(tmp_path):
    path = tmp_path / "call.json"
    os.umask(previous := os.umask(0))
    os.umask(0)
    try:
        Call(called.add, (1,)).write(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Call.read(path).args == (1,)
    assert CallResult(1).write(tmp_path / "result.json") is True
    assert CallResult(2).write(tmp_path / "result.json", replace=False) is False
    assert CallResult.read(tmp_path / "result.json").value() == 1
    assert CallResult(3).write(tmp_path / "result.json") is True
    assert CallResult.read(tmp_path / "result.json").value() == 3
    with pytest.raises(IsADirectoryError):
        publish(str(tmp_path), b"")
    assert sorted(os.listdir(tmp_path)) == ["call.json", "result.json"]


def test_files_that_are_no_records(tmp_path):
    path = tmp_path / "call.json"
    for contents in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(contents)
        with pytest.raises(CallRecordError, match="it is no JSON"):
            Call.read(path)
    with pytest.raises(CallRecordError, match="cannot be read: No such file"):
        CallResult.read(tmp_path / "nonesuch")
    with pytest.raises(CallRecordError, match="cannot be read: Is a directory"):
        Call.read(tmp_path)


def test_paths_in_records_are_relative_to_them(tmp_path, monkeypatch):
    record = by_hand(directory="work", archive="../data.tar")
    (tmp_path / "call.json").write_text(json.dumps(record))
    call = Call.read(tmp_path / "call.json")
    assert (call.directory, call.archive) == (f"{tmp_path}/work", f"{tmp_path.parent}/data.tar")
    monkeypatch.chdir(tmp_path)
    call = Call(called.add, directory="work", archive="data.tar")
    assert (call.directory, call.archive) == (f"{tmp_path}/work", f"{tmp_path}/data.tar")

    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "result.json"
    CallResult(1, stdout=str(tmp_path / "one" / "out"), stderr=str(tmp_path / "err")).write(path)
    (tmp_path / "one").rename(tmp_path / "two")
    moved = CallResult.read(tmp_path / "two" / "result.json")
    assert moved.stdout == str(tmp_path / "two" / "out")
    assert moved.stderr == str(tmp_path / "err")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: Call(5), TypeError),
        (lambda: Call(called.add, outputs="*.csv"), TypeError),
        (lambda: Call(called.add, outputs=["a/../../b"]), ValueError),
        (lambda: Call(called.add, outputs=[""]), ValueError),
        (lambda: Call(called.add, path="src"), TypeError),
        (lambda: Call(called.add, environment={"A": 1}), TypeError),
        (lambda: Call(called.add, environment={"": "1"}), ValueError),
        (lambda: Requirements(ranks=0), ValueError),
        (lambda: Requirements(ranks=True), TypeError),
        (lambda: Requirements(threads=1.5), TypeError),
        (lambda: Requirements(timeout=0), ValueError),
        (lambda: Requirements(timeout=float("inf")), ValueError),
        (lambda: Requirements(timeout=float("nan")), ValueError),
        (lambda: Requirements(timeout="1"), TypeError),
        (lambda: CallResult(1, ValueError()), ValueError),
    ],
)
def test_mistakes_are_told_at_once(wrong, error):
    with pytest.raises(error):
        wrong()


# --- exceptions ------------------------------------------------------------------------


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


def result_of(error, **options):
    return CallResult.from_json(
        there_and_back(CallResult(exception=raised(error), **options).to_json())
    )


@pytest.mark.parametrize(
    "error",
    [
        ValueError("one", 2),
        called.LocalError("one", 2),
        SystemExit(3),
        KeyboardInterrupt(),
        OSError(2, "no"),
    ],
)
def test_exceptions_come_back(error):
    back = result_of(error).exception
    assert type(back) is type(error)
    assert back.args == error.args
    assert vars(back) == vars(error)
    text = "".join(traceback.format_exception(back))
    assert "in raised" in text
    assert "raise error" in text
    with pytest.raises(type(error)):
        result_of(error).value()
    assert not result_of(error).succeeded


def test_exceptions_that_cannot_be_pickled_say_what_they_were():
    class Locked(KeyError):
        def __init__(self):
            super().__init__("with a lock")
            self.lock = called.lock()

    back = result_of(Locked()).exception
    assert isinstance(back, RemoteError)
    assert isinstance(back, KeyError)
    assert "Locked" in back.type_name
    assert "with a lock" in back.message
    assert "in raised" in back.traceback
    assert "in raised" in "".join(traceback.format_exception(back))
    assert "could not be serialized" in str(back)
    again = pickle.loads(pickle.dumps(back))
    assert (type(again), str(again)) == (type(back), str(back))
    assert isinstance(copy.copy(back), KeyError)


def test_exceptions_whose_class_is_missing_say_what_they_were(monkeypatch):
    record = there_and_back(CallResult(exception=raised(called.LocalError("one", 2))).to_json())
    monkeypatch.delattr(called, "LocalError")
    back = CallResult.from_json(record).exception
    assert type(back) is RemoteError
    assert (back.type_name, back.message) == ("tests.called.LocalError", "one and 2")
    assert "LocalError" in str(back)
    assert "raise error" in back.traceback


def test_exceptions_that_come_back_as_something_else(monkeypatch):
    record = there_and_back(CallResult(exception=raised(called.LocalError("one", 2))).to_json())
    monkeypatch.setattr(called, "LocalError", lambda *facts: facts)
    back = CallResult.from_json(record).exception
    assert type(back) is RemoteError
    assert "no exception" in str(back)


def test_exceptions_where_no_code_is_to_come_from_data():
    result = result_of(ZeroDivisionError("by zero"), results="json")
    assert isinstance(result.exception, ZeroDivisionError)
    assert isinstance(result.exception, RemoteError)
    assert result.exception.message == "by zero"


def test_exceptions_without_a_text():
    back = result_of(called.NoText())
    assert type(back.exception) is called.NoText
    record = CallResult(exception=raised(called.NoText())).to_json()
    assert record["exception"]["message"] == "<no text, as str() raised RuntimeError>"


@pytest.mark.parametrize(
    "base", ["UnicodeDecodeError", "NoSuchError", "print", "BaseException", "ExceptionGroup"]
)
def test_exceptions_of_types_that_take_facts_are_remote_errors_all_the_same(base):
    record = CallResult(exception=raised(ValueError())).to_json()
    record["exception"] |= {"base": base, "type": base, "payload": None}
    assert type(CallResult.from_json(record).exception) is RemoteError


@pytest.mark.parametrize(
    "error",
    [
        CallDiedError("f", 3),
        CallDiedError("f", -9),
        CallDiedError("f", -200),
        CallTimeoutError("f", 1.5),
        CommandError("f", ["a", "b"], "ended", "text"),
        ArchiveError("a.tar", "member", "no"),
        RemoteError("a.b", "message", "trace", "why"),
        RemoteError.like("OSError")("a.b", "message", "trace", "why"),
    ],
)
def test_errors_survive_pickling(error):
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
    assert isinstance(CallTimeoutError("f", 1), TimeoutError)


# --- command lines ---------------------------------------------------------------------


def test_a_command_line_says_what_a_batch_system_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = Call(
        called.add,
        archive="data.tar",
        outputs=["*.csv"],
        environment={"A": "1", "B": None, "MKL_NUM_THREADS": "9"},
        requirements=Requirements(ranks=2, threads=3, timeout=61.5),
    )
    launcher = ["srun", "-n{ranks}", "-c", "{threads}", "--time={timeout}"]
    line = command_line(call, "job.json", launcher=launcher, python="/usr/bin/python3")
    assert line.argv == [line.executable, *line.arguments]
    assert line.argv[:6] == ["srun", "-n2", "-c", "3", "--time=62", "/usr/bin/python3"]
    assert line.argv[-6:-2] == ["-m", "mpi4py", "-m", "proxyexec.call"]
    assert line.argv[-2:] == [f"{tmp_path}/job.json", f"{tmp_path}/job.result.json"]
    assert line.input_files == (f"{tmp_path}/job.json", f"{tmp_path}/data.tar")
    assert line.output_files == tuple(
        f"{tmp_path}/job.result.{end}"
        for end in ("json", "stdout", "stderr", "stdout.1", "stderr.1", "outputs")
    )
    assert line.environment == {
        **{"A": "1", "B": None, "MKL_NUM_THREADS": "9"},
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "3"),
    }
    plain = command_line(Call(called.add), "job.json", "there/out.json")
    assert "mpi4py" not in plain.argv
    assert plain.argv[-1] == f"{tmp_path}/there/out.json"
    with pytest.raises(ValueError, match="the launcher wants ranks"):
        command_line(Call(called.add), "job.json", launcher=["mpiexec", "-n", "{ranks}"])


# --- archives --------------------------------------------------------------------------


def tar_of(path, *members):
    """Write an archive of (name, contents or attributes) pairs."""
    with tarfile.open(path, "w:gz") as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
            else:
                for attribute, value in what.items():
                    setattr(info, attribute, value)
                archive.addfile(info)
    return str(path)


def zip_of(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, what in members:
            info = zipfile.ZipInfo(name)
            if not isinstance(what, bytes):
                info.external_attr, what = what
            archive.writestr(info, what)
    return str(path)


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_archives_are_unpacked(tmp_path, work):
    (work / "old").write_text("is replaced")
    link = {"type": tarfile.SYMTYPE, "linkname": "../one"}
    tarred = tar_of(
        tmp_path / "a.tar.gz",
        ("folder", {"type": tarfile.DIRTYPE}),
        ("folder/link", link),
        ("./one", b"1"),
        ("deep/er/two", b"2"),
        ("old", b"new"),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "./one"}),
        ("run", {"mode": 0o6755}),
    )
    unpack(tarred, str(work))
    assert (work / "folder/link").read_text() == "1"
    assert (work / "folder/link").is_symlink()
    assert (work / "deep/er/two").read_text() == "2"
    assert (work / "old").read_text() == "new"
    assert (work / "hard").read_text() == "1"
    assert (work / "hard").stat().st_nlink == 1
    assert stat.S_IMODE((work / "run").stat().st_mode) & 0o7700 == 0o700
    zipped = zip_of(
        tmp_path / "a.zip",
        ("zipped/", b""),
        ("zipped/one", b"1"),
        ("zipped/link", ((stat.S_IFLNK | 0o777) << 16, b"one")),
        ("zipped/run", ((stat.S_IFREG | 0o755) << 16, b"run")),
    )
    unpack(zipped, str(work))
    assert (work / "zipped/link").read_text() == "1"
    assert os.access(work / "zipped/run", os.X_OK)
    assert not os.access(work / "zipped/one", os.X_OK)


UNSAFE = {
    "parent": [("../evil", b"x")],
    "inner parent": [("a/../../evil", b"x")],
    "absolute": [("/tmp/evil", b"x")],
    "fifo": [("evil", {"type": tarfile.FIFOTYPE})],
    "device": [("evil", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "link out": [("evil", {"type": tarfile.SYMTYPE, "linkname": "../secret"})],
    "absolute link": [("evil", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
    "links that lead out together": [
        ("b", {"type": tarfile.SYMTYPE, "linkname": "a/.."}),
        ("a", {"type": tarfile.SYMTYPE, "linkname": "."}),
    ],
    "through a link of the archive": [
        ("a", {"type": tarfile.SYMTYPE, "linkname": ".."}),
        ("a/evil", b"x"),
    ],
    "hard link out": [("evil", {"type": tarfile.LNKTYPE, "linkname": "../secret"})],
    "through a link that was there": [("out/evil", b"x")],
    "directory in its place": [("full", b"x")],
}


@pytest.mark.parametrize("name", UNSAFE)
def test_nothing_is_unpacked_outside(tmp_path, work, name):
    (tmp_path / "secret").write_text("secret")
    (work / "out").symlink_to(tmp_path)
    (work / "full").mkdir()
    before = sorted(os.listdir(tmp_path))
    path = tar_of(tmp_path / "a.tar", *UNSAFE[name])
    with pytest.raises(ArchiveError) as caught:
        unpack(path, str(work))
    assert caught.value.archive == path
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "a.tar"])
    assert not os.path.lexists("/tmp/evil")
    assert [one.name for one in work.iterdir() if one.is_symlink()] == ["out"]


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"x")],
        [("/tmp/evil", b"x")],
        [("evil", ((stat.S_IFLNK | 0o777) << 16, b"../secret"))],
        [("evil", ((stat.S_IFIFO | 0o777) << 16, b""))],
        [("a", ((stat.S_IFLNK | 0o777) << 16, b"..")), ("a/evil", b"x")],
    ],
)
def test_nothing_of_a_zip_is_unpacked_outside(tmp_path, work, members):
    path = zip_of(tmp_path / "a.zip", *members)
    with pytest.raises(ArchiveError):
        unpack(path, str(work))
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "work"]
    assert not any(one.is_symlink() for one in work.iterdir())


def test_archives_that_are_none(tmp_path, work):
    path = tmp_path / "archive"
    for contents in (b"", b"text", b"x" * 5000):
        path.write_bytes(contents)
        with pytest.raises(ArchiveError, match="cannot be read"):
            unpack(str(path), str(work))
    zip_of(tmp_path / "a.zip", ("one", bytes(1000)))
    broken = bytearray((tmp_path / "a.zip").read_bytes())
    broken[40] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(ArchiveError):
        unpack(str(path), str(work))
    with pytest.raises(FileNotFoundError):
        unpack(str(tmp_path / "nonesuch"), str(work))


# --- outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("move", [True, False])
def test_outputs_are_what_is_asked_for(tmp_path, work, move):
    (tmp_path / "secret").write_text("secret")
    for name in ("a.csv", "b.csv", "c.txt", "deep/er/d.csv", "deep/e.txt", ".hidden"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    (work / "deep/link.csv").symlink_to(work / "a.csv")
    (work / "evil.csv").symlink_to(tmp_path / "secret")
    (work / "deep/evil").symlink_to(tmp_path / "secret")
    into = tmp_path / "outputs"
    patterns = ["*.csv", "deep", "./a.csv", "**/d.csv", "nonesuch", "*.x", "evil.csv"]
    found = collect(patterns, str(work), str(into), move=move)
    expected = ["a.csv", "b.csv", "deep/e.txt", "deep/er/d.csv", "deep/link.csv"]
    assert sorted(found.outputs) == expected
    assert found.missing == ("nonesuch", "*.x", "evil.csv")
    copied = [os.path.relpath(one, into) for one in sorted(into.rglob("*")) if one.is_file()]
    assert copied == expected
    assert (into / "deep/link.csv").read_text() == "a.csv"
    assert (work / "b.csv").exists() is not move
    assert (work / "c.txt").exists()
