"""Checkpoints in object stores and other places that fsspec reaches, where nothing can be renamed.

The files of arrays are put first, straight into the checkpoint's folder, under numbers that are free there; the
manifest is put last and commits, for readers believe only folders with a sound one. A hidden folder beside it says
which process writes or deletes which checkpoint, and from which number on the files are its own.

Credentials, endpoints and other options come from fsspec's own configuration
(https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration): ``FSSPEC_S3_ENDPOINT_URL`` and the
like in the environment, files in ``~/.config/fsspec``, or ``fsspec.config.conf``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

import attrs

from parhelion.errors import InvalidValueError, MissingExtraError, ParhelionError

from ._layout import DRAFT, MANIFEST, SHARD, free_number, shard_name, unreferenced
from ._names import is_abandoned, is_set_aside, scratch_name
from ._places import RemotePath
from ._seals import digest

__all__ = ["RemoteStore", "translating"]

_DAMAGED: Final = "damaged.json"
_SUPERSEDED: Final = "superseded.json"
_MARKERS: Final = (_DAMAGED, _SUPERSEDED)
_READ_AHEAD: Final = 1 << 23
# There a folder is there as soon as something is in it, and making one would make a bucket of a mistyped name.
_WITHOUT_FOLDERS: Final = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2", "memory"}


class RemoteStore:
    """What ``Store`` asks for, through fsspec."""

    patience: float = 0.1

    def is_folder(self, place: RemotePath) -> bool:
        """Tell whether something lies under that name."""
        return bool(_list(place))

    def folders(self, root: RemotePath) -> Iterator[RemotePath]:
        """Yield the folders that have a manifest which no marker condemns. What has none may be half written."""
        for name, kind in _list(root).items():
            if kind == "directory" and not name.startswith(".") and not is_set_aside(name):
                files = _list(root / name)
                if MANIFEST in files and not self._is_marked(root / name, files):
                    yield root / name

    def _is_marked(self, folder: RemotePath, files: Mapping[str, str]) -> bool:
        """Tell whether a marker speaks of the manifest that is there now: a later one is not condemned by it."""
        for marker in files.keys() & _MARKERS:
            with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
                if json.loads(self.read(folder, marker))["manifest"] == digest(self.read(folder, MANIFEST)):
                    return True
        return False

    def files(self, folder: RemotePath) -> list[str]:
        """Return the names of the files in a folder."""
        return sorted(name for name, kind in _list(folder).items() if kind == "file")

    def read(self, folder: RemotePath, file: str) -> bytes:
        """Return what a small file holds."""
        place = _Spot.of(folder / file)
        with translating():
            return bytes(place.system.cat_file(place.path))

    @contextlib.contextmanager
    def open(self, folder: RemotePath, file: str) -> Generator[_Reader]:
        """Open a file for reading."""
        place = _Spot.of(folder / file)
        with translating():
            stream = place.system.open(place.path, "rb", block_size=_READ_AHEAD)
        try:
            yield _Reader(stream)
        finally:
            stream.close()

    def begin(self, target: RemotePath) -> RemotePath:
        """Note beside ``target`` who writes it, and from which number on its files are free."""
        scratch = target.parent / scratch_name("saving")
        self._note(scratch, target, free_number(self.files(target)))
        return scratch

    def _note(self, scratch: RemotePath, target: RemotePath, first: int) -> None:
        self.put(scratch, DRAFT, json.dumps({"name": target.name, "first": first}).encode())

    def _noted(self, scratch: RemotePath) -> tuple[RemotePath, int]:
        note = json.loads(self.read(scratch, DRAFT))
        return scratch.parent / note["name"], note["first"]

    def home(self, scratch: RemotePath, rank: int) -> tuple[RemotePath, str]:
        """Return the checkpoint itself, and a file of a free number."""
        target, first = self._noted(scratch)
        return target, shard_name(first + rank)

    @contextlib.contextmanager
    def create(self, folder: RemotePath, file: str, size: int) -> Generator[_Upload]:
        """Open a file for an upload in pieces; nobody sees it before the last one."""
        _make_folder(folder)
        place = _Spot.of(folder / file)
        with translating():
            upload = _Upload(place.system.open(place.path, "wb"))
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.discard()
            # In some places what was sent shows at once.
            _delete_quietly(folder, [file])
            raise

    def put(self, folder: RemotePath, file: str, data: bytes) -> None:
        """Write a small file in one request."""
        _make_folder(folder)
        place = _Spot.of(folder / file)
        with translating():
            place.system.pipe_file(place.path, data)

    def final_names(self, target: RemotePath, files: list[str]) -> dict[str, str]:
        """Return the names unchanged: they were free."""
        return {file: file for file in files}

    def commit(self, scratch: RemotePath, target: RemotePath, names: Mapping[str, str], manifest: bytes) -> None:
        """Put the manifest, then delete what it does not speak of."""
        try:
            self.put(target, MANIFEST, manifest)
        except OSError:
            # The answer may have been lost, and not the request.
            if not self._has(target, manifest):
                raise
        kept = {MANIFEST, *names.values()}
        old = [file for file in self.files(target) if file not in kept and (file in _MARKERS or SHARD.fullmatch(file))]
        _delete_quietly(target, old)
        self._remove_scratch(scratch)

    def _has(self, target: RemotePath, manifest: bytes) -> bool:
        with contextlib.suppress(OSError):
            return self.read(target, MANIFEST) == manifest
        return False

    def abandon(self, scratch: RemotePath) -> None:
        """Delete the files of a draft that no manifest speaks of, and the note of it."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            target, first = self._noted(scratch)
            files = [file for file in self.files(target) if free_number([file]) > first or file in _MARKERS]
            if MANIFEST in self.files(target):
                files = unreferenced(files, self.read(target, MANIFEST))
            _delete_quietly(target, files)
            _remove_folder(target)
        self._remove_scratch(scratch)

    def _remove_scratch(self, scratch: RemotePath) -> None:
        # The note goes last: without it nobody would know what else to delete.
        _delete_quietly(scratch, sorted(self.files(scratch), key=lambda file: file == DRAFT))
        _remove_folder(scratch)

    def identity(self, place: RemotePath) -> str:
        """Return the URL."""
        return str(place)

    def set_aside(self, folder: RemotePath) -> str | None:
        """Mark a checkpoint as damaged."""
        try:
            return self._mark(folder, _DAMAGED)
        except OSError:
            return None

    def supersede(self, folder: RemotePath) -> str:
        """Mark a checkpoint as superseded."""
        return self._mark(folder, _SUPERSEDED)

    def _mark(self, folder: RemotePath, marker: str) -> str:
        self.put(folder, marker, json.dumps({"manifest": digest(self.read(folder, MANIFEST))}).encode())
        return f"{marker} in it says so"

    def delete(self, folder: RemotePath) -> None:
        """Delete a checkpoint's manifest, then the rest."""
        scratch = folder.parent / scratch_name("deleting")
        self._note(scratch, folder, 0)
        for file in sorted(self.files(folder), key=lambda file: file != MANIFEST):
            _delete(folder, file)
        _remove_folder(folder)
        self._remove_scratch(scratch)

    def remove_leftovers(self, root: RemotePath, *, all_hosts: bool) -> list[RemotePath]:
        """Delete what ended processes had put and no manifest speaks of."""
        gone = [root / name for name in _list(root) if is_abandoned(name, all_hosts=all_hosts)]
        for scratch in gone:
            self.abandon(scratch)
        return gone


