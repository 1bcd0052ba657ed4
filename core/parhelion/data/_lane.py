"""A lane: one of the parts that a stream is read in, and the key of all that is random in it."""

from __future__ import annotations

from typing import Any, Protocol, Self

import attrs

from parhelion.generators import GlobalGenerators
from parhelion.seeds import SampleScope, derive

__all__ = ["Lane", "RecordKeys", "StatefulIterator", "default_lanes"]

_MOST = 16


class StatefulIterator(Protocol):
    """An iterator whose place can be saved and found again.

    Once it is over it stays over. Iterating from a loaded state gives exactly what followed when that was taken.
    """

    def __iter__(self) -> Self:
        """Return itself."""
        ...

    def __next__(self) -> Any:
        """Return the next record."""
        ...

    def state_dict(self) -> Any:
        """Return where it is, as a tree of plain values and arrays that later records do not change."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from a state that an iterator over the same data returned."""
        ...


@attrs.frozen
class Lane:
    """One pass over one of the parts that a stream is read in.

    Attributes:
        number: which part, from 0.
        count: how many there are.
        epoch: which pass over the data, from 0.
        seed: the data seed.
        split: a ``DatasetSplit`` value.
        shuffle: whether the loader was asked for a random order.
        stage: how many transformations are beneath the one that this is handed to.
        generators: the process-wide generators, which each record's functions find keyed; None leaves them alone.
    """

    number: int = 0
    count: int = 1
    epoch: int = 0
    seed: int = 0
    split: int = 0
    shuffle: bool = False
    stage: int = 0
    generators: GlobalGenerators | None = None

    def key(self, *purpose: int | str) -> int:
        """Return a key for one purpose, unrelated to that of any other lane, epoch, stage or purpose."""
        return derive(self.seed, "stream", self.split, self.epoch, self.number, self.stage, *purpose)

    def at_stage(self, stage: int) -> Lane:
        """Return the same lane for another transformation."""
        return attrs.evolve(self, stage=stage)


class RecordKeys:
    """Opens the scope in which a stage's functions draw for one record: keyed by lane and the record's number."""

    def __init__(self, lane: Lane) -> None:
        self._base = lane.key("sample")
        self._generators = lane.generators

    def scope(self, number: int) -> SampleScope:
        """Return the scope of the record with that number in this stage; process-wide generators are keyed now."""
        if self._generators is not None:
            self._generators.seed(derive(self._base, "global", number))
        return SampleScope(self._base, number)


def default_lanes(parts: int) -> int:
    """Return the largest power of two up to the number of parts and 16: what most numbers of ranks divide."""
    lanes = 1
    while lanes * 2 <= min(parts, _MOST):
        lanes *= 2
    return lanes
