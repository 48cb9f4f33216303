"""Cost models, and the sizes from which on storing is cheaper that follow from them."""

from __future__ import annotations

import functools
import json
import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

np = pytest.importorskip("numpy")

from proxyexec._costs import CostModel, Curve, crossover, kind_of, known_to
from proxyexec._history import History
from proxyexec._limits import NEVER, Costs, Limits, limits_of_arguments, limits_of_results
from proxyexec._serialize import PickleSerializer
from proxyexec.policy import ProxyNever, ProxySize

MS = 1e-3
PER_MB = 1e-9

measured = st.dictionaries(
    st.integers(1, 10**9), st.floats(0, 10, allow_nan=False), min_size=1, max_size=8
)


def line(start, per_byte):
    """Seconds of an object of no size, and those of a byte."""
    return Curve(((1000, start + 1000 * per_byte), (1_000_000, start + 1_000_000 * per_byte)))


def model(
    inline=(0.1 * MS, 2 * PER_MB),
    store=(0.4 * MS, 0.5 * PER_MB),
    found=(0.3 * MS, 0.1 * PER_MB),
    put=(0.05 * MS, 0.1 * PER_MB),
    get=(0.05 * MS, 0.1 * PER_MB),
    pickling=0.0,
):
    curves = {}
    for kind in ("buffers", "pickle"):
        for side in ("argument", "result"):
            curves[side, kind, "inline"] = line(*inline)
            curves[side, kind, "store"] = line(*store)
        curves["argument", kind, "found"] = line(*found)
        curves["argument", kind, "put"] = line(*put)
        curves["argument", kind, "get"] = line(*get)
    for path in ("dump", "load"):
        curves["argument", "pickle", path] = line(0.0, pickling)
    return CostModel(curves, {"machine": "one"})


@given(measured)
def test_curves_never_fall(points):
    curve = Curve.through(points)
    for size, seconds in points.items():
        assert curve.seconds(size) <= seconds * (1 + 1e-9)
    sizes = sorted({*points, 0, 1, max(points) * 2, max(points) * 3})
    taken = [curve.seconds(size) for size in sizes]
    assert all(one <= other * (1 + 1e-9) for one, other in zip(taken, taken[1:]))
    assert curve.seconds(min(points)) == pytest.approx(min(points.values()))


def test_curves_are_straight_between_points_and_after_them():
    curve = Curve(((100, 1.0), (200, 2.0), (300, 6.0)))
    assert [curve.seconds(size) for size in (0, 100, 150, 200, 250, 300, 400)] == pytest.approx(
        [1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 10.0]
    )
    assert Curve(((100, 1.0),)).seconds(1000) == 1.0


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((100, 1.0), (100, 2.0)),
        ((200, 1.0), (100, 2.0)),
        ((100, 2.0), (200, 1.0)),
        ((100, math.nan),),
        ((100, math.inf),),
        ((100, -1.0),),
    ],
)
def test_what_is_no_curve(points):
    with pytest.raises(ValueError, match="curve|rise"):
        Curve(points)


def test_where_lines_cross():
    # 0.3 ms more to begin with, and 1.5 ns less for each byte: with a tenth less, from 223 kB on.
    found = crossover(line(0.1 * MS, 2e-9).seconds, line(0.4 * MS, 0.5e-9).seconds)
    assert 220_000 < found < 270_000
    assert crossover(line(0.1 * MS, 2e-9).seconds, line(0.4 * MS, 1.9e-9).seconds) is None
    assert crossover(line(1.0 * MS, 2e-9).seconds, line(0.4 * MS, 1e-9).seconds) <= 1024


def test_one_disturbed_measurement_decides_nothing():
    def disturbed(size):
        seconds = line(0.4 * MS, 0.5e-9).seconds(size)
        return 3 * seconds if 3_500_000 < size < 5_000_000 else seconds

    inline = line(0.1 * MS, 2e-9).seconds
    assert crossover(inline, disturbed) == crossover(inline, line(0.4 * MS, 0.5e-9).seconds)


def test_what_is_far_from_measured_decides_nothing():
    # It is cheaper at all sizes that were measured, but the lines meet at 64 MB.
    inline, other = line(0.4 * MS, 2e-9).seconds, line(0.1 * MS, 2.0046875e-9).seconds
    assert crossover(inline, other) is None
    assert crossover(inline, other, 16_000_000) < 2_000
    points = {4_000: 4 * MS, 4_000_000: 12 * MS}
    costs = CostModel(
        {
            ("argument", "buffers", "inline"): Curve.through(points),
            ("argument", "buffers", "store"): Curve.through({4_000: 1 * MS, 4_000_000: 11 * MS}),
        }
    )
    assert costs.threshold("argument", "buffers") is None  # next to the same at 4 MB and above
    assert known_to(costs.curves.values()) == 16_000_000


