"""Bytes on disk to a verified state: every size and every hash is checked before anything is handed out."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from parhelion.errors import CheckpointError, InvalidValueError

from ._arrays import HostArray, align, aligned_empty
from ._format import (
    MANIFEST,
    SHARD,
    ArrayEntry,
    FileEntry,
    Manifest,
    damaged,
    digest,
    hasher,
    malformed,
    read_manifest,
    unreadable,
)
from ._tree import unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO

    import numpy as np
    import numpy.typing as npt

    from ._arrays import ArrayAdapter

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint"]

# Hashing a piece right after reading it finds it still in the processor's cache.
_CHUNK: Final = 1 << 20
# From 4 MB on NumPy asks for huge pages, without which touching new memory costs more than reading the file.
# Not much more than that, for an array that is kept holds on to its whole slab.
_SLAB: Final = 1 << 23
_Row: TypeAlias = "tuple[str, ArrayEntry]"


@attrs.frozen
class Checkpoint:
    """A state that was loaded, what was noted about it, and where it came from."""

    tree: Any
    meta: dict[str, Any]
    path: Path


def load_checkpoint(path: Path | str, adapter: ArrayAdapter | None = None) -> Checkpoint:
    """Return the checkpoint at ``path``, verified bit for bit.

    Every array is writable, overlaps no other and lies at a 64-byte boundary; it was read once, not copied.

    Raises:
        DamagedCheckpointError: a file is missing, or a size or a hash is not what was written.
        CheckpointVersionError: a newer release wrote it.
        CheckpointMismatchError: it holds values that the classes or the arrays here do not take.
        CheckpointError: there is no checkpoint at ``path``, or it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint is {str(folder)!r}; expected an existing folder with {MANIFEST} in it. Check the "
            "path, or let find_last_checkpoint find one."
        )
    return read_checkpoint(folder, adapter)


def read_checkpoint(folder: Path, adapter: ArrayAdapter | None) -> Checkpoint:
    """Return what ``load_checkpoint`` does; a folder that has vanished counts as damaged."""
    manifest = read_manifest(folder)
    arrays: dict[str, HostArray] = {}
    for file, entry in manifest.files.items():
        arrays.update(_read_file(folder, file, entry, manifest))
    return Checkpoint(unflatten(manifest.tree, arrays, adapter), manifest.meta, folder)


def _read_file(folder: Path, file: str, entry: FileEntry, manifest: Manifest) -> dict[str, HostArray]:
    if not SHARD.fullmatch(file):
        raise malformed(folder, ValueError(f"{file!r} is no name for a file of arrays"))
    rows = sorted(
        ((name, row) for name, row in manifest.arrays.items() if row.file == file),
        key=lambda item: (item[1].offset, item[1].size),
    )
    _check_tiling(folder, entry, [row for _, row in rows])
    try:
        with (folder / file).open("rb", buffering=0) as stream:
            found = os.fstat(stream.fileno()).st_size
            if found != entry.size:
                raise damaged(folder, f"{file} has {found} bytes instead of {entry.size}")
            if digest(stream.read(entry.header_size)) != entry.header_hash:
                raise damaged(folder, f"the header of {file} is not what was written (its hash differs)")
            return {
                name: _read_array(folder, stream, name, row, data)
                for group in _group(rows)
                for (name, row), data in zip(group, _memory([row.size for _, row in group]), strict=True)
            }
    except OSError as error:
        raise unreadable(folder, file, error) from error


def _check_tiling(folder: Path, entry: FileEntry, rows: Sequence[ArrayEntry]) -> None:
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


def _memory(sizes: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield aligned pieces of these sizes from one allocation."""
    starts = list(itertools.accumulate((align(size) for size in sizes), initial=0))
    slab = aligned_empty(starts[-1])
    for start, size in zip(starts, sizes, strict=False):
        yield slab[start : start + size]


def _read_array(folder: Path, stream: FileIO, name: str, row: ArrayEntry, data: npt.NDArray[np.uint8]) -> HostArray:
    state, position = hasher(), 0
    while position < row.size:
        chunk = data[position : position + _CHUNK].data
        count = stream.readinto(chunk)
        if not count:
            raise damaged(folder, f"{row.file} ends within the array {name}")
        state.update(chunk[:count])
        position += count
    if state.hexdigest() != row.hash:
        raise damaged(folder, f"the array {name} in {row.file} is not what was written (its hash differs)")
    try:
        return HostArray(row.dtype, row.shape, data, row.strides)
    except InvalidValueError as error:
        raise malformed(folder, error) from error
