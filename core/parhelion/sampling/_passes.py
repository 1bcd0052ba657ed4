"""Pass after pass over the parts of a data source, each pass in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any, TypeAlias, cast

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._permutation import Indices
from ._shuffle import MAX_SIZE, Shuffle, count_records

__all__ = ["Order", "count_offsets", "count_parts", "get_parts", "groups", "in_place", "make_order", "take_passes"]

Order: TypeAlias = Callable[[int, Indices], Indices]
"""From a pass and places in it to records."""

_get_type: Callable[[Any], Any] = type


def in_place(_: int, places: Indices) -> Indices:
    """Return the places: every pass has the records in their own order."""
    return places


def make_order(size: int, seed: int | None) -> Order:
    """Return the order of passes over ``size`` records: a new random one for each, or their own without a seed."""
    return in_place if seed is None or size == 1 else Shuffle(size, seed).indices_at


def take_passes(order: Order, size: int, before: int, numbers: Indices) -> Indices:
    """Return samples of an endless row of passes over ``size`` records.

    Args:
        order: the order of each pass.
        size: records of a pass.
        before: samples before number 0.
        numbers: int64 of shape ``(k,)``: which samples, from 0.

    Returns:
        int64 of shape ``(k,)``, each in [0, size).
    """
    first, rest = divmod(before, size)
    numbers = numbers + rest
    passes = numbers // size
    places = numbers - passes * size
    if order is in_place:
        return places
    out = np.empty(len(numbers), np.int64)
    for each, chosen in groups(passes):
        out[chosen] = order(first + each, places[chosen])
    return out


def groups(keys: Indices) -> Iterator[tuple[int, Indices | slice]]:
    """Yield each key, from the least on, with where it is: int64 indices, or all of it."""
    if not len(keys):
        return
    least, most = int(keys.min()), int(keys.max())
    if least == most:
        yield least, slice(None)
        return
    # Small integers are sorted by counting, in a tenth of the time.
    small = (keys - least).astype(np.uint16) if most - least < 1 << 16 else keys
    order = np.argsort(small, kind="stable")
    keys = keys[order]
    cuts = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(keys)]
    for start, stop in pairwise(cuts):
        yield int(keys[start]), order[start:stop]


def get_parts(data_source: Any) -> Sequence[Any]:
    """Return the datasets, or their sizes, that a data source is made of.

    Raises:
        InvalidTypeError: it is no concatenation, and no list.
        InvalidValueError: there are none.
    """
    parts: Any = data_source if issubclass(_get_type(data_source), (list, tuple)) else _get_datasets(data_source)
    if not issubclass(_get_type(parts), Sequence) or isinstance(parts, str):
        raise InvalidTypeError(
            f"data_source is a {_get_type(data_source).__name__}; expected datasets that are concatenated: "
            "an object with an attribute datasets, or a list of datasets or of their sizes. "
            "Pass [dataset] for a single one."
        )
    if not parts:
        raise InvalidValueError("data_source has no datasets; expected at least one. Pass them as a list.")
    return cast("Sequence[Any]", parts)


def _get_datasets(data_source: Any) -> Any:
    return getattr(data_source, "datasets", None)


def count_parts(data_source: Any) -> list[int]:
    """Return the number of records of each part of a data source.

    Raises:
        InvalidTypeError: it is no concatenation and no list, or a part has no length.
        InvalidValueError: there is no part, one is empty, or they have more than 2**62 records together.
    """
    sizes = [_count_part(part, number) for number, part in enumerate(get_parts(data_source))]
    if sum(sizes) > MAX_SIZE:
        raise InvalidValueError(
            f"data_source has {sum(sizes)} records; expected at most 2**62. Sample from fewer datasets at once."
        )
    return sizes


def _count_part(part: Any, number: int) -> int:
    what = f"dataset {number} of data_source"
    if isinstance(part, Integral):
        size = int(part)
        if not 1 <= size <= MAX_SIZE:
            raise InvalidValueError(f"size of {what} is {size}; expected an integer from 1 to 2**62. Leave it out.")
        return size
    return count_records(part, what)


def count_offsets(sizes: Sequence[int]) -> list[int]:
    """Return the index of each part's first record in the concatenation."""
    return [0, *accumulate(sizes[:-1])]