def test_models_in_json():
    one = model()
    again = CostModel.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert one.seconds("argument", "buffers", "inline", 1_000_000) == pytest.approx(2.1 * MS)
    assert one.seconds("result", "buffers", "found", 1000) is None
    assert one.threshold("argument", "buffers") == one.threshold("result", "pickle")
    assert one.threshold("result", "buffers", "found") is None


def changed(document, change):
    change(document)
    return document


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"proxyexec_costs": 2, "curves": [], "setting": {}},
        {"proxyexec_costs": 1, "curves": [], "setting": []},
        {"proxyexec_costs": 1, "curves": 5, "setting": {}},
        {"proxyexec_costs": 1, "curves": [{}], "setting": {}},
        changed(model().to_json(), lambda one: one["curves"][0].update(side="neither")),
        changed(model().to_json(), lambda one: one["curves"][0].update(points=[])),
        changed(model().to_json(), lambda one: one["curves"][0].update(points=[[1, "x"]])),
        changed(model().to_json(), lambda one: one["curves"][0].update(points=[[1]])),
    ],
)
def test_what_is_no_model(document):
    with pytest.raises(ValueError):
        CostModel.from_json(document)


def test_kinds():
    dumps = PickleSerializer().dumps
    words = {f"word {number}": number for number in range(1000)}
    for obj, kind in [
        (bytes(1000), "buffers"),
        (bytearray(1000), "buffers"),
        (np.zeros(1000), "buffers"),
        ({"a": np.zeros(1000)}, "buffers"),
        ({"a": np.zeros(10), "b": words}, "pickle"),
        (words, "pickle"),
        ("x" * 1000, "pickle"),
    ]:
        assert kind_of(obj, dumps(obj)) == kind, type(obj)


def test_what_is_repeated_pays_earlier():
    once = limits_of_arguments(model(), 0.0)
    assert once.buffers == once.repeated_buffers
    often = limits_of_arguments(model(), 10.0)
    assert often.buffers == once.buffers
    assert often.repeated_buffers < once.repeated_buffers
    assert often.found_buffers <= often.repeated_buffers
    assert often.of("pickle") == often.pickle
    assert often.of_repeated("pickle") == often.repeated_pickle
    assert often.of_found("pickle") == often.found_pickle


def test_what_is_passed_on_pays_earlier():
    here = [limits_of_results(model(), passed).buffers for passed in (0.0, 1.0, 4.0)]
    assert here == sorted(here, reverse=True)
    assert here[0] > here[-1]
    # Past the client, there is nothing to be saved on the way back to the workers.
    directly = limits_of_results(model(), 1.0, directly=True)
    assert directly.buffers >= here[0]


def test_what_takes_long_to_pickle_pays_earlier_if_it_is_passed_on():
    slow = model(pickling=5e-9)
    assert limits_of_results(slow, 0.0) == limits_of_results(model(), 0.0)
    assert limits_of_results(slow, 1.0).pickle < limits_of_results(model(), 1.0).pickle
    assert limits_of_results(slow, 1.0).buffers == limits_of_results(model(), 1.0).buffers
    slower = limits_of_results(slow, 1.0, pickling=8.0)
    assert slower.pickle < limits_of_results(slow, 1.0).pickle


def test_where_storing_never_pays():
    dear = model(store=(1 * MS, 5 * PER_MB), found=(1 * MS, 5 * PER_MB))
    limits = limits_of_arguments(dear, 10.0)
    assert limits[:6] == tuple([NEVER] * 6)
    # What nobody has to look for costs its tasks no more than fetching it.
    assert limits.of_shared("buffers") < NEVER
    assert limits_of_results(dear, 4.0).buffers == NEVER


def test_a_kind_that_was_not_measured_is_like_the_other():
    whole = model()
    curves = {key: curve for key, curve in whole.curves.items() if key[1] == "buffers"}
    limits = limits_of_arguments(CostModel(curves), 2.0)
    assert limits.pickle == limits.buffers


def test_small_objects_cost_no_less_stored():
    # The one that was disturbed is the inline one.
    odd = model(inline=(3 * MS, 2 * PER_MB), store=(1 * MS, 2.5 * PER_MB))
    costs = Costs(odd, "buffers")
    assert costs.argument_inline(1000) < costs.argument_stored(1000)
    assert costs.result_inline(1000) < costs.result_stored(1000)


