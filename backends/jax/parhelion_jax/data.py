"""Loaders for jax: the core's own, over jax's samplers; their batches are NumPy's until the trainer places them."""

from __future__ import annotations

from typing import Any

import attrs

from parhelion.data import (
    CollateFn,
    DataLoaderParams,
    DatasetSplit,
    collate,
    open_loader,
)
from parhelion.errors import InvalidValueError
from parhelion.sampling import ResumableSamplerType

from .samplers import SAMPLER_REGISTRY, get_group

__all__ = ["collate", "create_dataloader", "loader_for"]


def create_dataloader(  # noqa: PLR0917 - the reference page fixes the arguments
    dataset: Any,
    random_seed: int = 6691,
    batch_size: int = 1,
    shuffle: bool = False,
    num_workers: int = 0,
    pin_memory: bool = True,
    drop_last: bool = False,
    debug_mode: bool = False,
    is_distributed: bool | None = False,
    sampler: ResumableSamplerType | str | None = None,
    collate_fn: CollateFn | str | None = None,
    *,
    split: DatasetSplit = DatasetSplit.TRAIN,
    num_shards: int = 1,
    **options: Any,
) -> tuple[Any, Any]:
    """Return a loader of NumPy batches that can begin anywhere, and the sampler that says where.

    The loader's iterations begin at ``sampler.position``. Batches, and what is drawn while they are made, are
    the same with any number of workers, and making them leaves NumPy's and Python's generators where they
    were (and torch's, if the dataset has loaded torch: it may be one that was written for torch).

    Without a ``sampler`` it is the distributed one where processes share the data, else the random one for
    ``shuffle``, else the sequential one. Without a ``collate_fn`` numbers and arrays are stacked:
    float -> float32, int -> int64, bool -> bool, what has a dtype keeps it.

    Args:
        dataset: a map dataset: ``__len__``, and ``__getitem__`` or ``__getitems__``; arrays by name, and what else
            :func:`parhelion.data.as_batched` knows; or a stream.
        random_seed: keys the order and each sample's randomness.
        batch_size: records per process and batch.
        shuffle: whether each epoch has a random order.
        num_workers: worker processes; 0 loads in this one.
        pin_memory: nothing here; jax copies to its devices by itself.
        drop_last: whether to leave out an incomplete last batch.
        debug_mode: whether to load in this process whatever ``num_workers`` says.
        is_distributed: whether processes share the data; None means if jax runs as several.
        sampler: a resumable sampler, or the name of a registered one. Its tail policy is set to the split's.
        collate_fn: makes a batch of a list of records, or the name of a registered function.
        split: what the data is for; evaluation splits never repeat a record.
        num_shards: devices of this process that a batch will be split over; a trainer passes its own.
        options: other arguments of ``parhelion.data.Loader``, such as ``global_rng`` ("batch", "sample" or
            "off"): what keys the process-wide generators while records are fetched.

    Raises:
        InvalidTypeError: (a TypeError) the sampler is not resumable, or an argument has a type that cannot work.
        InvalidValueError: (a ValueError) an argument has a value that cannot work, ``batch_size`` is no
            multiple of ``num_shards``, or an option is unknown.
        UnknownNameError: nothing is registered under a name.
    """
    params = DataLoaderParams(
        random_seed=random_seed,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        pin_memory=pin_memory,
        drop_last=drop_last,
        debug_mode=debug_mode,
        is_distributed=is_distributed,
        sampler=sampler,
        collate_fn=collate_fn,
        options=options,
    )
    return loader_for(dataset, split, params, num_shards=num_shards)


def loader_for(dataset: Any, split: DatasetSplit, params: DataLoaderParams, *, num_shards: int = 1) -> tuple[Any, Any]:
    """Return what :func:`create_dataloader` does, for a data set and its params; it raises the same."""
    _check_shards(params.batch_size, num_shards)
    world, rank = get_group()
    if params.is_distributed is None:
        params = attrs.evolve(params, is_distributed=world > 1)
    return open_loader(
        dataset,
        split,
        params,
        rank=rank,
        world=world,
        parts=num_shards,
        whole_tail=True,
        registry=SAMPLER_REGISTRY,
    )


def _check_shards(batch_size: Any, num_shards: int) -> None:
    if num_shards < 1:
        raise InvalidValueError(
            f"num_shards is {num_shards}; expected an integer >= 1. It counts the devices of this process."
        )
    if isinstance(batch_size, int) and batch_size >= 1 and batch_size % num_shards:
        raise InvalidValueError(
            f"batch_size is {batch_size} and a batch is split over {num_shards} devices of this process; expected "
            f"a multiple of {num_shards}. Set batch_size={batch_size + -batch_size % num_shards}, or train on fewer "
            "devices (gpus=[...], or a mesh)."
        )
