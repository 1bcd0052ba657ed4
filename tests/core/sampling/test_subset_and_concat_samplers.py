import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableConcatSampler, ResumableSubsetSampler


@given(chosen=st.lists(st.integers(0, 19), min_size=1, max_size=40), epoch=st.integers(0, 9))
def test_a_subset_gives_each_chosen_record_as_often_as_it_is_named(chosen, epoch):
    sampler = ResumableSubsetSampler(range(20), chosen, seed=1)
    assert sampler.size == len(chosen)
    assert sorted(sampler.indices(epoch, 0, len(chosen)).tolist()) == sorted(chosen)
    assert ResumableSubsetSampler(range(20), chosen, shuffle=False).indices(epoch, 0, len(chosen)).tolist() == chosen


def test_a_subset_does_not_follow_an_array_that_is_changed_later():
    chosen = np.array([3, 1, 2])
    sampler = ResumableSubsetSampler(range(5), chosen, shuffle=False)
    chosen[0] = 4
    assert list(sampler) == [3, 1, 2]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), epoch=st.integers(0, 5))
def test_a_concatenation_gives_one_dataset_after_another_each_whole(sizes, epoch):
    sampler = ResumableConcatSampler(sizes, seed=4)
    found = sampler.indices(epoch, 0, sum(sizes))
    start = 0
    for size in sizes:
        assert sorted(found[start : start + size].tolist()) == list(range(start, start + size))
        start += size
    assert list(ResumableConcatSampler(sizes, shuffle=False)) == list(range(sum(sizes)))


def test_datasets_of_one_size_have_orders_of_their_own():
    found = ResumableConcatSampler([500, 500], seed=1).indices(0, 0, 1000)
    assert np.count_nonzero(found[:500] == found[500:] - 500) < 20


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (
            [0, 20],
            InvalidValueError,
            "indices has the index 20; expected indices in [0, 20), the records of data_source",
        ),
        ([-1, 2], InvalidValueError, "indices has the index -1; expected indices in [0, 20)"),
        (
            [],
            InvalidValueError,
            "indices has the shape (0,); expected integers, the chosen records, one axis and at least",
        ),
        ([0.5], InvalidTypeError, "indices has the dtype float64; expected integers, the chosen records. Convert it."),
        (
            [True] * 20,
            InvalidTypeError,
            "indices has the dtype bool; expected integers, the chosen records. Write np.fl",
        ),
        ([[1, 2]], InvalidValueError, "indices has the shape (1, 2); expected"),
    ],
)
def test_indices_that_are_no_records_are_refused(indices, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ResumableSubsetSampler(range(20), indices)


def test_a_switch_that_is_no_switch_is_refused():
    with pytest.raises(InvalidTypeError, match=r"shuffle is 'no'; expected True or False"):
        ResumableConcatSampler([3], "no")
