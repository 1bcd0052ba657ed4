"""Signals that end a run in order: the current update is finished, a checkpoint written, and all within a deadline."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final, Self

from parhelion.processes import OVERDUE, PREEMPTED

from ._calls import LEAVE, Calls, WaitEnded

__all__ = ["SignalStop"]

_log = logging.getLogger("parhelion")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Launchers pass on what the process group has got already, so what comes this close behind is the same warning.
_ECHO_SECONDS: Final = 1.0
# Parts of the deadline after which a validation is left, and a wait for data ended. The rest is for the save.
_LEAVE_AT, _END_WAIT_AT = 1 / 4, 1 / 2
_SAVING_CHECKS: Final = 0.1
# What each run that is going on has found. Runs that take turns may end in any order.
_formers: list[dict[signal.Signals, Any]] = []


class SignalStop:
    """Lets the first SIGTERM, SIGINT or SIGUSR1 end a run, and leaves a second one to the former handlers.

    As a context, for the time of the run. Outside the main thread, where Python takes no signals, it does nothing.

    Args:
        calls: hears why: "interrupted" for Ctrl-C at a terminal, else "preempted".
        deadline: seconds from the signal on, after which the process ends with the code 75 even if the run cannot be
            ended in order; a save in progress is waited for. None for no end.
        is_alone: whether this is the only process, so that it need not wait for data that others have.
        is_saving: whether a save is going on behind.
        tell: lets the other processes know why this one ends before they do.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        deadline: float | None,
        is_alone: bool,
        is_saving: Callable[[], bool],
        tell: Callable[[str], object],
    ) -> None:
        self._calls, self._deadline, self._is_alone = calls, deadline, is_alone
        self._is_saving, self._tell = is_saving, tell
        self._former: dict[signal.Signals, Any] = {}
        self._first_at: float | None = None
        self._is_nudge = False
        # The thread is there before the signal, since a handler may start none: it may hold the lock that this takes.
        self._told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="parhelion-deadline", daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)
            _formers.append(self._former)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._former:
            return
        self._put_back()
        _formers[:] = [each for each in _formers if each is not self._former]
        self._over.set()
        self._told.put(None)
        self._thread.join()

    def _put_back(self) -> None:
        for number, handler in self._former.items():
            # Compared by equality: a bound method is made anew each time.
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
            for other in _formers:
                if other[number] == self._on_signal:
                    other[number] = handler

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._is_nudge:
            self._is_nudge = False
            if self._calls.is_waiting:
                raise WaitEnded
        elif self._first_at is None:
            self._first_at = time.monotonic()
            self._calls.ask("interrupted" if number == signal.SIGINT and _is_at_terminal() else "preempted")
            self._told.put(number)
        elif time.monotonic() - self._first_at > _ECHO_SECONDS:
            self._put_back()
            os.kill(os.getpid(), number)

    def _watch(self) -> None:
        number, deadline = self._told.get(), self._deadline
        if number is None or deadline is None or self._over.wait(deadline * _LEAVE_AT):
            return
        self._calls.ask(LEAVE)
        if self._over.wait(deadline * (_END_WAIT_AT - _LEAVE_AT)):
            return
        if self._is_alone:
            self._is_nudge = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if self._over.wait(deadline * (1 - _END_WAIT_AT)):
            return
        while self._is_saving():
            if self._over.wait(_SAVING_CHECKS):
                return
        # What was saved last may be what the run has waited for.
        if self._over.wait(_ECHO_SECONDS):
            return
        _log.error(
            "the run was asked to end %g s ago and has not come to the end of its step; the process ends now, and the "
            "run goes on from its last checkpoint",
            deadline,
        )
        logging.shutdown()
        self._tell(OVERDUE)
        os._exit(PREEMPTED)


def _is_at_terminal() -> bool:
    """Return whether Ctrl-C can have come from a person: this process has the terminal. A scheduler gives none."""
    with suppress(OSError, ValueError, AttributeError):
        return os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp()  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
    return False
