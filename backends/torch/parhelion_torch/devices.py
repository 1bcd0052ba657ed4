"""Which GPUs there are, and which of them this process trains on."""

from __future__ import annotations

import os

import torch

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.processes import Launched, find_launched

__all__ = ["choose_gpus"]


def choose_gpus(use_cpu: bool | None, gpus: list[int] | None) -> list[int]:
    """Return the ids of the GPUs that a trainer in this process is to use; none for the CPU.

    A process that a launcher started has the one at its local rank, among ``gpus`` where they are given. One that sees
    a single GPU, as ``srun --gpus-per-task=1`` has it, takes that.

    Args:
        use_cpu: train on the CPU although there is a GPU.
        gpus: ids; None for all.

    Raises:
        InvalidTypeError: an argument is of a type that cannot work.
        InvalidValueError: a GPU is not there, or there are less of them than processes.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if use_cpu not in {None, True, False}:
        raise InvalidTypeError(f"use_cpu is {use_cpu!r}; expected True, False or None.")
    _check_ids(use_cpu, gpus, visible)
    if use_cpu or (gpus is None and not visible):
        return []
    launched = find_launched(os.environ)
    if launched is not None and launched.size > 1:
        return [_own_gpu(launched, list(range(visible)) if gpus is None else gpus)]
    if gpus is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return [torch.cuda.current_device()]  # whoever has made the group has chosen it
    return list(range(visible)) if gpus is None else list(gpus)


def _check_ids(use_cpu: bool | None, gpus: list[int] | None, visible: int) -> None:
    if gpus is None:
        return
    if not isinstance(gpus, (list, tuple)):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
        raise InvalidTypeError(f"gpus is {gpus!r}; expected a list of ids, such as [0], or None.")
    if use_cpu:
        if gpus:
            raise InvalidValueError(f"use_cpu is True and gpus is {gpus}; expected one of them. Leave out use_cpu.")
        return
    if not gpus:
        raise InvalidValueError("gpus is []; expected ids of GPUs, or use_cpu=True for the CPU.")
    unknown = [gpu for gpu in gpus if isinstance(gpu, bool) or not isinstance(gpu, int) or not 0 <= gpu < visible]  # pyright: ignore[reportUnnecessaryIsInstance]
    if unknown:
        there = f"ids from 0 to {visible - 1}" if visible else "none, since torch finds no GPU"
        raise InvalidValueError(f"gpus has {unknown}; expected {there}. Pass use_cpu=True to train on the CPU.")
    if len(set(gpus)) < len(gpus):
        raise InvalidValueError(f"gpus is {gpus}; expected each id once, since each is a process's own.")


def _own_gpu(launched: Launched, gpus: list[int]) -> int:
    """Return the GPU of one of the processes that a launcher started on this machine."""
    if launched.local_rank < len(gpus):
        return gpus[launched.local_rank]
    if len(gpus) == 1 and launched.launcher in {"openmpi", "mpich", "slurm"}:
        return gpus[0]  # each process sees another one
    raise InvalidValueError(
        f"this process has the local rank {launched.local_rank} and the GPUs here are {gpus}; expected one for each "
        "process. Start fewer processes, or pass use_cpu=True."
    )
