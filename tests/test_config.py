"""Configurations: what they say, what they refuse, and what is built of them."""

import copy
import asyncio
import functools
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydantic_settings")

from pydantic import BaseModel, ValidationError

import proxyexec
from proxyexec import (
    ProxyAdaptive,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
    is_proxy,
)
from proxyexec.aio import AsyncStoreExecutor
from proxyexec.config import (
    AdaptivePolicy,
    AllPolicy,
    AlwaysPolicy,
    AnyPolicy,
    CallableSpec,
    ContextExecutor,
    CustomPolicy,
    ExecutorSpec,
    NeverPolicy,
    NotPolicy,
    PersistentExecutor,
    PolicySpec,
    SerializersSpec,
    SizePolicy,
    StoreExecutorSpec,
    StoreSpec,
    TypePolicy,
    load,
    policy_spec,
)
from proxyexec.errors import ConfigError
from proxyexec.serializers import Serializers
from tests import configured

HERE = "tests.configured"
POOL = "concurrent.futures:ThreadPoolExecutor"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("PROXYEXEC_"):
            monkeypatch.delenv(name)


def loaded(spec):
    """What comes of a specification on its way through JSON, and through a dict."""
    again = type(spec).model_validate_json(spec.model_dump_json())
    assert type(spec).model_validate(spec.model_dump()) == again
    assert type(spec).model_validate_json(spec.model_dump_json(exclude_defaults=True)) == again
    return again


def problem(make):
    """The text of the one thing that is wrong."""
    with pytest.raises(ValidationError) as caught:
        make()
    (one,) = caught.value.errors()
    return one["msg"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="$*")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcdefgh", max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from(["alpha", "beta", "gamma_2"])


class TestCallableSpec:
    @settings(deadline=None)
    @given(
        st.lists(json_values, min_size=1, max_size=3),
        st.dictionaries(names, json_values, max_size=3),
    )
    def test_round_trip(self, args, kwargs):
        spec = CallableSpec(callable=f"{HERE}:rest", args=args, kwargs=kwargs)
        assert loaded(spec) == spec
        assert loaded(spec)() == (args[0], tuple(args[1:]), 0, kwargs)

    @pytest.mark.parametrize(
        ("function", "args", "kwargs", "result"),
        [
            (configured.plain, [1], {}, (1, 2)),
            (configured.plain, [], {"a": 1, "b": 3}, (1, 3)),
            (configured.placed, [], {"a": 1, "c": 4}, (1, 2, 4)),
            (configured.placed, [], {"a": 1, "b": 5}, (1, 5, 3)),
            (configured.rest, [1, 2], {"key": 3, "x": 4}, (1, (2,), 3, {"x": 4})),
            (configured.rest, [1], {"a": 2}, (1, (), 0, {"a": 2})),
            (functools.partial(configured.plain, 5), [], {"b": 6}, (5, 6)),
            (functools.partial(configured.plain, b=6), [5], {}, (5, 6)),
            (timedelta, [], {"hours": 2}, timedelta(hours=2)),
            (dict, [], {"a": 1}, {"a": 1}),
            (f"{HERE}:prepared", [1], {}, (1, 7)),
        ],
    )
    def test_calls(self, function, args, kwargs, result):
        spec = CallableSpec(callable=function, args=args, kwargs=kwargs)
        assert spec() == result
        assert loaded(spec) == spec
        assert loaded(spec)() == result

    def test_classes_and_class_methods(self):
        assert CallableSpec.of(configured.Outer.Inner, size=3)().size == 3
        spec = CallableSpec.of(configured.Derived.made, size=4)
        assert spec.callable == f"{HERE}:Derived.made"
        assert type(loaded(spec)()) is configured.Derived
        assert CallableSpec.of(configured.Outer.Inner).load() is configured.Outer.Inner

    def test_overrides(self):
        spec = CallableSpec.of(configured.plain, 1, b=3)
        assert spec(b=4) == (1, 4)
        assert spec(7) == (7, 3)
        unknown = object()
        assert spec(b=unknown)[1] is unknown
        with pytest.raises(ValueError, match="has no argument 'c'; it takes a, b=2$"):
            spec(c=1)

    def test_a_package_exports_it(self):
        assert (
            CallableSpec.of(ProcessPoolExecutor).callable
            == "concurrent.futures:ProcessPoolExecutor"
        )
        assert CallableSpec.of(json.dumps, 1).callable == "json:dumps"

    @pytest.mark.parametrize(
        ("function", "kwargs", "message"),
        [
            (
                "json",
                {},
                "'json' is not a name; write \"module:qualname\", like "
                '"concurrent.futures:ThreadPoolExecutor"',
            ),
            ("json:", {}, "'json:' is not a name"),
            ("a b:c", {}, "'a b:c' is not a name"),
            (
                "no_such_module:x",
                {},
                "'no_such_module:x' cannot be imported: "
                "ModuleNotFoundError: No module named 'no_such_module'",
            ),
            (
                f"{HERE}:plane",
                {},
                f"'{HERE}:plane' is not there: '{HERE}' has no 'plane'; did you mean 'plain'?",
            ),
            (f"{HERE}:text", {}, f"'{HERE}:text' cannot be called"),
            (
                f"{HERE}:os.system",
                {},
                f"'{HERE}:os.system' leads through '{HERE}.os', which is no class",
            ),
            (f"{HERE}:os", {}, f"'{HERE}:os' is a module"),
            (
                f"{HERE}:plain.__globals__",
                {},
                f"'{HERE}:plain.__globals__' has a name in it that is Python's own",
            ),
            (
                f"{HERE}:make_local.<locals>.local",
                {},
                "is defined inside of a function, where nobody "
                "can find it; define it at the top level of a module",
            ),
            (
                f"{HERE}:<lambda>",
                {},
                f"'{HERE}:<lambda>' is a lambda, which has no name; define it with def",
            ),
            (configured.nameless, {}, "is a lambda, which has no name"),
            (configured.make_local(), {}, "is defined inside of a function"),
            (
                configured.Outer.Inner().method,
                {},
                "the method 'Outer.Inner.method' is bound to an "
                "object, which has no name; give a function, a class, or a method of a class",
            ),
            (
                configured.Longer(1),
                {},
                "an object of type tests.configured.Longer has no name: give a function or a class",
            ),
            (configured.plain, {}, f"'{HERE}:plain' lacks 'a'; it takes a, b=2"),
            (
                configured.plain,
                {"a": 1, "c": 2},
                f"'{HERE}:plain' has no argument 'c'; it takes a, b=2",
            ),
            (
                configured.typed,
                {"count": 1, "nam": "y"},
                f"'{HERE}:typed' has no argument 'nam' (did "
                "you mean 'name'?); it takes count, name='x', ratio=None, path=None",
            ),
            (
                configured.typed,
                {"count": "many"},
                f"argument 'count' of '{HERE}:typed' cannot be "
                "'many': input should be a valid integer, unable to parse string as an integer",
            ),
            (
                configured.typed,
                {"count": 1, "ratio": [1]},
                f"argument 'ratio' of '{HERE}:typed' cannot be [1]: input should be a valid number",
            ),
            (configured.rest, {}, f"'{HERE}:rest' lacks 'a'; it takes a, *more, key=0, **others"),
            (
                configured.plain,
                {"a": b"bytes"},
                "argument 'a' is of type bytes, which a configuration cannot hold",
            ),
            (
                configured.plain,
                {"a": {1: 2}},
                "argument 'a' is a mapping with keys that are no texts",
            ),
            (
                configured.plain,
                {"a": {"$nome": "x"}},
                'argument \'a\': keys that start with "$" are for {"$name": "module:qualname"} and',
            ),
            (configured.plain, {"a": {"$name": "json:dumps", "more": 1}}, "keys that start with"),
            (
                configured.plain,
                {"a": [{"$name": "nowhere"}]},
                "argument 'a'[0]: 'nowhere' is not a name",
            ),
            (
                configured.plain,
                {"a": {"$call": "json:dumps"}},
                "argument 'a': 'json:dumps' lacks 'obj'",
            ),
            (
                configured.plain,
                {"a": "${NO NAME}"},
                "${NO NAME} is no reference to a variable of the "
                "environment; write ${NAME}, or $${...} for the text itself",
            ),
        ],
    )
    def test_refused(self, function, kwargs, message):
        assert message in problem(lambda: CallableSpec(callable=function, kwargs=kwargs))

    def test_too_many_by_place(self):
        text = problem(lambda: CallableSpec(callable=configured.plain, args=[1, 2, 3]))
        assert text == f"'{HERE}:plain' takes 2 arguments by place, not 3; it takes a, b=2"
        text = problem(lambda: CallableSpec(callable=configured.plain, args=[1], kwargs={"a": 2}))
        assert text == f"'{HERE}:plain' is given 'a' twice: by place and by name"

    def test_values_that_are_objects(self):
        spec = CallableSpec.of(
            configured.rest,
            (1, "two"),
            configured.plain,
            multiprocessing.get_context("spawn"),
            CallableSpec.of(timedelta, hours=1),
            key=functools.partial(configured.plain, 1),
        )
        assert loaded(spec) == spec
        first, (second, third, fourth), key, _ = loaded(spec)()
        assert first == (1, "two")
        assert second is configured.plain
        assert third is multiprocessing.get_context("spawn")
        assert fourth == timedelta(hours=1)
        assert key(b=3) == (1, 3)

    def test_arguments_arrive_as_annotated(self):
        (count, _, ratio) = CallableSpec.of(configured.typed, count="3", ratio=1)()
        assert (count, ratio) == (3, 1.0)

    def test_iterables_arrive_as_lists(self):
        assert CallableSpec.of(configured.take_all, [1, 2])() == ([1, 2], [1, 2])

    def test_a_member_of_an_enumeration_is_its_text(self):
        assert CallableSpec.of(configured.plain, configured.Colour.RED).args == ["red"]

    def test_checking_makes_no_objects_of_other_types(self):
        spec = CallableSpec(callable=f"{HERE}:take_facts", kwargs={"facts": {"count": 5}})
        assert not configured.Facts.made
        assert spec() == configured.Facts(5)
        with pytest.raises(ValueError, match="'facts' of .*: count: input should be a valid int"):
            CallableSpec(callable=f"{HERE}:take_facts", kwargs={"facts": {"count": "x"}})()
        configured.Facts.made.clear()

    def test_checking_imports_nothing_that_has_no_name(self):
        data = {"executor": {"type": POOL, "initializer": {"$call": f"{HERE}:take_named"}}}
        data["executor"]["initializer"]["args"] = ["xml.sax.saxutils"]
        sys.modules.pop("xml.sax.saxutils", None)
        load(data, allow=[HERE, "concurrent"])
        assert "xml.sax.saxutils" not in sys.modules

    def test_a_method_of_c(self):
        assert CallableSpec(callable="builtins:str.upper", args=["a"])() == "A"

    @pytest.mark.parametrize(
        "more", [{"args": 3}, {"args": "ab"}, {"kwargs": [1]}, {"kwargs": None}]
    )
    def test_arguments_of_the_wrong_kind(self, more):
        value = {"$call": f"{HERE}:plain", **more}
        text = problem(lambda: CallableSpec.of(configured.plain, value))
        assert text == "argument 0: args must be a list, and kwargs a mapping"
        for function in (configured.plain, functools.partial(configured.plain, 1, b=2)):
            with pytest.raises(ValidationError, match="Input should be a valid"):
                CallableSpec(callable=function, **more)

    def test_what_has_no_end(self):
        endless: list = []
        endless.append(endless)
        text = problem(lambda: CallableSpec.of(configured.plain, endless))
        assert text == "this is nested too deeply, or in itself"

    def test_a_module_that_cannot_import_what_it_is_asked_for(self, tmp_path, monkeypatch):
        lazy = "def __getattr__(name): raise ImportError('no such extra')"
        (tmp_path / "lazy_module.py").write_text(lazy)
        monkeypatch.syspath_prepend(tmp_path)
        text = problem(lambda: CallableSpec(callable="lazy_module:x"))
        assert text == "'lazy_module:x' cannot be imported: ImportError: no such extra"

    def test_nothing_is_called_before_it_is_built(self, tmp_path):
        there = tmp_path / "there"
        spec = CallableSpec(
            callable=configured.plain,
            kwargs={"a": {"$call": "os:mkdir", "args": [str(there)]}},
        )
        assert not there.exists()
        spec()
        assert there.exists()


