"""Memory that a worker fills and its parent reads: slots that go back and forth, without a name and without a copy.

A slot is an anonymous file in memory, mapped by both. The worker makes it as large as its batches are and sends its
descriptor along with the first batch; the parent makes arrays of it, and gives the slot back once none of these, nor
anything made of them, is left. A slot has no name, so nothing stays behind whichever process ends in whatever way.
"""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import os
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from parhelion.errors import WorkerError

__all__ = ["Placed", "Reader", "Writer", "make_file", "map_file"]

_ALIGNMENT: Final = 64  # a cache line; also what jax and vector instructions want
_PAGE: Final = mmap.PAGESIZE
_LEAST: Final = 1024  # bytes; a smaller array travels beside the slot
_KEPT: Final = 8  # slots for batches that the user keeps
_RECENT: Final = 16  # batches that decide how large slots are
_ROOMY: Final = 4  # times what is needed
_PLENTY: Final = 1 << 28  # bytes that those may take
_FLAGS: Final = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # every page is used: touching them one by one costs


def make_file(size: int) -> int:
    """Return the descriptor of a file without a name, in memory where the system has such.

    Args:
        size: bytes that it has from the start; with 0 it grows as it is written.

    Raises:
        OSError: there is no memory, or no descriptor.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("parhelion")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        if size and hasattr(os, "posix_fallocate"):
            # Pages that are missing are found out about here, and not by a signal in the middle of a batch.
            os.posix_fallocate(descriptor, 0, size)
        elif size:
            os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_file(descriptor: int, size: int) -> mmap.mmap:
    """Return the memory of a file, which others share.

    Raises:
        OSError: the system refuses.
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, _FLAGS, trackfd=False)
    return mmap.mmap(descriptor, size, _FLAGS)  # keeps a descriptor of its own


class Placed(NamedTuple):
    """Where the parts of a batch are.

    Attributes:
        slot: number of the slot.
        size: bytes of the slot.
        descriptor: of a slot that the parent does not know yet; else -1.
        places: start and size in bytes of each part.
    """

    slot: int
    size: int
    descriptor: int
    places: list[tuple[int, int]]


