"""A flat state to verified bytes on disk, atomically: a checkpoint is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from parhelion.errors import CheckpointError

from ._format import (
    MANIFEST,
    SHARD,
    ArrayEntry,
    FileEntry,
    digest,
    encode_meta,
    hasher,
    manifest_bytes,
)
from ._names import check_name, scratch_path
from ._safetensors import lay_out
from ._tree import flatten

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from ._arrays import ArrayAdapter, HostArray
    from ._scalars import Json

__all__ = ["save_checkpoint", "write_checkpoint"]

# Hashing and writing one piece after the other finds it still in the processor's cache.
_CHUNK: Final = 1 << 22
_BUFFER: Final = 1 << 17
_NO_FALLOCATE: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def save_checkpoint(
    root: Path | str, name: str, tree: Any, meta: Mapping[str, Any], adapter: ArrayAdapter | None = None
) -> Path:
    """Write ``tree`` to the checkpoint ``root / name`` and return that path; it is durable by then.

    The whole tree is looked at before the first byte is written. A checkpoint of that name is replaced, and
    stays good until the new one is.

    Args:
        root: folder of the run's checkpoints, made if it is missing.
        name: see ``checkpoint_name``.
        tree: see ``flatten``.
        meta: plain values, among them ``run_name`` (str), ``global_epoch`` and ``global_iteration`` (int).
        adapter: what reads the framework's arrays.

    Raises:
        UnsavableValueError: a value has no place in a checkpoint; nothing was written.
        CheckpointError: writing failed; what was there before is untouched, and nothing new was left.
    """
    skeleton, arrays = flatten(tree, adapter)
    return write_checkpoint(root, name, skeleton, arrays, meta)


def write_checkpoint(
    root: Path | str, name: str, skeleton: Json, arrays: Mapping[str, HostArray], meta: Mapping[str, Any]
) -> Path:
    """Write a flattened tree to the checkpoint ``root / name``, as ``save_checkpoint`` does."""
    target = Path(root) / check_name(name)
    content = _Content(encode_meta(meta), skeleton, arrays)
    try:
        _make_folder(target.parent)
        if target.is_dir():
            _replace(target, content)
        else:
            _create(target, content)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {target} could not be written ({error.strerror or error}); expected a writable "
            "folder with room for it. What was there before is untouched: free space, or choose another root."
        ) from error
    return target


@attrs.frozen
class _Content:
    meta: Json
    tree: Json
    arrays: Mapping[str, HostArray]

    def write(self, folder: Path, shard: str, manifest: str) -> None:
        """Write both files into ``folder``, durably."""
        entries, file = _write_arrays(folder, shard, self.arrays)
        text = manifest_bytes(self.meta, self.tree, entries, {shard: file})
        with (folder / manifest).open("wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        _sync_folder(folder)


def _create(target: Path, content: _Content) -> None:
    scratch = scratch_path(target.parent, "saving")
    scratch.mkdir()
    with _undo_on_failure(scratch):
        content.write(scratch, "arrays-00000.safetensors", MANIFEST)
        scratch.rename(target)
    _sync_folder(target.parent)


def _replace(target: Path, content: _Content) -> None:
    """Put new arrays beside the old ones; renaming the manifest switches from one to the other at once."""
    old = [file for file in target.iterdir() if SHARD.fullmatch(file.name)]
    number = max((int(file.name[7:12]) for file in old), default=-1) + 1
    shard = target / f"arrays-{number:05d}.safetensors"
    manifest = target / f".{MANIFEST}.new"
    with _undo_on_failure(shard, manifest):
        content.write(target, shard.name, manifest.name)
    manifest.replace(target / MANIFEST)
    _sync_folder(target)
    for file in old:
        with contextlib.suppress(OSError):
            file.unlink()


@contextlib.contextmanager
def _undo_on_failure(*paths: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        for path in paths:
            with contextlib.suppress(OSError):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        raise


def _write_arrays(folder: Path, shard: str, arrays: Mapping[str, HostArray]) -> tuple[dict[str, ArrayEntry], FileEntry]:
    header, starts = lay_out(arrays)
    size = len(header) + sum(array.data.size for array in arrays.values())
    entries: dict[str, ArrayEntry] = {}
    # Python's buffer gathers small arrays, passes big ones straight on, and goes on after a short write.
    with (folder / shard).open("xb", buffering=_BUFFER) as stream:
        _reserve(stream.fileno(), size)
        stream.write(header)
        for name, start in starts.items():
            array, state = arrays[name], hasher()
            for begin in range(0, array.data.size, _CHUNK):
                chunk = array.data[begin : begin + _CHUNK].data
                state.update(chunk)
                stream.write(chunk)
            entries[name] = ArrayEntry(
                shard, start, array.data.size, array.dtype, array.shape, state.hexdigest(), array.strides
            )
        stream.flush()
        os.fsync(stream.fileno())
    return entries, FileEntry(size, len(header), digest(header))


def _reserve(descriptor: int, size: int) -> None:
    """Claim the file's blocks, so that a full disk shows before the work and the file lies in one piece."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise


def _make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents where they are missing, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
