"""The neutral samplers as torch's users expect them: torch's own, by isinstance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch.distributed
from torch.utils.data import DistributedSampler, Sampler

from parhelion import sampling
from parhelion.registry import Registry
from parhelion.sampling import ResumableSamplerType

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
"""Samplers by name: torch's, and the neutral ones that torch's do not shadow."""


def create_sampler(type_name: str, *args: Any, **kwargs: Any) -> ResumableSamplerType:
    """Return a new sampler of the kind registered under ``type_name``, made from the other arguments.

    Of an order function ``f(epoch, places)`` it makes a :class:`ResumableFunctionSampler`.

    Raises:
        UnknownNameError: no sampler has that name; near matches are named.
    """
    return sampling.find_sampler(type_name, SAMPLER_REGISTRY)(*args, **kwargs)


class ResumableSampler(sampling.ResumableSampler, Sampler[int]):
    """The neutral base class of samplers, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableSequentialSampler(sampling.ResumableSequentialSampler, ResumableSampler):
    """The neutral sequential sampler, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableRandomSampler(sampling.ResumableRandomSampler, ResumableSampler):
    """The neutral random sampler, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableWeightedSampler(sampling.ResumableWeightedSampler, ResumableSampler):
    """The neutral weighted sampler, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableMixtureSampler(sampling.ResumableMixtureSampler, ResumableSampler):
    """The neutral sampler of datasets in proportions, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableSubsetSampler(sampling.ResumableSubsetSampler, ResumableSampler):
    """The neutral sampler of chosen records, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableConcatSampler(sampling.ResumableConcatSampler, ResumableSampler):
    """The neutral sampler of datasets one after another, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableBucketSampler(sampling.ResumableBucketSampler, ResumableSampler):
    """The neutral sampler of similar lengths, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableCurriculumSampler(sampling.ResumableCurriculumSampler, ResumableSampler):
    """The neutral sampler in phases, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableFunctionSampler(sampling.ResumableFunctionSampler, ResumableSampler):
    """The neutral sampler made of one function, being a ``torch.utils.data.Sampler``."""


@SAMPLER_REGISTRY.register
class ResumableDistributedSampler(sampling.ResumableDistributedSampler, DistributedSampler[int]):  # type: ignore[override]
    """The neutral distributed sampler, being a ``torch.utils.data.DistributedSampler``.

    ``num_replicas`` and ``rank`` are the process group's if they are None, and 1 and 0 where there is no
    group.
    """

    def _group(self) -> tuple[int, int]:
        return get_group()


def get_group() -> tuple[int, int]:
    """Return the number of ranks and this rank: those of the process group, else 1 and 0."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0
