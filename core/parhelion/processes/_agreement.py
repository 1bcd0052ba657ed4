"""The agreement to hear a wish in front of the same unit of work everywhere: its two parts, without threads or sockets.

The first process calls a round; every process answers how many units it has begun; the most that anybody has begun
is the last unit that all still do, and the wishes are heard in front of the next one.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from parhelion.errors import WorldError

__all__ = ["Convener", "Member"]


class Member:
    """One process's part.

    ``enter`` belongs to the thread that works; ``call``, ``decide`` and ``give_up`` to the one that talks to the other
    processes. They share no lock: the working thread counts its unit before it looks at the flag, and the other one
    raises the flag before it reads the count. So a unit that begins unnoticed is always in the count.

    Args:
        bring: sends a wish to the first process, with the count of units begun here; a signal handler may call it.
        explain: makes the error that ``enter`` raises once there is nobody to agree with.
    """

    def __init__(self, bring: Callable[[int, str], None], explain: Callable[[], WorldError]) -> None:
        self.tick = 0
        """How many units have begun here."""
        self.is_called = False
        """Whether the next unit may not begin just so."""
        self._bring, self._explain = bring, explain
        self._num_called = 0  # rounds; written by the talking thread alone
        self._num_known = 0  # rounds whose outcome has been taken from the queue; the working thread's
        self._outcomes: queue.SimpleQueue[tuple[int, tuple[str, ...]] | None] = queue.SimpleQueue()
        self._ahead: list[tuple[int, tuple[str, ...]]] = []  # the working thread's
        self._is_over = self._is_ending = False

    def ask(self, wish: str) -> None:
        """Bring a wish; see :meth:`Meeting.ask`."""
        self._bring(self.tick, wish)

    def enter(self) -> tuple[str, ...]:
        """Count the next unit, and return the wishes to be heard in front of it; wait if a round is going on.

        Raises:
            WorldError: another process has failed or is gone, or this one has parted from them.
        """
        self.tick += 1
        if not self.is_called:
            return ()
        while not self._is_over and self._num_known < self._num_called:
            self._take_in(self._outcomes.get())
        if self._is_over:
            raise self._explain()
        return self._hear()

    def _take_in(self, outcome: tuple[int, tuple[str, ...]] | None) -> None:
        if outcome is None:
            self._outcomes.put(None)  # for the next one who asks
            raise self._explain()
        self._num_known += 1
        self._ahead.append(outcome)

    def _hear(self) -> tuple[str, ...]:
        """Return the wishes for the unit that has just been counted."""
        if self._is_ending and not self._ahead:
            raise self._explain()
        heard = [wish for last, wishes in self._ahead if last < self.tick for wish in wishes]
        self._ahead = [outcome for outcome in self._ahead if outcome[0] >= self.tick]
        self.is_called = False
        # Whoever raises the flag does so after saying why: it is either raised after this, or seen here.
        if self._ahead or self._num_known < self._num_called or self._is_over or self._is_ending:
            self.is_called = True
        return tuple(dict.fromkeys(heard))

    def call(self) -> int:
        """Let no further unit begin until the round is decided, and return how many have."""
        self._num_called += 1
        self.is_called = True
        return self.tick

    def decide(self, last: int, wishes: tuple[str, ...]) -> None:
        """End the round: units up to ``last`` are done by all, and the wishes heard in front of the next one."""
        self._outcomes.put((last, wishes))

    def give_up(self) -> None:
        """Let ``enter`` raise from now on, also where it waits."""
        self._is_over = True
        self.is_called = True
        self._outcomes.put(None)

    def expect_no_more(self) -> None:
        """Let ``enter`` raise once what has been decided is heard, and at a round that will not be decided."""
        self._is_ending = True
        self.is_called = True
        self._outcomes.put(None)


class Convener:
    """The first process's part: collects wishes, calls rounds and decides them, one at a time.

    Args:
        size: how many processes there are.
        tell: sends something to every process: ``("call", round)`` or ``("decided", last, wishes)``.
    """

    def __init__(self, size: int, tell: Callable[[tuple[object, ...]], None]) -> None:
        self._size, self._tell = size, tell
        self._wishes: list[str] = []
        self._lasts: dict[str, int] = {}  # by wish, the last unit before it was heard
        self._parted: dict[int, int] = {}  # how many units those have begun that begin no more
        self._ticks: dict[int, int] = {}
        self._round = 0
        self._is_open = False

    def wish(self, tick: int, text: str) -> None:
        """Take a wish from a process that has begun ``tick`` units; one that is about to be heard there is no news."""
        if text not in self._wishes and tick > self._lasts.get(text, -1):
            self._wishes.append(text)
            self._call()

    def here(self, rank: int, number: int, tick: int) -> None:
        """Take an answer to round ``number``."""
        if number == self._round:
            self._ticks[rank] = tick
            self._decide()

    def part(self, rank: int, tick: int) -> None:
        """Count on a process no more, which has begun ``tick`` units."""
        self._parted[rank] = tick
        self._decide()

    def _call(self) -> None:
        if self._wishes and not self._is_open:
            self._round += 1
            self._is_open, self._ticks = True, {}
            self._tell(("call", self._round))
            self._decide()

    def _decide(self) -> None:
        ticks = {**self._parted, **self._ticks}
        if not self._is_open or len(ticks) < self._size:
            return
        last, wishes = max(ticks.values()), tuple(self._wishes)
        self._wishes, self._is_open = [], False
        self._lasts.update(dict.fromkeys(wishes, last))
        self._tell(("decided", last, wishes))
