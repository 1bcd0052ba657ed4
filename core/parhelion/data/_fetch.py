"""From a request to a batch: the one way, in the loop's process and in a worker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from parhelion.errors import InvalidTypeError, InvalidValueError, RecordError
from parhelion.generators import GlobalGenerators
from parhelion.sampling import FetchRequest
from parhelion.seeds import SampleScope, derive, sample_base

from ._params import DatasetSplit
from ._protocols import CollateFn

__all__ = ["Fetch", "Fetched", "Records", "get_global_rng", "has_getitems"]

_clock = time.perf_counter
_MODES = ("batch", "sample", "off")
_MANY = 8


class Records(list[Any]):
    """Fetched records that know their sample indices.

    Args:
        records: what the dataset returned.
        indices: the sample index of each.
    """

    __slots__ = ("indices",)

    def __init__(self, records: Iterable[Any], indices: Sequence[int]) -> None:
        super().__init__(records)
        self.indices = indices


class Fetched(NamedTuple):
    """A batch, and what it took.

    Attributes:
        batch: the batch.
        records: seconds until the dataset had given its records.
        collation: seconds until they were a batch.
    """

    batch: Any
    records: float
    collation: float


class Fetch:
    """What turns a request into a batch; it can be pickled and called in a worker process.

    While it runs, ``sample_rng()`` is keyed by (split, seed, epoch, place), and the process-wide generators
    by the place of the batch's first sample, or of each sample. A collate function draws from streams of its
    own.

    Args:
        dataset: has ``__getitem__`` or ``__getitems__``.
        split: what the data is for; epochs other than the training split's share the randomness of epoch 0.
        seed: the data seed.
        collate_fn: makes the batch from :class:`Records`; None means ``default_collate``, or nothing where
            the dataset returns batches.
        default_collate: makes it unless another was asked for.
        global_rng: "batch", "sample", or "off", which leaves the process-wide generators alone; None takes
            the dataset's attribute of that name, else "batch".
        generators: the process-wide generators.

    Raises:
        InvalidTypeError: the dataset has neither method.
        InvalidValueError: ``global_rng`` is none of the three, or "sample" where records are fetched
            together.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        split: DatasetSplit,
        seed: int,
        collate_fn: CollateFn | None,
        default_collate: CollateFn,
        generators: GlobalGenerators,
        global_rng: str | None = None,
    ) -> None:
        self.dataset = dataset
        self.batched = has_getitems(dataset)
        self.returns_batches = self.batched and bool(getattr(_look_through(dataset), "returns_batches", False))
        self.collate_fn = default_collate if collate_fn is None and not self.returns_batches else collate_fn
        if not self.batched and not hasattr(dataset, "__getitem__"):
            raise InvalidTypeError(
                f"dataset is {_name(dataset)}, which has neither __getitem__ nor __getitems__; expected a "
                "map dataset. Give it a __getitem__(index) and a __len__()."
            )
        self.global_rng = get_global_rng(global_rng, dataset)
        if self.global_rng == "sample" and self.batched:
            raise InvalidValueError(
                f"global_rng is 'sample' and {_name(dataset)} fetches the records of a batch together "
                "(__getitems__); expected 'batch' or 'off'. Draw from sample_rng(k) to have a stream for "
                "each sample."
            )
        self._split, self._seed, self._generators = split, seed, generators
        self._keys: tuple[int, int, int] = (-1, 0, 0)
        self.board: Any = [0]
        self.is_table = self.returns_batches and self.collate_fn is None and bool(getattr(dataset, "is_table", False))

    def __call__(self, request: FetchRequest, *, in_worker: bool = False) -> Any:
        """Return the batch for ``request``; otherwise as :meth:`timed`."""
        return self.timed(request, in_worker=in_worker).batch

    def timed(self, request: FetchRequest, *, in_worker: bool = False) -> Fetched:
        """Return the batch for ``request``, and how long that took.

        Args:
            request: the epoch, the place of the first sample in its order, and the sample indices.
            in_worker: nobody needs this process's generators, so they are not put back.

        Raises:
            RecordError: the dataset failed; the sample index is named, the original error chained.
            CollateError: the records do not fit together.
        """
        if self.is_table:
            began = _clock()
            return Fetched(self.gather(request), _clock() - began, 0.0)
        base, collate_base = self._get_bases(request.epoch)
        if self.global_rng == "off":
            return self._make_batch(request, base, collate_base)
        generators = self._generators
        aside = None if in_worker else generators.set_aside()
        try:
            generators.seed(_derive_global(base, request.place))
            return self._make_batch(request, base, collate_base)
        finally:
            if not in_worker:
                generators.put_back(aside)

    def gather(self, request: FetchRequest) -> Any:
        """Return the batch for ``request`` from a dataset that is a table; nothing is drawn or checked.

        Raises:
            RecordError: the dataset failed; the sample indices are named, the original error chained.
        """
        try:
            return self.dataset.__getitems__(request.indices)
        except Exception as error:
            raise self._failed_together(request.indices.tolist(), error) from error

    def _get_bases(self, epoch: int) -> tuple[int, int]:
        known, base, collate_base = self._keys
        if known != epoch:
            # Evaluation must not depend on how much was trained before.
            base = sample_base(self._seed, self._split.value, epoch if self._split is DatasetSplit.TRAIN else 0)
            collate_base = derive(base, "collate")
            self._keys = epoch, base, collate_base
        return base, collate_base

    def _make_batch(self, request: FetchRequest, base: int, collate_base: int) -> Fetched:
        began = _clock()
        with SampleScope(base, request.place, batched=self.batched) as scope:
            records = self._fetch_together(request) if self.batched else self._fetch_each(request, scope)
        given = _clock()
        if self.collate_fn is None:
            return Fetched(records, given - began, 0.0)
        with SampleScope(collate_base, request.place, batched=True):
            batch = self.collate_fn(records)
        return Fetched(batch, given - began, _clock() - given)

    def _fetch_each(self, request: FetchRequest, scope: SampleScope) -> Records:
        dataset, board, indices = self.dataset, self.board, request.indices.tolist()
        records = Records((), indices)
        reseed = self.global_rng == "sample"
        index, keep = -1, records.append
        try:
            for place, index in enumerate(indices, request.place):
                scope.place = place
                board[0] = index
                if reseed:
                    self._generators.seed(_derive_global(scope.base, place))
                keep(dataset[index])
        except Exception as error:
            raise RecordError(
                f"record with sample index {index} of {_name(dataset)} failed ({_write(error)}). "
                "The error that it raised is chained to this one."
            ) from error
        board[0] = -1
        return records

    def _fetch_together(self, request: FetchRequest) -> Any:
        whole = self.returns_batches
        indices: Any = request.indices if whole else request.indices.tolist()
        try:
            fetched: Any = self.dataset.__getitems__(indices)
        except RecordError:
            raise  # it names the record itself
        except Exception as error:
            raise self._failed_together(indices, error) from error
        if whole:
            self._check_rows(fetched, indices)
            return fetched
        if not issubclass(type(fetched), list):
            raise self._wrong(f"a {type(fetched).__name__}", "a list of records", indices)
        records = Records(fetched, indices)
        if len(records) != len(indices):
            raise self._wrong(f"{len(records)} records", "one for each index", indices)
        return records

    def _failed_together(self, indices: Sequence[int], error: Exception) -> RecordError:
        return RecordError(
            f"records with {_write_indices(indices)} of {_name(self.dataset)} failed together ({_write(error)}). The "
            "error that was raised is chained to this one; fetch them one by one to see which it is."
        )

    def _check_rows(self, batch: Any, indices: Any) -> None:
        """Check the arrays of a batch, as far as they are in dicts, lists and tuples."""
        shape = getattr(batch, "shape", None)
        if shape is not None:
            if not shape or shape[0] != len(indices):
                raise self._wrong(f"an array of shape {tuple(shape)}", f"{len(indices)} rows", indices)
        elif isinstance(batch, list) and len(cast("Any", batch)) == len(indices):
            pass  # a value for each record, such as text or an array of any length
        elif isinstance(batch, (dict, list, tuple)):
            for part in cast("Iterable[Any]", batch.values() if isinstance(batch, dict) else batch):
                self._check_rows(part, indices)

    def _wrong(self, got: str, expected: str, indices: Sequence[int]) -> RecordError:
        return RecordError(
            f"__getitems__ of {_name(self.dataset)} returned {got} for {_write_indices(indices)}; expected "
            f"{expected}. A dataset that returns finished batches says so with an attribute returns_batches "
            "= True."
        )


