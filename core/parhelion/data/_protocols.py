"""What this room needs from a dataset, and the shapes of loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, Protocol, TypeVar, runtime_checkable

__all__ = [
    "BatchedDatasetProtocol",
    "CollateFn",
    "DataLoaderProtocol",
    "MapDatasetProtocol",
    "SizedIterable",
]

ContainedType_co = TypeVar("ContainedType_co", covariant=True)

CollateFn = Callable[[list[Any]], Any]
"""Turns the records of one batch into the batch."""


@runtime_checkable
class MapDatasetProtocol(Protocol[ContainedType_co]):
    """A dataset that is asked for one record at a time, by its sample index."""

    def __getitem__(self, index: int, /) -> ContainedType_co:
        """Return the record with that sample index, in [0, len)."""
        ...

    def __len__(self) -> int:
        """Return how many records there are."""
        ...


@runtime_checkable
class BatchedDatasetProtocol(Protocol):
    """A dataset that is asked for all records of a batch at once.

    It returns a list with one record for each index. With an attribute ``returns_batches = True`` it gets the
    indices as an int64 array and returns the finished batch, a tree of arrays whose first axis is the batch;
    nothing collates it. With ``is_table = True``, too, it promises that those are its rows at the indices, each of
    them and nothing random: such batches are given without a look, and without the microseconds that keys take.
    """

    def __getitems__(self, indices: Sequence[int], /) -> Any:
        """Return the records with those sample indices, in their order."""
        ...

    def __len__(self) -> int:
        """Return how many records there are."""
        ...


@runtime_checkable
class SizedIterable(Iterable[ContainedType_co], Sized, Protocol[ContainedType_co]):
    """Something to iterate over whose length is known, such as the batches of an epoch."""


class DataLoaderProtocol(Protocol[ContainedType_co]):
    """A stateless loader of batches: its order is a function of the seed alone.

    Attributes:
        minibatch_size: records per batch.
    """

    minibatch_size: int

    def minibatch_count(self) -> int:
        """Return how many batches an epoch has."""
        ...

    def minibatches(self, shuffle_seed: int | None) -> SizedIterable[ContainedType_co]:
        """Return the batches of one epoch, in the dataset's order if ``shuffle_seed`` is None."""
        ...
