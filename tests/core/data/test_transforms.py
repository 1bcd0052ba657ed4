import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import (
    ArrayDataset,
    Chain,
    Collate,
    ConcatDataset,
    DatasetSplit,
    Fetch,
    Loader,
    MixUp,
    Records,
    Subset,
    TransformedDataset,
    collate,
    transformed,
)
from parhelion.errors import InvalidTypeError, RecordError, SampleScopeError
from parhelion.generators import PythonGenerators
from parhelion.sampling import FetchRequest, Position, ResumableRandomSampler
from parhelion.seeds import sample_rng, sample_scope
from parhelion.testing import check_loader_resumes

SIZE = 23


class Alone:
    """Each record is an array that was drawn."""

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return np.array([index, sample_rng().random()])


class Together(Alone):
    def __getitems__(self, indices):
        return [np.array([index, sample_rng(k).random()]) for k, index in enumerate(indices)]


class Batches(Alone):
    returns_batches = True

    def __getitems__(self, indices):
        raise NotImplementedError


class OnlyBatches:
    returns_batches = True

    def __len__(self):
        return SIZE

    def __getitems__(self, indices):
        return indices


def add_noise(record):
    return np.append(record, sample_rng().random())


def add_more(record, rng):
    return np.append(record, rng.normal(size=2))


def double(record):
    return record * 2


def fetch(dataset, indices, place=7, **options):
    return Fetch(
        dataset,
        split=DatasetSplit.TRAIN,
        seed=1,
        collate_fn=options.pop("collate_fn", None),
        default_collate=collate,
        generators=PythonGenerators(),
        **options,
    )(FetchRequest(0, place, np.array(indices, np.int64)))


@given(
    kind=st.sampled_from([Alone, Together, Batches]),
    indices=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=9),
    place=st.integers(0, 2**40),
)
def test_records_are_the_same_bytes_however_they_are_fetched(kind, indices, place):
    dataset = transformed(kind(), add_noise, Chain(double, add_more))
    assert callable(dataset.__getitems__) == (kind is not Alone)
    expected = [
        fetch(transformed(Alone(), add_noise, double, add_more), [i], place + k)[0] for k, i in enumerate(indices)
    ]
    np.testing.assert_array_equal(fetch(dataset, indices, place), expected)


@given(indices=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=9))
def test_transforms_of_transforms_and_of_parts_draw_on_from_the_same_streams(indices):
    expected = fetch(transformed(Alone(), add_noise, add_more, add_noise), indices)
    inner = transformed(Together(), add_noise)
    joined = ConcatDataset([Subset(inner, range(5)), Subset(transformed(Alone(), add_noise), range(5, SIZE))])
    for dataset in (transformed(inner, add_more), transformed(joined, add_more)):
        found = fetch(transformed(Subset(dataset, range(SIZE)), add_noise), indices)
        np.testing.assert_array_equal(found, expected)


def test_by_hand_a_scope_gives_what_the_loader_gives():
    dataset = transformed(Alone(), add_noise)
    with sample_scope(1, place=9):
        by_hand = dataset[4]
    np.testing.assert_array_equal(fetch(dataset, [4], 9)[0], by_hand)


def test_a_transform_that_draws_nothing_needs_no_fetch():
    assert transformed([1, 2, 3], double)[1] == 4
    assert transformed(ArrayDataset(np.arange(3)), double).__getitems__([2, 0]) == [4, 0]
    with pytest.raises(RecordError, match=r"sample_rng.. was called outside a fetch") as caught:
        transformed(ArrayDataset(np.arange(3)), add_noise).__getitems__([2])
    assert isinstance(caught.value.__cause__, SampleScopeError)


def test_rows_of_arrays_are_transformed_one_by_one_and_stacked():
    arrays = {"x": np.arange(12.0).reshape(6, 2), "y": np.arange(6)}
    dataset = transformed(ArrayDataset(arrays), lambda record: record | {"x": record["x"] + record["y"]})
    batch = fetch(dataset, [4, 1])
    assert {name: part.tolist() for name, part in batch.items()} == {"x": [[12, 13], [3, 4]], "y": [4, 1]}
    assert arrays["x"][4].tolist() == [8, 9]


def test_process_wide_generators_are_keyed_unless_dataset_and_transforms_say_off():
    quiet = MixUp()
    assert quiet.global_rng == "off"
    arrays = ArrayDataset(np.arange(3))
    assert transformed(arrays).global_rng == "off"
    assert transformed(arrays, double).global_rng == "batch"

    def throw(record):
        return [*record, random.random()]

    alone = transformed([[k] for k in range(SIZE)], throw)
    assert alone.global_rng == "batch"
    one = fetch(alone, [3, 4], global_rng="sample", collate_fn=list)
    assert one[1] == fetch(alone, [4], 8, global_rng="sample", collate_fn=list)[0]