class _Reader:
    """A file that is read; what fails is an OSError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with translating():
            return int(self._stream.seek(offset, whence))

    def read(self, size: int = -1, /) -> bytes:
        with translating():
            return bytes(self._stream.read(size))

    def readinto(self, buffer: Any, /) -> int:
        with translating():
            return int(self._stream.readinto(buffer))


class _Upload:
    """A file that is written; what fails is an OSError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: Any) -> None:
        with translating():
            self._stream.write(data)

    def finish(self) -> None:
        """Make the file appear."""
        with translating():
            self._stream.close()

    def discard(self) -> None:
        """Take back what was sent. Closing would make half a file appear, also when it is collected as garbage."""
        with contextlib.suppress(Exception):
            self._stream.discard()
        with contextlib.suppress(AttributeError):
            self._stream.closed = True


@attrs.frozen
class _Spot:
    """A place as fsspec takes it."""

    system: Any
    path: str

    @classmethod
    def of(cls, place: RemotePath) -> _Spot:
        """Return it.

        Raises:
            MissingExtraError: that needs a library which is not installed.
            InvalidValueError: fsspec knows no such scheme.
        """
        try:
            fsspec: Any = importlib.import_module("fsspec")
            # What another process has just put must be seen.
            return cls(*fsspec.core.url_to_fs(place.url, use_listings_cache=False))
        except ImportError as error:
            raise MissingExtraError(
                f"checkpoints at {place} need a library that is not installed ({error}); expected fsspec and the one "
                "for this scheme. Run: pip install 'parhelion[remote]' (for s3:// also s3fs, for gs:// gcsfs)."
            ) from error
        except ValueError as error:
            raise InvalidValueError(
                f"URL is {place.url!r} ({error}); expected a scheme that fsspec knows, such as 's3://'. Correct it."
            ) from error


@contextlib.contextmanager
def translating() -> Generator[None]:
    """Make OSErrors of the errors that the libraries behind fsspec have of their own."""
    try:
        yield
    except (OSError, ParhelionError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _list(folder: RemotePath) -> dict[str, str]:
    """Return what lies in a folder, "file" or "directory" by name; nothing if there is no folder."""
    place = _Spot.of(folder)
    with translating():
        place.system.invalidate_cache(place.path)
        try:
            entries = place.system.ls(place.path, detail=True)
        except FileNotFoundError:
            return {}
    inside = f"{place.path.strip('/')}/"
    paths = {entry["name"].strip("/"): entry["type"] for entry in entries}
    return {path.removeprefix(inside): kind for path, kind in sorted(paths.items()) if path.startswith(inside)}


def _make_folder(folder: RemotePath) -> None:
    """Make a folder where there are such."""
    place = _Spot.of(folder)
    if folder.url.partition("://")[0] not in _WITHOUT_FOLDERS:
        with translating():
            place.system.makedirs(place.path, exist_ok=True)


def _remove_folder(folder: RemotePath) -> None:
    """Remove an empty folder, where there are such."""
    place = _Spot.of(folder)
    if folder.url.partition("://")[0] not in _WITHOUT_FOLDERS:
        with contextlib.suppress(Exception):
            place.system.rmdir(place.path)


def _delete(folder: RemotePath, file: str) -> None:
    place = _Spot.of(folder / file)
    with translating(), contextlib.suppress(FileNotFoundError):
        place.system.rm_file(place.path)


def _delete_quietly(folder: RemotePath, files: list[str]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            _delete(folder, file)
