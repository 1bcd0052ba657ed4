"""Which processes train together, how this one joins them, and how it leaves."""

from __future__ import annotations

import atexit
import gc
import os
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
import torch.distributed

from parhelion.errors import WorldError
from parhelion.processes import Launched, World, find_launched, open_world

from .rendezvous import open_store

__all__ = ["discover_world", "leave_at_exit", "telling_what_broke"]

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "connectFullMesh", "NCCL error")
_PATIENCE = 5.0  # seconds until the reason has come over the control channel


class _Holder(Protocol):
    def let_go(self) -> None: ...


# One process is in one world: the process group it was opened for, and whether that is ours to destroy.
_joined: list[tuple[Any, World, bool]] = []
# What holds on to the process group beyond its end.
_holders: weakref.WeakSet[_Holder] = weakref.WeakSet()


def discover_world(device: torch.device | None = None) -> World:
    """Return the world of this process, having joined it if a launcher or a process group has several.

    A process group that is there already is used as it is. Else the processes that torchrun, srun or mpirun started
    make one: gloo for the CPU, and NCCL beside it for GPUs, with torch's own timeouts (30 minutes for gloo, 10 for
    NCCL); it is destroyed at the end of the program.

    Args:
        device: this process's device; None for the CPU.

    Raises:
        InvalidValueError: a launcher's environment is incomplete; names the variable.
        WorldError: the processes did not find each other.
    """
    distributed = torch.distributed
    if not distributed.is_available():
        return World()
    launched = find_launched(os.environ)
    is_ours = False
    if not distributed.is_initialized():
        if launched is None or launched.size == 1:
            return World()
        _join(launched, device)
        is_ours = True
    if distributed.get_world_size() == 1:
        return World()
    group: Any = distributed.group.WORLD
    if not _joined or _joined[-1][0] is not group:
        local_rank = _find_local_rank(launched, device)
        world = open_world(distributed.get_rank(), local_rank, distributed.get_world_size(), _share)
        _joined[:] = [(group, world, is_ours)]
        atexit.register(_leave)
    return _joined[-1][1]


def _join(launched: Launched, device: torch.device | None) -> None:
    """Make the process group of what a launcher started."""
    is_on_gpu = device is not None and device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if is_on_gpu else "gloo"
    address = {} if launched.host is None else {"MASTER_ADDR": launched.host, "MASTER_PORT": str(launched.port)}
    for name, value in address.items():
        os.environ.setdefault(name, value)
    try:
        torch.distributed.init_process_group(
            backend,
            store=open_store(launched.rank, launched.size),
            rank=launched.rank,
            world_size=launched.size,
            device_id=device if is_on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        raise WorldError(
            f"process {launched.rank} of {launched.size} did not find the others at "
            f"{os.environ.get('MASTER_ADDR', 'an unknown address')}:{os.environ.get('MASTER_PORT', '?')} ({error}); "
            "expected all of them there. Check MASTER_ADDR and MASTER_PORT, and that every process was started."
        ) from error


def _find_local_rank(launched: Launched | None, device: torch.device | None) -> int:
    rank = torch.distributed.get_rank()
    if launched is not None:
        return launched.local_rank
    return min(rank, device.index or 0) if device is not None and device.type == "cuda" else rank


def _share(value: Any) -> list[Any]:
    """Return what every process gives here, by rank: the one use of the framework's own gather."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    cast("Any", torch.distributed).all_gather_object(values, value)
    return values


@contextmanager
def telling_what_broke(world: World) -> Generator[None]:
    """Return a context in which a collective that broke off names the process that is gone.

    Raises:
        WorldError: a collective failed because another process is gone, or has failed.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or isinstance(error, WorldError) or not _is_loss(error):
            raise
        deadline = time.monotonic() + _PATIENCE
        while world.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        raise WorldError(
            f"a computation over all {world.size} processes broke off in process {world.rank}: "
            f"{world.failure or error}. See the error of the process that failed first."
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    is_of_group = isinstance(error, getattr(torch.distributed, "DistBackendError", ()))
    return is_of_group or any(text in str(error) for text in _LOST)


def leave_at_exit(holder: _Holder) -> None:
    """Have a model let go of its modules when the program ends, if a process group of ours ends then.

    Modules that are spread over processes hold on to their group. A group whose threads still run when Python ends
    ends the process with "terminate called without an active exception".
    """
    _holders.add(holder)


def _leave() -> None:
    """Say goodbye to the others and destroy the process group, if it is ours."""
    if not _joined:
        return
    (group, world, is_ours), _joined[:] = _joined[-1], []
    world.close()
    if not is_ours or not torch.distributed.is_initialized() or torch.distributed.group.WORLD is not group:
        return
    del group
    for holder in list(_holders):
        holder.let_go()
    gc.collect()
    torch.distributed.destroy_process_group()
