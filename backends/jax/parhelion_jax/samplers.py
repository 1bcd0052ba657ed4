"""The neutral samplers, of which the distributed one knows jax's processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax

from parhelion import sampling
from parhelion.registry import Registry
from parhelion.sampling import (
    ResumableBucketSampler,
    ResumableConcatSampler,
    ResumableCurriculumSampler,
    ResumableFunctionSampler,
    ResumableMixtureSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSamplerType,
    ResumableSequentialSampler,
    ResumableSubsetSampler,
    ResumableWeightedSampler,
)

__all__ = [
    "SAMPLER_REGISTRY",
    "ResumableBucketSampler",
    "ResumableConcatSampler",
    "ResumableCurriculumSampler",
    "ResumableDistributedSampler",
    "ResumableFunctionSampler",
    "ResumableMixtureSampler",
    "ResumableRandomSampler",
    "ResumableSampler",
    "ResumableSamplerType",
    "ResumableSequentialSampler",
    "ResumableSubsetSampler",
    "ResumableWeightedSampler",
    "create_sampler",
    "get_group",
]

SAMPLER_REGISTRY: Final[Registry[Callable[..., ResumableSamplerType]]] = Registry(
    "sampler", parent=sampling.SAMPLER_REGISTRY
)
"""Samplers by name: jax's, and the neutral ones that jax's do not shadow."""


def create_sampler(type_name: str, *args: Any, **kwargs: Any) -> ResumableSamplerType:
    """Return a new sampler of the kind registered under ``type_name``, made from the other arguments.

    Of an order function ``f(epoch, places)`` it makes a :class:`ResumableFunctionSampler`.

    Raises:
        UnknownNameError: no sampler has that name; near matches are named.
    """
    return sampling.find_sampler(type_name, SAMPLER_REGISTRY)(*args, **kwargs)


@SAMPLER_REGISTRY.register
class ResumableDistributedSampler(sampling.ResumableDistributedSampler):
    """The neutral distributed sampler, whose ranks are jax's processes.

    ``num_replicas`` and ``rank`` are ``jax.process_count()`` and ``jax.process_index()`` if they are None, and
    1 and 0 where jax runs as a single process.
    """

    def _group(self) -> tuple[int, int]:
        return get_group()


def get_group() -> tuple[int, int]:
    """Return the number of jax's processes and this one's number; devices are looked for only if there are several."""
    if jax.distributed.is_initialized():
        known: Any = jax  # it leaves some of their types unknown
        return known.process_count(), known.process_index()
    return 1, 0
