"""Packing token sequences of any lengths into rows of one length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["Concatenated", "Fitted", "PackOptions"]

_Tokens = npt.NDArray[np.integer[Any]]


def _check_number(value: Any, name: str, least: int | None, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{name} is {value!r}; expected an integer{expected}. Pass a plain int.")
    if least is not None and value < least:
        raise InvalidValueError(f"{name} is {value}; expected an integer >= {least}. It counts what a row can hold.")


def _check_word(value: Any, name: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidValueError(f"{name} is {value!r}; expected one of {', '.join(known)}. Take {known[0]!r}.")


@attrs.frozen
class PackOptions:
    """How rows are packed; see ``Stream.pack``.

    Raises:
        InvalidTypeError: a value has a type that cannot work.
        InvalidValueError: a value is out of range.
    """

    length: int
    field: str | None
    separator: int | None
    open_rows: int
    too_long: str
    pad: int
    tail: str

    def __attrs_post_init__(self) -> None:
        _check_number(self.length, "length", 1, " >= 1")
        _check_number(self.open_rows, "open_rows", 1, " >= 1")
        _check_number(self.pad, "pad", None, ", a token")
        if self.separator is not None:
            _check_number(self.separator, "separator", None, ", a token, or None")
        _check_word(self.too_long, "too_long", ("error", "drop", "cut"))
        _check_word(self.tail, "tail", ("pad", "drop"))

    def row(self, pieces: list[_Tokens]) -> dict[str, Any]:
        """Return the row that pieces of sequences make, padded to its length."""
        dtype = pieces[0].dtype
        tokens = np.full(self.length, self.pad, dtype)
        segments, positions = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        start = 0
        for number, piece in enumerate(pieces, 1):
            stop = start + len(piece)
            tokens[start:stop] = piece
            segments[start:stop] = number
            positions[start:stop] = np.arange(len(piece))
            start = stop
        return {self.field or "tokens": tokens, "segment_ids": segments, "positions": positions}


class _Packing:
    """Takes sequences from records and checks them.

    Args:
        records: the sequences, or records with a field that is one.
        options: how they are packed.
    """

    def __init__(self, records: Iterator[Any], options: PackOptions) -> None:
        self._records, self._options = records, options
        self._dtype: np.dtype[Any] | None = None

    def __iter__(self) -> Self:
        return self

    def _take(self) -> _Tokens:
        """Return the next sequence, with the separator behind it.

        Raises:
            StopIteration: there is none.
            InvalidTypeError: it is no sequence of tokens.
            InvalidValueError: it has another dtype than those before, or a token does not fit in its dtype.
        """
        record = next(self._records)
        field, separator = self._options.field, self._options.separator
        tokens: Any = np.asarray(record if field is None else record[field])
        if tokens.ndim == 1 and not len(tokens) and tokens.dtype.kind == "f":
            tokens = tokens.astype(self._dtype or np.int64)  # an empty list has no dtype of its own
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InvalidTypeError(
                f"a sequence to pack has shape {tokens.shape} and dtype {tokens.dtype}; expected integers in one axis. "
                "Map the records to token arrays first, or name their field."
            )
        if self._dtype is None:
            self._check_tokens(tokens.dtype)
            self._dtype = tokens.dtype
        if tokens.dtype != self._dtype:
            raise InvalidValueError(
                f"a sequence to pack has dtype {tokens.dtype} and those before {self._dtype}; expected one dtype. Give "
                "all the same with tokens.astype(...)."
            )
        if separator is None:
            copied: _Tokens = tokens.copy()  # the record may be a view of much more
            return copied
        ended: _Tokens = np.append(tokens, tokens.dtype.type(separator))
        return ended

    def _check_tokens(self, dtype: np.dtype[Any]) -> None:
        info = np.iinfo(dtype)
        for name, value in {"pad": self._options.pad, "separator": self._options.separator}.items():
            if value is not None and not info.min <= value <= info.max:
                raise InvalidValueError(
                    f"{name} is {value} and the tokens are {dtype}; expected a token from {info.min} to {info.max}. "
                    "Choose another one, or a wider dtype."
                )


def _join(pieces: list[_Tokens]) -> Any:
    return np.concatenate(pieces) if pieces else None


def _cut(tokens: Any, lengths: Any) -> list[_Tokens]:
    """Return the pieces that :func:`_join` has put together."""
    return [] if tokens is None else [piece.copy() for piece in np.split(tokens, np.cumsum(lengths)[:-1])]


def _lengths(pieces: list[_Tokens]) -> npt.NDArray[np.int64]:
    return np.array([len(piece) for piece in pieces], np.int64)


class Concatenated(_Packing):
    """Sequences put end to end and cut into rows. What is left of them is the state."""

    def __init__(self, records: Iterator[Any], options: PackOptions) -> None:
        super().__init__(records, options)
        self._held: deque[_Tokens] = deque()
        self._count = 0

    def __next__(self) -> Any:
        length = self._options.length
        while self._count < length:
            try:
                tokens = self._take()
            except StopIteration:
                return self._end()
            if len(tokens):
                self._held.append(tokens)
                self._count += len(tokens)
        return self._options.row(self._cut_row(length))

    def _cut_row(self, left: int) -> list[_Tokens]:
        pieces: list[_Tokens] = []
        while left and self._held:
            first = self._held.popleft()
            if len(first) > left:
                self._held.appendleft(first[left:])
                first = first[:left]
            pieces.append(first)
            left -= len(first)
            self._count -= len(first)
        return pieces

    def _end(self) -> Any:
        pieces = self._cut_row(self._options.length)
        if not pieces or self._options.tail == "drop":
            raise StopIteration
        return self._options.row(pieces)

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens that are in no row yet, and the lengths of the sequences that they belong to."""
        held = [*self._held]
        return {"tokens": _join(held), "lengths": _lengths(held)}

    def load_state_dict(self, state: Any) -> None:
        """Go on with the tokens of a state."""
        self._held = deque(_cut(state["tokens"], state["lengths"]))
        self._count = sum(map(len, self._held))
        self._dtype = self._held[0].dtype if self._held else None


