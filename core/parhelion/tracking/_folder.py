"""Files that a run finds, sets aside or replaces: never half done, nothing lost."""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from parhelion.errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path


@contextmanager
def writable(what: str, path: Path) -> Generator[None, None, None]:
    """Turn an operating system's refusal into an error that names the path and what it is for.

    Raises:
        InvalidValueError: anything in the body raised ``OSError``.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidValueError(
            f"{what} is {str(path)!r}; expected a folder, and {error.filename!r} is a file. "
            "Name another folder, or move that file away."
        ) from error
    except IsADirectoryError as error:
        raise InvalidValueError(
            f"{what} is {str(path)!r}; expected a file, and this is a folder. Name a file inside it."
        ) from error
    except OSError as error:
        raise InvalidValueError(
            f"{what} is {str(path)!r}; expected a place that can be written to ({error.strerror}). "
            "Name another one, or change its permissions."
        ) from error


def make_folder(folder: Path) -> None:
    """Make the folder and its parents exist, and be writable.

    Raises:
        OSError: that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except NotADirectoryError as error:
        # mkdir names the folder it could not make; the reader wants the file that is in the way.
        error.filename = str(next(parent for parent in folder.parents if parent.is_file()))
        raise
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(folder))


def numbered(path: Path) -> Path:
    """Return the first of ``history.1.jsonl``, ``history.2.jsonl``, ... that does not exist."""
    number = 1
    while (free := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return free


def set_aside(path: Path) -> None:
    """Rename an existing file that is not empty to a numbered name beside it."""
    if path.is_file() and path.stat().st_size:
        path.rename(numbered(path))


def replace_bytes(path: Path, chunks: Iterable[bytes]) -> None:
    """Give an existing file new contents: a reader, or a crash, sees the old ones or the new ones whole."""
    path = path.resolve()
    # Not a suffix: TensorBoard reads every file with "tfevents" anywhere in its name.
    new = path.with_name(f".{path.name.replace('tfevents', 'events')}.new")
    try:
        with new.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, new)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
