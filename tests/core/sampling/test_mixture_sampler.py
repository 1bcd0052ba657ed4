"""Proportions that hold after every sample, and what happens where a dataset has no more records."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableMixtureSampler
from parhelion.sampling._proportions import MAX_PERIOD, Rota, count_shares

whole_weights = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any)
other_weights = st.lists(st.floats(0.05, 20), min_size=1, max_size=8)
part_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def sources(sampler, epoch=0, start=0, stop=None):
    """Return which dataset each sample of an epoch is of."""
    found = sampler.indices(epoch, start, sampler.size if stop is None else stop)
    return np.searchsorted(np.cumsum(sampler.sizes), found, side="right")


def deviations(sampler, who):
    """Return by how much the count of each dataset is off after every prefix, exactly: times the period."""
    counts = np.cumsum(who[:, None] == np.arange(len(sampler.sizes)), axis=0)
    targets = np.array([int(weight * sampler.period) for weight in sampler.weights])
    return counts * sampler.period - np.arange(1, len(who) + 1)[:, None] * targets


@given(weights=whole_weights, epoch=st.integers(0, 5))
@settings(max_examples=150)
def test_after_every_sample_of_an_epoch_each_dataset_is_less_than_one_sample_off(weights, epoch):
    check_prefixes(weights, epoch)


@given(weights=other_weights, epoch=st.integers(0, 5))
@settings(max_examples=10)
def test_the_same_holds_for_floats(weights, epoch):
    check_prefixes(weights, epoch)


def check_prefixes(weights, epoch):
    sampler = ResumableMixtureSampler([50] * len(weights), weights, num_samples=3000)
    off = deviations(sampler, sources(sampler, epoch))
    assert np.abs(off).max() < sampler.period


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_the_same_holds_through_whole_periods_of_many_random_weights(count):
    rng = np.random.default_rng(count)
    for _ in range(30):
        shares = rng.integers(1, 2000 // count + 2, count).tolist()
        rota = Rota(shares)
        who = rota.turns(np.arange(rota.period))[0]
        counts = np.cumsum(who[:, None] == np.arange(count), axis=0)
        targets = np.arange(1, rota.period + 1)[:, None] * np.array(shares)
        assert (counts >= targets // rota.period).all()
        assert (counts <= -(-targets // rota.period)).all()
        assert counts[-1].tolist() == shares


@given(weights=whole_weights, place=st.integers(10**12, 2**61))
@settings(max_examples=50)
def test_the_same_holds_after_a_trillion_samples(weights, place):
    sampler = ResumableMixtureSampler([2**40] * len(weights), weights, num_samples=2**62)
    before = sampler.counts(place)
    assert sum(before) == place
    assert len(set(sampler.indices(3, place, place + 200).tolist())) == 200
    for number, who in enumerate(sources(sampler, 0, place, place + 200), 1):
        before[who] += 1
        for count, weight in zip(before, sampler.weights, strict=True):
            assert abs(count - (place + number) * weight) < 1


@given(weights=whole_weights, data=st.data())
@settings(max_examples=50)
def test_counts_are_those_of_the_samples(weights, data):
    sampler = ResumableMixtureSampler([7] * len(weights), weights, num_samples=500)
    stop = data.draw(st.integers(0, 500))
    assert sampler.counts(stop) == np.bincount(sources(sampler, 0, 0, stop), minlength=len(weights)).tolist()


@given(sizes=part_sizes, shuffle=st.booleans(), data=st.data())
@settings(max_examples=60)
def test_over_epochs_no_record_comes_again_before_all_others_of_its_dataset(sizes, shuffle, data):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    num_samples = data.draw(st.integers(1, 60))
    sampler = ResumableMixtureSampler(sizes, weights, num_samples=num_samples, shuffle=shuffle)
    drawn = np.concatenate([sampler.indices(epoch, 0, num_samples) for epoch in range(8)])
    start = 0
    for size in sizes:
        of_dataset = drawn[(drawn >= start) & (drawn < start + size)] - start
        for first in range(0, len(of_dataset) - size + 1, size):
            assert sorted(of_dataset[first : first + size].tolist()) == list(range(size))
        if not shuffle:
            assert of_dataset.tolist() == [i % size for i in range(len(of_dataset))]
        start += size


@given(sizes=part_sizes, data=st.data())
@settings(max_examples=60)
def test_repeat_goes_on_until_every_dataset_has_been_gone_through_and_not_a_sample_longer(sizes, data):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    sampler = ResumableMixtureSampler(sizes, weights)
    assert set(sampler.indices(0, 0, sampler.size).tolist()) == set(range(sum(sizes)))
    assert any(count < size for count, size in zip(sampler.counts(sampler.size - 1), sizes, strict=True))


@given(sizes=part_sizes, shuffle=st.booleans(), data=st.data())
@settings(max_examples=60)
def test_end_repeats_no_record_in_any_epoch_and_is_as_long_as_that_allows(sizes, shuffle, data):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    sampler = ResumableMixtureSampler(sizes, weights, "end", shuffle=shuffle)
    for epoch in range(12):
        found = sampler.indices(epoch, 0, sampler.size).tolist()
        assert len(set(found)) == len(found)
    assert any(count > size for count, size in zip(sampler.counts(sampler.size + 1), sizes, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
def test_end_comes_to_every_record_of_a_large_dataset_over_epochs(shuffle):
    sampler = ResumableMixtureSampler([10, 95], [1, 1], "end", shuffle=shuffle)
    assert sampler.size == 20
    epochs = [sampler.indices(epoch, 0, 20) for epoch in range(40)]
    assert set(np.concatenate(epochs[:10] if not shuffle else epochs).tolist()) == set(range(105))
    # Nine epochs of ten lie in one pass over the 95, so no record comes twice in them.
    large = np.concatenate(epochs[:9])
    large = large[large >= 10]
    assert len(set(large.tolist())) == len(large) == 90


def test_each_dataset_and_each_pass_has_an_order_of_its_own():
    sampler = ResumableMixtureSampler([200, 200], [1, 1], num_samples=800, seed=3)
    found = sampler.indices(0, 0, 800)
    one, other = found[found < 200], found[found >= 200] - 200
    assert np.count_nonzero(one == other) < 20
    assert np.count_nonzero(one[:200] == one[200:]) < 20


def test_a_dataset_of_weight_0_is_left_out_and_not_waited_for():
    for exhausted in ("repeat", "end"):
        sampler = ResumableMixtureSampler([5, 1, 5], [1, 0, 1], exhausted)
        assert sampler.size == 10
        assert 1 not in sources(sampler)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([3, 1], [3, 1]),
        ([6, 2], [3, 1]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([0.1] * 3, [1, 1, 1]),
        (np.array([0.25, 0.75], np.float32), [1, 3]),
        (np.array([2, 6]), [1, 3]),
        ([Fraction(1, 7), Fraction(6, 7)], [1, 6]),
        ([5, 0], [1, 0]),
        ([30_000, 35_535], [2000, 2369]),
        ([1.0, 2.0**-17 * 3], [65535, 1]),
    ],
)
def test_weights_are_met_by_the_smallest_whole_numbers(weights, shares):
    assert count_shares(weights) == shares
    sampler = ResumableMixtureSampler([9] * len(weights), weights, num_samples=5)
    assert sampler.weights == tuple(Fraction(share, sum(shares)) for share in shares)
    assert sampler.period == sum(shares)


@given(weights=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=20))
def test_other_weights_are_rounded_up_or_down_to_a_65536th(weights):
    shares, total = count_shares(weights), sum(map(Fraction, weights))
    assert sum(shares) <= MAX_PERIOD
    for share, weight in zip(shares, weights, strict=True):
        assert abs(Fraction(share, sum(shares)) - Fraction(weight) / total) < Fraction(1, MAX_PERIOD)


def test_datasets_and_concatenations_do_as_well_as_sizes():
    class Concatenation:
        datasets = ("abc", range(5))

    for source in ([3, 5], ["abc", range(5)], Concatenation()):
        sampler = ResumableMixtureSampler(source, [1, 1], seed=2)
        assert sampler.sizes == [3, 5]
        assert list(sampler) == list(ResumableMixtureSampler([3, 5], [1, 1], seed=2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ResumableMixtureSampler([3, 5], [1]),
            InvalidValueError,
            r"weights has 1 values and data_source 2 data",
        ),
        (lambda: ResumableMixtureSampler([3], 1), InvalidTypeError, r"weights is 1; expected a list with a number"),
        (
            lambda: ResumableMixtureSampler([3], [-1]),
            InvalidValueError,
            r"weights\[0\] is -1; expected a finite number",
        ),
        (lambda: ResumableMixtureSampler([3], [np.inf]), InvalidValueError, r"weights\[0\] is inf; expected a finite"),
        (lambda: ResumableMixtureSampler([3], ["a"]), InvalidTypeError, r"weights\[0\] is 'a'; expected a number >= 0"),
        (lambda: ResumableMixtureSampler([3], [True]), InvalidTypeError, r"weights\[0\] is True; expected a number"),
        (
            lambda: ResumableMixtureSampler([3, 3], [0, 0]),
            InvalidValueError,
            r"weights are all 0; expected at least one",
        ),
        (
            lambda: ResumableMixtureSampler([3, 3], [1, 10**9]),
            InvalidValueError,
            r"weights\[0\] is 1e-09 of the sum; expected 0 or at least 1/65536 of it",
        ),
        (
            lambda: ResumableMixtureSampler([3, 3], [1, 1], "stop"),
            InvalidValueError,
            r"exhausted is 'stop'; expected 'repeat' .* or 'end'",
        ),
        (
            lambda: ResumableMixtureSampler([3, 3], [1, 1], "end", 7),
            InvalidValueError,
            r"num_samples is 7, and after 6 samples a dataset has no more records; expected at most 6",
        ),
        (
            lambda: ResumableMixtureSampler([2**61, 1], [1, 9]),
            InvalidValueError,
            r"num_samples is None, which would be 230\d+ to go through every dataset; expected at most 2\*\*62",
        ),
        (
            lambda: ResumableMixtureSampler(range(5), [1]),
            InvalidTypeError,
            r"data_source is a range; expected datasets",
        ),
        (lambda: ResumableMixtureSampler([], []), InvalidValueError, r"data_source has no datasets; expected at least"),
        (lambda: ResumableMixtureSampler([3, 0], [1, 1]), InvalidValueError, r"size of dataset 1 of data_source is 0"),
        (lambda: ResumableMixtureSampler([3, []], [1, 1]), InvalidValueError, r"dataset 1 of data_source is empty"),
        (
            lambda: ResumableMixtureSampler([3, None], [1, 1]),
            InvalidTypeError,
            r"dataset 1 of data_source is a NoneType",
        ),
        (
            lambda: ResumableMixtureSampler([2**62, 1], [1, 1]),
            InvalidValueError,
            r"data_source has 46\d+ records; expec",
        ),
    ],
)
def test_a_mixture_that_cannot_work_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
