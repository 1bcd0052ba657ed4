"""Samplers by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

from parhelion.registry import Registry

from ._samplers import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSamplerType,
    ResumableSequentialSampler,
)

__all__ = ["SAMPLER_REGISTRY", "create_sampler", "find_sampler"]

SAMPLER_REGISTRY: Final[Registry[Callable[..., ResumableSamplerType]]] = Registry("sampler")
"""Samplers by name: classes, functions that return a sampler, and order functions ``f(epoch, places) -> indices``."""

for _sampler in (ResumableSequentialSampler, ResumableRandomSampler, ResumableDistributedSampler):
    SAMPLER_REGISTRY.register(_sampler)


def create_sampler(type_name: str, *args: Any, **kwargs: Any) -> ResumableSamplerType:
    """Return a new sampler of the kind registered under ``type_name``, made from the other arguments.

    Of an order function ``f(epoch, places)`` it makes a :class:`ResumableFunctionSampler`.

    Raises:
        UnknownNameError: no sampler has that name; near matches are named.
    """
    return find_sampler(type_name)(*args, **kwargs)


def find_sampler(
    type_name: str, registry: Registry[Callable[..., ResumableSamplerType]] = SAMPLER_REGISTRY
) -> Callable[..., ResumableSamplerType]:
    """Return what makes a sampler of the kind registered under ``type_name``.

    An order function, whose first two parameters are ``epoch`` and ``places``, is wrapped in the registry's
    ``ResumableFunctionSampler``; anything else is returned as it is.

    Raises:
        UnknownNameError: no sampler has that name; near matches are named.
    """
    entry = registry.get(type_name)
    if inspect.isclass(entry) or _first_parameters(entry) != ["epoch", "places"]:
        return entry
    return functools.partial(registry.get("ResumableFunctionSampler"), function=entry)


def _first_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):
        return []  # some functions that are written in C do not say
