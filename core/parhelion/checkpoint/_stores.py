"""What the room needs of a place where checkpoints lie: to read one, to write one, to keep order among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from ._local import LocalStore
from ._places import Place, RemotePath
from ._remote import RemoteStore

__all__ = ["Reading", "Store", "Stream", "store_of"]


class Stream(Protocol):
    """A file that is open for reading bytes."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, counted from the begin (0) or the end (2); return it, counted from the begin."""
        ...

    def read(self, size: int = -1, /) -> bytes | None:
        """Return that many bytes, or fewer at the end."""
        ...

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill a buffer from its begin on, and return how many bytes there were; 0 at the end."""
        ...


class Reading(Protocol):
    """What it takes to find and read checkpoints. What fails raises OSError."""

    def is_folder(self, place: Any) -> bool:
        """Tell whether there is a folder."""
        ...

    def folders(self, root: Any) -> Iterator[Any]:
        """Yield what may be a checkpoint in ``root``, in the order of the names; nothing if there is no root."""
        ...

    def files(self, folder: Any) -> list[str]:
        """Return the names of the files in a folder; none if there is no folder."""
        ...

    def read(self, folder: Any, file: str) -> bytes:
        """Return what a small file holds."""
        ...

    def open(self, folder: Any, file: str) -> AbstractContextManager[Stream]:
        """Open a file for reading; it is closed when the context is left."""
        ...


class Writing(Protocol):
    """What it takes to write a checkpoint: a draft, that any process writes files for, and its commit."""

    def begin(self, target: Any) -> Any:
        """Make room for a draft of the checkpoint ``target``, and return where its notes lie: its scratch folder.

        The folder lies beside ``target``, is hidden, and its name says which process has made it.
        """
        ...

    def home(self, scratch: Any, rank: int) -> tuple[Any, str]:
        """Return the folder and the name of the file that the process of that rank writes its arrays to."""
        ...

    def create(self, folder: Any, file: str, size: int) -> AbstractContextManager[Any]:
        """Open a new file for writing; it is durable when the context is left without an error."""
        ...

    def put(self, folder: Any, file: str, data: bytes) -> None:
        """Write a small file, whole or not at all, durably; one of that name is replaced."""
        ...

    def final_names(self, target: Any, files: list[str]) -> dict[str, str]:
        """Return how files of arrays will be called in the checkpoint ``target``."""
        ...

    def commit(self, scratch: Any, target: Any, names: Mapping[str, str], manifest: bytes) -> None:
        """Make a draft the checkpoint ``target``, at once and durably, and delete what it replaces.

        Args:
            scratch: what ``begin`` returned.
            target: the checkpoint.
            names: what ``final_names`` returned.
            manifest: its manifest.
        """
        ...

    def abandon(self, scratch: Any) -> None:
        """Delete a draft, as far as that is possible."""
        ...


class Keeping(Protocol):
    """What it takes to keep order among checkpoints."""

    def identity(self, place: Any) -> str:
        """Return what two ways of writing one place have in common."""
        ...

    def set_aside(self, folder: Any) -> str | None:
        """Take a damaged checkpoint out of the listing; return what was done, or None if that failed."""
        ...

    def supersede(self, folder: Any) -> str:
        """Take a sound checkpoint out of the listing, without deleting it; return what was done."""
        ...

    def delete(self, folder: Any) -> None:
        """Delete a checkpoint, such that no half of one is ever found."""
        ...

    def remove_leftovers(self, root: Any, *, all_hosts: bool) -> list[Any]:
        """Delete the drafts and the half-deleted checkpoints of ended processes; return where they were noted."""
        ...


class Store(Reading, Writing, Keeping, Protocol):
    """A place where checkpoints lie.

    Attributes:
        patience: seconds between two looks for what another process is to write.
    """

    patience: float


_LOCAL: Final[Store] = LocalStore()
_REMOTE: Final[Store] = RemoteStore()


def store_of(place: Place) -> Store:
    """Return who looks after checkpoints at ``place``."""
    return _REMOTE if isinstance(place, RemotePath) else _LOCAL
