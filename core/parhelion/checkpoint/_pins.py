"""Marks on checkpoints that are to stay: a file in the folder, which restarts and other processes see."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Final

from parhelion.errors import CheckpointError, InvalidValueError, MissingExtraError

from ._layout import MANIFEST
from ._places import RemotePath, as_place
from ._stores import store_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._places import Place, Where

__all__ = ["is_pinned", "open_store", "pin", "unpin"]

# The manifest does not list it, so that a mark changes no byte of what was written.
_MARK: Final = "pinned"


def pin(path: Where) -> None:
    """Mark a checkpoint as one that stays, whatever the rules of retention say, until :func:`unpin`.

    Raises:
        CheckpointError: there is no checkpoint at ``path``, or it cannot be marked.
    """
    place = as_place(path)
    with _telling(place):
        _check_is_one(place)
        store_of(place).put(place, _MARK, b"")


def unpin(path: Where) -> None:
    """Take the mark off a checkpoint; nothing happens to one that has none.

    Raises:
        CheckpointError: there is no checkpoint at ``path``, or it cannot be changed.
    """
    place = as_place(path)
    with _telling(place):
        _check_is_one(place)
        with contextlib.suppress(FileNotFoundError):
            _remove_mark(place)


def _remove_mark(place: Place) -> None:
    if isinstance(place, RemotePath):
        files, mark = open_store(place / _MARK)
        files.rm_file(mark)
    else:
        (place / _MARK).unlink()


def is_pinned(path: Where) -> bool:
    """Tell whether a checkpoint is marked as one that stays.

    Raises:
        CheckpointError: that cannot be seen.
    """
    place = as_place(path)
    with _telling(place):
        return _MARK in store_of(place).files(place)


def open_store(place: RemotePath) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        MissingExtraError: fsspec, or what it needs for such a URL, is not installed.
        InvalidValueError: fsspec knows no such scheme.
    """
    try:
        fsspec: Any = importlib.import_module("fsspec")
        # What another process has just put must be seen.
        files, path = fsspec.core.url_to_fs(place.url, use_listings_cache=False)
    except ImportError as error:
        raise MissingExtraError(
            f"{place} needs a library that is not installed ({error}); expected fsspec and the one for this scheme. "
            "Run: pip install 'parhelion[remote]' (for s3:// also s3fs, for gs:// gcsfs)."
        ) from error
    except ValueError as error:
        raise InvalidValueError(
            f"URL is {place.url!r} ({error}); expected a scheme that fsspec knows, such as 's3://'. Correct it."
        ) from error
    return files, str(path)


def _check_is_one(place: Place) -> None:
    if MANIFEST not in store_of(place).files(place):
        raise CheckpointError(
            f"{str(place)!r} holds no checkpoint; expected a folder with {MANIFEST} in it. Check the path."
        )


@contextlib.contextmanager
def _telling(place: Place) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the mark of checkpoint {place} cannot be changed ({error.strerror or error}); expected a writable "
            "folder. Check its permissions."
        ) from error
