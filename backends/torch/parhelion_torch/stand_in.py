"""Temporary: a world over gloo until the control channel is there."""

from __future__ import annotations

from typing import Any

import attrs
import torch.distributed as dist

from parhelion.processes import World

__all__ = ["Launched", "find_launched", "open_world"]


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


@attrs.frozen(eq=False)
class Standing(World):
    group: Any = None
    failure: str | None = None

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_to_first(self, value: Any) -> list[Any]:
        values = self.gather(value)
        return values if self.rank == 0 else []

    def close(self) -> None:
        dist.barrier(group=self.group)


def open_world(rank: int, local_rank: int, size: int, share: Any) -> World:
    return Standing(rank=rank, local_rank=local_rank, size=size, group=dist.new_group(backend="gloo"))
