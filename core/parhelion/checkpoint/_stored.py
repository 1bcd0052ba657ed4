"""Arrays that lie in parts, read as the boxes that somebody wants of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import CheckpointError, InvalidValueError

from ._arrays import HostArray, ShardedArray, aligned_empty
from ._boxes import Box, box_of, find_fault, overlap_of, slices_of, volume_of

if TYPE_CHECKING:
    from ._entries import PartEntry

__all__ = ["StoredArray", "StoredDecoder", "StoredPart", "element_size", "stored_from_parts", "stored_in_memory"]

_Bytes: TypeAlias = npt.NDArray[np.uint8]


@attrs.frozen
class StoredPart:
    """A box of an array, and who fetches its bytes.

    Attributes:
        box: which elements.
        fetch: fills uint8 of the box's size with the elements in C order, once they are known to be right.
    """

    box: Box
    fetch: Callable[[_Bytes], None]


@attrs.frozen(eq=False, repr=False)
class StoredArray:
    """An array that lies in parts in a checkpoint, none of which has been read into memory.

    It can be read as long as the checkpoint is there. Whatever is read is verified again.

    Attributes:
        dtype: the element type's name, as in :class:`HostArray`.
        shape: the size of every axis of the whole.
    """

    dtype: str
    shape: tuple[int, ...]
    _element_size: int
    _parts: tuple[StoredPart, ...]

    def __repr__(self) -> str:
        return f"StoredArray(dtype={self.dtype!r}, shape={self.shape})"

    def read_all(self) -> HostArray:
        """Return the whole array."""
        return self.read((0,) * len(self.shape), self.shape)

    def read(self, start: Sequence[int], shape: Sequence[int]) -> HostArray:
        """Return a box of the array; only the parts that have elements of it are read.

        Args:
            start: where the box begins along every axis.
            shape: its size along every axis.

        Raises:
            InvalidValueError: the array has no such box.
            DamagedCheckpointError: a part is missing, or is not what was written.
            CheckpointError: a part cannot be read.
        """
        box = self._check_box(start, shape)
        data = aligned_empty(volume_of(box) * self._element_size)
        for part in self._parts:
            both = overlap_of(part.box, box) if data.size else None
            if both is not None:
                self._fill(data, box, part, both)
        return HostArray(self.dtype, tuple(shape), data, is_fresh=True)

    def _check_box(self, start: Sequence[int], shape: Sequence[int]) -> Box:
        sizes = tuple(shape)
        if len(start) == len(sizes) == len(self.shape):
            box = box_of(start, sizes)
            if all(0 <= begin <= stop <= size for (begin, stop), size in zip(box, self.shape, strict=True)):
                return box
        raise InvalidValueError(
            f"box begins at {tuple(start)} and has the shape {sizes}; expected one within the array's shape "
            f"{self.shape}. Read what read_all returns to have the whole."
        )

    def _fill(self, data: _Bytes, box: Box, part: StoredPart, both: Box) -> None:
        """Put the elements that lie in a part and in the box into the box's bytes."""
        if both == part.box:
            run = _run_in(both, box)
            if run is not None:
                # The part lies in the box as it lies in its file: no copy.
                begin = run * self._element_size
                part.fetch(data[begin : begin + volume_of(both) * self._element_size])
                return
        fetched = aligned_empty(volume_of(part.box) * self._element_size)
        part.fetch(fetched)
        self._elements(data, box)[slices_of(both, box)] = self._elements(fetched, part.box)[slices_of(both, part.box)]

    def _elements(self, data: _Bytes, box: Box) -> _Bytes:
        return data.reshape(*(stop - begin for begin, stop in box), self._element_size)


@runtime_checkable
class StoredDecoder(Protocol):
    """An array adapter that need not have the whole of an array that lies in parts."""

    def decode_stored(self, stored: StoredArray) -> Any:
        """Return the backend's array, of which this process reads what it needs."""
        ...


def _run_in(part: Box, box: Box) -> int | None:
    """Return at which element of the box the part begins, if it is one run of the box's elements in C order."""
    sizes = [stop - begin for begin, stop in box]
    is_open = True
    for (begin, stop), size in zip(part, sizes, strict=True):
        # Axes of one element, then one that is cut, then whole ones.
        if not is_open and stop - begin != size:
            return None
        is_open = is_open and stop - begin == 1
    origin = 0
    for (begin, _), (first, _), size in zip(part, box, sizes, strict=True):
        origin = origin * size + begin - first
    return origin


def element_size(parts: Sequence[PartEntry]) -> int:
    """Return how many bytes an element has; 0 if there are no parts to tell.

    Raises:
        ValueError: the parts differ in it.
    """
    if not parts:
        return 0
    size = parts[0].size // (math.prod(parts[0].shape) or 1)
    for part in parts:
        if part.size != size * math.prod(part.shape):
            raise ValueError(f"a part of shape {part.shape} has {part.size} bytes, of {size} for an element")
    return size


def stored_from_parts(dtype: str, shape: tuple[int, ...], parts: Sequence[StoredPart], size: int) -> StoredArray:
    """Return an array in parts, once these tile it.

    Raises:
        ValueError: they do not.
    """
    fault = find_fault(shape, [part.box for part in parts])
    if fault is not None:
        raise ValueError(fault)
    return StoredArray(dtype, shape, size, tuple(parts))


def stored_in_memory(array: ShardedArray, path: str) -> StoredArray:
    """Return an array in parts that are all in this process.

    Raises:
        CheckpointError: they are not.
    """
    parts = [part for part in array.parts if 0 not in part.array.shape]
    sizes = {part.array.data.size // math.prod(part.array.shape) for part in parts}
    boxes = [StoredPart(box_of(part.start, part.array.shape), _copier(part.array.data)) for part in parts]
    try:
        return stored_from_parts(array.dtype, array.shape, boxes, max(sizes, default=0))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is spread over processes, and this one does not have all of it ({error}); expected an array "
            "that is here. Write a checkpoint with all processes, and load that."
        ) from error


def _copier(source: _Bytes) -> Callable[[_Bytes], None]:
    def copy(data: _Bytes) -> None:
        data[...] = source

    return copy
