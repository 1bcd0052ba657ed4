"""Other ways to save the same arrays: each returns for how long the caller was blocked, and how long until durable.

What a library leaves in the page cache is synced by us, for all are asked for the same: bytes that outlive a power
cut. Only ours and the floors hash and verify nothing less than every byte.
"""

import functools
import os
import time
from pathlib import Path

import numpy as np

__all__ = ["PEERS", "memcpy_floor", "ours", "write_floor"]

META = {"run_name": "bench", "global_epoch": 1, "global_iteration": 1}


def sync_tree(path):
    """Make everything under a path durable; what is durable already costs nothing."""
    for folder, _, files in os.walk(path):
        for name in [*files, "."]:
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def memcpy_floor(state, kept):
    """Copy the state to memory that is there already."""
    for name, array in state.items():
        np.copyto(kept[name], array)


def write_floor(state, path):
    with path.open("wb", buffering=0) as stream:
        for array in state.values():
            stream.write(array.data.cast("B"))
        os.fsync(stream.fileno())


def ours(state, root, saver, hold):
    """Copy to kept memory, write, hash, sync and rename behind."""
    from parhelion.checkpoint import flatten, write_checkpoint

    begin = time.perf_counter()
    skeleton, arrays = flatten(state)
    held = hold.copy(arrays)
    saver.start(lambda: write_checkpoint(root, "ours", skeleton, held, META))
    blocked = time.perf_counter() - begin
    saver.wait()
    return blocked, time.perf_counter() - begin


def timed(save):
    """Turn a save that blocks to its end into a case."""

    @functools.wraps(save)
    def case(state, path):
        begin = time.perf_counter()
        save(state, path)
        sync_tree(path)
        seconds = time.perf_counter() - begin
        return seconds, seconds

    return case


@functools.cache
def tensors_of(key):
    """Return the state as tensors over the same memory; made once."""
    import torch

    return {name: torch.from_numpy(array) for name, array in _states[key].items()}


_states = {}


def as_tensors(state):
    _states[id(state)] = state
    return tensors_of(id(state))


@timed
def torch_save(state, path):
    import torch

    torch.save(as_tensors(state), path / "state.pt")


@timed
def safetensors_save(state, path):
    from safetensors.numpy import save_file

    save_file(state, path / "state.safetensors")


@functools.cache
def process_group():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@timed
def dcp_save(state, path):
    import torch.distributed.checkpoint as dcp

    process_group()
    dcp.save(as_tensors(state), checkpoint_id=path)


def dcp_async(state, path):
    import torch.distributed.checkpoint as dcp

    process_group()
    begin = time.perf_counter()
    future = dcp.async_save(as_tensors(state), checkpoint_id=path)
    blocked = time.perf_counter() - begin
    future.result()
    sync_tree(path)
    return blocked, time.perf_counter() - begin


@functools.cache
def orbax_checkpointer():
    import orbax.checkpoint as ocp

    return ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())


def orbax_async(state, path):
    import orbax.checkpoint as ocp

    checkpointer = orbax_checkpointer()
    begin = time.perf_counter()
    checkpointer.save(path / "orbax", args=ocp.args.StandardSave(state))
    blocked = time.perf_counter() - begin
    checkpointer.wait_until_finished()
    sync_tree(path)
    return blocked, time.perf_counter() - begin


PEERS = {
    "torch.save": torch_save,
    "safetensors": safetensors_save,
    "DCP": dcp_save,
    "DCP, async": dcp_async,
    "Orbax, async": orbax_async,
}
