"""Temporary: a world over gloo until the control channel is there."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Launched", "find_launched"]


@attrs.frozen
class Launched:
    rank: int
    local_rank: int
    size: int
    local_size: int
    host: str | None = None
    port: int | None = None
    launcher: str = "torchrun"


def find_launched(environ: Any) -> Launched | None:
    if "WORLD_SIZE" not in environ:
        return None
    return Launched(
        int(environ["RANK"]),
        int(environ["LOCAL_RANK"]),
        int(environ["WORLD_SIZE"]),
        int(environ["LOCAL_WORLD_SIZE"]),
        environ["MASTER_ADDR"],
        int(environ["MASTER_PORT"]),
    )


