"""How processes agree to do something together that one of them wishes, such as to stop or to save.

Work is done in units that all processes do in the same order, each a training step or a batch of a validation. A
wish is fulfilled between the same two units everywhere. Until there is one, nothing is sent, and a unit costs a look
at a flag.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

__all__ = ["LocalMeeting", "Meeting"]


class Meeting(Protocol):
    """Where wishes are brought, and heard by all processes at once."""

    def ask(self, wish: str) -> None:
        """Bring a wish; from any thread, and from a signal handler. All processes hear it between the same two units.

        A wish that is brought twice before it is heard is heard once.
        """
        ...

    def enter(self) -> tuple[str, ...]:
        """Begin the next unit of work, and return the wishes that all hear in front of it; nearly always none.

        Raises:
            WorldError: another process has failed, or is gone.
        """
        ...


class LocalMeeting:
    """The meeting of one process: it hears in front of the next unit what it wishes."""

    def __init__(self) -> None:
        self._wishes: deque[str] = deque()

    def ask(self, wish: str) -> None:
        """Bring a wish; see :meth:`Meeting.ask`."""
        self._wishes.append(wish)

    def enter(self) -> tuple[str, ...]:
        """Return what has been wished for since the last time."""
        if not self._wishes:
            return ()
        heard: dict[str, None] = {}
        # One at a time: another may come at any point, from a signal handler too.
        while self._wishes:
            heard[self._wishes.popleft()] = None
        return tuple(heard)
