"""Which checkpoints a folder holds, which one to use, and which to delete."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, overload

import attrs

from parhelion import errors
from parhelion.errors import CheckpointError, DamagedCheckpointError, InvalidValueError

from ._format import read_heading
from ._layout import MANIFEST, SHARD
from ._names import looks_like_one
from ._places import Place, RemotePath, as_place
from ._reader import Checkpoint, read_checkpoint
from ._stores import store_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from ._arrays import ArrayAdapter
    from ._places import Where

__all__ = [
    "CheckpointInfo",
    "Readers",
    "delete_checkpoint",
    "find_last_checkpoint",
    "list_checkpoints",
    "load_newest",
    "prune",
    "remove_leftovers",
    "supersede",
]

_LOGGER: Final = logging.getLogger("parhelion")


@attrs.frozen
class CheckpointInfo:
    """A checkpoint as its manifest describes it; its arrays were not looked at."""

    path: Path | RemotePath
    iteration: int
    epoch: int
    meta: dict[str, Any]


def list_checkpoints(root: Where | None) -> list[CheckpointInfo]:
    """Return the checkpoints in ``root``, newest first; none if ``root`` is None or missing.

    A checkpoint is a folder whose manifest is what was written. They are ordered by the iteration, then the
    epoch in it (then by name), never by parsing a name that a user chose. No array is read.

    Raises:
        CheckpointError: a folder that looks like a checkpoint cannot be read.
    """
    found: list[CheckpointInfo] = []
    for folder in _folders(root):
        try:
            found.append(_describe(folder))
        except DamagedCheckpointError:
            continue
        except CheckpointError:
            # Whatever else lies here is not ours to complain of.
            if _is_ours(folder):
                raise
    return sorted(found, key=lambda info: (info.iteration, info.epoch, info.path.name), reverse=True)


@overload
def find_last_checkpoint(root: Path | None) -> Path | None: ...
@overload
def find_last_checkpoint(root: Where | None) -> Path | RemotePath | None: ...
def find_last_checkpoint(root: Where | None) -> Path | RemotePath | None:
    """Return the path of the newest checkpoint in ``root``, None if there is none, as listed."""
    return next((info.path for info in list_checkpoints(root)), None)


class Readers(Protocol):
    """The processes that load a checkpoint together; a World is such."""

    @property
    def rank(self) -> int:
        """This process among them."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gives here, by rank."""
        ...


@attrs.frozen
class _Alone:
    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


def load_newest(
    root: Where | None, adapter: ArrayAdapter | None = None, *, readers: Readers | None = None
) -> Checkpoint | None:
    """Return the newest checkpoint in ``root`` that is sound, None if there is none.

    A damaged one is renamed to ``<name>.damaged`` (marked so where nothing can be renamed), which a warning of the
    logger "parhelion" says once, and the next newest is used. Only damage leads to an older one: any other error is
    raised.

    Args:
        root: the checkpoints' folder.
        adapter: what makes the framework's arrays.
        readers: the processes that load it together, and all call this. They share the verifying of arrays in parts,
            get the same checkpoint, and raise together. None for this one alone.

    Raises:
        CheckpointVersionError: a newer release wrote the newest; going back silently would lose work.
        CheckpointMismatchError: it holds values that the classes or the arrays here do not take.
        CheckpointError: it cannot be read.
    """
    among = _Alone() if readers is None else readers
    for path in _agree_on_candidates(root, among):
        loaded: Checkpoint | CheckpointError
        try:
            loaded = _read_settled(path, adapter, (among.rank, among.size))
        except CheckpointError as error:
            loaded = error
        failures = _gather_failures(loaded, among)
        if not failures:
            return loaded if isinstance(loaded, Checkpoint) else None
        for failure in failures:
            if not isinstance(failure, DamagedCheckpointError):
                raise failure
        if among.rank == 0:
            _report(path, failures[0])
    return None


def _agree_on_candidates(root: Where | None, among: Readers) -> list[Place]:
    """Return the checkpoints as the first process lists them, the newest first."""
    found: list[str] | CheckpointError = []
    if among.rank == 0:
        try:
            _set_unreadable_aside(root)
            found = [str(info.path) for info in list_checkpoints(root)]
        except CheckpointError as error:
            found = error
    failures = _gather_failures(found, among)
    if failures:
        raise failures[0]
    return [as_place(path) for path in among.gather(found)[0]]


def _gather_failures(outcome: object, among: Readers) -> list[CheckpointError]:
    """Return what failed in any process, the own failure first."""
    mine = outcome if isinstance(outcome, CheckpointError) else None
    told = among.gather(None if mine is None else (type(mine).__name__, str(mine)))
    others = [getattr(errors, each[0])(each[1]) for rank, each in enumerate(told) if each and rank != among.rank]
    return others if mine is None else [mine, *others]


