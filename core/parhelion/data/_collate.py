"""Stacking the records of a batch: a tree of columns for a column of trees."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, cast

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import CollateError

from ._companions import get_stacker, load_companions
from ._memory import empty as make_empty
from ._memory import is_elsewhere
from ._misfit import Misfit, blame, describe, describe_kind

__all__ = ["StackLeaves", "collate", "stack_arrays"]

StackLeaves = Callable[[list[Any]], Any]
"""Stacks what one field holds in every record along a new first axis; raises if that cannot be."""

_Branch = Callable[[list[Any], StackLeaves], Any]

_NUMBERS: dict[type, npt.DTypeLike] = {
    bool: np.bool_,
    int: np.int64,
    float: np.float32,
    complex: np.complex64,
}
_PLAIN = "biufc"  # kinds of dtypes whose values are bytes
_SMALL = 1 << 18  # bytes of a batch up to which joining and a copy beat filling memory that lies elsewhere
_get_type: Callable[[Any], Any] = type
_get_shape = operator.attrgetter("shape")
_get_dtype = operator.attrgetter("dtype")


def collate(records: Sequence[Any], *, stack: StackLeaves | None = None) -> Any:
    """Return one batch: the structure of each record, and in front of every array an axis for the records.

    Dicts, lists, tuples, named tuples, attrs and dataclass records may be nested; an attrs or dataclass batch
    is an instance of the records' class, made without calling its constructor. A number becomes an array:
    float -> float32, int -> int64, bool -> bool, complex -> complex64. Arrays, NumPy scalars and whatever has
    ``__array__`` keep their dtype. Strings and bytes become a list. All records must agree in structure,
    shapes and dtypes.

    Args:
        records: one or more records. What has an attribute ``indices`` lets errors name sample indices.
        stack: stacks the values of a leaf field; NumPy arrays are made if None.

    Raises:
        CollateError: the records do not fit together; the record, the sample index and the field are named.
    """
    if not records:
        raise CollateError("records cannot be collated: there are none; expected at least one record in a batch.")
    load_companions()
    try:
        return _stack_tree(list(records), stack or stack_arrays)
    except Misfit as misfit:
        raise CollateError(misfit.message(getattr(records, "indices", None))) from misfit.__cause__


def stack_arrays(values: list[Any]) -> Any:
    """Return one array of shape (len(values), ...) with the values' dtype.

    Args:
        values: numbers, arrays, or what has ``__array__``; in a worker process also a framework's own arrays, which
            may become such a one.

    Raises:
        ValueError: shapes differ.
        TypeError: dtypes differ, or there is no dtype for a value.
        OverflowError: an int does not fit in int64.
    """
    kind: Any = _get_type(values[0])
    if _count_type(values, kind) == len(values):
        if kind is np.ndarray:
            return _stack(values)
        if kind in _NUMBERS:
            return np.array(values, _NUMBERS[kind])
        if issubclass(kind, np.generic) and values[0].dtype.kind in _PLAIN:
            return _join(values, values[0].dtype)
        if (stack := get_stacker(cast("Any", kind))) is not None:
            return stack(values)
    return _stack([_as_array(value) for value in values])


def _stack(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if dtype.kind in "OSU":
        raise TypeError(f"an array of dtype {dtype} has no place in a batch; use numbers, or a list of strings")
    if list(map(_get_shape, arrays)).count(shape) != len(arrays):
        raise ValueError("the shapes differ")
    if list(map(_get_dtype, arrays)).count(dtype) != len(arrays):
        raise TypeError("the dtypes differ")
    size = len(arrays) * arrays[0].nbytes
    if size and dtype.kind in _PLAIN and (size < _SMALL or not is_elsewhere()):
        try:
            return _join(arrays, dtype).reshape(len(arrays), *shape)
        except TypeError:
            pass  # one is not contiguous, and so no bytes
    if not shape:
        return np.array(arrays, dtype)
    out = make_empty((len(arrays), *shape), dtype)
    np.concatenate(arrays, out=out.reshape(len(arrays) * shape[0], *shape[1:]))
    return out


def _join(values: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values one behind the other: what NumPy takes two to five times as long for, where they are small."""
    return np.frombuffer(bytearray().join(values), dtype)


def _as_array(value: Any) -> npt.NDArray[Any]:
    if not hasattr(value, "dtype"):
        for kind, dtype in _NUMBERS.items():
            if isinstance(value, kind):
                return np.array(value, dtype)
    if np.ma.isMaskedArray(value):
        raise TypeError("a masked array would lose its mask; return data and mask as two fields")
    if not hasattr(value, "__array__"):
        raise TypeError("it is no array")
    return np.asarray(value)


