"""One array of a checkpoint, and everything that is damaged in one, read piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from parhelion.errors import CheckpointError

from ._arrays import HostArray, aligned_empty
from ._entries import PartEntry, SplitEntry
from ._format import Manifest, unreadable
from ._reader import (  # one way to read and verify a piece, whoever asks
    _check_file,  # pyright: ignore[reportPrivateUsage]
    _read_array,  # pyright: ignore[reportPrivateUsage]
    _read_piece,  # pyright: ignore[reportPrivateUsage]
    _rows_in,  # pyright: ignore[reportPrivateUsage]
    _show,  # pyright: ignore[reportPrivateUsage]
    _stored_arrays,  # pyright: ignore[reportPrivateUsage]
)
from ._stores import store_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._places import Place

__all__ = ["find_damage", "read_array"]


def read_array(folder: Place, manifest: Manifest, name: str) -> HostArray:
    """Return one array of a checkpoint, verified.

    Raises:
        DamagedCheckpointError: its bytes are missing, or not what was written.
        CheckpointError: they cannot be read.
    """
    entry = manifest.arrays[name]
    if isinstance(entry, SplitEntry):
        return dict(_stored_arrays(folder, attrs.evolve(manifest, arrays={name: entry})))[name].read_all()
    try:
        with store_of(folder).open(folder, entry.file) as stream:
            return _read_array(folder, stream, name, entry, aligned_empty(entry.size))
    except OSError as error:
        raise unreadable(folder, entry.file, error) from error


def find_damage(folder: Place, manifest: Manifest) -> Iterator[CheckpointError]:
    """Yield an error for every file and every array that is not what was written."""
    for name, array in manifest.arrays.items():
        yield from _caught(_check_parts, folder, attrs.evolve(manifest, arrays={name: array}))
    for file, entry in manifest.files.items():
        try:
            rows = _rows_in(folder, file, entry, manifest)
            with store_of(folder).open(folder, file) as stream:
                yield from _caught(_check_file, folder, file, entry, stream)
                for name, row in rows:
                    shown = _show(name, row) if isinstance(row, PartEntry) else name
                    yield from _caught(_read_piece, folder, stream, shown, row)
        except CheckpointError as error:
            yield error
        except OSError as error:
            yield unreadable(folder, file, error)


def _check_parts(folder: Place, manifest: Manifest) -> None:
    for _ in _stored_arrays(folder, manifest):
        pass


def _caught(check: Callable[..., object], *arguments: object) -> Iterator[CheckpointError]:
    try:
        check(*arguments)
    except CheckpointError as error:
        yield error
