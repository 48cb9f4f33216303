"""What is taken from a trace: what tasks waited for, what they were given, and by whom."""

from __future__ import annotations

import pytest

from proxyexec._trace import (
    Trace,
    TraceEnd,
    TraceEvicted,
    TraceHeader,
    TraceMoved,
    TraceResolved,
    TraceTask,
)
from proxyexec._tune_run import run_of

BIG = 1_000_000


def header(**changed):
    facts = {
        "proxyexec_trace": 1,
        "version": "1",
        "python": "3.11",
        "started": 0.0,
        "host": "here",
        "pid": 1,
        "executor": "concurrent.futures.process.ProcessPoolExecutor",
        "workers": 2,
        "crosses": True,
        "store": "file:///tmp/x",
        "scheme": "file",
        "policy": "ProxySize(100000)",
        "lazy": True,
        "nested": False,
        "dedupe": True,
        "max_bytes": 10**8,
    }
    return TraceHeader(**{**facts, **changed})


def moved(what="argument", name=0, size=BIG, path="inline", **changed):
    facts = {
        "type": "bytes",
        "exact": True,
        "decided_by": "",
        "serialize_s": 0.0,
        "put_s": 0.0,
        "key": "",
        "content": "",
        "part": False,
    }
    return TraceMoved(
        what=what, name=None if what == "result" else name, bytes=size, path=path,
        **{**facts, **changed},
    )  # fmt: skip


def task(name, submitted, ended, *objects, resolved=(), **changed):
    facts = {
        "function": "work",
        "calls": 1,
        "state": "done",
        "error": "",
        "started": submitted + 0.01,
        "worker": "here:2",
        "wait_s": 0.0,
        "unpack_s": 0.0,
        "run_s": max(ended - submitted - 0.02, 0.0),
        "pack_s": 0.0,
    }
    return TraceTask(
        t=ended, task=name, submitted=submitted, ended=ended, moved=objects,
        resolved=tuple(resolved), **{**facts, **changed},
    )  # fmt: skip


def read(key, seconds=0.5, *, t=None):
    return TraceResolved("bytes", BIG, seconds, seconds, key, t)


def run(*tasks, end=None, resolved=(), evicted=(), **changed):
    last = None if end is None else TraceEnd(end, 0, None)
    return run_of(Trace(header(**changed), list(tasks), list(resolved), list(evicted), end=last))


def test_what_the_program_took_between_tasks_is_kept():
    found = run(task("a", 1.0, 20.0), task("b", 3.0, 21.0), end=25.0)
    assert [one.think_s for one in found.steps] == [1.0, 2.0]
    assert found.tail_s == 4.0
    assert found.seconds == 25.0
    assert not any(one.after or one.barrier for one in found.steps)


def test_of_a_trace_that_was_full_the_time_until_then_counts():
    full = Trace(header(), [task("a", 0.0, 1.0)], full=2.0, end=TraceEnd(3600.0, 99, None))
    found = run_of(full)
    assert (found.seconds, found.tail_s) == (2.0, 1.0)


def test_what_storing_took_is_not_what_the_program_took():
    stored = moved(path="store", put_s=0.5, serialize_s=0.25, key="k")
    found = run(task("a", 1.0, 20.0), task("b", 3.0, 21.0, stored))
    assert found.steps[1].think_s == 2.0 - 0.75


def test_tasks_come_in_the_order_of_submission_whatever_ended_first():
    found = run(task("b", 3.0, 4.0, function="second"), task("a", 1.0, 20.0, function="first"))
    assert [one.function for one in found.steps] == ["first", "second"]


def test_a_task_that_is_given_a_stored_result_waits_for_that():
    found = run(
        task("a", 0.0, 1.0, moved("result", path="store", key="a"), function="make"),
        task("x", 0.5, 9.0),
        task("b", 5.0, 9.0, moved(path="reference", key="a")),
    )
    assert found.steps[2].given[0].maker == 0
    assert found.steps[2].after == (0,)
    assert not found.steps[2].detached


def test_a_task_that_goes_as_soon_as_its_argument_is_there_is_not_waited_for():
    found = run(
        task("a", 0.0, 1.0, moved("result", path="store", key="a"), function="make"),
        task("b", 1.0005, 2.0, moved(path="reference", key="a")),
        task("c", 1.5, 3.0),
    )
    assert [one.detached for one in found.steps] == [False, True, False]
    # The program has submitted that one long after the first, whatever happened in between.
    assert found.steps[2].think_s == pytest.approx(1.5)


