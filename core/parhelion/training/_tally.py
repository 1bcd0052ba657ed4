"""What every metric stands on: exact sums, and counting that does not wait for a device.

A float sum kept here is exact: a short list of floats whose sum is the true one (an expansion in the sense
of Shewchuk, "Adaptive precision floating-point arithmetic and fast robust geometric predicates", DCG 1997).
So it does not depend on the order of its terms, nor on how they were split over updates or ranks.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MAX_PENDING_BYTES", "MAX_PENDING_UPDATES", "ExactSum", "Tally", "shape_of"]

MAX_PENDING_UPDATES = 64
MAX_PENDING_BYTES = 16 * 2**20

_HOST_TYPES = (type(None), bool, int, float, list, tuple, np.ndarray, np.generic)


@attrs.frozen
class ExactSum:
    """The exact sum of the floats added so far; equal sums are equal values, whatever the order of adding.

    Infinities and nan give what they give in floating point, and so does a sum beyond float64's range.
    """

    parts: tuple[float, ...] = ()

    @classmethod
    def of(cls, terms: Sequence[float]) -> ExactSum:
        """Return the sum of ``terms``."""
        parts: list[float] = []
        rests = list(terms)
        try:
            # Each round takes the rounded sum of what is left out of it, which shrinks it by 2**53.
            while rest := math.fsum(rests):
                if not math.isfinite(rest):
                    return cls((rest,))
                parts.append(rest)
                rests.append(-rest)
        except (OverflowError, ValueError):  # beyond float64; or infinities of both signs
            return cls((sum(terms),))
        return cls(tuple(parts))

    def plus(self, values: npt.NDArray[np.float64]) -> ExactSum:
        """Return the sum with every element of ``values`` added."""
        return ExactSum.of([*self.parts, *values.ravel().tolist()])

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum.of([*self.parts, *other.parts])

    def encoded(self) -> npt.NDArray[np.float64]:
        """Return the parts, float64 of shape ``(k,)``."""
        return np.array(self.parts, np.float64)

    def decoded(self, saved: Any) -> ExactSum:
        """Return what :meth:`encoded` came from."""
        return ExactSum(tuple(np.asarray(saved, np.float64).tolist()))

    def __float__(self) -> float:
        return math.fsum(self.parts)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array of any library, or of what NumPy makes an array of; no element is read."""
    shape = getattr(value, "shape", None)
    return tuple(np.shape(value) if shape is None else shape)


def _is_on_host(value: Any) -> bool:
    return isinstance(value, _HOST_TYPES) or bool(getattr(value, "is_cpu", False))


def _kept(value: Any) -> Any:
    """Return what to keep of an array until it is counted: a copy wherever it could be changed in place."""
    if _is_on_host(value):
        return None if value is None else np.array(_to_host(value))
    return value.detach().clone() if hasattr(value, "detach") else value


def _to_host(value: Any) -> Any:
    if value is None:
        return None
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    try:
        return np.asarray(value)
    except TypeError:
        return np.asarray(value.double())  # NumPy has no bfloat16 and no float8; float64 holds their values


class Tally(ABC):
    """A metric that is sums: of integers, of integer arrays, of floats (:class:`ExactSum`), or of what else has ``+``,
    ``encoded`` and ``decoded`` as that has.

    What an update brings on a device is kept as it is and counted later: when a result, a state or a merge is
    asked for, at the latest after ``MAX_PENDING_UPDATES`` updates or once ``MAX_PENDING_BYTES`` are held. So
    an update waits for no device, and what is wrong with its values (not with its shapes) is said at that
    later moment; that one update is then left out. What is on the host is counted at once.

    Args:
        settings: what makes two tallies of one class different; they must agree to be merged.
    """  # noqa: D205 - one sentence that needs two lines

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.reset()

    @abstractmethod
    def _zeros(self) -> dict[str, Any]:
        """Return the sums of nothing by name."""

    @abstractmethod
    def _count(self, *arrays: Any) -> None:
        """Add one update to ``self._sums``, given its arrays on the host (None where there is none)."""

    def reset(self) -> None:
        """Forget every update."""
        self._sums = self._zeros()
        self._pending: deque[tuple[Any, ...]] = deque()
        self._pending_bytes = 0

    def merge(self, other: Self) -> None:
        """Add what ``other`` has seen; ``other`` stays as it is.

        Raises:
            InvalidTypeError: ``other`` is another kind of metric.
            InvalidValueError: it was made with other settings.
        """
        name = type(self).__name__
        if type(other) is not type(self):
            raise InvalidTypeError(
                f"metric to merge is a {type(other).__name__}; expected a {name}. Merge like with like."
            )
        if other._settings != self._settings:
            raise InvalidValueError(
                f"{name} to merge has {other._settings}; expected {self._settings}. Make both alike."
            )
        other._fold()
        self._sums = {key: total + other._sums[key] for key, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the kind, the settings and the sums: strings, integers and NumPy arrays (int64, float64)."""
        self._fold()
        sums = {key: _encoded(total) for key, total in self._sums.items()}
        return {"kind": type(self).__name__, **self._settings, **sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make this metric the one that returned ``state``; what it had seen is forgotten.

        Raises:
            InvalidValueError: ``state`` is of another kind, settings or keys; nothing was changed.
        """
        name = type(self).__name__
        expected = {"kind": name, **self._settings}
        if set(state) != {*expected, *self._sums}:
            raise InvalidValueError(
                f"state of {name} has the keys {sorted(state)}; expected {sorted({*expected, *self._sums})}. "
                "Pass what state_dict() returned."
            )
        for key, value in expected.items():
            if state[key] != value:
                raise InvalidValueError(
                    f"{key} in the state of {name} is {state[key]!r}; expected {value!r}. "
                    f"Make the metric with the saved {key}."
                )
        sums = {key: _decoded(zero, state[key]) for key, zero in self._zeros().items()}
        self.reset()
        self._sums = sums

    def _take(self, *arrays: Any) -> None:
        """Count one update now if it is on the host, else later."""
        if all(map(_is_on_host, arrays)):
            self._count(*map(_to_host, arrays))
            return
        kept = tuple(_kept(each) for each in arrays)
        self._pending.append(kept)
        self._pending_bytes += _num_bytes(kept)
        if len(self._pending) >= MAX_PENDING_UPDATES or self._pending_bytes >= MAX_PENDING_BYTES:
            self._fold()

    def _fold(self) -> None:
        while self._pending:
            arrays = self._pending.popleft()
            self._pending_bytes -= _num_bytes(arrays)
            self._count(*map(_to_host, arrays))

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self._settings.items())
        return f"{type(self).__name__}({settings})"


def _num_bytes(arrays: tuple[Any, ...]) -> int:
    return sum(getattr(each, "nbytes", 0) for each in arrays)


def _encoded(total: Any) -> Any:
    return total.encoded() if hasattr(total, "encoded") else copy.copy(total)


def _decoded(zero: Any, saved: Any) -> Any:
    if hasattr(zero, "decoded"):
        return zero.decoded(saved)
    if isinstance(zero, int):
        return int(saved)
    return np.array(saved, np.int64).reshape(zero.shape)
