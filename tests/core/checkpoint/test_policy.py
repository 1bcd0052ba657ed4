"""Which checkpoints stay under rules that are combined."""

import math
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.checkpoint import (
    CheckpointInfo,
    Retention,
    is_pinned,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    pin,
    prune,
    retain,
    save_checkpoint,
    unpin,
)
from parhelion.errors import CheckpointError, InvalidValueError


def info(iteration, value=None):
    metrics = {} if value is None else {"metrics": {"loss": value}}
    return CheckpointInfo(Path(f"/run/iter_{iteration}"), iteration, 1, metrics)


def left(retention, infos, pinned=()):
    gone = retention.choose(infos, pinned)
    return [each.iteration for each in infos if each not in gone]


def test_without_a_rule_all_stay():
    assert Retention().choose([info(1), info(2)]) == []


def test_the_last_stay():
    assert left(Retention(last=2), [info(i) for i in (9, 10, 100, 20)]) == [100, 20]


def test_what_goes_is_named_oldest_first_whatever_the_order_it_was_listed_in():
    gone = Retention(last=1).choose([info(i) for i in (30, 9, 100, 10)])
    assert [each.iteration for each in gone] == [9, 10, 30]


def test_the_best_stay_in_either_mode_and_the_newest_with_them():
    infos = [info(1, 0.5), info(2, 0.1), info(3, 0.3), info(4, 0.9)]
    assert left(Retention(best=1, metric="loss"), infos) == [2, 4]
    assert left(Retention(best=2, metric="loss", mode="max"), infos) == [1, 4]


def test_a_nan_is_worse_than_anything_in_both_modes():
    infos = [info(1, math.nan), info(2, math.inf), info(3, -math.inf), info(4)]
    assert left(Retention(best=1, metric="loss"), infos) == [3, 4]
    assert left(Retention(best=1, metric="loss", mode="max"), infos) == [2, 4]
    assert left(Retention(best=2, metric="loss"), infos) == [2, 3, 4]


def test_of_equal_ones_the_earlier_is_the_best():
    assert left(Retention(best=1, metric="loss"), [info(1, 0.5), info(2, 0.5), info(3, 0.5)]) == [1, 3]


def test_one_without_the_metric_is_never_among_the_best():
    odd = CheckpointInfo(Path("/run/odd"), 2, 1, {"metrics": {"loss": "low", "other": 0.0}})
    no_table = CheckpointInfo(Path("/run/no_table"), 3, 1, {"metrics": [0.0]})
    assert left(Retention(best=3, metric="loss"), [info(1), odd, no_table, info(4, 0.7), info(5)]) == [4, 5]


def test_the_first_at_or_after_every_multiple_stays():
    infos = [info(i) for i in (10, 90, 100, 150, 230, 270, 400, 410)]
    assert left(Retention(every_iterations=100), infos) == [100, 230, 400, 410]


def test_one_stays_that_any_rule_keeps():
    infos = [info(i, 1 / i if i != 30 else 0.0) for i in range(10, 110, 10)]
    rules = Retention(last=2, best=1, metric="loss", every_iterations=40)
    assert left(rules, infos, [infos[0].path]) == [10, 30, 40, 80, 90, 100]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last": 0}, r"last is 0; expected an integer >= 1, or None"),
        ({"best": -1, "metric": "loss"}, r"best is -1; expected an integer >= 1"),
        ({"every_iterations": 0}, r"every_iterations is 0; expected"),
        ({"best": 1}, r"best is 1 and metric is None; expected the name of a metric"),
        ({"mode": "best"}, r"mode is 'best'; expected 'min' or 'max'"),
    ],
)
def test_rules_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Retention(**arguments)


values = st.one_of(st.none(), st.floats(), st.integers(-3, 3))
runs = st.dictionaries(st.integers(0, 60), values, min_size=1).flatmap(
    lambda table: st.permutations([info(iteration, value) for iteration, value in table.items()])
)
small = st.one_of(st.none(), st.integers(1, 6))
rules = st.builds(
    Retention,
    last=small,
    best=small,
    metric=st.just("loss"),
    mode=st.sampled_from(["min", "max"]),
    every_iterations=small.map(lambda k: k and 7 * k),
)


@given(runs, rules, st.sets(st.integers(0, 60)))
def test_the_newest_and_the_pinned_stay_and_no_more_than_the_rules_allow(infos, retention, pins):
    pinned = [each.path for each in infos if each.iteration in pins]
    gone = retention.choose(infos, pinned)
    stay = [each for each in infos if each not in gone]
    assert max(infos, key=lambda each: each.iteration) in stay
    assert not {each.path for each in gone} & set(pinned)
    if retention.last or retention.best or retention.every_iterations:
        spaced = 60 // retention.every_iterations if retention.every_iterations else 0
        assert len(stay) <= 1 + (retention.last or 0) + (retention.best or 0) + spaced + len(pinned)


