"""Records that are handled together and yet draw as if each were alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidValueError, SampleScopeError
from parhelion.seeds import SampleScope, each_sample, sample_rng, sample_scope, some_samples


def together(first=0):
    return SampleScope(5, first, batched=True)


def alone(place):
    with sample_scope(0):
        pass
    with SampleScope(5, place):
        return sample_rng().random(3).tolist()


def test_one_after_the_other_draws_what_each_draws_alone():
    drawn = []
    with together(10), each_sample() as turn_to:
        for k in range(4):
            turn_to(k)
            drawn.append(sample_rng().random(3).tolist())
    assert drawn == [alone(10 + k) for k in range(4)]


def test_a_stream_goes_on_where_the_dataset_left_it_also_in_a_second_round():
    drawn = [[] for _ in range(3)]
    with together(10):
        for k in (2, 0, 1):
            drawn[k].append(sample_rng(k).random())
        for _ in range(2):
            with each_sample() as turn_to:
                for k in range(3):
                    turn_to(k)
                    drawn[k].append(sample_rng().random())
    assert drawn == [alone(10 + k) for k in range(3)]


@given(places=st.lists(st.integers(0, 20), unique=True, min_size=1), data=st.data())
def test_some_of_the_records_keep_their_streams_however_often_they_are_divided(places, data):
    part = data.draw(st.lists(st.integers(0, len(places) - 1), unique=True, min_size=1))
    with together(3), some_samples(places), some_samples(part):
        by_name = [sample_rng(k).random() for k in range(len(part))]
    with together(3), some_samples(places), some_samples(part), each_sample() as turn_to:
        by_turn = []
        for k in range(len(part)):
            turn_to(k)
            by_turn.append(sample_rng().random())
    assert by_name == by_turn == [alone(3 + places[k])[0] for k in part]


def test_some_of_the_records_must_still_be_named_and_exist():
    with together(), some_samples([4, 2]):
        with pytest.raises(SampleScopeError, match="without k"):
            sample_rng()
        with pytest.raises(InvalidValueError, match="k is 2; expected the place of a record in the list of 2 indices"):
            sample_rng(2)


def test_the_scope_outside_is_back_afterwards_also_after_an_error():
    with together():
        with pytest.raises(KeyError), each_sample():
            raise KeyError
        with pytest.raises(KeyError), some_samples([0]):
            raise KeyError
        with pytest.raises(SampleScopeError, match="without k"):
            sample_rng()


def test_outside_a_fetch_nothing_is_opened():
    with each_sample() as turn_to, some_samples([0]):
        turn_to(0)
        with pytest.raises(SampleScopeError, match="outside a fetch"):
            sample_rng()
