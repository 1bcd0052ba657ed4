"""A flat state to verified bytes, atomically: a checkpoint is there whole or not at all.

Several processes write one checkpoint together without a word to each other: the scratch folder that the first one
makes is where they meet. Each writes its file there, then a note of what is in it; the first one waits for all
notes, writes the manifest and commits.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, overload

from parhelion.errors import CheckpointError

from ._format import encode_meta, manifest_bytes
from ._layout import LAST
from ._names import check_name
from ._places import Place, as_place
from ._seals import dumps
from ._shards import (
    await_shards,
    gather_entries,
    leave_failure,
    leave_record,
    rename_files,
    write_arrays,
)
from ._stores import store_of
from ._tree import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from ._arrays import ArrayAdapter, HostArray, ShardedArray
    from ._places import RemotePath, Where
    from ._scalars import Json
    from ._stores import Store

__all__ = ["begin_shared", "commit_shared", "save_checkpoint", "write_checkpoint", "write_shard"]

_LOGGER: Final = logging.getLogger("parhelion")


@overload
def save_checkpoint(
    root: Path, name: str, tree: Any, meta: Mapping[str, Any], adapter: ArrayAdapter | None = None
) -> Path: ...
@overload
def save_checkpoint(
    root: RemotePath | str, name: str, tree: Any, meta: Mapping[str, Any], adapter: ArrayAdapter | None = None
) -> Path | RemotePath: ...
def save_checkpoint(
    root: Where, name: str, tree: Any, meta: Mapping[str, Any], adapter: ArrayAdapter | None = None
) -> Path | RemotePath:
    """Write ``tree`` to the checkpoint ``root / name`` and return that path; it is durable by then.

    The whole tree is looked at before the first byte is written. A checkpoint of that name is replaced, and
    stays good until the new one is.

    Args:
        root: folder of the run's checkpoints, made if it is missing; also a URL that fsspec knows.
        name: see ``checkpoint_name``.
        tree: see ``flatten``.
        meta: plain values, among them ``run_name`` (str), ``global_epoch`` and ``global_iteration`` (int).
        adapter: what reads the framework's arrays.

    Raises:
        UnsavableValueError: a value has no place in a checkpoint; nothing was written.
        CheckpointError: writing failed; what was there before is untouched, and nothing new was left.
        MissingExtraError: the URL needs a library that is not installed.
    """
    skeleton, arrays = flatten(tree, adapter)
    return write_checkpoint(root, name, skeleton, arrays, meta)


@overload
def write_checkpoint(
    root: Path,
    name: str,
    skeleton: Json,
    arrays: Mapping[str, HostArray | ShardedArray],
    meta: Mapping[str, Any],
) -> Path: ...
@overload
def write_checkpoint(
    root: RemotePath | str,
    name: str,
    skeleton: Json,
    arrays: Mapping[str, HostArray | ShardedArray],
    meta: Mapping[str, Any],
) -> Path | RemotePath: ...
def write_checkpoint(
    root: Where,
    name: str,
    skeleton: Json,
    arrays: Mapping[str, HostArray | ShardedArray],
    meta: Mapping[str, Any],
) -> Path | RemotePath:
    """Write a flattened tree to the checkpoint ``root / name``, as ``save_checkpoint`` does."""
    encode_meta(meta)
    return commit_shared(begin_shared(root, name), name, skeleton, arrays, meta, ranks=1)


def begin_shared(root: Where, name: str) -> Path | RemotePath:
    """Make the scratch folder of a checkpoint ``root / name`` that several processes write, and return its path.

    The first process calls it, tells the others the path, and calls ``commit_shared``; a text of it will do.

    Raises:
        CheckpointError: there can be no folder.
    """
    target = as_place(root) / check_name(name)
    with _telling_of(target):
        scratch: Path | RemotePath = store_of(target).begin(target)
    return scratch


def write_shard(scratch: Where, rank: int, arrays: Mapping[str, HostArray | ShardedArray]) -> None:
    """Write what the process of that rank, from 1 on, has of the arrays, and note that it is done.

    Arrays that are not spread over processes are the first one's business, and are passed over.

    Args:
        scratch: what ``begin_shared`` returned in the first process.
        rank: this process.
        arrays: what ``flatten`` returned in this process.

    Raises:
        CheckpointError: writing failed, which the first process is told too, or the first process has given up.
    """
    place = as_place(scratch)
    store = store_of(place)
    try:
        leave_record(store, place, write_arrays(store, place, rank, arrays))
    except BaseException as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        leave_failure(store, place, rank, reason)
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"rank {rank} could not write its part of a checkpoint to {place.parent} ({reason}); expected a writable "
            "folder with room for it. The checkpoints there before are untouched: free space, or choose another root."
        ) from error


def commit_shared(
    scratch: Where,
    name: str,
    skeleton: Json,
    arrays: Mapping[str, HostArray | ShardedArray],
    meta: Mapping[str, Any],
    ranks: int,
    check: Callable[[], object] = lambda: None,
) -> Path | RemotePath:
    """Write the first process's arrays, wait for those of the others, and make all of it one checkpoint.

    Args:
        scratch: what ``begin_shared`` returned.
        name: the one that was given to it.
        skeleton: what ``flatten`` returned in this process; it stands for all.
        arrays: likewise.
        meta: see ``save_checkpoint``.
        ranks: how many processes write.
        check: called while waiting; raises if one of them is gone.

    Returns:
        The checkpoint's path. It is durable.

    Raises:
        CheckpointError: writing failed here or in another process, or the parts of an array do not make it up. What
            was there before is untouched, and nothing new was left.
    """
    place = as_place(scratch)
    target, store = place.parent / check_name(name), store_of(place)
    with _telling_of(target), _abandoning(store, place):
        notes = encode_meta(meta)
        shards = [write_arrays(store, place, 0, arrays), *await_shards(store, place, ranks, check)]
        names = store.final_names(target, [file for shard in shards for file in shard.files])
        entries, files = gather_entries(rename_files(shards, names))
        store.commit(place, target, names, manifest_bytes(notes, skeleton, entries, files))
    _note_last(store, target, meta)
    return target


def _note_last(store: Store, target: Place, meta: Mapping[str, Any]) -> None:
    """Say in the root which checkpoint was committed last, for people and scripts; nothing here reads it."""
    counters = {"iteration": meta["global_iteration"], "epoch": meta["global_epoch"]}
    try:
        store.put(target.parent, LAST, (dumps({"name": target.name, **counters}) + "\n").encode())
    except OSError as error:
        _LOGGER.warning(
            "checkpoint %s is there, and %s that should say so could not be written (%s)", target, LAST, error
        )


@contextlib.contextmanager
def _telling_of(target: Place) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {target} could not be written ({error.strerror or error}); expected a writable "
            "folder with room for it. What was there before is untouched: free space, or choose another root."
        ) from error


@contextlib.contextmanager
def _abandoning(store: Store, scratch: Place) -> Generator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            store.abandon(scratch)
        raise
