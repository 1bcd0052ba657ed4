"""Rows of one array: as NumPy takes them, in several threads where they are many bytes, read ahead where on disk.

What was measured on two cores, in milliseconds per batch of rows at random places:

==================================  ==========  ===========  ==========
rows                                one thread  two threads  read ahead
==================================  ==========  ===========  ==========
in memory, 64 of 147 KiB, 9 MiB           0.28         0.25
in memory, 256 of 147 KiB, 37 MiB          6.4          4.4
in memory, 1024 of 147 KiB, 147 MiB         21           13
in a file, 64 of 147 KiB, 9 MiB             38           30         7.5
in a file, 256 of 4 KiB, 1 MiB              33           27         3.6
==================================  ==========  ===========  ==========

From 32 MiB on an allocation always gets new pages from the kernel, whose first touch costs more than the copy.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import resource
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ._trees import Indices

__all__ = ["find_map", "get_take"]

_LARGE: Final = 32 * 2**20  # bytes of a batch from which on several threads are quicker
_SMALL_ROW: Final = 1024  # bytes; copying such rows is a matter of finding them
_MOST_THREADS: Final = 4
_PROBES: Final = 64, 1024  # batches that are read ahead before it is looked whether that is needed


def get_take(
    array: npt.NDArray[Any], *, num_threads: int | None = None, mapping: mmap.mmap | None = None
) -> Callable[[Indices], npt.NDArray[Any]]:
    """Return what gives the rows with some indices, in memory of their own; IndexError where there is no such row.

    Args:
        array: of shape (rows, ...).
        num_threads: threads for what is large; None takes one for each core, up to four.
        mapping: the file in memory that the array is a part of; found if the array is NumPy's.
    """
    if np.ma.isMaskedArray(array) or not (array.flags.c_contiguous and array.flags.aligned):
        # Of such an array `take` would make a copy first, each time.
        get: Callable[[Indices], npt.NDArray[Any]] = array.__getitem__
        return get
    array = np.asarray(array)  # parts of a memory map would be memory maps
    mapping = find_map(array) if mapping is None else mapping
    if mapping is not None and hasattr(mapping, "madvise") and array.size:
        return _MappedRows(array, mapping, num_threads).take
    if _row_bytes(array) >= _SMALL_ROW and num_threads != 1:
        return _LargeRows(array, num_threads).take
    # Half the time of indexing.
    return functools.partial(array.take, axis=0)


def find_map(array: Any) -> mmap.mmap | None:
    """Return the file in memory that an array is a part of, if it is."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) else None


def _row_bytes(array: npt.NDArray[Any]) -> int:
    return array.nbytes // len(array) if len(array) else 0


class _LargeRows:
    """Rows of an array that are taken by several threads where they are many bytes."""

    def __init__(self, array: npt.NDArray[Any], num_threads: int | None) -> None:
        self._array = array
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._num_threads = min(cores, _MOST_THREADS) if num_threads is None else num_threads
        # Who asks for a number of threads has reasons.
        self._large = _LARGE // max(_row_bytes(array), 1) if num_threads is None else self._num_threads
        self._pool: tuple[int, Any] = (0, None)

    def take(self, rows: Indices) -> npt.NDArray[Any]:
        array, count = self._array, len(rows)
        if count < self._large or self._num_threads == 1:
            return array.take(rows, axis=0)
        if count and not -len(array) <= rows.min() <= rows.max() < len(array):
            return array.take(rows, axis=0)  # raises
        out = np.empty((count, *array.shape[1:]), array.dtype)
        # An output that is checked on the way would be copied once more; negative rows are the last ones.
        rows = np.where(rows < 0, rows + len(array), rows)
        cuts = [count * k // self._num_threads for k in range(self._num_threads + 1)]
        parts = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
        pool = self._get_pool()
        waiting = [pool.submit(array.take, rows[part], 0, out[part], "clip") for part in parts[1:]]
        array.take(rows[parts[0]], 0, out[parts[0]], "clip")
        for each in waiting:
            each.result()
        return out

    def _get_pool(self) -> Any:
        """Return this process's pool; its threads end with this object. A fork has the pool and not its threads."""
        process, pool = self._pool
        if pool is None or process != os.getpid():
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - 5 ms, for few

            pool = ThreadPoolExecutor(self._num_threads - 1, "parhelion-rows")
            self._pool = os.getpid(), pool
        return pool


class _MappedRows:
    """Rows of a file in memory; the kernel is told of all that a batch needs before the first is touched.

    It then reads them together and not one after the other, in a tenth of the time. Where the file is in memory
    already that would be in vain, so it is done only after a batch that had to wait for the disk, for so many batches
    and then tried without.
    """

    def __init__(self, array: npt.NDArray[Any], mapping: mmap.mmap, num_threads: int | None) -> None:
        self._rows = _LargeRows(array, num_threads)
        self._mapping = mapping
        start = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
        self._start = array.__array_interface__["data"][0] - start
        self._size, self._width = len(array), _row_bytes(array)
        self._ahead = 0
        self._probe = _PROBES[0]

    def take(self, rows: Indices) -> npt.NDArray[Any]:
        if self._ahead > 0:
            self._ahead -= 1
            self._read_ahead(rows)
            return self._rows.take(rows)
        before = _count_waits()
        taken = self._rows.take(rows)
        if _count_waits() == before:
            self._probe = _PROBES[0]
        else:
            self._ahead, self._probe = self._probe, min(2 * self._probe, _PROBES[1])
        return taken

    def _read_ahead(self, rows: Indices) -> None:
        page, width, start = mmap.PAGESIZE, self._width, self._start
        advise = self._mapping.madvise
        for row in rows.tolist():
            if 0 <= row < self._size:
                first = start + row * width
                aligned = first - first % page
                advise(mmap.MADV_WILLNEED, aligned, first + width - aligned)


def _count_waits() -> int:
    """Return how often this process has waited for the disk to touch its memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
