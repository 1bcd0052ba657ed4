"""Stateless loaders of minibatches: which records come when is a function of a seed, and of nothing that happened."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from parhelion.data import (
    CollateFn,
    DataLoaderProtocol,
    Loader,
    MapDatasetProtocol,
    SizedIterable,
    collate,
)
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.generators import LoadedGenerators
from parhelion.sampling import Position, ResumableSampler
from parhelion.seeds import check_seed

from .order import EpochOrder, check_count, count_minibatches
from .rows import Table, count_samples

__all__ = ["DataLoader", "InMemoryDataLoader", "WorkersState", "cycled_minibatches"]

PyTreeType = TypeVar("PyTreeType")


def cycled_minibatches(
    dataloader: DataLoaderProtocol[PyTreeType], shuffle_seed: int | None, *, start: int = 0
) -> Iterator[PyTreeType]:
    """Return an iterator over the loader's minibatches that never ends: one epoch after the other.

    Epoch k, from 0, has the seed ``shuffle_seed + k``, so epoch 1 of seed 0 is epoch 0 of seed 1; choose seeds that
    are far apart for runs that are to differ. None stays None: every epoch is in the dataset's order.

    Args:
        dataloader: where minibatches come from.
        shuffle_seed: seed of the first epoch, an integer in [0, 2**64), or None.
        start: minibatches to leave out because they have been used; none of them is loaded. To begin inside an epoch,
            a loader of your own needs a ``minibatches`` with a keyword ``start``.

    Raises:
        InvalidTypeError: a number is no integer.
        InvalidValueError: the loader has no minibatch, or a number is out of range.
    """
    count = dataloader.minibatch_count()
    if not count:
        raise _no_minibatch(dataloader)
    if shuffle_seed is not None:
        shuffle_seed = check_seed(shuffle_seed, "shuffle_seed")
    epoch, offset = divmod(check_count(start, "start", 0, "It counts minibatches used before."), count)
    return _cycle(dataloader, shuffle_seed, epoch, offset)


def _cycle(loader: Any, seed: int | None, epoch: int, offset: int) -> Iterator[Any]:
    for k in itertools.count(epoch):
        options = {"start": offset} if offset else {}
        minibatches = loader.minibatches(None if seed is None else (seed + k) % 2**64, **options)
        if not len(minibatches):
            raise _no_minibatch(loader)
        yield from minibatches
        offset = 0


def _no_minibatch(loader: DataLoaderProtocol[Any]) -> InvalidValueError:
    return InvalidValueError(
        f"dataloader has no minibatch of minibatch_size {loader.minibatch_size} in an epoch; expected at least one, "
        "for nothing else can be repeated. Lower minibatch_size, or set drop_last=False."
    )


class WorkersState:
    """The worker processes of a :class:`DataLoader`; they start with its first iteration and end with it.

    Args:
        loader: has them, or makes batches in this process.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = threading.Lock()

    def begin(self, order: ResumableSampler) -> Iterator[Any]:
        """Return an iterator over the batches of an order; there may be several at once, also in other threads."""
        with self._lock:
            # An iteration reads the sampler when it begins, and not again.
            self._loader.sampler = order
            return iter(self._loader)

    def close(self) -> None:
        """End the worker processes; the next iteration starts new ones."""
        self._loader.close()