def prune(root: Where, keep_last: int, protect: Iterable[Where] = ()) -> list[Path | RemotePath]:
    """Delete all but the newest ``keep_last`` checkpoints, oldest first, and return what is gone.

    Call it once the new one is committed. A checkpoint leaves its name before its first file is deleted, so
    that no half of one is ever found.

    Args:
        root: the checkpoints' folder.
        keep_last: how many to keep, at least 1.
        protect: paths of checkpoints to keep besides those.

    Raises:
        InvalidValueError: ``keep_last`` is below 1.
        CheckpointError: one cannot be deleted; the others are.
    """
    if keep_last < 1:
        raise InvalidValueError(
            f"keep_last is {keep_last!r}; expected an integer >= 1. Delete the folder to keep no checkpoint."
        )
    kept = {_identity(path) for path in protect}
    old = [info.path for info in list_checkpoints(root)[keep_last:]]
    gone = [path for path in reversed(old) if _identity(path) not in kept]
    failures = [failure for path in gone if (failure := _try_to_delete(path)) is not None]
    if failures:
        raise failures[0]
    return gone


def _try_to_delete(path: Place) -> CheckpointError | None:
    """Delete a checkpoint, and return why that failed, if it did; one that somebody else has deleted is gone too."""
    try:
        _delete(path)
    except CheckpointError as error:
        is_gone = isinstance(error.__cause__, FileNotFoundError) and not store_of(path).is_folder(path)
        return None if is_gone else error
    return None


def _identity(where: Where) -> str:
    place = as_place(where)
    return store_of(place).identity(place)


def delete_checkpoint(path: Where) -> None:
    """Delete a checkpoint, also a damaged one. It leaves its name before its first file goes.

    Raises:
        CheckpointError: there is none at ``path``, or it cannot be deleted.
    """
    folder = as_place(path)
    is_link = isinstance(folder, Path) and folder.is_symlink()
    with _telling(folder, "looked at"):
        is_one = not is_link and (MANIFEST in store_of(folder).files(folder) or _is_ours(folder))
    if not is_one:
        raise CheckpointError(
            f"{folder} is {'a link' if is_link else 'no checkpoint'}; expected a folder with {MANIFEST} or files of "
            "arrays in it. Delete it yourself if it is not needed."
        )
    _delete(folder)


def _delete(folder: Place) -> None:
    with _telling(folder, "deleted"):
        store_of(folder).delete(folder)


def supersede(path: Where) -> str:
    """Take a sound checkpoint out of the listing, without deleting it: a run goes on from an older one.

    It is moved to the folder ``superseded`` beside it; where nothing can be renamed it is marked.

    Returns:
        What was done, as a clause.

    Raises:
        CheckpointError: that failed.
    """
    folder = as_place(path)
    with _telling(folder, "put out of the way"):
        return store_of(folder).supersede(folder)


@contextlib.contextmanager
def _telling(folder: Place, what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder} could not be {what} ({error.strerror or error}); expected a writable "
            "folder. Check the permissions of its parent."
        ) from error


def remove_leftovers(root: Where | None, *, all_hosts: bool = False) -> list[Path | RemotePath]:
    """Delete what killed saves and deletions of ended processes of this host left in ``root``; return what is gone.

    Args:
        root: the checkpoints' folder.
        all_hosts: whether what other hosts left goes too. Whether their processes still live cannot be seen from
            here: only who holds the run's lock may say so.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    if root is None:
        return []
    place = as_place(root)
    with _listing(place):
        return store_of(place).remove_leftovers(place, all_hosts=all_hosts)


def _folders(root: Where | None) -> list[Place]:
    if root is None:
        return []
    place = as_place(root)
    with _listing(place):
        return list(store_of(place).folders(place))


@contextlib.contextmanager
def _listing(root: Place) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {root} cannot be listed ({error.strerror or error}); expected a readable folder. "
            "Check its permissions, or the connection to it."
        ) from error


def _is_ours(folder: Place) -> bool:
    if looks_like_one(folder.name):
        return True
    with contextlib.suppress(OSError):
        return any(map(SHARD.fullmatch, store_of(folder).files(folder)))
    return False


def _describe(folder: Place) -> CheckpointInfo:
    heading = read_heading(folder)
    return CheckpointInfo(folder, heading.iteration, heading.epoch, heading.meta)


def _read_settled(folder: Place, adapter: ArrayAdapter | None, share: tuple[int, int]) -> Checkpoint:
    try:
        return read_checkpoint(folder, adapter, share)
    except DamagedCheckpointError:
        # Another process may have replaced it while it was read; damage is there the second time too.
        return read_checkpoint(folder, adapter, share)


def _set_unreadable_aside(root: Where | None) -> None:
    for folder in _folders(root):
        try:
            read_heading(folder)
        except DamagedCheckpointError as error:
            if _is_ours(folder):
                _report(folder, error)
        except CheckpointError:
            if _is_ours(folder):
                raise


def _report(folder: Place, error: CheckpointError) -> None:
    store = store_of(folder)
    with _listing(folder):
        if not store.is_folder(folder):
            # Another process pruned it, or set it aside and said so.
            return
    _LOGGER.warning("%s (%s)", error, store.set_aside(folder) or "it could not be renamed")
