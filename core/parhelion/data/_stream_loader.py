"""The loader of a stream, and the cursor that says where it stands."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from parhelion.errors import InvalidValueError
from parhelion.generators import GlobalGenerators
from parhelion.sampling import ORDER_VERSION, FetchRequest, Position, Shard

from ._collate import collate
from ._lane import Lane
from ._params import DatasetSplit
from ._protocols import CollateFn
from ._stats import LoaderStats, Tally, tell_stats
from ._stream import Stream
from ._stream_fetch import StreamFetch, Taken
from ._stream_pass import Delivery, Rotation, StreamPass
from ._worker_options import WorkerOptions

if TYPE_CHECKING:
    from ._workers import Pool

__all__ = ["StreamCursor", "StreamLoader"]

_ALL = 2**62  # more records than any lane has left


class StreamCursor:
    """Where a stream's next iteration begins: what a sampler is for a map dataset.

    Args:
        stream: what is read.
        shard: the batch size, and this rank among the others.
        seed: the data seed.
        records_per_epoch: records of all ranks after which an epoch ends; None where it ends with the data.
        drop_last: whether an incomplete last batch is left out.

    Attributes:
        position: epoch and offset; the offset counts records of all ranks.
        entry: the state of the stream there; None at the beginning of the data.
    """

    def __init__(
        self, stream: Stream, shard: Shard, seed: int, *, records_per_epoch: int | None = None, drop_last: bool = False
    ) -> None:
        self.stream, self.shard, self.seed = stream, shard, seed
        self.size, self.drop_last = records_per_epoch, drop_last
        self.position = Position()
        self.entry: dict[str, Any] | None = None
        self.order_version = ORDER_VERSION

    @property
    def name(self) -> str:
        """Name of the kind of order, kept in checkpoints."""
        return type(self).__name__

    @property
    def batch_size(self) -> int:
        """Records per batch and rank."""
        return self.shard.batch_size

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the order beside the seed; what a stream has of that is kept with its state."""
        return {}

    def describe_position(self, position: Position) -> dict[str, Any]:
        """Return what a reader of a checkpoint may want to know of a position; nothing here."""
        return {}

    def seek(self, position: Position, entry: dict[str, Any] | None = None) -> None:
        """Make the next iteration begin at ``position``.

        Args:
            position: where.
            entry: the state of the stream there, as a pass has given it; None begins the epoch.

        Raises:
            InvalidValueError: it is in the middle of an epoch, and there is no state.
        """
        if position.offset and entry is None:
            raise InvalidValueError(
                f"position is record {position.offset} of epoch {position.epoch + 1} and there is no state of the "
                f"stream for it; expected both. A stream cannot be entered at a number: begin the epoch with "
                f"Position({position.epoch}, 0)."
            )
        self.position, self.entry = position, entry


