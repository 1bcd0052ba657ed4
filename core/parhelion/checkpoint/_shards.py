"""What each process writes of a checkpoint: a file of arrays, and a note of what is in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from parhelion.errors import CheckpointError

from ._arrays import HostArray, ShardedArray
from ._boxes import box_of, find_fault, show_box
from ._entries import ArrayEntry, Entry, FileEntry, PartEntry, SplitEntry, entry_of, row_of
from ._layout import failure_name, record_name
from ._paths import unique_name
from ._safetensors import lay_out
from ._seals import digest, dumps, hasher, is_sealed, sealed_json, table, unsealed_json

if TYPE_CHECKING:
    from ._places import Place
    from ._stores import Store

__all__ = ["Shard", "await_shards", "gather_entries", "leave_failure", "leave_record", "rename_files", "write_arrays"]

# Hashing and writing one piece after the other finds it still in the processor's cache.
_CHUNK: Final = 1 << 22
_LONGEST_PAUSE: Final = 25


@attrs.frozen
class Shard:
    """What one process has written: a file, or none, and the arrays and parts in it."""

    rank: int
    files: dict[str, FileEntry]
    arrays: dict[str, Entry]


@attrs.frozen
class _Piece:
    """An array, or a part of one, on its way into a file."""

    name: str
    start: tuple[int, ...] | None
    array: HostArray


def write_arrays(store: Store, scratch: Place, rank: int, arrays: Mapping[str, HostArray | ShardedArray]) -> Shard:
    """Write what this process has of the arrays: its parts, and in the first process the whole ones too.

    The first process always writes a file, the others only if there is something in it.

    Raises:
        OSError: that failed.
    """
    pieces = _pieces(arrays, with_wholes=rank == 0)
    splits = {name: array for name, array in arrays.items() if isinstance(array, ShardedArray)}
    if rank and not pieces:
        return Shard(rank, {}, {name: SplitEntry(array.dtype, array.shape, ()) for name, array in splits.items()})
    header, starts = lay_out({label: piece.array for label, piece in pieces.items()})
    size = len(header) + sum(piece.array.data.size for piece in pieces.values())
    folder, file = store.home(scratch, rank)
    entries: dict[str, ArrayEntry | PartEntry] = {}
    with store.create(folder, file, size) as stream:
        stream.write(header)
        for label, offset in starts.items():
            entries[label] = _write_piece(stream, file, offset, pieces[label])
    return Shard(rank, {file: FileEntry(size, len(header), digest(header))}, _by_array(arrays, pieces, entries))


def _pieces(arrays: Mapping[str, HostArray | ShardedArray], *, with_wholes: bool) -> dict[str, _Piece]:
    """Return what goes into the file, by names that the file's own header can use."""
    pieces: dict[str, _Piece] = {}
    for name, array in arrays.items():
        if isinstance(array, HostArray):
            if with_wholes:
                pieces[unique_name(name, pieces)] = _Piece(name, None, array)
            continue
        for part in array.parts:
            label = name + show_box(box_of(part.start, part.array.shape))
            # What has no elements needs no place.
            if 0 not in part.array.shape:
                pieces[unique_name(label, pieces)] = _Piece(name, part.start, part.array)
    return pieces


def _write_piece(stream: Any, file: str, offset: int, piece: _Piece) -> ArrayEntry | PartEntry:
    array, state = piece.array, hasher()
    for begin in range(0, array.data.size, _CHUNK):
        chunk = array.data[begin : begin + _CHUNK].data
        state.update(chunk)
        stream.write(chunk)
    size, bits = array.data.size, state.hexdigest()
    if piece.start is None:
        return ArrayEntry(file, offset, size, array.dtype, array.shape, bits, array.strides)
    return PartEntry(file, offset, size, piece.start, array.shape, bits)


def _by_array(
    arrays: Mapping[str, HostArray | ShardedArray],
    pieces: Mapping[str, _Piece],
    entries: Mapping[str, ArrayEntry | PartEntry],
) -> dict[str, Entry]:
    """Return what was written, by the names of the arrays: the parts of one together."""
    found: dict[str, Entry] = {}
    parts: dict[str, list[PartEntry]] = {name: [] for name in arrays}
    for label, entry in entries.items():
        if isinstance(entry, PartEntry):
            parts[pieces[label].name].append(entry)
        else:
            found[pieces[label].name] = entry
    for name, array in arrays.items():
        if isinstance(array, ShardedArray):
            found[name] = SplitEntry(array.dtype, array.shape, tuple(parts[name]))
    return found


def leave_record(store: Store, scratch: Place, shard: Shard) -> None:
    """Note in the scratch folder what this process has written, for the first one."""
    sections = {
        "rank": dumps(shard.rank),
        "files": table({name: attrs.asdict(entry) for name, entry in shard.files.items()}),
        "arrays": table({name: row_of(entry) for name, entry in shard.arrays.items()}),
    }
    store.put(scratch, record_name(shard.rank), sealed_json(sections))