class TestAllowedModules:
    def test_only_those(self):
        data = {"executor": POOL, "should_proxy": f"{HERE}:is_long"}
        assert load(data, allow=["concurrent", "tests.configured"]).should_proxy is not None
        with pytest.raises(ConfigError) as caught:
            load(data, allow=["concurrent.futures"])
        assert str(caught.value) == (
            f"should_proxy: '{HERE}:is_long' is of the module '{HERE}', which is not allowed; "
            "concurrent.futures is"
        )

    def test_what_pools_are_described_by(self):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, configured.start, (5,)) as pool:
            with StoreExecutor(pool) as executor:
                data = executor.config().model_dump()
        assert load(data, allow=[HERE]) == load(data)
        with pytest.raises(ConfigError, match="'builtins:eval' is of the module 'builtins'"):
            load({"should_proxy": "builtins:eval"}, allow=[HERE])

    def test_not_one_that_starts_alike(self):
        with pytest.raises(ConfigError, match="not allowed"):
            load({"executor": POOL}, allow=["concurrent.fut"])

    def test_nothing_is_imported(self, tmp_path, monkeypatch):
        (tmp_path / "harmful_module.py").write_text("raise SystemExit('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigError, match="not allowed"):
            load({"executor": "harmful_module:Pool"}, allow=["concurrent"])
        with pytest.raises(ConfigError, match="cannot be imported: SystemExit: imported"):
            load({"executor": "harmful_module:Pool"})

    def test_not_what_an_allowed_module_has_imported(self):
        data = {"should_proxy": f"{HERE}:ThreadPoolExecutor"}
        with pytest.raises(ConfigError, match="of the module 'concurrent.futures.thread'"):
            load(data, allow=[HERE])

    @pytest.mark.parametrize(
        ("name", "module"),
        [
            ("Text.upper", "builtins"),
            ("Text.maketrans", "builtins"),
            ("Text.mro", "builtins"),
            ("numbers", "builtins"),
            ("Picky.submit", "concurrent.futures.thread"),
            ("ThreadPoolExecutor.submit", "concurrent.futures.thread"),
        ],
    )
    def test_not_what_it_has_from_others(self, name, module):
        with pytest.raises(ConfigError, match=f"'{HERE}:{name}' is of the module '{module}'"):
            load({"should_proxy": f"{HERE}:{name}"}, allow=[HERE])

    def test_arguments_too(self):
        data = {"executor": {"type": POOL, "initializer": {"$name": "os:getpid"}}}
        with pytest.raises(ConfigError, match="'os:getpid' is of the module 'os', which is not"):
            load(data, allow=["concurrent"])

    def test_a_list(self):
        with pytest.raises(TypeError, match=r"allow must be a list of modules, like \['json'\]"):
            load({}, allow="json")


class TestExecutorSpec:
    @pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
    def test_of_a_type(self, kind):
        spec = ExecutorSpec[kind](max_workers=1)
        assert loaded(spec) == spec
        with spec.build() as pool:
            assert type(pool) is kind
            assert pool._max_workers == 1
        with spec.build(max_workers=2) as pool:
            assert pool._max_workers == 2

    def test_arguments_by_either_way(self):
        beside = ExecutorSpec(type=POOL, max_workers=1, thread_name_prefix="t")
        assert beside == ExecutorSpec(
            type=POOL, kwargs={"max_workers": 1, "thread_name_prefix": "t"}
        )
        assert beside == ExecutorSpec(
            type=functools.partial(ThreadPoolExecutor, thread_name_prefix="t"), max_workers=1
        )

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (
                {},
                'lacks "type", the name of an executor, like "concurrent.futures:ProcessPoolExecutor"',
            ),
            (
                {"type": POOL, "max_wokers": 1},
                f"'{POOL}' has no argument 'max_wokers' (did you mean "
                "'max_workers'?); it takes max_workers=None, thread_name_prefix='', initializer=None, "
                "initargs=()",
            ),
            (
                {"type": POOL, "max_workers": "four"},
                f"argument 'max_workers' of '{POOL}' cannot be "
                "'four': input should be a valid integer",
            ),
            (
                {"type": POOL, "initializer": "four"},
                f"argument 'initializer' of '{POOL}' cannot be 'four': input should be callable",
            ),
            (
                {"type": f"{HERE}:Other"},
                "tests.configured.Other is no executor as PEP 3148 has it: "
                "it has no method 'submit'; if one of another name does that, say submit_method=... "
                "(it has run, stop)",
            ),
            (
                {"type": f"{HERE}:Wrong"},
                "tests.configured.Wrong is no executor as PEP 3148 has it: "
                "submit(self, fn, args=()) cannot be called as submit(fn, /, *args, **kwargs)",
            ),
            ({"type": "concurrent.futures:Executor"}, "is abstract: it cannot submit"),
            ({"type": f"{HERE}:text"}, "is neither a class nor a function"),
            (
                {"type": POOL, "kwargs": {"max_workers": 1}, "max_workers": 2},
                "given twice, beside the fields and among kwargs: max_workers",
            ),
            ({"type": POOL, "kwargs": 3}, "kwargs must be a mapping of arguments"),
            ({"type": functools.partial(ThreadPoolExecutor, 3)}, "have to be given by name"),
        ],
    )
    def test_refused(self, data, message):
        assert message in problem(lambda: ExecutorSpec(**data))

    def test_not_of_the_type(self):
        text = problem(lambda: ExecutorSpec[ProcessPoolExecutor](type=POOL))
        assert text == f"'{POOL}' is no concurrent.futures.process.ProcessPoolExecutor"
        with ThreadPoolExecutor() as pool:
            text = problem(lambda: ExecutorSpec[ProcessPoolExecutor](executor=pool))
        assert text == (
            "executor is of type concurrent.futures.thread.ThreadPoolExecutor, and is to be a "
            "concurrent.futures.process.ProcessPoolExecutor"
        )
        spec = ExecutorSpec[ProcessPoolExecutor](type=f"{HERE}:secret_pool")
        with pytest.raises(
            ValueError, match="has made a .*ThreadPoolExecutor, which is no .*Process"
        ):
            spec.build()

    def test_methods_of_other_names(self):
        spec = ContextExecutor[configured.Other](
            submit_method="run", map_method=None, shutdown_method="stop", workers=2
        )
        assert loaded(spec) == spec
        with spec as executor:
            future = executor.submit(pow, 2, 3)
            assert list(executor.map(pow, [1, 2], [3, 4])) == [1, 16]
        assert future.result() == 8
        assert configured.Other.made[-1].ended

    def test_an_executor_that_is_there(self):
        with ThreadPoolExecutor(3, "here") as pool:
            spec = ExecutorSpec[ThreadPoolExecutor](executor=pool)
            assert spec.build() is pool
            assert spec.kwargs == {"max_workers": 3, "thread_name_prefix": "here"}
            again = loaded(spec)
            with again.build() as other:
                assert other is not pool
                assert other._thread_name_prefix == "here"

    def test_one_that_cannot_be_made_again(self):
        with configured.Secretive("hunter2") as pool:
            spec = ExecutorSpec(executor=pool)
            assert spec.build() is pool
            dumped = spec.model_dump_json()
            assert "hunter2" not in dumped + repr(spec)
        text = problem(lambda: ExecutorSpec.model_validate_json(dumped))
        assert text == (
            "this was a live executor of type 'tests.configured:Secretive', given as an object, "
            "which cannot be made again from data; give one (executor=...), or say how to make one, "
            'as in {"type": "distributed:Client", "kwargs": {"address": "tcp://host:8786"}}'
        )
        with pytest.raises(ValueError, match="this was a live executor"):
            pickle.loads(pickle.dumps(spec)).build()

    def test_a_pool_with_an_initializer(self):
        with ThreadPoolExecutor(1, initializer=configured.start, initargs=(7,)) as pool:
            spec = ExecutorSpec(executor=pool)
        with loaded(spec).build() as again:
            assert again.submit(configured.started).result() == "7"
        with ThreadPoolExecutor(1, initializer=lambda: None) as pool:
            assert ExecutorSpec(executor=pool).live

    def test_start_methods(self):
        other = next(
            one
            for one in multiprocessing.get_all_start_methods()
            if one != multiprocessing.get_start_method()
        )
        spec = ExecutorSpec[ProcessPoolExecutor](
            max_workers=1, mp_context=multiprocessing.get_context(other)
        )
        with loaded(spec).build() as pool:
            assert pool._mp_context.get_start_method() == other
            assert ExecutorSpec(executor=pool).kwargs == spec.kwargs


