"""A user's own sampler is one function."""

import re

import numpy as np
import pytest

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.registry import Registry
from parhelion.sampling import (
    SAMPLER_REGISTRY,
    Permutation,
    ResumableFunctionSampler,
    ResumableRandomSampler,
    create_sampler,
    find_sampler,
)


@pytest.fixture
def registered(monkeypatch):
    # The registry is the whole process's: what is registered here goes when the test does.
    monkeypatch.setattr(SAMPLER_REGISTRY, "_entries", dict(SAMPLER_REGISTRY._entries))
    return SAMPLER_REGISTRY.register


def backwards(epoch, places):
    return 9 - places


def test_a_function_of_epoch_and_places_is_all_it_takes():
    sampler = ResumableFunctionSampler(range(10), backwards, batch_size=4)
    sampler.start_iter = 1
    assert list(sampler) == [5, 4, 3, 2, 1, 0]
    assert sampler.settings == {"function": "backwards"}


def test_seed_and_number_of_records_come_to_a_function_that_has_parameters_for_them():
    def shuffled(epoch, places, num_records, seed):
        return Permutation(num_records, seed + epoch).indices_at(places)

    sampler = ResumableFunctionSampler(range(30), shuffled, seed=5)
    assert sampler.indices(2, 0, 30).tolist() == Permutation(30, 7).indices(0, 30).tolist()


def test_a_registered_function_is_made_a_sampler_by_name(registered):
    @registered
    def every_third(epoch, places, num_records, first):
        return (places * 3 + first) % num_records

    sampler = create_sampler("every_third", range(10), first=1, batch_size=2)
    assert type(sampler) is ResumableFunctionSampler
    assert list(sampler) == [1, 4, 7, 0, 3, 6, 9, 2, 5, 8]
    assert sampler.batch_size == 2
    assert sampler.settings == {"function": every_third.__qualname__, "first": 1}


def test_a_registered_function_that_returns_a_sampler_is_called(registered):
    @registered
    def seeded(data_source, batch_size=1):
        return ResumableRandomSampler(data_source, 99, batch_size)

    assert create_sampler("seeded", range(5)).seed == 99


def test_a_registry_s_own_class_wraps_its_functions():
    registry = Registry("sampler", parent=SAMPLER_REGISTRY)

    class Own(ResumableFunctionSampler):
        pass

    registry.register(Own, name="ResumableFunctionSampler")
    registry.register(backwards)
    assert type(find_sampler("backwards", registry)(range(10))) is Own


def test_lists_and_narrow_integers_are_taken_and_more_samples_than_records():
    sampler = ResumableFunctionSampler(range(10), lambda epoch, places: (places % 10).astype(np.uint8).tolist(), 25)
    assert list(sampler) == [i % 10 for i in range(25)]
    assert sampler.indices(0, 0, 3).dtype == np.int64


def sampler_of(function, **options):
    return ResumableFunctionSampler(range(10), function, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: list(sampler_of(lambda e, p: p + 1)),
            InvalidValueError,
            "returned has the index 10; expected indices in [0, 10)",
        ),
        (
            lambda: list(sampler_of(lambda e, p: p - 1)),
            InvalidValueError,
            "returned has the index -1; expected indices in [0, 10)",
        ),
        (
            lambda: sampler_of(lambda e, p: p[:-1]).indices(0, 0, 5),
            InvalidValueError,
            "returned an array of shape (4,) for 5 places; expected one index for each, shape (5,).",
        ),
        (
            lambda: sampler_of(lambda e, p: p / 2).indices(0, 0, 5),
            InvalidTypeError,
            "returned an array of dtype float64; expected integers. Divide with // and not with /",
        ),
        (
            lambda: sampler_of(lambda e, p: p > 2).indices(0, 0, 5),
            InvalidTypeError,
            "returned an array of dtype bool; expected",
        ),
        (
            lambda: sampler_of("backwards"),
            InvalidTypeError,
            "function is 'backwards'; expected one that takes (epoch, places)",
        ),
        (
            lambda: sampler_of(lambda epoch: epoch),
            InvalidTypeError,
            "<lambda>(epoch) cannot be called with (epoch, places): too many positional arguments; expected one",
        ),
        (
            lambda: sampler_of(backwards, step=3),
            InvalidTypeError,
            "function backwards(epoch, places) cannot be called with (epoch, places, step=...): got an unexpected",
        ),
        (lambda: sampler_of(backwards, num_samples=0), InvalidValueError, "num_samples is 0; expected an integer >= 1"),
    ],
)
def test_a_function_that_cannot_be_a_sampler_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
