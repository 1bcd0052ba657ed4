"""The keyed order: a permutation of [0, n) that can be asked for any part of itself.

A size of up to 1024 is ordered by a stable argsort of keyed hashes; above, a network of eight rounds on a
grid computes any part of the order (see ``_network.py``). No statistic in the tests sees a difference from
chance; a network that XORs bits, the usual choice, fails them at small sizes.

All of it is integer arithmetic of our own, so an order is the same on every platform and with every NumPy.
It is a contract: a release that changes it raises ``ORDER_VERSION``.
"""

from __future__ import annotations

import operator
from typing import Final, Protocol

import numpy as np

from parhelion.errors import InvalidValueError
from parhelion.seeds import check_seed

from ._network import Grid, Indices, hash_words, mix
from ._position import check_count

__all__ = ["ORDER_VERSION", "Indices", "Permutation"]

ORDER_VERSION: Final = 1

_MAX_SIZE: Final = 2**62
_SORTED_MAX: Final = 1024
_ROUNDS: Final = 8


class Permutation:
    """A random order of the integers in [0, size), fixed by its key.

    Nothing is stored but a few constants (and, up to a size of 1024, the order): asking for an index in the
    middle costs what the first one costs. May be used from several threads.

    Args:
        size: how many integers, from 0 to 2**62.
        key: an integer in [0, 2**64); :func:`parhelion.seeds.derive` makes one from a seed and an epoch.

    Raises:
        InvalidTypeError: an argument is no integer.
        InvalidValueError: an argument is out of range.
    """

    __slots__ = ("_engine", "key", "size")

    def __init__(self, size: int, key: int) -> None:
        self.size = check_count(size, "size", 0, "Give the number of records.")
        if self.size > _MAX_SIZE:
            raise InvalidValueError(
                f"size is {size}; expected an integer from 0 to 2**62. Split larger ones into several orders."
            )
        self.key = check_seed(key, "key")
        # The size goes into the key, so that neighboring sizes do not get nearly the same order.
        state = mix(mix(self.key) ^ self.size)
        self._engine: _Engine = (
            _Sorted(self.size, state) if self.size <= _SORTED_MAX else Grid(self.size, state, _ROUNDS)
        )

    def __repr__(self) -> str:
        return f"Permutation(size={self.size}, key={self.key})"

    def index(self, position: int) -> int:
        """Return the index at a position of the order.

        Raises:
            InvalidValueError: the position is not in [0, size).
        """
        return self._engine.one(self._check(position, "position"), inverse=False)

    def position(self, index: int) -> int:
        """Return where in the order an index comes: the inverse of :meth:`index`.

        Raises:
            InvalidValueError: the index is not in [0, size).
        """
        return self._engine.one(self._check(index, "index"), inverse=True)

    def indices(self, start: int, stop: int) -> Indices:
        """Return the indices at positions [start, stop) of the order.

        Returns:
            int64 of shape ``(stop - start,)``.

        Raises:
            InvalidValueError: not ``0 <= start <= stop <= size``.
        """
        if not 0 <= start <= stop <= self.size:
            raise InvalidValueError(
                f"range of positions is [{start}, {stop}); expected one inside [0, {self.size}), "
                "the size of this order."
            )
        out = np.empty(stop - start, np.int64)
        self._engine.span(start, out)
        return out

    def indices_at(self, positions: Indices) -> Indices:
        """Return the indices at the given positions, in the order given.

        Args:
            positions: int64 of shape ``(k,)``, repetitions allowed.

        Returns:
            int64 of shape ``(k,)``.

        Raises:
            InvalidValueError: a position is not in [0, size).
        """
        return self._many(positions, "position", inverse=False)

    def positions(self, indices: Indices) -> Indices:
        """Return where in the order the given indices come: the inverse of :meth:`indices_at`.

        Args:
            indices: int64 of shape ``(k,)``, repetitions allowed.

        Returns:
            int64 of shape ``(k,)``.

        Raises:
            InvalidValueError: an index is not in [0, size).
        """
        return self._many(indices, "index", inverse=True)

    def _many(self, places: Indices, what: str, *, inverse: bool) -> Indices:
        out = np.empty(len(places), np.int64)
        if len(out):
            self._check(int(places.min()), what)
            self._check(int(places.max()), what)
            self._engine.many(places, out, inverse=inverse)
        return out

    def _check(self, place: int, what: str) -> int:
        if not 0 <= place < self.size:
            raise InvalidValueError(f"{what} is {place}; expected one in [0, {self.size}), the size of this order.")
        return operator.index(place)


class _Engine(Protocol):
    """A permutation whose arguments have been checked already."""

    def one(self, place: int, *, inverse: bool) -> int: ...
    def span(self, start: int, out: Indices) -> None: ...
    def many(self, places: Indices, out: Indices, *, inverse: bool) -> None: ...


class _Sorted:
    """The whole order, made at once."""

    __slots__ = ("_inverse", "_order")

    def __init__(self, size: int, state: int) -> None:
        words = hash_words(state, np.arange(size, dtype=np.int64))
        self._order: Indices = np.argsort(words, kind="stable").astype(np.int64, copy=False)
        self._inverse: Indices | None = None

    def one(self, place: int, *, inverse: bool) -> int:
        return int(self._table(inverse=inverse)[place])

    def span(self, start: int, out: Indices) -> None:
        out[:] = self._order[start : start + len(out)]

    def many(self, places: Indices, out: Indices, *, inverse: bool) -> None:
        out[:] = self._table(inverse=inverse)[places]

    def _table(self, *, inverse: bool) -> Indices:
        if not inverse:
            return self._order
        if self._inverse is None:
            self._inverse = np.argsort(self._order, kind="stable").astype(np.int64, copy=False)
        return self._inverse
