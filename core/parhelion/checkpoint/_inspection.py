"""Looking at checkpoints without opening them: what is in one, and whether all of it is what was written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs

from parhelion.errors import CheckpointError

from ._entries import SplitEntry, pieces_of
from ._format import read_manifest
from ._layout import MANIFEST
from ._names import looks_like_one
from ._pieces import find_damage
from ._pins import is_pinned
from ._places import as_place
from ._stores import store_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._entries import Entry
    from ._places import Place, Where

__all__ = ["ArraySummary", "Problem", "Summary", "as_table", "show", "verify"]


@attrs.frozen
class ArraySummary:
    """One array of a checkpoint.

    Attributes:
        name: where it lies in the tree.
        dtype: the element type's name.
        shape: the size of every axis.
        size: in bytes.
        parts: in how many parts it lies; 1 for one that is whole.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    parts: int


@attrs.frozen
class Summary:
    """What a checkpoint says of itself. As text it reads well.

    Attributes:
        path: where it lies.
        iteration: batches trained.
        epoch: epochs begun.
        is_pinned: whether it stays whatever the rules of retention say.
        meta: what was noted with it.
        arrays: in the order of their names.
        files: bytes by the name of a file.
    """

    path: str
    iteration: int
    epoch: int
    is_pinned: bool
    meta: dict[str, Any]
    arrays: tuple[ArraySummary, ...]
    files: dict[str, int]

    @property
    def size(self) -> int:
        """The bytes of all arrays."""
        return sum(array.size for array in self.arrays)

    def __str__(self) -> str:
        known = {"run_name", "global_epoch", "global_iteration"}
        lines = [
            f"checkpoint {self.path}{' (pinned)' if self.is_pinned else ''}",
            f"  run {self.meta['run_name']!r}, epoch {self.epoch}, iteration {self.iteration}",
            f"  {len(self.arrays)} arrays, {_amount(self.size)}, in {len(self.files)} file(s)",
            *(f"  {name}: {value!r}" for name, value in self.meta.items() if name not in known),
        ]
        rows = [
            (each.name, each.dtype, "x".join(map(str, each.shape)) or "scalar", _amount(each.size), _in_parts(each))
            for each in self.arrays
        ]
        return "\n".join([*lines, *as_table(("array", "dtype", "shape", "size", ""), rows)])


def show(path: Where) -> Summary:
    """Return what a checkpoint holds, without reading the bytes of an array.

    Raises:
        DamagedCheckpointError: its manifest is not what was written.
        CheckpointVersionError: a newer release wrote it.
        CheckpointError: there is none at ``path``, or it cannot be read.
    """
    place = as_place(path)
    manifest = read_manifest(place)
    arrays = tuple(_summary_of(name, entry) for name, entry in sorted(manifest.arrays.items()))
    return Summary(
        path=str(place),
        iteration=manifest.meta["global_iteration"],
        epoch=manifest.meta["global_epoch"],
        is_pinned=is_pinned(place),
        meta=manifest.meta,
        arrays=arrays,
        files={file: entry.size for file, entry in manifest.files.items()},
    )


def _summary_of(name: str, entry: Entry) -> ArraySummary:
    size = sum(piece.size for _, piece in pieces_of({name: entry}))
    parts = len(entry.parts) if isinstance(entry, SplitEntry) else 1
    return ArraySummary(name, entry.dtype, entry.shape, size, parts)


@attrs.frozen
class Problem:
    """Something about a checkpoint that is not as it was written.

    Attributes:
        path: the checkpoint.
        error: what reading it would raise.
    """

    path: str
    error: CheckpointError

    def __str__(self) -> str:
        return str(self.error)


def verify(path: Where) -> list[Problem]:
    """Return everything that is wrong with a checkpoint, or with any in a folder of them; nothing if all is sound.

    Every byte is read, and every damaged array is named, not the first alone.

    Raises:
        CheckpointError: there is no checkpoint at ``path`` or in it, or it cannot be listed.
    """
    place = as_place(path)
    store = store_of(place)
    try:
        is_one = MANIFEST in store.files(place) or looks_like_one(place.name)
        folders: list[Place] = [place] if is_one and store.is_folder(place) else [*_checkpoints_in(place)]
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be listed ({error.strerror or error}); expected a readable folder. Check its permissions."
        ) from error
    if not folders:
        raise CheckpointError(
            f"{str(place)!r} is no checkpoint and holds none; expected a checkpoint, or a folder of some. Check the "
            "path."
        )
    return [Problem(str(folder), error) for folder in folders for error in _damage_of(folder)]


def _checkpoints_in(root: Place) -> Iterator[Place]:
    store = store_of(root)
    for folder in store.folders(root):
        if looks_like_one(folder.name) or MANIFEST in store.files(folder):
            yield folder


def _damage_of(folder: Place) -> Iterator[CheckpointError]:
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        yield error
        return
    yield from find_damage(folder, manifest)


def as_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines in which the cells of a column begin one under the other; nothing if there is no row."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]


def _amount(size: int) -> str:
    """Return a number of bytes as people read it, in powers of 1000."""
    power = min(int(math.log10(size)) // 3, 4) if size else 0
    return f"{size} B" if power == 0 else f"{size / 1000**power:.2f} {' kMGT'[power]}B"


def _in_parts(array: ArraySummary) -> str:
    return f"in {array.parts} parts" if array.parts > 1 else ""
