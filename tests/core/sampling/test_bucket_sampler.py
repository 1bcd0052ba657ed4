"""Batches of similar length: less padding, every record once, and never more than a window at a time."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableBucketSampler, ResumableRandomSampler
from support.chance import chi_square


def make(lengths, *args, **options):
    return ResumableBucketSampler(range(len(lengths)), lengths, *args, **options)


def padding(lengths, order, batch_size):
    """Return which share of what is computed would be padding."""
    batches = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=120),
    chunk_size=st.integers(1, 7),
    chunks=st.integers(1, 6),
    epoch=st.integers(0, 9),
    shuffle=st.booleans(),
)
@settings(max_examples=150)
def test_every_record_comes_once_and_full_chunks_lie_next_to_each_other_in_length(
    lengths, chunk_size, chunks, epoch, shuffle
):
    sampler = make(lengths, chunk_size * chunks, chunk_size, shuffle, 5)
    found = sampler.indices(epoch, 0, len(lengths))
    assert sorted(found.tolist()) == list(range(len(lengths)))
    ordered = np.array(lengths)[found]
    for start in range(0, len(found), sampler.window):
        window = ordered[start : start + sampler.window]
        parts = [window[i : i + chunk_size] for i in range(0, len(window), chunk_size)]
        # No length of one chunk lies inside the range of another.
        parts.sort(key=lambda part: (part.min(), part.max()))
        assert np.concatenate(parts).tolist() == sorted(window.tolist())
    if not shuffle:
        assert np.sort(found[: sampler.window]).tolist() == list(range(min(sampler.window, len(lengths))))


def test_padding_falls_to_a_fraction_of_that_of_a_random_order():
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 20_000).astype(np.int64) + 1
    by_chance = ResumableRandomSampler(range(20_000), 1).indices(0, 0, 20_000)
    bucketed = make(lengths, batch_size=32).indices(0, 0, 20_000)
    assert padding(lengths, by_chance, 32) > 0.6
    assert padding(lengths, bucketed, 32) < 0.1
    # Half a chunk is as good, and so is a chunk for each of several ranks.
    assert padding(lengths, bucketed, 16) < 0.1
    assert padding(lengths, make(lengths, chunk_size=256).indices(0, 0, 20_000), 32) < 0.03


def test_windows_and_chunks_come_in_no_order_of_lengths():
    lengths = np.arange(6400)
    found = make(lengths, 640, 64, seed=3).indices(0, 0, 6400)
    chunks = found.reshape(100, 64).mean(1)
    assert abs(np.corrcoef(np.arange(100), chunks)[0, 1]) < 0.3
    assert (np.diff(chunks) < 0).sum() > 30


def test_records_meet_other_records_in_every_epoch():
    lengths = np.arange(2000) % 10
    first, second = (make(lengths, 400, 20).indices(epoch, 0, 2000).reshape(-1, 20) for epoch in (0, 1))
    chunk_of = np.empty(2000, int)
    chunk_of[first.ravel()] = np.arange(2000) // 20
    assert np.mean([len(set(chunk_of[chunk].tolist())) for chunk in second]) > 5


def test_the_chunk_that_is_not_full_is_of_any_length_and_comes_last():
    lengths = np.arange(22)
    last = [make(lengths, 100, 5, seed=seed).indices(0, 20, 22).tolist() for seed in range(3000)]
    assert all(two[1] == two[0] + 1 for two in last)
    assert chi_square(np.bincount([two[0] // 5 for two in last]), np.full(5, 600.0)) > 1e-4


def test_never_more_than_a_window_is_kept_or_sorted():
    lengths = np.random.default_rng(0).integers(1, 500, 2_000_000).astype(np.int32)
    sampler = make(lengths, window=4096, chunk_size=32)
    list(sampler.indices(0, 0, 10))
    tracemalloc.start()
    for start in range(0, 2_000_000, 100_000):
        sampler.indices(1, start, start + 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 4096 * 8


def test_lengths_are_not_copied_and_may_be_a_function_of_the_dataset():
    lengths = np.array([3, 1, 2])
    assert np.shares_memory(make(lengths)._lengths, lengths)
    words = ["aaa", "b", "cc"]
    sampler = ResumableBucketSampler(words, lambda data: [len(word) for word in data], shuffle=False)
    assert list(sampler) == [1, 2, 0]


def test_chunks_are_batches_and_windows_a_hundred_of_them_unless_said_otherwise():
    sampler = make(range(9), batch_size=4)
    assert (sampler.chunk_size, sampler.window) == (4, 400)
    sampler = make(range(9), chunk_size=8, batch_size=4)
    assert (sampler.chunk_size, sampler.window) == (8, 800)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: make(range(9), 10, 4),
            InvalidValueError,
            "window is 10; expected a multiple of 4, the chunk_size. Pass window=12.",
        ),
        (lambda: make(range(9), 0), InvalidValueError, "window is 0; expected an integer >= 1"),
        (lambda: make(range(9), chunk_size=0), InvalidValueError, "chunk_size is 0; expected an integer >= 1"),
        (lambda: make(range(9), chunk_size=1.5), InvalidTypeError, "chunk_size is 1.5; expected an integer >= 1"),
        (lambda: make([1.0, np.nan]), InvalidValueError, "lengths has the value nan; expected finite numbers"),
        (
            lambda: make(["a"]),
            InvalidTypeError,
            "lengths has the dtype <U1; expected an integer or a float for each record",
        ),
        (
            lambda: ResumableBucketSampler(range(3), [1, 2]),
            InvalidValueError,
            "lengths has 2 values and data_source 3 records; expected one value for each record.",
        ),
    ],
)
def test_buckets_that_cannot_work_are_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
