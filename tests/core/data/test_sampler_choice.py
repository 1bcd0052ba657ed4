import re

import pytest

from parhelion.data import DataLoaderParams, DatasetSplit, check_params, choose_sampler, count_batches
from parhelion.errors import InvalidTypeError, InvalidValueError, UnknownNameError
from parhelion.registry import Registry
from parhelion.sampling import (
    SAMPLER_REGISTRY,
    Position,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    Tail,
)

TRAIN, VALID, TEST = DatasetSplit


def choose(split=TRAIN, size=10, rank=0, world=1, *, parts=1, whole_tail=False, **params):
    given = {"rank": rank, "world": world, "parts": parts, "whole_tail": whole_tail}
    return choose_sampler(range(size), DataLoaderParams(**params), split, **given)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({}, ResumableSequentialSampler),
        ({"shuffle": True}, ResumableRandomSampler),
        ({"is_distributed": True}, ResumableDistributedSampler),
        ({"is_distributed": True, "shuffle": True}, ResumableDistributedSampler),
    ],
)
def test_the_flags_choose_the_sampler(params, kind):
    sampler = choose(batch_size=3, random_seed=5, **params)
    assert type(sampler) is kind
    assert sampler.batch_size == 3


def test_the_distributed_sampler_knows_the_batch_size_rank_and_world():
    sampler = choose(batch_size=2, is_distributed=True, rank=1, world=2, shuffle=True, random_seed=9)
    assert (sampler.shard.batch_size, sampler.shard.rank, sampler.shard.world) == (2, 1, 2)
    assert (sampler.shuffle, sampler.seed) == (True, 9)
    sampler.seek(Position(0, 4))
    assert sampler.start_iter == 1
    assert next(sampler.requests()).place == 6


def test_without_is_distributed_rank_and_world_are_not_looked_at():
    assert choose(rank=1, world=2).shard.world == 1


@pytest.mark.parametrize("split", [VALID, TEST])
@pytest.mark.parametrize(("size", "world"), [(11, 2), (3, 4), (2, 4), (8, 2)])
def test_evaluation_gives_every_record_once_over_all_ranks(split, size, world):
    ranks = [choose(split, size, rank, world, batch_size=2, is_distributed=True) for rank in range(world)]
    seen = [index for sampler in ranks for request in sampler.requests() for index in request.indices.tolist()]
    assert sorted(seen) == list(range(size))


def test_a_training_tail_is_padded_to_the_number_of_ranks_only():
    lengths = [len(list(choose(TRAIN, 11, rank, 2, batch_size=4, is_distributed=True))) for rank in range(2)]
    assert lengths == [6, 6]
    assert len(list(choose(TRAIN, 11, batch_size=4))) == 11


def test_a_training_tail_is_padded_to_the_parts_of_all_ranks():
    ranks = [choose(TRAIN, 11, rank, 2, parts=2, batch_size=4, is_distributed=True) for rank in range(2)]
    assert [list(sampler)[4:] for sampler in ranks] == [[8, 9], [10, 0]]
    assert len(list(choose(TRAIN, 11, batch_size=4, parts=4))) == 12


def test_an_evaluation_on_parts_repeats_nothing():
    assert list(choose(VALID, 11, batch_size=4, parts=4)) == list(range(11))


