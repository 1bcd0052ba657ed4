"""What the files of a checkpoint say of its arrays: where their bytes lie, and the hashes of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

if TYPE_CHECKING:
    from ._scalars import Json

__all__ = [
    "ArrayEntry",
    "Entry",
    "FileEntry",
    "PartEntry",
    "SplitEntry",
    "entry_of",
    "is_in_parts",
    "pieces_of",
    "row_of",
]

_WHOLE: Final = ("file", "offset", "size", "dtype", "shape", "hash")
_PART: Final = ("file", "offset", "size", "start", "shape", "hash")


@attrs.frozen
class ArrayEntry:
    """Where one array lies, what it is, and the hash of its bytes. Offsets count from the file's begin."""

    file: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]
    hash: str
    strides: tuple[int, ...] | None = None


@attrs.frozen
class PartEntry:
    """Where a box of an array lies, which box it is, and the hash of its bytes."""

    file: str
    offset: int
    size: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    hash: str


@attrs.frozen
class SplitEntry:
    """An array that lies in parts, and what the whole of it is."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[PartEntry, ...]


@attrs.frozen
class FileEntry:
    """Size of one file of arrays, and size and hash of the header it begins with."""

    size: int
    header_size: int
    header_hash: str


Entry: TypeAlias = ArrayEntry | SplitEntry
Piece: TypeAlias = ArrayEntry | PartEntry


def is_in_parts(entry: Entry) -> bool:
    """Tell whether an array lies in parts."""
    return isinstance(entry, SplitEntry)


def pieces_of(arrays: Mapping[str, Entry]) -> Iterator[tuple[str, Piece]]:
    """Yield every run of bytes that has a hash of its own, beside the name of its array."""
    for name, entry in arrays.items():
        for piece in entry.parts if isinstance(entry, SplitEntry) else (entry,):
            yield name, piece


def row_of(entry: Entry) -> dict[str, Json]:
    """Return an entry as JSON."""
    if isinstance(entry, SplitEntry):
        parts = [{column: getattr(part, column) for column in _PART} for part in entry.parts]
        return {"dtype": entry.dtype, "shape": entry.shape, "parts": parts}
    row = {column: getattr(entry, column) for column in _WHOLE}
    return row if entry.strides is None else row | {"strides": entry.strides}


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Return the entry that ``row_of`` made a row of.

    Raises:
        LookupError, TypeError, ValueError: it is no such row.
    """
    if "parts" in row:
        parts = tuple(PartEntry(**_with_tuples(part, "start", "shape")) for part in row["parts"])
        return SplitEntry(row["dtype"], _integers(row["shape"]), parts)
    lists: dict[str, Any] = {column: tuple(row[column]) for column in ("shape", "strides") if column in row}
    return ArrayEntry(**(dict(row) | lists))


def _with_tuples(row: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    _integers((row["offset"], row["size"]))
    return dict(row) | {column: _integers(row[column]) for column in columns}


def _integers(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values!r} are no sizes")
    return tuple(values)
