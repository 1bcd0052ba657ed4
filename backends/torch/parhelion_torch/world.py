"""Which process this is."""

from __future__ import annotations

import os

import attrs

from parhelion.errors import InvalidValueError

__all__ = ["World", "discover_world"]


@attrs.frozen
class World:
    """The processes that train together: one.

    Attributes:
        rank: this process among all, from 0.
        local_rank: this process among those of its machine, from 0.
        size: how many there are.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1


def discover_world() -> World:
    """Return the world of this process.

    Raises:
        InvalidValueError: a launcher has started several processes. Each would train on all the data and overwrite the
            others' checkpoints.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise InvalidValueError(
            f"WORLD_SIZE is {size}; expected 1, since this release trains in one process. Start it without a launcher."
        )
    return World()
