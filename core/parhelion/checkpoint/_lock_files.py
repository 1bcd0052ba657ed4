"""The file that says who holds a run's lock: under the kernel's lock, alone, or in a store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from ._holders import Holder
from ._pins import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from ._places import RemotePath

__all__ = ["FileMark", "FlockedFile", "Mark", "StoreMark", "has_locks"]

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Two that create at once, in a store that cannot refuse the second, have both written after this time.
_SETTLING: Final = 1.0


def has_locks(file: Path) -> bool:
    """Tell whether the kernel can lock files where ``file`` lies."""
    probe = file.with_name(f"{file.name}.{os.urandom(8).hex()}")
    descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    finally:
        probe.unlink()
        os.close(descriptor)
    return True


class Mark(Protocol):
    """A file that says who holds a lock, and changes while they are alive."""

    @property
    def is_lost(self) -> bool:
        """Whether another process has been seen to hold it."""
        ...

    def read(self) -> Holder | None:
        """Return who holds it; None if nobody does, or none that has written the entry yet."""
        ...

    def sign(self) -> object:
        """Return what a living holder changes at every beat."""
        ...

    def age(self) -> float:
        """Return how long ago the last beat was, in seconds by the clock that dates the file; 0.0 if unknown."""
        ...

    def beat(self) -> None:
        """Give a sign of life."""
        ...

    def release(self) -> None:
        """Remove the file, if it is ours."""
        ...

    def forget(self) -> None:
        """Let go in this process only, which inherited it by a fork."""
        ...


class FlockedFile:
    """A file whose kernel lock is held; a killed process loses it at once."""

    is_lost = False

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1

    def lock(self) -> bool:
        """Take the kernel's lock; return whether it was free."""
        while True:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # The entry of whoever holds it is read from the file.
                self.forget()
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise
            if _is_at(self._descriptor, self._file):
                return True
            # It was released, and so removed, between the two calls.
            self.forget()

    def read(self) -> Holder | None:
        return _read(self._file)

    def write(self, holder: Holder) -> None:
        """Say who holds it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, holder.encode(), 0)

    def sign(self) -> object:
        return _changed(self._file)

    def age(self) -> float:
        return _age(self._file)

    def beat(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)

    def release(self) -> None:
        # While the lock is held, so that nobody takes a file that has no name any more.
        with contextlib.suppress(OSError):
            if _is_at(self._descriptor, self._file):
                self._file.unlink()
        self.forget()

    def forget(self) -> None:
        # Never LOCK_UN: that would unlock it for the parent too.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Entry(ABC):
    """What the two marks without a kernel's lock share: the entry itself says whose it is."""

    def __init__(self) -> None:
        self._holder: Holder | None = None
        self.is_lost = False

    def is_settled(self) -> bool:
        """Tell whether the entry is still ours once others that came at the same moment have written theirs."""
        time.sleep(_SETTLING)
        return self._is_ours()

    def release(self) -> None:
        """Remove the file, if it is ours."""
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.delete()

    def remove(self, former: Holder | None) -> None:
        """Remove the entry of one that is dead, or that nobody can read, unless another has replaced it."""
        if self.read() == former:
            self.delete()

    def forget(self) -> None:
        """Let go in this process only, which has no thread that beats."""
        self._holder = None

    def _is_ours(self) -> bool:
        found = self.read()
        return found is not None and found == self._holder

    @abstractmethod
    def read(self) -> Holder | None:
        """Return who the entry says holds the lock; None if there is none, or none that can be read."""

    @abstractmethod
    def delete(self) -> None:
        """Remove the entry."""


class FileMark(_Entry):
    """A file on a file system without locks."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def create(self, holder: Holder) -> bool:
        """Write the entry if there is none; return whether that is so."""
        scratch = self._file.with_name(f"{self._file.name}.{holder.token}")
        scratch.write_bytes(holder.encode())
        try:
            # Unlike an exclusive creation it shows the whole entry at once, and NFS has always had it.
            os.link(scratch, self._file)
        except FileExistsError:
            return False
        finally:
            scratch.unlink()
        self._holder = holder
        return True

    def read(self) -> Holder | None:
        return _read(self._file)

    def delete(self) -> None:
        self._file.unlink(missing_ok=True)

    def sign(self) -> object:
        return _changed(self._file)

    def age(self) -> float:
        return _age(self._file)

    def beat(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                os.utime(self._file)
            else:
                self.is_lost = True


class StoreMark(_Entry):
    """An object in a store, through fsspec; written anew at every beat."""

    def __init__(self, place: RemotePath) -> None:
        super().__init__()
        self._files, self._place = open_store(place)
        self._beats = 0

    def create(self, holder: Holder) -> bool:
        """Write the entry if there is none; return whether that is so."""
        self._files.invalidate_cache()
        if self._files.exists(self._place):
            return False
        try:
            self._files.pipe_file(self._place, self._text(holder), mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError, ValueError):
            # No exclusive creation here: whoever wrote last has it, as is_settled() finds.
            self._files.pipe_file(self._place, self._text(holder))
        self._holder = holder
        return True

    def read(self) -> Holder | None:
        content = self._content()
        return None if content is None else Holder.parse(content.partition(b"\n")[0])

    def delete(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._place)

    def sign(self) -> object:
        return self._content()

    def age(self) -> float:
        """Return how old the object is by the store's own clock, which dates another one now."""
        probe = f"{self._place}.{os.urandom(8).hex()}"
        try:
            self._files.pipe_file(probe, b"")
            try:
                self._files.invalidate_cache()
                passed = self._files.modified(probe) - self._files.modified(self._place)
            finally:
                self._files.rm_file(probe)
        except (OSError, NotImplementedError, LookupError):
            return 0.0
        return float(passed.total_seconds())

    def beat(self) -> None:
        holder = self._holder
        # Stores fail for seconds at a time, each in its own way; the next beat tries again.
        with contextlib.suppress(Exception):
            if not self._is_ours():
                self.is_lost = True
            elif holder is not None:
                self._beats += 1
                self._files.pipe_file(self._place, self._text(holder))

    def _text(self, holder: Holder) -> bytes:
        return holder.encode() + b"%d\n" % self._beats

    def _content(self) -> bytes | None:
        self._files.invalidate_cache()
        try:
            return bytes(self._files.cat_file(self._place))
        except FileNotFoundError:
            return None


def _read(file: Path) -> Holder | None:
    try:
        return Holder.parse(file.read_bytes())
    except FileNotFoundError:
        return None


def _is_at(descriptor: int, file: Path) -> bool:
    """Tell whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _changed(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _age(file: Path) -> float:
    """Return how old a file is by the file system's own clock, which dates another one now."""
    probe = file.with_name(f"{file.name}.{os.urandom(8).hex()}")
    try:
        probe.touch()
        passed = probe.stat().st_mtime - file.stat().st_mtime
        probe.unlink()
    except FileNotFoundError:
        return 0.0
    return passed
