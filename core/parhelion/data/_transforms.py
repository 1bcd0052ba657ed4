"""Transforms: of one record after the other where they are fetched, and of whole batches once they are stacked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from parhelion.errors import InvalidTypeError, RecordError
from parhelion.seeds import each_sample, sample_rng

from ._collate import collate
from ._combined import get_fetch, is_batched
from ._protocols import CollateFn

__all__ = ["Chain", "Collate", "TransformedDataset", "transformed"]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any

Transform = Callable[..., Any]


class Chain:
    """Functions called one after the other, each with what the one before returned.

    A function that has a parameter ``rng`` gets the generator of the record that is being fetched, or of the batch
    where the chain is one of batches; others may call ``parhelion.sample_rng()``.

    Args:
        functions: take a record and return one.

    Raises:
        InvalidTypeError: one of them cannot be called.
    """

    def __init__(self, *functions: Transform) -> None:
        self.functions = functions
        for function in functions:
            if not callable(function):
                raise InvalidTypeError(
                    f"transform is {function!r:.80}, a {type(function).__name__}; expected a function of one record. "
                    "Pass the function itself, and several one by one."
                )
        self._prepare()

    def _prepare(self) -> None:
        self._calls = [_bind(function) for function in self.functions]

    def __call__(self, record: Any) -> Any:
        for call in self._calls:
            record = call(record)
        return record

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(_name, self.functions))})"

    def __getstate__(self) -> dict[str, Any]:
        return {"functions": self.functions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


class TransformedDataset:
    """A dataset whose records go through functions, in whichever process they are fetched.

    Each function draws from the generator of its record, which goes on where the dataset left it: the same numbers with
    any number of workers, and whether the dataset is asked for one record at a time or for all of a batch. Of a dataset
    that returns batches the records are taken one by one, and stacked again afterwards. What is to change whole batches
    belongs into :class:`Collate`.

    Args:
        dataset: has a length, and ``__getitem__`` or ``__getitems__``.
        transforms: functions of one record; ``rng`` is passed to those that have such a parameter.

    Raises:
        InvalidTypeError: a transform cannot be called, or is one of batches, or the dataset has batches alone.
    """

    def __init__(self, dataset: Any, *transforms: Transform) -> None:
        self.dataset = dataset
        self.transform = Chain(*transforms)
        for transform in transforms:
            _check_is_for_records(transform)
        if get_fetch(dataset) is None:
            raise InvalidTypeError(
                f"dataset is a {type(dataset).__name__}, which returns batches and no records; expected one whose "
                "records can be transformed. Give it a __getitem__(index), or transform its batches: "
                "collate_fn=Collate(then=[...])."
            )

    @property
    def global_rng(self) -> str:
        """The process-wide generators are left alone if the dataset and all transforms say so."""
        parts = (self.dataset, *self.transform.functions)
        modes = {getattr(part, "global_rng", "batch") for part in parts}
        return modes.pop() if len(modes) == 1 else "batch"

    @property
    def __getitems__(self) -> Callable[[Sequence[int]], list[Any]] | None:
        """What fetches several records at once; None if the dataset has no such method."""
        return self._get_many if is_batched(self.dataset) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.dataset[index])

    def _get_many(self, indices: Sequence[int]) -> list[Any]:
        fetch: Any = get_fetch(self.dataset)
        records: list[Any] = fetch(indices)
        transform, done = self.transform, list[Any]()
        with each_sample() as turn_to:
            for k, record in enumerate(records):
                turn_to(k)
                try:
                    done.append(transform(record))
                except Exception as error:
                    raise RecordError(
                        f"record with sample index {indices[k]} failed in its transforms, {transform!r} "
                        f"({type(error).__name__}: {error}). The error that was raised is chained to this one."
                    ) from error
        return done


def transformed(dataset: Any, *transforms: Transform) -> TransformedDataset:
    """Return the dataset with functions that its records go through; see :class:`TransformedDataset`.

    Raises:
        InvalidTypeError: a transform cannot be called, or is one of batches, or the dataset has batches alone.
    """
    return TransformedDataset(dataset, *transforms)


class Collate:
    """A collate function: stacks records to a batch, and lets functions of the batch follow, in the same process.

    What they draw is keyed by (seed, split, epoch, place of the batch's first record), so it does not depend on workers
    or on where a run was stopped. Batches are of NumPy arrays here; a backend turns them into its own afterwards, so
    that both draw and compute the same.

    A dataset that returns batches has nothing to stack; the functions get its batches. These must not be lists.

    Args:
        stack: makes a batch of a list of records; :func:`collate` if None.
        then: functions of a batch, such as :class:`MixUp`; ``rng`` is passed to those that have such a parameter.

    Raises:
        InvalidTypeError: one of them cannot be called.
    """

    makes_arrays = True  # NumPy's, of which a backend may make its own

    def __init__(self, *, stack: CollateFn | None = None, then: Iterable[Transform] = ()) -> None:
        self.stack = stack
        self.then = Chain(*then)
        if stack is not None and not callable(stack):
            raise InvalidTypeError(f"stack is {stack!r:.80}; expected a function of a list of records, or None.")

    def __call__(self, records: Any) -> Any:
        return self.finish((self.stack or collate)(records) if _is(records, list) else records)

    def finish(self, batch: Any) -> Any:
        """Return what the functions make of a finished batch."""
        with each_sample():  # the first stream is that of the whole batch
            return self.then(batch)

    def followed_by(self, function: Transform) -> Collate:
        """Return such a collate function with one more function at its end."""
        return Collate(stack=self.stack, then=(*self.then.functions, function))

    def __repr__(self) -> str:
        return f"Collate(then={self.then!r})"


def _bind(function: Transform) -> Callable[[Any], Any]:
    """Return the function of a record alone."""
    try:
        takes_rng = "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes_rng = False  # some that are written in C have no signature
    return functools.partial(_call_with_rng, function) if takes_rng else function


def _call_with_rng(function: Transform, record: Any) -> Any:
    return function(record, rng=sample_rng())


def _check_is_for_records(transform: Transform) -> None:
    functions = transform.functions if isinstance(transform, Chain) else (transform,)
    for function in functions:
        if getattr(function, "is_for_batches", False):
            raise InvalidTypeError(
                f"transform is {_name(function)}, which mixes the records of a batch; expected a function of one "
                f"record. Pass collate_fn=Collate(then=[{_name(function)}(...)]) to the loader."
            )


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__
