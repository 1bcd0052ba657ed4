"""One run folder, one process: a second one is refused by name, and what a dead one held is taken over."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

from parhelion.errors import CheckpointError, InvalidValueError

from ._holders import Holder
from ._lock_files import FileMark, FlockedFile, Mark, StoreMark, has_locks
from ._places import RemotePath, as_place
from ._remote import translating

if TYPE_CHECKING:
    from types import TracebackType

    from ._places import Where

__all__ = ["RunLock"]

_LOGGER: Final = logging.getLogger("parhelion")
_POLLS_PER_BEAT: Final = 10
# A process that was just forked off a holder lets go as soon as it runs.
_GRACE: Final = 2.0
_live: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """The right of one process to write into a run's folder.

    On a local path it is the kernel's lock on a file beside the folder (``.<name>.lock``), which a killed process
    loses at once. Where another machine may share the folder without sharing locks, and in stores reached through
    fsspec, it is a file that the holder changes every ``beat`` seconds. A file that stays as it is for
    ``stale_after`` seconds is taken over, and so is that of a process of this machine that has ended; the log says so.

    A store without exclusive creation lets two that start within the same moment both write; each then looks again,
    and the one that was overwritten is refused.

    It is no lock between threads. A forked process does not hold what its parent holds.

    Args:
        folder: the run's folder, or the URL of one; it need not exist.
        beat: seconds between the holder's signs of life.
        stale_after: seconds without one after which the holder counts as dead.

    Raises:
        InvalidValueError: ``beat`` is not above 0, or ``stale_after`` is below three beats.
    """

    def __init__(self, folder: Where, *, beat: float = 5.0, stale_after: float = 30.0) -> None:
        if beat <= 0 or stale_after < 3 * beat:
            raise InvalidValueError(
                f"beat is {beat!r} and stale_after is {stale_after!r}; expected a beat above 0, and at least three of "
                "them before a holder counts as dead. Leave both out."
            )
        self._folder = folder
        self._beat, self._stale_after = beat, stale_after
        self._mark: Mark | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Hold the lock from now on.

        It may take up to ``stale_after`` seconds to see whether a holder on another machine is alive.

        Raises:
            CheckpointError: another process holds it, or this one does; or the lock cannot be written.
        """
        if self._mark is not None:
            raise CheckpointError(
                f"the lock of {self._folder} is held by this object already; expected it to be free. Release it first."
            )
        me = Holder.here()
        try:
            mark, former = self._take(me)
        except OSError as error:
            raise CheckpointError(
                f"run folder {self._folder} cannot be locked ({error.strerror or error}); expected a writable folder "
                "around it. Check its permissions, or choose another root."
            ) from error
        if former is not None:
            _LOGGER.warning("the lock of %s was left by %s, which is gone; it is taken over", self._folder, former)
        self._mark = mark
        _close_in_children(self)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_beat_until, args=(mark, self._beat, self._stop), name="parhelion-lock", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        mark, self._mark = self._mark, None
        _live.discard(self)
        if mark is None:
            return
        self._stop.set()
        if self._thread is not None and not sys.is_finalizing():  # an interpreter that ends runs no daemon any more
            self._thread.join()
        mark.release()

    def check(self) -> None:
        """Return if the lock is held still.

        Raises:
            CheckpointError: another process took it over, because this one showed no life for too long; it must not
                write any more.
        """
        if self._mark is not None and self._mark.is_lost:
            raise CheckpointError(
                f"the lock of {self._folder} was taken over by another process while this one stood still for more "
                f"than {self._stale_after:g} s; expected it to be held. End this run: the other one goes on."
            )

    def forget(self) -> None:
        """Drop what this process inherited by a fork; the parent holds on."""
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.forget()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()

    def _take(self, me: Holder) -> tuple[Mark, Holder | None]:
        """Return the mark that says we hold it, and who held it and is gone."""
        place = as_place(self._folder)
        if isinstance(place, RemotePath):
            with translating():
                return self._take_mark(StoreMark(place.with_name(f".{place.name}.lock")), me)
        folder = place.absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.parent / f".{folder.name}.lock"
        if has_locks(file):
            return self._take_flock(FlockedFile(file), me)
        return self._take_mark(FileMark(file), me)

    def _take_flock(self, mark: FlockedFile, me: Holder) -> tuple[Mark, Holder | None]:
        deadline = time.monotonic() + _GRACE
        while not mark.lock():
            holder = mark.read()
            if holder is None or not holder.is_dead(me) or time.monotonic() > deadline:
                raise self._refusal(holder, me)
            time.sleep(_GRACE / 100)
        try:
            former = mark.read()
            # Our kernel has just said that no process of this machine holds it. Others may not ask it.
            if former is not None and not former.shares_kernel(me):
                self._refuse_living(mark, former, me)
            mark.write(me)
        except BaseException:
            mark.forget()
            raise
        return mark, former

    def _take_mark(self, mark: FileMark | StoreMark, me: Holder) -> tuple[Mark, Holder | None]:
        former = None
        while not mark.create(me):
            former = mark.read()
            if former is None or not former.is_dead(me):
                self._refuse_living(mark, former, me)
            mark.remove(former)
        if not mark.is_settled():
            raise self._refusal(mark.read(), me)
        return mark, former

    def _refuse_living(self, mark: Mark, former: Holder | None, me: Holder) -> None:
        """Watch a mark until its holder changes it, or has not for long enough; no two clocks are compared."""
        age, seen = mark.age(), mark.sign()
        deadline = time.monotonic() + self._stale_after - age
        while seen is not None and time.monotonic() < deadline:
            time.sleep(self._beat / _POLLS_PER_BEAT)
            former, sign = mark.read() or former, mark.sign()
            if sign is None:
                return  # it was released
            if sign != seen:
                raise self._refusal(former, me)

    def _refusal(self, holder: Holder | None, me: Holder) -> CheckpointError:
        who = "a process that has not written its name" if holder is None else str(holder)
        same = ""
        if holder is not None and holder.is_same_process(me):
            same = " (this process)"
        elif holder is not None and holder.is_dead(me):
            same = " (it has ended; a process that it started keeps its files open)"
        return CheckpointError(
            f"run folder {self._folder} is in use by {who}{same}; expected one run at a time in it. Wait for that "
            "one or end it, or use another folder."
        )


def _beat_until(mark: Mark, seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        mark.beat()


_hooks: list[bool] = []


def _close_in_children(lock: RunLock) -> None:
    _live.add(lock)
    if not _hooks:
        _hooks.append(True)
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for lock in list(_live):
        lock.forget()
    _live.clear()