class TestLives:
    def test_context(self):
        spec = ContextExecutor[ThreadPoolExecutor](max_workers=1)
        assert loaded(spec) == spec
        with spec as first:
            future = first.submit(pow, 2, 3)
            with spec as second:
                assert second is not first
                second.submit(int).result()
            with pytest.raises(RuntimeError, match="after shutdown"):
                second.submit(int)
            first.submit(int).result()
        assert future.result() == 8
        with pytest.raises(RuntimeError, match="after shutdown"):
            first.submit(int)

    def test_context_needs_a_recipe(self):
        with ThreadPoolExecutor() as pool:
            text = problem(lambda: ContextExecutor(executor=pool))
        assert text == (
            "an executor that is there already cannot be made for each use; give its type and "
            "arguments, or use a PersistentExecutor"
        )

    def test_context_in_threads(self):
        spec = ContextExecutor[ThreadPoolExecutor](max_workers=1)
        both = threading.Barrier(2)
        seen = []

        def use():
            with spec as executor:
                both.wait()
                seen.append((executor, executor.submit(pow, 2, 3).result()))
                both.wait()

        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (first, one), (second, other) = seen
        assert first is not second
        assert one == other == 8

    def test_as_fields_of_other_models(self):
        class Program(BaseModel):
            executor: ExecutorSpec[ThreadPoolExecutor]
            policies: list[PolicySpec] = []

        expected = ExecutorSpec[ThreadPoolExecutor](max_workers=2)
        persistent = PersistentExecutor[ThreadPoolExecutor](max_workers=2)
        persistent.get()
        for given in (
            {"max_workers": 2},
            expected,
            ContextExecutor[ThreadPoolExecutor](max_workers=2),
            ContextExecutor(type=ThreadPoolExecutor, max_workers=2),
            persistent,
        ):
            program = Program(executor=given, policies=["1 MB", ProxyAlways()])
            assert program.executor == expected
            assert loaded(program) == program
        persistent.shutdown()
        with pytest.raises(ValidationError, match="'concurrent.futures:ProcessPoolExecutor' is no"):
            Program(executor=ContextExecutor[ProcessPoolExecutor]())

    def test_subclasses(self):
        spec = configured.NotedPool(note="x", max_workers=1)
        assert spec.type == POOL
        assert loaded(spec) == spec == copy.deepcopy(spec) == pickle.loads(pickle.dumps(spec))
        with pytest.raises(ValidationError, match="ProcessPoolExecutor' is no "):
            configured.NotedPool(type="concurrent.futures:ProcessPoolExecutor")

    def test_one_that_is_there_below_a_store_executor(self):
        with ThreadPoolExecutor(1) as pool:
            for given in (
                ExecutorSpec(executor=pool),
                ExecutorSpec[ThreadPoolExecutor](executor=pool),
            ):
                spec = StoreExecutorSpec(executor=given)
                with spec.build() as executor:
                    assert executor.submit(pow, 2, 3).result() == 8
                assert spec.executor.executor is pool
                assert pool.submit(pow, 2, 3).result() == 8

    def test_a_subclass_that_hands_its_arguments_on(self):
        class Mine(StoreExecutor):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)

        with Mine.from_config({"executor": POOL, "lazy": False}) as executor:
            assert executor.submit(bytes, 1000).result() == bytes(1000)

    def test_blocks_that_end_in_another_order(self):
        spec = ContextExecutor[ThreadPoolExecutor](max_workers=1)

        def use():
            with spec as executor:
                yield executor

        one, other = use(), use()
        first, second = next(one), next(other)
        one.close()
        assert second.submit(pow, 2, 3).result() == 8
        with pytest.raises(RuntimeError, match="after shutdown"):
            first.submit(int)
        thread = threading.Thread(target=other.close)  # as the garbage collector may do
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="after shutdown"):
            second.submit(int)

    def test_blocks_of_coroutines(self):
        spec = ContextExecutor[ThreadPoolExecutor](max_workers=1)

        async def use(begun, goes_on):
            with spec as executor:
                begun.set()
                await goes_on.wait()
                return executor.submit(pow, 2, 3).result()

        async def use_both():
            first, second, goes_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
            goes_on.set()
            late = asyncio.create_task(use(first, second))
            await first.wait()
            return await asyncio.create_task(use(second, goes_on)), await late

        assert asyncio.run(use_both()) == (8, 8)

    def test_persistent_with_one_that_does_not_cancel(self):
        spec = PersistentExecutor[configured.Plain](max_workers=1)
        executor = spec.get()
        spec.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(int)

    def test_what_was_made_in_vain_is_shut_down(self):
        spec = ExecutorSpec[ThreadPoolExecutor](
            type=f"{HERE}:wrong_pool", submit_method="run", map_method=None, shutdown_method="stop"
        )
        with pytest.raises(ValueError, match="has made a tests.configured.Other, which is no"):
            spec.build()
        assert configured.Other.made[-1].ended

    def test_persistent(self):
        spec = PersistentExecutor[ThreadPoolExecutor](max_workers=1)
        assert loaded(spec) == spec
        with spec as first:
            first.submit(int).result()
        with spec as second:
            assert second is first
            second.submit(int).result()
        spec.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            first.submit(int)
        with pytest.raises(RuntimeError, match="this executor was shut down by its owner"):
            spec.get()
        assert loaded(spec) == spec

    def test_persistent_is_made_once(self):
        spec = PersistentExecutor[configured.Other](
            submit_method="run", map_method=None, shutdown_method="stop"
        )
        before = len(configured.Other.made)
        both = threading.Barrier(8)

        def use():
            both.wait()
            return spec.get()

        with ThreadPoolExecutor(8) as threads:
            found = {id(future.result()) for future in [threads.submit(use) for _ in range(8)]}
        assert len(found) == 1
        assert len(configured.Other.made) == before + 1
        spec.shutdown()
        assert configured.Other.made[-1].ended

    def test_copies_have_their_own(self):
        spec = PersistentExecutor[ThreadPoolExecutor](max_workers=1)
        executor = spec.get()
        for other in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
            assert other == spec
            assert type(other) is type(spec)
            assert other.get() is not executor
            other.shutdown()
        executor.submit(int).result()
        spec.shutdown()

    def test_one_that_is_there_stays(self):
        with ThreadPoolExecutor(1) as pool:
            spec = PersistentExecutor(executor=pool)
            with spec as executor:
                executor.submit(int).result()
            spec.shutdown()
            pool.submit(int).result()

    def test_persistent_below_store_executors(self):
        spec = StoreExecutorSpec(
            executor={
                "life": "persistent",
                "type": "concurrent.futures:ProcessPoolExecutor",
                "max_workers": 1,
            },
            should_proxy="1 kB",
        )
        with spec.build() as one:
            first = one.submit(configured.process).result()
            kept = one.submit(bytes, 5000)
        with spec.build() as other:
            assert other.submit(configured.process).result() == first
        assert len(kept.result()) == 5000
        assert loaded(spec) == spec
        spec.executor.shutdown()

    def test_shutdown_waits_for_what_was_submitted_and_no_longer(self):
        release = threading.Event()
        spec = StoreExecutorSpec(executor={"life": "persistent", "type": POOL, "max_workers": 1})
        with spec.build() as other, spec.build() as one:
            blocker = other.submit(release.wait)
            pending = one.submit(int)
            one.shutdown(wait=True, cancel_futures=True)
            assert pending.cancelled()
            assert not blocker.done()
            release.set()
        assert blocker.result()
        spec.executor.shutdown()

    def test_context_below_a_store_executor(self):
        spec = StoreExecutorSpec(
            executor={
                "type": f"{HERE}:Other",
                "submit_method": "run",
                "map_method": None,
                "shutdown_method": "stop",
            },
        )
        with spec.build() as executor:
            assert executor.submit(pow, 2, 3).result() == 8
        assert configured.Other.made[-1].ended
        with spec.build() as executor:
            executor.shutdown(wait=False)
        executor.shutdown()
        assert configured.Other.made[-1].ended


