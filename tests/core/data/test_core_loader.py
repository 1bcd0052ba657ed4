import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import COLLATE_FN_REGISTRY, DataLoaderParams, DatasetSplit, Loader, create_loader
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import Position, ResumableRandomSampler, ResumableSequentialSampler, Shard, Tail
from parhelion.seeds import sample_rng

SIZE = 23


class Noisy:
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return {"index": index, "own": sample_rng().random(), "other": random.random() + np.random.rand()}


def make(batch_size=4, global_rng=None, **options):
    sampler = ResumableRandomSampler(Noisy(), seed=5, batch_size=batch_size)
    return Loader(Noisy(), sampler, seed=7, global_rng=global_rng, **options), sampler


def epoch(loader, sampler, position):
    sampler.seek(position)
    return [{name: column.tolist() for name, column in batch.items()} for batch in loader]


@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_entered_at_any_batch_gives_the_rest_of_the_whole(number):
    loader, sampler = make()
    whole = epoch(loader, sampler, Position(number))
    assert sorted(index for batch in whole for index in batch["index"]) == list(range(SIZE))
    for k in range(len(whole)):
        assert epoch(*make(), Position(number, 4 * k)) == whole[k:]


@given(offset=st.integers(0, SIZE - 1), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_with_keys_per_sample_records_are_the_same_whatever_the_batch_size(offset, sizes):
    def rows(batch_size):
        batches = epoch(*make(batch_size, "sample"), Position(1, offset))
        return [row for batch in batches for row in zip(*batch.values(), strict=True)]

    assert rows(sizes[0]) == rows(sizes[1])


def test_leaving_an_epoch_early_leaves_nothing_behind():
    loader, sampler = make()
    expected = epoch(*make(), Position(1))
    next(iter(loader))
    assert epoch(loader, sampler, Position(1)) == expected


def test_two_iterations_at_once_do_not_disturb_each_other():
    loader, sampler = make()
    sampler.seek(Position(2, 4))
    one = iter(loader)
    first = next(one)
    sampler.seek(Position(0))
    pairs = list(zip(one, loader, strict=False))
    again = epoch(*make(), Position(2, 4)), epoch(*make(), Position(0))
    assert first["own"].tolist() == again[0][0]["own"]
    assert [a["own"].tolist() for a, _ in pairs] == [batch["own"] for batch in again[0][1:]]
    assert [b["other"].tolist() for _, b in pairs] == [batch["other"] for batch in again[1][: len(pairs)]]


def test_the_position_is_read_when_an_iteration_begins():
    loader, sampler = make()
    sampler.seek(Position(0, 8))
    batches = iter(loader)
    sampler.seek(Position(0, 0))
    assert next(batches)["index"].tolist() == sampler.indices(0, 8, 12).tolist()


def test_iterating_moves_neither_the_position_nor_the_training_streams():
    loader, sampler = make()
    random.seed(1)
    state = random.getstate()
    list(loader)
    assert sampler.position == Position(0)
    assert random.getstate() == state


def test_the_length_is_that_of_a_whole_epoch():
    loader, sampler = make()
    sampler.seek(Position(0, 8))
    assert len(loader) == 6
    sampler.reshard(Shard(4, 1, 3))
    assert len(loader) == 2


def test_a_rank_for_which_the_last_batch_has_no_record_ends_before_it():
    sampler = ResumableSequentialSampler(range(9), 4)
    sampler.reshard(Shard(4, 1, 2, Tail.MASK))
    loader = Loader(range(9), sampler, split=DatasetSplit.VALID)
    assert [batch.tolist() for batch in loader] == [[4, 5, 6, 7]]
    assert len(loader) == 1


def test_a_loader_says_what_it_was_made_of():
    loader, sampler = make(collate_fn=len)
    assert (loader.sampler, loader.batch_size, loader.collate_fn) == (sampler, 4, len)
    assert isinstance(loader.dataset, Noisy)
    assert list(loader) == [4, 4, 4, 4, 4, 3]


def test_create_loader_follows_the_params():
    params = DataLoaderParams(7, 4, shuffle=True, drop_last=True, collate_fn=list, options={"global_rng": "sample"})
    loader, sampler = create_loader(Noisy(), DatasetSplit.TRAIN, params)
    assert sampler.seed == 7
    assert len(loader) == 5
    by_hand = Loader(Noisy(), sampler, seed=7, collate_fn=list, global_rng="sample")
    assert list(loader) == list(by_hand)


def test_a_collate_function_that_raises_stop_iteration_does_not_end_the_epoch():
    def stop(records):
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(make(collate_fn=stop)[0])


def test_the_split_is_part_of_the_key():
    def own(split):
        return next(iter(create_loader(Noisy(), split, DataLoaderParams())[0]))["own"].tolist()

    assert len({tuple(own(split)) for split in DatasetSplit}) == 3


def test_a_registered_collate_function_can_be_named():
    named, _ = create_loader(Noisy(), DatasetSplit.TRAIN, DataLoaderParams(batch_size=SIZE, collate_fn="default"))
    plain, _ = create_loader(Noisy(), DatasetSplit.TRAIN, DataLoaderParams(batch_size=SIZE))
    assert next(iter(named))["own"].tolist() == next(iter(plain))["own"].tolist()


def test_a_registered_collate_class_is_constructed():
    @COLLATE_FN_REGISTRY.register
    class Count:
        def __call__(self, records):
            return len(records)

    loader, _ = create_loader(Noisy(), DatasetSplit.TRAIN, DataLoaderParams(batch_size=20, collate_fn="Count"))
    assert list(loader) == [20, 3]


def test_what_is_no_collate_function_is_refused():
    with pytest.raises(InvalidTypeError, match="collate_fn is 3; expected a function of a list of records"):
        create_loader(Noisy(), DatasetSplit.TRAIN, DataLoaderParams(collate_fn=3))


def test_an_unknown_option_is_refused_with_a_near_match():
    with pytest.raises(InvalidValueError, match=r"option of the loader is 'global_rgn'.* Did you mean 'global_rng'"):
        create_loader(Noisy(), DatasetSplit.TRAIN, DataLoaderParams(options={"global_rgn": "off"}))


def test_a_bad_seed_is_refused():
    with pytest.raises(InvalidValueError, match="seed is -1"):
        Loader(Noisy(), ResumableRandomSampler(Noisy()), seed=-1)
