"""How many records a dataset has, and an order of them for every epoch."""

from __future__ import annotations

from collections.abc import Sized
from typing import Final

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.seeds import check_seed, derive

from ._permutation import Indices, Permutation

__all__ = ["MAX_SIZE", "Shuffle", "count_records"]

MAX_SIZE: Final = 2**62


class Shuffle:
    """The order of every epoch; the one asked for last is kept."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self.seed = check_seed(seed, "seed")
        self._latest: tuple[int, Permutation] | None = None

    def __call__(self, epoch: int) -> Permutation:
        latest = self._latest
        if latest is None or latest[0] != epoch:
            latest = (epoch, Permutation(self._size, derive(self.seed, "order", epoch)))
            self._latest = latest
        return latest[1]

    def indices_at(self, epoch: int, places: Indices) -> Indices:
        """Return the indices at the given places of an epoch's order."""
        return self(epoch).indices_at(places)


def count_records(source: Sized, what: str) -> int:
    """Return the length of a dataset.

    Args:
        source: the dataset.
        what: its name, for the message.

    Raises:
        InvalidTypeError: it has no length.
        InvalidValueError: it is empty, or has more than 2**62 records.
    """
    kind = type(source).__name__
    if not isinstance(source, Sized):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise InvalidTypeError(f"{what} is a {kind}; expected a dataset with a length. Give it a __len__ method.")
    size = len(source)
    if not 1 <= size <= MAX_SIZE:
        raise InvalidValueError(
            f"{what} {'is empty' if size == 0 else 'is too large'} (a {kind} of length {size}); "
            "expected 1 to 2**62 records. Check the path or the split that it was made from."
        )
    return size