leaves = st.one_of(
    st.just(AlwaysPolicy()),
    st.just(NeverPolicy()),
    st.builds(
        AdaptivePolicy, max_live_bytes=st.none() | st.integers(0, 9), calibrate=st.booleans()
    ),
    st.builds(SizePolicy, minimum=st.integers(0, 2**50)),
    st.builds(
        TypePolicy, types=st.lists(st.sampled_from([bytes, str, timedelta]), min_size=1, max_size=2)
    ),
    st.just(CustomPolicy(policy=f"{HERE}:is_long")),
    st.builds(
        CustomPolicy,
        policy=st.just(f"{HERE}:Longer"),
        kwargs=st.fixed_dictionaries({"limit": st.integers(0, 9)}),
    ),
)
policies = st.recursive(
    leaves,
    lambda inner: (
        st.builds(AllPolicy, policies=st.lists(inner, min_size=1, max_size=3))
        | st.builds(AnyPolicy, policies=st.lists(inner, min_size=1, max_size=3))
        | st.builds(NotPolicy, policy=inner)
    ),
    max_leaves=5,
)


def meaning(spec, obj):
    """What a policy wants, worked out by hand."""
    match spec:
        case AlwaysPolicy():
            return True
        case NeverPolicy():
            return False
        case AdaptivePolicy():
            return ProxyAdaptive(calibrate=False)(obj)
        case SizePolicy():
            return ProxySize(spec.minimum)(obj)
        case TypePolicy():
            return any(
                f"{type(obj).__module__}:{type(obj).__qualname__}" == one for one in spec.types
            )
        case CustomPolicy(kwargs=None):
            return configured.is_long(obj)
        case CustomPolicy():
            return configured.Longer(spec.kwargs["limit"])(obj)
        case AllPolicy():
            return all(meaning(one, obj) for one in spec.policies)
        case AnyPolicy():
            return any(meaning(one, obj) for one in spec.policies)
        case NotPolicy():
            return not meaning(spec.policy, obj)


