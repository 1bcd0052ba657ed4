"""What is asked of a tracker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping


@runtime_checkable
class Tracker(Protocol):
    """Whoever is told, at every print, the step and its values.

    A tracker knows no training state. What it needs to know beside the step (the epoch, the time, the
    throughput) comes as one more value. Between ``start`` and ``close`` the steps never decrease; values for
    the step of the last row are added to that row.
    """

    def start(self, step: int | None) -> None:
        """Be ready for rows.

        Args:
            step: None for a fresh run. For a run that goes on after this step, rows of later steps are gone.

        Raises:
            InvalidValueError: the place to write to cannot be written to, or is something else.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take one row: the values that belong to ``step``."""
        ...

    def close(self) -> None:
        """Let go of files, handlers and the terminal; closing twice, or before any start, does nothing."""
        ...
