"""What every sampler has in common: a start, a shard, and iteration from the one by the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._permutation import ORDER_VERSION, Indices
from ._position import Position, check_count
from ._shard import Shard

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FetchRequest", "ResumableSampler"]

_CHUNK: Final = 1 << 16  # indices made at once when a whole epoch is wanted


class FetchRequest(NamedTuple):
    """One rank's part of one batch: what a loader fetches.

    Attributes:
        epoch: 0-based.
        place: where in the epoch's global order its first sample comes; the others follow one by one. Places
            from the sampler's size on are padding.
        indices: int64 of shape ``(k,)``: the records to fetch.
    """

    epoch: int
    place: int
    indices: Indices


class ResumableSampler(ABC):
    """An order of a dataset's records that iteration can enter anywhere.

    A subclass gives two things: ``size``, and ``indices(epoch, start, stop)``, which depends on its arguments
    and on nothing that has happened. So nothing is skipped and no state restored to resume: what comes next
    is asked for.

    A start that was set by ``start_iter`` or :meth:`seek` is where the next iteration begins, also when
    ``set_epoch`` is called in between. Once an iteration has begun there, setting another epoch clears it;
    iterating over the same epoch again gives the same again.

    Args:
        batch_size: records per batch and rank.

    Raises:
        InvalidTypeError: ``batch_size`` is no integer.
        InvalidValueError: ``batch_size`` is below 1.
    """

    def __init__(self, batch_size: int) -> None:
        self._shard = Shard(batch_size)
        self._start = Position()
        self._has_begun = False

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of records in an epoch, those of all ranks."""

    @abstractmethod
    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the records at places [start, stop) of an epoch's global order.

        A pure function: the same arguments give the same result, whatever was asked for before.

        Args:
            epoch: 0-based.
            start: first place, from 0.
            stop: one past the last place, up to ``size``.

        Returns:
            int64 of shape ``(stop - start,)``.
        """

    def indices_at(self, epoch: int, places: Indices) -> Indices:
        """Return the records at the given places of an epoch's global order.

        Unless overridden, that is one call of :meth:`indices` for each run of consecutive places.

        Args:
            epoch: 0-based.
            places: int64 of shape ``(k,)``, each in [0, size), repetitions allowed.

        Returns:
            int64 of shape ``(k,)``.
        """
        if not len(places):
            return np.empty(0, np.int64)
        runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
        return np.concatenate([self.indices(epoch, int(run[0]), int(run[-1]) + 1) for run in runs])

    @property
    def name(self) -> str:
        """Name of the kind of sampler, kept in checkpoints."""
        return type(self).__name__

    @property
    def order_version(self) -> int:
        """Version of the order that this release makes from a seed, kept in checkpoints."""
        return ORDER_VERSION

    @property
    def seed(self) -> int | None:
        """Seed of the order; None where there is none."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside kind, seed and size, as plain values: a resumed run must have the same.

        Short texts stand for large arrays. It is empty where there is nothing else.
        """
        return {}

    def describe_position(self, position: Position) -> dict[str, Any]:
        """Return what a reader of a checkpoint wants to know about a position, as plain values by name."""
        return {}

    @property
    def batch_size(self) -> int:
        """Records per batch and rank."""
        return self._shard.batch_size

    @property
    def shard(self) -> Shard:
        """Which part of every global batch this sampler gives."""
        return self._shard

    def reshard(self, shard: Shard) -> None:
        """Give another part from the next iteration on; the start stays at its place in the order.

        Raises:
            InvalidTypeError: ``shard`` is no :class:`Shard`.
        """
        if not isinstance(shard, Shard):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise InvalidTypeError(f"shard is {shard!r}; expected a Shard. Write Shard(batch_size, rank, world).")
        self._shard = shard

    @property
    def epoch(self) -> int:
        """0-based epoch of the next iteration."""
        return self._start.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that the next iteration gives.

        A start that no iteration has used yet is kept; one that was used in another epoch is cleared.

        Raises:
            InvalidTypeError: ``epoch`` is no integer.
            InvalidValueError: ``epoch`` is negative.
        """
        epoch = check_count(epoch, "epoch", 0, "The first epoch is 0.")
        if epoch != self._start.epoch:
            self._begin_at(Position(epoch, 0 if self._has_begun else self._start.offset))

    @property
    def position(self) -> Position:
        """Where the next iteration begins."""
        return self._start

    def seek(self, position: Position) -> None:
        """Make the next iteration begin at ``position``.

        Raises:
            InvalidTypeError: it is no :class:`Position`.
            InvalidValueError: its offset is not below the epoch's size.
        """
        if not isinstance(position, Position):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise InvalidTypeError(f"position is {position!r}; expected a Position. Write Position(epoch, offset).")
        if position.offset and position.offset >= self.size:
            raise InvalidValueError(
                f"offset of the position is {position.offset}; expected one below {self.size}, the records "
                f"of an epoch. After the last record comes Position({position.epoch + 1}, 0)."
            )
        self._begin_at(position)

    @property
    def start_iter(self) -> int:
        """Global batches of the epoch that the next iteration leaves out, for they have been consumed."""
        return self._start.offset // self._shard.global_batch

    @start_iter.setter
    def start_iter(self, start_iter: int) -> None:
        count = check_count(start_iter, "start_iter", 0, "It counts consumed batches.")
        offset = count * self._shard.global_batch
        if offset and offset >= self.size:
            raise InvalidValueError(
                f"start_iter is {count}, which is record {offset}; expected a start below {self.size}, the "
                f"records of an epoch. After the last batch comes set_epoch({self.epoch + 1})."
            )
        self._begin_at(Position(self._start.epoch, offset))

    def _begin_at(self, position: Position) -> None:
        self._start = position
        self._has_begun = False

    def __len__(self) -> int:
        return self.size

    def num_remaining(self) -> int:
        """Return how many indices the next iteration gives on this rank."""
        return self._shard.num_samples(self.size, self._start.offset)

    def num_batches_remaining(self) -> int:
        """Return how many batches the next iteration gives: the same number on every rank."""
        return self._shard.num_batches(self.size, self._start.offset)

    def __iter__(self) -> Iterator[int]:
        self._has_begun = True
        return chain.from_iterable(self._lists(self._start, self._shard, self.size))

    def requests(self) -> Iterator[FetchRequest]:
        """Return this rank's batches from the start to the epoch's end, as what to fetch.

        There are :meth:`num_batches_remaining` of them on every rank. With ``Tail.MASK`` the indices of the
        last one may be fewer than other ranks', or none; with ``Tail.WHOLE`` more than ``batch_size``.
        """
        self._has_begun = True
        epoch, stride = self._start.epoch, self._shard.global_batch
        return (
            FetchRequest(epoch, place + i * stride, indices)
            for place, rows in self._walk(self._start, self._shard, self.size)
            for i, indices in enumerate(rows)
        )

    def _lists(self, start: Position, shard: Shard, size: int) -> Iterator[list[int]]:
        """Yield all indices, the first one alone: a single index costs a tenth of a first batch."""
        skip = 0
        if shard.num_samples(size, start.offset):
            skip, place = 1, shard.block(size, start.offset).start % size
            yield self.indices(start.epoch, place, place + 1).tolist()
        for _, rows in self._walk(start, shard, size):
            yield rows.ravel()[skip:].tolist()
            skip = 0

    def _walk(self, start: Position, shard: Shard, size: int) -> Iterator[tuple[int, Indices]]:
        """Yield groups of batches: the first one's place, and indices of shape ``(batches, batch)``."""
        epoch, offset = start.epoch, start.offset
        left = (size - offset) // shard.global_batch
        # Growing groups: the first batch comes at once, the later ones at the speed of large arrays.
        count = 1
        while left > 0:
            count = min(count, left)
            yield offset + shard.rank * shard.batch_size, self._full(epoch, offset, shard, count)
            offset += count * shard.global_batch
            left -= count
            count = min(count * 8, max(1, _CHUNK // shard.batch_size))
        if shard.num_batches(size, offset):
            block = shard.block(size, offset)
            places = np.arange(block.start, block.stop, dtype=np.int64) % size
            yield block.start, self.indices_at(epoch, places).reshape(1, -1)

    def _full(self, epoch: int, offset: int, shard: Shard, count: int) -> Indices:
        """Return the indices of ``count`` full batches from ``offset`` on, one row each."""
        if shard.world == 1:
            return self.indices(epoch, offset, offset + count * shard.batch_size).reshape(count, -1)
        first = offset + shard.rank * shard.batch_size + shard.global_batch * np.arange(count, dtype=np.int64)
        places = first[:, None] + np.arange(shard.batch_size, dtype=np.int64)
        return self.indices_at(epoch, places.ravel()).reshape(count, -1)
