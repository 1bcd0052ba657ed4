"""Marks on checkpoints that are to stay: a file in the folder, which restarts and other processes see."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any, Final

from parhelion.errors import CheckpointError, MissingExtraError

from ._layout import MANIFEST
from ._places import RemotePath, Where, as_place

__all__ = ["is_pinned", "pin", "unpin"]

# The manifest does not list it, so that a mark changes no byte of what was written.
_MARK: Final = "pinned"


def pin(path: Where) -> None:
    """Mark a checkpoint as one that stays, whatever the rules of retention say, until :func:`unpin`.

    Raises:
        CheckpointError: there is no checkpoint at ``path``, or it cannot be marked.
    """
    _check_is_one(path)
    try:
        if is_remote(path):
            files, place = open_store(f"{path}/{_MARK}")
            files.pipe_file(place, b"")
        else:
            _touch(Path(str(path)) / _MARK)
    except OSError as error:
        raise _unmarkable(path, error) from error


def unpin(path: Where) -> None:
    """Take the mark off a checkpoint; nothing happens to one that has none.

    Raises:
        CheckpointError: there is no checkpoint at ``path``, or it cannot be changed.
    """
    _check_is_one(path)
    try:
        if is_remote(path):
            files, place = open_store(f"{path}/{_MARK}")
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(place)
        else:
            (Path(str(path)) / _MARK).unlink(missing_ok=True)
    except OSError as error:
        raise _unmarkable(path, error) from error


def is_pinned(path: Where) -> bool:
    """Tell whether a checkpoint is marked as one that stays."""
    return _exists(path, _MARK)


def is_remote(path: Where) -> bool:
    """Tell whether ``path`` is a URL of a store that fsspec opens."""
    return isinstance(as_place(path), RemotePath)


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        MissingExtraError: fsspec, or what it needs for such a URL, is not installed.
    """
    try:
        # An extra, and needed only for URLs.
        fsspec: Any = importlib.import_module("fsspec")
        files, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(
            f"{url} is no local path, and using it needs fsspec, which is not installed, or a library that it names "
            f"({error}). Install parhelion[remote], or use a local path."
        ) from error
    return files, str(place)


def _check_is_one(path: Where) -> None:
    if not _exists(path, MANIFEST):
        raise CheckpointError(
            f"{str(path)!r} holds no checkpoint; expected a folder with {MANIFEST} in it. Check the path."
        )


def _exists(path: Where, name: str) -> bool:
    if is_remote(path):
        files, place = open_store(f"{path}/{name}")
        # What another process has put there since must be seen.
        files.invalidate_cache()
        return bool(files.exists(place))
    return (Path(str(path)) / name).is_file()


def _touch(file: Path) -> None:
    """Make an empty file, durably."""
    file.touch()
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unmarkable(path: Where, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} cannot be marked ({error.strerror or error}); expected a writable folder. Check its "
        "permissions."
    )
