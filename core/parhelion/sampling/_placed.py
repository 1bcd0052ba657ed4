"""Samplers that answer for any places at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.seeds import check_seed

from ._permutation import Indices
from ._position import check_count
from ._resumable import ResumableSampler
from ._shuffle import MAX_SIZE

__all__ = ["PlacedSampler", "check_flag", "check_size"]


class PlacedSampler(ResumableSampler):
    """A sampler whose subclass says which records are at given places; this class checks the places.

    Args:
        size: places of an epoch.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Raises:
        InvalidTypeError: a number is no integer.
        InvalidValueError: a number is out of range.
    """

    def __init__(self, size: int, seed: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self._size = check_size(size, "size")
        self._seed = check_seed(seed, "seed")

    @abstractmethod
    def _records_at(self, epoch: int, places: Indices) -> Indices:
        """Return the records at places that lie in [0, size)."""

    @property
    def size(self) -> int:
        """Number of samples in an epoch, those of all ranks."""
        return self._size

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self._seed

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the records at places [start, stop) of the epoch's order, as int64.

        Raises:
            InvalidValueError: not ``0 <= start <= stop <= size``.
        """
        if not 0 <= start <= stop <= self._size:
            raise InvalidValueError(
                f"range of places is [{start}, {stop}); expected one inside [0, {self._size}), the places of an "
                "epoch. The epoch after it is asked for by its own number."
            )
        return self._records_at(epoch, np.arange(start, stop, dtype=np.int64))

    def indices_at(self, epoch: int, places: Indices) -> Indices:
        """Return the records at the given places of the epoch's order, as int64.

        Raises:
            InvalidValueError: a place is not in [0, size).
        """
        if len(places):
            for place in (int(places.min()), int(places.max())):
                if not 0 <= place < self._size:
                    raise InvalidValueError(
                        f"place is {place}; expected one in [0, {self._size}), the places of an epoch. "
                        "Padding beyond the end is the place modulo the size."
                    )
        return self._records_at(epoch, places)


def check_size(size: Any, what: str) -> int:
    """Return ``size`` as a plain int in [1, 2**62].

    Raises:
        InvalidTypeError: it is no integer.
        InvalidValueError: it is out of range.
    """
    number = check_count(size, what, 1, "It counts samples.")
    if number > MAX_SIZE:
        raise InvalidValueError(f"{what} is {number}; expected an integer from 1 to 2**62. Make epochs shorter.")
    return number


def check_flag(flag: Any, what: str) -> bool:
    """Return ``flag``, which says yes or no.

    Raises:
        InvalidTypeError: it is neither True nor False.
    """
    if not isinstance(flag, bool):
        raise InvalidTypeError(f"{what} is {flag!r}; expected True or False.")
    return bool(flag)
