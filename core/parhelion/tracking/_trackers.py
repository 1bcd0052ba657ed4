"""Several trackers told as one."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from ._logger import LOGGER_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ._protocol import Tracker


class Trackers:
    """Tells every tracker; one that fails costs the others nothing.

    What a tracker cannot write (``OSError``: a full disk, a lost mount) does not end a run: the first failure
    is logged as an error, later ones are silent, the first row that succeeds again is logged too. Any other
    exception is a mistake in the call or in the tracker: the others get their row, then it is raised.

    Args:
        trackers: told in this order, closed in the opposite one.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)
        self._failing: set[int] = set()

    def start(self, step: int | None) -> None:
        """Start every tracker; if one refuses, those already started are closed and its error is raised."""
        self._failing.clear()
        started: list[Tracker] = []
        try:
            for tracker in self._trackers:
                started.append(tracker)
                tracker.start(step)
        except BaseException:
            for tracker in reversed(started):
                with contextlib.suppress(Exception):
                    tracker.close()
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give every tracker the row.

        Raises:
            Exception: the first error, other than ``OSError``, of a tracker.
        """
        self._tell_all(lambda tracker: tracker.log(step, values), self._trackers)

    def close(self) -> None:
        """Close every tracker, the last one first.

        Raises:
            Exception: the first error, other than ``OSError``, of a tracker.
        """
        self._tell_all(lambda tracker: tracker.close(), reversed(self._trackers))

    def _tell_all(self, tell: Callable[[Tracker], None], trackers: Iterable[Tracker]) -> None:
        mistakes: list[Exception] = []
        for tracker in trackers:
            try:
                tell(tracker)
            except OSError as error:
                self._note(tracker, error)
            except Exception as error:  # noqa: BLE001 - raised below, when the others have been told
                mistakes.append(error)
            else:
                self._note(tracker, None)
        if mistakes:
            raise mistakes[0]

    def _note(self, tracker: Tracker, error: OSError | None) -> None:
        name, known = type(tracker).__name__, id(tracker) in self._failing
        logger = logging.getLogger(LOGGER_NAME)
        if error is not None and not known:
            self._failing.add(id(tracker))
            logger.error("%s cannot write: %s. The run goes on without it until it can.", name, error)
        elif error is None and known:
            self._failing.discard(id(tracker))
            logger.info("%s can write again.", name)