def leave_failure(store: Store, scratch: Place, rank: int, reason: str) -> None:
    """Note in the scratch folder that this process has failed, as far as that is possible."""
    # On a full disk there may be room for a name, and for nothing else.
    for text in (reason, ""):
        with contextlib.suppress(OSError):
            store.put(scratch, failure_name(rank), text.encode(errors="replace"))
            return


def await_shards(store: Store, scratch: Place, ranks: int, check: Callable[[], object]) -> Iterator[Shard]:
    """Yield what the processes from the second on have written, once they have.

    Args:
        store: where that is.
        scratch: the scratch folder.
        ranks: how many processes there are.
        check: called between two looks; raises if one of them is gone.

    Raises:
        CheckpointError: one of them has failed.
    """
    waiting, pause = set(range(1, ranks)), 1
    while waiting:
        there = set(store.files(scratch))
        for rank in sorted(waiting):
            if failure_name(rank) in there:
                raise _failure(rank, store.read(scratch, failure_name(rank)).decode(errors="replace"))
            if record_name(rank) in there:
                waiting.remove(rank)
                yield _read_record(rank, store.read(scratch, record_name(rank)))
        if waiting:
            check()
            time.sleep(pause * store.patience)
            pause = min(pause + 1, _LONGEST_PAUSE)


def _failure(rank: int, reason: str) -> CheckpointError:
    return CheckpointError(
        f"rank {rank} could not write its part of the checkpoint ({reason or 'and had no room to say why'}); expected "
        "every rank to. What was there before is untouched: look at that rank's log, and save again."
    )


def _read_record(rank: int, raw: bytes) -> Shard:
    try:
        content = unsealed_json(raw if is_sealed(raw) else b"")
        files = {name: FileEntry(**row) for name, row in content["files"].items()}
        return Shard(content["rank"], files, {name: entry_of(row) for name, row in content["arrays"].items()})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"what rank {rank} has noted of its part of the checkpoint is not what it wrote ({error}); expected "
            "all ranks to run the same release on one file system. Save again."
        ) from error


def rename_files(shards: Sequence[Shard], names: Mapping[str, str]) -> list[Shard]:
    """Return the shards with the names that their files will have in the checkpoint."""
    return [
        Shard(
            shard.rank,
            {names[file]: entry for file, entry in shard.files.items()},
            {name: _rename(entry, names) for name, entry in shard.arrays.items()},
        )
        for shard in shards
    ]


def _rename(entry: Entry, names: Mapping[str, str]) -> Entry:
    if isinstance(entry, SplitEntry):
        parts = tuple(attrs.evolve(part, file=names[part.file]) for part in entry.parts)
        return attrs.evolve(entry, parts=parts)
    return attrs.evolve(entry, file=names[entry.file])


def gather_entries(shards: Sequence[Shard]) -> tuple[dict[str, Entry], dict[str, FileEntry]]:
    """Return all arrays and all files of a checkpoint. The first process says which arrays there are.

    Raises:
        CheckpointError: the processes do not have the same arrays, or their parts do not make an array up.
    """
    first, *others = shards
    arrays = dict(first.arrays)
    parts = {name: list(entry.parts) for name, entry in arrays.items() if isinstance(entry, SplitEntry)}
    for shard in others:
        for name, entry in shard.arrays.items():
            here = arrays.get(name)
            if not isinstance(entry, SplitEntry) or not isinstance(here, SplitEntry) or _kind(here) != _kind(entry):
                raise _mismatch(shard.rank, name, here, entry)
            parts[name] += entry.parts
    for name, found in parts.items():
        here = arrays[name]
        fault = find_fault(here.shape, [box_of(part.start, part.shape) for part in found])
        if fault is not None:
            raise CheckpointError(
                f"array {name} of shape {here.shape} is not made up by the parts that {len(shards)} processes have "
                f"written: {fault}; expected every element in exactly one part. Look at what the adapter returns "
                "on every process."
            )
        arrays[name] = SplitEntry(here.dtype, here.shape, tuple(found))
    return arrays, {file: entry for shard in shards for file, entry in shard.files.items()}


def _kind(entry: Entry) -> tuple[str, tuple[int, ...]]:
    return entry.dtype, entry.shape


def _mismatch(rank: int, name: str, here: Entry | None, there: Entry) -> CheckpointError:
    def show(entry: Entry | None) -> str:
        if entry is None:
            return "nothing"
        how = "in parts" if isinstance(entry, SplitEntry) else "whole"
        return f"{entry.dtype} of shape {entry.shape}, {how}"

    return CheckpointError(
        f"array {name} is {show(there)} on rank {rank} and {show(here)} on rank 0; expected the same on every rank. "
        "Give all ranks the same model, and save in the same step."
    )
