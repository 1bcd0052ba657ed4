"""Ends the process if it has not got somewhere in time, whatever its main thread is doing."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import queue
import sys
import threading

__all__ = ["Deadlines"]

_LOG_SECONDS = 1.0


class Deadlines:
    """Those of one process. Nothing in it takes a lock, so a signal handler may set one at any point."""

    def __init__(self) -> None:
        self._canceled: list[queue.SimpleQueue[None]] = []

    def set(self, seconds: float, exit_code: int, reason: str) -> None:
        """End the process after so many seconds, unless :meth:`cancel` is called before.

        Args:
            seconds: from now.
            exit_code: the status it ends with.
            reason: what is logged then.
        """
        canceled: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._canceled.append(canceled)
        # threading.Thread takes a lock that the interrupted thread may hold.
        _thread.start_new_thread(_wait, (canceled, seconds, exit_code, reason))

    def cancel(self) -> None:
        """Let the process go on."""
        while self._canceled:
            self._canceled.pop().put(None)

    def forget(self) -> None:
        """Have none, in a fork, where no thread waits for them."""
        self._canceled = []


def _wait(canceled: queue.SimpleQueue[None], seconds: float, exit_code: int, reason: str) -> None:
    try:
        canceled.get(timeout=max(0.0, seconds))
    except queue.Empty:
        _end(exit_code, reason)


def _end(exit_code: int, reason: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{reason}\n".encode(errors="replace"))
    # A thread that is stuck may hold the lock of a log or of a stream.
    told = threading.Thread(target=_tell, args=(reason,), daemon=True)
    told.start()
    told.join(_LOG_SECONDS)
    os._exit(exit_code)


def _tell(reason: str) -> None:
    logger = logging.getLogger("parhelion")
    if logger.hasHandlers():
        logger.critical(reason)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
