"""Bytes on disk to a verified state: every size and every hash is checked before anything is handed out."""

from __future__ import annotations

import functools
import itertools
import os
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from parhelion.errors import CheckpointError, InvalidValueError

from ._arrays import HostArray, align, aligned_empty
from ._boxes import box_of, show_box
from ._entries import ArrayEntry, FileEntry, PartEntry, SplitEntry, pieces_of
from ._format import MALFORMED, Manifest, damaged, malformed, read_manifest, unreadable
from ._layout import MANIFEST, SHARD
from ._places import Place, RemotePath, as_place
from ._seals import digest, hasher
from ._stored import StoredArray, StoredDecoder, StoredPart, element_size, stored_from_parts
from ._stores import store_of
from ._tree import unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from ._arrays import ArrayAdapter
    from ._places import Where
    from ._stores import Stream
    from ._tree import AnyArray

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint"]

# Hashing a piece right after reading it finds it still in the processor's cache.
_CHUNK: Final = 1 << 20
# From 4 MB on NumPy asks for huge pages, without which touching new memory costs more than reading the file.
# Not much more than that, for an array that is kept holds on to its whole slab.
_SLAB: Final = 1 << 23
_Row: TypeAlias = "tuple[str, ArrayEntry]"
_Bytes: TypeAlias = "npt.NDArray[np.uint8]"


@attrs.frozen
class Checkpoint:
    """A state that was loaded, what was noted about it, and where it came from."""

    tree: Any
    meta: dict[str, Any]
    path: Path | RemotePath


