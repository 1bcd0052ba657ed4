"""The logger "parhelion" while a run has handlers on it."""

from __future__ import annotations

import logging

LOGGER_NAME = "parhelion"

# Set on a record that is a row of values, to its step: other handlers can tell rows from messages by it.
STEP_ATTRIBUTE = "parhelion_step"


class RunHandler(logging.Handler):
    """A handler that is on the logger for the time of a run.

    Attributes:
        former_level: the logger's level before the first of these handlers came.
    """

    former_level: int = logging.NOTSET


def attach(handler: RunHandler) -> None:
    """Put the handler on the logger, which lets INFO through unless its user has set another level."""
    logger = logging.getLogger(LOGGER_NAME)
    others = [other for other in logger.handlers if isinstance(other, RunHandler)]
    handler.former_level = others[0].former_level if others else logger.level
    if logger.level == logging.NOTSET and logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def detach(handler: RunHandler) -> None:
    """Take the handler off the logger; with the last one, the former level is back."""
    logger = logging.getLogger(LOGGER_NAME)
    logger.removeHandler(handler)
    if not any(isinstance(other, RunHandler) for other in logger.handlers):
        logger.setLevel(handler.former_level)
