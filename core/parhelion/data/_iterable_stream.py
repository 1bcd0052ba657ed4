"""Whatever else can be iterated over, as a stream of one lane: with the state that it can say, or without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from parhelion.errors import DataError, InvalidTypeError, InvalidValueError

from ._lane import Lane
from ._stream import Stream

__all__ = ["IterableStream", "get_state_methods"]

_PAIRS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


def get_state_methods(value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """Return the two methods that say and take back a state, or None where there are none."""
    for names in _PAIRS:
        get, put = (getattr(value, name, None) for name in names)
        if callable(get) and callable(put):
            return get, put
    return None


class IterableStream(Stream):
    """The records of an iterable source.

    What has ``state_dict`` and ``load_state_dict``, or ``get_state`` and ``set_state``, can be entered where it was
    left: the source itself (torchdata's ``StatefulDataLoader`` and ``Loader``), or else its iterators (Grain's
    ``DatasetIterator``). Each epoch iterates over it anew. A source with a ``set_epoch`` is told the epoch before that;
    one with a state of its own, without ``set_epoch``, is given the one that its new iteration begins with.

    Args:
        source: what is iterated over.
        num_lanes: 1, or the number of ranks where each has a source of its own, with its part of the data. Then a run
            goes on with as many.

    Raises:
        InvalidTypeError: ``source`` cannot be iterated over, or ``num_lanes`` is no integer.
        InvalidValueError: ``num_lanes`` is below 1.
    """

    def __init__(self, source: Iterable[Any], *, num_lanes: int = 1) -> None:
        if not hasattr(source, "__iter__"):
            raise InvalidTypeError(
                f"source is {source!r}; expected an iterable of records. Give its class an __iter__ method."
            )
        lanes: Any = num_lanes
        if isinstance(lanes, bool) or not isinstance(lanes, int):
            raise InvalidTypeError(f"num_lanes is {lanes!r}; expected an integer >= 1. Pass the number of ranks, or 1.")
        if lanes < 1:
            raise InvalidValueError(f"num_lanes is {lanes}; expected an integer >= 1. Pass the number of ranks, or 1.")
        self._source, self._num_lanes = source, lanes
        self._has_state: bool | None = None

    @property
    def num_lanes(self) -> int:
        """1, or the number of ranks that have a source each."""
        return self._num_lanes

    @property
    def name(self) -> str:
        """The source's class."""
        return f"{type(self._source).__name__}({self._num_lanes} lanes)"

    @property
    def is_stateful(self) -> bool:
        """Whether the source, or the iterators that it makes, can say and take back where they are."""
        if self._has_state is None:
            owner = self._source if get_state_methods(self._source) is not None else iter(self._source)
            self._has_state = get_state_methods(owner) is not None
        return self._has_state

    @property
    def carries_over(self) -> bool:
        """Whether the source itself has the state, and nobody tells it the epoch."""
        return get_state_methods(self._source) is not None and not hasattr(self._source, "set_epoch")

    @property
    def is_own_part(self) -> bool:
        """Whether each rank has a source of its own."""
        return True

    def open(self, lane: Lane) -> _IterableReader:
        """Return the records of one iteration."""
        return _IterableReader(self._source, lane)

    def open_after(self, lane: Lane, carried: Any) -> _IterableReader:
        """Return the records of the iteration that follows the one which ended in that state."""
        return _IterableReader(self._source, lane, carried)

    def carry(self, state: Any) -> Any:
        """Return the source's own state."""
        return state["state"]


class _IterableReader:
    """One iteration over a source, which begins when its first record, or its state, is asked for."""

    def __init__(self, source: Any, lane: Lane, carried: Any = None) -> None:
        self._source, self._lane, self._carried = source, lane, carried
        self._iterator: Iterator[Any] | None = None
        self._next_pass: Any = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._next_pass is not None:
            raise StopIteration
        iterator, carried = self._begin(), self._carried
        self._carried = None
        try:
            return next(iterator)
        except StopIteration:
            if carried is not None:  # it took its state for the end of what there is
                self._iterator = self._iterate()
                return next(self._iterator)
            self._end()
            raise

    def _end(self) -> None:
        """Note where the next iteration would begin: from there, not from this end, torchdata goes on exactly."""
        methods = get_state_methods(self._source)
        if methods is not None and not hasattr(self._source, "set_epoch"):
            self._iterator = self._iterate()
            self._next_pass = {"of": "next pass", "state": copy.deepcopy(methods[0]())}

    def _begin(self) -> Iterator[Any]:
        """Return the iterator; where a source leads from pass to pass, every one begins with a state, as resumed."""
        if self._iterator is None:
            if hasattr(self._source, "set_epoch"):
                self._source.set_epoch(self._lane.epoch)
            elif (methods := get_state_methods(self._source)) is not None:
                state = self._carried
                if state is None:
                    self._iterate()
                    state = methods[0]()
                self._put(self._source, state)
            self._iterator = self._iterate()
        return self._iterator

    def _iterate(self) -> Iterator[Any]:
        """Return a new iterator; what its making draws is keyed, and moves nothing: a resumed run makes one more."""
        generators = self._lane.generators
        if generators is None:
            return iter(self._source)
        aside = generators.set_aside()
        try:
            generators.seed(self._lane.key("iterator"))
            return iter(self._source)
        finally:
            generators.put_back(aside)

    def _put(self, owner: Any, state: Any) -> None:
        methods = get_state_methods(owner)
        if methods is not None:
            methods[1](copy.deepcopy(state))

    def state_dict(self) -> Any:
        if self._next_pass is not None:
            return self._next_pass
        if self._iterator is None and self._carried is not None:
            return {"of": "carried", "state": copy.deepcopy(self._carried)}
        iterator = self._begin()
        for of, owner in (("source", self._source), ("iterator", iterator)):
            methods = get_state_methods(owner)
            if methods is not None:
                # A copy: it may be the very dict that the next record changes.
                return {"of": of, "state": copy.deepcopy(methods[0]())}
        return None

    def load_state_dict(self, state: Any) -> None:
        if state is None:
            raise DataError(
                f"the source {type(self._source).__name__} cannot go on where it was, for nothing says where; expected "
                "state_dict and load_state_dict, or get_state and set_state. Give it these."
            )
        self._iterator = self._carried = self._next_pass = None
        if state["of"] == "carried":
            self._carried = copy.deepcopy(state["state"])
        elif state["of"] == "iterator":
            self._put(self._begin(), state["state"])
        else:
            if hasattr(self._source, "set_epoch"):
                self._source.set_epoch(self._lane.epoch)
            self._put(self._source, state["state"])
            self._iterator = self._iterate()
