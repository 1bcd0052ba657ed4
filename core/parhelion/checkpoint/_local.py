"""Checkpoints in folders of a file system: files and folders are synced, and a rename commits."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from ._layout import DRAFT, MANIFEST, SHARD, free_number, shard_name, unreferenced
from ._names import is_abandoned, is_set_aside, scratch_name, set_aside_names

__all__ = ["LocalStore"]

_BUFFER: Final = 1 << 17
_NO_FALLOCATE: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalStore:
    """What ``Store`` asks for, in folders. A draft's files lie in its scratch folder until it is committed."""

    patience: float = 0.02

    def is_folder(self, place: Path) -> bool:
        """Tell whether there is a folder."""
        return place.is_dir()

    def folders(self, root: Path) -> Iterator[Path]:
        """Yield what may be a checkpoint. A link is none: it would count twice, and be deleted through."""
        for path in _children(root):
            is_hidden = path.name.startswith(".") or is_set_aside(path.name)
            if not is_hidden and path.is_dir() and not path.is_symlink():
                yield path

    def files(self, folder: Path) -> list[str]:
        """Return the names of the files in a folder."""
        return [path.name for path in _children(folder)]

    def read(self, folder: Path, file: str) -> bytes:
        """Return what a small file holds."""
        return (folder / file).read_bytes()

    @contextlib.contextmanager
    def open(self, folder: Path, file: str) -> Generator[FileIO]:
        """Open a file for reading, without a buffer: what is read goes where it is wanted."""
        with (folder / file).open("rb", buffering=0) as stream:
            yield stream

    def begin(self, target: Path) -> Path:
        """Make a scratch folder beside ``target``."""
        _make_folder(target.parent)
        scratch = target.parent / scratch_name("saving")
        scratch.mkdir()
        return scratch

    def home(self, scratch: Path, rank: int) -> tuple[Path, str]:
        """Return the scratch folder, and the file that has the number of the rank."""
        return scratch, shard_name(rank)

    @contextlib.contextmanager
    def create(self, folder: Path, file: str, size: int) -> Generator[BinaryIO]:
        """Open a new file for writing."""
        # Python's buffer gathers small arrays, passes big ones straight on, and goes on after a short write.
        with (folder / file).open("xb", buffering=_BUFFER) as stream:
            _reserve(stream.fileno(), size)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def put(self, folder: Path, file: str, data: bytes) -> None:
        """Write a small file under another name, and rename it."""
        draft = folder / scratch_name("saving")
        try:
            _write(draft, data)
            draft.replace(folder / file)
        except BaseException:
            _delete_quietly(draft)
            raise
        _sync_folder(folder)

    def final_names(self, target: Path, files: list[str]) -> dict[str, str]:
        """Return the names unchanged, or numbers that are free in the checkpoint to be replaced."""
        if not target.is_dir():
            return {file: file for file in files}
        first = free_number(self.files(target))
        return {file: shard_name(first + place) for place, file in enumerate(files)}

    def commit(self, scratch: Path, target: Path, names: Mapping[str, str], manifest: bytes) -> None:
        """Rename the scratch folder; or put its files beside the old ones and switch by renaming the manifest."""
        _write(scratch / MANIFEST, manifest)
        if target.is_dir():
            self._replace(scratch, target, names)
            return
        for file in self.files(scratch):
            if file != MANIFEST and file not in names:
                (scratch / file).unlink()
        _sync_folder(scratch)
        scratch.rename(target)
        _sync_folder(target.parent)

    def _replace(self, scratch: Path, target: Path, names: Mapping[str, str]) -> None:
        # For whoever finds this draft left behind.
        (scratch / DRAFT).write_text(json.dumps({"name": target.name}), encoding="utf-8")
        try:
            for file, final in names.items():
                (scratch / file).rename(target / final)
            _sync_folder(target)
            (scratch / MANIFEST).replace(target / MANIFEST)
        except BaseException:
            _delete_quietly(*(target / final for final in names.values()))
            raise
        _sync_folder(target)
        kept = {MANIFEST, *names.values()}
        _delete_quietly(*(target / file for file in self.files(target) if SHARD.fullmatch(file) and file not in kept))
        _delete_quietly(scratch)

    def abandon(self, scratch: Path) -> None:
        """Delete the scratch folder, into which other processes may still be writing."""
        # Without its name nobody puts anything into it any more.
        doomed = scratch.with_name(scratch_name("deleting"))
        try:
            scratch.rename(doomed)
        except OSError:
            doomed = scratch
        _delete_quietly(doomed)

    def identity(self, place: Path) -> str:
        """Return the real path."""
        return os.path.realpath(place)

    def set_aside(self, folder: Path) -> str | None:
        """Rename a damaged checkpoint to ``<name>.damaged``."""
        names = set_aside_names(folder.name)
        aside = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
        try:
            folder.rename(aside)
        except OSError:
            # A read-only root, or another process was faster: the caller goes on without.
            return None
        return f"it is now {aside.name}"

    def supersede(self, folder: Path) -> str:
        """Move a checkpoint to the folder ``superseded`` beside it, where no checkpoint is looked for."""
        shelf = folder.with_name("superseded")
        shelf.mkdir(exist_ok=True)
        numbers = (f"{folder.name}-{number}" for number in itertools.count(2))
        paths = (shelf / name for name in itertools.chain([folder.name], numbers))
        aside = next(path for path in paths if not os.path.lexists(path))
        folder.rename(aside)
        return f"it is now {aside}"

    def delete(self, folder: Path) -> None:
        """Take a checkpoint's name away, then its files."""
        doomed = folder.with_name(scratch_name("deleting"))
        folder.rename(doomed)
        shutil.rmtree(doomed)

    def remove_leftovers(self, root: Path, *, all_hosts: bool) -> list[Path]:
        """Delete hidden work of ended processes, and what it had put into a checkpoint that it was to replace."""
        gone = [path for path in _children(root) if is_abandoned(path.name, all_hosts=all_hosts)]
        for path in gone:
            self._sweep(path)
            _delete_quietly(path)
        return gone

    def _sweep(self, scratch: Path) -> None:
        """Delete the files that an interrupted replacement had put beside the old ones."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            name = json.loads((scratch / DRAFT).read_bytes())["name"]
            target = scratch.parent / Path(name).name
            lost = unreferenced(self.files(target), (target / MANIFEST).read_bytes())
            _delete_quietly(*(target / file for file in lost))


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _delete_quietly(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


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
