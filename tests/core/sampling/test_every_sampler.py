"""What holds for every sampler: its order is a function of epoch and place, so a run can be stopped anywhere."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.checkpoint import load_checkpoint, save_checkpoint
from parhelion.errors import InvalidValueError
from parhelion.sampling import (
    ORDER_VERSION,
    Position,
    ResumableBucketSampler,
    ResumableConcatSampler,
    ResumableCurriculumSampler,
    ResumableFunctionSampler,
    ResumableMixtureSampler,
    ResumableRandomSampler,
    ResumableSubsetSampler,
    ResumableWeightedSampler,
    Shard,
    Tail,
)
from parhelion.testing import check_sampler_resumes
from support.all_samplers import IN_ORDER, KINDS, count_records, rotate

every = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(0, 2**64 - 1)


def order_of(sampler, epoch):
    return sampler.indices(epoch, 0, sampler.size)


@every
@given(size=st.integers(1, 80), seed=seeds, data=st.data())
@settings(max_examples=30)
def test_an_order_depends_on_epoch_and_place_and_not_on_what_was_asked_before(kind, size, seed, data):
    whole = KINDS[kind](size, seed, 4)
    orders = [order_of(whole, epoch) for epoch in range(4)]
    asked = KINDS[kind](size, seed, 3)
    for _ in range(6):
        epoch = data.draw(st.integers(0, 3))
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, asked.size))
            stop = data.draw(st.integers(start, asked.size))
            found, expected = asked.indices(epoch, start, stop), orders[epoch][start:stop]
        else:
            places = np.array(data.draw(st.lists(st.integers(0, asked.size - 1), max_size=20)), np.int64)
            found, expected = asked.indices_at(epoch, places), orders[epoch][places]
        assert found.dtype == np.int64
        assert found.tolist() == expected.tolist()


@every
@given(size=st.integers(1, 80), seed=seeds)
@settings(max_examples=30)
def test_every_index_is_a_record_s(kind, size, seed):
    sampler = KINDS[kind](size, seed, 4)
    for epoch in (0, 1, 10**6):
        found = order_of(sampler, epoch)
        assert len(found) == sampler.size == len(sampler)
        assert found.min() >= 0
        assert found.max() < count_records(sampler)


@every
def test_stopped_anywhere_it_goes_on_with_any_ranks_and_batch_size_as_if_it_never_stopped(kind):
    def make(size, seed, batch_size, rank, world):
        sampler = KINDS[kind](size, seed, batch_size)
        sampler.reshard(Shard(batch_size, rank, world))
        return sampler

    check_sampler_resumes(make, max_size=40, max_examples=25)


@every
@given(
    size=st.integers(1, 60),
    shapes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=5),
)
@settings(max_examples=30)
def test_ranks_and_batch_size_may_change_in_mid_epoch_and_each_place_still_comes_once_in_order(kind, size, shapes):
    order = order_of(KINDS[kind](size, 3, 1), 1).tolist()
    given_out, position = [], Position(1)
    for batch_size, world, count in [*shapes, (5, 2, 10**6)]:
        ranks = [KINDS[kind](size, 3, batch_size) for _ in range(world)]
        for rank, sampler in enumerate(ranks):
            sampler.reshard(Shard(batch_size, rank, world, Tail.MASK))
            sampler.seek(position)
        for number, batch in enumerate(zip(*(sampler.requests() for sampler in ranks), strict=True)):
            if number == count or position.epoch != 1:
                break
            given_out += [index for request in batch for index in request.indices.tolist()]
            position = ranks[0].shard.after(len(order), position)
        if position.epoch != 1:
            break
    assert given_out == order


@every
def test_epochs_and_seeds_have_orders_of_their_own_where_they_are_shuffled(kind):
    first, other = KINDS[kind](60, 1, 4), KINDS[kind](60, 2, 4)
    if kind in IN_ORDER:
        assert order_of(first, 0).tolist() == order_of(other, 0).tolist()
    else:
        assert order_of(first, 0).tolist() != order_of(first, 1).tolist()
        assert order_of(first, 0).tolist() != order_of(other, 0).tolist()
        # Neighbors have nothing in common: seeds are mixed, never added to.
        if kind != "function":
            assert order_of(first, 1).tolist() != order_of(other, 0).tolist()


@every
def test_a_pickled_sampler_goes_on_where_it_was(kind):
    sampler = KINDS[kind](50, 3, 4)
    sampler.seek(Position(2, 8))
    order_of(sampler, 2)
    copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301 - our own bytes
    assert copy.position == Position(2, 8)
    assert copy.settings == sampler.settings
    assert list(copy) == list(sampler)


@every
def test_settings_survive_a_checkpoint_and_are_readable(kind, tmp_path):
    settings_of = KINDS[kind](50, 3, 4).settings
    assert settings_of == KINDS[kind](50, 3, 7).settings
    assert len(json.dumps(settings_of)) < 500
    path = save_checkpoint(
        tmp_path, "x", {"facts": settings_of}, {"run_name": "x", "global_iteration": 1, "global_epoch": 1}
    )
    assert load_checkpoint(path).tree["facts"] == settings_of


N = range(40)
TWINS = {
    "weights": [ResumableWeightedSampler(N, [1, 2] * 20), ResumableWeightedSampler(N, [2, 1] * 20)],
    "replacement": [ResumableWeightedSampler(N, [1.0] * 40, 20, again) for again in (True, False)],
    "mixture's sizes": [ResumableMixtureSampler(sizes, [1, 1], num_samples=9) for sizes in ([9, 9], [9, 8])],
    "mixture's weights": [ResumableMixtureSampler([9, 9], weights, num_samples=9) for weights in ([1, 2], [2, 1])],
    "exhausted": [ResumableMixtureSampler([9, 9], [1, 1], each, num_samples=9) for each in ("end", "repeat")],
    "mixture's shuffle": [ResumableMixtureSampler([9, 9], [1, 1], shuffle=each) for each in (True, False)],
    "subset": [ResumableSubsetSampler(N, each) for each in ([1, 2], [2, 1])],
    "subset's shuffle": [ResumableSubsetSampler(N, [1, 2], each) for each in (True, False)],
    "concat's sizes": [ResumableConcatSampler(each) for each in ([4, 5], [5, 4])],
    "concat's shuffle": [ResumableConcatSampler([4, 5], each) for each in (True, False)],
    "lengths": [ResumableBucketSampler(N, np.arange(40) + each) for each in (0, 1)],
    "window": [ResumableBucketSampler(N, N, each, 5) for each in (10, 20)],
    "chunk_size": [ResumableBucketSampler(N, N, 40, each) for each in (5, 10)],
    "bucket's shuffle": [ResumableBucketSampler(N, N, 40, 5, each) for each in (True, False)],
    "phase's length": [ResumableCurriculumSampler([N, N], [("a", 0, k), ("b", 1, 9 - k)]) for k in (4, 5)],
    "phase's source": [ResumableCurriculumSampler([N, N], [("a", k, 9)]) for k in (0, 1)],
    "phase's name": [ResumableCurriculumSampler(N, [(name, 0, 9)]) for name in ("a", "b")],
    "phase's sampler": [ResumableCurriculumSampler(N, [("a", ResumableRandomSampler(N, seed), 9)]) for seed in (1, 2)],
    "function": [ResumableFunctionSampler(N, each) for each in (rotate, lambda epoch, places: places)],
    "argument": [ResumableFunctionSampler(N, lambda epoch, places, step: places, step=each) for each in (1, 2)],
}


@pytest.mark.parametrize("what", TWINS)
def test_settings_tell_two_orders_apart(what):
    one, other = TWINS[what]
    assert one.size == other.size
    assert one.settings != other.settings


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("sequential", "random", "distributed")])
def test_places_outside_an_epoch_are_refused_with_its_size(kind):
    sampler = KINDS[kind](9, 1, 1)
    size = sampler.size
    for start, stop in ((-1, 2), (0, size + 1), (2, 1)):
        with pytest.raises(
            InvalidValueError, match=rf"range of places is \[{start}, {stop}\); expected one inside \[0, {size}\)"
        ):
            sampler.indices(0, start, stop)
    for place in (-1, size):
        with pytest.raises(InvalidValueError, match=rf"place is {place}; expected one in \[0, {size}\)"):
            sampler.indices_at(0, np.array([0, place]))


HUGE = 2**40
MANY = [HUGE, 2**41, 1000]
EVERYWHERE = {
    "mixture": lambda: ResumableMixtureSampler(MANY, [0.6, 0.3, 0.1]),
    "mixture that ends": lambda: ResumableMixtureSampler([HUGE, 2**41], [0.7, 0.3], "end"),
    "concat": lambda: ResumableConcatSampler(MANY),
    "bucket": lambda: ResumableBucketSampler(range(HUGE), np.broadcast_to(np.int64(7), HUGE), chunk_size=16),
    "curriculum": lambda: ResumableCurriculumSampler(MANY, [("a", 2, 5000), ("b", 0, HUGE - 5), ("c", 1, None)]),
    "function": lambda: ResumableFunctionSampler(range(HUGE), rotate),
    "largest": lambda: ResumableMixtureSampler([2**61, 2**60], [2, 1], num_samples=2**62),
}


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_trillion_records_take_no_more_memory_than_a_thousand(kind):
    tracemalloc.start()
    sampler = EVERYWHERE[kind]()
    size = sampler.size
    assert size >= HUGE
    for epoch in (0, 10**6):
        near_end = sampler.indices(epoch, size - 2000, size)
        places = np.array([0, size // 3, size - 1, size - 2000])
        assert sampler.indices_at(epoch, places)[2:].tolist() == near_end[[-1, 0]].tolist()
        assert near_end.min() >= 0
        assert near_end.max() < 2**62
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


# To change a number here is to change the order of every run under way: that needs a new ORDER_VERSION.
GOLDEN = {
    "sequential": ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    "random": ([26, 12, 6, 25, 3, 11, 29, 16, 36, 24, 5, 34], [22, 6, 13, 37, 16, 2, 34, 14, 31, 29, 5, 24]),
    "distributed": ([26, 12, 6, 25, 3, 11, 29, 16, 36, 24, 5, 34], [22, 6, 13, 37, 16, 2, 34, 14, 31, 29, 5, 24]),
    "weighted": ([25, 6, 4, 34, 34, 5, 38, 38, 37, 2, 22, 38], [26, 8, 17, 37, 34, 22, 29, 6, 28, 38, 29, 34]),
    "weighted once": ([6, 38, 26, 33, 22, 28, 16, 8, 14, 18, 4, 37], [21, 9, 34, 16, 18, 37, 6, 10, 13, 12, 17, 4]),
    "mixture": ([39, 40, 2, 5, 50, 3, 52, 12, 54, 27, 43, 30], [21, 44, 4, 33, 50, 38, 48, 20, 54, 35, 53, 34]),
    "mixture that ends": (
        [39, 2, 40, 5, 50, 3, 12, 52, 27, 54, 30, 38],
        [39, 33, 52, 1, 51, 35, 10, 41, 15, 54, 17, 9],
    ),
    "mixture in order": ([0, 40, 1, 54, 2, 41, 3, 55, 4, 42, 5, 54], [20, 42, 21, 54, 22, 43, 23, 55, 24, 44, 25, 54]),
    "subset": ([18, 32, 30, 28, 8, 16, 22, 36, 14, 10, 26, 34], [14, 22, 24, 20, 34, 28, 4, 10, 12, 18, 6, 32]),
    "subset in order": ([39, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [39, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    "concat": ([22, 20, 29, 35, 38, 27, 2, 24, 28, 11, 14, 15], [13, 6, 33, 3, 14, 1, 17, 8, 2, 27, 20, 28]),
    "concat in order": ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    "bucket": ([26, 7, 27, 2, 37, 5, 12, 6, 3, 29, 36, 10], [30, 18, 38, 6, 1, 14, 21, 8, 22, 35, 16, 23]),
    "bucket in order": ([0, 7, 1, 8, 2, 9, 3, 10, 4, 11, 5, 6], [0, 7, 1, 8, 2, 9, 3, 10, 4, 11, 5, 6]),
    "curriculum": ([39, 0, 0, 39, 39, 15, 20, 17, 3, 13, 21, 2], [0, 39, 0, 0, 39, 11, 5, 37, 26, 33, 21, 22]),
    "function": ([7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]),
}


@every
def test_the_orders_of_version_1_never_change(kind):
    assert ORDER_VERSION == 1
    sampler = KINDS[kind](40, 7, 4)
    first, later = GOLDEN[kind]
    assert sampler.indices(0, 0, min(12, sampler.size)).tolist() == first
    assert sampler.indices(3, 0, min(12, sampler.size)).tolist() == later
