from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import DuplicateNameError, InvalidTypeError, InvalidValueError, UnknownNameError
from parhelion.registry import Registry
from parhelion.sampling import (
    ORDER_VERSION,
    SAMPLER_REGISTRY,
    Permutation,
    Position,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    Shard,
    Tail,
    create_sampler,
)
from parhelion.seeds import derive


class Records:
    """A dataset that only has a length."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


class EveryOther(ResumableSampler):
    """What a user writes: the even records, then the odd ones."""

    def __init__(self, data_source, batch_size=1):
        super().__init__(batch_size)
        self.data_source = data_source

    @property
    def size(self):
        return len(self.data_source)

    def indices(self, epoch, start, stop):
        places = np.arange(start, stop)
        half = -(-self.size // 2)
        return np.where(places < half, 2 * places, 2 * (places - half) + 1)


def test_the_random_order_is_the_permutation_keyed_by_seed_and_epoch():
    sampler = ResumableRandomSampler(Records(5000), seed=3, batch_size=8)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        expected = Permutation(5000, derive(3, "order", epoch)).indices(0, 5000)
        assert list(sampler) == expected.tolist()
        assert np.array_equal(sampler.indices(epoch, 100, 4000), expected[100:4000])
        assert np.array_equal(sampler.indices_at(epoch, np.array([4999, 0, 0])), expected[[4999, 0, 0]])


def test_the_sequential_order_is_the_dataset_s():
    sampler = ResumableSequentialSampler(Records(1000), batch_size=8)
    sampler.set_epoch(4)
    assert list(sampler) == list(range(1000))
    assert sampler.indices(4, 7, 11).tolist() == [7, 8, 9, 10]
    assert sampler.seed is None


def test_indices_are_plain_integers():
    assert {type(i) for i in ResumableRandomSampler(Records(100))} == {int}


def test_seed_0_epoch_1_is_not_seed_1_epoch_0():
    first, second = ResumableRandomSampler(Records(100), seed=0), ResumableRandomSampler(Records(100), seed=1)
    first.set_epoch(1)
    assert list(first) != list(second)


@pytest.mark.parametrize("shuffle", [True, False])
def test_all_ranks_together_give_the_order_of_one_process(shuffle):
    dataset = Records(103)
    alone = ResumableRandomSampler(dataset, seed=9) if shuffle else ResumableSequentialSampler(dataset)
    alone.set_epoch(2)
    ranks = [ResumableDistributedSampler(dataset, 4, r, shuffle, 9, batch_size=5) for r in range(4)]
    for sampler in ranks:
        sampler.set_epoch(2)
    requests = list(zip(*(sampler.requests() for sampler in ranks), strict=True))
    together = np.concatenate([request.indices for batch in requests for request in batch])
    assert together[:103].tolist() == list(alone)
    assert together[103:].tolist() == list(alone)[:1]
    assert [[request.place for request in batch] for batch in requests[:2]] == [
        [0, 5, 10, 15],
        [20, 25, 30, 35],
    ]


def test_distinct_ranks_partition_the_records():
    parts = [set(ResumableDistributedSampler(Records(96), 4, rank, batch_size=5)) for rank in range(4)]
    assert [len(part) for part in parts] == [24] * 4
    assert set.union(*parts) == set(range(96))


def test_without_a_group_a_distributed_sampler_is_the_only_rank():
    sampler = ResumableDistributedSampler(Records(10))
    assert (sampler.num_replicas, sampler.rank) == (1, 0)


def test_a_subclass_may_say_which_rank_of_which_group_it_is():
    class OfGroup(ResumableDistributedSampler):
        def _group(self):
            return 4, 2

    sampler = OfGroup(Records(100))
    assert (sampler.num_replicas, sampler.rank) == (4, 2)
    sampler = OfGroup(Records(100), num_replicas=3)
    assert (sampler.num_replicas, sampler.rank) == (3, 2)
    sampler = OfGroup(Records(100), rank=0)
    assert (sampler.num_replicas, sampler.rank) == (4, 0)


def test_a_distributed_sampler_has_the_attributes_of_torch_s():
    dataset = Records(10)
    sampler = ResumableDistributedSampler(dataset, 4, 1, shuffle=False, seed=5, drop_last=True)
    sampler.set_epoch(3)
    names = ["num_replicas", "rank", "epoch", "drop_last", "num_samples", "total_size", "shuffle", "seed"]
    assert [getattr(sampler, name) for name in names] == [4, 1, 3, True, 2, 8, False, 5]
    assert sampler.dataset is dataset


@given(size=st.integers(1, 200), world=st.integers(1, 9), batch_size=st.integers(1, 9), drop_last=st.booleans())
@settings(deadline=None)
def test_the_length_of_a_distributed_sampler_is_torch_s(size, world, batch_size, drop_last):
    counted = size - world if drop_last and size % world else size
    expected = -(-counted // world)
    for rank in range(world):
        sampler = ResumableDistributedSampler(Records(size), world, rank, drop_last=drop_last, batch_size=batch_size)
        assert len(sampler) == sampler.num_samples == len(list(sampler)) == max(0, expected)


@pytest.mark.parametrize("make", [ResumableRandomSampler, ResumableSequentialSampler, EveryOther])
@given(size=st.integers(1, 300), batch_size=st.integers(1, 40), data=st.data())
@settings(deadline=None)
def test_len_is_the_dataset_s_and_num_remaining_what_the_next_iteration_gives(make, size, batch_size, data):
    sampler = make(Records(size), batch_size=batch_size)
    start = data.draw(st.integers(0, (size - 1) // batch_size))
    sampler.start_iter = start
    assert len(sampler) == sampler.size == size
    assert sampler.num_remaining() == len(list(sampler)) == size - start * batch_size
    assert sampler.num_batches_remaining() == len(list(sampler.requests()))


@given(
    size=st.integers(1, 2000),
    batch_size=st.integers(1, 50),
    world=st.integers(1, 6),
    tail=st.sampled_from(Tail),
    data=st.data(),
)
@settings(deadline=None)
def test_iteration_and_requests_give_the_same_indices_for_any_shard(size, batch_size, world, tail, data):
    start = Position(1, data.draw(st.integers(0, size - 1)))
    for rank in range(world):
        sampler = ResumableRandomSampler(Records(size), 5, batch_size)
        sampler.reshard(Shard(batch_size, rank, world, tail))
        sampler.seek(start)
        requests = list(sampler.requests())
        flat = [index for request in requests for index in request.indices.tolist()]
        assert list(sampler) == flat
        assert sampler.num_remaining() == len(flat)
        assert len(requests) == sampler.num_batches_remaining()
        order = sampler.indices(1, 0, size)
        for request in requests:
            places = np.arange(request.place, request.place + len(request.indices)) % size
            assert np.array_equal(request.indices, order[places])
            assert request.epoch == 1


def test_a_user_s_own_sampler_of_ten_lines_works_on_any_shard():
    sampler = EveryOther(Records(11), batch_size=2)
    order = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]
    assert list(sampler) == order
    assert sampler.indices_at(0, np.array([6, 7, 0, 10])).tolist() == [1, 3, 0, 9]
    assert sampler.indices_at(0, np.empty(0, np.int64)).tolist() == []
    sampler.reshard(Shard(2, 1, 2))
    assert [request.indices.tolist() for request in sampler.requests()] == [[4, 6], [1, 3], [9, 0]]
    sampler.start_iter = 1
    assert list(sampler) == [1, 3, 9, 0]
    assert sampler.name == "EveryOther"


def test_a_start_set_once_belongs_to_the_first_epoch_of_the_loop_only():
    sampler = ResumableRandomSampler(Records(20), seed=1, batch_size=4)
    orders = [sampler.indices(epoch, 0, 20).tolist() for epoch in range(5)]
    sampler.start_iter = 3
    given = []
    for epoch in range(2, 5):
        sampler.set_epoch(epoch)
        given.append(list(sampler))
    assert given == [orders[2][12:], orders[3], orders[4]]
    assert sampler.start_iter == 0


def test_a_start_survives_changes_of_epoch_until_an_iteration_begins():
    sampler = ResumableSequentialSampler(Records(20), batch_size=4)
    sampler.set_epoch(5)
    sampler.start_iter = 2
    sampler.set_epoch(6)
    sampler.set_epoch(7)
    assert sampler.position == Position(7, 8)
    iter(sampler)
    sampler.set_epoch(7)
    assert sampler.position == Position(7, 8)
    sampler.set_epoch(8)
    assert sampler.position == Position(8, 0)


def test_iterating_over_the_same_epoch_again_gives_the_same_again():
    sampler = ResumableRandomSampler(Records(20), seed=1, batch_size=4)
    sampler.start_iter = 2
    assert list(sampler) == list(sampler)
    assert sampler.start_iter == 2


def test_a_start_set_while_iterating_is_for_the_next_iteration():
    sampler = ResumableSequentialSampler(Records(20), batch_size=4)
    running = iter(sampler)
    requests = sampler.requests()
    assert list(islice(running, 2)) == [0, 1]
    sampler.seek(Position(1, 16))
    sampler.reshard(Shard(2))
    assert list(running) == list(range(2, 20))
    assert [request.place for request in requests] == [0, 4, 8, 12, 16]
    sampler.set_epoch(2)
    assert sampler.position == Position(2, 16)


def test_seek_sets_epoch_and_offset_and_start_iter_counts_global_batches():
    sampler = ResumableDistributedSampler(Records(100), 4, 1, batch_size=3)
    sampler.seek(Position(6, 25))
    assert (sampler.epoch, sampler.start_iter, sampler.position) == (6, 2, Position(6, 25))
    sampler.start_iter = 5
    assert sampler.position == Position(6, 60)
    sampler.epoch = 7
    assert sampler.position == Position(7, 60)


def test_a_new_shard_keeps_the_place_of_the_start():
    sampler = ResumableDistributedSampler(Records(100), 4, 1, batch_size=3)
    sampler.seek(Position(2, 24))
    sampler.reshard(Shard(5, 1, 2, Tail.DROP))
    assert sampler.position == Position(2, 24)
    assert (sampler.batch_size, sampler.num_replicas, sampler.rank, sampler.drop_last) == (5, 2, 1, True)
    assert (sampler.num_samples, sampler.total_size) == (50, 100)
    assert next(sampler.requests()).place == 29


def test_every_rank_has_as_many_requests_though_one_be_empty():
    counts = []
    for rank in range(4):
        sampler = ResumableSequentialSampler(Records(21), batch_size=4)
        sampler.reshard(Shard(4, rank, 4, Tail.MASK))
        counts.append([len(request.indices) for request in sampler.requests()])
    assert counts == [[4, 2], [4, 2], [4, 1], [4, 0]]


@pytest.mark.parametrize("size", [10**12, 2**62])
def test_a_dataset_may_be_larger_than_any_memory(size):
    sampler = ResumableRandomSampler(Records(size), seed=4, batch_size=7)
    sampler.seek(Position(3, size - 15))
    last = list(iter(sampler))  # list(sampler) would first make room for the whole length
    assert len(set(last)) == 15
    assert last == sampler.indices(3, size - 15, size).tolist()
    rank = ResumableDistributedSampler(Records(size), 3, 1, seed=4, batch_size=7)
    rank.seek(Position(3, size - 15))
    assert list(iter(rank)) == last[5:10]
    assert sampler.num_batches_remaining() == 3


def test_samplers_are_made_by_name():
    kinds = [
        "Bucket",
        "Concat",
        "Curriculum",
        "Distributed",
        "Function",
        "Mixture",
        "Random",
        "Sequential",
        "Subset",
        "Weighted",
    ]
    assert SAMPLER_REGISTRY.names() == [f"Resumable{kind}Sampler" for kind in kinds]
    sampler = create_sampler("ResumableRandomSampler", Records(10), seed=3, batch_size=2)
    assert type(sampler) is ResumableRandomSampler
    assert (sampler.name, sampler.seed, sampler.batch_size) == ("ResumableRandomSampler", 3, 2)
    assert sampler.order_version == ORDER_VERSION
    with pytest.raises(UnknownNameError, match="Did you mean 'ResumableRandomSampler'"):
        create_sampler("ResumableRandmSampler", Records(10))


def test_a_user_s_sampler_registers_and_is_made_by_name():
    registry = Registry("sampler", parent=SAMPLER_REGISTRY)
    registry.register(EveryOther)
    assert isinstance(registry.get("EveryOther")(Records(4)), EveryOther)
    with pytest.raises(DuplicateNameError, match="sampler name 'ResumableRandomSampler' is taken"):
        SAMPLER_REGISTRY.register(EveryOther, name="ResumableRandomSampler")


def started(**state):
    sampler = ResumableSequentialSampler(Records(10), batch_size=4)
    for name, value in state.items():
        setattr(sampler, name, value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ResumableRandomSampler([]),
            InvalidValueError,
            r"data_source is empty \(a list of length 0\); expe",
        ),
        (
            lambda: ResumableDistributedSampler(Records(0)),
            InvalidValueError,
            r"dataset is empty \(a Records of len",
        ),
        (
            lambda: ResumableSequentialSampler(Records(2**62 + 1)),
            InvalidValueError,
            r"data_source is too large",
        ),
        (
            lambda: ResumableRandomSampler(5),
            InvalidTypeError,
            r"data_source is a int; expected a dataset with a le",
        ),
        (
            lambda: ResumableRandomSampler([1], seed=-1),
            InvalidValueError,
            r"seed is -1; expected an integer from 0",
        ),
        (
            lambda: ResumableRandomSampler([1], seed=2**64),
            InvalidValueError,
            r"seed is 18446744073709551616; expect",
        ),
        (
            lambda: ResumableRandomSampler([1], seed=None),
            InvalidTypeError,
            r"seed is None; expected an integer fro",
        ),
        (
            lambda: ResumableRandomSampler([1], 0, 0),
            InvalidValueError,
            r"batch_size is 0; expected an integer >= 1",
        ),
        (
            lambda: ResumableDistributedSampler([1], 4, 4),
            InvalidValueError,
            r"rank is 4; expected .* from 0 to 3",
        ),
        (
            lambda: ResumableDistributedSampler([1], 0, 0),
            InvalidValueError,
            r"num_replicas is 0; expected an int",
        ),
        (
            lambda: started(epoch=-1),
            InvalidValueError,
            r"epoch is -1; expected an integer >= 0\. The first epoch",
        ),
        (lambda: started(epoch=1.5), InvalidTypeError, r"epoch is 1\.5; expected an integer >= 0"),
        (lambda: started(start_iter=-1), InvalidValueError, r"start_iter is -1; expected an integer >= 0"),
        (
            lambda: started(start_iter=3),
            InvalidValueError,
            r"start_iter is 3, which is record 12; expected a start below 10, .* comes set_epoch\(1\)",
        ),
        (
            lambda: ResumableRandomSampler([1]).seek(Position(4, 1)),
            InvalidValueError,
            r"offset of the position is 1; expected one below 1, the records .* comes Position\(5, 0\)",
        ),
        (
            lambda: ResumableRandomSampler([1]).seek((0, 1)),
            InvalidTypeError,
            r"position is \(0, 1\); expected a Pos",
        ),
        (
            lambda: ResumableRandomSampler([1]).reshard(4),
            InvalidTypeError,
            r"shard is 4; expected a Shard\. Write",
        ),
    ],
)
def test_what_no_sampler_can_do_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
