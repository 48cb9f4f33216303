"""Candidates: they decide as the policies do that they stand for, and are written down as these."""

from __future__ import annotations

import json
import stat
import sys

import pytest

np = pytest.importorskip("numpy")

from proxyexec import ProxyAdaptive, ProxyAlways, ProxyNever, ProxySize, ProxyType
from proxyexec._costs import CostModel, Curve
from proxyexec._limits import DEFAULT
from proxyexec._serialize import Candidate, PickleSerializer
from proxyexec._tune_candidates import AdaptiveRule, PolicyRule, plain_rules
from proxyexec._tune_override import _built
from proxyexec._tune_result import TuneCandidate, TunePolicy
from proxyexec._tune_run import Item, Run, Step
from proxyexec._tune_writing import as_python, merged, write
from proxyexec.errors import TuneError
from proxyexec.policy import is_proxied

OBJECTS = [
    b"",
    bytes(50),
    bytes(20_000),
    bytes(2_000_000),
    bytearray(200_000),
    np.zeros(10),
    np.zeros(50_000),
    list(range(100_000)),
    {"a": bytes(400_000)},
    "text" * 30_000,
    7,
    None,
    True,
]

NAMES = {
    "numpy": np,
    "ProxyAdaptive": ProxyAdaptive,
    "ProxyAlways": ProxyAlways,
    "ProxyNever": ProxyNever,
    "ProxySize": ProxySize,
    "ProxyType": ProxyType,
}


def item_of(obj):
    name = f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")
    return Item("argument 0", name, Candidate(obj, PickleSerializer()).size, "buffers")


def run_of(objects):
    return Run(
        tuple(Step("work", (item_of(one),), (), 0.0, 0.0) for one in objects), 2, (0.0,) * 2, 0.0, 0
    )


@pytest.fixture(scope="module")
def rules():
    return plain_rules(run_of(OBJECTS), [])


def wants(rule, obj):
    return rule.wants(item_of(obj), repeated=False, found=False)


def decisions(policy):
    return [is_proxied(policy, Candidate(obj, PickleSerializer())) for obj in OBJECTS]


def test_each_decides_as_the_policy_that_it_stands_for(rules):
    assert len(rules) > 20
    for rule in rules:
        policy = eval(rule.policy.python, dict(NAMES))  # noqa: S307 - written by us
        assert [wants(rule, obj) for obj in OBJECTS] == decisions(policy), rule.policy.python


def test_a_configuration_says_the_same(rules):
    for rule in rules:
        expected = [wants(rule, obj) for obj in OBJECTS]
        data = json.loads(json.dumps(rule.policy.config))
        assert decisions(_built(data)) == expected, data
    pytest.importorskip("pydantic_settings")
    from proxyexec import config

    for rule in rules:
        expected = [wants(rule, obj) for obj in OBJECTS]
        assert decisions(config.policy_spec(rule.policy.config).build()) == expected


def test_no_two_decide_alike(rules):
    decided = [tuple(wants(rule, obj) for obj in OBJECTS) for rule in rules]
    assert len(set(decided)) == len(decided)


def test_the_simplest_come_first(rules):
    names = [rule.policy.name for rule in rules]
    assert names[0] == "never"
    assert names[1].startswith("size")
    assert names.index("always") < names.index("bytes")
    assert names.index("bytes") < names.index("not bytes")


def test_sizes_where_storing_begins_to_pay_are_tried():
    inline, store = Curve(((0, 0.0), (10**9, 100.0))), Curve(((0, 0.005), (10**9, 0.005)))
    model = CostModel(
        {
            (side, kind, path): curve
            for side in ("argument", "result")
            for kind in ("buffers", "pickle")
            for path, curve in (("inline", inline), ("store", store))
        }
    )
    size = model.threshold("argument", "buffers")
    assert 50_000 < size < 70_000
    between = [bytes(40_000), bytes(size - 1000), bytes(size + 1000)]
    tried = [rule.policy.name for rule in plain_rules(run_of(between), [model])]
    assert any(name.startswith("size 6") for name in tried) or any("size 5" in one for one in tried)


def test_an_adaptive_policy_can_be_written_down():
    policy = AdaptiveRule(DEFAULT, {}).policy
    assert isinstance(eval(policy.python, dict(NAMES)), ProxyAdaptive)  # noqa: S307
    assert isinstance(_built(policy.config), ProxyAdaptive)
    pytest.importorskip("pydantic_settings")
    from proxyexec import config

    assert isinstance(config.policy_spec(policy.config).build(), ProxyAdaptive)


class Data(bytes):
    pass


@pytest.mark.parametrize(
    "policy",
    [
        ProxyAlways(),
        ProxyNever(),
        ProxySize("100 kB"),
        ProxyType(np.ndarray, list),
        ProxyType(bytes),
        ~ProxyType(bytes) & ProxySize("10 kB"),
        ProxyType(dict) | ProxySize("1 MB") | ~ProxySize(100),
    ],
    ids=repr,
)
def test_given_policies_decide_as_they_are(policy):
    rule = PolicyRule.of("mine", policy)
    objects = [*OBJECTS, Data(200_000)]
    expected = [is_proxied(policy, Candidate(obj, PickleSerializer())) for obj in objects]
    assert [wants(rule, obj) for obj in objects] == expected
    assert decisions(_built(json.loads(json.dumps(rule.policy.config)))) == expected[:-1]


