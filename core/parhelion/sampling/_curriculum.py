"""Named phases, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.seeds import check_seed, derive

from ._passes import Order, count_offsets, count_parts, get_parts, groups, make_order, take_passes
from ._permutation import Indices
from ._placed import PlacedSampler, check_flag, check_size
from ._position import Position
from ._registry import SAMPLER_REGISTRY
from ._resumable import ResumableSampler
from ._shuffle import count_records

__all__ = ["ResumableCurriculumSampler"]

PhaseLike: TypeAlias = tuple[str, Any, int | None]


class _Phase(NamedTuple):
    """A phase as it is used: its samples are those of passes over ``size`` records, ``offset`` added to each."""

    name: str
    length: int
    size: int
    offset: int
    order: Order
    source: Any


@SAMPLER_REGISTRY.register
class ResumableCurriculumSampler(PlacedSampler):
    """An epoch in phases: so many samples of this, then so many of that.

    A checkpoint says in which phase the run is. Indices are those of the concatenation: record i of dataset j is
    ``sizes[0] + ... + sizes[j - 1] + i``.

    Args:
        data_source: a dataset, or several: a concatenation (an object with a list ``datasets``), or a list of datasets
            or of their sizes.
        phases: for each phase its name, what it is made of, and its number of samples. It is made of one of the
            datasets of ``data_source``, given as itself or by its number from 0, or of what another sampler over
            ``data_source`` gives, such as a mixture or a subset. A phase that is longer than that begins another pass
            over it, with a new order; one that is shorter goes on in the next epoch where it had ended. A length of
            None is that of one pass.
        shuffle: whether every pass over a dataset has a new random order, or its own.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Attributes:
        phases: name and length of each phase.
        shuffle: whether passes over datasets have random orders.

    Raises:
        InvalidTypeError: ``data_source`` has no length, or an argument has a type that cannot work.
        InvalidValueError: there is no phase, two have one name, one is made of what is not there, or a number is out of
            range.
    """

    def __init__(
        self,
        data_source: Any,
        phases: Sequence[PhaseLike],
        shuffle: bool = True,
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        self.shuffle = check_flag(shuffle, "shuffle")
        sources = _Sources(data_source, check_seed(seed, "seed") if self.shuffle else None)
        self._phases = [sources.make_phase(number, phase) for number, phase in enumerate(phases)]
        if not self._phases:
            raise InvalidValueError("phases is empty; expected at least one (name, source, length).")
        _check_names([phase.name for phase in self._phases])
        length = check_size(sum(phase.length for phase in self._phases), "length of all phases")
        super().__init__(length, seed, batch_size)
        self.data_source = data_source
        self.phases = tuple((phase.name, phase.length) for phase in self._phases)
        self._ends: Indices = np.cumsum([phase.length for phase in self._phases])

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        phases = [[phase.name, phase.source, phase.size, phase.length] for phase in self._phases]
        return {"phases": phases, "shuffle": self.shuffle}

    def phase_at(self, place: int) -> str:
        """Return the name of the phase that has the sample at a place; it is the same in every epoch.

        Raises:
            InvalidValueError: the place is not in [0, size).
        """
        if not 0 <= place < self._size:
            raise InvalidValueError(f"place is {place}; expected one in [0, {self._size}), the places of an epoch.")
        return self._phases[int(np.searchsorted(self._ends, place, side="right"))].name

    def describe_position(self, position: Position) -> dict[str, Any]:
        """Return the phase of the next sample."""
        return {"phase": self.phase_at(position.offset)}

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        out = np.empty(len(places), np.int64)
        which = np.searchsorted(self._ends, places, side="right").astype(np.int64)
        for number, chosen in groups(which):
            phase = self._phases[number]
            numbers = places[chosen] - (int(self._ends[number]) - phase.length)
            out[chosen] = take_passes(phase.order, phase.size, epoch * phase.length, numbers) + phase.offset
        return out


def _check_names(names: list[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InvalidValueError(f"phases has the name {name!r} twice; expected each once. Rename one.")


def _read_phase(number: int, given: Any) -> tuple[str, Any, Any]:
    try:
        name, source, length = given
    except (TypeError, ValueError):
        raise InvalidTypeError(
            f"phase {number} is {given!r}; expected (name, source, length). A length of None is that of one pass."
        ) from None
    if not isinstance(name, str) or not name:
        raise InvalidTypeError(f"name of phase {number} is {name!r}; expected a string that is not empty.")
    return name, source, length


class _Sources:
    """What phases can be made of."""

    def __init__(self, data_source: Any, seed: int | None) -> None:
        if isinstance(data_source, (list, tuple)) or hasattr(data_source, "datasets"):
            self._parts: Sequence[Any] = get_parts(data_source)
            self._sizes = count_parts(data_source)
        else:
            self._parts, self._sizes = [data_source], [count_records(data_source, "data_source")]
        self._offsets = count_offsets(self._sizes)
        self._seed = seed

    def make_phase(self, number: int, given: Any) -> _Phase:
        name, source, length = _read_phase(number, given)
        if isinstance(source, ResumableSampler):
            size, offset = source.size, 0
            order: Order = source.indices_at
            what: Any = [source.name, source.seed, source.settings]
        else:
            part = what = self._find(name, source)
            size, offset = self._sizes[part], self._offsets[part]
            order = make_order(size, None if self._seed is None else derive(self._seed, "curriculum", number))
        length = size if length is None else check_size(length, f"length of phase {name!r}")
        return _Phase(name, length, size, offset, order, what)

    def _find(self, name: str, source: Any) -> int:
        if isinstance(source, Integral):
            if 0 <= int(source) < len(self._parts):
                return int(source)
        else:
            for number, part in enumerate(self._parts):
                if part is source:
                    return number
        raise InvalidValueError(
            f"phase {name!r} is made of {source!r}; expected a sampler, one of the {len(self._parts)} datasets of "
            f"data_source, or its number from 0 to {len(self._parts) - 1}."
        )
