"""What is done to the records of a lane on their way: mapped, filtered, shuffled, or given to a class of the user's."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self

from parhelion.errors import DataError, InvalidTypeError, InvalidValueError, RecordError
from parhelion.sampling import Permutation

from ._lane import Lane, RecordKeys, StatefulIterator

__all__ = ["Filter", "Map", "Shuffle", "Stage", "Transform"]


class Stage(ABC):
    """One transformation of a stream; it is sent to workers, so it keeps no place."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it does to the order and the state, in a word."""

    @abstractmethod
    def open(self, records: StatefulIterator, lane: Lane) -> StatefulIterator:
        """Return the transformed records of a lane, whose state has that of ``records`` in it."""


class Map(Stage):
    """Calls a function on every record."""

    @property
    def name(self) -> str:
        """What it does."""
        return "map"

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = _check_function(function, "map", "a function of a record")

    def open(self, records: StatefulIterator, lane: Lane) -> StatefulIterator:
        """Return what the function makes of each record."""
        return _Mapped(records, lane, self._function)


class Filter(Stage):
    """Keeps the records for which a predicate is true."""

    @property
    def name(self) -> str:
        """What it does."""
        return "filter"

    def __init__(self, predicate: Callable[[Any], Any]) -> None:
        self._predicate = _check_function(predicate, "filter", "a function of a record that says whether to keep it")

    def open(self, records: StatefulIterator, lane: Lane) -> StatefulIterator:
        """Return the records that are kept."""
        return _Filtered(records, lane, self._predicate)


class Shuffle(Stage):
    """Gives windows of records in a keyed order."""

    def __init__(self, buffer_size: int) -> None:
        size: Any = buffer_size
        if isinstance(size, bool) or not isinstance(size, int):
            raise InvalidTypeError(f"buffer_size is {size!r}; expected an integer >= 1. It counts records.")
        if size < 1:
            raise InvalidValueError(f"buffer_size is {size}; expected an integer >= 1. It counts records.")
        self._size = size

    @property
    def name(self) -> str:
        """What it does to the order."""
        return f"shuffle({self._size})"

    def open(self, records: StatefulIterator, lane: Lane) -> StatefulIterator:
        """Return the records, window after window."""
        return _Shuffled(records, lane, self._size)


class Transform(Stage):
    """Hands a lane's records to a class of iterators that keep state of their own."""

    def __init__(self, make: Callable[[Iterator[Any]], StatefulIterator], name: str = "") -> None:
        self._make = _check_function(make, "transform", "a class of iterators, made from an iterator of records")
        self._name = name or getattr(make, "__name__", type(make).__name__)
        self._make_one(iter(()))  # what cannot work is said now

    @property
    def name(self) -> str:
        """What it does."""
        return self._name

    def _make_one(self, records: Any) -> StatefulIterator:
        made: StatefulIterator = self._make(records)
        missing = [each for each in ("__next__", "state_dict", "load_state_dict") if not hasattr(made, each)]
        if missing:
            raise InvalidTypeError(
                f"transform {self._name!r} makes a {type(made).__name__} without {', '.join(missing)}; expected an "
                "iterator that can say and take back its state. Write a class with __next__(), state_dict() and "
                "load_state_dict(state), or use map for what keeps nothing between records."
            )
        return made

    def open(self, records: StatefulIterator, lane: Lane) -> StatefulIterator:
        """Return what the user's iterator makes of the records."""
        return _Transformed(self._make_one(records), records, lane, self._name)


def _check_function(function: Any, what: str, expected: str) -> Any:
    if not callable(function):
        raise InvalidTypeError(
            f"the argument of {what} is {function!r}; expected {expected}. Pass the function itself."
        )
    return function


