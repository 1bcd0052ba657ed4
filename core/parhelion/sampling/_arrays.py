"""Arrays that a user gives a sampler: read, checked, and told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import xxhash

from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["check_range", "fingerprint", "read_array", "read_per_record"]

_CHUNK: Final = 1 << 18


def read_array(values: Any, what: str, kinds: str, expected: str) -> npt.NDArray[Any]:
    """Return ``values`` as an array of one axis, not copied where it is one.

    Args:
        values: what the user gave.
        what: its name, for the message.
        kinds: NumPy's letters of the dtypes that will do.
        expected: what will do, in words.

    Raises:
        InvalidTypeError: they are no numbers of such a kind.
        InvalidValueError: there are not as many axes, or no values.
    """
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{what} cannot be read as an array ({error}); expected {expected}.") from error
    if array.ndim != 1 or not array.size:
        raise InvalidValueError(
            f"{what} has the shape {array.shape}; expected {expected}, one axis and at least one value. "
            "Flatten it, or check what it was made from."
        )
    if array.dtype.kind not in kinds:
        raise InvalidTypeError(
            f"{what} has the dtype {array.dtype}; expected {expected}."
            + (" Write np.flatnonzero(mask) for a mask." if array.dtype.kind == "b" else " Convert it.")
        )
    return array


def read_per_record(values: Any, data_source: Any, num_records: int, what: str) -> npt.NDArray[Any]:
    """Return one number for each record of a data source.

    Args:
        values: the numbers, or a function from the data source to them.
        data_source: what the function is given.
        num_records: its records.
        what: the numbers' name, for the message.

    Returns:
        Integers or floats of shape ``(num_records,)``, not copied where ``values`` is an array.

    Raises:
        InvalidTypeError: they are no numbers.
        InvalidValueError: one is not finite, or there is not one for each record.
    """
    if callable(values):
        values = cast("Callable[[Any], Any]", values)(data_source)
    array = read_array(values, what, "iuf", "an integer or a float for each record")
    if len(array) != num_records:
        raise InvalidValueError(
            f"{what} has {len(array)} values and data_source {num_records} records; expected one value for each "
            "record. Make them from the same data."
        )
    if array.dtype.kind == "f":
        # The least and the most are NaN if a value is; an array of flags would take memory.
        worst = [value for value in (float(array.min()), float(array.max())) if not np.isfinite(value)]
        if worst:
            raise InvalidValueError(
                f"{what} has the value {worst[0]}; expected finite numbers. Leave such records out."
            )
    return array


def check_range(records: npt.NDArray[Any], num_records: int, what: str) -> npt.NDArray[np.int64]:
    """Return sample indices as int64, if all are in [0, num_records).

    Raises:
        InvalidValueError: one is not.
    """
    if len(records):
        for index in (int(records.min()), int(records.max())):
            if not 0 <= index < num_records:
                raise InvalidValueError(
                    f"{what} has the index {index}; expected indices in [0, {num_records}), the records "
                    "of data_source. Count from 0."
                )
    return records.astype(np.int64, copy=False)


def fingerprint(array: npt.NDArray[Any]) -> str:
    """Return a short text that differs for other numbers, and is the same for any width of them."""
    digest = xxhash.xxh3_64()
    dtype = "<f8" if array.dtype.kind == "f" else "<i8"
    for start in range(0, len(array), _CHUNK):
        digest.update(np.ascontiguousarray(array[start : start + _CHUNK], dtype).data)
    return digest.hexdigest()