def test_policies_that_look_at_objects_cannot_be_asked():
    with pytest.raises(ValueError, match="no objects that"):
        PolicyRule.of("mine", ProxySize(10) & (lambda obj: True))


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="writes no policy like"):
        _built({"kind": "custom", "policy": "os:system"})


SIZE = TunePolicy("size 1 MB", "ProxySize('1 MB')", "1 MB")


def candidate(policy=SIZE, store="redis://cache:6379/0"):
    return TuneCandidate(policy, store, False, 1.0, 1.0, 0, 0, 0, 0, 0, 0)  # noqa: FBT003


def test_python_names_the_store_if_it_is_another():
    assert as_python(candidate(), with_store=False) == (
        "StoreExecutor(executor, should_proxy=ProxySize('1 MB'))"
    )
    assert as_python(candidate(), with_store=True) == (
        "StoreExecutor(executor, store='redis://cache:6379/0', should_proxy=ProxySize('1 MB'))"
    )


def test_a_configuration_keeps_what_it_says_besides():
    before = {"executor": {"type": "x:y"}, "store": {"url": "a://b", "max_bytes": "1 GB"}}
    assert merged(before, candidate(), "redis://cache:6379/0") == {
        "executor": {"type": "x:y"},
        "store": {"url": "redis://cache:6379/0", "max_bytes": "1 GB"},
        "should_proxy": "1 MB",
    }
    assert merged(before, candidate(), None)["store"] == before["store"]
    assert merged({"store": "a://b"}, candidate(), "c://d")["store"] == "c://d"
    assert "should_proxy" not in before


def test_what_a_configuration_cannot_say_is_an_error():
    with pytest.raises(TuneError, match="no configuration can say"):
        merged({}, candidate(TunePolicy("mine", "mine")), None)


TREE = {
    "should_proxy": {
        "kind": "all",
        "policies": ["100 kB", {"kind": "not", "policy": {"kind": "type", "types": ["a:b"]}}],
    },
    "lazy": False,
    "workers": 3,
    "share": 0.5,
    'a "strange" key\n': 'text with ü, " and \\ and \x7f\n',
    "executor": {"type": "x:y", "nested": {"deep": [1, [2.5, True]], "empty": {}}, "list": []},
}


@pytest.mark.parametrize("name", ["a.toml", "a.json", "a.yaml", "a.yml"])
def test_configurations_are_written_in_each_form(tmp_path, name):
    path = tmp_path / name
    write(str(path), TREE)
    text = path.read_text(encoding="utf-8")
    if name.endswith("toml"):
        assert pytest.importorskip("tomllib").loads(text) == TREE
    elif name.endswith("json"):
        assert json.loads(text) == TREE
    else:
        assert pytest.importorskip("yaml").safe_load(text) == TREE
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_other_files_are_not_written(tmp_path):
    with pytest.raises(TuneError, match="ends in"):
        write(str(tmp_path / "a.ini"), {})
    with pytest.raises(TuneError, match="No such file"):
        write(str(tmp_path / "nowhere" / "a.toml"), {})
    with pytest.raises(TuneError, match="null"):
        write(str(tmp_path / "a.toml"), {"a": None})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_who_may_read_a_configuration_stays(tmp_path, mode):
    path, other = tmp_path / "stack.toml", tmp_path / "tuned.yaml"
    path.write_text("lazy = true\n", encoding="utf-8")
    path.chmod(mode)
    write(str(path), {"lazy": False}, like=str(path))
    write(str(other), {"lazy": False}, like=str(path))
    for one in (path, other):
        assert stat.S_IMODE(one.stat().st_mode) == mode
    assert path.read_text(encoding="utf-8") == "lazy = false\n"


def test_only_the_file_itself_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "stack.toml", tmp_path / "stack.toml"
    path.write_text("lazy = true\n", encoding="utf-8")
    link.symlink_to(path)
    beside = tmp_path / "stack.toml.new"
    beside.write_text("mine", encoding="utf-8")
    write(str(link), {"lazy": False})
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == "lazy = false\n"
    assert beside.read_text(encoding="utf-8") == "mine"
    with pytest.raises(UnicodeEncodeError):
        write(str(path), {"name": "\ud800"})
    assert path.read_text(encoding="utf-8") == "lazy = false\n"
    assert [one.name for one in path.parent.iterdir()] == ["stack.toml"]


class Outer:
    class Inner:
        pass


def test_classes_of_the_program_are_named_as_they_are_found(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Outer", Outer, raising=False)
    sizes = {"__main__.Outer.Inner": 2_000_000, "__main__.main.<locals>.Own": 1_500_000}
    items = tuple(Item("argument 0", name, size, "pickle") for name, size in sizes.items())
    rules = plain_rules(Run((Step("work", items, (), 0.0, 0.0),), 2, (0.0,) * 2, 0.0, 0), [])
    by_type = [one for one in rules if one.types]
    assert {kind for one in by_type for kind in one.types} == {"__main__.Outer.Inner"}
    for one in by_type:
        assert "Outer.Inner" in repr(_built(one.policy.config))
        line = as_python(candidate(one.policy), with_store=False)
        assert "ProxyType(Outer.Inner)" in line
        assert "__main__" not in line
