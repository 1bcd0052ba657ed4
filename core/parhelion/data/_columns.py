"""Columns of Arrow as what a batch holds: arrays of numbers, lists of text, lists of arrays."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError, MissingExtraError

from ._rows import get_take
from ._trees import Indices

__all__ = ["Options", "TakeRows", "check_column", "get_pyarrow", "make_column"]

TakeRows: TypeAlias = Callable[[Indices], Any]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any

_TEXT: Final = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")


class Options:
    """How columns are read.

    Args:
        fill_null: what stands for a null: a value for all columns, or one by the name of a column.
        mapping: the file in memory that has the columns, if they are in one.
    """

    def __init__(self, fill_null: Any = None, mapping: mmap.mmap | None = None) -> None:
        self.fill_null, self.mapping = fill_null, mapping

    def get_fill(self, column: str) -> Any:
        """Return what stands for a null in a column; None if nothing does."""
        fill: Any = self.fill_null
        return fill.get(column) if _is(fill, Mapping) else fill


def get_pyarrow(module: str = "pyarrow") -> Any:
    """Return pyarrow, or a module of it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        # Costs 0.1 s, and only those who have tables need it.
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "tables of Arrow and Parquet need pyarrow, which is not installed; install it with: pip install "
            "'parhelion[arrow]'"
        ) from error


def check_column(name: str, kind: Any) -> None:
    """Do nothing if a column of that type can be in a batch.

    Raises:
        InvalidTypeError: it cannot.
    """
    types = get_pyarrow().types
    inner = kind
    while True:
        if types.is_struct(inner):
            for field in inner:
                check_column(f"{name}.{field.name}", field.type)
            return
        if types.is_dictionary(inner) or isinstance(inner, get_pyarrow().BaseExtensionType):
            inner = inner.value_type if types.is_dictionary(inner) else inner.storage_type
        elif _is_list(inner) or types.is_fixed_size_list(inner):
            inner = inner.value_type
        else:
            break
    if not (_is_number(inner) or _is_text(inner)):
        raise InvalidTypeError(
            f"column {name!r} has type {kind}; expected numbers, booleans, text, bytes, or lists or structs of these. "
            "Cast it to a number, or leave it out with columns=[...]."
        )


def make_column(  # noqa: PLR0911 - a line for each kind of column
    name: str, chunk: Any, first: int, options: Options
) -> TakeRows:
    """Return what takes rows of a column.

    Numbers and booleans become an array of shape (rows,), and lists of k of them, all fixed-size, one of (rows, k);
    other lists of numbers a list of arrays; text and bytes a list; structs a dict.

    Args:
        name: of the column, for errors.
        chunk: a ``pyarrow.Array``.
        first: number of its first row in the whole column, for errors.
        options: what to do with nulls.

    Raises:
        InvalidValueError: there is a null and nothing that stands for one.
    """
    arrow = get_pyarrow()
    types, kind = arrow.types, chunk.type
    if isinstance(kind, arrow.BaseExtensionType):
        return make_column(name, chunk.storage, first, options)
    chunk = _fill(name, chunk, first, options)
    if types.is_dictionary(kind):
        if _is_text(kind.value_type):
            return lambda rows: chunk.take(arrow.array(rows)).dictionary_decode().to_pylist()
        return make_column(name, chunk.dictionary_decode(), first, options)
    if types.is_struct(kind):
        fields = zip([field.name for field in kind], chunk.flatten(), strict=True)
        parts = [(field, make_column(f"{name}.{field}", part, first, options)) for field, part in fields]
        return lambda rows: {field: take(rows) for field, take in parts}
    if types.is_fixed_size_list(kind) and _is_rectangular(kind):
        return get_take(_to_rectangle(name, chunk, first, options), mapping=options.mapping)
    if _is_list(kind) and _is_number(kind.value_type):
        return _make_ragged(name, chunk, first, options)
    if _is_number(kind):
        return get_take(_to_numbers(chunk), mapping=options.mapping)
    return lambda rows: chunk.take(arrow.array(rows)).to_pylist()


def _is_number(kind: Any) -> bool:
    types = get_pyarrow().types
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def _is_text(kind: Any) -> bool:
    types = get_pyarrow().types
    return any(getattr(types, name)(kind) for name in _TEXT if hasattr(types, name)) or types.is_fixed_size_binary(kind)


def _is_list(kind: Any) -> bool:
    types = get_pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _is_rectangular(kind: Any) -> bool:
    while get_pyarrow().types.is_fixed_size_list(kind):
        kind = kind.value_type
    return _is_number(kind)


def _fill(name: str, chunk: Any, first: int, options: Options) -> Any:
    """Return the chunk without nulls, those inside of lists apart."""
    if not chunk.null_count:
        return chunk
    arrow = get_pyarrow()
    value = options.get_fill(name.partition(".")[0])
    row = first + int(chunk.is_null().index(True).as_py())
    if value is None or not (_is_number(chunk.type) or _is_text(chunk.type)):
        way = (
            "Give fill_null a value, or leave out such rows."
            if _is_number(chunk.type) or _is_text(chunk.type)
            else "Leave out such rows, or fill them before."
        )
        raise InvalidValueError(f"column {name!r} has a null in row {row}; expected a value in every row. {way}")
    try:
        return chunk.fill_null(arrow.scalar(value, chunk.type))
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError) as error:
        raise InvalidValueError(
            f"fill_null for column {name!r} is {value!r} ({error}); expected a value of type {chunk.type}."
        ) from error


def _to_numbers(chunk: Any) -> Any:
    is_boolean = get_pyarrow().types.is_boolean(chunk.type)  # one bit each
    return chunk.to_numpy(zero_copy_only=not is_boolean)


def _to_rectangle(name: str, chunk: Any, first: int, options: Options) -> Any:
    shape = [len(chunk)]
    while get_pyarrow().types.is_fixed_size_list(chunk.type):
        shape.append(chunk.type.list_size)
        chunk = _fill_list(name, chunk.flatten(), int(np.prod(shape[1:])), first, options)
    return _to_numbers(chunk).reshape(shape)


def _make_ragged(name: str, chunk: Any, first: int, options: Options) -> TakeRows:
    offsets = chunk.offsets.to_numpy()
    starts = offsets - offsets[0]
    values = chunk.flatten()
    if values.null_count:
        place = int(values.is_null().index(True).as_py())
        values = _fill(name, values, first + int(np.searchsorted(starts, place, "right")) - 1 - place, options)
    numbers = _to_numbers(values)

    def take(rows: Indices) -> list[Any]:
        ends = starts[1:][rows].tolist()
        return [numbers[start:end].copy() for start, end in zip(starts[:-1][rows].tolist(), ends, strict=True)]

    return take


def _fill_list(name: str, values: Any, length: int, first: int, options: Options) -> Any:
    """Return the values of lists without nulls; the row that is named in an error is that of the list."""
    if not values.null_count or length == 0:
        return values
    place = int(values.is_null().index(True).as_py())
    return _fill(name, values, first + place // length - place, options)
