"""Layers of a network, and the layout that each library keeps their arrays in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["Array", "Change", "Layer", "Leaf", "conv_leaf", "dense_leaf", "keep"]

Array: TypeAlias = npt.NDArray[Any]
Change: TypeAlias = Callable[[Array], Any]


def keep(array: Array) -> Array:
    """Return the array as it is: both libraries lay it out alike."""
    return array


@attrs.frozen
class Leaf:
    """One array of a layer: what it is called behind the layer's prefix, and how its layout changes."""

    torch: str
    jax: str
    to_jax: Change = keep
    to_torch: Change = keep


@attrs.frozen
class Layer:
    """What :func:`dense`, :func:`conv` and the like return: a layer of the torch module, by how its names begin.

    Attributes:
        kind: the function that made it.
        prefix: how the names of its arrays begin in torch.
        leaves: its arrays, each of which may be absent; for :func:`same` all that begin so.
        count: torch's name of the batches that running statistics have seen, which JAX does not keep.
    """

    kind: str
    prefix: str
    leaves: tuple[Leaf, ...] = ()
    count: str | None = None

    def __attrs_post_init__(self) -> None:
        for name in (self.prefix, *(each for leaf in self.leaves for each in (leaf.torch, leaf.jax))):
            if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
                raise InvalidTypeError(f"a name given to {self.kind} is {name!r}; expected a string, such as 'fc1'.")


def dense_leaf(torch_weight: str, kernel: str, flattened: Sequence[int] | None) -> Leaf:
    """Return the weight of a dense layer, whose inputs a flatten in front of it may have made.

    Raises:
        InvalidValueError: ``flattened`` is no shape of channels and at least one more axis.
    """
    shape = None if flattened is None else _check_flattened(flattened)
    return Leaf(torch_weight, kernel, partial(_dense_to_jax, shape=shape), partial(_dense_to_torch, shape=shape))


def conv_leaf(torch_weight: str, kernel: str) -> Leaf:
    """Return the weight of a convolution."""
    return Leaf(torch_weight, kernel, _conv_to_jax, _conv_to_torch)


def _to_channels_last(weight: Array) -> Array:
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _to_channels_first(kernel: Array) -> Array:
    last = kernel.ndim - 1
    return kernel.transpose(last, last - 1, *range(last - 1))


def _dense_to_jax(weight: Array, shape: tuple[int, ...] | None) -> Array:
    _check_axes(weight, 2, 2)
    if shape is None:
        return weight.T
    return _to_channels_last(weight.reshape(len(weight), *shape)).reshape(math.prod(shape), len(weight))


def _dense_to_torch(kernel: Array, shape: tuple[int, ...] | None) -> Array:
    _check_axes(kernel, 2, 2)
    if shape is None:
        return kernel.T
    num_outputs = kernel.shape[1]
    return _to_channels_first(kernel.reshape(*shape[1:], shape[0], num_outputs)).reshape(num_outputs, math.prod(shape))


def _conv_to_jax(weight: Array) -> Array:
    _check_axes(weight, 3, 5)
    return _to_channels_last(weight)


def _conv_to_torch(kernel: Array) -> Array:
    _check_axes(kernel, 3, 5)
    return _to_channels_first(kernel)


def _check_axes(array: Array, least: int, most: int) -> None:
    if not least <= array.ndim <= most:
        raise ValueError(f"it has {array.ndim} axes instead of {least if least == most else f'{least} to {most}'}")


def _check_flattened(flattened: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in flattened)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) < 2 or min(shape) < 1:  # noqa: PLR2004 - channels and a place
        raise InvalidValueError(
            f"flattened of dense is {flattened!r}; expected the shape that torch flattens, channels first, such as "
            "(32, 7, 7). Leave it out where nothing is flattened."
        )
    return shape
