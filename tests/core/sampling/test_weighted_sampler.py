"""Records by weight: how often each comes, and that one of weight 0 never does."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableWeightedSampler
from parhelion.sampling._weighted import _log
from support.chance import chi_square

some_weights = st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=40).filter(
    lambda all_: sum(all_) > 1e-200
)


def make(weights, *args, **options):
    return ResumableWeightedSampler(range(len(weights)), weights, *args, **options)


def draw(weights, epochs, **options):
    sampler = make(weights, **options)
    return np.array([sampler.indices(epoch, 0, sampler.size) for epoch in range(epochs)])


@pytest.mark.parametrize("weights", [[1, 2, 3, 4], [0.1, 0, 0.7, 0.2, 0], [5] * 7, [1e-280, 3e-280], [1e300, 2e300]])
def test_with_replacement_each_record_comes_as_often_as_its_share(weights):
    counts = np.bincount(draw(weights, 3, num_samples=40_000).ravel(), minlength=len(weights))
    shares = np.array(weights) / np.max(weights)
    shares /= shares.sum()
    assert counts[shares == 0].sum() == 0
    assert chi_square(counts[shares > 0], shares[shares > 0] * counts.sum()) > 1e-4


def test_draws_of_neighboring_places_epochs_and_seeds_have_nothing_in_common():
    first = make([1] * 8, 80_000, seed=1).indices(0, 0, 80_000)
    others = [
        np.roll(first, 1),
        make([1] * 8, 80_000, seed=1).indices(1, 0, 80_000),
        make([1] * 8, 80_000, seed=2).indices(0, 0, 80_000),
    ]
    for other in others:
        assert chi_square(np.bincount(first * 8 + other, minlength=64), np.full(64, 1250.0)) > 1e-4


def test_without_replacement_every_order_is_as_likely_as_drawing_one_after_the_other_makes_it():
    weights = [1.0, 2.0, 4.0, 0.5]
    orders = list(itertools.permutations(range(4)))
    chances = []
    for order in orders:
        left, chance = sum(weights), 1.0
        for record in order:
            chance *= weights[record] / left
            left -= weights[record]
        chances.append(chance)
    number = {order: i for i, order in enumerate(orders)}
    found = draw(weights, 20_000, replacement=False)
    counts = np.bincount([number[tuple(order)] for order in found.tolist()], minlength=24)
    assert chi_square(counts, np.array(chances) * 20_000) > 1e-4


@given(weights=some_weights, seed=st.integers(0, 2**64 - 1))
def test_without_replacement_all_records_with_a_weight_come_once_and_no_other(weights, seed):
    sampler = make(weights, replacement=False, seed=seed)
    expected = np.flatnonzero(np.array(weights)).tolist()
    assert sampler.size == len(expected)
    assert sorted(sampler.indices(3, 0, sampler.size).tolist()) == expected


@given(weights=some_weights, seed=st.integers(0, 2**64 - 1))
def test_with_replacement_a_record_of_weight_0_never_comes(weights, seed):
    sampler = make(weights, 200, seed=seed)
    assert (np.array(weights)[sampler.indices(0, 0, 200)] > 0).all()


@pytest.mark.parametrize("total", [1.0, 1.5, 3.0, 1 + 2**-52, 0.1, 1.1e-290, 1e308])
def test_the_largest_and_the_smallest_draw_still_have_a_record(total, monkeypatch):
    sampler = make([0, total, 0])
    for word in (0, 2**64 - 1):
        monkeypatch.setattr(
            "parhelion.sampling._weighted.hash_words", lambda _, places, w=word: np.full(places.shape, w, np.uint64)
        )
        assert sampler.indices(0, 0, 1).tolist() == [1]


def test_fewer_samples_without_replacement_are_the_first_ones():
    weights = np.arange(1, 50)
    few, all_of_them = make(weights, 10, False, seed=3), make(weights, replacement=False, seed=3)
    assert few.indices(2, 0, 10).tolist() == all_of_them.indices(2, 0, 10).tolist()
    assert (few.size, all_of_them.size) == (10, 49)


def test_the_extremes_of_weights_keep_their_order_of_magnitude():
    found = draw([5e-324, 1e300, 0.0, 1.0], 1, replacement=False)[0].tolist()
    assert found == [1, 3, 0]


def test_own_logarithms_are_right_to_a_few_units_in_the_last_place():
    numbers = np.concatenate(
        [np.linspace(2**-53, 1 - 2**-53, 10_001), 2.0 ** -np.arange(1, 53), 1 - 2.0 ** -np.arange(2, 53)]
    )
    right = np.array([math.log(each) for each in numbers])
    assert np.abs(_log(numbers) / right - 1).max() < 1e-15


def test_weights_can_be_a_function_of_the_dataset_and_are_copied():
    weights = np.array([1.0, 0.0, 3.0])
    sampler = ResumableWeightedSampler([5, 6, 7], lambda data: [record - 5 for record in data], 50)
    assert 0 not in sampler.indices(0, 0, 50)
    for replacement in (True, False):
        sampler = make(weights, 2, replacement)
        before = sampler.indices(5, 0, 2).tolist()
        changed = make(weights, 2, replacement)
        weights[:] = [0, 1, 0]
        assert changed.indices(5, 0, 2).tolist() == before
        weights[:] = [1, 0, 3]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make([1, -2]), InvalidValueError, r"weights has the value -2\.0; expected numbers >= 0\. 0 leaves"),
        (lambda: make([1, np.nan]), InvalidValueError, r"weights has the value nan; expected finite numbers"),
        (lambda: make([1, np.inf]), InvalidValueError, r"weights has the value inf; expected finite numbers"),
        (lambda: make([0, 0]), InvalidValueError, r"sum of weights is 0\.0; expected a finite number above 1e-290"),
        (
            lambda: make([1e308] * 2),
            InvalidValueError,
            r"sum of weights is inf; expected .* scale weights that are too",
        ),
        (lambda: make([1, 2], 3, False), InvalidValueError, r"num_samples is 3 and 2 records have a weight above 0; "),
        (lambda: make([1, 2], 0), InvalidValueError, r"num_samples is 0; expected an integer >= 1"),
        (lambda: make([1, 2], 2.0), InvalidTypeError, r"num_samples is 2\.0; expected an integer"),
        (lambda: make([1, 2], None, 1), InvalidTypeError, r"replacement is 1; expected True or False"),
        (lambda: make([1], seed=-1), InvalidValueError, r"seed is -1; expected an integer from 0"),
        (lambda: make(["a", "b"]), InvalidTypeError, r"weights has the dtype <U1; expected an integer or a float"),
        (lambda: make([[1], [2, 3]]), InvalidTypeError, r"weights cannot be read as an array"),
        (lambda: make([[1], [2]]), InvalidValueError, r"weights has the shape \(2, 1\); expected"),
        (
            lambda: ResumableWeightedSampler(range(3), [1, 2]),
            InvalidValueError,
            r"weights has 2 values and data_source 3 records; expected one value for each record\. Make them from",
        ),
    ],
)
def test_weights_that_cannot_work_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
