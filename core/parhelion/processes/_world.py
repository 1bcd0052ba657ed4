"""The processes that train together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from ._deadline import Deadlines
from ._meeting import LocalMeeting, Meeting

if TYPE_CHECKING:
    from ._channel import Channel  # imported by those who open one

__all__ = ["World"]

# As in _hub.py, which only those load who have other processes.
_BARRIER, _GATHER, _GATHER_TO_FIRST = "barrier", "gather", "gather_to_first"


@attrs.frozen(eq=False)
class World:
    """The processes that train together: one, or those that :func:`open_world` has connected.

    What a call of all processes costs grows with their number in the first one, through which everything goes. It is
    for starts, saves and ends, not for steps.

    Attributes:
        rank: this process among all, from 0.
        local_rank: this process among those of its machine, from 0.
        size: how many there are.
        meeting: where wishes are brought that all processes are to hear at once.
        topic: see :meth:`about`.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    meeting: Meeting = attrs.field(factory=LocalMeeting, repr=False)
    topic: str = attrs.field(default="", kw_only=True, repr=False)
    _channel: Channel | None = attrs.field(default=None, alias="channel", kw_only=True, repr=False)
    _deadlines: Deadlines = attrs.field(factory=Deadlines, alias="deadlines", kw_only=True, repr=False)

    def about(self, topic: str) -> Self:
        """Return this world with calls of its own, which other calls do not get in the way of.

        Args:
            topic: names them, the same in all processes.
        """
        return attrs.evolve(self, topic=topic)

    def barrier(self) -> None:
        """Return when every process has come here; see :meth:`gather`."""
        self._call(_BARRIER, None)

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gives here, by rank; whatever can be pickled.

        Calls of one topic are matched in their order, and one thread of a process is at it at a time. Where no topic is
        set, main threads have one and all other threads have one: what is done behind the loop is apart from it.

        Raises:
            WorldError: a process has failed, is gone, has closed its world or does something else; or another thread of
                this one is at that topic.
        """
        return self._call(_GATHER, value)

    def gather_to_first(self, value: Any) -> list[Any]:
        """Return what :meth:`gather` does in the first process, and an empty list in the others, which do not wait."""
        return self._call(_GATHER_TO_FIRST, value)

    def _call(self, kind: str, value: Any) -> list[Any]:
        if self._channel is None:
            return [value]
        return self._channel.gather(kind, value, self.topic)

    @property
    def failure(self) -> str | None:
        """What one of the processes has failed with, for any thread to read; None while all is well."""
        return None if self._channel is None else self._channel.failure

    def fail(self, text: str) -> None:
        """Tell all that this process is about to end by an error, and return when that has been sent.

        In each other process whatever waits for others raises from now on, with that text. It ends with status 1 if it
        has not closed its world within its grace: its main thread may wait where nothing can be raised.

        Args:
            text: the traceback.
        """
        if self._channel is not None:
            self._channel.fail(text)

    def leave_by(self, seconds: float, exit_code: int, reason: str = "the time to stop is over") -> None:
        """End this process after so many seconds, whatever it does, unless :meth:`stay` or :meth:`close` comes before.

        A signal handler may call it at any point.

        Args:
            seconds: from now.
            exit_code: the status that it ends with.
            reason: is logged then.
        """
        self._deadlines.set(seconds, exit_code, f"process {self.rank} ends with status {exit_code}: {reason}")

    def stay(self) -> None:
        """Take :meth:`leave_by` back."""
        self._deadlines.cancel()

    def close(self, timeout: float = 60.0) -> None:
        """Part from the others in order, as each of them must; a world of one goes on. A second call does nothing.

        Args:
            timeout: seconds that the first process waits for the others; these wait for nobody.
        """
        self._deadlines.cancel()
        if self._channel is not None:
            self._channel.close(timeout)