def test_too_little():
    for missing in ("inline", "store", "put"):
        curves = {key: curve for key, curve in model().curves.items() if key[2] != missing}
        with pytest.raises(ValueError, match="too little"):
            limits_of_arguments(CostModel(curves), 1.0)


def test_the_limit_that_was_best():
    history, costs = History(), model()
    limit = limits_of_arguments(costs, 0.0).buffers

    def best(*limits):
        return history.best(costs, "buffers", limits, directly=False, pickling=1.0)

    assert best(limit, NEVER) is None
    history.add_argument("buffers", bytes, 10 * limit)
    assert best(limit, NEVER) == best(NEVER, limit) == limit
    for _ in range(1000):
        history.add_argument("buffers", bytes, limit // 10)
    assert best(limit // 100, limit) == best(limit, limit // 100) == limit
    # Where it makes no difference, the first.
    assert best(limit, limit + 1) == limit
    assert best(limit + 1, limit) == limit + 1


def test_plain_policies_that_decide_alike():
    history = History()
    history.add_argument("buffers", bytearray, 1000)
    history.add_argument("pickle", dict, 1000)
    assert isinstance(history.policy({"buffers": NEVER, "pickle": NEVER}), ProxyNever)
    alike = history.policy({"buffers": 5000, "pickle": 5000})
    assert isinstance(alike, ProxySize) and alike.minimum == 5000
    buffers = history.policy({"buffers": 5000, "pickle": NEVER})
    assert buffers(bytearray(6000)) and not buffers(bytearray(4000))
    assert not buffers({"a": "x" * 10_000})
    both = history.policy({"buffers": 50_000, "pickle": 5000})
    assert both({"a": "x" * 10_000}) and not both(bytearray(10_000)) and both(bytearray(60_000))
    # Types that nobody has seen are the usual ones.
    usual = History().policy({"buffers": 5000, "pickle": NEVER})
    assert usual(np.zeros(1000)) and usual(bytes(6000)) and not usual(["x" * 10_000])
    usual = History().policy({"buffers": NEVER, "pickle": 5000})
    assert usual(["x" * 10_000]) and not usual(np.zeros(10_000))


def test_plain_policies_know_what_is_shared_by_type():
    history = History()
    history.add_argument("buffers", bytes, 1000)
    history.add_shared("pickle", tuple, 60_000)
    history.add_shared("pickle", dict, 2000)
    history.add_shared("pickle", dict, 1000)
    history.add_shared("buffers", bytes, 60_000)
    limits, shared = {"buffers": 50_000, "pickle": 80_000}, {"buffers": 500, "pickle": 1500}
    policy = history.policy(limits, shared)
    assert policy({"a": "x" * 2000}) and not policy({"a": "x" * 1000})
    assert policy(("x" * 2000,)) and not policy(["x" * 2000])
    # Others are bytes, too.
    assert not policy(bytes(10_000)) and policy(bytes(60_000))
    # So are some results, which are known by the names of their types; and subclasses are one.
    history.add_result("dict", 1000, 0.0)
    assert not history.policy(limits, shared)({"a": "x" * 2000})
    history.add_argument("pickle", NamedTuple("Pair", [("one", int)]), 1000)
    assert not history.policy(limits, shared)(("x" * 2000,))
    # One that is too small for that, or large enough as it is, makes no difference.
    for of_shared, otherwise in ((70_000, 90_000), (500, 1500)):
        history = History()
        history.add_shared("pickle", dict, 2000)
        limits = {"buffers": NEVER, "pickle": otherwise}
        policy = history.policy(limits, {"buffers": NEVER, "pickle": of_shared})
        assert policy({"a": "x" * 1200}) is False
    # A function has a type without a name of its own.
    history.add_shared("pickle", type(len), 80_000)
    history.add_shared("pickle", functools.partial, 80_000)
    policy = history.policy({"buffers": NEVER, "pickle": NEVER}, {"buffers": 1, "pickle": 3000})
    assert repr(policy) == "(ProxyType(functools.partial) & ProxySize(3000))"


def test_what_may_have_been_forgotten_is_not_taken_for_shared_alone():
    history = History()
    history.add_shared("pickle", dict, 2000)
    for number in range(32):
        history.add_argument("buffers", type(f"Kind{number}", (), {}), 1000)
    policy = history.policy({"buffers": NEVER, "pickle": NEVER}, {"buffers": 1, "pickle": 1})
    assert isinstance(policy, ProxyNever)
