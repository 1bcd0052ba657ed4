"""Host memory that a state is copied to before it is written, kept from save to save.

Once the copy is made, what happens to the live arrays no longer matters: training changes them in place, or gives
their buffers away, while the copy is being written.
"""

from __future__ import annotations

import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from parhelion.errors import CheckpointError, InvalidValueError

from ._arrays import HostArray, Part, ShardedArray, align, aligned_empty

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

__all__ = ["Hold"]

# Large enough that a piece costs no time to hand out, small enough that the threads end together.
_PIECE: Final = 1 << 23
# Below this, starting a thread costs more than it saves.
_WORTH_A_THREAD: Final = 1 << 24
# Two saturate the memory of the machines that were measured; more only take cores away from training.
_THREADS: Final = 2
_PAGE: Final = 4096


class Hold:
    """Memory for one copy of a state; it grows to the largest that it was given.

    A copy that somebody still has (a save in flight) is never written over: the next one then goes to new memory,
    which costs twice the room. Wait for the save before, and it goes to the same.

    Args:
        threads: how many copy at once, the calling one among them.

    Raises:
        InvalidValueError: ``threads`` is below 1.
    """

    def __init__(self, threads: int = _THREADS) -> None:
        if threads < 1:
            raise InvalidValueError(f"threads is {threads!r}; expected an integer >= 1. Leave it out for {_THREADS}.")
        self._threads = threads
        self._slab = aligned_empty(0)
        self._lent: weakref.ref[npt.NDArray[np.uint8]] | None = None
        self._lock = threading.Lock()

    def prepare(self, size: int) -> None:
        """Have ``size`` bytes ready, so that the first copy need not wait for the system to find them.

        It may be called from another thread while training begins.
        """
        with self._lock:
            if size > self._slab.size:
                self._slab = aligned_empty(size)
                self._lent = None
                # The system gives a page when it is first touched.
                self._slab[::_PAGE] = 0

    def copy(self, arrays: Mapping[str, HostArray | ShardedArray]) -> dict[str, HostArray | ShardedArray]:
        """Return the same arrays with bytes of their own: those that are views of live memory are copied.

        Raises:
            CheckpointError: there is not enough memory for the copy.
        """
        views = [host for array in arrays.values() for host in _host_arrays(array) if not host.is_fresh]
        with self._lock:
            places = self._places([host.data.size for host in views])
        _copy_all([(host.data, place) for host, place in zip(views, places, strict=True)], self._threads)
        copies = iter(attrs.evolve(host, data=place, is_fresh=True) for host, place in zip(views, places, strict=True))
        return {name: _with_copies(array, copies) for name, array in arrays.items()}

    def close(self) -> None:
        """Release the memory; copies that somebody still has stay good."""
        with self._lock:
            self._slab = aligned_empty(0)
            self._lent = None

    def _places(self, sizes: list[int]) -> list[npt.NDArray[np.uint8]]:
        """Return memory of these sizes, which nobody else has."""
        total = sum(map(align, sizes))
        is_lent = self._lent is not None and self._lent() is not None
        if is_lent or total > self._slab.size:
            # Let go of the old memory first, for both may be too much.
            self._slab = aligned_empty(0)
            try:
                self._slab = aligned_empty(total)
            except MemoryError as error:
                raise CheckpointError(
                    f"the copy of the state that is saved in the background needs {total} bytes of host memory, "
                    "which are not there; expected room for one. Save without a background, or free memory."
                ) from error
        # Views of an array all refer to the array that owns the memory; going through a buffer gives them an owner of
        # their own, whose end says that the last of them is gone.
        root = np.frombuffer(self._slab.data, np.uint8)
        self._lent = weakref.ref(root)
        places: list[npt.NDArray[np.uint8]] = []
        start = 0
        for size in sizes:
            places.append(root[start : start + size])
            start += align(size)
        return places


def _host_arrays(array: HostArray | ShardedArray) -> Iterator[HostArray]:
    if isinstance(array, HostArray):
        yield array
    else:
        yield from (part.array for part in array.parts)


def _with_copies(array: HostArray | ShardedArray, copies: Iterator[HostArray]) -> HostArray | ShardedArray:
    """Return ``array`` with the next of ``copies`` in place of each view."""
    if isinstance(array, HostArray):
        return array if array.is_fresh else next(copies)
    parts = tuple(Part(part.start, part.array if part.array.is_fresh else next(copies)) for part in array.parts)
    return ShardedArray(array.dtype, array.shape, parts)


def _copy_all(pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], threads: int) -> None:
    """Copy the first of each pair to the second, with up to ``threads`` threads."""
    pieces: queue.SimpleQueue[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = queue.SimpleQueue()
    for source, target in pairs:
        for begin in range(0, source.size, _PIECE):
            pieces.put((source[begin : begin + _PIECE], target[begin : begin + _PIECE]))
    total = sum(source.size for source, _ in pairs)
    others = [threading.Thread(target=_copy_pieces, args=(pieces,)) for _ in range(threads - 1)]
    started: list[threading.Thread] = []
    try:
        for thread in others if total >= _WORTH_A_THREAD else []:
            thread.start()
            started.append(thread)
    except RuntimeError:
        # An interpreter that ends starts no threads: this one does all.
        pass
    _copy_pieces(pieces)
    for thread in started:
        thread.join()


def _copy_pieces(pieces: queue.SimpleQueue[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> None:
    """Copy pieces until there is none; NumPy lets other threads run meanwhile."""
    while True:
        try:
            source, target = pieces.get_nowait()
        except queue.Empty:
            return
        np.copyto(target, source)
