"""Two runs step by step: what each array was, and where the runs first part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

Step = Mapping[str, Any]


@attrs.frozen
class Divergence:
    """Where two runs part: the array that differs most at the first step at which any differs by more than a bound.

    Attributes:
        step: from 1.
        array: its name in the traces.
        place: of the element that differs most.
        values: that element of the one and of the other.
        error: their difference, over the largest element of the array.
    """

    step: int
    array: str
    place: tuple[int, ...]
    values: tuple[float, float]
    error: float

    def __str__(self) -> str:
        where = f"{self.array}[{', '.join(map(str, self.place))}]" if self.place else self.array
        one, other = self.values
        return f"step {self.step}: {where} is {one!r} and {other!r}, {self.error:.2g} of its largest element apart"


def first_divergence(one: Sequence[Step], other: Sequence[Step], bound: float) -> Divergence | None:
    """Return where two runs first part by more than ``bound``; None if they never do.

    Args:
        one: for each step its arrays by name, a number counting as an array.
        other: the same of the other run.
        bound: the largest difference allowed, over the largest element of the array; 0 allows none.

    Raises:
        ValueError: the runs have not the same steps, names and shapes.
    """
    for number, (here, there) in enumerate(zip(one, other, strict=True), start=1):
        worst = max((_compare(number, name, here, there) for name in {**here, **there}), key=lambda each: each.error)
        if not worst.error <= bound:
            return worst
    return None


def largest_error(one: Sequence[Step], other: Sequence[Step], name: str) -> float:
    """Return by how much an array differs in the step in which it differs most."""
    pairs = zip(one, other, strict=True)
    return max(_compare(number, name, here, there).error for number, (here, there) in enumerate(pairs, start=1))


def _compare(number: int, name: str, here: Step, there: Step) -> Divergence:
    if name not in here or name not in there:
        raise ValueError(f"step {number}: only one run has {name}")
    one, other = (np.asarray(each[name], np.float64) for each in (here, there))
    if one.shape != other.shape:
        raise ValueError(f"step {number}: {name} is {one.shape} in one run and {other.shape} in the other")
    # A NaN in one of them is further away than anything, and one in both is none.
    apart = np.where(np.isnan(one) & np.isnan(other), 0.0, np.nan_to_num(np.abs(one - other), nan=np.inf))
    place = tuple(map(int, np.unravel_index(int(apart.argmax()), apart.shape)))
    scale = np.nanmax(np.abs(one), initial=0.0)
    error = 0.0 if apart[place] == 0 else float(apart[place] / scale) if scale else np.inf
    return Divergence(number, name, place, (float(one[place]), float(other[place])), error)
