"""A dataset of arrays, in memory or in files that are mapped into it: a batch is gathered at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._rows import get_take
from ._trees import Indices, fuse, map_tree, name_leaves

__all__ = ["ArrayDataset", "open_npy"]

_get_type: Callable[[Any], Any] = type
_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any


class ArrayDataset:
    """The rows of arrays: record ``i`` is row ``i`` of each, and a batch is those of its indices, taken at once.

    What a batch or a record holds is a copy, so that changing it leaves the arrays as they are. Arrays of text become
    lists of strings. Arrays that are memory-mapped (``numpy.memmap``, :func:`open_npy`) stay in their files: pickled,
    they are paths, so that worker processes map the same files.

    Args:
        arrays: arrays of shapes (rows, ...) in dicts, tuples, named tuples, attrs or dataclass records, also nested,
            or one array. What has ``__array__`` is taken as NumPy's.
        num_threads: threads that gather a batch; None takes several where that is quicker, which is from 32 MiB on.

    Attributes:
        arrays: the same tree, of NumPy arrays.

    Raises:
        InvalidTypeError: something in the tree is no array with a first axis, or holds objects or a mask.
        InvalidValueError: there is no array, their first axes differ, or ``num_threads`` is below 1.
    """

    returns_batches = True
    global_rng = "off"
    is_table = True

    def __init__(self, arrays: Any, *, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            raise InvalidValueError(f"num_threads is {num_threads}; expected an integer >= 1, or None to choose.")
        if _get_type(arrays) is list:
            raise InvalidTypeError(
                "arrays are a list, which may as well be a list of records; expected a dict or a tuple of arrays. Pass "
                "tuple(arrays)."
            )
        leaves = name_leaves(arrays)
        checked = iter([_check(name, leaf) for name, leaf in leaves.items()])
        self.arrays: Any = map_tree(arrays, lambda _: next(checked))
        self._num_threads = num_threads
        self._prepare()

    @classmethod
    def from_npy(cls, paths: Any, *, num_threads: int | None = None) -> ArrayDataset:
        """Return the dataset of the arrays in ``.npy`` files, which are mapped and not read.

        Args:
            paths: a path, or a tree of paths, such as ``{"x": "x.npy", "y": "y.npy"}``.
            num_threads: threads that gather a batch, as for the class.

        Raises:
            InvalidValueError: a file is not there or holds no array that can be mapped, or their first axes differ.
        """
        return cls(open_npy(paths), num_threads=num_threads)

    def _prepare(self) -> None:
        self._size = _count_rows(name_leaves(self.arrays))
        self._take = fuse(self.arrays, lambda array: _get_batch(array, self._num_threads))
        self._get = fuse(self.arrays, _get_row)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        return self._get(index)

    def __getitems__(self, indices: Sequence[int] | Indices) -> Any:
        return self._take(indices if _is(indices, np.ndarray) else np.asarray(indices, np.int64))

    def get_records(self, indices: Sequence[int]) -> list[Any]:
        """Return the records with those indices, one by one."""
        return [self._get(index) for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        return {"arrays": map_tree(self.arrays, _pack), "_num_threads": self._num_threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.arrays = map_tree(state["arrays"], _unpack)
        self._num_threads = state["_num_threads"]
        self._prepare()


def open_npy(paths: Any) -> Any:
    """Return the arrays in ``.npy`` files, mapped read-only: what is not touched is never read.

    Args:
        paths: a path, or paths in dicts, tuples, named tuples, lists, attrs or dataclass records.

    Returns:
        A ``numpy.memmap`` in the place of each path.

    Raises:
        InvalidTypeError: a path is none.
        InvalidValueError: a file is not there, or holds no array that can be mapped.
    """
    return map_tree(paths, _open)


def _open(path: Any) -> npt.NDArray[Any]:
    if not _is(path, (str, os.PathLike)):
        raise InvalidTypeError(f"path is {path!r:.80}; expected the path of an .npy file, or a tree of paths.")
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidValueError(
            f"{os.fspath(path)!r} cannot be mapped ({type(error).__name__}: {error}); expected an .npy file of "
            "numbers. Write it with numpy.save(path, array)."
        ) from error
    if not _is(array, np.memmap):
        getattr(array, "close", bool)()
        raise InvalidValueError(
            f"{os.fspath(path)!r} is an archive of several arrays; expected an .npy file with one. Write each with "
            "numpy.save."
        )
    mapped: npt.NDArray[Any] = array
    return mapped


def _check(name: str, leaf: Any) -> npt.NDArray[Any]:
    is_array = hasattr(leaf, "__array__") and not np.ma.isMaskedArray(leaf)
    array: npt.NDArray[Any] | None = np.asarray(leaf) if is_array else None
    if array is None or not array.ndim or array.dtype.kind == "O":
        which = f"array {name!r}" if name else "the only array"
        found = f"a {_get_type(leaf).__name__}" if array is None else f"of shape {array.shape} and dtype {array.dtype}"
        raise InvalidTypeError(
            f"{which} of the dataset is {found}; expected numbers, booleans or text in an array whose first axis is "
            "the records. Leave it out, or give it one entry for each record."
        )
    return array


def _count_rows(leaves: dict[str, npt.NDArray[Any]]) -> int:
    if not leaves:
        raise InvalidValueError("arrays are none; expected at least one. Pass them in a dict or a tuple.")
    first = next(iter(leaves))
    for name, array in leaves.items():
        if len(array) != len(leaves[first]):
            raise InvalidValueError(
                f"arrays {_write(first, leaves[first])} and {_write(name, array)} have {len(leaves[first])} and "
                f"{len(array)} rows; expected the same first axis in all. Transpose one, or cut the longer one."
            )
    return len(leaves[first])


def _write(name: str, array: npt.NDArray[Any]) -> str:
    root = _find_memmap(array)
    where = "" if root is None else f" in {str(root.filename)!r}"
    return f"{name!r}{where} of shape {array.shape}"


def _get_batch(array: npt.NDArray[Any], num_threads: int | None) -> Callable[[Indices], Any]:
    if array.dtype.kind in "SUT":
        return lambda rows: array[rows].tolist()
    return get_take(array, num_threads=num_threads)


def _get_row(array: npt.NDArray[Any]) -> Callable[[int], Any]:
    if array.dtype.kind in "SUT":
        return lambda index: array[index].tolist()
    if array.ndim == 1:
        return array.__getitem__
    return lambda index: array[index].copy()


class _Part:
    """An array that is part of a file, as it travels to another process; no record, which would be a tree."""

    def __init__(self, path: str, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape


def _pack(array: npt.NDArray[Any]) -> npt.NDArray[Any] | _Part:
    root = _find_memmap(array)
    # What is changed in mode "c" is in no file.
    if root is None or root.mode == "c" or not array.flags.c_contiguous or not array.size:
        return array
    start = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return _Part(str(root.filename), array.dtype, root.offset + start, array.shape)


def _unpack(part: npt.NDArray[Any] | _Part) -> npt.NDArray[Any]:
    if not isinstance(part, _Part):
        return part
    try:
        return np.asarray(np.memmap(part.path, part.dtype, "r", part.offset, part.shape))
    except (OSError, ValueError) as error:
        raise InvalidValueError(
            f"{part.path!r} cannot be mapped again ({type(error).__name__}: {error}); expected the file that the "
            "dataset was made of, also in worker processes. Keep it where it is."
        ) from error


def _find_memmap(array: Any) -> Any:
    """Return the memory map that an array is a part of, as it was opened; None if there is none that has a file."""
    while _is(array, np.ndarray):
        if _is(array, np.memmap) and not _is(array.base, np.ndarray):
            return array if array.filename is not None else None
        array = array.base
    return None
