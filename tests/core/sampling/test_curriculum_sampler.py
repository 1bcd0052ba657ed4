"""Named phases one after another, and what a reader learns about a position."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import (
    Position,
    ResumableCurriculumSampler,
    ResumableMixtureSampler,
    ResumableRandomSampler,
    ResumableSubsetSampler,
)

EASY, HARD = "abcde", range(20)


def make(*phases, source=(EASY, HARD), **options):
    return ResumableCurriculumSampler(list(source), phases, **options)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), place=st.integers(0, 149))
def test_a_place_is_in_the_phase_whose_samples_it_is_among(lengths, place):
    sampler = make(*((f"phase {i}", i % 2, length) for i, length in enumerate(lengths)))
    names = [f"phase {i}" for i, length in enumerate(lengths) for _ in range(length)]
    assert sampler.size == len(names)
    place %= len(names)
    assert sampler.phase_at(place) == names[place]
    assert sampler.describe_position(Position(7, place)) == {"phase": names[place]}


@given(length=st.integers(1, 60), part=st.integers(0, 1), shuffle=st.booleans())
def test_a_phase_goes_through_its_dataset_pass_after_pass_over_the_epochs(length, part, shuffle):
    sampler = make(("before", 1 - part, 3), ("it", part, length), shuffle=shuffle)
    found = np.concatenate([sampler.indices(epoch, 3, 3 + length) for epoch in range(6)])
    size, start = ((5, 0), (20, 5))[part]
    passes = [found[i : i + size] - start for i in range(0, len(found) - size + 1, size)]
    assert all(sorted(each.tolist()) == list(range(size)) for each in passes)
    if not shuffle:
        assert (found - start).tolist() == [i % size for i in range(len(found))]


def test_passes_and_phases_have_orders_of_their_own():
    sampler = make(("a", 0, 600), ("b", 0, 300), source=[300])
    found = sampler.indices(0, 0, 900).reshape(3, 300)
    assert max(np.count_nonzero(found[i] == found[j]) for i, j in ((0, 1), (1, 2), (0, 2))) < 20


def test_a_length_of_none_is_that_of_one_pass():
    mixed = ResumableMixtureSampler([5, 20], [1, 1], seed=3)
    sampler = make(("easy", EASY, None), ("mixed", mixed, None), ("hard", HARD, 7))
    assert sampler.phases == (("easy", 5), ("mixed", 40), ("hard", 7))
    assert sampler.size == 52


def test_a_phase_made_of_another_sampler_gives_what_that_gives_epoch_after_epoch():
    mixed = ResumableMixtureSampler([5, 20], [1, 1], num_samples=10, seed=3)
    sampler = make(("mixed", mixed, 25))
    expected = np.concatenate([mixed.indices(epoch, 0, 10) for epoch in range(5)])
    assert np.concatenate([sampler.indices(0, 0, 25), sampler.indices(1, 0, 25)]).tolist() == expected.tolist()


def test_one_dataset_may_have_phases_too():
    short = ResumableSubsetSampler(HARD, [1, 2, 3], seed=1)
    sampler = ResumableCurriculumSampler(HARD, [("short", short, 3), ("all", HARD, None)])
    found = list(sampler)
    assert sorted(found[:3]) == [1, 2, 3]
    assert sorted(found[3:]) == list(HARD)
    assert list(ResumableCurriculumSampler(HARD, [("all", 0, None)], shuffle=False)) == list(HARD)


def test_a_dataset_is_found_as_itself_and_not_as_an_equal_one():
    first, second = [1, 2, 3], [1, 2, 3]
    sampler = ResumableCurriculumSampler([first, second], [("second", second, None)], shuffle=False)
    assert list(sampler) == [3, 4, 5]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (make, InvalidValueError, "phases is empty; expected at least one (name, source, length)."),
        (lambda: make(("a", 0)), InvalidTypeError, "phase 0 is ('a', 0); expected (name, source, length)."),
        (lambda: make(5), InvalidTypeError, "phase 0 is 5; expected (name, source, length)."),
        (lambda: make(("", 0, 1)), InvalidTypeError, "name of phase 0 is ''; expected a string that is not empty."),
        (
            lambda: make(("a", 0, 1), ("a", 1, 1)),
            InvalidValueError,
            "phases has the name 'a' twice; expected each once.",
        ),
        (
            lambda: make(("a", 2, 1)),
            InvalidValueError,
            "phase 'a' is made of 2; expected a sampler, one of the 2 datasets",
        ),
        (
            lambda: make(("a", "x", 1)),
            InvalidValueError,
            "phase 'a' is made of 'x'; expected a sampler, one of the 2 data",
        ),
        (lambda: make(("a", 0, 0)), InvalidValueError, "length of phase 'a' is 0; expected an integer >= 1"),
        (lambda: make(("a", 0, 2.5)), InvalidTypeError, "length of phase 'a' is 2.5; expected an integer >= 1"),
        (
            lambda: make(("a", 0, 2**62), ("b", 1, 1)),
            InvalidValueError,
            "length of all phases is 4611686018427387905; e",
        ),
        (
            lambda: make(("a", 0, 5)).phase_at(5),
            InvalidValueError,
            "place is 5; expected one in [0, 5), the places of an",
        ),
        (
            lambda: ResumableCurriculumSampler(3, [("a", 0, 1)]),
            InvalidTypeError,
            "data_source is a int; expected a dataset with a length.",
        ),
    ],
)
def test_phases_that_cannot_work_are_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_sampler_of_which_nothing_is_to_be_said_says_nothing():
    assert ResumableRandomSampler(range(3)).describe_position(Position(0, 1)) == {}
