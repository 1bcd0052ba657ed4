"""Every kind of sampler, in every mode that gives another order, for suites that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parhelion.sampling import (
    ResumableBucketSampler,
    ResumableConcatSampler,
    ResumableCurriculumSampler,
    ResumableDistributedSampler,
    ResumableFunctionSampler,
    ResumableMixtureSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    ResumableSubsetSampler,
    ResumableWeightedSampler,
)

Make = Callable[[int, int, int], ResumableSampler]


def weights(size: int) -> list[float]:
    """Return weights of which some are 0, but never all."""
    return [(i * 5 + 1) % 4 / 2 for i in range(size)]


def sizes(size: int) -> list[int]:
    """Return the sizes of three datasets, the first of which has ``size`` records."""
    return [size, size // 3 + 1, 2]


def rotate(epoch: int, places: np.ndarray, num_records: int, seed: int) -> np.ndarray:
    """A user's order: the records in turn, from another one on in each epoch."""
    return (places + (epoch + seed) % num_records) % num_records


def lengths(size: int) -> np.ndarray:
    return np.arange(size) * 7919 % 13


def measure(source: range) -> np.ndarray:
    return lengths(len(source))


def curriculum(size: int, seed: int, batch: int) -> ResumableSampler:
    few, many = ResumableSubsetSampler(range(size), [0, size - 1], seed=seed), range(size)
    phases = [("few", few, 5), ("half", 0, size // 2 + 1), ("other", 1, None), ("again", many, 2 * size + 1)]
    return ResumableCurriculumSampler([many, range(4)], phases, seed=seed, batch_size=batch)


# A sampler over ``size`` records, or over several datasets of which the first one has as many.
KINDS: dict[str, Make] = {
    "sequential": lambda n, s, b: ResumableSequentialSampler(range(n), b),
    "random": lambda n, s, b: ResumableRandomSampler(range(n), s, b),
    "distributed": lambda n, s, b: ResumableDistributedSampler(range(n), seed=s, batch_size=b),
    "weighted": lambda n, s, b: ResumableWeightedSampler(range(n), weights(n), seed=s, batch_size=b),
    "weighted once": lambda n, s, b: ResumableWeightedSampler(range(n), weights(n), None, False, seed=s, batch_size=b),
    "mixture": lambda n, s, b: ResumableMixtureSampler(sizes(n), [5, 3, 1], seed=s, batch_size=b),
    "mixture that ends": lambda n, s, b: ResumableMixtureSampler(
        sizes(n), [0.6, 0.3, 0.1], "end", seed=s, batch_size=b
    ),
    "mixture in order": lambda n, s, b: ResumableMixtureSampler(
        sizes(n), [2, 1, 1], num_samples=n, shuffle=False, seed=s, batch_size=b
    ),
    "subset": lambda n, s, b: ResumableSubsetSampler(range(n), np.arange(0, n, 2), seed=s, batch_size=b),
    "subset in order": lambda n, s, b: ResumableSubsetSampler(range(n), [n - 1, *range(n), 0], False, s, b),
    "concat": lambda n, s, b: ResumableConcatSampler(sizes(n), seed=s, batch_size=b),
    "concat in order": lambda n, s, b: ResumableConcatSampler(sizes(n), False, s, b),
    "bucket": lambda n, s, b: ResumableBucketSampler(range(n), lengths(n), 12, 4, seed=s, batch_size=b),
    "bucket in order": lambda n, s, b: ResumableBucketSampler(range(n), measure, 12, 4, False, s, b),
    "curriculum": curriculum,
    "function": lambda n, s, b: ResumableFunctionSampler(range(n), rotate, seed=s, batch_size=b),
}

IN_ORDER = ("sequential", "mixture in order", "subset in order", "concat in order", "bucket in order")


def count_records(sampler: ResumableSampler) -> int:
    """Return the number of records that the sampler's indices can be of."""
    total: int = sum(getattr(sampler, "sizes", [])) or len(
        getattr(sampler, "data_source", getattr(sampler, "dataset", ()))
    )
    if isinstance(sampler, ResumableCurriculumSampler):
        total = sum(map(len, sampler.data_source))
    return total
