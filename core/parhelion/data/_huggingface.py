"""Hugging Face's datasets: a batch is gathered from their Arrow table at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from parhelion.errors import InvalidTypeError

from ._columns import Options, get_pyarrow
from ._tables import TableRows, split_rows
from ._trees import Indices

__all__ = ["HuggingFaceDataset", "is_huggingface"]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any

_OWN: Final = ("torch", "jax", "tensorflow")


class HuggingFaceDataset:
    """The records of a ``datasets.Dataset``, of which a batch is gathered at once.

    What was done to the dataset holds: ``select``, ``shuffle``, ``filter``, and the columns of ``set_format``. A batch
    is a dict by column. Its dtypes are those of the dataset's own "numpy" format, and of collation: int64, float32,
    bool, unless the format has a ``dtype``. Lists that are equally long in all of the dataset become an array with an
    axis more, others a list of arrays, text a list. Use :class:`ArrowDataset` on ``dataset.data.table`` for the
    columns' own dtypes.

    With the formats "torch", "jax" and "tensorflow" batches are what the dataset itself returns. With a transform of
    its own (``set_transform``), and where it decodes images or sound, records are asked for together and returned as a
    list, to be collated.

    Args:
        dataset: the ``datasets.Dataset``.
        fill_null: what stands for a null: a value, or values by the names of columns. A null is an error otherwise.

    Attributes:
        dataset: the same.
        returns_batches: whether batches are returned, or lists of records.

    Raises:
        InvalidTypeError: it is none, or a column has a type that has no place in a batch.
        InvalidValueError: a column has a null.
    """

    def __init__(self, dataset: Any, *, fill_null: Any = None) -> None:
        if not is_huggingface(dataset):
            raise InvalidTypeError(
                f"dataset is a {type(dataset).__name__}; expected a datasets.Dataset. Of a DatasetDict pass one split, "
                "such as dataset['train']; an IterableDataset is a stream."
            )
        self.dataset = dataset
        self._fill_null = fill_null
        self._open()

    def _open(self) -> None:
        form = self.dataset.format
        kind, options = form["type"], form["format_kwargs"]
        self._is_direct = (
            kind in (None, "numpy") and set(options) <= {"dtype"} and not _decodes(dict(self.dataset.features))
        )
        self.returns_batches = self._is_direct or kind in _OWN
        # Its own formatters, decoders and transforms may draw.
        self.global_rng = "off" if self._is_direct else "batch"
        self.is_table = self._is_direct
        if not self._is_direct:
            return
        wanted = set(self.dataset.column_names if form["output_all_columns"] else form["columns"])
        table = self.dataset.data.table.select([name for name in self.dataset.column_names if name in wanted])
        self._rows = TableRows(_fix_lists(table), Options(self._fill_null))
        mapping: Any = self.dataset._indices  # noqa: SLF001 - there is no public way to ask for the order alone
        self._order = None if mapping is None else mapping.column(0).to_numpy().view(np.int64)
        dtype = options.get("dtype")
        self._dtype = None if dtype is None else np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.get_records([index])[0] if self._is_direct else self.dataset[index]

    def __getitems__(self, indices: Sequence[int] | Indices) -> Any:
        if self._is_direct:
            return self._gather(indices)
        if self.returns_batches:
            return self.dataset[np.asarray(indices, np.int64).tolist()]
        return self.dataset.__getitems__(list(indices))

    def get_records(self, indices: Sequence[int]) -> list[Any]:
        """Return the records with those indices, which are gathered together."""
        if self._is_direct:
            return split_rows(self._gather(indices), len(indices))
        records: list[Any] = self.dataset.__getitems__([*indices])
        return records

    def _gather(self, indices: Sequence[int] | Indices) -> Any:
        rows = np.asarray(indices, np.int64)
        size = len(self.dataset)
        if len(rows) and not 0 <= rows.min() <= rows.max() < size:
            raise IndexError(f"index is {rows[(rows < 0) | (rows >= size)][0]}; expected one from 0 to {size - 1}.")
        return self._cast(self._rows.take(rows if self._order is None else self._order[rows]))

    def _cast(self, column: Any) -> Any:
        if _is(column, dict):
            return {name: self._cast(part) for name, part in column.items()}
        if _is(column, list):
            return [*map(self._cast, column)] if column and _is(column[0], np.ndarray) else column
        kind = column.dtype.kind
        if kind == "b":
            return column
        return column.astype(self._dtype or (np.float32 if kind == "f" else np.int64), copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "_fill_null": self._fill_null}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def is_huggingface(dataset: Any) -> bool:
    """Return whether it is a ``datasets.Dataset``; nothing is imported for that."""
    return any(
        base.__name__ == "Dataset" and base.__module__ == "datasets.arrow_dataset" for base in type(dataset).__mro__
    )


def _decodes(feature: Any) -> bool:
    """Return whether a feature, or one in it, is more than what the table has: an image, a sound, a translation."""
    if _is(feature, Mapping):
        return any(map(_decodes, feature.values()))
    if _is(feature, (list, tuple)):
        return any(map(_decodes, feature))
    if hasattr(feature, "decode_example"):
        return True
    return hasattr(feature, "feature") and _decodes(feature.feature)


def _fix_lists(table: Any) -> Any:
    """Return the table with fixed-size lists for those that are equally long in all rows; no value is copied."""
    arrow = get_pyarrow()
    columns = [arrow.chunked_array(_fix([*column.chunks])) if column.num_chunks else column for column in table.columns]
    return arrow.table(columns, names=table.column_names)


def _fix(chunks: list[Any]) -> list[Any]:
    arrow = get_pyarrow()
    kind = chunks[0].type
    if _is(kind, arrow.BaseExtensionType):
        return _fix([chunk.storage for chunk in chunks])
    is_list = arrow.types.is_list(kind) or arrow.types.is_large_list(kind)
    if not is_list or any(chunk.null_count for chunk in chunks):
        return chunks
    lengths = {int(n) for chunk in chunks for n in np.unique(np.diff(chunk.offsets.to_numpy()))}
    if len(lengths) != 1 or 0 in lengths:
        return chunks
    values = _fix([chunk.flatten() for chunk in chunks])
    return [arrow.FixedSizeListArray.from_arrays(each, *lengths) for each in values]
