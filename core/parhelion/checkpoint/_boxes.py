"""Boxes of elements: the half-open interval that each takes along every axis of a whole array."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

__all__ = ["Box", "box_of", "find_fault", "overlap_of", "show_box", "slices_of", "volume_of"]

Box: TypeAlias = "tuple[tuple[int, int], ...]"


def box_of(start: Sequence[int], shape: Sequence[int]) -> Box:
    """Return the box that begins at ``start`` and has the sizes ``shape``.

    Raises:
        ValueError: the two have different lengths.
    """
    return tuple((begin, begin + size) for begin, size in zip(start, shape, strict=True))


def volume_of(box: Box) -> int:
    """Return how many elements lie in the box; 1 for that of a scalar."""
    return math.prod(stop - begin for begin, stop in box)


def overlap_of(one: Box, other: Box) -> Box | None:
    """Return the box of the elements in both; None if there are none."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(begin < stop for begin, stop in both) else None


def slices_of(box: Box, inside: Box) -> tuple[slice, ...]:
    """Return the index by which an array that holds ``inside`` gives the elements of ``box``."""
    return tuple(slice(begin - origin, stop - origin) for (begin, stop), (origin, _) in zip(box, inside, strict=True))


def show_box(box: Box) -> str:
    """Return the box as one would index it: ``[0:4, 8:16]``."""
    return f"[{', '.join(f'{begin}:{stop}' for begin, stop in box)}]"


def find_fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Return why the boxes do not tile an array of that shape, as a clause; None if they do.

    They tile it if every element is in exactly one. Boxes without elements are not allowed.
    """
    whole = box_of([0] * len(shape), shape)
    for box in boxes:
        if len(box) != len(whole) or not all(0 <= a < b <= size for (a, b), size in zip(box, shape, strict=True)):
            return f"the part {show_box(box)} does not lie within {show_box(whole)}"
    clash = _find_clash(boxes)
    if clash is not None:
        return f"two parts have {show_box(clash)}"
    if sum(map(volume_of, boxes)) == volume_of(whole):
        return None
    return f"no part has {show_box(_find_hole(whole, boxes))}"


def _find_clash(boxes: Sequence[Box]) -> Box | None:
    """Return elements that are in two boxes.

    Clusters that some axis separates are looked at apart, which makes grids of any size cheap.
    """
    waiting = [list(boxes)]
    while waiting:
        cluster = waiting.pop()
        for axis in range(len(cluster[0]) if len(cluster) > 1 else 0):
            parts = list(_separate(cluster, axis))
            if len(parts) > 1:
                waiting.extend(parts)
                break
        else:
            clash = _find_clash_in_pairs(cluster)
            if clash is not None:
                return clash
    return None


def _separate(boxes: list[Box], axis: int) -> Iterator[list[Box]]:
    """Yield clusters of boxes, between which a cut across ``axis`` touches none."""
    cluster: list[Box] = []
    reach = 0
    for box in sorted(boxes, key=lambda box: box[axis]):
        begin, stop = box[axis]
        if cluster and begin >= reach:
            yield cluster
            cluster = []
        reach = max(reach, stop) if cluster else stop
        cluster.append(box)
    yield cluster


def _find_clash_in_pairs(boxes: list[Box]) -> Box | None:
    for number, box in enumerate(boxes):
        for other in boxes[:number]:
            both = overlap_of(box, other)
            if both is not None:
                return both
    return None


def _find_hole(whole: Box, boxes: Sequence[Box]) -> Box:
    """Return a box of elements that no box has, where there are some."""
    left = [whole]
    for box in boxes:
        left = [rest for piece in left for rest in _subtract(piece, box)]
    return min(left)


def _subtract(piece: Box, box: Box) -> Iterator[Box]:
    """Yield boxes that tile what is left of ``piece`` without ``box``."""
    both = overlap_of(piece, box)
    if both is None:
        yield piece
        return
    for axis, ((begin, stop), (low, high)) in enumerate(zip(piece, both, strict=True)):
        for edge in ((begin, low), (high, stop)):
            if edge[0] < edge[1]:
                yield (*both[:axis], edge, *piece[axis + 1 :])
