"""Datasets made of others: some of the records of one, or those of several, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.seeds import each_sample, some_samples

from ._trees import Indices, group_rows, merge_rows

__all__ = ["ConcatDataset", "FetchRecords", "Subset", "get_fetch", "is_batched", "returns_batches"]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any

FetchRecords = Callable[[Sequence[int]], list[Any]]


class Subset:
    """Some records of a dataset, which is asked in the way that it is asked alone: one by one, or together.

    Args:
        dataset: has a length, and ``__getitem__`` or ``__getitems__``.
        indices: the sample index, in the dataset, of each record.

    Raises:
        InvalidTypeError: an index is no integer.
        InvalidValueError: an index is out of range.
    """

    def __init__(self, dataset: Any, indices: Iterable[int] | Indices) -> None:
        rows = np.asarray(indices if _is(indices, np.ndarray) else [*indices])
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise InvalidTypeError(
                f"indices of the subset are of dtype {rows.dtype} and shape {rows.shape}; expected integers in one "
                "row. Of a mask pass numpy.flatnonzero(mask)."
            )
        size = len(dataset)
        wrong = rows[(rows < 0) | (rows >= size)]
        if len(wrong):
            raise InvalidValueError(
                f"indices of the subset have {wrong[0]}; expected integers from 0 to {size - 1}, for the dataset has "
                f"{size} records."
            )
        self.dataset = dataset
        self.indices: Indices = rows.astype(np.int64)

    @property
    def returns_batches(self) -> bool:
        """Whether the dataset returns batches."""
        return returns_batches(self.dataset)

    @property
    def global_rng(self) -> str:
        """What the dataset says about the process-wide generators."""
        return getattr(self.dataset, "global_rng", "batch")

    @property
    def __getitems__(self) -> Callable[[Sequence[int]], Any] | None:
        """What fetches several records at once; None if the dataset has no such method."""
        return self._get_many if is_batched(self.dataset) else None

    def _get_many(self, indices: Sequence[int]) -> Any:
        rows = self.indices[indices]
        return self.dataset.__getitems__(rows if self.returns_batches else rows.tolist())

    def get_records(self, indices: Sequence[int]) -> list[Any]:
        """Return the records with those indices."""
        return _need_fetch(self.dataset)(self.indices[indices].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]


class ConcatDataset:
    """The records of several datasets, one after the other.

    Where all of them return batches, so does this one: each is asked once for its rows, and these are put in their
    places. Where some of them do, they are asked for records. What a record draws is the same in all cases.

    Args:
        datasets: have lengths, and ``__getitem__`` or ``__getitems__``.

    Attributes:
        returns_batches: whether all of them return batches.

    Raises:
        InvalidTypeError: a dataset has no length, or returns batches only, where others return records.
        InvalidValueError: there is none.
    """

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets: list[Any] = [*datasets]
        if not self.datasets:
            raise InvalidValueError("datasets are none; expected at least one to concatenate.")
        for dataset in self.datasets:
            if not hasattr(dataset, "__len__"):
                raise InvalidTypeError(
                    f"dataset is a {type(dataset).__name__}, which has no length; expected map datasets. Give it a "
                    "__len__ method."
                )
        self._starts: Indices = np.cumsum([0, *map(len, self.datasets)])
        self.returns_batches = all(map(returns_batches, self.datasets))
        self._is_batched = any(map(is_batched, self.datasets))
        if self._is_batched and not self.returns_batches:
            for dataset in self.datasets:
                _need_fetch(dataset)

    @property
    def global_rng(self) -> str:
        """The process-wide generators are left alone if all datasets say so."""
        modes = {getattr(dataset, "global_rng", "batch") for dataset in self.datasets}
        return modes.pop() if len(modes) == 1 else "batch"

    @property
    def __getitems__(self) -> Callable[[Sequence[int]], Any] | None:
        """What fetches several records at once; None if no dataset has such a method."""
        return self._get_many if self._is_batched else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        self._check(np.asarray([index]))
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return self.datasets[number][int(index - self._starts[number])]

    def _get_many(self, indices: Sequence[int]) -> Any:
        if not self.returns_batches:
            return self.get_records(indices)
        parts, names = list[tuple[Indices, Any]](), list[str]()
        for number, places, rows in self._group(indices):
            with some_samples(places.tolist()):
                parts.append((places, self.datasets[number].__getitems__(rows)))
            names.append(f"dataset {number}")
        return merge_rows(parts, len(indices), names) if len(parts) > 1 else parts[0][1]

    def get_records(self, indices: Sequence[int]) -> list[Any]:
        """Return the records with those indices; each dataset is asked once."""
        records: list[Any] = [None] * len(indices)
        for number, places, rows in self._group(indices):
            with some_samples(places.tolist()):
                fetched = _need_fetch(self.datasets[number])(rows.tolist())
            for place, record in zip(places.tolist(), fetched, strict=True):
                records[place] = record
        return records

    def _group(self, indices: Sequence[int]) -> list[tuple[int, Indices, Indices]]:
        """Return, for each dataset that is asked, its number, the places of its records, and their indices in it."""
        rows = np.asarray(indices, np.int64)
        if not len(rows):
            return [(0, rows, rows)]
        self._check(rows)
        groups = group_rows(np.searchsorted(self._starts, rows, "right") - 1)
        return [(number, places, rows[places] - self._starts[number]) for number, places in groups]

    def _check(self, rows: Indices) -> None:
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if len(wrong):
            raise IndexError(f"index is {wrong[0]}; expected one from 0 to {len(self) - 1}.")


def is_batched(dataset: Any) -> bool:
    """Return whether a dataset is asked for several records at once."""
    return callable(getattr(_look_through(dataset), "__getitems__", None))


def returns_batches(dataset: Any) -> bool:
    """Return whether a dataset returns batches."""
    return is_batched(dataset) and bool(getattr(_look_through(dataset), "returns_batches", False))


def get_fetch(dataset: Any) -> FetchRecords | None:
    """Return what fetches several records of a dataset as a list; None if it has batches alone.

    A record that is fetched alone draws from its own stream, as it does without this.
    """
    if hasattr(dataset, "get_records"):
        return cast("FetchRecords", dataset.get_records)
    if is_batched(dataset) and not returns_batches(dataset):
        return lambda indices: _check_records(dataset, dataset.__getitems__(indices), indices)
    if hasattr(dataset, "__getitem__"):
        return lambda indices: _fetch_each(dataset, indices)
    return None


def _need_fetch(dataset: Any) -> FetchRecords:
    fetch = get_fetch(dataset)
    if fetch is None:
        raise InvalidTypeError(
            f"dataset is a {type(dataset).__name__}, which returns batches and no records; expected one that can be "
            "asked for records here. Give it a __getitem__(index) or a get_records(indices)."
        )
    return fetch


def _fetch_each(dataset: Any, indices: Sequence[int]) -> list[Any]:
    records: list[Any] = []
    with each_sample() as turn_to:
        for k, index in enumerate(indices):
            turn_to(k)
            records.append(dataset[index])
    return records


def _check_records(dataset: Any, records: Any, indices: Sequence[int]) -> list[Any]:
    if not _is(records, list) or len(records) != len(indices):
        raise InvalidTypeError(
            f"__getitems__ of {type(dataset).__name__} returned a {type(records).__name__}; expected a list of "
            f"{len(indices)} records, one for each index. A dataset that returns finished batches says so with an "
            "attribute returns_batches = True."
        )
    checked: list[Any] = records
    return checked


def _look_through(dataset: Any) -> Any:
    """Return what a ``torch.utils.data.Subset`` is a subset of: it has ``__getitems__`` whether or not that has it."""
    while any(b.__name__ == "Subset" and b.__module__.startswith("torch.") for b in type(dataset).__mro__):
        dataset = dataset.dataset
    return dataset