def test_a_task_that_waits_for_its_argument_at_the_base_executor_is_not_waited_for():
    found = run(
        task("a", 0.0, 5.0, moved("result", path="store", key="a"), function="make"),
        task("b", 0.1, 6.0, moved(path="reference", key="a")),
        task("c", 0.2, 7.0),
    )
    assert [one.detached for one in found.steps] == [False, True, False]
    assert found.steps[1].after == (0,)
    assert found.steps[2].after == ()
    assert found.steps[2].think_s == pytest.approx(0.2)


def test_who_submits_as_soon_as_one_has_ended_has_waited_for_it():
    found = run(task("a", 0.0, 4.0), task("x", 0.1, 9.0), task("b", 4.001, 9.0))
    assert found.steps[2].after == (0,)
    assert found.steps[2].think_s == pytest.approx(0.001)
    # An end long before tells nothing.
    found = run(task("a", 0.0, 1.0), task("x", 0.1, 9.0), task("b", 4.0, 9.0))
    assert found.steps[2].after == ()
    assert found.steps[2].think_s == pytest.approx(3.9)


def test_who_submits_when_all_have_ended_has_waited_for_all():
    found = run(task("a", 0.0, 4.0), task("b", 0.1, 5.0), task("c", 8.0, 9.0))
    assert found.steps[2].barrier
    assert found.steps[2].think_s == pytest.approx(3.0)


def test_what_the_client_fetched_meanwhile_is_not_what_the_program_took():
    fetched = [read("a", 0.25, t=5.5)]
    found = run(task("a", 0.0, 5.0), task("b", 8.0, 9.0), resolved=fetched, end=10.0)
    assert found.steps[1].think_s == pytest.approx(3.0 - 0.5)
    assert found.tail_s == pytest.approx(1.0)


def test_results_that_come_back_to_go_out_again_are_known_by_their_looks():
    made = [
        task(f"m{n}", n / 10, 1 + n / 10, moved("result", size=BIG), function="make")
        for n in range(4)
    ]
    used = [
        task(f"u{n}", 5 + n / 10, 6.0, moved(size=BIG + 100, content=f"{n}"), function="use")
        for n in range(4)
    ]
    found = run(*made, *used)
    assert [one.given[0].maker for one in found.steps[4:]] == [0, 1, 2, 3]
    assert [one.returned[0].is_read for one in found.steps[:4]] == [False] * 4
    # One that everybody gets is one.
    shared = [
        task(f"u{n}", 5 + n / 10, 6.0, moved(size=BIG, content="same"), function="use")
        for n in range(4)
    ]
    found = run(*made, *shared)
    assert [one.given[0].maker for one in found.steps[4:]] == [0] * 4


def test_what_only_looks_like_results_now_and_then_is_none():
    # A program that sends images of a size, and gets such back.
    tasks = [
        task(
            f"{n}",
            n / 10,
            n / 10 + 0.25,
            moved(content=f"{n}"),
            moved("result"),
            function=["filter", "paint"][n % 2],
        )
        for n in range(8)
    ]
    found = run(*tasks)
    assert {one.given[0].maker for one in found.steps[:2]} == {None}
    first = [one.given[0].maker for one in found.steps if one.function == "filter"]
    assert first == [None] * 4
    assert all(one.returned[0].is_read for one in found.steps)


def test_small_objects_and_results_of_the_same_function_are_no_results():
    alike = [
        task("a", 0.0, 1.0, moved("result", size=100), function="make"),
        task("b", 2.0, 3.0, moved(size=100), function="use"),
        task("c", 4.0, 5.0, moved("result"), function="again"),
        task("d", 6.0, 7.0, moved(), moved("result"), function="again"),
    ]
    assert {item.maker for one in run(*alike).steps for item in one.given} == {None}


def test_fetching_is_no_part_of_running():
    lazy = run(task("a", 0.0, 9.0, moved(path="store", key="k"), resolved=[read("k")], run_s=5.0))
    assert lazy.steps[0].run_s == 4.0
    before = run(
        task("a", 0.0, 9.0, moved(path="store", key="k"), resolved=[read("k")], run_s=5.0,
             unpack_s=1.0),
        lazy=False,
    )  # fmt: skip
    assert before.steps[0].run_s == 5.0