class TestPolicySpec:
    @settings(deadline=None)
    @given(
        policies,
        st.binary(max_size=20) | st.text(max_size=20) | st.lists(st.integers(), max_size=20),
    )
    def test_round_trip(self, spec, obj):
        assert policy_spec(spec.model_dump()) == spec
        assert policy_spec(json.loads(spec.model_dump_json(exclude_defaults=True))) == spec
        policy = spec.build()
        assert bool(policy(obj)) == meaning(spec, obj)

    @pytest.mark.parametrize(
        "policy",
        [
            ProxyAlways(),
            ProxyNever(),
            ProxyAdaptive(),
            ProxyAdaptive("1 GB", calibrate=False),
            ProxySize("1 MB"),
            ProxyType(bytes, str),
            ProxySize(5) & ProxyType(bytes) & ~ProxyType(str),
            ProxySize(5) | (ProxyType(bytes) & ProxySize(7)),
            ~(ProxySize(5) | ProxyType(list)),
        ],
    )
    def test_of_policies(self, policy):
        assert repr(policy_spec(policy).build()) == repr(policy)

    @pytest.mark.parametrize(
        ("short", "spec"),
        [
            ("always", AlwaysPolicy()),
            ("never", NeverPolicy()),
            ("adaptive", AdaptivePolicy()),
            ("1 MB", SizePolicy(minimum=1_000_000)),
            (5, SizePolicy(minimum=5)),
            (f"{HERE}:is_long", CustomPolicy(policy=f"{HERE}:is_long")),
            (configured.is_long, CustomPolicy(policy=f"{HERE}:is_long")),
        ],
    )
    def test_short_forms(self, short, spec):
        assert policy_spec(short) == spec
        assert AllPolicy(policies=[short]).policies == [spec]

    def test_own_ones(self):
        assert policy_spec(f"{HERE}:big").build() is configured.big
        made = CustomPolicy(policy=f"{HERE}:longer", kwargs={}).build()
        assert made.limit == 5
        assert CustomPolicy(policy=f"{HERE}:Longer", kwargs={"limit": 3}).build()(b"four")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (
                "some",
                '\'some\' is no policy: write "always", "never", "adaptive", a size such as "1 MB", '
                '"module:qualname", or a mapping with a kind',
            ),
            (
                {"kind": "siz"},
                "there is no kind 'siz'; there are 'always', 'never', 'size', 'adaptive', 'type', "
                "'all', 'any', 'not', 'custom'",
            ),
            ({"minimum": 1}, "does not say its kind"),
            ({"kind": "size"}, "is missing"),
            ({"kind": "size", "minimum": -1}, "a size cannot be negative: -1"),
            (
                {"kind": "size", "minimum": [1]},
                'not a size: write a number of bytes, or a text like "1 MB"',
            ),
            ({"kind": "type", "types": ["json:dumps"]}, "'json:dumps' is no class"),
            (
                {"kind": "type", "types": []},
                "List should have at least 1 item after validation, not 0",
            ),
            ({"kind": "any", "policies": ["nonsense"]}, "'nonsense' is no policy"),
            (
                {"kind": "custom", "policy": f"{HERE}:text"},
                "is no policy: it cannot be called with an object",
            ),
            (
                {"kind": "custom", "policy": f"{HERE}:Longer"},
                f"'{HERE}:Longer' lacks 'limit'; it takes limit",
            ),
            (configured.Longer(3), "an object of type tests.configured.Longer has no name"),
            (functools.partial(configured.plain, 1), "a functools.partial of"),
        ],
    )
    def test_refused(self, data, message):
        assert message in problem(lambda: policy_spec(data))

    def test_a_policy_of_ones_own_class(self):
        class Own(ProxySize):
            pass

        assert "cannot be told from the outside: name a function or class that makes it" in problem(
            lambda: policy_spec(Own(1))
        )


stores = st.builds(
    StoreSpec,
    url=st.sampled_from(
        ["file:///tmp/a", "memory://", "redis://h:1/0?ttl=60", "redis://:${PW}@h", "${URL}"]
    ),
    name=st.none() | st.text(st.characters(blacklist_categories=["Cs"]), max_size=5),
    cache_bytes=st.integers(0, 10**9),
    integrity=st.none() | st.booleans(),
    max_bytes=st.none() | st.integers(0, 10**12),
    full_timeout=st.none() | st.floats(0, 1e6),
)
executors = st.sampled_from(
    [
        {"type": POOL, "max_workers": 3},
        {"type": "concurrent.futures:ProcessPoolExecutor", "life": "persistent"},
        {
            "type": "concurrent.futures:ProcessPoolExecutor",
            "mp_context": multiprocessing.get_context("spawn"),
        },
    ]
)


class TestStackSpec:
    @settings(deadline=None)
    @given(
        executors,
        st.none() | stores,
        st.none() | policies,
        st.fixed_dictionaries(
            {},
            optional={
                name: st.booleans()
                for name in ["ownership", "close_store", "lazy", "nested", "dedupe"]
            },
        ),
    )
    def test_round_trip(self, executor, store, policy, options):
        spec = StoreExecutorSpec(executor=executor, store=store, should_proxy=policy, **options)
        assert loaded(spec) == spec
        assert pickle.loads(pickle.dumps(spec)) == spec

    def test_serializers_and_groups(self, tmp_path):
        spec = StoreExecutorSpec(
            executor=POOL,
            store=f"file://{tmp_path}",
            serializers={"code": "reference", "data": ["json"]},
            task_group="survey",
            task_group_max_age=60,
        )
        assert loaded(spec) == spec
        with spec.build() as executor:
            assert executor.submit(pow, 2, 3).result() == 8
            assert executor.config() == spec

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"exector": POOL}, "exector: there is no such option; did you mean 'executor'?"),
            ({"version": 2}, "version: Input should be 1"),
            (
                {"lazy": "perhaps"},
                "lazy: Input should be a valid boolean, unable to interpret input",
            ),
            (
                {"store": "rdis://host"},
                "store.url: no connector for 'rdis://host': known schemes are",
            ),
            ({"store": {"max_bytes": "1 GB"}}, "store.url: is missing"),
            (
                {"store": {"url": "memory://", "full_timeout": -1}},
                "store.full_timeout: Input should be greater than or equal to 0",
            ),
            (
                {"store": {"url": "memory://", "cache_bytes": "much"}},
                "store.cache_bytes: not a size: 'much'",
            ),
            (
                {"executor": {"life": "forever"}},
                "executor: there is no kind 'forever'; there are 'context', 'persistent'",
            ),
            ({"executor": 3}, "executor: Input should be a valid dictionary"),
            (
                {"should_proxy": {"kind": "all", "policies": ["1 MB", "x"]}},
                "should_proxy.policies.1: 'x' is no policy",
            ),
            (
                {"serializers": {"data": ["jsn"]}},
                "serializers: data: there is no strategy 'jsn' for data",
            ),
            (
                {"task_group": "g"},
                "a task_group needs a store with nothing but a url, of a directory or of Redis",
            ),
            ({"task_group_max_age": 5}, "task_group_max_age is of a task_group, and there is none"),
        ],
    )
    def test_refused(self, data, message):
        with pytest.raises(ConfigError) as caught:
            StoreExecutor.from_config(data)
        assert message in str(caught.value)

    def test_places_are_those_of_the_data(self):
        adaptive = {"kind": "adaptive", "max_live_bytes": "much"}
        with pytest.raises(ConfigError) as caught:
            load({"should_proxy": {"kind": "any", "policies": [adaptive]}})
        assert [where for where, _ in caught.value.problems] == [
            "should_proxy.policies.0.max_live_bytes"
        ]

    def test_all_problems_at_once(self):
        with pytest.raises(ConfigError) as caught:
            load({"lazy": "perhaps", "store": "rdis://host", "executor": {"max_wrkers": 1}})
        assert len(caught.value.problems) == 3
        assert str(caught.value).startswith("this configuration has 3 problems:\n  executor: ")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_nothing_else(self):
        with pytest.raises(TypeError, match="a configuration is a path, a mapping or a Store"):
            load(3)


