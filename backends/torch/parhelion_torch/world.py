"""Which process this is."""

from __future__ import annotations

import os
from typing import Any

import attrs
import torch.distributed

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

    def barrier(self) -> None:
        """Return at once: there is nobody to wait for."""

    def gather(self, value: Any) -> list[Any]:
        """Return the value of the one process."""
        return [value]


def discover_world() -> World:
    """Return the world of this process.

    Raises:
        InvalidValueError: a launcher or a process group has several. Each would train on all the data and overwrite the
            others' checkpoints.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = str(torch.distributed.get_world_size())
    if size != "1":
        raise InvalidValueError(
            f"WORLD_SIZE is {size}; expected 1, since this release trains in one process. Start it without a launcher "
            "and without a process group."
        )
    return World()
