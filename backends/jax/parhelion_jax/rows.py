"""Rows of many arrays at once: a dataset in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from parhelion.data import get_take
from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["Indices", "Table", "count_samples"]

Indices: TypeAlias = npt.NDArray[np.int64]
PyTreeType = TypeVar("PyTreeType")

_jax: Any = jax  # it leaves some of it untyped
_MAX_INT32 = 2**31 - 1


class Table(Generic[PyTreeType]):
    """A pytree of arrays whose first axes are the samples.

    Rows of NumPy arrays are taken on the host, those of jax arrays where these are; what has ``__array__`` is taken as
    NumPy. What is returned has memory of its own.

    Args:
        dataset: has been through :func:`count_samples`.
    """

    def __init__(self, dataset: PyTreeType) -> None:
        leaves, structure = _jax.tree.flatten(dataset)
        self._unflatten: Callable[[list[Any]], Any] = structure.unflatten
        self._arrays = [*map(_to_array, leaves)]
        self._on_devices = [place for place, array in enumerate(self._arrays) if isinstance(array, jax.Array)]
        self._takes = [*map(_get_take, self._arrays)]

    def gather(self, rows: Indices) -> PyTreeType:
        """Return the given rows, in the order given."""
        leaves = [take(rows) for take in self._takes]
        if self._on_devices:
            self._fill_in(leaves, rows)
        return cast("PyTreeType", self._unflatten(leaves))

    def copy(self, rows: Indices) -> PyTreeType:
        """Return the given rows, which follow one another."""
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        # A view would let the user of a batch write into the dataset.
        leaves = [None if isinstance(array, jax.Array) else array[part].copy() for array in self._arrays]
        if self._on_devices:
            self._fill_in(leaves, rows)
        return cast("PyTreeType", self._unflatten(leaves))

    def _fill_in(self, leaves: list[Any], rows: Indices) -> None:
        arrays = [self._arrays[place] for place in self._on_devices]
        for place, array in zip(self._on_devices, _gather(arrays, _to_device_index(rows, len(arrays[0]))), strict=True):
            leaves[place] = array


def count_samples(dataset: Any) -> int:
    """Return how many samples a pytree of arrays has.

    Raises:
        InvalidTypeError: a leaf is no array with a first axis.
        InvalidValueError: there is none, or their first axes differ.
    """
    paths, _ = _jax.tree_util.tree_flatten_with_path(dataset)
    sizes = {_jax.tree_util.keystr(path, simple=True, separator="/"): _count_rows(path, leaf) for path, leaf in paths}
    if not sizes:
        raise InvalidValueError(
            f"dataset is {dataset!r}, which has no array; expected at least one. Pass the arrays in a dict or a tuple."
        )
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            raise InvalidValueError(
                f"leaves {first!r} and {name!r} of the dataset have {size} and {other} samples; expected the same "
                "first axis in all. Transpose one, or cut the longer one."
            )
    return size


def _count_rows(path: Any, leaf: Any) -> int:
    shape = getattr(leaf, "shape", None)
    if not shape or not (isinstance(leaf, jax.Array) or hasattr(leaf, "__array__")):
        name = _jax.tree_util.keystr(path, simple=True, separator="/")
        raise InvalidTypeError(
            f"leaf {name!r} of the dataset is {leaf!r:.80}; expected an array whose first axis is the samples. Leave "
            "it out, or give it one entry for each sample."
        )
    return int(shape[0])


def _to_array(leaf: Any) -> Any:
    # Parts of a memory map would be memory maps; those of a masked array must stay masked.
    return leaf if isinstance(leaf, jax.Array) or np.ma.isMaskedArray(leaf) else np.asarray(leaf)


def _get_take(array: Any) -> Callable[[Indices], Any]:
    if isinstance(array, jax.Array):
        return _take_nothing
    return get_take(array)


def _take_nothing(rows: Indices) -> None:
    """Stand in for an array that is gathered together with others."""


def _take_all(arrays: list[Any], rows: Any) -> list[Any]:
    return [jnp.take(array, rows, axis=0, mode="clip") for array in arrays]


_gather: Callable[[list[Any], Any], list[Any]] = _jax.jit(_take_all)


def _to_device_index(rows: Indices, size: int) -> Any:
    if size <= _MAX_INT32:
        return rows.astype(np.int32)
    if not _jax.config.jax_enable_x64:
        raise InvalidValueError(
            f"dataset has jax arrays of {size} samples; expected up to {_MAX_INT32}, since jax has no 64-bit integers "
            "now. Call jax.config.update('jax_enable_x64', True) first, or keep them as NumPy arrays."
        )
    return rows
