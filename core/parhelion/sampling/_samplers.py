"""The samplers of a whole dataset: sequential, random, and random over ranks."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, TypeAlias

import numpy as np

from ._permutation import Indices
from ._position import check_count
from ._resumable import ResumableSampler
from ._shard import Shard, Tail
from ._shuffle import Shuffle, count_records

__all__ = [
    "ResumableDistributedSampler",
    "ResumableRandomSampler",
    "ResumableSamplerType",
    "ResumableSequentialSampler",
]


class ResumableSequentialSampler(ResumableSampler):
    """Every record of a dataset in its own order.

    Args:
        data_source: anything with a length.
        batch_size: records per batch.

    Raises:
        InvalidTypeError: ``data_source`` has no length, or ``batch_size`` is no integer.
        InvalidValueError: the dataset is empty, or ``batch_size`` is below 1.
    """

    def __init__(self, data_source: Sized, batch_size: int = 1) -> None:
        super().__init__(batch_size)
        self.data_source = data_source
        self._size = count_records(data_source, "data_source")

    @property
    def size(self) -> int:
        """Number of records in an epoch."""
        return self._size

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """Return ``start, ..., stop - 1``."""
        return np.arange(start, stop, dtype=np.int64)

    def indices_at(self, epoch: int, places: Indices) -> Indices:
        """Return the places themselves."""
        return places


class ResumableRandomSampler(ResumableSampler):
    """Every record of a dataset once per epoch, in a new random order each time.

    The order of an epoch is ``Permutation(size, derive(seed, "order", epoch))``: the same on every platform,
    on one process and on many.

    Args:
        data_source: anything with a length.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Raises:
        InvalidTypeError: ``data_source`` has no length, or a number is no integer.
        InvalidValueError: the dataset is empty, or a number is out of range.
    """

    def __init__(self, data_source: Sized, seed: int = 0, batch_size: int = 1) -> None:
        super().__init__(batch_size)
        self.data_source = data_source
        self._size = count_records(data_source, "data_source")
        self._order = Shuffle(self._size, seed)

    @property
    def size(self) -> int:
        """Number of records in an epoch."""
        return self._size

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self._order.seed

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the records at places [start, stop) of the epoch's order, as int64."""
        return self._order(epoch).indices(start, stop)

    def indices_at(self, epoch: int, places: Indices) -> Indices:
        """Return the records at the given places of the epoch's order, as int64."""
        return self._order(epoch).indices_at(places)


class ResumableDistributedSampler(ResumableSampler):
    """One rank's records of each epoch; those of all ranks together are the records of the whole.

    The global order is that of :class:`ResumableRandomSampler` with the same seed (of
    :class:`ResumableSequentialSampler` without ``shuffle``); a rank takes a contiguous block of every global
    batch.

    Args:
        dataset: anything with a length.
        num_replicas: number of ranks; None means 1 here, and the process group's in a framework's subclass.
        rank: this rank; None means 0 here, and the process group's in a framework's subclass.
        shuffle: whether the order is random.
        seed: an integer in [0, 2**64).
        drop_last: whether records beyond a multiple of ``num_replicas`` are left out; otherwise records from
            the start of the order make up the last ones, so that every rank gets as many.
        batch_size: records per batch and rank.

    Attributes:
        num_replicas: number of ranks.
        rank: this rank.
        drop_last: whether incomplete batches are left out or cut.
        num_samples: samples of this rank in a whole epoch.
        total_size: samples of all ranks in a whole epoch.

    Raises:
        InvalidTypeError: ``dataset`` has no length, or a number is no integer.
        InvalidValueError: the dataset is empty, or a number is out of range.
    """

    dataset: Any
    num_replicas: int
    rank: int
    drop_last: bool
    num_samples: int
    total_size: int

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        batch_size: int = 1,
    ) -> None:
        super().__init__(batch_size)
        self.dataset = dataset
        self.shuffle = shuffle
        self._size = count_records(dataset, "dataset")
        self._order = Shuffle(self._size, seed)
        if num_replicas is None or rank is None:
            world, me = self._group()
            num_replicas = world if num_replicas is None else num_replicas
            rank = me if rank is None else rank
        check_count(num_replicas, "num_replicas", 1, "A run of one process has 1.")
        self.reshard(Shard(batch_size, rank, num_replicas, Tail.TRIM if drop_last else Tail.PAD))

    def _group(self) -> tuple[int, int]:
        """Return the number of ranks and this rank where None was given."""
        return 1, 0

    @property
    def name(self) -> str:
        """What a checkpoint calls the order: as the sampler of one process with the same order does."""
        if type(self).indices is not ResumableDistributedSampler.indices:
            return super().name
        return (ResumableRandomSampler if self.shuffle else ResumableSequentialSampler).__name__

    def reshard(self, shard: Shard) -> None:
        """Give another part from the next iteration on; the start stays at its place in the order.

        Raises:
            InvalidTypeError: ``shard`` is no :class:`Shard`.
        """
        super().reshard(shard)
        self.num_replicas = shard.world
        self.rank = shard.rank
        self.drop_last = shard.tail in (Tail.DROP, Tail.TRIM)
        self.num_samples = shard.num_samples(self._size)
        self.total_size = self.num_samples * shard.world

    def __len__(self) -> int:
        return self.num_samples

    @property
    def size(self) -> int:
        """Number of records in an epoch, those of all ranks."""
        return self._size

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self._order.seed

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the records at places [start, stop) of the epoch's order, as int64."""
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        return self._order(epoch).indices(start, stop)

    def indices_at(self, epoch: int, places: Indices) -> Indices:
        """Return the records at the given places of the epoch's order, as int64."""
        return self._order(epoch).indices_at(places) if self.shuffle else places


ResumableSamplerType: TypeAlias = ResumableSampler | ResumableDistributedSampler