class TestFromConfig:
    @pytest.mark.parametrize("kind", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
    def test_drives_a_pool(self, kind):
        data = {
            "executor": {"type": f"concurrent.futures:{kind}", "max_workers": 1},
            "should_proxy": "1 kB",
        }
        with StoreExecutor.from_config(data) as executor:
            small, large = executor.submit(bytes, 5), executor.submit(bytes, 5000)
            assert not is_proxy(small.result())
            assert is_proxy(large.result())
            assert executor.config() == load(data)

    def test_the_same_as_by_hand(self, tmp_path):
        def make():
            return StoreExecutor(
                ThreadPoolExecutor(3),
                Store.from_url(
                    f"file://{tmp_path}", max_bytes="1 MB", full_timeout=3, cache_bytes=5
                ),
                ProxySize("1 kB") & ~ProxyType(str),
                ownership=False,
                lazy=False,
                nested=True,
                dedupe=False,
                close_store=False,
            )

        with make() as executor:
            spec = executor.config()
            executor.store.close()
        with loaded(spec).build() as again:
            assert again.config() == spec
            assert repr(again._context.policy) == "(ProxySize(1000) & ~ProxyType(str))"
            assert again.store.quota.limit == 1_000_000
            assert again._context.nested and not again._context.lazy
            assert not again._tasks.dedupe and not again._tasks.ownership
            again.store.close()

    @pytest.mark.parametrize("url", [None, "memory://", "file://"])
    def test_stores(self, url, tmp_path):
        with StoreExecutor(ThreadPoolExecutor(1), url, ProxyAlways()) as executor:
            spec = executor.config()
        assert spec.store == (None if url is None else StoreSpec(url=url))
        with StoreExecutor(
            ThreadPoolExecutor(1), f"file://{tmp_path}/a%20b?spill={tmp_path}/c"
        ) as executor:
            url = executor.config().store.url
        assert url == f"file://{tmp_path}/a%20b?" + f"spill={tmp_path}/c".replace("/", "%2F")

    def test_of_ours(self):
        with proxyexec.ProcessPoolExecutor(1) as executor:
            spec = executor.config()
        assert spec.executor.type == "proxyexec:ProcessPoolExecutor"

    def test_serializers(self):
        serializers = Serializers(code="reference", data="json")
        with StoreExecutor(ThreadPoolExecutor(1), serializers=serializers) as executor:
            spec = executor.config()
        assert loaded(spec) == spec
        assert spec.serializers.build() == serializers
        assert SerializersSpec(code="reference", data="json").build() == serializers

    def test_groups(self, tmp_path):
        with StoreExecutor(ThreadPoolExecutor(1), f"file://{tmp_path}", task_group="g") as executor:
            spec = executor.config()
        assert (spec.store, spec.task_group) == (StoreSpec(url=f"file://{tmp_path}"), "g")
        assert loaded(spec) == spec

    def test_parts_that_have_no_name(self):
        class Connector(type(Store.from_url("memory://").connector)):
            source = None

        store = Store("s", Connector(), serializer=Serializers(data="json"))
        with StoreExecutor(ThreadPoolExecutor(1), store, lambda obj: False) as executor:
            with pytest.raises(ConfigError) as caught:
                executor.config()
        message = str(caught.value)
        assert "should_proxy: " in message
        assert "is a lambda, which has no name; define it with def" in message
        assert "store: a connector of type" in message

    def test_a_live_one_is_described_but_not_loaded(self):
        with StoreExecutor(configured.Secretive("hunter2")) as executor:
            spec = executor.config()
        with pytest.raises(ValidationError, match="this was a live executor"):
            loaded(spec)

    def test_what_was_made_is_taken_down_if_the_rest_cannot_be(self):
        before = len(configured.Other.made)
        data = {
            "executor": {
                "type": f"{HERE}:Other",
                "submit_method": "run",
                "map_method": None,
                "shutdown_method": "stop",
            },
            "store": "redis://127.0.0.1:1",
        }
        with pytest.raises(Exception, match="127.0.0.1:1|needs"):
            StoreExecutor.from_config(data)
        if len(configured.Other.made) > before:
            assert configured.Other.made[-1].ended

    def test_what_making_it_raises(self):
        data = {"executor": {"type": f"{HERE}:Picky", "max_workers": 5}}
        with pytest.raises(ConfigError, match="executor: too many"):
            StoreExecutor.from_config(data)

    def test_asynchronous(self):
        import asyncio

        data = {"executor": {"type": POOL, "max_workers": 1}, "should_proxy": "1 kB"}

        async def use():
            async with AsyncStoreExecutor.from_config(data) as executor:
                assert executor.config() == load(data)
                return len(await executor.submit(bytes, 5000))

        assert asyncio.run(use()) == 5000
        with pytest.raises(ConfigError, match="lazy: AsyncStoreExecutor has no such option"):
            AsyncStoreExecutor.from_config({**data, "lazy": False})


SECRET = "hunter2"


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{SECRET}@host:6379/0",
            f"redis://user:{SECRET}@host:6379/0?ttl=60",
            f"redis://host/0?password={SECRET}",
            f"redis://user:{SECRET}?x@y@host",
            f"rediss://host/0?ssl_password={SECRET}&ttl=5",
        ],
    )
    def test_of_urls(self, url):
        spec = StoreSpec(url=url)
        assert spec.url == url
        stack = StoreExecutorSpec(executor=POOL, store=spec)
        for one in (spec, stack):
            shown = repr(one) + str(one) + one.model_dump_json() + repr(one.model_dump())
            assert SECRET not in shown
            assert "***" in shown
        with pytest.raises(ValidationError, match="the password of a URL was left out"):
            loaded(stack)

    def test_of_arguments(self):
        spec = ExecutorSpec(
            type=configured.secret_pool, password=SECRET, url=f"http://u:{SECRET}@h"
        )
        assert SECRET not in repr(spec) + spec.model_dump_json()
        assert spec.build().facts == (SECRET, f"http://u:{SECRET}@h")
        with pytest.raises(ValidationError, match="'password' was left out"):
            loaded(spec)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"password": 123456},
            {"passwords": [SECRET]},
            {"password": (SECRET, ("x", SECRET))},
            {"db-password": SECRET},
            {"dbpassword": SECRET},
            {"apiKey": SECRET},
            {"authkey": SECRET},
            {"auth": ["user", SECRET]},
            {"headers": {"Authorization": f"Bearer {SECRET}"}},
            {"credentials": {"login": "x", "pin": SECRET}},
            {"secret": {"$call": "builtins:str", "args": [SECRET]}},
            {"more": {"$call": f"{HERE}:log_in", "args": ["user", SECRET, SECRET]}},
            {"more": f"see redis://:{SECRET}@h"},
            {"more": f"${{SCHEME}}://:{SECRET}@h"},
        ],
    )
    def test_by_other_names(self, arguments):
        spec = CallableSpec(callable=configured.rest, args=[1], kwargs=arguments)
        for one in (spec, CustomPolicy(policy=f"{HERE}:rest", kwargs={"a": 1, **arguments})):
            shown = repr(one) + one.model_dump_json() + repr(one.model_dump())
            assert SECRET not in shown
            assert "123456" not in shown
            with pytest.raises(ValidationError, match="was left out when this was shown"):
                loaded(one)

    def test_by_place(self):
        spec = CallableSpec.of(configured.log_in, "user", SECRET, SECRET)
        assert SECRET not in repr(spec) + spec.model_dump_json()
        assert spec.model_dump()["args"] == ["user", "***", "***"]
        text = problem(lambda: CallableSpec.of(configured.log_in, "user", [SECRET]))
        assert text.startswith(f"argument 1 of '{HERE}:log_in' cannot be ['***']: ")
        text = problem(lambda: CallableSpec.of(configured.log_in, nobody=1))
        assert text.endswith("it takes user, password='***', *tokens")

    def test_of_types_that_quote(self, monkeypatch):
        monkeypatch.setenv("QUOTED", SECRET)
        spec = CallableSpec.of(configured.be_picky, "x${QUOTED}")
        with pytest.raises(ValueError, match=r"cannot be 'x\${QUOTED}': is refused$"):
            spec()

    def test_of_changes(self):
        spec = StoreSpec(url="memory://")
        with pytest.raises(ValidationError, match="frozen") as caught:
            spec.url = f"redis://:{SECRET}@h"
        assert SECRET not in str(caught.value) + repr(caught.value.errors())
        assert caught.value.__context__ is None

    def test_what_is_none(self):
        kwargs = {"max_tokens": 100, "token_ttl": 60, "use_password": True, "password": ""}
        kwargs |= {"password_file": "${FILE}", "author": "x", "monkey": "y", "compass": "z"}
        spec = CallableSpec(callable=configured.rest, args=[1], kwargs=kwargs)
        assert loaded(spec) == spec
        assert spec.model_dump()["kwargs"] == kwargs

    def test_of_what_is_no_configuration(self):
        with pytest.raises(TypeError, match="not of type list$"):
            load([f"redis://:{SECRET}@h"])

    @pytest.mark.parametrize(
        "data",
        [
            {"store": {"url": f"redis://:{SECRET}@h", "max_bytes": "x"}},
            {"executor": {"type": f"{HERE}:secret_pool", "password": 123456, "url": SECRET * 0}},
            {"store": {"url": f"redis://:{SECRET}@h", "nme": "x"}},
            {"store": f"rdis://:{SECRET}@h"},
            {"executor": f"redis://:{SECRET}@h"},
            {"should_proxy": f"redis://:{SECRET}@h"},
            {"should_proxy": {"kind": f"redis://:{SECRET}@h"}},
            {"should_proxy": {"kind": "type", "types": [f"redis://:{SECRET}@h"]}},
            {"store": {"url": "memory://", "max_bytes": f"redis://:{SECRET}@h"}},
            {"serializers": {"code": f"redis://:{SECRET}@h"}},
            {f"redis://:{SECRET}@h": 1},
            {"store": {"url": [f"redis://:{SECRET}@h"]}},
            {"executor": {"type": f"{HERE}:secret_pool", "password": SECRET, "workers": "x"}},
            {"executor": {"type": f"{HERE}:secret_pool", "passwort": SECRET}},
            {"executor": {"type": f"{HERE}:secret_pool", "password": [SECRET]}},
            {"executor": {"type": f"{HERE}:secret_pool", "workers": f"http://u:{SECRET}@h"}},
            {"executor": {"type": f"{HERE}:Secretive", "password": SECRET, "max_workers": []}},
        ],
    )
    def test_of_errors(self, data):
        with pytest.raises(ValidationError) as caught:
            StoreExecutorSpec(**data)
        error = caught.value
        shown = str(error) + repr(error) + repr(error.errors()) + error.json()
        assert SECRET not in shown
        assert "123456" not in shown
        with pytest.raises(ConfigError) as caught:
            load(data)
        assert SECRET not in str(caught.value) + repr(caught.value)
        assert caught.value.__cause__ is None

    def test_references(self, monkeypatch):
        data = {
            "executor": {
                "type": f"{HERE}:secret_pool",
                "password": "${POOL_PASSWORD}",
                "url": "x$${NOT_THIS}/${POOL_PASSWORD}",
                "workers": "${WORKERS}",
            },
        }
        spec = load(data)
        assert loaded(spec) == spec
        assert "${POOL_PASSWORD}" in repr(spec)
        with pytest.raises(ConfigError) as caught:
            spec.build()
        assert str(caught.value) == (
            "executor: the environment variable POOL_PASSWORD is not set, which ${POOL_PASSWORD} names"
        )
        monkeypatch.setenv("POOL_PASSWORD", SECRET)
        monkeypatch.setenv("WORKERS", "2")
        pool = spec.executor.build()
        assert pool.facts == (SECRET, "x${NOT_THIS}/" + SECRET)
        assert pool._max_workers == 2
        assert SECRET not in repr(spec) + spec.model_dump_json()
        monkeypatch.setenv("WORKERS", "two")
        with pytest.raises(ConfigError, match="argument 'workers' of .* cannot be '\\${WORKERS}'"):
            spec.build()

    def test_references_in_urls(self, monkeypatch):
        monkeypatch.setenv("PW", "p@s/s:w?rd")
        monkeypatch.setenv("WHOLE", "redis://:p%40@host")
        assert (
            StoreSpec(url="redis://u:${PW}@h/0").expanded_url()
            == "redis://u:p%40s%2Fs%3Aw%3Frd@h/0"
        )
        assert StoreSpec(url="${WHOLE}").expanded_url() == "redis://:p%40@host"
        spec = StoreSpec(url="redis://u:${PW}@h/0")
        assert loaded(spec) == spec
        assert "${PW}" in repr(spec)


