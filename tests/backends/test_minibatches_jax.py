"""Stateless loaders of minibatches."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import itertools
import random
import tracemalloc
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp

from parhelion.data import SizedIterable
from parhelion.errors import CollateError, InvalidTypeError, InvalidValueError, RecordError
from parhelion.sampling import ResumableRandomSampler
from parhelion_jax import rows
from parhelion_jax.minibatches import DataLoader, InMemoryDataLoader, cycled_minibatches
from support.worker_datasets import SIZE, At, Noisy, Plain, Together, flat

SEEDS = st.none() | st.integers(0, 2**64 - 1)
SIZES = st.integers(0, 90) | st.integers(1000, 1100)


class Recorder:
    """Records are their indices; which ones were asked for is remembered."""

    def __init__(self, size: int = SIZE) -> None:
        self.size, self.seen = size, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        self.seen.append(index)
        return index


def lists(minibatches: Any) -> list[list[int]]:
    return [np.asarray(minibatch).tolist() for minibatch in minibatches]


def make_pair(size: int, minibatch_size: int, drop_last: bool) -> list[Any]:
    return [
        DataLoader(Recorder(size), minibatch_size, drop_last=drop_last),
        InMemoryDataLoader(np.arange(size), minibatch_size, drop_last),
    ]


@given(size=SIZES, minibatch_size=st.integers(1, 40), drop_last=st.booleans(), seed=SEEDS)
def test_every_record_comes_once_in_minibatches_of_the_size_asked_for(size, minibatch_size, drop_last, seed):
    full, rest = divmod(size, minibatch_size)
    expected = [minibatch_size] * full + ([rest] if rest and not drop_last else [])
    for loader in make_pair(size, minibatch_size, drop_last):
        minibatches = loader.minibatches(seed)
        given = lists(minibatches)
        assert [len(each) for each in given] == expected
        assert len(minibatches) == loader.minibatch_count() == len(expected)
        every = [index for each in given for index in each]
        assert len(set(every)) == len(every) == sum(expected)
        assert set(every) <= set(range(size))
        assert seed is not None or every == list(range(len(every)))


@given(size=SIZES, minibatch_size=st.integers(1, 40), drop_last=st.booleans(), seed=SEEDS)
def test_both_loaders_have_one_order_which_is_that_of_the_sampler(size, minibatch_size, drop_last, seed):
    one, other = (lists(loader.minibatches(seed)) for loader in make_pair(size, minibatch_size, drop_last))
    assert one == other
    if size and seed is not None:
        order = ResumableRandomSampler(range(size), seed).indices(0, 0, size).tolist()
        assert [index for each in one for index in each] == order[: sum(map(len, one))]


@given(data=st.data(), minibatch_size=st.integers(1, 9), drop_last=st.booleans(), seed=SEEDS)
def test_the_rest_of_an_epoch_is_had_from_any_minibatch_on(data, minibatch_size, drop_last, seed):
    for loader in make_pair(47, minibatch_size, drop_last):
        whole = lists(loader.minibatches(seed))
        start = data.draw(st.integers(0, len(whole)))
        rest = loader.minibatches(seed, start=start)
        assert lists(rest) == whole[start:]
        assert len(rest) == len(whole) - start


@given(data=st.data(), minibatch_size=st.integers(1, 9), drop_last=st.booleans(), seed=SEEDS)
def test_minibatches_in_memory_are_a_sequence(data, minibatch_size, drop_last, seed):
    minibatches = InMemoryDataLoader(np.arange(47), minibatch_size, drop_last).minibatches(seed)
    whole = lists(minibatches)
    bounds = st.none() | st.integers(-60, 60)
    part = slice(data.draw(bounds), data.draw(bounds), data.draw(st.none() | st.integers(-3, 3).filter(bool)))
    assert lists(minibatches[part]) == whole[part]
    assert lists(minibatches[part][1:]) == whole[part][1:]
    assert lists(minibatches[k] for k in range(-len(whole), len(whole))) == whole + whole
    assert lists(reversed(minibatches)) == whole[::-1]


def test_a_long_order_is_the_same_by_index_as_in_a_row():
    minibatches = InMemoryDataLoader(np.arange(200_000), 64, drop_last=False).minibatches(1)
    whole = list(minibatches)
    assert len(whole) == 3125
    for k in (*range(0, 3125, 97), 1, 2, 8, 9, 72, 73, 1096, 1097, 3124):
        assert whole[k].tolist() == minibatches[k].tolist()


@pytest.mark.parametrize("index", [6, -7, 100])
def test_an_index_beyond_the_minibatches_is_an_index_error(index):
    minibatches = InMemoryDataLoader(np.arange(SIZE), 4, drop_last=False).minibatches(0)
    with pytest.raises(IndexError, match=rf"minibatch is {index}; expected one from -6 to 5\."):
        minibatches[index]


def test_iterating_again_gives_the_same_and_another_seed_gives_something_else():
    for loader in make_pair(SIZE, 4, True):
        minibatches = loader.minibatches(7)
        assert isinstance(minibatches, SizedIterable)
        assert lists(minibatches) == lists(minibatches) == lists(loader.minibatches(7))
        assert lists(minibatches) != lists(loader.minibatches(8))


def test_an_epoch_left_early_changes_nothing_for_the_next():
    for loader in make_pair(SIZE, 4, True):
        whole = lists(loader.minibatches(3))
        next(iter(loader.minibatches(2)))
        assert lists(loader.minibatches(3)) == whole


def test_two_iterations_at_once_do_not_disturb_each_other():
    for loader in make_pair(SIZE, 4, True):
        one, other = loader.minibatches(1), loader.minibatches(2)
        pairs = list(zip(one, other, one, strict=True))
        assert lists(pair[0] for pair in pairs) == lists(pair[2] for pair in pairs) == lists(one)
        assert lists(pair[1] for pair in pairs) == lists(other)


def test_records_before_the_start_are_not_loaded():
    dataset = Recorder()
    loader = DataLoader(dataset, 4)
    list(loader.minibatches(None, start=4))
    assert dataset.seen == [16, 17, 18, 19]


# Worker processes


@pytest.mark.processes
def test_workers_change_nothing_in_what_comes():
    random.seed(1)
    before = random.getstate()
    alone, helped = (DataLoader(Noisy(), 4, num_workers, drop_last=False) for num_workers in (0, 2))
    assert alone.workers_state is None
    for seed in (None, 0, 2**64 - 1):
        one, other = ([flat(each) for each in loader.minibatches(seed, start=1)] for loader in (alone, helped))
        assert one == other
        assert len(one) == 5
    assert random.getstate() == before


@pytest.mark.processes
def test_defect_13_leaving_an_epoch_early_gives_no_stale_minibatch_in_the_next():
    loader = DataLoader(Plain(), 4, num_workers=2)
    first, second = (lists(InMemoryDataLoader(np.arange(SIZE), 4).minibatches(seed)) for seed in (1, 2))
    left = iter(loader.minibatches(1))
    assert next(left).tolist() == first[0]
    assert lists(loader.minibatches(2)) == second
    del left
    assert lists(loader.minibatches(2)) == second
    one, other = iter(loader.minibatches(1)), iter(loader.minibatches(2))
    assert [next(each).tolist() for _ in range(5) for each in (one, other)] == [
        each for pair in zip(first, second, strict=True) for each in pair
    ]


def fail() -> None:
    raise OSError("disk is gone")


@pytest.mark.processes
def test_defect_13_an_error_in_a_worker_is_raised_here_and_the_loader_goes_on():
    loader = DataLoader(At(fail), 4, num_workers=2)
    minibatches = iter(loader.minibatches(None))
    assert next(minibatches).tolist() == [0, 1, 2, 3]
    with pytest.raises(RecordError, match="record with sample index 6 of At failed"):
        next(minibatches)
    assert next(iter(loader.minibatches(None))).tolist() == [0, 1, 2, 3]


@pytest.mark.processes
def test_workers_live_as_long_as_the_loader():
    loader = DataLoader(Plain(), 4, num_workers=1)
    state = loader.workers_state
    first = list(loader.minibatches(0))
    assert len(first) == 5
    pool = weakref.ref(state._loader._pool)
    list(loader.minibatches(1))
    assert state._loader._pool is pool()
    state.close()
    assert lists(loader.minibatches(0)) == lists(first)
    pool = weakref.ref(state._loader._pool)
    del loader, state
    gc.collect()
    assert pool() is None


# Randomness


def test_a_sample_s_randomness_is_keyed_by_the_seed():
    loader = DataLoader(Noisy(), 4)
    own = [[minibatch["own"].tolist() for minibatch in loader.minibatches(seed)] for seed in (None, 0, 1, 0)]
    assert own[1] == own[3]
    assert not {*itertools.chain(*own[0])} & {*itertools.chain(*own[1])} & {*itertools.chain(*own[2])}
    assert own[1] != own[2]


def test_global_generators_are_left_alone_if_so_asked():
    class Drawing(Plain):
        def __getitem__(self, index):
            return random.random()

    random.seed(3)
    expected = [random.random() for _ in range(20)]
    random.seed(3)
    drawn = np.concatenate(list(DataLoader(Drawing(), 4, global_rng="off").minibatches(0)))
    np.testing.assert_array_equal(drawn, np.array(expected, np.float32))
    random.seed(3)
    keyed = np.concatenate(list(DataLoader(Drawing(), 4).minibatches(0)))
    assert random.random() == expected[0]
    assert not {*keyed.tolist()} & {*drawn.tolist()}


def test_only_what_keys_generators_of_this_process_is_bound_to_its_thread():
    off = Plain()
    off.global_rng = "off"
    cases = [(Plain(), 0, None, True), (Plain(), 2, None, False), (Plain(), 0, "off", False), (off, 0, None, False)]
    cases.append((off, 0, "sample", True))
    for dataset, workers, mode, expected in cases:
        minibatches = DataLoader(dataset, 4, workers, global_rng=mode).minibatches(0)
        assert minibatches.is_thread_bound is expected
    assert not hasattr(InMemoryDataLoader(np.arange(4), 2).minibatches(0), "is_thread_bound")


# Collation


def test_records_are_stacked_along_a_new_first_axis_and_a_function_of_one_s_own_is_called():
    class Pairs(Plain):
        def __getitem__(self, index):
            return {"x": np.full(3, index), "y": (index, float(index), "text")}

    minibatch = next(iter(DataLoader(Pairs(), 2).minibatches(None)))
    assert minibatch["x"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert minibatch["y"][0].tolist() == [0, 1]
    assert [each.dtype for each in minibatch["y"][:2]] == [np.int64, np.float32]
    assert next(iter(DataLoader(Plain(), 3, collate_fn=sum).minibatches(None))) == 3
    with pytest.raises(CollateError, match="sample index 0"):
        next(iter(DataLoader([None] * 4, 2).minibatches(None)))


def test_a_dataset_may_return_finished_minibatches():
    minibatches = DataLoader(Together(), 4, collate_fn=dict).minibatches(None)
    assert [minibatch["rows"][:, 1].tolist() for minibatch in minibatches][-1] == [16, 17, 18, 19]


# Arrays in memory


class Pair(NamedTuple):
    a: Any
    b: Any


def test_arrays_stay_of_their_kind_wherever_they_are_in_the_pytree():
    dataset = {"x": np.arange(20.0).reshape(10, 2), "rest": Pair([jnp.arange(10)], (np.arange(10) > 4, None))}
    loader = InMemoryDataLoader(dataset, 4, drop_last=False)
    assert loader.sample_count == 10
    for seed, index in [(None, -1), (3, 1)]:
        minibatch = loader.minibatches(seed)[index]
        where = np.asarray(minibatch["rest"].a[0])
        assert len(where) in (2, 4)
        assert jax.tree.structure(minibatch) == jax.tree.structure(dataset)
        assert isinstance(minibatch["rest"].a[0], jax.Array)
        assert type(minibatch["x"]) is type(minibatch["rest"].b[0]) is np.ndarray
        np.testing.assert_array_equal(minibatch["x"], dataset["x"][where])
        np.testing.assert_array_equal(minibatch["rest"].b[0], dataset["rest"].b[0][where])


@pytest.mark.parametrize("seed", [None, 0])
def test_a_minibatch_can_be_written_to_and_the_dataset_stays_as_it_is(seed):
    dataset = np.arange(12.0).reshape(6, 2)
    for minibatch in InMemoryDataLoader(dataset, 4, drop_last=False).minibatches(seed):
        minibatch[:] = 100
    np.testing.assert_array_equal(dataset, np.arange(12.0).reshape(6, 2))


@pytest.mark.parametrize("seed", [None, 0])
def test_arrays_of_any_layout_and_kind_are_gathered(seed, tmp_path):
    x = np.arange(60, dtype=">f4").reshape(10, 3, 2)
    file = np.memmap(tmp_path / "x", np.int16, "w+", shape=(10, 2))
    file[:] = np.arange(20).reshape(10, 2)
    unaligned = np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(">f4").reshape(x.shape)
    dataset = {
        "turned": x.transpose(0, 2, 1),
        "strided": np.repeat(x, 2, axis=0)[::2],
        "file": file,
        "unaligned": unaligned,
        "fortran": np.asfortranarray(x),
        "words": np.array([f"word {k}" for k in range(10)], object),
        "masked": np.ma.masked_array(np.arange(10), np.arange(10) % 3 == 0),
        "empty": np.zeros((10, 0)),
        "keys": jax.random.split(jax.random.key(0), 10),
        "where": np.arange(10),
    }
    for minibatch in InMemoryDataLoader(dataset, 3, drop_last=False).minibatches(seed):
        where = minibatch["where"]
        assert type(minibatch["file"]) is np.ndarray
        np.testing.assert_array_equal(minibatch["masked"].mask, where % 3 == 0)
        for name, part in minibatch.items():
            given, whole = (jax.random.key_data(each) if name == "keys" else each for each in (part, dataset[name]))
            assert given.dtype == whole.dtype
            np.testing.assert_array_equal(given, whole[where])


def test_gathering_from_a_turned_array_does_not_copy_it_whole():
    dataset = np.zeros((32, 10_000), np.float32).T
    minibatches = InMemoryDataLoader(dataset, 8).minibatches(0)
    tracemalloc.start()
    minibatches[0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < dataset.nbytes / 4


def test_one_gather_for_all_jax_arrays_of_a_minibatch(monkeypatch):
    calls = []
    monkeypatch.setattr(rows, "_gather", lambda arrays, index: calls.append(len(arrays)) or arrays)
    dataset = (jnp.arange(10), np.arange(10), jnp.zeros((10, 3)))
    list(InMemoryDataLoader(dataset, 4).minibatches(0))
    assert calls == [2, 2]


def test_more_samples_than_jax_can_index_are_refused(monkeypatch):
    monkeypatch.setattr(rows, "_MAX_INT32", 5)
    loader = InMemoryDataLoader(jnp.arange(6), 2)
    with pytest.raises(InvalidValueError, match="dataset has jax arrays of 6 samples; expected up to 5, since jax"):
        loader.minibatches(0)[0]
    with jax.enable_x64(True):
        assert sorted(np.concatenate(list(loader.minibatches(0))).tolist()) == list(range(6))


def test_first_axes_that_differ_are_named_with_both_paths():
    dataset = {"image": np.zeros((5, 2)), "label": [np.zeros(5), np.zeros(4)]}
    message = r"leaves 'image' and 'label/1' of the dataset have 5 and 4 samples; expected the same first axis"
    with pytest.raises(InvalidValueError, match=message):
        InMemoryDataLoader(dataset, 2)


@pytest.mark.parametrize(("leaf", "said"), [(3, "3"), ("text", "'text'"), (np.float32(2), "2.0"), (jnp.int32(1), "1")])
def test_a_leaf_without_a_first_axis_is_named(leaf, said):
    with pytest.raises(InvalidTypeError, match=rf"leaf 'a/0' of the dataset is .*{said}.*; expected an array whose"):
        InMemoryDataLoader({"a": [leaf], "b": np.zeros(3)}, 2)


def test_a_dataset_without_arrays_is_refused():
    with pytest.raises(InvalidValueError, match=r"dataset is \{\}, which has no array; expected at least one"):
        InMemoryDataLoader({}, 2)


# Endless


def test_cycled_minibatches_add_one_to_the_seed_with_each_epoch():
    for loader in make_pair(SIZE, 10, False):
        epochs = [lists(loader.minibatches(seed)) for seed in (5, 6, 7)]
        assert lists(itertools.islice(cycled_minibatches(loader, 5), 9)) == [*itertools.chain(*epochs)]
        # The page says so: epoch 1 of one seed is epoch 0 of the next.
        assert lists(itertools.islice(cycled_minibatches(loader, 6), 3)) == epochs[1]


def test_cycled_minibatches_without_a_seed_repeat_the_order_of_the_dataset():
    for loader in make_pair(5, 3, False):
        assert lists(itertools.islice(cycled_minibatches(loader, None), 5)) == [[0, 1, 2], [3, 4]] * 2 + [[0, 1, 2]]


def test_the_seed_after_the_largest_is_zero():
    loader = InMemoryDataLoader(np.arange(5), 5)
    assert lists(itertools.islice(cycled_minibatches(loader, 2**64 - 1), 2))[1] == lists(loader.minibatches(0))[0]


@given(start=st.integers(0, 40), seed=SEEDS)
def test_cycled_minibatches_begin_anywhere(start, seed):
    for loader in make_pair(SIZE, 4, False):
        whole = lists(itertools.islice(cycled_minibatches(loader, seed), 45))
        rest = cycled_minibatches(loader, seed, start=start)
        assert lists(itertools.islice(rest, 45 - start)) == whole[start:]


def test_any_loader_of_the_protocol_is_cycled_and_one_that_gives_nothing_is_an_error_and_no_endless_loop():
    class Foreign:
        minibatch_size = 2

        def __init__(self, epochs):
            self.epochs = epochs

        def minibatch_count(self):
            return 2

        def minibatches(self, shuffle_seed):
            return self.epochs[shuffle_seed]

    cycled = cycled_minibatches(Foreign([["a", "b"], ["c", "d"], []]), 0)
    assert list(itertools.islice(cycled, 4)) == ["a", "b", "c", "d"]
    with pytest.raises(InvalidValueError, match="dataloader has no minibatch of minibatch_size 2 in an epoch"):
        next(cycled)


def test_cycling_over_no_minibatch_is_an_error_at_once():
    for loader in [*make_pair(3, 4, True), *make_pair(0, 1, False)]:
        with pytest.raises(InvalidValueError, match=r"has no minibatch of minibatch_size . in an epoch; expected at"):
            cycled_minibatches(loader, 0)


# Construction


def test_the_loaders_have_the_fields_of_the_reference_page_and_cannot_be_changed():
    names = ["dataset", "minibatch_size", "num_workers", "drop_last", "collate_fn"]
    assert [*inspect.signature(DataLoader).parameters][:5] == names
    assert [field.name for field in dataclasses.fields(DataLoader)][:6] == [*names, "workers_state"]
    assert [*inspect.signature(InMemoryDataLoader).parameters] == ["dataset", "minibatch_size", "drop_last"]
    for loader in make_pair(4, 2, True):
        with pytest.raises(dataclasses.FrozenInstanceError):
            loader.minibatch_size = 3
        assert dataclasses.replace(loader, minibatch_size=4).minibatch_count() == 1
        assert {loader: 1}[loader] == 1  # arrays do not compare
        assert "minibatch_size=2" in repr(loader)


@pytest.mark.parametrize(
    "make", [lambda size: DataLoader(Plain(), size), lambda size: InMemoryDataLoader(np.arange(3), size)]
)
def test_a_minibatch_size_that_cannot_work_is_named(make):
    with pytest.raises(InvalidValueError, match=r"minibatch_size is 0; expected an integer >= 1"):
        make(0)
    with pytest.raises(InvalidTypeError, match=r"minibatch_size is 2\.5; expected an integer >= 1"):
        make(2.5)


def test_arguments_that_cannot_work_are_named():
    with pytest.raises(InvalidTypeError, match=r"dataset is a generator; expected a dataset with a length"):
        DataLoader((k for k in range(3)), 2)
    with pytest.raises(InvalidTypeError, match="has neither __getitem__ nor __getitems__"):
        DataLoader({1, 2}, 2)
    with pytest.raises(InvalidValueError, match=r"num_workers is -1; expected an integer >= 0"):
        DataLoader(Plain(), 2, -1)
    with pytest.raises(InvalidValueError, match=r"global_rng is 'none'; expected"):
        DataLoader(Plain(), 2, global_rng="none")
    for loader in make_pair(7, 2, True):
        with pytest.raises(InvalidValueError, match=r"shuffle_seed is -1; expected an integer from 0 to 2\*\*64 - 1"):
            loader.minibatches(-1)
        with pytest.raises(InvalidTypeError, match=r"shuffle_seed is 'a'; expected an integer"):
            cycled_minibatches(loader, "a")
        with pytest.raises(InvalidValueError, match=r"start is 4; expected one up to 3, the minibatches of an epoch"):
            loader.minibatches(0, start=4)
        with pytest.raises(InvalidValueError, match=r"start is -1; expected an integer >= 0"):
            cycled_minibatches(loader, 0, start=-1)
