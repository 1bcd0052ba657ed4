"""Signals that end a run in order: the current update is finished, a checkpoint written, and all within a deadline."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Final, Self

from parhelion.processes import PREEMPTED

from ._calls import LEAVE, Calls, WaitEnded

__all__ = ["SignalStop"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Launchers pass on what the process group has got already, so what comes this close behind is the same warning.
_ECHO_SECONDS: Final = 1.0
# Parts of the deadline after which a validation is left, and a wait for data ended. The rest is for the save.
_LEAVE_AT, _END_WAIT_AT = 1 / 4, 1 / 2
_SAVING_CHECKS: Final = 0.1
# What a second signal is given to end the process by its handler, for which the main thread must run Python.
_HANDLER_SECONDS: Final = 0.5
_OVER: Final = 0
# What each run that is going on has found. Runs that take turns may end in any order.
_formers: list[dict[signal.Signals, Any]] = []
_live: weakref.WeakSet[SignalStop] = weakref.WeakSet()
_hooks: list[bool] = []


class SignalStop:
    """Lets the first SIGTERM, SIGINT or SIGUSR1 end a run, and leaves a second one to the former handlers.

    As a context, for the time of the run. Outside the main thread, where Python takes no signals, it does nothing.

    Handlers run in the main thread, between two of its steps in Python. So a thread of its own is told of signals
    by the interpreter, at once, and keeps the time also where the main thread compiles or hangs.

    Args:
        calls: hears why: "interrupted" for Ctrl-C at a terminal, else "preempted".
        deadline: seconds from the signal on, after which the process ends with the code 75 even if the run cannot be
            ended in order; a save in progress is waited for. None for no end.
        is_alone: whether this is the only process, so that it need not wait for data that others have.
        is_saving: whether a save is going on behind.
        end: ends the process with a status, for a reason.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        deadline: float | None,
        is_alone: bool,
        is_saving: Callable[[], bool],
        end: Callable[[int, str], object],
    ) -> None:
        self._calls, self._deadline, self._is_alone = calls, deadline, is_alone
        self._is_saving, self._end = is_saving, end
        self._former: dict[signal.Signals, Any] = {}
        self._first_at: float | None = None
        self._is_nudge = self._is_woken = False
        self._num_nudges = 0
        # The thread is there before the signal, since a handler may start none: it may hold the lock that this takes.
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="parhelion-deadline", daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)
            _formers.append(self._former)
            other = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            self._is_woken = other == -1
            if not self._is_woken:  # it is an event loop's, or another run's: what the handler says has to do
                signal.set_wakeup_fd(other, warn_on_full_buffer=False)
            _put_back_in_forks(self)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._former:
            self._put_back()
            self._stop_listening()
            _formers[:] = [each for each in _formers if each is not self._former]
            _live.discard(self)
            self._mouth.shutdown(socket.SHUT_WR)
            if not sys.is_finalizing():  # an interpreter that ends runs no daemon any more
                self._thread.join()
        self._ear.close()
        self._mouth.close()

    def forget(self) -> None:
        """Let SIGTERM end a fork again, as a pool has it; what a whole group gets is its parent's business."""
        mine = [number for number in (signal.SIGINT, signal.SIGUSR1) if self._takes(number)]
        self._put_back()
        for number in mine:
            signal.signal(number, _leave_to_parent)
        self._stop_listening()
        self._former = {}  # the parent's thread is not to be told when this process leaves the run

    def _put_back(self) -> None:
        for number, handler in self._former.items():
            # Compared by equality: a bound method is made anew each time.
            if self._takes(number):
                # None is a handler that is not Python's, and cannot be put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            for other in _formers:
                if other[number] == self._on_signal:
                    other[number] = handler

    def _stop_listening(self) -> None:
        if (there := signal.set_wakeup_fd(-1)) != self._mouth.fileno():
            signal.set_wakeup_fd(there, warn_on_full_buffer=False)

    def _takes(self, number: int) -> bool:
        return signal.getsignal(number) == self._on_signal

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._is_nudge:
            self._is_nudge = False
            if self._calls.is_waiting:
                raise WaitEnded
        elif self._first_at is None:
            self._first_at = time.monotonic()
            self._calls.ask("interrupted" if number == signal.SIGINT and _is_at_terminal() else "preempted")
            if not self._is_woken:
                self._mouth.send(bytes([number]))
        elif time.monotonic() - self._first_at > _ECHO_SECONDS:
            self._put_back()
            os.kill(os.getpid(), number)

    # From here on: the thread.

    def _watch(self) -> None:
        while (number := self._hear(math.inf)) is None:
            pass
        if number == _OVER:
            return
        begin = time.monotonic()
        for seconds, act in self._stages(number):
            if self._is_over_by(begin + seconds, begin):
                return
            act()
        self._is_over_by(math.inf, begin)

    def _stages(self, number: int) -> Iterator[tuple[float, Callable[[], object]]]:
        """Yield what is done after how many seconds, counted from the signal."""
        deadline = self._deadline
        if deadline is None:
            return
        yield deadline * _LEAVE_AT, lambda: self._calls.ask(LEAVE)
        if self._is_alone:
            yield deadline * _END_WAIT_AT, lambda: self._nudge(number)
        yield deadline, lambda: None
        while self._is_saving():
            deadline += _SAVING_CHECKS
            yield deadline, lambda: None
        # What was saved last may be what the run has waited for.
        yield deadline + _ECHO_SECONDS, self._give_up

    def _nudge(self, number: int) -> None:
        self._is_nudge = True
        self._num_nudges += self._is_woken
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    def _give_up(self) -> None:
        self._end(
            PREEMPTED,
            f"the run was asked to end {self._deadline:g} s ago and has not come to the end of its step; it goes on "
            "from its last checkpoint",
        )

    def _is_over_by(self, when: float, begin: float) -> bool:
        """Wait until then, and return whether the run has ended."""
        while (left := when - time.monotonic()) > 0:
            number = self._hear(left)
            if number == _OVER:
                return True
            if number is None:
                continue
            if self._num_nudges:
                self._num_nudges -= 1
            elif time.monotonic() - begin > _ECHO_SECONDS:
                self._see_to(number)
        return False

    def _see_to(self, number: int) -> None:
        """End the process by a second signal, unless its handler does."""
        until = time.monotonic() + _HANDLER_SECONDS
        while time.monotonic() < until:
            if not self._takes(number):
                return
            time.sleep(_HANDLER_SECONDS / 50)
        self._end(128 + number, f"{signal.Signals(number).name} has come again, and the main thread hangs")

    def _hear(self, seconds: float) -> int | None:
        """Return which signal has come for this run, or that it is over; None if there is none after all."""
        self._ear.settimeout(None if seconds == math.inf else seconds)
        with suppress(TimeoutError):
            if not (said := self._ear.recv(1)):
                return _OVER
            if said[0] in self._former and self._takes(said[0]):
                return said[0]
        return None


def _put_back_in_forks(stop: SignalStop) -> None:
    _live.add(stop)
    if not _hooks:
        _hooks.append(True)
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for stop in list(_live):
        stop.forget()
    _live.clear()


def _leave_to_parent(*_: object) -> None:
    """Do nothing. Unlike SIG_IGN, this is not passed on to a program that the fork starts."""


def _is_at_terminal() -> bool:
    """Return whether Ctrl-C can have come from a person: this process has the terminal. A scheduler gives none."""
    with suppress(OSError, ValueError, AttributeError):
        return os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp()  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
    return False
