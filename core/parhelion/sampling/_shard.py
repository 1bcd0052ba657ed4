"""Which part of a global batch is mine: integer arithmetic on places in the epoch's order.

A *place* is a position in the global order of one epoch. With W ranks of batch size B the global batch that
begins at place p takes [p, p + W * B), and rank r the contiguous block [p + r * B, p + (r + 1) * B). Nothing
else decides who gets what, so changing W or B at any p leaves the order of what is delivered as it was.

A rank may split its batch further into P equal parts, one for each of its devices. What all ranks then take is
what W * P ranks of batch size B / P would.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._position import Position, check_count

__all__ = ["Block", "Shard", "Tail"]


class Tail(Enum):
    """What happens to the last records of an epoch when they do not fill a global batch.

    Attributes:
        DROP: they are left out, so every batch is full.
        PAD: they are shared equally, after padding them to a multiple of the number of parts (of all ranks)
            with records from the start of this epoch's order. Every rank gets the same number; a record may
            come twice.
        MASK: they are shared in equal contiguous parts, the last ranks getting less or nothing. Every record
            comes exactly once.
        TRIM: they are shared equally, after leaving out what is over a multiple of the number of parts.
        WHOLE: every rank gets all of them, for ranks that compute as one: an evaluation in which each batch
            is one computation over all ranks. Such a batch may be larger than ``batch_size``. Taken together
            each record counts once.
    """

    DROP = "drop"
    PAD = "pad"
    MASK = "mask"
    TRIM = "trim"
    WHOLE = "whole"


class Block(NamedTuple):
    """The places [start, stop) that one rank takes of one global batch.

    Attributes:
        start: first place.
        stop: one past the last place. Places from the size of the epoch on are padding: the record there is
            the one at ``place % size``.
        num_valid: how many of them are no padding; those come first.
    """

    start: int
    stop: int
    num_valid: int


def _check_tail(_instance: Any, _attribute: Any, tail: Any) -> None:
    if not isinstance(tail, Tail):
        raise InvalidTypeError(
            f"tail is {tail!r}; expected one of {', '.join(map(str, Tail))}. Pass Tail.PAD to train."
        )


@attrs.frozen
class Shard:
    """One rank's part of every global batch.

    Attributes:
        batch_size: records per rank and batch.
        rank: which of the ranks, from 0.
        world: number of ranks that share the data.
        tail: what happens to an incomplete global batch.
        parts: pieces of equal size that one rank's batch is split into, such as one for each of its devices.
        global_batch: records per batch of all ranks: ``world * batch_size``.

    Raises:
        InvalidTypeError: one of the numbers is no integer, or ``tail`` no :class:`Tail`.
        InvalidValueError: one of the numbers is out of range, or ``batch_size`` no multiple of ``parts``.
    """

    batch_size: int = 1
    rank: int = 0
    world: int = 1
    tail: Tail = attrs.field(default=Tail.PAD, validator=_check_tail)
    parts: int = 1
    global_batch: int = attrs.field(init=False, eq=False, repr=False)
    # The fewest records left for which there is still a batch.
    _least: int = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        batch_size = check_count(self.batch_size, "batch_size", 1, "It counts the records of one rank's batch.")
        world = check_count(self.world, "world", 1, "A run of one process has a world of 1.")
        rank = check_count(self.rank, "rank", 0, "Ranks count from 0.")
        if rank >= world:
            raise InvalidValueError(
                f"rank is {rank}; expected an integer from 0 to {world - 1}, the last of {world} ranks. "
                "Pass the rank and the number of ranks of the same group."
            )
        parts = check_count(self.parts, "parts", 1, "A rank of one device has 1.")
        if batch_size % parts:
            raise InvalidValueError(
                f"batch_size is {batch_size}; expected a multiple of {parts}, the parts that a rank's batch is split "
                f"into. Pass batch_size={batch_size + -batch_size % parts}, or fewer parts."
            )
        store = object.__setattr__
        store(self, "batch_size", batch_size)
        store(self, "rank", rank)
        store(self, "world", world)
        store(self, "parts", parts)
        store(self, "global_batch", world * batch_size)
        store(self, "_least", {Tail.DROP: world * batch_size, Tail.TRIM: world * parts}.get(self.tail, 1))

    def num_batches(self, size: int, offset: int = 0) -> int:
        """Return how many global batches there are from ``offset`` to the end of the epoch."""
        full, rest = divmod(max(0, size - offset), self.global_batch)
        return full + (rest >= self._least)

    def num_samples(self, size: int, offset: int = 0) -> int:
        """Return how many samples this rank takes from ``offset`` to the epoch's end, with padding."""
        full, rest = divmod(max(0, size - offset), self.global_batch)
        taken = full * self.batch_size
        if rest < self._least:
            return taken
        start, stop, _ = self.block(size, size - rest)
        return taken + stop - start

    def block(self, size: int, offset: int) -> Block:
        """Return this rank's places of the global batch that begins at ``offset``.

        Raises:
            InvalidValueError: no global batch begins there.
        """
        left = size - offset
        if left >= self.global_batch and offset >= 0:
            start = offset + self.rank * self.batch_size
            return Block(start, start + self.batch_size, self.batch_size)
        if left < self._least or offset < 0:
            raise InvalidValueError(
                f"offset of a global batch is {offset}; expected one >= 0 with at least {self._least} of the "
                f"epoch's {size} records left ({self.tail}). Ask num_batches(size, offset) first."
            )
        if self.tail is Tail.WHOLE:
            return Block(offset, size, left)
        pieces = self.world * self.parts
        share = self.parts * (left // pieces if self.tail is Tail.TRIM else -(-left // pieces))
        start = offset + self.rank * share
        stop = start + share
        if self.tail is Tail.MASK:
            start, stop = min(start, size), min(stop, size)
        return Block(start, stop, max(0, min(stop, size) - start))

    def span(self, size: int, offset: int) -> int:
        """Return how many records all ranks together take in the global batch at ``offset``.

        Padding is not counted, nor is what several ranks take more than once. It is 0 where no global batch
        begins.
        """
        left = size - offset
        if left >= self.global_batch:
            return self.global_batch
        if left < self._least:
            return 0
        return left - left % (self.world * self.parts) if self.tail is Tail.TRIM else left

    def after(self, size: int, position: Position) -> Position:
        """Return where the run stands after the global batch that begins at ``position``.

        After the last one, and where no batch is left, that is the start of the next epoch.
        """
        offset = position.offset + self.global_batch
        if size - offset >= self._least:
            return Position(position.epoch, offset)
        return Position(position.epoch + 1, 0)

    def is_last(self, size: int, offset: int) -> bool:
        """Return whether no other global batch follows in this epoch the one that begins at ``offset``."""
        return size - offset - self.global_batch < self._least
