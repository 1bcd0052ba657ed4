"""Which checkpoints a folder holds, which one to use, and which to delete."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from parhelion.errors import CheckpointError, DamagedCheckpointError, InvalidValueError

from ._format import read_heading
from ._names import is_abandoned, is_set_aside, looks_like_one, scratch_path, set_aside
from ._reader import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._arrays import ArrayAdapter

__all__ = [
    "CheckpointInfo",
    "find_last_checkpoint",
    "list_checkpoints",
    "load_newest",
    "prune",
    "remove_leftovers",
]

_LOGGER: Final = logging.getLogger("parhelion")


@attrs.frozen
class CheckpointInfo:
    """A checkpoint as its manifest describes it; its arrays were not looked at."""

    path: Path
    iteration: int
    epoch: int
    meta: dict[str, Any]


def list_checkpoints(root: Path | str | None) -> list[CheckpointInfo]:
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


def find_last_checkpoint(root: Path | str | None) -> Path | None:
    """Return the path of the newest checkpoint in ``root``, None if there is none, as listed."""
    return next((info.path for info in list_checkpoints(root)), None)


def load_newest(root: Path | str | None, adapter: ArrayAdapter | None = None) -> Checkpoint | None:
    """Return the newest checkpoint in ``root`` that is sound, None if there is none.

    A damaged one is renamed to ``<name>.damaged``, which a warning of the logger "parhelion" says once, and
    the next newest is used. Only damage leads to an older one: any other error is raised.

    Raises:
        CheckpointVersionError: a newer release wrote the newest; going back silently would lose work.
        CheckpointMismatchError: it holds values that the classes or the arrays here do not take.
        CheckpointError: it cannot be read.
    """
    _set_unreadable_aside(root)
    for info in list_checkpoints(root):
        try:
            return _read_settled(info.path, adapter)
        except DamagedCheckpointError as error:
            _report(info.path, error)
    return None


def prune(root: Path | str, keep_last: int, protect: Iterable[Path | str] = ()) -> list[Path]:
    """Delete all but the newest ``keep_last`` checkpoints, oldest first, and return what is gone.

    Call it once the new one is committed. A checkpoint leaves its name before its first file is deleted, so
    that no half of one is ever found.

    Args:
        root: the checkpoints' folder.
        keep_last: how many to keep, at least 1.
        protect: paths of checkpoints to keep besides those.

    Raises:
        InvalidValueError: ``keep_last`` is below 1.
        CheckpointError: one cannot be deleted.
    """
    if keep_last < 1:
        raise InvalidValueError(
            f"keep_last is {keep_last!r}; expected an integer >= 1. Delete the folder to keep no checkpoint."
        )
    kept = {os.path.realpath(path) for path in protect}
    old = [info.path for info in list_checkpoints(root)[keep_last:]]
    gone = [path for path in reversed(old) if os.path.realpath(path) not in kept]
    for path in gone:
        scratch = scratch_path(path.parent, "deleting")
        try:
            path.rename(scratch)
            shutil.rmtree(scratch)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {path} could not be deleted ({error.strerror or error}); expected a writable "
                "folder. Check the permissions of its parent."
            ) from error
    return gone


def remove_leftovers(root: Path | str | None) -> list[Path]:
    """Delete the hidden folders that ended processes of this host left in ``root``; return what is gone."""
    gone = [path for path in _children(root) if is_abandoned(path)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def _children(root: Path | str | None) -> Iterator[Path]:
    if root is not None and Path(root).is_dir():
        yield from sorted(Path(root).iterdir())


def _folders(root: Path | str | None) -> Iterator[Path]:
    """Yield what may be a checkpoint. A link is none: it would count twice, and be deleted through."""
    for path in _children(root):
        if not path.name.startswith(".") and not is_set_aside(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _is_ours(folder: Path) -> bool:
    return looks_like_one(folder.name) or any(folder.glob("arrays-*.safetensors"))


def _describe(folder: Path) -> CheckpointInfo:
    heading = read_heading(folder)
    return CheckpointInfo(folder, heading.iteration, heading.epoch, heading.meta)


def _read_settled(folder: Path, adapter: ArrayAdapter | None) -> Checkpoint:
    try:
        return read_checkpoint(folder, adapter)
    except DamagedCheckpointError:
        # Another process may have replaced it while it was read; damage is there the second time too.
        return read_checkpoint(folder, adapter)


def _set_unreadable_aside(root: Path | str | None) -> None:
    for folder in _folders(root):
        try:
            read_heading(folder)
        except DamagedCheckpointError as error:
            if _is_ours(folder):
                _report(folder, error)
        except CheckpointError:
            if _is_ours(folder):
                raise


def _report(folder: Path, error: DamagedCheckpointError) -> None:
    if not folder.is_dir():
        # Another process pruned it, or set it aside and said so.
        return
    aside = set_aside(folder)
    where = "it could not be renamed" if aside is None else f"it is now {aside.name}"
    _LOGGER.warning("%s (%s)", error, where)