class _Reader(ABC):
    """The records of a lane behind a stage.

    Args:
        records: those in front of it.
        lane: which they are.
    """

    def __init__(self, records: StatefulIterator, lane: Lane) -> None:
        self._records, self._lane = records, lane

    def __iter__(self) -> Self:
        return self

    @abstractmethod
    def __next__(self) -> Any: ...

    @abstractmethod
    def state_dict(self) -> Any: ...

    @abstractmethod
    def load_state_dict(self, state: Any) -> None: ...

    def _describe(self, number: int, what: str, error: Exception) -> RecordError:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        lane = self._lane
        return RecordError(
            f"record {number} of lane {lane.number} of {lane.count} in epoch {lane.epoch} failed in {what} ({text}). "
            "The error that it raised is chained to this one."
        )


class _Counted(_Reader):
    """A stage whose only state is how many records it has seen."""

    def __init__(self, records: StatefulIterator, lane: Lane, function: Callable[[Any], Any]) -> None:
        super().__init__(records, lane)
        self._function, self._keys = function, RecordKeys(lane)
        self._seen = 0

    def _call(self, record: Any, what: str) -> Any:
        number = self._seen
        self._seen += 1
        with self._keys.scope(number):
            try:
                return self._function(record)
            except Exception as error:
                raise self._describe(number, f"{what}({_name(self._function)})", error) from error

    def state_dict(self) -> Any:
        return {"seen": self._seen, "records": self._records.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self._seen = state["seen"]
        self._records.load_state_dict(state["records"])


class _Mapped(_Counted):
    def __next__(self) -> Any:
        return self._call(next(self._records), "map")


class _Filtered(_Counted):
    def __next__(self) -> Any:
        while True:
            record = next(self._records)
            if self._call(record, "filter"):
                return record


class _Shuffled(_Reader):
    """Windows of records, each in an order that its number keys.

    The state is where the window begins and how much of it was given, so a resumed run reads at most one window again.
    """

    def __init__(self, records: StatefulIterator, lane: Lane, size: int) -> None:
        super().__init__(records, lane)
        self._size = size
        self._number = self._given = 0
        self._window: list[Any] | None = None
        self._order: list[int] = []
        self._begin: Any = None

    def __next__(self) -> Any:
        if self._window is None or self._given == len(self._window):
            self._fill()
        window = self._window or []
        if self._given >= len(window):
            raise StopIteration
        record = window[self._order[self._given]]
        window[self._order[self._given]] = None  # its memory is the user's
        self._given += 1
        return record

    def _fill(self) -> None:
        """Read the next window, or the one that a loaded state is in."""
        if self._window is not None:
            if len(self._window) < self._size:
                return  # that was the last
            self._number, self._given = self._number + 1, 0
        self._begin = self._records.state_dict()
        self._window = []
        for record in self._records:
            self._window.append(record)
            if len(self._window) == self._size:
                break
        order = Permutation(len(self._window), self._lane.key("window", self._number))
        self._order = order.indices(0, len(self._window)).tolist()

    def state_dict(self) -> Any:
        if self._window is None:  # as loaded, or before the first
            return {"window": self._number, "given": self._given, "records": self._records.state_dict()}
        if self._given == len(self._window):
            return {"window": self._number + 1, "given": 0, "records": self._records.state_dict()}
        return {"window": self._number, "given": self._given, "records": self._begin}

    def load_state_dict(self, state: Any) -> None:
        self._number, self._given, self._window = state["window"], state["given"], None
        self._records.load_state_dict(state["records"])


class _Transformed(_Reader):
    """A user's iterator, and the records that it takes from."""

    def __init__(self, made: StatefulIterator, records: StatefulIterator, lane: Lane, name: str) -> None:
        super().__init__(records, lane)
        self._made, self._name, self._keys = made, name, RecordKeys(lane)
        self._given = 0

    def __next__(self) -> Any:
        with self._keys.scope(self._given):
            try:
                record = next(self._made)
            except (StopIteration, DataError):
                raise
            except Exception as error:
                raise self._describe(self._given, f"transform {self._name!r}", error) from error
        self._given += 1
        return record

    def state_dict(self) -> Any:
        # A copy: it may be the very list that the next record is put into.
        own = copy.deepcopy(self._made.state_dict())
        return {"given": self._given, "own": own, "records": self._records.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self._given = state["given"]
        self._records.load_state_dict(state["records"])
        self._made.load_state_dict(copy.deepcopy(state["own"]))


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