def test_what_nobody_fetched_is_not_read():
    tasks = [
        task("a", 0.0, 1.0, moved(path="store", key="k"), moved("result", path="store", key="a"))
    ]
    [step] = run(*tasks).steps
    assert not step.given[0].is_read
    assert not step.returned[0].is_read
    [step] = run(*tasks, resolved=[read("a", t=2.0)], lazy=False).steps
    assert step.given[0].is_read
    assert step.returned[0].is_read


def test_how_long_results_stayed_is_kept():
    found = run(
        task("a", 0.0, 1.0, moved("result", path="store", key="a")),
        evicted=[TraceEvicted(4.0, "a", BIG, 3.0, resolved=False)],
    )
    assert found.steps[0].held_s == 3.0
    assert run(task("a", 0.0, 1.0)).steps[0].held_s is None


def test_kinds_are_told_by_how_long_pickling_takes():
    slow = moved(type="shop.Order", serialize_s=0.01, size=BIG)
    late = moved(type="shop.Image", serialize_s=0.5, size=BIG)
    fast = moved(type="shop.Image", serialize_s=1e-5, size=BIG)
    unknown = moved(type="numpy.ndarray", exact=False)
    small = moved(type="dict", size=100, serialize_s=1e-6)
    [step] = run(task("a", 0.0, 1.0, slow, late, fast, unknown, small)).steps
    kinds = [one.kind for one in step.given]
    assert kinds == ["pickle", "buffers", "buffers", "buffers", "pickle"]
    assert [one.dump_s for one in step.given] == [0.01, 0.0, 0.0, 0.0, 1e-6]


def test_parts_belong_to_the_object_before_them():
    [step] = run(
        task(
            "a", 0.0, 1.0,
            moved(size=100, type="dict"),
            moved(path="store", key="p", part=True, type="numpy.ndarray"),
            moved(name=1, size=7),
        )
    ).steps  # fmt: skip
    assert [(one.what, one.bytes, len(one.parts)) for one in step.given] == [
        ("argument 0", 100, 1),
        ("argument 1", 7, 0),
    ]
    assert step.given[0].whole_bytes == BIG + 100


def test_what_a_callable_carries_are_parts_that_were_not_stored():
    def carrying(place, content):
        return moved(
            *("function", None, 1000),
            type="functools.partial",
            content=f"whole {place}",
            carries=(
                ("list", 500, content),
                ("numpy.ndarray", 300, ""),
                ("set", 300, "too much"),
                ("dict", 100, ""),
            ),
            serialize_s=0.06,
        )

    found = run(
        task("a", 0.0, 1.0, carrying(1, "one"), unpack_s=0.12),
        task("b", 0.1, 1.0, carrying(2, "one"), unpack_s=0.12),
    )
    first, second = (step.given[0] for step in found.steps)
    assert (first.bytes, first.whole_bytes) == (100, 1000)
    assert [(one.type, one.bytes, one.path, one.kind) for one in first.parts] == [
        ("list", 500, "inline", "pickle"),
        ("numpy.ndarray", 300, "inline", "buffers"),
        ("dict", 100, "inline", "pickle"),
    ]
    assert [one.content for one in first.parts] == ["one", "whole 1/1", "whole 1/3"]
    # The same in another callable.
    assert [one.content for one in second.parts] == ["one", "whole 2/1", "whole 2/3"]
    # By what was pickled in it.
    every = first, *first.parts
    assert [one.dump_s for one in every] == pytest.approx([0.06 / 7, 0.3 / 7, 0, 0.06 / 7])
    assert [one.load_s for one in every] == pytest.approx([0.12 / 7, 0.6 / 7, 0, 0.12 / 7])


def test_workers_are_those_that_say_so_or_were_seen():
    assert run(task("a", 0.0, 1.0), workers=5).workers == 5
    beside = [
        task("a", 0.0, 1.0, worker="there:1"),
        task("b", 0.1, 1.0, worker="there:1"),
        task("c", 0.2, 1.0, worker="there:2"),
    ]
    assert run(*beside, workers=None).workers == 3
    one_by_one = [task(f"{n}", n, n + 0.5) for n in range(3)]
    assert run(*one_by_one, workers=None).workers == 1
    # A cluster that takes any number of tasks.
    assert run(*one_by_one, workers=10_000).workers == 1


def test_workers_that_start_late_do_so_again():
    found = run(task("a", 1.0, 9.0, started=3.0), task("b", 1.1, 9.0, started=1.2, worker="here:3"))
    assert found.delays == pytest.approx((0.1, 2.0))
    # Of other machines, the clocks are others.
    found = run(task("a", 1.0, 9.0, started=3.0, worker="there:2"))
    assert found.delays == (0.0, 0.0)