def has_getitems(dataset: Any) -> bool:
    """Return whether the dataset can be asked for several records at once."""
    return callable(getattr(_look_through(dataset), "__getitems__", None))


def _look_through(dataset: Any) -> Any:
    """Return what a ``torch.utils.data.Subset`` is a subset of: it has ``__getitems__`` whether or not that has it."""
    while any(kind.__name__ == "Subset" and kind.__module__.startswith("torch.") for kind in type(dataset).__mro__):
        dataset = dataset.dataset
    return dataset


def get_global_rng(mode: str | None, dataset: Any) -> str:
    """Return how process-wide generators are keyed: as asked for, or as the dataset says, or by "batch".

    Raises:
        InvalidValueError: it is none of the known ways.
    """
    mode = getattr(dataset, "global_rng", "batch") if mode is None else mode
    if mode not in _MODES:
        raise InvalidValueError(
            f"global_rng is {mode!r}; expected 'batch' (keyed by the batch's first sample), 'sample' (by "
            "each sample) or 'off' (not touched). Leave it out to get 'batch'."
        )
    return mode


def _derive_global(base: int, place: int) -> int:
    return derive(base, "global", place)


def _name(dataset: Any) -> str:
    return type(dataset).__name__


def _write(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _write_indices(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:_MANY]))
    return f"sample indices {shown}" + (f", ... ({len(indices)} in all)" if len(indices) > _MANY else "")
