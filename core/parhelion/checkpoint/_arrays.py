"""Arrays on the host: named bytes, and what a backend must provide for its own arrays."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import CheckpointMismatchError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = [
    "ArrayAdapter",
    "HostArray",
    "Part",
    "ShardedArray",
    "align",
    "aligned_empty",
    "dense_strides",
    "host_from_numpy",
    "is_plain_dtype",
    "numpy_dtype",
    "numpy_from_host",
    "numpy_identity",
]

_ALIGNMENT = 64
_PLAIN_KINDS = "biufcmMSU"
_NAMED = frozenset(
    {"bool", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def _check_strides(array: HostArray, _: object, strides: tuple[int, ...] | None) -> None:
    # They come from a file, and NumPy would follow them out of bounds.
    if strides is not None and dense_strides(array.shape, strides) != strides:
        raise InvalidValueError(
            f"strides of an array of shape {array.shape} are {strides}; expected a dense layout other than C "
            "order, or None. Pass dense_strides(shape, strides)."
        )


@attrs.frozen
class HostArray:
    """One array as named bytes in host memory; the core never looks at what an element means.

    Attributes:
        dtype: the element type's name ("float32", "bfloat16", "float8_e4m3fn"; little-endian), or NumPy's
            description for what has no such name (">f4", "<M8[ns]", "<U5").
        shape: the size of every axis.
        data: the elements in C order, as one axis of uint8. It may be a view of the live array.
        strides: in elements, for an array that lies densely in memory in another order than C's (Fortran
            order, channels last), None for C order. Kernels may round differently per layout.
        is_fresh: whether ``data`` was made for this and nobody else will ever write to it. A view of the live array
            has to be copied before training goes on.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8] = attrs.field(eq=attrs.cmp_using(eq=np.array_equal), hash=False, repr=False)
    strides: tuple[int, ...] | None = attrs.field(default=None, validator=_check_strides)
    is_fresh: bool = attrs.field(default=False, eq=False, repr=False)


@attrs.frozen
class Part:
    """A box of a larger array: what one process holds of it.

    Attributes:
        start: where the box begins along every axis of the whole, in elements.
        array: the elements in it; its shape is the box's.
    """

    start: tuple[int, ...]
    array: HostArray


@attrs.frozen
class ShardedArray:
    """An array that is spread over processes, as one of them sees it.

    The parts of all processes tile the whole: every element is in exactly one part of exactly one process. How a
    part lies in memory is not kept, apart from the order of its elements.

    Attributes:
        dtype: the element type's name, as in :class:`HostArray`.
        shape: the size of every axis of the whole.
        parts: what this process writes; empty if others have it all.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


class ArrayAdapter(Protocol):
    """What a backend provides so that its arrays can be saved and come back."""

    def identity(self, leaf: Any) -> Hashable | None:
        """Return a key that leaves share if they are one array; None for what is no array of this backend."""
        ...

    def encode(self, leaf: Any, path: str) -> HostArray | ShardedArray:
        """Return the array's bytes, or this process's parts of one that is spread over processes.

        Raises:
            UnsavableValueError: that is impossible; names ``path``.
        """
        ...

    def decode(self, array: HostArray) -> Any:
        """Return the backend's array; it takes over ``array.data``, which is writable and its own."""
        ...


def align(size: int) -> int:
    """Return ``size`` rounded up, so that what follows is aligned too."""
    return size + -size % _ALIGNMENT


def aligned_empty(size: int) -> npt.NDArray[np.uint8]:
    """Return ``size`` uninitialised bytes at a 64-byte boundary.

    Vectorised kernels may add up in another order on memory aligned otherwise, and jax copies it.
    """
    whole = np.empty(size + _ALIGNMENT, np.uint8)
    start = -whole.__array_interface__["data"][0] % _ALIGNMENT
    return whole[start : start + size]


def dense_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """Return ``strides`` (in elements) if they place the elements densely but not in C order, else None."""
    c_order = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if tuple(strides) == c_order or math.prod(shape) == 0:
        return None
    expected = 1
    axes = zip(strides, shape, strict=True)
    for stride, size in sorted(axis for axis in axes if axis[1] > 1):
        if stride != expected:
            return None
        expected *= size
    return tuple(strides) if min(strides) >= 0 else None


def is_plain_dtype(dtype: np.dtype[Any]) -> bool:
    """Tell whether the elements are numbers, dates or strings of a fixed width."""
    return dtype.kind in _PLAIN_KINDS


def numpy_dtype(name: str) -> np.dtype[Any] | None:
    """Return the NumPy dtype that a HostArray calls ``name``, None if NumPy has none."""
    if name in _NAMED:
        return np.dtype(name).newbyteorder("<")
    if not name.startswith(("<", ">", "|", "=")):
        return None
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if is_plain_dtype(dtype) else None


def numpy_identity(array: npt.NDArray[Any]) -> Hashable:
    """Return a key that two live arrays share if they are the same elements of the same memory."""
    if array.size == 0:
        return id(array)
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str


@functools.cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    little = dtype.newbyteorder("<")
    return little.name if little.name in _NAMED and little == dtype else dtype.str


def host_from_numpy(array: npt.NDArray[Any]) -> HostArray:
    """Return the bytes of an array of a plain dtype; a view of it where it lies in C order."""
    name = _dtype_name(array.dtype)
    strides = None
    if not array.flags.c_contiguous and array.itemsize:
        strides = dense_strides(array.shape, [stride // array.itemsize for stride in array.strides])
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return HostArray(name, array.shape, data, strides)


def numpy_from_host(host: HostArray, path: str) -> npt.NDArray[Any]:
    """Return the NumPy array that lies over ``host.data``, or a copy where its layout is another.

    Raises:
        CheckpointMismatchError: NumPy has no such dtype here.
    """
    dtype = numpy_dtype(host.dtype)
    if dtype is None:
        raise CheckpointMismatchError(
            f"{path} has the dtype {host.dtype!r}; expected one that NumPy knows on this machine. Open it "
            "on a machine like the one that wrote it."
        )
    array = host.data.view(dtype).reshape(host.shape)
    if host.strides is None:
        return array
    steps = [stride * dtype.itemsize for stride in host.strides]
    laid_out = np.lib.stride_tricks.as_strided(np.empty(array.size, dtype), host.shape, steps)
    laid_out[...] = array
    return laid_out