class _Slot:
    __slots__ = ("address", "descriptor", "is_known", "memory", "number", "root", "size", "used", "user")

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.descriptor = make_file(size)
        try:
            self.memory = map_file(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.is_known = False
        self.user: weakref.ref[Any] | None = None
        self.open()
        self.address: int = self.root.ctypes.data

    def open(self) -> None:
        """Begin to write anew."""
        self.used = 0
        self.root: Any = np.frombuffer(self.memory, np.uint8)

    def is_free(self) -> bool:
        """Return whether nobody here, such as a collate function, has kept what was written last."""
        return self.user is None or self.user() is None

    def take(self, size: int) -> int:
        """Return where in the slot there is room for so many bytes; -1 if nowhere."""
        start = self.used
        if start + size > self.size:
            return -1
        self.used = start + size + -size % _ALIGNMENT
        return start

    def release(self) -> None:
        """Let go of the memory as a writer."""
        self.user = weakref.ref(self.root)
        self.root = None

    def close(self) -> None:
        """Close the descriptor; the memory stays as long as it is mapped."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.close()


class Writer:
    """A worker's end.

    Attributes:
        num_ahead: batches that the worker makes ahead; so many slots, and two, it may always have.
    """

    def __init__(self) -> None:
        self.num_ahead = 1
        self._is_full = False
        self._free: deque[_Slot] = deque()
        self._slots: dict[int, _Slot] = {}
        self._current: _Slot | None = None
        self._totals: deque[int] = deque(maxlen=_RECENT)
        self._problem: OSError | None = None

    def begin(self) -> None:
        """Choose the slot of the next batch; :meth:`empty` then gives memory in it."""
        if self._current is not None:  # the batch before was not put there
            self._current.release()
            self._free.append(self._current)
        self._current = None
        if self._totals:
            self._current = self._choose(max(self._totals)) or self._choose(1)

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        """Return an array that is not filled: in the slot if there is room for it, else as NumPy makes them."""
        slot = self._current
        kind = np.dtype(dtype)
        size = math.prod(shape if isinstance(shape, Sequence) else (shape,)) * kind.itemsize
        if slot is not None and size >= _LEAST and not kind.hasobject:
            start = slot.take(size)
            if start >= 0:
                return np.ndarray(shape, kind, slot.root, start)
        return np.empty(shape, kind)

    def put(self, parts: Sequence[memoryview]) -> Placed | None:
        """Return where the parts are, which are copied unless they are there already; None if no slot has room.

        The slot is the parent's from now on, until :meth:`give_back`.
        """
        total = sum(part.nbytes + -part.nbytes % _ALIGNMENT for part in parts)
        self._totals.append(total)
        slot, places = self._current, None
        if slot is not None:
            places = _place(slot, parts)
        if places is None and (slot := self._choose(total)) is not None:
            places = _place(slot, parts)
        if slot is None or places is None:
            return None
        if slot is self._current:
            self._current = None
        slot.release()
        placed = Placed(slot.number, slot.size, -1 if slot.is_known else slot.descriptor, places)
        slot.is_known = True
        return placed

    def give_back(self, number: int) -> None:
        """Take a slot back that the parent has no use for any more."""
        self._free.append(self._slots[number])

    def drop(self, number: int) -> None:
        """Let go of a slot that somebody else may read for ever."""
        del self._slots[number]

    def forget_descriptor(self, number: int) -> None:
        """Close the descriptor of a slot that has been sent; both have it mapped."""
        self._slots[number].close()

    def take_problem(self) -> OSError | None:
        """Return why there will be no more slots, if that has come up since this was asked last."""
        problem, self._problem = self._problem, None
        return problem

    def _choose(self, size: int) -> _Slot | None:
        """Return a free slot of at least that size, made new if need be."""
        for _ in range(len(self._free)):
            slot = self._free.popleft()
            if slot.is_free():
                # Much more room than is needed is kept for a while only: an outlier may have been huge.
                if size <= slot.size <= max(_ROOMY * max(size, *self._totals), _PAGE):
                    slot.open()
                    return slot
                if size > 1 and (made := self._make(slot.number, size)) is not None:
                    return made
                if slot.size >= size:
                    slot.open()
                    return slot
            self._free.append(slot)
        if size > 1 and len(self._slots) < self._limit(size):
            return self._make(next(number for number in itertools.count() if number not in self._slots), size)
        return None

    def _make(self, number: int, size: int) -> _Slot | None:
        if self._is_full:
            return None
        try:
            self._slots[number] = slot = _Slot(number, max(_PAGE, size + -size % _PAGE))
        except OSError as error:
            self._problem, self._is_full = error, True
            return None
        return slot

    def _limit(self, size: int) -> int:
        return self.num_ahead + 2 + min(_KEPT, _PLENTY // max(1, size))


def _place(slot: _Slot, parts: Sequence[memoryview]) -> list[tuple[int, int]] | None:
    """Return where in a slot every part is, after copying those that are elsewhere; None if there is no room."""
    places: list[tuple[int, int]] = []
    for part in parts:
        size = part.nbytes
        start = int(np.frombuffer(part, np.uint8).ctypes.data) - slot.address if size else 0
        if not 0 <= start <= start + size <= slot.size:
            start = slot.take(size)
            if start < 0:
                return None
            slot.memory[start : start + size] = part
        places.append((start, size))
    return places


def _refused(why: str) -> WorkerError:
    return WorkerError(
        f"memory of a loader's worker cannot be mapped here ({why}); expected a free file descriptor and room for it. "
        "Raise `ulimit -n`, or use fewer workers or smaller batches."
    )


class _User(weakref.ref[Any]):
    """What a batch was made of, and the slot that it lies in."""

    __slots__ = ("slot",)
    slot: int


class Reader:
    """The parent's end."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}
        self._users: dict[int, _User] = {}
        # Filled by the garbage collector, wherever it strikes: no code of ours runs there, and no interrupt is lost.
        self._returned: deque[_User] = deque()
        self._inherited: set[int] = set()
        _get_readers().add(self)

    def add(self, slot: int, size: int, descriptor: int) -> None:
        """Map a slot that has just come; the descriptor is closed.

        Raises:
            WorkerError: the system refuses.
        """
        if descriptor < 0:
            raise _refused("too many open files")
        try:
            self._memory[slot] = map_file(descriptor, size)
        except OSError as error:
            raise _refused(str(error)) from error
        finally:
            os.close(descriptor)

    def read(self, slot: int, places: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the parts of a batch; while one of them or anything made of it lives, nobody writes there."""
        # Everything is made of this one array, so that its end is the end of all.
        root: Any = np.frombuffer(self._memory[slot], np.uint8)
        self._users[slot] = user = _User(root, self._returned.append)
        user.slot = slot
        whole = memoryview(root)
        return [whole[start : start + size] for start, size in places]

    def note_fork(self) -> None:
        """Never let slots be written to again that the user has at this moment: a forked process has them, too."""
        self._inherited |= {slot for slot, user in self._users.items() if user() is not None}

    def take_returned(self) -> Iterator[tuple[int, bool]]:
        """Yield slots that nothing refers to any more, and whether they may be written to again."""
        while self._returned:
            slot = self._returned.popleft().slot
            is_usable = slot not in self._inherited
            if not is_usable:
                self._inherited.discard(slot)
                del self._memory[slot]
            yield slot, is_usable

    def close(self) -> None:
        """Let go of the slots; batches that the user has stay as they are."""
        self._memory.clear()


@functools.cache
def _get_readers() -> weakref.WeakSet[Reader]:
    readers: weakref.WeakSet[Reader] = weakref.WeakSet()
    os.register_at_fork(before=functools.partial(_note_fork, readers))
    return readers


def _note_fork(readers: weakref.WeakSet[Reader]) -> None:
    for reader in readers:
        reader.note_fork()
