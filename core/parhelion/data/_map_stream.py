"""The records of a map dataset as a stream, in an order that can be entered anywhere."""

from __future__ import annotations

from typing import Any, Self

from parhelion.errors import InvalidTypeError, InvalidValueError, RecordError
from parhelion.sampling import ResumableRandomSampler, ResumableSampler, ResumableSequentialSampler
from parhelion.seeds import SampleScope, derive, sample_base

from ._lane import Lane, default_lanes
from ._stream import Stream

__all__ = ["MapStream"]


class MapStream(Stream):
    """The records of a map dataset, so that stages of a stream, such as packing, can follow.

    Lane ``l`` of ``L`` gives the records at places ``l``, ``l + L``, ... of a sampler's order. What a record draws is
    what it draws in a loader of the dataset itself: ``sample_rng()`` is keyed by its place.

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        sampler: says in what order its records come; by default a random one with ``shuffle=True`` in the params, else
            the dataset's own.
        num_lanes: in how many parts the order is read. Default: the largest power of two up to the number of records
            and 16.

    Raises:
        InvalidTypeError: the dataset has not these methods, or the sampler is not resumable.
        InvalidValueError: the dataset is empty, or ``num_lanes`` is out of range.
    """

    def __init__(self, dataset: Any, sampler: ResumableSampler | None = None, *, num_lanes: int | None = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InvalidTypeError(
                f"dataset is a {type(dataset).__name__}; expected a map dataset, with __getitem__ and __len__. Give a "
                "stream to the loader as it is."
            )
        given: Any = sampler
        if given is not None and not isinstance(given, ResumableSampler):
            raise InvalidTypeError(
                f"sampler is {given!r}; expected a ResumableSampler, which can begin anywhere. Leave it out and set "
                "shuffle."
            )
        self._dataset, self._sampler = dataset, sampler
        self._size = len(dataset) if sampler is None else sampler.size
        lanes: Any = default_lanes(self._size) if num_lanes is None else num_lanes
        if isinstance(lanes, bool) or not isinstance(lanes, int):
            raise InvalidTypeError(f"num_lanes is {lanes!r}; expected an integer >= 1. Leave it out for the default.")
        if not 1 <= lanes <= self._size:
            raise InvalidValueError(
                f"num_lanes is {lanes}; expected an integer from 1 to {self._size}, the number of records. Leave it "
                "out for the default."
            )
        self._num_lanes = lanes

    @property
    def num_lanes(self) -> int:
        """In how many parts the order is read."""
        return self._num_lanes

    @property
    def name(self) -> str:
        """How many records there are, the sampler if there is one, and the number of lanes."""
        order = "" if self._sampler is None else f"{self._sampler.name} version {self._sampler.order_version}, "
        return f"MapStream({self._size} records, {order}{self._num_lanes} lanes)"

    def open(self, lane: Lane) -> _MapReader:
        """Return the records of one lane."""
        sampler = self._sampler
        if sampler is None:
            make = ResumableRandomSampler if lane.shuffle else ResumableSequentialSampler
            sampler = make(range(self._size), **({"seed": lane.seed} if lane.shuffle else {}))
        return _MapReader(self._dataset, sampler, lane)


class _MapReader:
    def __init__(self, dataset: Any, sampler: ResumableSampler, lane: Lane) -> None:
        self._dataset, self._sampler, self._lane = dataset, sampler, lane
        self._base = sample_base(lane.seed, lane.split, lane.epoch)
        self._place = lane.number

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        place, lane = self._place, self._lane
        if place >= self._sampler.size:
            raise StopIteration
        index = int(self._sampler.indices(lane.epoch, place, place + 1)[0])
        self._place += lane.count
        if lane.generators is not None:
            lane.generators.seed(derive(self._base, "global", place))
        with SampleScope(self._base, place):
            try:
                return self._dataset[index]
            except Exception as error:
                raise RecordError(
                    f"record with sample index {index} of {type(self._dataset).__name__} failed "
                    f"({type(error).__name__}: {error}). The error that it raised is chained to this one."
                ) from error

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._place}

    def load_state_dict(self, state: Any) -> None:
        self._place = state["place"]
