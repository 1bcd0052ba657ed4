"""Host arrays in the dtypes that jax has, in memory that is theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from parhelion.errors import InvalidValueError

__all__ = ["SMALL", "is_real", "is_usual", "stack_arrays", "to_array"]

SMALL = 1 << 19
"""Bytes up to which an array is so small that copying it costs less than sharing its memory."""

_ALIGNMENT = 64  # bytes; jax takes memory on the host as it is only if it begins at a multiple
_log = logging.getLogger("parhelion")
_jax: Any = jax  # it leaves some of it untyped
_NARROW: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.int64): np.dtype(np.int32),
    np.dtype(np.uint64): np.dtype(np.uint32),
    np.dtype(np.float64): np.dtype(np.float32),
    np.dtype(np.complex128): np.dtype(np.complex64),
}
_USUAL = frozenset(np.dtype(kind) for kind in "?bBhHiIefF")
_LIMITS = {
    np.dtype(wide): (int(np.iinfo(narrow).min), int(np.iinfo(narrow).max))
    for wide, narrow in ((np.int64, np.int32), (np.uint64, np.uint32))
}


def to_array(leaf: Any, name: Callable[[], str], *, copy: bool) -> Any:
    """Return a NumPy array of a dtype that jax has, with memory of its own for ``copy``; None for what is no array.

    Raises:
        InvalidValueError: an integer does not fit 32 bits, and jax has no 64-bit types.
    """
    if is_usual(leaf) and leaf.nbytes <= SMALL:
        return leaf.copy() if copy else leaf
    if not hasattr(leaf, "__array__") or isinstance(leaf, type):
        return None
    array = np.asarray(leaf)
    if not _is_array_dtype(array.dtype):
        return None
    dtype = _choose_dtype(array, name)
    if not copy:
        return array.astype(dtype, copy=False)
    if array.nbytes <= SMALL:
        return array.astype(dtype, order="C")
    own = _new_array(array.shape, dtype)
    np.copyto(own, array, casting="unsafe")
    return own


def stack_arrays(leaves: Sequence[Any], name: Callable[[], str]) -> Any:
    """Return arrays or numbers of one shape as one array with memory of its own; it raises what to_array does."""
    arrays: Any = [np.asarray(leaf) for leaf in leaves]
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) == 1 and not dtypes.isdisjoint(_LIMITS):
        # Looked at together: a minimum takes longer to call than to find.
        arrays = np.stack(arrays)
        dtype = _choose_dtype(arrays, name)
    else:
        dtype = np.result_type(*(dtypes if dtypes <= _USUAL else [_choose_dtype(array, name) for array in arrays]))
    shape = arrays[0].shape
    own = _new_array((len(arrays), *shape), dtype)
    if shape:
        # np.stack makes a view of each.
        np.concatenate(arrays, out=own.reshape(len(arrays) * shape[0], *shape[1:]), casting="unsafe")
    else:
        np.stack(arrays, out=own, casting="unsafe")
    return own


def is_usual(leaf: Any) -> bool:
    """Whether something is a NumPy array that jax takes as it is; most are, and this costs the least."""
    return leaf.__class__ is np.ndarray and leaf.dtype in _USUAL


@cache
def is_real(dtype: Any) -> bool:
    """Whether a dtype is of real numbers, also one that NumPy has no name for."""
    kinds = (np.bool_, np.integer, np.floating)
    return any(_jax.dtypes.issubdtype(dtype, kind) for kind in kinds)


@cache
def _is_array_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether jax has arrays of a dtype; there are none of strings, objects, dates or long doubles."""
    if dtype.kind in "fc":
        return dtype.itemsize <= np.dtype(np.float64 if dtype.kind == "f" else np.complex128).itemsize
    return dtype == np.bool_ or bool(_jax.dtypes.issubdtype(dtype, np.number))


def _choose_dtype(array: Any, name: Callable[[], str]) -> np.dtype[Any]:
    """Return the array's dtype in the machine's byte order, and without 64-bit numbers where jax has none."""
    dtype: np.dtype[Any] = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    narrow = _NARROW.get(dtype)
    if narrow is None or _jax.config.jax_enable_x64:
        return dtype
    if dtype in _LIMITS and array.size:
        low, high = _LIMITS[dtype]
        for value in (array.min(), array.max()):
            if not low <= value <= high:
                raise InvalidValueError(
                    f"field {name()!r} of a batch has {value}; expected what fits {narrow}, since jax has no 64-bit "
                    "types now. Call jax.config.update('jax_enable_x64', True) first, or leave the field out."
                )
    _tell_narrowing()
    return narrow


@cache
def _tell_narrowing() -> None:
    # Cached, so that it is said once.
    _log.info("64-bit arrays are placed as 32-bit ones, since jax_enable_x64 is off; integers are checked to fit")


def _new_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
