"""Which process this is."""

from __future__ import annotations

import os

import torch.distributed

from parhelion.errors import InvalidValueError
from parhelion.processes import World

__all__ = ["discover_world"]


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
