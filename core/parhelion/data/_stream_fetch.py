"""From a request to a batch of a stream, in the loop's process and in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs
import numpy as np

from parhelion.errors import DataError
from parhelion.generators import GlobalGenerators
from parhelion.sampling import FetchRequest
from parhelion.seeds import SampleScope, derive

from ._lane import Lane, StatefulIterator
from ._protocols import CollateFn
from ._stream import Stream

__all__ = ["LaneReader", "StreamFetch", "Taken", "make_request"]


class Taken(NamedTuple):
    """What a request for a batch of a lane came to.

    Attributes:
        batch: the batch; None where the lane had not enough records left.
        records: those that it had left then, uncollated.
        state: the lane's state behind them; None where nobody will ask for it.
    """

    batch: Any
    records: list[Any] | None
    state: dict[str, Any] | None


def make_request(epoch: int, place: int, lane: int) -> FetchRequest:
    """Return the request for the next batch of a lane.

    Args:
        epoch: the pass in which the reading of the lane began.
        place: records taken from it since.
        lane: which one.
    """
    return FetchRequest(epoch, place, np.array([lane], np.int64))


class LaneReader:
    """The records of one lane: of one pass, or of one after another.

    Args:
        stream: what is read.
        lane: which lane of it, in the epoch in which the reading begins.
        repeats: whether another pass follows when one is over.
        start: a state to go on from.

    Attributes:
        epoch: in which the reading began.
        count: records taken since.
    """

    def __init__(self, stream: Stream, lane: Lane, *, repeats: bool, start: dict[str, Any] | None = None) -> None:
        self._stream, self._repeats = stream, repeats
        self.epoch, self.count = lane.epoch, 0
        self._is_over, self._has_given = False, False
        self._records: StatefulIterator
        if start is None:
            self._lane = lane
            self._records = stream.open(lane)
            return
        self.count, self._has_given = start["count"], start["has_given"]
        self._lane = attrs.evolve(lane, epoch=start["pass"])
        if "carried" in start:
            self._records = stream.open_after(self._lane, start["carried"])
            return
        self._records = stream.open(self._lane)
        self._records.load_state_dict(start["records"])

    def is_at(self, place: int) -> bool:
        """Return whether the record that many records after the first is the next one."""
        return self.count == place or (self._is_over and place > self.count)

    def take(self, size: int) -> list[Any]:
        """Return the next records; fewer than ``size`` where the lane ends.

        Raises:
            DataError: a whole pass gave none, and another would follow.
        """
        taken: list[Any] = []
        while len(taken) < size and not self._is_over:
            try:
                taken.append(next(self._records))
                self._has_given = True
            except StopIteration:
                self._end_pass()
        self.count += len(taken)
        return taken

    def _end_pass(self) -> None:
        if not self._repeats:
            self._is_over = True
            return
        lane = self._lane
        if not self._has_given:
            raise DataError(
                f"lane {lane.number} of {lane.count} gave no record in pass {lane.epoch + 1} over the stream; expected "
                "one at least, since it is read again and again. Use fewer lanes (num_lanes), or look at what is "
                "filtered out; a source that can be iterated over once needs an __iter__ that begins anew."
            )
        self._lane, self._has_given = attrs.evolve(lane, epoch=lane.epoch + 1), False
        if self._stream.carries_over:
            self._records = self._stream.open_after(self._lane, self._stream.carry(self._records.state_dict()))
        else:
            self._records = self._stream.open(self._lane)

    def state(self) -> dict[str, Any]:
        """Return what a reader of the same lane can begin from."""
        return {
            "count": self.count,
            "pass": self._lane.epoch,
            "has_given": self._has_given,
            "records": self._records.state_dict(),
        }


@attrs.frozen(kw_only=True)
class StreamFetch:
    """What turns requests into batches, lane by lane; it can be pickled and called in a worker process.

    It holds the lanes' iterators, and reads on where the last request ended. A request from elsewhere begins a lane
    anew, or at the state that the fetch was given for it.

    Attributes:
        stream: what is read.
        lane: the seed, the split and so on of every lane.
        size: records of a batch.
        repeats: whether a lane goes on with another pass when one is over.
        starts: states of lanes by number, as :attr:`Taken.state` has them.
        begun: the epoch in which the reading of these began.
        collate_fn: makes a batch of a list of records.
        generators: the process-wide generators, keyed and put back; None leaves them alone.
        says_state: whether batches come with states.
    """

    stream: Stream
    lane: Lane
    size: int
    repeats: bool
    collate_fn: CollateFn
    generators: GlobalGenerators | None
    starts: Mapping[int, dict[str, Any]] = attrs.field(factory=dict[int, dict[str, Any]])
    begun: int = 0
    says_state: bool = True
    _readers: dict[int, LaneReader] = attrs.field(factory=dict[int, LaneReader], init=False, repr=False)

    @property
    def dataset(self) -> Stream:
        """The stream: what is named where it cannot be sent to a worker."""
        return self.stream

    def __call__(self, request: FetchRequest, *, in_worker: bool = False) -> Taken | None:
        """Return what the next batch of a lane comes to, or None for a request without a lane.

        Args:
            request: what :func:`make_request` returned.
            in_worker: nobody needs this process's generators, so they are not put back.

        Raises:
            DataError: the records cannot be read.
            CollateError: they do not fit together.
        """
        if not len(request.indices):
            return None
        if self.generators is None:
            return self._take(request)
        aside = None if in_worker else self.generators.set_aside()
        try:
            number = int(request.indices[0])
            self.generators.seed(self._key("global", request.epoch, number, request.place))
            return self._take(request)
        finally:
            if not in_worker:
                self.generators.put_back(aside)

    def _key(self, *purpose: int | str) -> int:
        return derive(self.lane.seed, "stream", "batch", self.lane.split, *purpose)

    def _take(self, request: FetchRequest) -> Taken:
        number = int(request.indices[0])
        reader = self._reader(number, request.epoch, request.place)
        records = reader.take(self.size)
        state = reader.state() if self.says_state else None
        if len(records) < self.size:
            return Taken(None, records, state)
        with SampleScope(self._key("collate", request.epoch, number), request.place, batched=True):
            return Taken(self.collate_fn(records), None, state)

    def collate_rest(self, records: list[Any], epoch: int, place: int) -> Any:
        """Return a batch of records that lanes had left at the end of an epoch.

        Args:
            records: one or more.
            epoch: the epoch.
            place: how many such records came before them.
        """
        aside = None if self.generators is None else self.generators.set_aside()
        try:
            if self.generators is not None:
                self.generators.seed(self._key("global", "rest", epoch, place))
            with SampleScope(self._key("collate", "rest", epoch), place, batched=True):
                return self.collate_fn(records)
        finally:
            if self.generators is not None:
                self.generators.put_back(aside)

    def open(self, number: int, epoch: int) -> dict[str, Any]:
        """Return the state of a lane at the beginning of an epoch; its reader waits there."""
        aside = None if self.generators is None else self.generators.set_aside()
        try:
            if self.generators is not None:
                self.generators.seed(self._key("global", epoch, number, 0))
            return self._reader(number, epoch, 0).state()
        finally:
            if self.generators is not None:
                self.generators.put_back(aside)

    def _reader(self, number: int, epoch: int, place: int) -> LaneReader:
        """Return the lane's reader where it must be; past its end it stays at the end."""
        reader = self._readers.get(number)
        if reader is None or reader.epoch != epoch or not reader.is_at(place):
            reader = self._readers[number] = self._open(number, epoch, place)
        return reader

    def _open(self, number: int, epoch: int, place: int) -> LaneReader:
        lane = attrs.evolve(self.lane, number=number, epoch=epoch)
        start = self.starts.get(number)
        if start is not None and (self.begun, start["count"]) == (epoch, place):
            return LaneReader(self.stream, lane, repeats=self.repeats, start=start)
        if place:
            raise DataError(
                f"lane {number} of the stream was asked for record {place} of epoch {epoch + 1}, where nobody has left "
                "it; expected requests in order. Begin another iteration."
            )
        return LaneReader(self.stream, lane, repeats=self.repeats)

    def __getstate__(self) -> dict[str, Any]:
        # Iterators stay where they are.
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self)) if field.init}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        readers: dict[int, LaneReader] = {}
        for name, value in (*state.items(), ("_readers", readers)):
            object.__setattr__(self, name, value)
