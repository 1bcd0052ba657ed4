"""A sampler that is named in a configuration gets its own arguments from there."""

import re

import pytest

from parhelion.data import DataLoaderParams, DatasetSplit, choose_sampler
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import (
    SAMPLER_REGISTRY,
    ResumableFunctionSampler,
    ResumableMixtureSampler,
    ResumableSequentialSampler,
    ResumableWeightedSampler,
    Tail,
)


def choose(sampler, options=None, dataset=range(10), **params):
    given = {} if options is None else {"sampler_options": options}
    params = DataLoaderParams(sampler=sampler, options=given, **params)
    return choose_sampler(dataset, params, DatasetSplit.TRAIN)


def test_a_named_sampler_gets_batch_size_seed_and_shuffle_of_the_params_and_its_options():
    sampler = choose("ResumableWeightedSampler", {"weights": [1] * 10, "num_samples": 30}, batch_size=3, random_seed=5)
    assert type(sampler) is ResumableWeightedSampler
    assert (sampler.batch_size, sampler.seed, sampler.size, sampler.shard.tail) == (3, 5, 30, Tail.PAD)
    assert list(sampler) == list(ResumableWeightedSampler(range(10), [1] * 10, 30, seed=5))
    assert choose("ResumableBucketSampler", {"lengths": range(10)}, shuffle=True).shuffle is True
    assert choose("ResumableBucketSampler", {"lengths": range(10)}).shuffle is False


def test_an_option_goes_before_the_params():
    sampler = choose("ResumableBucketSampler", {"lengths": range(10), "seed": 8, "shuffle": True}, random_seed=5)
    assert (sampler.seed, sampler.shuffle) == (8, True)


def test_chunks_are_the_loader_s_batches():
    assert choose("ResumableBucketSampler", {"lengths": range(10)}, batch_size=4).chunk_size == 4


def test_a_concatenation_of_datasets_is_looked_into():
    class Concatenation:
        datasets = ("abc", range(5))

        def __len__(self):
            return 8

    sampler = choose("ResumableMixtureSampler", {"weights": [1, 1]}, Concatenation(), shuffle=True)
    assert type(sampler) is ResumableMixtureSampler
    assert sampler.sizes == [3, 5]


def test_a_registered_function_can_be_named_and_given_its_arguments(monkeypatch):
    monkeypatch.setattr(SAMPLER_REGISTRY, "_entries", dict(SAMPLER_REGISTRY._entries))

    @SAMPLER_REGISTRY.register
    def strided(epoch, places, num_records, seed, step):
        return (places * step + seed) % num_records

    sampler = choose("strided", {"step": 3}, batch_size=2, random_seed=1)
    assert type(sampler) is ResumableFunctionSampler
    assert list(sampler) == [1, 4, 7, 0, 3, 6, 9, 2, 5, 8]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: choose("ResumableWeightedSampler"),
            InvalidTypeError,
            "cannot be made from the dataset and batch_size, seed: missing a required argument: 'weights'. Give",
        ),
        (
            lambda: choose("ResumableBucketSampler", {"lenghts": [1]}),
            InvalidValueError,
            "option of the sampler ResumableBucketSampler is 'lenghts'; expected one of batch_size, chunk_size",
        ),
        (
            lambda: choose(None, {"weights": [1]}),
            InvalidValueError,
            "sampler_options are given and none is named; expected sampler='...', the name of a registered one.",
        ),
        (
            lambda: choose(ResumableSequentialSampler(range(10)), {"weights": [1]}),
            InvalidValueError,
            "sampler_options are given and sampler is a ResumableSequentialSampler; expected sampler='...'",
        ),
        (
            lambda: choose("ResumableWeightedSampler", [1, 2]),
            InvalidTypeError,
            "sampler_options is [1, 2]; expected the sampler's arguments by name.",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
