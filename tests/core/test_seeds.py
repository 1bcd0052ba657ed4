import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError, SampleScopeError
from parhelion.seeds import (
    SampleScope,
    check_seed,
    derive,
    get_default_seed,
    sample_base,
    sample_rng,
    sample_scope,
)

seeds = st.integers(0, 2**64 - 1)
words = st.lists(st.integers() | st.text(), max_size=4).map(tuple)


def test_the_default_seed_is_6691():
    assert get_default_seed() == 6691


@pytest.mark.parametrize(
    ("seed", "purpose", "expected"),
    [
        (0, (), 4331143152044847043),
        (0, ("order", 0), 17233972437887192032),
        (6691, ("order", 3), 7426906848774167989),
        (2**64 - 1, ("sample", -1, 2**80), 8416068487261839799),
    ],
)
def test_a_derived_seed_never_changes(seed, purpose, expected):
    assert derive(seed, *purpose) == expected


def test_a_million_purposes_of_neighboring_seeds_share_no_derived_seed():
    purposes = ("order", "sample")
    derived = {
        derive(seed, purpose, epoch, rank)
        for seed in range(16)
        for purpose in purposes
        for epoch in range(256)
        for rank in range(128)
    }
    assert len(derived) == 16 * 2 * 256 * 128 == 2**20


def test_seed_0_epoch_1_is_not_seed_1_epoch_0():
    assert derive(0, "order", 1) != derive(1, "order", 0)


@given(seed=seeds, first=words, second=words)
def test_two_purposes_share_a_derived_seed_only_if_word_for_word_the_same(seed, first, second):
    assert (derive(seed, *first) == derive(seed, *second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ab", "c"), ("a", "bc")),
        (("ab",), ("a", "b")),
        (("1",), (1,)),
        ((), ("",)),
        ((0,), (0, 0)),
        ((-1,), (255,)),
        ((256,), (0, 1)),
        ((2**70,), (2**71,)),
    ],
)
def test_the_boundaries_and_kinds_of_words_count(first, second):
    assert derive(5, *first) != derive(5, *second)


@given(seed=seeds, purpose=words)
def test_a_derived_seed_is_a_seed(seed, purpose):
    assert check_seed(derive(seed, *purpose)) == derive(seed, *purpose)


def test_numpy_integers_derive_what_plain_ones_derive():
    assert derive(np.uint64(2**64 - 1), np.int32(-3)) == derive(2**64 - 1, -3)
    assert type(check_seed(np.int8(3))) is int


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: check_seed(-1),
            InvalidValueError,
            r"random_seed is -1; expected .* 0 to 2\*\*64 - 1\. Reduce it",
        ),
        (
            lambda: check_seed(2**64, "seed"),
            InvalidValueError,
            r"seed is 18446744073709551616; expected an integer",
        ),
        (lambda: check_seed(1.0), InvalidTypeError, r"random_seed is 1\.0; expected an integer"),
        (lambda: check_seed(True), InvalidTypeError, r"random_seed is True; expected an integer"),
        (lambda: check_seed("7"), InvalidTypeError, r"random_seed is '7'; expected an integer"),
        (lambda: derive(-1), InvalidValueError, r"seed is -1; expected an integer"),
        (
            lambda: derive(1, 2.5),
            InvalidTypeError,
            r"a word of a seed's purpose is 2\.5; expected an integer or a s",
        ),
        (lambda: derive(1, None), InvalidTypeError, r"a word of a seed's purpose is None"),
    ],
)
def test_what_is_no_seed_or_word_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def drawn(place, count=3, **scope):
    with sample_scope(place=place, **scope):
        return sample_rng().random(count).tolist()


def test_a_record_s_draws_depend_on_split_seed_epoch_and_place_only():
    assert drawn(3, seed=1, epoch=2, split=0) == drawn(3, seed=1, epoch=2, split=0)
    keys = [{"seed": 1}, {"seed": 2}, {"seed": 1, "epoch": 1}, {"seed": 1, "split": 1}, {}]
    alone = [drawn(place, **key) for key in keys for place in (0, 1)]
    assert len({tuple(each) for each in alone}) == len(alone)
    assert [drawn(place, **key) for key in reversed(keys) for place in (1, 0)] == alone[::-1]
    assert drawn(4) == drawn(4, seed=6691)