class Fitted(_Packing):
    """Whole sequences, each in the first open row that has room for it. The open rows are the state.

    First fit with a bounded number of bins: when none has room, the oldest is closed.
    """

    def __init__(self, records: Iterator[Any], options: PackOptions) -> None:
        super().__init__(records, options)
        self._rows: list[list[_Tokens]] = []
        self._room: list[int] = []

    def __next__(self) -> Any:
        while True:
            if 0 in self._room:
                return self._close(self._room.index(0))
            if len(self._rows) > self._options.open_rows:
                return self._close(0)
            try:
                tokens = self._take()
            except StopIteration:
                if not self._rows or self._options.tail == "drop":
                    self._rows, self._room = [], []
                    raise
                return self._close(0)
            self._put(tokens)

    def _put(self, tokens: _Tokens) -> None:
        length = self._options.length
        if len(tokens) > length:
            if self._options.too_long == "error":
                raise InvalidValueError(
                    f"a sequence has {len(tokens)} tokens, its separator included; expected at most {length}, the "
                    "length of a row. Pass too_long='cut' or 'drop', or split=True."
                )
            if self._options.too_long == "drop":
                return
            tokens = tokens[:length].copy()
        if not len(tokens):
            return
        fitting = (number for number, room in enumerate(self._room) if room >= len(tokens))
        number = next(fitting, None)
        if number is None:
            self._rows.append([])
            self._room.append(length)
            number = len(self._rows) - 1
        self._rows[number].append(tokens)
        self._room[number] -= len(tokens)

    def _close(self, number: int) -> Any:
        del self._room[number]
        return self._options.row(self._rows.pop(number))

    def state_dict(self) -> dict[str, Any]:
        """Return the open rows: for each its tokens, and the lengths of its sequences."""
        return {"rows": [{"tokens": _join(row), "lengths": _lengths(row)} for row in self._rows]}

    def load_state_dict(self, state: Any) -> None:
        """Go on with the open rows of a state."""
        self._rows = [_cut(row["tokens"], row["lengths"]) for row in state["rows"]]
        self._room = [self._options.length - sum(map(len, row)) for row in self._rows]
        self._dtype = self._rows[0][0].dtype if self._rows else None
