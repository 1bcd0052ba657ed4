"""Where the arrays of a batch are made: in a worker process, right in the memory that its parent reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["empty", "is_elsewhere", "make_batches_in"]

_allocate: Callable[[Any, Any], npt.NDArray[Any]] = np.empty


def empty(shape: int | Sequence[int], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Return a new array that is not filled, like ``numpy.empty``, for a collate function or a dataset to fill.

    In a loader's worker process it lies, if there is room, in memory that the parent shares, so that the batch needs
    no copy on its way. It may be kept like any other array, but not be filled again for another batch.

    Args:
        shape: of the array.
        dtype: of the array.
    """
    return _allocate(shape, dtype)


def is_elsewhere() -> bool:
    """Return whether :func:`empty` is more than ``numpy.empty`` here."""
    return _allocate is not np.empty


def make_batches_in(allocate: Callable[[Any, Any], npt.NDArray[Any]]) -> None:
    """Let :func:`empty` be this function, in a process whose batches go elsewhere."""
    global _allocate  # noqa: PLW0603 - one for each process, set when a worker begins
    _allocate = allocate