@given(runs, rules)
def test_choosing_twice_changes_nothing_more(infos, retention):
    gone = retention.choose(infos)
    assert retention.choose([each for each in infos if each not in gone]) == []


@given(runs, rules, st.sets(st.integers(0, 60)))
def test_a_more_generous_rule_or_a_pin_deletes_no_more(infos, retention, pins):
    gone = {each.path for each in retention.choose(infos)}
    pinned = [each.path for each in infos if each.iteration in pins]
    assert {each.path for each in retention.choose(infos, pinned)} == gone - set(pinned)
    for name in ("last", "best"):
        if (number := getattr(retention, name)) is not None:
            generous = attrs.evolve(retention, **{name: number + 1})
            assert {each.path for each in generous.choose(infos)} <= gone


@given(runs, rules)
def test_pruning_after_every_save_leaves_what_pruning_at_the_end_does(infos, retention):
    ordered = sorted(infos, key=lambda each: each.iteration)
    stay = []
    for each in ordered:
        stay.append(each)
        gone = retention.choose(stay)
        stay = [kept for kept in stay if kept not in gone]
    gone = retention.choose(ordered)
    assert stay == [each for each in ordered if each not in gone]


# -- on disk ----------------------------------------------------------------------------------------------------------


def save(root, iteration, value=None):
    meta = {"run_name": "run", "global_epoch": 1, "global_iteration": iteration}
    if value is not None:
        meta["metrics"] = {"loss": value}
    return save_checkpoint(root, f"run_epoch_1_iter_{iteration}", {"w": np.full(2, float(iteration))}, meta)


def test_retaining_deletes_by_the_rules_and_says_what(tmp_path):
    paths = {i: save(tmp_path, i, value) for i, value in [(1, 0.5), (2, 0.1), (3, 0.4), (4, 0.9), (5, math.nan)]}
    pin(paths[1])
    gone = retain(tmp_path, Retention(last=1, best=1, metric="loss"), protect=[paths[4]])
    assert gone == [paths[3]]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [paths[i].name for i in (1, 2, 4, 5)]
    assert retain(tmp_path, Retention(last=1, best=1, metric="loss")) == [paths[4]]
    assert retain(tmp_path, Retention(last=1, best=1, metric="loss")) == []


def test_a_pin_is_seen_by_other_processes_and_does_not_touch_what_was_written(tmp_path):
    path = save(tmp_path, 1)
    save(tmp_path, 2)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    code = "import sys; from parhelion.checkpoint import pin; pin(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert is_pinned(path)
    assert is_pinned(str(path))
    assert retain(tmp_path, Retention(last=1)) == []
    assert load_checkpoint(path).tree["w"][0] == 1.0
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "pinned"} == before
    unpin(path)
    unpin(path)
    assert not is_pinned(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert retain(tmp_path, Retention(last=1)) == [path]


def test_a_pin_stays_when_the_checkpoint_is_replaced(tmp_path):
    path = save(tmp_path, 1)
    pin(path)
    assert save(tmp_path, 1) == path
    assert is_pinned(path)


def test_only_a_checkpoint_is_pinned(tmp_path):
    for change in (pin, unpin):
        with pytest.raises(CheckpointError, match=r"holds no checkpoint; expected a folder with manifest\.json in it"):
            change(tmp_path)
    assert not is_pinned(tmp_path)


def test_keeping_one_keeps_the_old_one_when_the_new_one_fails(tmp_path):
    old = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="w is a function"):
        save_checkpoint(tmp_path, "new", {"w": print}, {"run_name": "run", "global_epoch": 1, "global_iteration": 2})
    assert retain(tmp_path, Retention(last=1)) == []
    assert load_newest(tmp_path).path == old


def test_rules_and_prune_agree_on_the_last(tmp_path):
    for i in range(1, 7):
        save(tmp_path / "a", i)
        save(tmp_path / "b", i)
    assert [p.name for p in prune(tmp_path / "a", 2)] == [p.name for p in retain(tmp_path / "b", Retention(last=2))]
    assert [each.iteration for each in list_checkpoints(tmp_path / "b")] == [6, 5]


def test_a_checkpoint_in_a_store_is_pinned_by_an_object_beside_the_others():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe("/pins/one/manifest.json", b"{}")
    try:
        pin("memory://pins/one")
        assert is_pinned("memory://pins/one")
        assert files.exists("/pins/one/pinned")
        unpin("memory://pins/one")
        unpin("memory://pins/one")
        assert not is_pinned("memory://pins/one")
        with pytest.raises(CheckpointError, match="'memory://pins/two' holds no checkpoint"):
            pin("memory://pins/two")
    finally:
        files.rm("/pins", recursive=True)
