"""Where a run stands in its data: one value of two integers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["Position", "check_count"]


def check_count(value: Any, what: str, least: int, way_out: str) -> int:
    """Return ``value`` as a plain int of at least ``least``.

    Args:
        value: what was given.
        what: its name, for the message.
        least: the smallest value allowed.
        way_out: what the message ends with: one thing that the caller can do.

    Raises:
        InvalidTypeError: it is no integer.
        InvalidValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidTypeError(f"{what} is {value!r}; expected an integer >= {least}. {way_out}")
    number = int(value)
    if number < least:
        raise InvalidValueError(f"{what} is {number}; expected an integer >= {least}. {way_out}")
    return number


@attrs.frozen(order=True)
class Position:
    """What comes next is the record at ``offset`` in the order of ``epoch``.

    Positions are ordered by epoch, then offset. After the last batch of epoch ``e`` comes ``Position(e + 1,
    0)``; an offset equal to the number of records does not occur.

    Attributes:
        epoch: 0-based number of the pass over the data.
        offset: samples that all ranks together have consumed in this epoch. It does not depend on how many
            ranks there were, nor on their batch size, so a run goes on from it with any others.

    Raises:
        InvalidTypeError: one of them is no integer.
        InvalidValueError: one of them is negative.
    """

    epoch: int = 0
    offset: int = 0

    def __attrs_post_init__(self) -> None:
        # Attribute validators would double the cost of a value that is made in every step.
        if type(self.epoch) is int and self.epoch >= 0 and type(self.offset) is int and self.offset >= 0:
            return
        epoch = check_count(self.epoch, "epoch of a position", 0, "The first epoch is 0.")
        offset = check_count(self.offset, "offset of a position", 0, "It counts samples consumed in the epoch.")
        object.__setattr__(self, "epoch", epoch)
        object.__setattr__(self, "offset", offset)
