"""The processes that train together."""

from __future__ import annotations

from typing import Any

import attrs

from ._meeting import LocalMeeting, Meeting

__all__ = ["World"]


@attrs.frozen(eq=False)
class World:
    """The processes that train together.

    Attributes:
        rank: this process among all, from 0.
        local_rank: this process among those of its machine, from 0.
        size: how many there are.
        meeting: where wishes are brought that all processes are to hear at once.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    meeting: Meeting = attrs.field(factory=LocalMeeting, repr=False)

    def barrier(self) -> None:
        """Return when every process has come here."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gives here, by rank; whatever can be pickled."""
        return [value]

    @property
    def failure(self) -> str | None:
        """What ended another process, if something has."""
        return None

    def fail(self, text: str) -> None:
        """Tell the others that this process ends by an error, with its traceback; they end, too."""

    def gather_to_first(self, value: Any) -> list[Any]:
        """Return what :meth:`gather` does in the first process, and an empty list in the others."""
        return [value]
