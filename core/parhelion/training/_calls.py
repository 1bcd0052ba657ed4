"""What is called for from outside the loop, in any process: a stop, a save by the clock, an end of waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from parhelion.processes import LocalMeeting, Meeting

__all__ = ["FAILED", "LEAVE", "SAVE", "Calls", "WaitEnded"]

SAVE: Final = "save"
LEAVE: Final = "leave"
FAILED: Final = "failed"


class WaitEnded(BaseException):
    """Thrown into a wait for data, once a run that is to end has waited too long. No error: nobody may wrap it."""


class Calls:
    """Wishes for one run: any thread, signal handler or process brings them, and the loop of every process hears them
    between the same two updates, or batches of a validation.

    A wish is why the run is to end ("preempted"), ``SAVE`` for a checkpoint, ``LEAVE`` to leave a validation that is
    going on, once the run is to end, or ``FAILED`` to look at what has failed behind.

    Args:
        meeting: where the processes agree.
        save_every: seconds between checkpoints by the clock; None for none, and in all processes but one.
        number: which run of this process it is, so that wishes for the one before are not heard.

    Attributes:
        stop: why the run is to end, once that was heard.
        save: whether a checkpoint was called for since the last one.
        leave: whether a validation is to be left.
        is_waiting: whether the loop waits for data.
    """  # noqa: D205 - one sentence that needs two lines

    def __init__(self, meeting: Meeting | None = None, *, save_every: float | None = None, number: int = 0) -> None:
        meeting = LocalMeeting() if meeting is None else meeting
        self._enter, self._ask = meeting.enter, meeting.ask
        self._save_every = math.inf if save_every is None else save_every
        self._save_at = math.inf
        self._prefix = f"{number} "
        self.stop: str | None = None
        self.save = self.leave = self.is_waiting = False

    def ask(self, wish: str) -> None:
        """Bring a wish; from anywhere."""
        self._ask(self._prefix + wish)

    def start_clock(self) -> None:
        """Count the seconds to the next checkpoint from now on; one that was called for is there."""
        self._save_at = time.perf_counter() + self._save_every
        self.save = False

    def hear(self, now: float) -> bool:
        """Begin the next unit of work, and return whether there is something to answer first.

        Raises:
            WorldError: another process has failed.
        """
        if now >= self._save_at:
            self._save_at = math.inf  # asked once, until it is done
            self.ask(SAVE)
        wishes = self._enter()
        return bool(wishes) and self._take(wishes)

    def _take(self, wishes: Iterable[str]) -> bool:
        mine = [wish.removeprefix(self._prefix) for wish in wishes if wish.startswith(self._prefix)]
        for wish in mine:
            if wish == SAVE:
                self.save = True
            elif wish == LEAVE:
                self.leave = True
            elif wish != FAILED:
                self.stop = self.stop or wish
        return bool(mine)

    def await_each(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Return the batches; while one is waited for, ``is_waiting`` says so."""
        return _Awaited(self, batches)


class _Awaited:
    """An iterator that says when it is waited for. A class, since a generator would be closed by what interrupts it."""

    def __init__(self, calls: Calls, batches: Iterable[Any]) -> None:
        self._calls = calls
        self._next = iter(batches).__next__

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        calls = self._calls
        calls.is_waiting = True
        try:
            return self._next()
        finally:
            calls.is_waiting = False