def test_ranks_that_compute_as_one_all_get_the_incomplete_last_batch_of_an_evaluation():
    ranks = [choose(TEST, 15, r, 2, whole_tail=True, parts=2, batch_size=4, is_distributed=True) for r in range(2)]
    taken = [[request.indices.tolist() for request in sampler.requests()] for sampler in ranks]
    assert taken == [[[0, 1, 2, 3], [8, 9, 10, 11, 12, 13, 14]], [[4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]]
    assert [request.place for request in ranks[1].requests()] == [4, 8]
    assert [count_batches(sampler) for sampler in ranks] == [2, 2]
    assert [sampler.num_remaining() for sampler in ranks] == [11, 11]
    assert list(ranks[1]) == [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    ranks[0].start_iter = 1
    assert list(ranks[0]) == list(range(8, 15))


@pytest.mark.parametrize(("split", "world"), [(TRAIN, 2), (VALID, 1)])
def test_a_training_tail_and_that_of_a_single_rank_are_never_whole(split, world):
    sampler = choose(split, 11, 0, world, whole_tail=True, batch_size=2, is_distributed=True)
    assert sampler.shard.tail is (Tail.PAD if split is TRAIN else Tail.MASK)


@pytest.mark.parametrize("whole_tail", [False, True])
def test_a_sampler_given_to_another_loader_gets_its_parts_and_tail(whole_tail):
    sampler = ResumableDistributedSampler(range(11), 2, 0, batch_size=4)
    choose(VALID, 11, parts=4, whole_tail=not whole_tail, sampler=sampler, batch_size=4)
    choose(VALID, 11, parts=2, whole_tail=whole_tail, sampler=sampler, batch_size=4)
    assert sampler.shard.parts == 2
    assert sampler.shard.tail is (Tail.WHOLE if whole_tail else Tail.MASK)


def test_a_batch_size_that_is_no_multiple_of_the_parts_is_refused():
    with pytest.raises(InvalidValueError, match="batch_size is 6; expected a multiple of 4, the parts"):
        choose(batch_size=6, parts=4)


def test_drop_last_drops_the_incomplete_batch_on_any_single_rank_split():
    for split in DatasetSplit:
        sampler = choose(split, 11, batch_size=4, drop_last=True)
        assert sampler.shard.tail is Tail.DROP
        assert len(list(sampler)) == 8
        assert count_batches(sampler) == 2


@pytest.mark.parametrize("own", [False, True])
def test_evaluation_on_several_ranks_refuses_to_drop_records(own):
    given = ResumableDistributedSampler(range(11), 2, 0, shuffle=False, drop_last=True, batch_size=2) if own else None
    with pytest.raises(InvalidValueError, match="drop_last is True for the valid split on 2 ranks; expected False"):
        choose(VALID, 11, 0, 2, batch_size=2, is_distributed=True, drop_last=not own, sampler=given)


def test_a_given_sampler_keeps_its_own_drop_last_and_seed_and_gets_the_tail_of_the_split():
    given = ResumableDistributedSampler(range(11), 2, 1, seed=4, drop_last=True, batch_size=2)
    assert choose(sampler=given, batch_size=2) is given
    assert given.shard.tail is Tail.TRIM
    plain = ResumableRandomSampler(range(11), seed=4, batch_size=2)
    choose(VALID, sampler=plain, batch_size=2)
    assert plain.shard.tail is Tail.MASK
    assert plain.seed == 4


def test_a_given_sampler_that_knows_no_ranks_is_shared_out_where_ranks_share_the_data():
    samplers = [ResumableRandomSampler(range(8), batch_size=2) for _ in range(2)]
    for rank, sampler in enumerate(samplers):
        choose(TRAIN, 8, rank, 2, sampler=sampler, batch_size=2, is_distributed=True)
    assert sorted(index for sampler in samplers for index in sampler) == list(range(8))


def test_a_sampler_can_be_given_by_name():
    sampler = choose(sampler="ResumableRandomSampler", batch_size=5, random_seed=3)
    assert (type(sampler), sampler.seed, sampler.batch_size) == (ResumableRandomSampler, 3, 5)


def test_a_registered_sampler_gets_the_params_that_it_has_arguments_for():
    registry = Registry("sampler", parent=SAMPLER_REGISTRY)

    @registry.register
    class Backwards(ResumableSampler):
        def __init__(self, data, batch_size, shuffle):
            super().__init__(batch_size)
            self.data, self.shuffle = data, shuffle

        size = property(lambda self: len(self.data))

        def indices(self, epoch, start, stop):
            raise NotImplementedError

    params = DataLoaderParams(sampler="Backwards", batch_size=2, shuffle=True)
    sampler = choose_sampler(range(6), params, TRAIN, registry=registry)
    assert (type(sampler), sampler.shuffle, sampler.batch_size) == (Backwards, True, 2)


def test_an_unknown_sampler_name_is_refused():
    with pytest.raises(UnknownNameError, match="sampler name is 'Random'"):
        choose(sampler="Random")


@pytest.mark.parametrize("given", [range(3), [0, 1], object()])
def test_a_sampler_that_is_not_resumable_is_refused(given):
    with pytest.raises(InvalidTypeError, match=f"sampler is a {type(given).__name__}; expected one derived from"):
        choose(sampler=given)


def test_a_sampler_with_another_batch_size_is_refused_with_both_numbers():
    with pytest.raises(InvalidValueError, match="batch_size of the sampler is 2 and that of the loader 3"):
        choose(sampler=ResumableSequentialSampler(range(9), 2), batch_size=3)


def test_an_empty_dataset_is_refused():
    with pytest.raises(InvalidValueError, match=r"is empty \(a range of length 0\)"):
        choose(size=0)


def test_a_dataset_without_a_length_is_refused():
    with pytest.raises(InvalidTypeError, match="is a generator; expected a dataset with a length"):
        choose_sampler((i for i in ()), DataLoaderParams(), TRAIN)


def test_fewer_records_than_a_batch_with_drop_last_say_that_no_batch_is_left():
    message = (
        "drop_last is True and the train data has 3 records, but a batch of all ranks takes 8 "
        "(2 x batch_size 4), so no batch is left; expected at least that many records. "
        "Lower batch_size, or set drop_last=False."
    )
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        choose(TRAIN, 3, 0, 2, batch_size=4, drop_last=True, is_distributed=True)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"batch_size": 0}, InvalidValueError, "batch_size is 0; expected an integer >= 1"),
        ({"batch_size": 2.0}, InvalidTypeError, "batch_size is 2.0; expected an integer >= 1"),
        ({"num_workers": -1}, InvalidValueError, "num_workers is -1; expected an integer >= 0"),
        ({"num_workers": None}, InvalidTypeError, "num_workers is None; expected an integer >= 0"),
        ({"random_seed": -1}, InvalidValueError, "random_seed is -1; expected an integer from 0"),
    ],
)
def test_numbers_that_cannot_work_are_refused(params, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_params(DataLoaderParams(**params))


def test_a_rank_without_records_in_the_tail_counts_one_batch_less():
    counts = [count_batches(choose(VALID, 9, rank, 2, batch_size=4, is_distributed=True)) for rank in range(2)]
    assert counts == [2, 1]