def test_a_record_s_draws_are_those_of_philox_with_its_key():
    expected = np.random.Generator(np.random.Philox(key=np.array([sample_base(1, 2, 3), 7], np.uint64)))
    with sample_scope(seed=1, split=2, epoch=3, place=7):
        assert np.array_equal(sample_rng().bit_generator.random_raw(20), expected.bit_generator.random_raw(20))


def test_two_calls_for_one_record_go_on_where_the_first_stopped():
    with sample_scope(seed=1, place=5):
        together = [*sample_rng().random(2), *sample_rng().random(3)]
    assert together == drawn(5, 5, seed=1)


@pytest.mark.parametrize("draw", [lambda rng: rng.integers(0, 2**20, dtype=np.uint32), lambda rng: rng.normal()])
def test_nothing_buffered_for_one_record_reaches_the_next(draw):
    with SampleScope(9, 0) as scope:
        draw(sample_rng())
        scope.place = 1
        after_another = [draw(sample_rng()) for _ in range(3)]
    with SampleScope(9, 1):
        assert [draw(sample_rng()) for _ in range(3)] == after_another


def test_a_fetch_moves_from_place_to_place():
    with SampleScope(sample_base(1, 0, 0), 0) as scope:
        found = []
        for place in (0, 1, 2):
            scope.place = place
            found.append(sample_rng().random(3).tolist())
    assert found == [drawn(place, seed=1) for place in (0, 1, 2)]


@pytest.mark.parametrize("batched", [True, False])
def test_records_named_by_k_have_generators_that_live_side_by_side(batched):
    with SampleScope(sample_base(1, 0, 0), 10, batched=batched):
        generators = [sample_rng(k) for k in range(4)]
        first = [rng.random() for rng in generators]
        second = [sample_rng(k).random() for k in reversed(range(4))][::-1]
    assert len({id(rng) for rng in generators}) == 4
    assert [list(pair) for pair in zip(first, second, strict=True)] == [drawn(10 + k, 2, seed=1) for k in range(4)]


def test_the_scope_inside_is_the_one_that_counts():
    with sample_scope(seed=1, place=1):
        outer = sample_rng().random(1).tolist()
        assert drawn(2, seed=1) == drawn(2, seed=1)
        outer += sample_rng().random(2).tolist()
    assert outer == drawn(1, seed=1)


def test_a_scope_ends_also_when_its_fetch_fails():
    def fail():
        with sample_scope():
            sample_rng()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(SampleScopeError):
        sample_rng()


def test_a_record_named_by_k_keeps_its_generator_while_others_are_fetched():
    with SampleScope(sample_base(1, 0, 0), 10) as scope:
        named = sample_rng(2)
        found = named.random(1).tolist()
        for place in (10, 11):
            scope.place = place
            sample_rng().random()
        found += named.random(2).tolist()
    assert found == drawn(12, seed=1)


def test_each_thread_has_its_own_scope():
    found, together = {}, threading.Barrier(3)

    def fetch(place):
        with sample_scope(seed=1, place=place):
            together.wait()
            found[place] = sample_rng().random(3).tolist()
            together.wait()

    threads = [threading.Thread(target=fetch, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    fetch(99)
    for thread in threads:
        thread.join()
    assert found == {place: drawn(place, seed=1) for place in (0, 1, 99)}


def test_outside_a_fetch_the_error_says_how_to_open_a_scope():
    with pytest.raises(SampleScopeError, match=r"called outside a fetch; .* with parhelion\.sample_scope\(seed=0"):
        sample_rng()


def test_where_several_records_are_fetched_the_error_asks_for_k():
    with (
        SampleScope(1, 0, batched=True),
        pytest.raises(SampleScopeError, match=r"without k .* call sample_rng\(k\)"),
    ):
        sample_rng()


def test_k_counts_from_zero():
    with (
        sample_scope(),
        pytest.raises(InvalidValueError, match=r"k is -1; expected the place of a record in the li"),
    ):
        sample_rng(-1)


def test_a_scope_s_seed_is_checked():
    with pytest.raises(InvalidValueError, match=r"seed is -3; expected an integer"), sample_scope(seed=-3):
        pass
