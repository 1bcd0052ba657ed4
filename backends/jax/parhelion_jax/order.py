"""The order of one epoch of minibatches, as a function of its seed."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import Permutation, Position, ResumableSampler, Shard, Tail
from parhelion.seeds import check_seed, derive

from .rows import Indices

__all__ = ["EpochOrder", "check_count", "count_minibatches"]


class EpochOrder(ResumableSampler):
    """The records of one epoch in minibatches, in the order of its seed.

    The order is that of epoch 0 of a ``ResumableRandomSampler`` with that seed. The number of the epoch is made from
    the seed, too: it keys each sample's randomness.

    Args:
        size: number of records.
        minibatch_size: records per minibatch.
        drop_last: whether an incomplete last minibatch is left out.
        shuffle_seed: decides the order; None is the dataset's own.
        start: minibatches to leave out at the beginning.

    Attributes:
        count: minibatches of the whole epoch.
        start: those that are left out.

    Raises:
        InvalidTypeError: a number is no integer.
        InvalidValueError: a number is out of range.
    """

    def __init__(self, size: int, minibatch_size: int, drop_last: bool, shuffle_seed: int | None, start: int) -> None:
        super().__init__(minibatch_size)
        self.reshard(Shard(minibatch_size, tail=Tail.DROP if drop_last else Tail.MASK))
        self._size = size
        self._permutation: Permutation | None = None
        epoch = 0
        if shuffle_seed is not None:
            seed = check_seed(shuffle_seed, "shuffle_seed")
            self._permutation = Permutation(size, derive(seed, "order", 0))
            epoch = derive(seed, "minibatches") >> 1  # a worker process takes 63 bits
        self.count = self.shard.num_batches(size)
        if check_count(start, "start", 0, "It counts minibatches used before.") > self.count:
            raise InvalidValueError(
                f"start is {start}; expected one up to {self.count}, the minibatches of an epoch. Begin a later epoch "
                "with its own seed, or use cycled_minibatches(dataloader, shuffle_seed, start=...)."
            )
        if start < self.count:
            self.seek(Position(epoch, start * minibatch_size))
        self.start = start

    @property
    def size(self) -> int:
        """Number of records."""
        return self._size

    @property
    def is_shuffled(self) -> bool:
        """Whether the order is another than the dataset's."""
        return self._permutation is not None

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the records at places [start, stop) of the order, as int64."""
        if self._permutation is None:
            return np.arange(start, stop, dtype=np.int64)
        return self._permutation.indices(start, stop)


def count_minibatches(size: int, minibatch_size: int, drop_last: bool) -> int:
    """Return how many minibatches there are of so many records."""
    return size // minibatch_size if drop_last else -(-size // minibatch_size)


def check_count(value: Any, name: str, least: int, way_out: str) -> int:
    """Return ``value`` as a plain int of at least ``least``.

    Raises:
        InvalidTypeError: it is no integer.
        InvalidValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidTypeError(f"{name} is {value!r}; expected an integer >= {least}. {way_out}")
    if value < least:
        raise InvalidValueError(f"{name} is {value}; expected an integer >= {least}. {way_out}")
    return int(cast("int", value))