@dataclasses.dataclass(frozen=True, eq=False)
class DataLoader(DataLoaderProtocol[PyTreeType], Generic[PyTreeType]):
    """Minibatches of a dataset that may be too large for the memory, made in this process or in worker processes.

    It has no state: what :meth:`minibatches` gives depends on the seed, not on the number of workers nor on what was
    iterated over before, to its end or not. An error in a worker is raised here, and names the record.

    While records are fetched, ``parhelion.sample_rng()`` and the process-wide generators are keyed by the shuffle seed
    and the place in the order, and the latter put back afterwards.

    Attributes:
        dataset: maps an integer index to a record: an array, a number, or dicts, lists, tuples, attrs and dataclass
            records of these.
        minibatch_size: records per minibatch.
        num_workers: worker processes; with 0 the minibatches are made in this process.
        drop_last: whether to leave out a last minibatch that is incomplete, so that all have one shape and a step is
            compiled once.
        collate_fn: makes a minibatch of a list of records; the default stacks along a new first axis, and gives NumPy
            arrays. For records of your own pytree classes write it with ``jax.tree.map`` and ``np.stack``.
        workers_state: the worker processes; None if there are none.
        global_rng: how the process-wide generators are keyed: "batch", "sample", or "off", which leaves them alone;
            None takes the dataset's attribute of that name, else "batch".

    Raises:
        InvalidTypeError: the dataset cannot be indexed or has no length, or a number is no integer.
        InvalidValueError: a number or ``global_rng`` is out of range.
    """

    dataset: MapDatasetProtocol[PyTreeType]
    minibatch_size: int
    num_workers: int = 0
    drop_last: bool = True
    collate_fn: CollateFn = collate
    workers_state: WorkersState | None = dataclasses.field(init=False, repr=False)
    global_rng: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the fields, and prepare the workers."""
        check_count(self.minibatch_size, "minibatch_size", 1, "It counts the records of a minibatch.")
        if not hasattr(self.dataset, "__len__"):
            raise InvalidTypeError(
                f"dataset is a {type(self.dataset).__name__}; expected a dataset with a length. Give it a __len__ "
                "method."
            )
        state = self._make_state()
        object.__setattr__(self, "workers_state", state if self.num_workers else None)

    def _make_state(self) -> WorkersState:
        loader = Loader(
            self.dataset,
            self._order(None, 0),
            seed=0,
            collate_fn=self.collate_fn,
            global_rng=self.global_rng,
            generators=LoadedGenerators(),
            num_workers=self.num_workers,
        )
        return WorkersState(loader)

    def _order(self, shuffle_seed: int | None, start: int) -> EpochOrder:
        return EpochOrder(len(self.dataset), self.minibatch_size, self.drop_last, shuffle_seed, start)

    def minibatch_count(self) -> int:
        """Return how many minibatches an epoch has."""
        return count_minibatches(len(self.dataset), self.minibatch_size, self.drop_last)

    def minibatches(self, shuffle_seed: int | None, *, start: int = 0) -> SizedIterable[PyTreeType]:
        """Return the minibatches of one epoch, which can be iterated over again and again.

        Args:
            shuffle_seed: decides the order, an integer in [0, 2**64); None is the dataset's own order.
            start: the number of the first minibatch, from 0: what a run that stopped there goes on with. Those before
                it are not loaded.

        Raises:
            InvalidTypeError: a number is no integer.
            InvalidValueError: a number is out of range.
        """
        mode = self.global_rng or getattr(self.dataset, "global_rng", "batch")
        return _Minibatches(
            self.workers_state or self._make_state(),
            self._order(shuffle_seed, start),
            is_thread_bound=not self.num_workers and mode != "off",
        )


class _Minibatches(Generic[PyTreeType]):
    """The minibatches of one epoch of a :class:`DataLoader`.

    Attributes:
        is_thread_bound: whether making them touches generators that other threads may draw from meanwhile.
    """

    def __init__(self, state: WorkersState, order: EpochOrder, *, is_thread_bound: bool) -> None:
        self._state, self._order = state, order
        self.is_thread_bound = is_thread_bound

    def __len__(self) -> int:
        return self._order.count - self._order.start

    def __iter__(self) -> Iterator[PyTreeType]:
        return self._state.begin(self._order) if len(self) else iter(())


@dataclasses.dataclass(frozen=True, eq=False)
class InMemoryDataLoader(DataLoaderProtocol[PyTreeType], Generic[PyTreeType]):
    """Minibatches of a dataset in memory: arrays in any pytree, whose first axes are the samples.

    Minibatches are gathered array by array. Those of NumPy arrays are NumPy arrays of their own memory, also where the
    order is the dataset's; those of jax arrays are gathered where these are. What has ``__array__`` is taken as NumPy.

    Attributes:
        dataset: the arrays, of shapes ``(sample_count, ...)``.
        minibatch_size: samples per minibatch.
        drop_last: whether to leave out a last minibatch that is incomplete, so that all have one shape and a step is
            compiled once.
        sample_count: samples of the dataset.

    Raises:
        InvalidTypeError: a leaf of the dataset is no array with a first axis, or ``minibatch_size`` no integer.
        InvalidValueError: there is no array, their first axes differ, or ``minibatch_size`` is below 1.
    """

    dataset: PyTreeType
    minibatch_size: int
    drop_last: bool = True
    sample_count: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Check the fields, and count the samples."""
        check_count(self.minibatch_size, "minibatch_size", 1, "It counts the records of a minibatch.")
        object.__setattr__(self, "sample_count", count_samples(self.dataset))

    def minibatch_count(self) -> int:
        """Return how many minibatches an epoch has."""
        return count_minibatches(self.sample_count, self.minibatch_size, self.drop_last)

    def minibatches(self, shuffle_seed: int | None, *, start: int = 0) -> Sequence[PyTreeType]:
        """Return the minibatches of one epoch, each of which can be had by its number.

        A slice is a sequence of minibatches, too; nothing is gathered for it.

        Args:
            shuffle_seed: decides the order, an integer in [0, 2**64); None is the dataset's own order.
            start: the number of the first minibatch, from 0: what a run that stopped there goes on with.

        Raises:
            InvalidTypeError: a number is no integer.
            InvalidValueError: a number is out of range.
        """
        order = EpochOrder(self.sample_count, self.minibatch_size, self.drop_last, shuffle_seed, start)
        return _InMemoryMinibatches(Table(self.dataset), order, range(start, order.count))


class _InMemoryMinibatches(Sequence[PyTreeType]):
    """Some minibatches of one epoch of an :class:`InMemoryDataLoader`."""

    def __init__(self, table: Table[PyTreeType], order: EpochOrder, numbers: range) -> None:
        self._table, self._order, self._numbers = table, order, numbers
        self._take = table.gather if order.is_shuffled else table.copy

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PyTreeType: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PyTreeType]: ...
    def __getitem__(self, index: int | slice) -> PyTreeType | Sequence[PyTreeType]:
        if isinstance(index, slice):
            return _InMemoryMinibatches(self._table, self._order, self._numbers[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"minibatch is {index}; expected one from {-len(self)} to {len(self) - 1}.")
        start = self._numbers[index] * self._order.batch_size
        stop = min(start + self._order.batch_size, self._order.size)
        return self._take(self._order.indices(0, start, stop))

    def __iter__(self) -> Iterator[PyTreeType]:
        numbers = self._numbers
        if numbers.step != 1 or not numbers:
            return (self[k] for k in range(len(self)))
        # The indices of many minibatches at once cost a tenth.
        order, take = copy.copy(self._order), self._take
        order.seek(Position(0, numbers.start * order.batch_size))
        return (take(request.indices) for request in itertools.islice(order.requests(), len(numbers)))