FILES = {
    "json": """{
        "executor": {"type": "concurrent.futures:ThreadPoolExecutor", "max_workers": 2},
        "store": {"url": "memory://", "max_bytes": "10 MB"},
        "should_proxy": {"kind": "all", "policies": ["1 kB", {"kind": "type", "types": ["builtins:bytes"]}]}
    }""",
    "toml": """
        should_proxy.kind = "all"
        should_proxy.policies = ["1 kB", {kind = "type", types = ["builtins:bytes"]}]
        [executor]
        type = "concurrent.futures:ThreadPoolExecutor"
        max_workers = 2
        [store]
        url = "memory://"
        max_bytes = "10 MB"
    """,
    "yaml": """
executor:
  type: concurrent.futures:ThreadPoolExecutor
  max_workers: 2
store:
  url: memory://
  max_bytes: 10 MB
should_proxy:
  kind: all
  policies:
    - 1 kB
    - {kind: type, types: [builtins:bytes]}
""",
}


class TestFiles:
    @pytest.mark.parametrize("form", FILES)
    def test_forms(self, form, tmp_path):
        path = tmp_path / f"stack.{form}"
        path.write_text(FILES[form])
        spec = load(path)
        assert spec == load(json.loads(FILES["json"]))
        with StoreExecutor.from_config(str(path)) as executor:
            assert is_proxy(executor.submit(bytes, 5000).result())
            assert not is_proxy(executor.submit(str, "x" * 5000).result())
            assert executor.config() == spec

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            (
                "a.json",
                "{",
                "this is no JSON: Expecting property name enclosed in double quotes, line 1",
            ),
            ("a.json", "[]", "a configuration is a mapping, and this is a list"),
            ("a.toml", "a = ", "this is no TOML: "),
            ("a.yaml", "a: [1", "this is no YAML: "),
            ("a.yml", "", "a configuration is a mapping, and this is empty"),
            (
                "a.yaml",
                "!!python/object/apply:os.getpid []",
                "this is no YAML: could not determine a constructor for the tag",
            ),
            ("a.ini", "", "the name of a configuration ends in one of .json, .toml, .yaml, .yml"),
            ("a.json", '{"lazy": 7}', "lazy: Input should be a valid boolean"),
            ("a.json", '{"a": ' * 100_000, "this JSON is nested too deeply"),
        ],
    )
    def test_refused(self, name, text, message, tmp_path):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: {message}")

    def test_what_is_not_text(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="this is no JSON: UnicodeDecodeError"):
            load(path)

    @pytest.mark.parametrize(
        ("form", "text"),
        [("json", '{"lazy": false}'), ("toml", "lazy = false"), ("yaml", "lazy: false")],
    )
    def test_a_mark_of_the_byte_order(self, form, text, tmp_path):
        path = tmp_path / f"a.{form}"
        path.write_text(text, encoding="utf-8-sig")
        assert not load(path).lazy

    @pytest.mark.parametrize(
        ("form", "text"),
        [
            ("json", '{"store": {"url": "memory://", "url": "redis://h"}}'),
            ("yaml", "store:\n  url: memory://\n  url: redis://h"),
        ],
    )
    def test_keys_that_are_there_twice(self, form, text, tmp_path):
        path = tmp_path / f"a.{form}"
        path.write_text(text)
        with pytest.raises(ConfigError, match="the key url is there twice"):
            load(path)

    def test_merged_mappings(self, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(
            f"executor:\n  type: {HERE}:rest_pool\n  usual: &usual {{a: 1, b: 2}}\n"
            "  more: {<<: *usual, b: 3}\n"
        )
        kwargs = {"usual": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}}
        assert load(path).executor.kwargs == kwargs

    @pytest.mark.parametrize(
        "text",
        [
            "executor: &all {type: x, initargs: *all}",
            "a: &a [1, 1]\n"
            + "".join(
                f"{above}: &{above} [*{below}, *{below}]\n"
                for below, above in itertools.pairwise("abcdefghijklmnopqrstuvwxyz")
            ),
        ],
    )
    def test_aliases_that_say_too_much(self, text, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match="it has more than 100,000 values"):
            load(path)

    @pytest.mark.parametrize("sign", "!*%@&")
    def test_secrets_that_are_no_text_in_yaml(self, sign, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(f"executor:\n  password: {sign}{SECRET}\n  more: [\n")
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert SECRET not in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.toml")

    def test_secrets_of_broken_files(self, tmp_path):
        for form in ("json", "toml", "yaml"):
            path = tmp_path / f"a.{form}"
            path.write_text(f'{{"store": "redis://:{SECRET}@h", [')
            with pytest.raises(ConfigError) as caught:
                load(path)
            assert SECRET not in str(caught.value)
            assert caught.value.__cause__ is None


class TestEnvironment:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "stack.json"
        path.write_text(
            json.dumps(
                {
                    "executor": {"type": POOL, "max_workers": 2},
                    "store": {"url": "memory://", "max_bytes": "1 MB"},
                    "should_proxy": "1 kB",
                }
            )
        )
        return path

    def test_comes_before_a_file(self, file, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_STORE", "redis://cache:6379/0")
        monkeypatch.setenv("PROXYEXEC_SHOULD_PROXY", "5 MB")
        monkeypatch.setenv("PROXYEXEC_EXECUTOR__MAX_WORKERS", "7")
        monkeypatch.setenv("PROXYEXEC_LAZY", "false")
        spec = load(file)
        assert spec.store == StoreSpec(url="redis://cache:6379/0", max_bytes="1 MB")
        assert spec.should_proxy == SizePolicy(minimum=5_000_000)
        assert spec.executor.kwargs == {"max_workers": 7}
        assert not spec.lazy
        assert load(file, environment=False).lazy

    def test_fills_in_what_a_program_does_not_say(self, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_STORE", "redis://cache")
        monkeypatch.setenv("PROXYEXEC_STORE__MAX_BYTES", "2 GB")
        monkeypatch.setenv("PROXYEXEC_SHOULD_PROXY__KIND", "size")
        monkeypatch.setenv("PROXYEXEC_SHOULD_PROXY__MINIMUM", "3 kB")
        spec = load({"should_proxy": "1 kB"})
        assert spec.should_proxy == SizePolicy(minimum=1000)
        assert spec.store == StoreSpec(url="redis://cache", max_bytes="2 GB")
        assert load(StoreExecutorSpec(store="memory://")).store == StoreSpec(url="memory://")
        assert load().should_proxy == SizePolicy(minimum=3000)

    def test_another_executor_takes_no_arguments_of_the_one_before(self, file, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_EXECUTOR", f"{HERE}:secret_pool")
        monkeypatch.setenv("PROXYEXEC_EXECUTOR__PASSWORD", '"123"')
        monkeypatch.setenv("PROXYEXEC_EXECUTOR__WORKERS", "3")
        spec = load(file)
        assert spec.executor == ContextExecutor(
            type=f"{HERE}:secret_pool", password="123", workers=3
        )

    def test_json_in_a_variable(self, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_EXECUTOR", json.dumps({"type": POOL, "max_workers": 3}))
        monkeypatch.setenv("PROXYEXEC_SHOULD_PROXY", '{"kind": "not", "policy": "never"}')
        spec = load()
        assert spec.executor.kwargs == {"max_workers": 3}
        assert spec.should_proxy == NotPolicy(policy="never")

    def test_names_the_file(self, file, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_CONFIG", str(file))
        assert load() == load(file)
        assert load(environment=False) == StoreExecutorSpec()
        monkeypatch.setenv("PROXYEXEC_CONFIG", "")
        assert load() == StoreExecutorSpec()

    def test_a_number_for_a_password(self, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_EXECUTOR", f"{HERE}:rest_pool")
        monkeypatch.setenv("PROXYEXEC_EXECUTOR__PASSWORD", "123456")
        assert "123456" not in repr(load())

    def test_what_is_nested_too_deeply(self, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_EXECUTOR", "[" * 100_000)
        with pytest.raises(ConfigError, match="PROXYEXEC_EXECUTOR: executor: "):
            load()

    def test_errors_name_the_variables(self, file, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_STORE", f"rdis://:{SECRET}@h")
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file} with PROXYEXEC_STORE: store.url: no connector")
        assert SECRET not in str(caught.value)

    def test_empty_ones_say_nothing(self, file, monkeypatch):
        monkeypatch.setenv("PROXYEXEC_STORE", "")
        assert load(file).store.url == "memory://"


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout


class TestImports:
    def test_proxyexec_does_not_import_pydantic(self):
        code = "import proxyexec, proxyexec.pools, sys; print('pydantic' in sys.modules)"
        assert run(code).strip() == "False"

    def test_without_pydantic(self):
        code = """
import sys
sys.modules["pydantic"] = None
from proxyexec import StoreExecutor
from proxyexec.errors import MissingExtraError
try:
    StoreExecutor.from_config({})
except MissingExtraError as error:
    print(error)
"""
        assert run(code).strip().endswith("pip install 'proxyexec[config]'")
