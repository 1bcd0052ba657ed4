"""Shares of a whole, and the one who is next, so that no share is ever off by one."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Rational, Real
from typing import Any, Final

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._permutation import Indices

__all__ = ["MAX_PERIOD", "Rota", "count_shares"]

MAX_PERIOD: Final = 1 << 16
_TOLERANCE: Final = Fraction(1, 10**9)


def count_shares(weights: Sequence[Any], what: str = "weights") -> list[int]:
    """Return whole numbers in the proportions of ``weights``, with a sum of at most 65,536.

    Integers and fractions are met exactly, where such numbers exist. Floats are where they are within 1e-9 of a
    fraction that can be, such as 0.1 of 1/10. Otherwise the sum is 65,536, and each share the exact one rounded up or
    down (by largest remainder).

    Args:
        weights: numbers >= 0.
        what: their name, for the message.

    Raises:
        InvalidTypeError: a weight is no number.
        InvalidValueError: one is negative or not finite, all are 0, or one is so small that it would get nothing.
    """
    exact = [_read_weight(weight, f"{what}[{number}]") for number, weight in enumerate(weights)]
    total = sum(exact)
    if not total:
        raise InvalidValueError(f"{what} are all 0; expected at least one above 0. 0 leaves a dataset out.")
    shares = [weight / total for weight in exact]
    is_rational = all(isinstance(weight, Rational) for weight in weights)
    return _meet(shares, Fraction(0) if is_rational else _TOLERANCE) or _round(shares, what)


def _read_weight(weight: Any, what: str) -> Fraction:
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise InvalidTypeError(f"{what} is {weight!r}; expected a number >= 0. 0 leaves a dataset out.")
    if isinstance(weight, Rational):
        exact = Fraction(int(weight.numerator), int(weight.denominator))  # of Python's integers, not of NumPy's
    else:
        value = float(weight)
        exact = Fraction(value) if math.isfinite(value) else Fraction(-1)
    if exact < 0:
        raise InvalidValueError(f"{what} is {weight}; expected a finite number >= 0. 0 leaves a dataset out.")
    return exact


def _meet(shares: Sequence[Fraction], tolerance: Fraction) -> list[int] | None:
    """Return the smallest whole numbers that are in these proportions, or None if their sum is too large."""
    near = [share.limit_denominator(MAX_PERIOD) for share in shares]
    period = 1
    for share, other in zip(shares, near, strict=True):
        period = math.lcm(period, other.denominator)
        if abs(share - other) * other.denominator > tolerance or bool(share) != bool(other) or period > MAX_PERIOD:
            return None
    return [int(share * period) for share in near] if sum(near) == 1 else None


def _round(shares: Sequence[Fraction], what: str) -> list[int]:
    counts = [int(share * MAX_PERIOD) for share in shares]
    rests = [count - share * MAX_PERIOD for count, share in zip(counts, shares, strict=True)]
    for number in sorted(range(len(shares)), key=rests.__getitem__)[: MAX_PERIOD - sum(counts)]:
        counts[number] += 1
    for number, count in enumerate(counts):
        if not count and shares[number]:
            raise InvalidValueError(
                f"{what}[{number}] is {float(shares[number]):.3g} of the sum; expected 0 or at least 1/{MAX_PERIOD} of "
                "it. Raise it, or concatenate small datasets to one."
            )
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


class Rota:
    """An endless row of turns, in which every prefix of k turns has floor or ceil of k * share for each.

    That is Tijdeman's chairman assignment ("The chairman assignment problem", Discrete Mathematics 32, 1980). One
    period of it is made by the earliest deadline first: the i-th turn of a share a of N may come from turn
    floor((i - 1) N / a) + 1 on, and must have come by turn ceil(i N / a), which is always possible (Steiner and
    Yeomans, "Level schedules for mixed-model, just-in-time processes", Management Science 39, 1993). Each further
    period is the same again.

    Args:
        shares: whole numbers >= 0 with a sum of at most 65,536.

    Attributes:
        shares: the same.
        period: their sum.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = list(shares)
        self.period = sum(shares)
        self._who = _schedule(tuple(shares))
        # How many turns whoever has this turn had before it, in this period.
        self._before = np.empty(self.period, np.int64)
        for number, share in enumerate(shares):
            self._before[self._who == number] = np.arange(share)
        self._counts: Indices = np.array(shares, np.int64)

    def turns(self, places: Indices) -> tuple[Indices, Indices]:
        """Return who has the turns at ``places``, and how many turns that one had before: two int64 arrays."""
        periods = places // self.period
        slots = places - periods * self.period
        who = self._who[slots]
        return who, periods * self._counts[who] + self._before[slots]

    def counts(self, stop: int) -> list[int]:
        """Return how many of the first ``stop`` turns each has."""
        periods, rest = divmod(stop, self.period)
        part = np.bincount(self._who[:rest], minlength=len(self.shares)).tolist()
        return [periods * share + more for share, more in zip(self.shares, part, strict=True)]

    def place(self, number: int, turn: int) -> int:
        """Return where someone's turn comes, which is counted from 0."""
        periods, rest = divmod(turn, self.shares[number])
        return periods * self.period + int(np.flatnonzero(self._who == number)[rest])


@functools.lru_cache(maxsize=8)
def _schedule(shares: tuple[int, ...]) -> Indices:
    period = sum(shares)
    released: list[list[tuple[int, int]]] = [[] for _ in range(period)]
    for number, share in enumerate(shares):
        for turn in range(share):
            released[turn * period // share].append((-(-(turn + 1) * period // share), number))
    waiting: list[tuple[int, int]] = []
    who = np.empty(period, np.int64)
    for slot, new in enumerate(released):
        for each in new:
            heapq.heappush(waiting, each)
        who[slot] = heapq.heappop(waiting)[1]
    who.flags.writeable = False
    return who
