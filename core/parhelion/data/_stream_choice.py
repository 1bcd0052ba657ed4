"""Loaders of streams, for what a user says about a data set."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.generators import GlobalGenerators, LoadedGenerators
from parhelion.sampling import Shard, Tail
from parhelion.seeds import check_seed, get_default_seed

from ._choice import check_params, get_collate_fn
from ._collate import collate
from ._fetch import get_global_rng
from ._iterable_stream import IterableStream
from ._params import DataLoaderParams, DatasetSplit, check_known
from ._protocols import CollateFn
from ._stream import Stream
from ._stream_loader import StreamCursor, StreamLoader
from ._worker_options import OPTION_NAMES, WorkerOptions

__all__ = ["create_stream_loader", "stream_batches"]

_log = logging.getLogger("parhelion")


def create_stream_loader(
    stream: Any,
    split: DatasetSplit,
    params: DataLoaderParams,
    *,
    rank: int = 0,
    world: int = 1,
    parts: int = 1,
    default_collate: CollateFn = collate,
    generators: GlobalGenerators | None = None,
) -> tuple[StreamLoader, StreamCursor]:
    """Return a loader, and its cursor, for a stream and what its params ask for.

    ``shuffle`` is for the stream's own order, such as that of its shards. ``pin_memory`` does nothing here.
    ``debug_mode`` loads without workers. The options are those of :class:`~parhelion.data.Loader`, and
    ``records_per_epoch``: how many records of all ranks an epoch has. Then lanes are read again and again, each time in
    a new order, and an epoch begins where the one before it ended. Several ranks need it, since they cannot see each
    other's lanes end.

    Args:
        stream: a :class:`Stream`, or any iterable of records.
        split: what the data is for.
        params: what the user asked for.
        rank: this rank, where ``params.is_distributed``.
        world: number of ranks, where ``params.is_distributed``.
        parts: pieces that a rank's batch is split into; an incomplete last batch of the training split is padded with
            its own records up to a multiple of them.
        default_collate: makes batches unless the params say how.
        generators: the process-wide generators; Python's, NumPy's and, where it is loaded, torch's if None.

    Raises:
        InvalidTypeError: something has a type that cannot work.
        InvalidValueError: something has a value that cannot work, or an option is unknown.
        UnknownNameError: no collate function is registered under the name.
    """
    check_params(params)
    check_known(params.options, ["global_rng", "records_per_epoch", *OPTION_NAMES], "option of a stream's loader")
    if params.sampler is not None:
        raise InvalidTypeError(
            f"sampler is {params.sampler!r} and the dataset is a stream, which has its own order; expected None. "
            "Shuffle it with shuffle=True for its shards, and stream.shuffle(buffer_size) for its records."
        )
    stream = stream if isinstance(stream, Stream) else IterableStream(stream)
    options = dict(params.options)
    if options.get("worker_type", "process") != "process":
        raise InvalidValueError(
            f"worker_type is {options['worker_type']!r} and the dataset is a stream; expected 'process', since a lane "
            "is read in order by one worker. Leave it out."
        )
    size = options.pop("records_per_epoch", None)
    mode = get_global_rng(options.pop("global_rng", None), stream)
    rank, world = (rank, world) if params.is_distributed else (0, 1)
    shard = Shard(params.batch_size, rank, world, Tail.PAD if size is None else Tail.DROP, parts)
    _check_epoch(size, split, shard)
    _check_lanes(stream, shard)
    cursor = StreamCursor(stream, shard, params.random_seed, records_per_epoch=size, drop_last=params.drop_last)
    workers = 0 if params.debug_mode else _limit_workers(params.num_workers, stream.num_lanes // world)
    collate_fn = get_collate_fn(params.collate_fn)
    loader = StreamLoader(
        cursor,
        split=split,
        shuffle=params.shuffle,
        collate_fn=default_collate if collate_fn is None else collate_fn,
        generators=None if mode == "off" else LoadedGenerators() if generators is None else generators,
        options=WorkerOptions(num_workers=workers, **options),
    )
    return loader, cursor


def stream_batches(
    source: Iterable[Any],
    *,
    batches_per_epoch: int | None = None,
    seed: int | None = None,
    rank: int = 0,
    world: int = 1,
    generators: GlobalGenerators | None = None,
) -> tuple[StreamLoader, StreamCursor]:
    """Return a loader, and its cursor, for an iterable source of ready batches; a position then counts batches.

    A data module's ``train_dataloader`` may return it. The source is read in this process, and may have workers of its
    own.

    Args:
        source: a :class:`Stream` of batches, or any iterable of them.
        batches_per_epoch: batches of a rank after which an epoch ends, the next one going on from there; None where it
            ends with the source.
        seed: keys what is drawn while it is read; the default seed if None.
        rank: this rank, where each has a source of its own.
        world: number of ranks.
        generators: the process-wide generators, keyed and put back; None takes those of the run.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: an argument is out of range.
    """
    stream = source if isinstance(source, Stream) else IterableStream(source)
    shard = Shard(1, rank, world, Tail.PAD if batches_per_epoch is None else Tail.DROP)
    size = None
    if batches_per_epoch is not None:
        _check_count(batches_per_epoch, "batches_per_epoch")
        size = batches_per_epoch * world
    _check_epoch(size, DatasetSplit.TRAIN, shard)
    _check_lanes(stream, shard)
    seed = get_default_seed() if seed is None else check_seed(seed, "seed")
    cursor = StreamCursor(stream, shard, seed, records_per_epoch=size)
    return StreamLoader(cursor, collate_fn=_get_only, generators=generators, is_ready=True), cursor


def _get_only(records: list[Any]) -> Any:
    return records[0]


def _check_count(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{name} is {value!r}; expected an integer >= 1. Leave it out where the data ends.")
    if value < 1:
        raise InvalidValueError(f"{name} is {value}; expected an integer >= 1. Leave it out where the data ends.")


def _check_epoch(size: Any, split: DatasetSplit, shard: Shard) -> None:
    world = shard.world
    if size is None:
        if world > 1:
            raise InvalidValueError(
                f"records_per_epoch is None and {world} ranks read the stream; expected the number of records of an "
                "epoch, since ranks cannot see where each other's lanes end. Pass "
                "options={'records_per_epoch': ...}; for an exact evaluation use a map dataset."
            )
        return
    _check_count(size, "records_per_epoch")
    if size < shard.global_batch:
        raise InvalidValueError(
            f"records_per_epoch is {size} and a batch of all ranks takes {shard.global_batch} ({world} x batch_size "
            f"{shard.batch_size}); expected at least that many. Lower batch_size."
        )
    if split is not DatasetSplit.TRAIN and size % shard.global_batch:
        raise InvalidValueError(
            f"records_per_epoch is {size} for the {split.name.lower()} split and a batch of all ranks takes "
            f"{shard.global_batch}; expected a multiple of that, for what is left out would depend on the number of "
            f"ranks. Pass {size - size % shard.global_batch}."
        )


def _check_lanes(stream: Stream, shard: Shard) -> None:
    lanes, world = stream.num_lanes, shard.world
    if lanes % world:
        raise InvalidValueError(
            f"num_lanes of the stream is {lanes} and {world} ranks read it; expected a multiple of {world}, since a "
            f"lane is read by one rank. Pass num_lanes={max(1, lanes // world) * world} to the stream."
        )
    if stream.is_own_part and lanes != world:
        raise InvalidValueError(
            f"num_lanes of {stream.name} is {lanes} and there are {world} ranks; expected one lane for each, since a "
            f"rank has one source. Pass num_lanes={world}."
        )


def _limit_workers(num_workers: int, num_lanes: int) -> int:
    if num_workers > num_lanes:
        _log.warning(
            "num_workers is %d and this rank reads %d lanes of the stream, each with one worker; %d start",
            num_workers, num_lanes, num_lanes,
        )  # fmt: skip
        return num_lanes
    return num_workers
