"""Streams: data that is read in order, in lanes, and can be entered where an earlier reader left it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from parhelion.seeds import get_default_seed

from ._lane import Lane, StatefulIterator
from ._packing import Concatenated, Fitted, PackOptions
from ._stream_stages import Filter, Map, Shuffle, Stage, Transform

__all__ = ["Stream"]


class Stream(ABC):
    """A recipe for records that come in order.

    It holds no place: :meth:`open` makes an iterator over one of its *lanes*, the parts that it is read in. How many
    lanes there are, and what is in them, depends on the stream alone, so that what is trained on is the same with any
    number of ranks and workers. Each method below returns a new stream over this one.
    """

    is_read_in_lanes = True  # what tells it from a map dataset

    @property
    @abstractmethod
    def num_lanes(self) -> int:
        """How many parts it is read in."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What decides over its order and its state, in words; a run that is resumed must find the same."""

    @abstractmethod
    def open(self, lane: Lane) -> StatefulIterator:
        """Return an iterator over one pass of one lane, from its first record."""

    def open_after(self, lane: Lane, carried: Any) -> StatefulIterator:
        """Return what :meth:`open` does, where a pass begins at the state in which the one before it ended.

        Args:
            lane: the pass.
            carried: what :meth:`carry` returned.
        """
        records = self.open(lane)
        records.load_state_dict(carried)
        return records

    def carry(self, state: Any) -> Any:
        """Return the part of an iterator's last state that the next pass begins at."""
        return state

    @property
    def depth(self) -> int:
        """How many transformations there are."""
        return 0

    @property
    def is_stateful(self) -> bool:
        """Whether its iterators can say and take back where they are."""
        return True

    @property
    def carries_over(self) -> bool:
        """Whether the state at the end of a pass is where the next one begins."""
        return False

    @property
    def is_own_part(self) -> bool:
        """Whether each rank has a stream of its own, which is one lane."""
        return False

    def map(self, function: Callable[[Any], Any]) -> Stream:
        """Return the stream of ``function(record)``; it runs where records are read, in the worker if there are any.

        ``parhelion.sample_rng()`` in it is keyed by (split, seed, epoch, lane, number of the record in the lane), and
        so are Python's, NumPy's and torch's own generators.

        Raises:
            InvalidTypeError: ``function`` cannot be called.
        """
        return _Staged(self, Map(function))

    def filter(self, predicate: Callable[[Any], Any]) -> Stream:
        """Return the stream of the records for which ``predicate(record)`` is true.

        Raises:
            InvalidTypeError: ``predicate`` cannot be called.
        """
        return _Staged(self, Filter(predicate))

    def shuffle(self, buffer_size: int) -> Stream:
        """Return the stream with each window of ``buffer_size`` records of a lane in a random order.

        The order is keyed by (split, seed, epoch, lane, window). A checkpoint holds where the window begins and how
        much of it was given, never its records: a resumed run reads at most one window of each lane again. Unlike in a
        reservoir, no record leaves its window, so shuffle shards too (``shuffle=True`` in the params).

        Raises:
            InvalidTypeError: ``buffer_size`` is no integer.
            InvalidValueError: it is below 1.
        """
        return _Staged(self, Shuffle(buffer_size))

    def transform(self, make: Callable[[Iterator[Any]], StatefulIterator]) -> Stream:
        """Return the stream of what a stateful iterator makes of the records of a lane.

        Args:
            make: a class, or a function, that is called with the iterator of a lane's records and returns an iterator
                with two methods more: ``state_dict()`` returns what it keeps between records, as a tree of plain values
                and arrays, and ``load_state_dict(state)`` takes it back. The place in the records is not its business.
                It ends when it has given what it still held after the records ended, and then stays at its end.

        Raises:
            InvalidTypeError: what it makes of no records is no such iterator.
        """
        return _Staged(self, Transform(make))

    def pack(
        self,
        length: int,
        *,
        field: str | None = None,
        separator: int | None = None,
        split: bool = True,
        open_rows: int = 16,
        too_long: str = "error",
        pad: int = 0,
        tail: str = "pad",
    ) -> Stream:
        """Return the stream of rows of ``length`` tokens, packed from token sequences of any lengths.

        A row is ``{"tokens": ..., "segment_ids": int32, "positions": int32}``, each of shape ``(length,)``; the tokens
        keep the dtype of the sequences. Segments count the sequences of a row from 1; 0 is padding. Positions count the
        tokens of a segment from 0. So attention may look from i to j where the segment ids are equal and j <= i.

        What is packed is what one lane reads in one pass: no row has tokens of two epochs.

        Args:
            length: tokens of a row.
            field: which field of a record is the sequence; the tokens of a row are then in a field of that name. None
                where records are the sequences. Other fields are left out.
            separator: a token to put behind each sequence.
            split: whether sequences are put end to end and cut where a row is full; otherwise none is cut, each goes
                into the first of the open rows that has room for it, and where none has, the oldest one is closed.
            open_rows: how many rows are held open for that.
            too_long: what happens to a sequence that is longer than a row where none is cut: "error", "drop", or "cut",
                which keeps its first tokens.
            pad: the token of what stays empty.
            tail: "pad" or "drop": what happens to rows that are not full when a pass ends.

        Raises:
            InvalidTypeError: an argument has a type that cannot work.
            InvalidValueError: an argument is out of range.
        """
        options = PackOptions(length, field, separator, open_rows, too_long, pad, tail)
        kind = Concatenated if split else Fitted
        name = f"pack({length}{'' if split else f', open_rows={open_rows}'})"
        return _Staged(self, Transform(_Maker(kind, options), name))

    def __iter__(self) -> Iterator[Any]:
        """Return the records of the first epoch, lane after lane, in the given order of shards: to look at them."""
        for number in range(self.num_lanes):
            yield from self.open(Lane(number, self.num_lanes, seed=get_default_seed()))


class _Maker:
    """Makes a packing iterator; unlike a lambda it can be pickled."""

    def __init__(self, kind: type[Concatenated | Fitted], options: PackOptions) -> None:
        self._kind, self._options = kind, options

    def __call__(self, records: Iterator[Any]) -> StatefulIterator:
        return self._kind(records, self._options)


class _Staged(Stream):
    """A stream and one transformation of it."""

    def __init__(self, source: Stream, stage: Stage) -> None:
        self._source, self._stage = source, stage

    @property
    def num_lanes(self) -> int:
        return self._source.num_lanes

    @property
    def name(self) -> str:
        return f"{self._source.name} > {self._stage.name}"

    @property
    def depth(self) -> int:
        return self._source.depth + 1

    @property
    def is_stateful(self) -> bool:
        return self._source.is_stateful

    @property
    def carries_over(self) -> bool:
        return self._source.carries_over

    @property
    def is_own_part(self) -> bool:
        return self._source.is_own_part

    def open(self, lane: Lane) -> StatefulIterator:
        return self._stage.open(self._source.open(lane), lane.at_stage(self.depth))

    def open_after(self, lane: Lane, carried: Any) -> StatefulIterator:
        return self._stage.open(self._source.open_after(lane, carried), lane.at_stage(self.depth))

    def carry(self, state: Any) -> Any:
        return self._source.carry(state["records"])
