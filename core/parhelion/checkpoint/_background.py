"""Saves that are written while training goes on: at most one at a time, and no failure is lost."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from parhelion.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Saver"]

_LOGGER: Final = logging.getLogger("parhelion")
# Shorter waits are the disk's moods.
_LONG_WAIT: Final = 1.0


class _Write:
    """One save, and the thread that does it.

    A thread of its own costs less than a tenth of a millisecond, ends by itself, and an interpreter that ends waits
    for it; a thread that waits for work would have to be told to end.
    """

    def __init__(self, write: Callable[[], object], on_failure: Callable[[], object]) -> None:
        self._write, self._on_failure = write, on_failure
        self._failures: list[BaseException] = []
        # An interrupted join() of Python 3.11 takes a thread that runs for one that has ended.
        self._done = threading.Event()
        # Not what it would inherit from a daemon: the interpreter would not wait for it.
        self._thread = threading.Thread(target=self._run, name="parhelion-save", daemon=False)

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is asked for
            self._failures.append(error)
        finally:
            # What was written need not stay in memory until the next save.
            del self._write
            self._done.set()
            if self._failures:
                # Only now does whoever looks find it.
                self._on_failure()

    def wait(self, timeout: float | None) -> bool:
        deadline = time.monotonic() + _LONG_WAIT
        while self._thread.ident is None:
            # Only if begin() was interrupted: the thread is just coming up, or never will.
            if time.monotonic() > deadline:
                return True
            time.sleep(0.001)
        return self._done.wait(timeout)

    def take_failure(self) -> BaseException | None:
        """Return what ended the save, to whoever asks first."""
        try:
            return self._failures.pop()
        except IndexError:
            return None


class Saver:
    """Does saves behind the training, one at a time; a failure is raised where it is next looked for, once.

    An interpreter that ends waits for a save in flight. In a forked process there is none, and nothing to wait for.
    As a context it waits at the end; if an error is on its way there already, a failure is logged instead.

    Args:
        in_background: False to do every save at once, in the calling thread, whose errors then leave as they are.
        on_failure: called behind, once there is a failure to look for.
    """

    def __init__(self, *, in_background: bool = True, on_failure: Callable[[], object] = lambda: None) -> None:
        self.in_background, self._on_failure = in_background, on_failure
        self._current: _Write | None = None
        self._process = os.getpid()
        self._has_complained = False

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight."""
        write = self._write_of_this_process()
        return write is not None and not write.is_done

    def start(self, write: Callable[[], object]) -> None:
        """Call ``write`` in the background, once the save before is done.

        Raises:
            CheckpointError: the save before failed; ``write`` was not called.
        """
        self.make_way()
        if not self.in_background:
            write()
            return
        self._current = _Write(write, self._on_failure)
        try:
            self._current.begin()
        except RuntimeError:
            # There are no threads to be had, as at the end of an interpreter; the save is wanted all the same.
            self._current = None
            write()

    def make_way(self) -> None:
        """Wait for the save before; the log says so once if that takes long.

        Raises:
            CheckpointError: it failed.
        """
        begin = time.monotonic()
        if self.wait(_LONG_WAIT):
            return
        self.wait()
        if not self._has_complained:
            self._has_complained = True
            _LOGGER.warning(
                "training waited %.1f s for the checkpoint before to be written; save less often, or to a faster disk",
                time.monotonic() - begin,
            )

    def check(self) -> None:
        """Return if no save has failed since the last look; this costs a look at a flag.

        Raises:
            CheckpointError: one has; its error is the cause.
        """
        write = self._current
        if write is not None and write.is_done:
            self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no save is in flight, at most ``timeout`` seconds; return whether that is so.

        Raises:
            CheckpointError: the save failed; its error is the cause.
        """
        write = self._write_of_this_process()
        if write is None:
            return True
        if not write.wait(timeout):
            return False
        if self._current is write:
            self._current = None
        failure = write.take_failure()
        if failure is not None:
            raise CheckpointError(
                f"a checkpoint could not be saved in the background ({type(failure).__name__}: {failure}); the ones "
                "before it are untouched. Remove the cause, and resume from the newest."
            ) from failure
        return True

    def close(self) -> None:
        """Wait for a save in flight; the saver may be used again.

        Raises:
            CheckpointError: the save failed; its error is the cause.
        """
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            _LOGGER.error("%s", failure, exc_info=failure)  # noqa: TRY400 - the other error is the one that leaves

    def _write_of_this_process(self) -> _Write | None:
        if self._process != os.getpid():
            # Threads stay behind at a fork: the parent does that save.
            self._process, self._current = os.getpid(), None
        return self._current