class StreamLoader:
    """The batches of a stream from its cursor on, to the end of the epoch.

    Batches are the same with any number of workers, each of which reads some of the lanes. One iteration lasts until
    another begins.

    Args:
        cursor: what is read, and from where.
        split: what the data is for; part of the key of each record's randomness.
        shuffle: whether the stream's own order, such as that of its shards, is random.
        collate_fn: makes a batch of a list of records.
        generators: the process-wide generators, keyed for each record and put back; None leaves them alone.
        options: how many workers, and how they are used.
        is_ready: whether the records are batches already, one each.
    """

    def __init__(
        self,
        cursor: StreamCursor,
        *,
        split: DatasetSplit = DatasetSplit.TRAIN,
        shuffle: bool = False,
        collate_fn: CollateFn = collate,
        generators: GlobalGenerators | None = None,
        options: WorkerOptions | None = None,
        is_ready: bool = False,
    ) -> None:
        self.cursor, self.split = cursor, split
        self.is_ready = is_ready
        self.dataset = cursor.stream
        self.collate_fn = collate_fn
        self.generators = generators
        self._shuffle = shuffle
        self._options = WorkerOptions() if options is None else options
        self._tally = Tally(self._options.num_workers, self._options.worker_type)
        self._fetch: StreamFetch | None = None
        self._left_at: dict[str, Any] | None = None
        self._pass: StreamPass | None = None
        self._pool: Pool | None = None
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()

    @property
    def num_workers(self) -> int:
        """Worker processes; 0 if batches are made in this one."""
        return self._options.num_workers

    @property
    def batch_size(self) -> int:
        """Records per batch."""
        return self.cursor.batch_size

    def __iter__(self) -> Iterator[Any]:
        return map(_get_batch, self.open_pass())

    def open_pass(self, limit: int | None = None) -> StreamPass:
        """Return the batches from the cursor on, each with the state behind it; the iteration before it is over.

        Args:
            limit: batches after which the iteration ends; None for the epoch's end.
        """
        if self._pass is not None:
            self._pass.close()
            if not self._pass.is_over:
                self._left_at = None
        cursor, shard = self.cursor, self.cursor.shard
        epoch, entry = cursor.position.epoch, cursor.entry
        fetch = self._choose_fetch(entry)
        if cursor.size is not None:
            whole = shard.num_batches(cursor.size, cursor.position.offset)
            limit = whole if limit is None else min(limit, whole)
        self._pass = StreamPass(
            fetch,
            self._fetch_all,
            Rotation(
                num_lanes=cursor.stream.num_lanes,
                shard=shard,
                num_workers=self.num_workers,
                turn=0 if entry is None else entry["turn"],
            ),
            epoch=epoch,
            entry=entry,
            limit=limit,
            drop_last=cursor.drop_last,
            pads=self.split is DatasetSplit.TRAIN,
        )
        return self._pass

    def leave(self, entry: dict[str, Any] | None) -> None:
        """Note where the iteration that has just ended leaves the stream, so that the next one reads on from there."""
        self._left_at = entry

    def probe(self) -> dict[str, Any] | None:
        """Return the state at the beginning of the epoch; what it opens is used by the iteration that follows.

        Where workers read, or there is a state already, nothing is opened.
        """
        cursor = self.cursor
        if self.num_workers or cursor.entry is not None or not cursor.stream.is_stateful:
            return cursor.entry
        fetch, epoch = self._choose_fetch(None), cursor.position.epoch
        lane = cursor.shard.rank % cursor.stream.num_lanes
        return {"begun": epoch, "turn": 0, "rest": 0, "lanes": {str(lane): fetch.open(lane, epoch)}}

    def _choose_fetch(self, entry: dict[str, Any] | None) -> StreamFetch:
        """Return the fetch whose lanes stand at ``entry``, or will when they are asked."""
        starts: dict[str, Any] = {} if entry is None else entry["lanes"]
        if starts and self.num_workers and not self._options.persistent_workers:
            self._left_at = None  # whoever stands there has ended
        if any("carried" in start for start in starts.values()):
            self._left_at = None  # a source whose state leads from epoch to epoch is given it in every run alike
        if self._fetch is not None and (entry is self._left_at if starts else self._fetch.size == self.batch_size):
            return self._fetch
        self.close()
        cursor = self.cursor
        stream, rest = cursor.stream, 0 if entry is None else entry["rest"]
        self._fetch = StreamFetch(
            stream=stream,
            lane=Lane(
                count=stream.num_lanes,
                seed=cursor.seed,
                split=self.split.value,
                shuffle=self._shuffle,
                generators=self.generators,
            ),
            # Behind the last full batch of every lane, what each has left is all that it has left.
            size=_ALL if rest and cursor.size is None else cursor.batch_size,
            repeats=cursor.size is not None,
            collate_fn=self.collate_fn,
            generators=self.generators,
            starts={int(lane): state for lane, state in starts.items()},
            begun=0 if entry is None else entry["begun"],
            says_state=self.split is DatasetSplit.TRAIN,
        )
        return self._fetch

    def _fetch_all(self, requests: Iterator[FetchRequest]) -> Iterator[Taken | None]:
        fetch: Any = self._fetch
        tally = self._tally = Tally(self.num_workers, self._options.worker_type)
        if not self.num_workers:
            return tally.gather(fetch, requests, None, self._tell)
        # Its imports cost 6 ms, and only those who use workers need them.
        from ._workers import Batches, Pool  # noqa: PLC0415

        pool = self._pool
        if pool is None or not pool.is_usable():
            pool = Pool(fetch, self._options)
            self._pools.add(pool)
        keeps = self._options.persistent_workers
        self._pool = pool if keeps else None
        return tally.watch(Batches(pool, requests, is_last=not keeps, tally=tally), self._tell)

    def stats(self) -> LoaderStats:
        """Return where the time of the iteration that began last has gone, so far or in all."""
        return self._tally.stats()

    def _tell(self, stats: LoaderStats) -> None:
        tell_stats(self.split, self.cursor.stream.name, stats)

    def close(self) -> None:
        """End the workers, if there are any; an iteration that is not over fails, another starts new ones."""
        self._fetch = self._pool = self._left_at = None
        for pool in [*self._pools]:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _get_batch(delivery: Delivery) -> Any:
    return delivery.batch
