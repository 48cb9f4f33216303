"""Replays of runs in worlds whose costs are known: what they come to is known exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxyexec._costs import CostModel, Curve
from proxyexec._tune_candidates import AdaptiveRule, PlainRule, RecordedRule, _by_size, never
from proxyexec._tune_prices import Prices
from proxyexec._tune_replay import replay
from proxyexec._tune_result import TunePolicy
from proxyexec._tune_run import Item, Run, Step

ALWAYS = PlainRule(TunePolicy("always", "ProxyAlways()", "always"))
AS_IT_WAS = RecordedRule(TunePolicy("present", "present"))

MB = 1_000_000


class World:
    """A second for each MB inline, in each direction; putting and getting take a quarter of that.

    Args:
        task: what each task takes.
        beside: what an object that is stored takes beside that, a MB.
        latency: for how long each task is on its way.
    """

    def __init__(self, task=0.0, beside=0.0, latency=0.0):
        self.task = task
        self.latency = latency
        self.beside = beside

    def send(self, kind, size):
        return size / MB

    send_back = send

    def put(self, kind, size):
        return size / MB / 4

    get = get_again = put

    def beside_stored(self, kind, size):
        return size / MB * self.beside

    beside_found = beside_stored

    def beside_result(self, kind, size, *, read):
        return size / MB * self.beside if read else 0.0

    def loading(self, size, dump_s):
        return 2 * dump_s


def argument(size, content="", **facts):
    return Item("argument 0", "bytes", size, "buffers", content=content, **facts)


def result(size, **facts):
    return Item("result", "bytes", size, "buffers", **facts)


def run(*steps, workers=1, delays=None, tail_s=0.0, **facts):
    return Run(steps, workers, delays or (0.0,) * workers, tail_s, 0.0, **facts)


def step(*given, returns=(), run_s=0.0, think_s=0.0, function="work", **facts):
    return Step(function, given, tuple(returns), run_s, think_s, **facts)


def test_what_is_inline_moves_one_by_one_and_keeps_the_worker_waiting():
    two = run(*[step(argument(2 * MB), run_s=3.0)] * 2, workers=2)
    outcome = replay(two, never(), World())
    # The second is sent from 2 to 4, and runs until 7.
    assert outcome.seconds == 7.0
    assert outcome.inline_bytes == 4 * MB
    assert (outcome.stored_bytes, outcome.peak_bytes, outcome.fetched_bytes) == (0, 0, 0)


def test_what_is_stored_is_stored_by_the_client_and_fetched_by_workers_at_the_same_time():
    two = run(*[step(argument(4 * MB), run_s=3.0)] * 2, workers=2)
    outcome = replay(two, ALWAYS, World())
    # Stored until 1 and until 2, then fetched for a second: the last one runs from 3 to 6.
    assert outcome.seconds == 6.0
    assert (outcome.stored_bytes, outcome.stored_objects) == (8 * MB, 2)
    assert outcome.fetched_bytes == 8 * MB
    assert outcome.inline_bytes == 0
    assert outcome.peak_bytes == 8 * MB


def test_each_task_takes_the_base_executor_some_time():
    three = run(*[step(run_s=1.0)] * 3, workers=3)
    assert replay(three, never(), World(task=0.5)).seconds == 2.5


def test_tasks_wait_for_workers():
    four = run(*[step(run_s=1.0)] * 4, workers=2)
    assert replay(four, never(), World()).seconds == 2.0


def test_workers_may_be_late():
    two = run(*[step(run_s=1.0)] * 2, workers=2, delays=(0.0, 5.0))
    assert replay(two, never(), World()).seconds == 2.0
    assert replay(run(step(run_s=1.0), delays=(5.0,)), never(), World()).seconds == 6.0


def test_the_same_content_is_stored_once_while_it_is_there():
    shared = run(*[step(argument(4 * MB, "same"), run_s=10.0)] * 3, workers=3)
    outcome = replay(shared, ALWAYS, World())
    assert (outcome.stored_bytes, outcome.found_bytes) == (4 * MB, 8 * MB)
    assert outcome.peak_bytes == 4 * MB
    # A second to store it, a second to fetch it.
    assert outcome.seconds == 1.0 + 1.0 + 10.0


def test_what_all_take_from_each_other_comes_one_after_the_other():
    two = run(*[step(argument(4 * MB), run_s=3.0)] * 2, workers=2)
    # Stored until 1 and until 2, then handed over until 3 and 5, fetched until 6.
    assert replay(two, ALWAYS, World(beside=0.5)).seconds == 9.0
    returned = run(*[step(returns=[result(4 * MB)])] * 2, workers=2)
    # Stored until 1, handed over until 3 and 5, fetched until 6.
    assert replay(returned, ALWAYS, World(beside=0.5)).seconds == 6.0


def test_the_same_content_is_stored_again_once_it_is_gone():
    one_by_one = [
        step(argument(4 * MB, "same"), run_s=1.0),
        step(argument(4 * MB, "same"), run_s=1.0, after=(0,), barrier=True),
    ]
    outcome = replay(run(*one_by_one), ALWAYS, World())
    assert (outcome.stored_bytes, outcome.found_bytes) == (8 * MB, 0)
    assert outcome.peak_bytes == 4 * MB


def test_without_deduplication_everything_is_stored():
    shared = run(*[step(argument(4 * MB, "same"), run_s=10.0)] * 3, workers=3, dedupe=False)
    assert replay(shared, ALWAYS, World()).stored_bytes == 12 * MB


def test_a_result_that_is_passed_on_goes_past_the_client():
    chain = run(
        step(returns=[result(4 * MB, is_read=False)], run_s=1.0),
        step(argument(4 * MB, maker=0), run_s=1.0, after=(0,), detached=True),
    )
    stored = replay(chain, ALWAYS, World())
    # Stored for a second, fetched for one.
    assert stored.seconds == 4.0
    assert (stored.stored_bytes, stored.inline_bytes) == (4 * MB, 0)
    inline = replay(chain, never(), World())
    assert inline.seconds == 1 + 4 + 4 + 1
    assert inline.inline_bytes == 8 * MB
    # Where workers give it to each other, as those of a cluster do.
    directly = replay(chain, never(), World(), directly=True)
    # By the same one: it has it.
    assert directly.seconds == 2.0


def test_what_nobody_reads_is_not_fetched():
    unread = run(step(argument(4 * MB, is_read=False), returns=[result(4 * MB, is_read=False)]))
    outcome = replay(unread, ALWAYS, World())
    assert outcome.fetched_bytes == 0
    assert outcome.seconds == 1.0 + 1.0


def test_what_the_client_reads_it_fetches():
    read = run(step(returns=[result(4 * MB)]))
    outcome = replay(read, ALWAYS, World())
    assert outcome.seconds == 2.0
    assert outcome.fetched_bytes == 4 * MB


def test_results_that_are_fetched_at_once_are_gone_at_once():
    steps = [step(returns=[result(MB)], run_s=10.0)] * 5
    assert replay(run(*steps, lazy=False), ALWAYS, World()).peak_bytes == MB
    # Proxies may be held until the end.
    assert replay(run(*steps, lazy=True), ALWAYS, World()).peak_bytes == 5 * MB
    held = [step(returns=[result(MB)], run_s=10.0, held_s=0.0)] * 5
    assert replay(run(*held, lazy=True), ALWAYS, World()).peak_bytes == MB


def test_the_program_thinks_and_waits_as_it_did():
    thinking = run(step(run_s=1.0), step(run_s=1.0, think_s=5.0), tail_s=2.0)
    assert replay(thinking, never(), World()).seconds == 5.0 + 1.0 + 2.0
    waiting = run(step(run_s=1.0), step(run_s=1.0, think_s=5.0, after=(0,)))
    assert replay(waiting, never(), World()).seconds == 1.0 + 5.0 + 1.0
    for_all = run(*[step(run_s=1.0)] * 2, step(run_s=1.0, barrier=True), workers=2)
    assert replay(for_all, never(), World()).seconds == 2.0


def test_pickling_is_done_wherever_an_object_goes():
    pickled = Item("argument 0", "dict", 4 * MB, "pickle", dump_s=0.5, load_s=0.25)
    assert replay(run(step(pickled)), ALWAYS, World()).seconds == 0.5 + 1.0 + 1.0 + 0.25
    assert replay(run(step(pickled)), never(), World()).seconds == 0.5 + 4.0 + 0.25
    # Where nobody saw how long loading takes, the world knows.
    unseen = Item("argument 0", "dict", 4 * MB, "pickle", dump_s=0.5)
    assert replay(run(step(unseen)), never(), World()).seconds == 0.5 + 4.0 + 1.0


def test_what_was_pickled_for_the_trace_counts_where_the_run_itself_is_replayed():
    pickled = Item("argument 0", "dict", 4 * MB, "pickle", dump_s=0.5, load_s=0.0)
    traced = run(step(pickled, observed_s=0.5, worker_observed_s=0.25))
    assert replay(traced, AS_IT_WAS, World(), observed=True).seconds == 0.5 + 0.5 + 4.0 + 0.25
    assert replay(traced, AS_IT_WAS, World()).seconds == 0.5 + 4.0


def test_parts_are_judged_by_themselves():
    part = Item("argument 0", "numpy.ndarray", 4 * MB, "buffers", path="store")
    whole = Item("argument 0", "dict", 100, "buffers", parts=(part,))
    by_size = replay(run(step(whole)), _by_size(MB), World())
    assert (by_size.stored_bytes, by_size.stored_objects) == (4 * MB, 1)
    assert by_size.inline_bytes == 100
    assert replay(run(step(whole)), never(), World()).inline_bytes == 4 * MB + 100


def test_what_was_done_can_be_done_again():
    stored = argument(4 * MB, path="store")
    inline = argument(4 * MB, path="inline")
    outcome = replay(run(step(stored), step(inline)), AS_IT_WAS, World())
    assert (outcome.stored_bytes, outcome.inline_bytes) == (4 * MB, 4 * MB)


def test_a_timeline_says_who_was_busy_when():
    two = run(step(argument(4 * MB), returns=[result(4 * MB)], run_s=3.0), tail_s=1.0)
    timeline = replay(two, ALWAYS, World(), timeline=True).timeline
    assert [(one.kind, one.lane, one.start, one.end) for one in timeline.spans] == [
        ("put", "client", 0.0, 1.0),
        ("get", "worker 1", 1.0, 2.0),
        ("run", "worker 1", 2.0, 5.0),
        ("put", "worker 1", 5.0, 6.0),
        ("get", "client", 6.0, 7.0),
    ]
    assert timeline.seconds == 8.0
    assert timeline.live == ((0.0, 4 * MB), (6.0, 4 * MB), (8.0, 0))
    assert {one.task for one in timeline.spans} == {0}
    assert replay(two, ALWAYS, World()).timeline is None


def test_replays_are_the_same_each_time():
    steps = [step(argument(n * 1000, f"{n % 3}"), run_s=n / 7 % 1) for n in range(50)]
    many = run(*steps, workers=3)
    first, second = (replay(many, _by_size(20_000), World(), timeline=True) for _ in range(2))
    assert first == second


def line(base, slope):
    """Straight, in seconds and seconds a MB."""
    return Curve(((0, base), (10 * MB, base + 10 * slope)))


def model(**changed):
    curves = {}
    for kind in ("buffers", "pickle"):
        curves |= {
            ("argument", kind, "inline"): line(0.1, 1.0),
            ("result", kind, "inline"): line(0.1, 1.0),
            ("argument", kind, "store"): line(0.2, 0.4),
            ("result", kind, "store"): line(0.2, 0.4),
            ("argument", kind, "put"): line(0.05, 0.3),
            ("argument", kind, "get"): line(0.05, 0.1),
        }
    return CostModel({**curves, **changed})


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("size", [MB, 5 * MB])
def test_replaying_what_was_measured_takes_as_long_as_that(workers, size):
    costs = model()
    prices = Prices(costs, workers)
    used = min(workers, 4)
    tasks = 2 * used
    for given, returned, side in (
        ([argument(size)], [], "argument"),
        ([], [result(size)], "result"),
    ):
        batch = run(*[step(*given, returns=returned)] * tasks, workers=used)
        inline = replay(batch, never(), prices).seconds / tasks
        assert inline == pytest.approx(costs.seconds(side, "buffers", "inline", size))
        stored = replay(batch, ALWAYS, prices).seconds / tasks
        assert stored == pytest.approx(costs.seconds(side, "buffers", "store", size), rel=0.2)


def test_prices_know_no_time_below_zero():
    nothing = CostModel(
        {
            (side, kind, path): Curve(((0, 0.0),))
            for side in ("argument", "result")
            for kind in ("buffers", "pickle")
            for path in ("inline", "store", "put", "get", "found")
        }
    )
    prices = Prices(nothing, 2)
    for kind in ("buffers", "pickle"):
        for of in (prices.send, prices.put, prices.get, prices.beside_stored, prices.beside_found):
            assert of(kind, MB) == 0
    assert replay(run(step(argument(MB))), ALWAYS, prices).seconds == 0


def test_what_is_larger_than_was_measured_is_as_other_kinds_are():
    short = Curve(((0, 0.1), (MB, 0.2)))
    bent = Curve(((0, 0.1), (MB, 0.2), (4 * MB, 5.2)))
    costs = model().curves | {
        ("argument", "pickle", "inline"): short,
        ("argument", "buffers", "inline"): bent,
    }
    prices = Prices(CostModel(costs), 2)
    assert prices.send("pickle", 4 * MB) == pytest.approx(5.1)
    assert prices.send("pickle", MB) == pytest.approx(0.1)


def test_too_few_costs_are_an_error():
    with pytest.raises(ValueError, match="too little was measured"):
        Prices(CostModel({}), 2)


def test_an_adaptive_policy_goes_by_costs_and_by_what_repeats():
    costs = model()
    repeated = run(*[step(argument(100_000, "same"), run_s=1.0)] * 5, workers=2)
    rule = AdaptiveRule.of(costs, repeated)
    limit = rule.arguments.of("buffers")
    assert rule.wants(argument(limit), repeated=False, found=False)
    assert not rule.wants(argument(limit - 1), repeated=False, found=False)
    assert rule.arguments.of_repeated("buffers") < limit
    assert rule.wants(argument(rule.arguments.of_repeated("buffers")), repeated=True, found=False)
    unknown = result(limit, function="never called")
    assert not rule.wants(unknown, repeated=False, found=False)


def test_a_worker_gets_what_it_has_made_itself():
    makers = [step(returns=[result(4 * MB, is_read=False)], run_s=1.0) for _ in range(2)]
    users = [
        step(argument(4 * MB, maker=maker), run_s=1.0, after=(maker,), detached=True)
        for maker in (1, 0)
    ]
    pairs = run(*makers, *users, workers=2)
    assert replay(pairs, never(), World(), directly=True).seconds == 2.0
    # One that has made none of it is given it by the other.
    both = step(*users[0].given, *users[1].given, run_s=1.0, after=(0, 1), detached=True)
    joined = replay(run(*makers, both, workers=2), never(), World(), directly=True)
    assert joined.seconds == 1 + 1 + 1
    assert joined.inline_bytes == 2 * 4 * MB + 4 * MB


def test_with_too_few_cores_all_are_slower_alike():
    four = [step(run_s=1.0)] * 4
    assert replay(run(*four, workers=4), never(), World()).seconds == 1.0
    assert replay(run(*four, workers=4, cores=4), never(), World()).seconds == 1.0
    crowded = replay(run(*four, workers=4, cores=2), never(), World())
    assert crowded.seconds == 2.0
    assert crowded.running_s == 4 * 2.0
    # Those who wait need none.
    assert replay(run(*four, workers=2, cores=2), never(), World()).seconds == 2.0


def test_sending_takes_time_from_functions_that_run():
    first = step(run_s=4.0)
    second = step(argument(2 * MB), run_s=1.0)
    alone = replay(run(first, second, workers=2, cores=8), never(), World())
    crowded = replay(run(first, second, workers=2, cores=1), never(), World())
    assert alone.seconds == 4.0
    # Each moment counts for as much as is needed then; the sum of it is done by one core.
    assert crowded.seconds == pytest.approx(4.0 + 1.6 * 2.0 + 1.0)


def test_tasks_are_on_their_way_there_and_back():
    chain = run(step(returns=[result(0)]), step(argument(0, maker=0), after=(0,)))
    assert replay(chain, never(), World(latency=1.0)).seconds == 2.0
    # Meanwhile, workers do something else.
    assert replay(run(*[step(run_s=1.0)] * 4), never(), World(latency=1.0)).seconds == 5.0


def test_the_callable_of_a_map_is_found_without_looking_for_it():
    class Dear(World):
        def beside_found(self, kind, size):
            return 100.0

        def get_again(self, kind, size):
            return 0.0

    function = Item("function", "partial", 4 * MB, "buffers", content="one", is_mapped=True)
    three = run(*[step(function, run_s=1.0)] * 3)
    outcome = replay(three, ALWAYS, Dear())
    # Stored for a second, and fetched once.
    assert outcome.seconds == 1 + 1 + 3
    assert (outcome.stored_objects, outcome.stored_bytes) == (1, 4 * MB)
    assert outcome.fetched_bytes == 3 * 4 * MB
    assert replay(replace(three, dedupe=False), ALWAYS, Dear()).stored_objects == 1


def test_what_the_callable_of_a_map_carries_is_stored_by_itself():
    model = Item("function", "Model", 3 * MB, "buffers", content="one/0", is_mapped=True)
    function = Item(
        *("function", "functools.partial", MB, "buffers"),
        content="one",
        is_mapped=True,
        parts=(model,),
    )
    three = run(*[step(function, run_s=1.0)] * 3)
    models = PlainRule(TunePolicy("models", "ProxyType(Model)"), types=frozenset({"Model"}))
    for rule, stored, inline in ((models, 3, 3), (ALWAYS, 4, 0), (never(), 0, 12)):
        outcome = replay(three, rule, World())
        assert (outcome.stored_bytes, outcome.inline_bytes) == (stored * MB, inline * MB)
    # A callable without it is too small to be stored by any policy.
    small = replace(function, bytes=1000)
    assert replay(run(step(small, run_s=1.0)), ALWAYS, World()).inline_bytes == 1000
    # Given as an argument, it is one.
    argued = replace(small, what="argument 0", parts=(), path="store")
    for rule in (ALWAYS, AS_IT_WAS):
        assert replay(run(step(argued, run_s=1.0)), rule, World()).stored_bytes == 1000


def test_what_several_callables_carry_is_stored_once():
    def function(number):
        return Item(
            *("function", "functools.partial", 1000, "buffers"),
            content=f"whole {number}",
            parts=(Item("function", "Model", MB, "buffers", content="the same"),),
        )

    models = PlainRule(TunePolicy("models", "ProxyType(Model)"), types=frozenset({"Model"}))
    outcome = replay(run(*(step(function(n), run_s=1.0) for n in range(3))), models, World())
    assert (outcome.stored_bytes, outcome.found_bytes) == (MB, 2 * MB)


def test_what_parts_that_are_not_stored_take_is_taken_by_the_whole():
    part = Item("argument 0", "Model", MB, "pickle", dump_s=2.0, load_s=3.0)
    whole = Item("argument 0", "dict", MB, "pickle", dump_s=0.5, load_s=0.25, parts=(part,))
    one = run(step(whole))
    assert replay(one, never(), World()).seconds == 2 + 2.5 + 3.25


def test_costs_of_moving_can_be_other_than_measured():
    costs = model()
    plain, scaled = Prices(costs, 2), Prices(costs, 2, inline=2.0, stored=3.0)
    for of in ("send", "send_back"):
        assert getattr(scaled, of)("buffers", MB) == 2 * getattr(plain, of)("buffers", MB)
    for of in ("put", "get", "get_again", "beside_stored", "beside_found"):
        once, more = (getattr(one, of)("buffers", MB) for one in (plain, scaled))
        assert more == pytest.approx(3 * once)


def test_what_one_of_a_few_tasks_takes_longer_is_waiting():
    many = model()
    curves = {**many.curves, ("argument", "buffers", "task"): Curve(((0, 0.001),))}
    prices, before = Prices(CostModel(curves), 2), Prices(many, 2)
    assert prices.task == 0.001
    assert prices.latency == pytest.approx(4 * (before.task - 0.001))
    assert before.latency == 0.0
    assert prices.send("buffers", MB) == before.send("buffers", MB)


def test_any_number_of_tasks_may_follow_at_once():
    number = 2000
    makers = [step(returns=[result(MB, is_read=False)]) for _ in range(number)]
    users = [
        step(argument(MB, maker=maker), after=(maker,), detached=True) for maker in range(number)
    ]
    # The program gets to them when all that they are given is there.
    late = run(*makers, step(think_s=1e6), *users, workers=2)
    assert replay(late, never(), World()).seconds == 1e6 + number
    # They are ready while the client stores something else.
    waiting = [replace(one, given=(), after=(0,)) for one in users]
    busy = run(makers[0], *waiting, step(argument(400 * MB)))
    outcome = replay(busy, PlainRule(TunePolicy("", ""), 2 * MB), World())
    assert outcome.seconds == pytest.approx(100 + 100)