def test_a_record_that_fails_together_with_others_is_named():
    def fail(record):
        return 1 // int(record - 4)

    message = r"record with sample index 4 failed in its transforms, Chain\(fail, double\) \(ZeroDivisionError: "
    with pytest.raises(RecordError, match=message):
        fetch(transformed(ArrayDataset(np.arange(9)), fail, double), [7, 2, 4, 1])


@pytest.mark.parametrize(
    ("dataset", "transforms", "message"),
    [
        ([1], [5], "transform is 5, a int; expected a function of one record"),
        ([1], [[double, add_noise]], "a list; expected a function of one record"),
        ([1], [MixUp()], r"transform is MixUp, which mixes the records of a batch; .*Collate\(then=\[MixUp"),
        ([1], [Chain(double, MixUp())], "transform is MixUp"),
        (OnlyBatches(), [double], r"dataset is a OnlyBatches, which returns batches and no records.*Collate\(then="),
    ],
)
def test_what_cannot_be_transformed_or_transform_is_refused(dataset, transforms, message):
    with pytest.raises(InvalidTypeError, match=message):
        TransformedDataset(dataset, *transforms)


def test_a_chain_can_be_empty_nested_pickled_and_read():
    assert Chain()(5) == 5
    chain = pickle.loads(pickle.dumps(Chain(double, Chain(add_more))))  # noqa: S301 - our own bytes
    assert repr(chain) == "Chain(double, Chain)"
    with sample_scope(3):
        drawn = chain(np.ones(1))
    with sample_scope(3):
        np.testing.assert_array_equal(drawn, [2, *sample_rng().normal(size=2)])
    assert Chain(int)("7") == 7


def scale(batch, rng):
    return batch * rng.random()


def shift(batch):
    return batch + sample_rng().random() + sample_rng(1).random()


@pytest.mark.parametrize("dataset", [Alone(), Together(), ArrayDataset(np.arange(SIZE, dtype=np.float64))])
def test_batch_transforms_draw_by_the_place_of_the_batch_s_first_record(dataset):
    finish = Collate(then=[scale, shift])
    stacked = fetch(dataset, [5, 1, 2], 10)

    def expected(records):
        rng = sample_rng(0)
        factor, first = rng.random(), rng.random()
        return stacked * factor + first + sample_rng(1).random()

    found = fetch(dataset, [5, 1, 2], 10, collate_fn=finish)
    np.testing.assert_array_equal(found, fetch(dataset, [5, 1, 2], 10, collate_fn=expected))
    assert not np.array_equal(found, fetch(dataset, [5, 1, 2], 11, collate_fn=finish))


def test_records_are_stacked_as_asked_and_functions_follow_in_their_order():
    assert Collate()([1, 2]).tolist() == [1, 2]
    assert Collate(stack=sum, then=[double, str])([1, 2]) == "6"
    assert Collate(then=[double])(Records([1, 2], [0, 1])).tolist() == [2, 4]
    assert Collate(then=[double])(np.array([1, 2])).tolist() == [2, 4]
    more = Collate(stack=sum, then=[double]).followed_by(str)
    assert more([1, 2]) == "6"
    assert repr(more) == "Collate(then=Chain(double, str))"
    assert pickle.loads(pickle.dumps(Collate(then=[double])))([1]).tolist() == [2]  # noqa: S301 - our own bytes


def test_what_is_no_function_of_a_batch_is_refused():
    with pytest.raises(InvalidTypeError, match="stack is 5; expected a function of a list of records"):
        Collate(stack=5)
    with pytest.raises(InvalidTypeError, match="transform is None, a NoneType"):
        Collate(then=[None])


def make(dataset, batch_size=4, **options):
    def make_loader():
        sampler = ResumableRandomSampler(dataset, seed=3, batch_size=batch_size)
        return Loader(dataset, sampler, seed=1, collate_fn=Collate(then=[scale]), **options), sampler

    return make_loader


@pytest.mark.processes
@pytest.mark.parametrize("dataset", [transformed(Alone(), add_noise), transformed(Together(), add_noise, add_more)])
def test_a_loader_resumes_and_workers_give_the_same_batches(dataset):
    check_loader_resumes(make(dataset), max_examples=5)

    def batches(loader, sampler):
        sampler.seek(Position(2, 8))
        return [batch.tolist() for batch in loader]

    with make(dataset, num_workers=2)()[0] as loader:
        assert batches(loader, loader.sampler) == batches(*make(dataset)())


def test_what_a_record_draws_does_not_depend_on_the_batch_size():
    def rows(batch_size):
        dataset = transformed(ArrayDataset(np.arange(float(SIZE))), add_noise)
        sampler = ResumableRandomSampler(dataset, seed=3, batch_size=batch_size)
        return [row for batch in Loader(dataset, sampler, seed=1) for row in batch.tolist()]

    assert rows(3) == rows(10)
