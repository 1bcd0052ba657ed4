"""Processes that are started together on this machine, and end together."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import attrs

from ._overdue import PREEMPTED
from ._prefix import Prefixer

__all__ = ["Command", "Crew"]

_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_FINAL: Final = (signal.SIGINT, signal.SIGTERM)  # a second one of these ends all at once
# What comes this close behind is the same warning: timeout(1), for one, sends it to the process and to its group.
_ECHO_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 5.0  # between SIGTERM and SIGKILL
_GLANCE: Final = 0.05  # seconds, where the system tells of no ends

# It outlives exec, and goes with the thread that starts the process: whoever uses a crew waits for it in that thread.
_GUARD: Final = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except (AttributeError, OSError):
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@attrs.frozen
class Command:
    """What one process of a crew is.

    Attributes:
        arguments: the program and its arguments.
        environ: all its environment variables.
        descriptors: of files that it has open under the same numbers.
    """

    arguments: Sequence[str]
    environ: Mapping[str, str]
    descriptors: Collection[int] = ()


class Crew:
    """Runs processes until all have ended. Signals are passed on to each; if one fails, the others are made to end.

    They die with this process, however it ends.

    Args:
        commands: what each process is, by rank.
        grace: seconds that the others have to end by themselves when one has failed.
        prefix: pass on what they print line by line, with the rank in front.
    """

    def __init__(self, commands: Sequence[Command], *, grace: float, prefix: bool) -> None:
        self._commands, self._grace = commands, grace
        self._prefixer = Prefixer(len(commands)) if prefix else None
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ends: list[int] = []
        self._signals: deque[int] = deque()
        self._warned_at: float | None = None
        self._steps: deque[tuple[float, int]] = deque()  # when to send what to those that are left
        self.statuses: list[int | None] = [None] * len(commands)
        """How each has ended: its exit status, or the negative number of a signal."""
        self.failed: list[int] = []
        """The ranks that have ended neither well nor preempted, in that order."""
        self.ended_by: int | None = None
        """The signal for which all were killed at once, if one was."""

    def run(self) -> None:
        """Start all, and return when all have ended.

        Raises:
            OSError: the system refuses to start one; those that were are killed.
        """
        woken, wake = socket.socketpair()
        with woken, wake, self._selector, _forward(self._signals, wake):
            woken.setblocking(False)
            self._selector.register(woken, selectors.EVENT_READ)
            try:
                for rank in range(len(self._commands)):
                    self._start(rank)
                while None in self.statuses:
                    self._wait(woken)
            finally:
                self._kill(signal.SIGKILL)
                for process in self._processes:
                    process.wait()
                for end in self._ends:
                    os.close(end)
                if self._prefixer is not None:
                    self._prefixer.finish()

    def _start(self, rank: int) -> None:
        command = self._commands[rank]
        pipe = None if self._prefixer is None else subprocess.PIPE
        process = subprocess.Popen(  # noqa: S603 - what the caller asks for
            [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command.arguments],
            env=command.environ,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            pass_fds=[*command.descriptors],
            process_group=0,  # Ctrl-C comes by us, once
        )
        self._processes.append(process)
        if self._prefixer is not None:
            for stream in self._prefixer.add(rank, process):
                self._selector.register(stream, selectors.EVENT_READ, stream)
        with contextlib.suppress(AttributeError, OSError):  # not this system
            end = os.pidfd_open(process.pid)
            self._ends.append(end)
            self._selector.register(end, selectors.EVENT_READ, end)

    def _wait(self, woken: socket.socket) -> None:
        wait = None if len(self._ends) == len(self._processes) else _GLANCE
        if self._steps:
            left = max(0.0, self._steps[0][0] - time.monotonic())
            wait = left if wait is None else min(wait, left)
        for key, _ in self._selector.select(wait):
            if key.fileobj is woken:
                woken.recv(4096)
            elif isinstance(key.data, int) or not self._pass_output(key.data):
                self._selector.unregister(key.data)
        while self._signals:
            self._pass_on(self._signals.popleft())
        self._note_ends()
        while self._steps and time.monotonic() >= self._steps[0][0]:
            self._kill(self._steps.popleft()[1])

    def _pass_output(self, stream: Any) -> bool:
        return self._prefixer is not None and self._prefixer.pass_on(stream)

    def _pass_on(self, number: int) -> None:
        if number in _FINAL:
            now = time.monotonic()
            if self._warned_at is None:
                self._warned_at = now
            elif now - self._warned_at <= _ECHO_SECONDS:
                return
            else:
                self.ended_by = number
                self._kill(signal.SIGKILL)
        for rank, process in enumerate(self._processes):
            if self.statuses[rank] is None:
                process.send_signal(number)

    def _note_ends(self) -> None:
        for rank, process in enumerate(self._processes):
            if self.statuses[rank] is None and process.poll() is not None:
                self.statuses[rank] = process.returncode
                if process.returncode not in (0, PREEMPTED):
                    self._note_failure(rank)

    def _note_failure(self, rank: int) -> None:
        if not self.failed:
            now = time.monotonic() + self._grace
            self._steps += [(now, signal.SIGTERM), (now + _LAST_SECONDS, signal.SIGKILL)]
        self.failed.append(rank)

    def _kill(self, number: int) -> None:
        """Send a signal to those that are left; SIGKILL to what they have started, too."""
        for rank, process in enumerate(self._processes):
            if self.statuses[rank] is None:
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)


@contextmanager
def _forward(signals: deque[int], wake: socket.socket) -> Generator[None]:
    """Collect the signals that are to be passed on; outside the main thread there are none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wake.setblocking(False)

    def take(number: int, _: FrameType | None) -> None:
        signals.append(number)
        with contextlib.suppress(OSError):
            wake.send(b"\0")

    former: dict[int, Callable[..., Any] | int | None] = {each: signal.getsignal(each) for each in _FORWARDED}
    for number in _FORWARDED:
        signal.signal(number, take)
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