def _count_type(values: list[Any], kind: type[Any]) -> int:
    return list(map(type, values)).count(kind)


def _stack_tree(values: list[Any], stack: StackLeaves) -> Any:
    kind = _get_type(values[0])
    branch = _get_branch(kind)
    if branch not in (_leaf, _refuse) and _count_type(values, kind) != len(values):
        _check_branches(values, branch)
    return branch(values, stack)


@functools.lru_cache(maxsize=1024)
def _get_branch(kind: Any) -> _Branch:  # noqa: PLR0911 - a line for each kind of value
    """Return what stacks values of that type; the rules are tried in this order."""
    if issubclass(kind, (str, bytes)):
        return _keep_text
    if issubclass(kind, (int, float, complex, np.generic, np.ndarray)):
        return _leaf
    if issubclass(kind, Mapping):
        return _stack_mappings
    if attrs.has(kind):
        return functools.partial(_stack_records, kind, [field.name for field in attrs.fields(kind)])
    if hasattr(kind, "__dataclass_fields__"):
        return functools.partial(_stack_records, kind, [field.name for field in dataclasses.fields(kind)])
    if issubclass(kind, tuple):
        fields = getattr(cast("Any", kind), "_fields", None)
        return functools.partial(_stack_sequences, tuple) if fields is None else functools.partial(_stack_named, kind)
    if issubclass(kind, list):
        return functools.partial(_stack_sequences, list)
    return _leaf if hasattr(kind, "__array__") else _refuse


def _check_branches(values: list[Any], branch: _Branch) -> None:
    for place, value in enumerate(values):
        if _get_branch(_get_type(value)) is not branch:
            raise Misfit(place, describe(value), f"{describe_kind(values[0])} as in the batch's first record")


def _leaf(values: list[Any], stack: StackLeaves) -> Any:
    try:
        return stack(values)
    except Exception as error:
        raise blame(values, error) from error


def _refuse(values: list[Any], _: StackLeaves) -> Any:
    raise Misfit(0, describe(values[0]))


def _keep_text(values: list[Any], _: StackLeaves) -> list[Any]:
    return values


def _stack_field(name: Any, values: list[Any], stack: StackLeaves) -> Any:
    try:
        return _stack_tree(values, stack)
    except Misfit as misfit:
        misfit.path.insert(0, name)
        raise


def _stack_mappings(values: list[Any], stack: StackLeaves) -> Any:
    first = values[0]
    kind = _get_type(first)
    plain = kind is dict
    if not plain or list(map(len, values)).count(len(first)) != len(values):
        _blame_keys(values)
    try:
        columns = {key: [value[key] for value in values] for key in first}
    except KeyError:
        _blame_keys(values)
        raise
    stacked = {key: _stack_field(key, column, stack) for key, column in columns.items()}
    if plain or not issubclass(kind, MutableMapping):
        return stacked
    # Another kind of mapping may hold more than its items: a copy keeps the rest.
    batch = copy.copy(first)
    batch.update(stacked)
    return batch


def _blame_keys(values: list[Mapping[Any, Any]]) -> None:
    first = values[0]
    known = ", ".join(map(repr, first))
    for place, value in enumerate(values):
        for key in first:
            if key not in value:
                raise Misfit(place, "missing", f"the keys of the batch's first record, {known}", [key])
        for key in value:
            if key not in first:
                raise Misfit(place, "there", f"only the keys of the batch's first record, {known}", [key])


def _stack_sequences(kind: Callable[[Iterable[Any]], Any], values: list[Any], stack: StackLeaves) -> Any:
    length = len(values[0])
    for place, value in enumerate(values):
        if len(value) != length:
            raise Misfit(place, describe(value), f"length {length} as in the batch's first record")
    return kind(_stack_field(i, list(column), stack) for i, column in enumerate(zip(*values, strict=True)))


def _stack_named(kind: Any, values: list[Any], stack: StackLeaves) -> Any:
    columns = zip(kind._fields, zip(*values, strict=True), strict=True)
    return kind(*(_stack_field(name, list(column), stack) for name, column in columns))


def _stack_records(kind: type[Any], names: list[str], values: list[Any], stack: StackLeaves) -> Any:
    # Its constructor and validators speak about one record, not about a stack of them.
    batch: Any = object.__new__(kind)
    for name in names:
        object.__setattr__(batch, name, _stack_field(name, [getattr(value, name) for value in values], stack))
    return batch