def load_checkpoint(path: Where, adapter: ArrayAdapter | None = None, *, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Return the checkpoint at ``path``, verified bit for bit; any number of processes may have written it.

    Every array is writable, overlaps no other and lies at a 64-byte boundary; it was read once, not copied.
    One that lies in parts is put together, unless the adapter has ``decode_stored`` (see ``StoredDecoder``): then
    its parts are verified here too, and read again as far as they are wanted.

    Args:
        path: the checkpoint.
        adapter: what makes the framework's arrays.
        share: (rank, size) of processes that load it together, each of which verifies its share of the parts that it
            need not read. What one of them finds is told to no other: compare notes before going on.

    Raises:
        DamagedCheckpointError: a file is missing, or a size or a hash is not what was written.
        CheckpointVersionError: a newer release wrote it.
        CheckpointMismatchError: it holds values that the classes or the arrays here do not take.
        CheckpointError: there is no checkpoint at ``path``, or it cannot be read.
    """
    folder = as_place(path)
    _check_share(share)
    try:
        is_there = store_of(folder).is_folder(folder)
    except OSError as error:
        raise unreadable(folder, MANIFEST, error) from error
    if not is_there:
        raise CheckpointError(
            f"checkpoint is {str(folder)!r}; expected an existing folder with {MANIFEST} in it. Check the "
            "path, or let find_last_checkpoint find one."
        )
    return read_checkpoint(folder, adapter, share)


def _check_share(share: tuple[int, int]) -> None:
    rank, size = share
    if not 0 <= rank < size:
        raise InvalidValueError(f"share is {share}; expected (rank, size) with 0 <= rank < size. Pass (0, 1) for one.")


def read_checkpoint(folder: Place, adapter: ArrayAdapter | None, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Return what ``load_checkpoint`` does; a folder that has vanished counts as damaged."""
    manifest = read_manifest(folder)
    arrays: dict[str, AnyArray] = dict(_stored_arrays(folder, manifest))
    is_lazy = isinstance(adapter, StoredDecoder)
    for number, (file, entry) in enumerate(manifest.files.items()):
        rows = _rows_in(folder, file, entry, manifest)
        is_mine = number % share[1] == share[0]
        if not is_lazy or is_mine or any(isinstance(row, ArrayEntry) for _, row in rows):
            arrays.update(_read_file(folder, file, entry, rows, verify_parts=is_lazy and is_mine))
    if not is_lazy:
        arrays = {name: array.read_all() if isinstance(array, StoredArray) else array for name, array in arrays.items()}
    return Checkpoint(unflatten(manifest.tree, arrays, adapter), manifest.meta, folder)


def _stored_arrays(folder: Place, manifest: Manifest) -> Iterator[tuple[str, StoredArray]]:
    """Yield the arrays that lie in parts, once these are known to make them up."""
    for name, entry in manifest.arrays.items():
        if not isinstance(entry, SplitEntry):
            continue
        try:
            if not {part.file for part in entry.parts} <= manifest.files.keys():
                raise ValueError("a part is in a file that is not listed")
            parts = [
                StoredPart(box_of(part.start, part.shape), functools.partial(_fetch_part, folder, name, part))
                for part in entry.parts
            ]
            yield name, stored_from_parts(entry.dtype, entry.shape, parts, element_size(entry.parts))
        except MALFORMED as error:
            raise malformed(folder, ValueError(f"array {name}: {error}")) from error


def _rows_in(
    folder: Place, file: str, entry: FileEntry, manifest: Manifest
) -> list[tuple[str, ArrayEntry | PartEntry]]:
    """Return what lies in a file, in its order there, once that is known to be all of the file."""
    if not SHARD.fullmatch(file):
        raise malformed(folder, ValueError(f"{file!r} is no name for a file of arrays"))
    rows = [(name, row) for name, row in pieces_of(manifest.arrays) if row.file == file]
    rows.sort(key=lambda item: (item[1].offset, item[1].size))
    _check_tiling(folder, entry, [row for _, row in rows])
    return rows


def _read_file(
    folder: Place,
    file: str,
    entry: FileEntry,
    rows: Sequence[tuple[str, ArrayEntry | PartEntry]],
    *,
    verify_parts: bool,
) -> dict[str, HostArray]:
    """Return the whole arrays of a file, and verify the parts in it that nobody is about to read."""
    wholes = [(name, row) for name, row in rows if isinstance(row, ArrayEntry)]
    parts = [(name, row) for name, row in rows if isinstance(row, PartEntry)]
    arrays: dict[str, HostArray] = {}
    try:
        with store_of(folder).open(folder, file) as stream:
            _check_file(folder, file, entry, stream)
            for group in _group(wholes):
                for (name, row), data in zip(group, _memory([row.size for _, row in group]), strict=True):
                    arrays[name] = _read_array(folder, stream, name, row, data)
            for name, part in parts if verify_parts else ():
                _read_piece(folder, stream, _show(name, part), part)
    except OSError as error:
        raise unreadable(folder, file, error) from error
    return arrays


def _check_file(folder: Place, file: str, entry: FileEntry, stream: Stream) -> None:
    found = stream.seek(0, os.SEEK_END)
    if found != entry.size:
        raise damaged(folder, f"{file} has {found} bytes instead of {entry.size}")
    stream.seek(0)
    if digest(stream.read(entry.header_size) or b"") != entry.header_hash:
        raise damaged(folder, f"the header of {file} is not what was written (its hash differs)")


def _check_tiling(folder: Place, entry: FileEntry, rows: Sequence[ArrayEntry | PartEntry]) -> None:
    """Refuse a manifest whose arrays leave bytes of the file unchecked, or overlap."""
    position = entry.header_size
    for row in rows:
        if row.offset != position or row.size < 0:
            raise malformed(folder, ValueError(f"an array lies at {row.offset} instead of {position}"))
        position += row.size
    if position != entry.size:
        raise malformed(folder, ValueError(f"the arrays end at {position} instead of {entry.size}"))


def _group(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yield runs of arrays that share one allocation."""
    group: list[_Row] = []
    size = 0
    for name, row in rows:
        if group and size + row.size > _SLAB:
            yield group
            group, size = [], 0
        group.append((name, row))
        size += row.size
    if group:
        yield group


def _memory(sizes: Sequence[int]) -> Iterator[_Bytes]:
    """Yield aligned pieces of these sizes from one allocation."""
    starts = list(itertools.accumulate((align(size) for size in sizes), initial=0))
    slab = aligned_empty(starts[-1])
    for start, size in zip(starts, sizes, strict=False):
        yield slab[start : start + size]


def _read_array(folder: Place, stream: Stream, name: str, row: ArrayEntry, data: _Bytes) -> HostArray:
    _read_piece(folder, stream, name, row, data)
    try:
        return HostArray(row.dtype, row.shape, data, row.strides, is_fresh=True)
    except InvalidValueError as error:
        raise malformed(folder, error) from error


def _fetch_part(folder: Place, name: str, row: PartEntry, data: _Bytes) -> None:
    try:
        with store_of(folder).open(folder, row.file) as stream:
            _read_piece(folder, stream, _show(name, row), row, data)
    except OSError as error:
        raise unreadable(folder, row.file, error) from error


def _show(name: str, row: PartEntry) -> str:
    return f"{name}{show_box(box_of(row.start, row.shape))}"


def _read_piece(
    folder: Place, stream: Stream, shown: str, row: ArrayEntry | PartEntry, data: _Bytes | None = None
) -> None:
    """Read an array or a part of one, into ``data`` if there is any, and verify its hash."""
    state, position = hasher(), 0
    # Without a place for it, all goes through one chunk.
    memory = aligned_empty(min(row.size, _CHUNK)) if data is None else data
    stream.seek(row.offset)
    while position < row.size:
        begin = 0 if data is None else position
        chunk = memory[begin : begin + min(_CHUNK, row.size - position)].data
        count = stream.readinto(chunk)
        if not count:
            raise damaged(folder, f"{row.file} ends within the array {shown}")
        state.update(chunk[:count])
        position += count
    if state.hexdigest() != row.hash:
        raise damaged(folder, f"the array {shown} in {row.file} is not what was written (its hash differs)")
