"""Signals that end a run in order: the current update is finished, a checkpoint written, and all within a deadline."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from ._calls import LEAVE, Calls, WaitEnded

__all__ = ["PREEMPTED_CODE", "stop_on_signals"]

_log = logging.getLogger("parhelion")

PREEMPTED_CODE: Final = 75  # EX_TEMPFAIL: try again
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Launchers pass on what the process group has got already, so what comes this close behind is the same warning.
_ECHO_SECONDS: Final = 1.0
# Parts of the deadline after which a validation is left, and a wait for data ended. The rest is for the save.
_LEAVE_AT, _END_WAIT_AT = 1 / 4, 1 / 2
_SAVING_CHECKS: Final = 0.1
# What each run that is going on has found. Runs that take turns may end in any order.
_formers: list[dict[signal.Signals, Any]] = []


@contextmanager
def stop_on_signals(
    calls: Calls, *, deadline: float | None, is_alone: bool, is_saving: Callable[[], bool]
) -> Generator[None]:
    """Let the first SIGTERM, SIGINT or SIGUSR1 end the run, and leave a second one to the former handlers.

    Outside the main thread, where Python takes no signals, this does nothing.

    Args:
        calls: hears why: "interrupted" for Ctrl-C at a terminal, else "preempted".
        deadline: seconds from the signal on, after which the process ends with the code 75 even if the run cannot be
            ended in order; a save in progress is waited for. None for no end.
        is_alone: whether this is the only process, so that it need not wait for data that others have.
        is_saving: whether a save is going on behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(calls, deadline, is_alone=is_alone, is_saving=is_saving)
    former: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def put_back() -> None:
        for number, handler in former.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)
            for other in _formers:
                if other[number] is on_signal:
                    other[number] = handler

    def on_signal(number: int, _: FrameType | None) -> None:
        if watch.take_nudge():
            if calls.is_waiting:
                raise WaitEnded
        elif watch.is_first():
            calls.ask(_reason(number))
            watch.begin(number)
        elif not watch.is_echo():
            put_back()
            os.kill(os.getpid(), number)

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    _formers.append(former)
    try:
        with watch:
            yield
    finally:
        put_back()
        _formers[:] = [each for each in _formers if each is not former]


def _reason(number: int) -> str:
    return "interrupted" if number == signal.SIGINT and _is_at_terminal() else "preempted"


def _is_at_terminal() -> bool:
    """Return whether Ctrl-C can have come from a person: this process has the terminal. A scheduler gives none."""
    with suppress(OSError, ValueError, AttributeError):
        return os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp()  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
    return False


class _Watch:
    """Looks at the clock from the signal on. Its thread is there before, since a handler may start none."""

    def __init__(
        self, calls: Calls, deadline: float | None, *, is_alone: bool, is_saving: Callable[[], bool]
    ) -> None:
        self._calls, self._deadline, self._is_alone, self._is_saving = calls, deadline, is_alone, is_saving
        self._told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._begun: float | None = None
        self._nudged = False
        self._thread = threading.Thread(target=self._run, name="parhelion-deadline", daemon=True)

    def __enter__(self) -> None:
        if self._deadline is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._told.put(None)
        if self._deadline is not None:
            self._thread.join()

    def is_first(self) -> bool:
        return self._begun is None

    def is_echo(self) -> bool:
        return self._begun is not None and time.monotonic() - self._begun < _ECHO_SECONDS

    def begin(self, number: int) -> None:
        self._begun = time.monotonic()
        self._told.put(number)

    def take_nudge(self) -> bool:
        nudged, self._nudged = self._nudged, False
        return nudged

    def _run(self) -> None:
        number, deadline = self._told.get(), self._deadline
        if number is None or deadline is None:
            return
        if self._over.wait(deadline * _LEAVE_AT):
            return
        self._calls.ask(LEAVE)
        if self._over.wait(deadline * (_END_WAIT_AT - _LEAVE_AT)):
            return
        if self._is_alone:
            self._nudged = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if self._over.wait(deadline * (1 - _END_WAIT_AT)):
            return
        while self._is_saving():
            if self._over.wait(_SAVING_CHECKS):
                return
        _log.error(
            "the run was asked to end %.0f s ago and does not come to the end of its step; the process ends now, and the "
            "run goes on from its last checkpoint",
            deadline,
        )
        logging.shutdown()
        os._exit(PREEMPTED_CODE)
