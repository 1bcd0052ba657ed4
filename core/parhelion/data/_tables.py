"""Tables of Arrow and Parquet as datasets: a batch is gathered column by column."""

from __future__ import annotations

import collections
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._columns import Options, TakeRows, check_column, get_pyarrow, make_column
from ._params import check_known
from ._trees import Indices, group_rows, merge_rows

__all__ = ["ArrowDataset", "TableRows", "split_rows"]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any

_PARQUET: Final = b"PAR1"
_FILE: Final = b"ARROW1"


class ArrowDataset:
    """The rows of a table of Arrow, or of files of Arrow (also called Feather) or Parquet.

    A batch is a dict by column. Numbers and booleans become arrays with the column's dtype, fixed-size lists of k
    numbers arrays of shape (batch, k), other lists of numbers a list of arrays, text and bytes a list, structs a dict.

    Files of Arrow are mapped into memory: what is not touched is never read, unless they are compressed. Of Parquet
    whole row groups are read, as they are asked for, and as many kept as ``cache_bytes`` holds. With an order that
    jumps about in a file that is larger, each batch reads many of them: write it as Arrow for that. Pickled, files are
    paths, so that worker processes open the same ones.

    Args:
        source: a ``pyarrow.Table``, the path of a file, or several paths.
        columns: the names of those that are wanted; None takes all.
        fill_null: what stands for a null: a value, or values by the names of columns. A null is an error otherwise.
        cache_bytes: how much of Parquet is kept, counted as it is in memory.

    Raises:
        MissingExtraError: pyarrow is not installed.
        InvalidTypeError: the source is none of these, or a column has a type that has no place in a batch.
        InvalidValueError: a column is unknown or has a null, or a file is not there, of another kind, or with other
            columns than the first.
    """

    returns_batches = True
    global_rng = "off"
    is_table = True

    def __init__(
        self,
        source: Any,
        *,
        columns: Sequence[str] | None = None,
        fill_null: Any = None,
        cache_bytes: int = 2**28,
    ) -> None:
        arrow = get_pyarrow()
        if _is(source, (str, os.PathLike)):
            source = [source]
        if not _is(source, arrow.Table):
            if not _is(source, (list, tuple)) or not source or not all(map(_is_path, source)):
                raise InvalidTypeError(
                    f"source is a {type(source).__name__}; expected a pyarrow.Table, the path of a file of Arrow or "
                    "Parquet, or a list of paths."
                )
            source = [os.fspath(path) for path in source]
        if cache_bytes < 0:
            raise InvalidValueError(f"cache_bytes is {cache_bytes}; expected an integer >= 0.")
        self._source: Any = source
        self._columns = None if columns is None else list(columns)
        self._fill_null, self._cache_bytes = fill_null, cache_bytes
        self._open()

    def _open(self) -> None:
        source = self._source
        if not _is(source, list):
            self._rows: TableRows | _ParquetRows = TableRows(_select(source, self._columns), Options(self._fill_null))
        elif all(_read_magic(path) == _PARQUET for path in source):
            self._rows = _ParquetRows(source, self._columns, Options(self._fill_null), self._cache_bytes)
        else:
            tables = [_open_arrow(path, self._columns) for path in source]
            _check_same([(path, table.schema) for path, (table, _) in zip(source, tables, strict=True)])
            parts = [TableRows(table, Options(self._fill_null, mapping)) for table, mapping in tables]
            self._rows = parts[0] if len(parts) == 1 else TableRows.join(parts)

    def __len__(self) -> int:
        return self._rows.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.get_records([index])[0]

    def __getitems__(self, indices: Sequence[int] | Indices) -> dict[str, Any]:
        return cast("dict[str, Any]", self._rows.take(_check_rows(indices, self._rows.size)))

    def get_records(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the records with those indices, which are gathered together."""
        return split_rows(self.__getitems__(indices), len(indices))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class TableRows:
    """Rows of a table, whose chunks stay where they are.

    Args:
        table: a ``pyarrow.Table``.
        options: what to do with nulls.
        first: number of its first row in the whole, for errors.

    Attributes:
        size: number of rows.
        take: gives a batch of the rows with some indices, which are in range.

    Raises:
        InvalidTypeError: a column has a type that has no place in a batch.
        InvalidValueError: a column has a null.
    """

    def __init__(self, table: Any, options: Options, first: int = 0) -> None:
        if not table.num_columns:
            raise InvalidValueError("table has no column; expected at least one. Name those that are wanted.")
        for field in table.schema:
            check_column(field.name, field.type)
        takes: list[TakeRows] = []
        starts = [0]
        for batch in table.to_batches():
            takes.append(_make_take(batch, first + starts[-1], options))
            starts.append(starts[-1] + batch.num_rows)
        self._set(takes, starts)

    def _set(self, takes: list[TakeRows], starts: Sequence[int]) -> None:
        self.size = starts[-1]
        self.take: TakeRows = takes[0] if len(takes) == 1 else _join_takes(takes.__getitem__, starts)

    @classmethod
    def join(cls, parts: Sequence[TableRows]) -> TableRows:
        """Return the rows of several tables, one after the other."""
        joined = object.__new__(cls)
        starts = np.cumsum([0, *(part.size for part in parts)]).tolist()
        joined._set([part.take for part in parts], starts)
        return joined


class _ParquetRows:
    """Rows of files of Parquet, of which whole row groups are read and the last ones used are kept."""

    def __init__(self, paths: list[str], columns: Sequence[str] | None, options: Options, cache_bytes: int) -> None:
        parquet = get_pyarrow("pyarrow.parquet")
        self._files = [_open_parquet(parquet, path) for path in paths]
        schemas = [(path, file.schema_arrow) for path, file in zip(paths, self._files, strict=True)]
        if columns is not None:
            for _, schema in schemas:
                check_known(columns, schema.names, "column")
        _check_same(schemas)
        self._names = schemas[0][1].names if columns is None else columns
        for name in self._names:
            check_column(name, schemas[0][1].field(name).type)
        self._groups = [(file, k) for file in self._files for k in range(file.num_row_groups)]
        self._groups = [(file, k) for file, k in self._groups if file.metadata.row_group(k).num_rows]
        sizes = [file.metadata.row_group(k).num_rows for file, k in self._groups]
        self._starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self._options, self._cache_bytes = options, cache_bytes
        self._kept: collections.OrderedDict[int, tuple[TakeRows, int]] = collections.OrderedDict()
        self.size = self._starts[-1]
        self.take: TakeRows = _join_takes(self._get_group, self._starts)

    def _get_group(self, number: int) -> TakeRows:
        found = self._kept.pop(number, None)
        if found is None:
            file, k = self._groups[number]
            self._shrink(file.metadata.row_group(k).total_byte_size)
            table = file.read_row_group(k, columns=list(self._names)).select(list(self._names))
            found = TableRows(table, self._options, self._starts[number]).take, table.nbytes
        self._kept[number] = found
        self._shrink(0)
        return found[0]

    def _shrink(self, coming: int) -> None:
        """Let go of what was not used for longest, until what is coming fits in."""
        total = coming + sum(size for _, size in [*self._kept.values()])
        while total > self._cache_bytes and self._kept:
            total -= self._kept.popitem(last=False)[1][1]


def _join_takes(get_take: Callable[[int], TakeRows], starts: Sequence[int]) -> TakeRows:
    """Return what takes rows of several parts, one after the other; each that is needed is asked for once."""
    firsts = np.asarray(starts[:-1], np.int64)

    def take(rows: Indices) -> Any:
        if not len(rows):
            return get_take(0)(rows)
        groups = group_rows(np.searchsorted(firsts, rows, "right") - 1)
        if len(groups) == 1:
            number = groups[0][0]
            return get_take(number)(rows - firsts[number])
        parts = [(places, get_take(number)(rows[places] - firsts[number])) for number, places in groups]
        return merge_rows(parts, len(rows), [f"rows from {starts[number]} on" for number, _ in groups])

    return take


def split_rows(batch: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Return the records of a batch whose columns are arrays, lists, and dicts of these."""
    columns = {name: split_rows(column, size) if _is(column, dict) else column for name, column in batch.items()}
    return [{name: column[row] for name, column in columns.items()} for row in range(size)]


def _make_take(batch: Any, first: int, options: Options) -> TakeRows:
    pairs = zip(batch.schema.names, batch.columns, strict=True)
    parts = [(name, make_column(name, column, first, options)) for name, column in pairs]
    return lambda rows: {name: take(rows) for name, take in parts}


def _check_rows(indices: Sequence[int] | Indices, size: int) -> Indices:
    rows = np.asarray(indices, np.int64)
    if len(rows) and not 0 <= rows[rows.argmin()] <= rows[rows.argmax()] < size:
        bad = rows[(rows < 0) | (rows >= size)][0]
        raise IndexError(f"index is {bad}; expected one from 0 to {size - 1}.")
    return rows


def _is_path(value: object) -> bool:
    return _is(value, (str, os.PathLike))


def _read_magic(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise InvalidValueError(
            f"{path!r} cannot be read ({type(error).__name__}: {error}); expected a file of Arrow or Parquet."
        ) from error


def _open_parquet(parquet: Any, path: str) -> Any:
    try:
        # Reads its metadata only, and later from many threads and processes at places of their own.
        return parquet.ParquetFile(path)
    except (OSError, get_pyarrow().ArrowInvalid) as error:
        raise _no_table(path, error) from error


def _open_arrow(path: str, columns: Sequence[str] | None) -> tuple[Any, mmap.mmap]:
    arrow = get_pyarrow()
    magic = _read_magic(path)
    try:
        with Path(path).open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        buffer = arrow.py_buffer(mapping)
        is_file = _FILE.startswith(magic) and len(magic) > 0
        reader: Any = arrow.ipc.open_file(buffer) if is_file else arrow.ipc.open_stream(buffer)
        return _select(reader.read_all(), columns), mapping
    except (OSError, ValueError, arrow.ArrowInvalid) as error:
        if _is(error, InvalidValueError):
            raise
        raise _no_table(path, error) from error


def _no_table(path: str, error: Exception) -> InvalidValueError:
    return InvalidValueError(
        f"{path!r} cannot be read as a table ({type(error).__name__}: {error}); expected files of Arrow, or all of "
        "them of Parquet. Write it with pyarrow.feather.write_feather(table, path, compression='uncompressed')."
    )


def _select(table: Any, columns: Sequence[str] | None) -> Any:
    if columns is None:
        return table
    check_known(columns, table.schema.names, "column")
    return table.select(list(columns))


def _check_same(schemas: Iterable[tuple[str, Any]]) -> None:
    (first, expected), *others = schemas
    for path, schema in others:
        if not schema.equals(expected):
            raise InvalidValueError(
                f"columns of {path!r} are {_write(schema)} and those of {first!r} {_write(expected)}; expected the "
                "same. Make a dataset of each, and join them with ConcatDataset."
            )


def _write(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