def test_a_task_that_failed_took_what_others_took():
    found = run(
        task("a", 0.0, 9.0, run_s=2.0),
        task("b", 0.0, 9.0, run_s=None, state="failed", started=None, worker=""),
        task("c", 0.0, 9.0, state="cancelled", run_s=None),
    )
    assert [one.run_s for one in found.steps] == [2.0, 2.0]


def test_a_trace_without_tasks_is_none_to_replay():
    with pytest.raises(ValueError, match="no task in this trace"):
        run()


def test_what_was_pickled_for_the_trace_only_is_known():
    objects = moved(serialize_s=0.5), moved("result", serialize_s=0.25)
    [step] = run(task("a", 1.0, 9.0, *objects), policy="ProxyNever()").steps
    assert (step.observed_s, step.worker_observed_s) == (0.5, 0.25)
    [step] = run(task("a", 1.0, 9.0, *objects)).steps
    assert (step.observed_s, step.worker_observed_s) == (0.0, 0.0)


def test_a_callable_that_was_serialized_once_for_several_tasks_is_that_of_a_map():
    def function(content, serialize_s):
        return moved("function", None, content=content, serialize_s=serialize_s)

    found = run(
        task("a", 0.0, 1.0, function("one", 0.1)),
        task("b", 0.1, 1.0, function("one", 0.0)),
        task("c", 0.2, 1.0, function("other", 0.1)),
        task("d", 0.3, 1.0, function("other", 0.1)),
    )
    assert [step.given[0].is_mapped for step in found.steps] == [True, True, False, False]


def test_cores_are_shared_where_workers_are_on_the_clients_machine():
    assert run(task("a", 0.0, 1.0), cores=2).cores == 2
    assert run(task("a", 0.0, 1.0, worker="there:2"), cores=2).cores is None
    assert run(task("a", 0.0, 1.0)).cores is None


def test_it_is_known_what_was_sent_before_a_worker_began():
    found = run(
        task("a", 0.0, 5.0, moved(size=BIG), started=2.0),
        task("b", 0.5, 5.0, moved(size=3 * BIG), started=4.0, worker="here:3"),
        task("c", 3.0, 5.0, moved(size=BIG), moved("result", size=BIG), started=4.5),
    )
    assert found.delays == (2.0, 3.5)
    assert found.ahead == (4 * BIG, 5 * BIG)


def test_a_result_that_is_sent_on_inline_is_known_by_its_task():
    found = run(
        task("a", 0.0, 1.0, moved("result", type="dict", size=5_000)),
        task("b", 1.5, 2.0, moved(type="dict", size=5_100, key="a"), function="other"),
    )
    assert found.steps[1].given[0].maker == 0
    assert found.steps[1].after == (0,)
    # Nobody else looks at it, as far as can be told.
    assert not found.steps[0].returned[0].is_read


def test_of_what_workers_pass_on_it_is_known_how_it_was_pickled_where_it_was_made():
    made = moved("result", type="dict", size=BIG, serialize_s=0.2)
    passed = moved(name=None, type="dict", size=BIG, key="a")
    found = run(task("a", 0.0, 1.0, made), task("b", 1.0, 2.0, passed, unpack_s=0.5))
    item = found.steps[1].given[0]
    assert (item.maker, item.dump_s, item.load_s) == (0, 0.2, None)


def test_a_task_that_no_worker_was_given_is_left_out():
    # Its argument could not be had while another one was under way.
    found = run(
        task("a", 0.0, 9.0, function="slow"),
        task("b", 0.1, 1.0, state="failed", run_s=None),
        task("c", 1.0, 1.0, state="failed", run_s=None, started=None, worker=""),
        task("d", 2.0, 3.0),
    )
    assert [one.function for one in found.steps] == ["slow", "work", "work"]
    assert all(number > one for number, step in enumerate(found.steps) for one in step.after)


def test_nothing_waits_for_what_came_with_it_or_later():
    # By a clock that is too coarse to tell.
    together = [task(f"{n}", 1.0, 1.0, moved(key=f"{n + 1}")) for n in range(3)]
    found = run(task("long", 0.0, 9.0), *together)
    assert [one.after for one in found.steps] == [()] * 4
    assert {item.maker for step in found.steps for item in step.given} == {None}
    made = task("m", 5.0, 5.0, moved("result"), function="make")
    assert run(task("u", 5.0, 6.0, moved()), made).steps[0].given[0].maker is None
