"""What a process says that was to end and could not in time: the others end by it, too, and are to be started again."""

from __future__ import annotations

from typing import Final

from parhelion.errors import WorldError

__all__ = ["OVERDUE", "PREEMPTED", "is_overdue"]

OVERDUE: Final = "it was asked to end, and has not come to the end of its step before its time was over"
PREEMPTED: Final = 75
"""The exit status of a process that is to be started again: EX_TEMPFAIL, try again."""


def is_overdue(error: Exception) -> bool:
    """Return whether an error only says that another process was asked to end and had no time left."""
    return isinstance(error, WorldError) and OVERDUE in str(error)
