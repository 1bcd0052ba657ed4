"""One iteration over a stream: which lane gives the next batch, and the state behind each of them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import attrs

from parhelion.errors import DataError
from parhelion.sampling import FetchRequest, Shard

from ._stream_fetch import StreamFetch, Taken, make_request

__all__ = ["Delivery", "Rotation", "StreamPass"]

_NOTHING = make_request(0, 0, 0)._replace(indices=make_request(0, 0, 0).indices[:0])


class Delivery(NamedTuple):
    """A batch and what it means.

    Attributes:
        batch: this rank's.
        num_records: records that all ranks take with it, padding not counted.
        entry: where a run goes on that has trained on it; None where nobody will ask.
    """

    batch: Any
    num_records: int
    entry: dict[str, Any] | None


@attrs.frozen(kw_only=True)
class Rotation:
    """Which lanes this rank reads, and which worker reads each.

    Batch ``b`` of all ranks comes from lane ``b`` modulo their number and goes to rank ``b`` modulo the world. The
    world divides the lanes, so a lane stays with a rank.

    Attributes:
        num_lanes: how many lanes there are.
        shard: this rank among the others, and the batch size.
        num_workers: how many workers there are; 0 counts as one.
        turn: the lane that rank 0 takes its next batch from.
    """

    num_lanes: int
    shard: Shard
    num_workers: int
    turn: int

    @property
    def lanes(self) -> list[int]:
        """This rank's lanes, by number."""
        first = (self.turn + self.shard.rank) % self.shard.world
        return list(range(first, self.num_lanes, self.shard.world))

    def turns(self) -> Iterator[int | None]:
        """Yield this rank's lanes for ever, from the present turn on; None where a worker is left out.

        Worker ``k`` modulo their number gets request ``k``; leaving some out keeps each lane with one worker.
        """
        own, workers = self.lanes, max(1, self.num_workers)
        begin = own.index((self.turn + self.shard.rank) % self.num_lanes)
        every = [*own, *[None] * (-len(own) % workers)]
        return itertools.chain([None] * (begin % workers), every[begin:], itertools.cycle(every))

    def turn_after(self, lane: int) -> int:
        """Return the turn that follows the one in which this rank has taken a batch from ``lane``."""
        return (lane - self.shard.rank + self.shard.world) % self.num_lanes


class StreamPass(Iterator[Delivery]):
    """The batches of one epoch, or of the rest of one.

    In an epoch of unknown length each lane is read to its end; ended lanes leave the rotation, and the records that
    they had left over, too few for a batch, follow at the end, in the order of the lanes. In one of a known length
    lanes never end.

    Args:
        fetch: makes batches, in this process or in its copies in workers.
        fetch_all: returns what fetching each of some requests comes to, in order.
        rotation: who reads which lane.
        epoch: which pass over the data this is.
        entry: where it begins; None for the start of the epoch.
        limit: batches after which it ends; None for all there are.
        drop_last: whether to leave out an incomplete last batch.
        pads: whether such a one is padded with its own records, up to a multiple of the shard's parts.
    """

    def __init__(
        self,
        fetch: StreamFetch,
        fetch_all: Callable[[Iterator[FetchRequest]], Iterator[Taken | None]],
        rotation: Rotation,
        *,
        epoch: int,
        entry: dict[str, Any] | None,
        limit: int | None,
        drop_last: bool,
        pads: bool,
    ) -> None:
        self._fetch, self._rotation, self._limit = fetch, rotation, limit
        self._drop_last, self._pads = drop_last, pads
        self._epoch = epoch
        self._begun: int = epoch if entry is None else entry["begun"]
        self._rest: int = 0 if entry is None else entry["rest"]
        self._turn = rotation.turn
        saved: dict[str, Any] = {} if entry is None else entry["lanes"]
        self._own = rotation.lanes
        self._states = {lane: saved[str(lane)] for lane in self._own if str(lane) in saved}
        self._ends: dict[int, Any] = {}
        self._rests: dict[int, list[Any]] = {}
        self._outstanding: deque[int | None] = deque()
        self._results = fetch_all(self._requests())
        self._tail: Iterator[Delivery] | None = None
        self.is_over = self._is_closed = False

    def _requests(self) -> Iterator[FetchRequest]:
        places = {lane: self._states[lane]["count"] if lane in self._states else 0 for lane in self._own}
        asked = 0
        for lane in self._rotation.turns():
            if asked == self._limit or len(self._rests) == len(self._own):
                return
            if lane is None or lane in self._rests:
                self._outstanding.append(None)
                yield _NOTHING
                continue
            self._outstanding.append(lane)
            yield make_request(self._begun, places[lane], lane)
            places[lane] += self._fetch.size
            asked += self._fetch.repeats  # one that may end early counts when it has come

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delivery:
        if self._is_closed:
            raise DataError(
                "another iteration over this stream has begun, so this one cannot go on; expected one at a time. "
                "Make a loader for each."
            )
        if self._tail is None:
            for taken in self._results:
                lane = self._outstanding.popleft()
                if lane is None or taken is None:
                    continue
                if taken.records is None:
                    self._states[lane], self._turn = taken.state, self._rotation.turn_after(lane)
                    shard = self._rotation.shard
                    return Delivery(taken.batch, shard.batch_size * shard.world, self.entry())
                if lane not in self._rests:
                    self._rests[lane], self._ends[lane] = taken.records, taken.state
            self._tail = self._give_rests()
        delivery = next(self._tail, None)
        if delivery is None:
            self.is_over = True
            raise StopIteration
        return delivery

    def _give_rests(self) -> Iterator[Delivery]:
        """Yield batches of the records that lanes had left over."""
        shard = self._rotation.shard
        records = [record for lane in sorted(self._rests) for record in self._rests[lane]][self._rest :]
        self._rests = {lane: [] for lane in self._rests}
        for begin in range(0, len(records), shard.batch_size):
            part = records[begin : begin + shard.batch_size]
            count = len(part)
            if count < shard.batch_size and self._drop_last:
                return
            if self._pads:
                part += [*itertools.islice(itertools.cycle(part[:count]), -count % shard.parts)]
            batch = self._fetch.collate_rest(part, self._epoch, self._rest)
            self._rest += count
            yield Delivery(batch, count, self.entry())

    def entry(self) -> dict[str, Any] | None:
        """Return where a run goes on that has trained on what was delivered so far."""
        if not self._fetch.says_state:
            return None
        lanes = {str(lane): state for lane, state in self._states.items()}
        return {"begun": self._begun, "turn": self._turn, "rest": self._rest, "lanes": lanes}

    def next_entry(self) -> dict[str, Any] | None:
        """Return where the next epoch begins, once this one is over; None if at the beginning of the data."""
        stream = self._fetch.stream
        if self._fetch.repeats or not self._fetch.says_state:
            return self.entry()
        if not stream.carries_over:
            return None
        lanes = {
            str(lane): {
                "count": 0,
                "pass": self._epoch + 1,
                "has_given": False,
                "carried": stream.carry(state["records"]),
            }
            for lane, state in {**self._states, **self._ends}.items()
        }
        return {"begun": self._epoch + 1, "turn": 0, "rest": 0, "lanes": lanes}

    def close(self) -> None:
        """Ask for no more batches."""
        self._is_closed = True
        close = getattr(self._results, "close", None)
        if close is not None:
            close()
