"""Records drawn by weight, with replacement or without."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidValueError
from parhelion.seeds import derive

from ._arrays import fingerprint, read_per_record
from ._network import hash_words, mix
from ._permutation import Indices
from ._placed import PlacedSampler, check_flag, check_size
from ._registry import SAMPLER_REGISTRY
from ._shuffle import count_records

__all__ = ["ResumableWeightedSampler"]

_Floats = npt.NDArray[np.float64]

_CHUNK: Final = 1 << 15
_LEAST_SUM: Final = 1e-290  # a 2**53rd of less could be rounded to 0
_LN_2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476
_ODD: Final = [1 / (2 * k + 1) for k in range(11)]  # the last term of the series is below half a unit in the last place


@SAMPLER_REGISTRY.register
class ResumableWeightedSampler(PlacedSampler):
    """Records of a dataset at random, a record with twice the weight twice as often.

    With replacement every place draws for itself: record i with probability ``weights[i] / sum(weights)``. A
    record may come several times, and another not at all. It takes 8 bytes per record, and a logarithmic
    search per sample.

    Without replacement no record comes twice in an epoch, and each place draws among those that are left, by
    their weights (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing
    Letters 97, 2006). The order of an epoch is made at once and kept: 8 bytes per record beside the weights, and
    for a moment twice that.

    A record of weight 0 never comes. Sums are made in float64: a weight below 1e-16 of the sum may count as 0.

    Args:
        data_source: anything with a length.
        weights: a number >= 0 for each record, or a function from ``data_source`` to them.
        num_samples: samples of an epoch. None means as many as there are records; without replacement, as have
            a weight above 0.
        replacement: whether a record may come again in the same epoch.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Raises:
        InvalidTypeError: ``data_source`` has no length, ``weights`` are no numbers, or another argument has a
            type that cannot work.
        InvalidValueError: a weight is negative or not finite, all are 0, there is not one for each record, or
            ``num_samples`` is above what there is without replacement.
    """

    def __init__(
        self,
        data_source: Sized,
        weights: npt.ArrayLike | Callable[[Any], npt.ArrayLike],
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        count = count_records(data_source, "data_source")
        table = _read_weights(weights, data_source, count)
        self.replacement = check_flag(replacement, "replacement")
        if num_samples is None:
            num_samples = count if replacement else int(np.count_nonzero(table))
        super().__init__(check_size(num_samples, "num_samples"), seed, batch_size)
        self.data_source = data_source
        if self.replacement:
            # Sums in this order, which no release of NumPy changes: each is the one before plus a weight.
            self._table = np.cumsum(table)
        else:
            _check_enough(self._size, table)
            self._table = table
        self._latest: tuple[int, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        return {"weights": fingerprint(self._table), "replacement": self.replacement}

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        if not self.replacement:
            order: Indices = self._get(epoch, self._sort)
            return order[places]
        targets = _uniforms(hash_words(self._get(epoch, self._get_state), places)) * self._table[-1]
        # In ascending order they share what they touch of a large table, which is several times as fast.
        order = np.argsort(targets)
        found = np.empty(len(places), np.int64)
        # The first sum that is not below a target, which is above 0 and at most the last sum: that of a weight above 0.
        found[order] = np.searchsorted(self._table, targets[order], side="left")
        return found

    def _get(self, epoch: int, make: Callable[[int], Any]) -> Any:
        latest = self._latest
        if latest is None or latest[0] != epoch:
            latest = self._latest = (epoch, make(epoch))
        return latest[1]

    def _get_state(self, epoch: int) -> int:
        return mix(derive(self.seed, "weighted", epoch))

    def _sort(self, epoch: int) -> Indices:
        """Return the order of an epoch: ascending times of exponential clocks with the weights as rates."""
        state, weights = self._get_state(epoch), self._table
        times = np.empty(len(weights), np.float64)
        for start in range(0, len(weights), _CHUNK):
            stop = min(start + _CHUNK, len(weights))
            uniforms = _uniforms(hash_words(state, np.arange(start, stop, dtype=np.int64)))
            with np.errstate(divide="ignore", over="ignore"):
                np.divide(-_log(uniforms), weights[start:stop], out=times[start:stop])
        # Weight 0 is never; a weight so small that its time is beyond all numbers still comes before.
        times[weights == 0] = np.nan
        return np.argsort(times, kind="stable")[: self._size].astype(np.int64)


def _read_weights(weights: Any, data_source: Sized, count: int) -> _Floats:
    table: _Floats = read_per_record(weights, data_source, count, "weights").astype(np.float64)
    least = float(table.min())
    if least < 0:
        raise InvalidValueError(f"weights has the value {least}; expected numbers >= 0. 0 leaves a record out.")
    with np.errstate(over="ignore"):
        total = float(table.sum())
    if not _LEAST_SUM < total < np.inf:
        raise InvalidValueError(
            f"sum of weights is {total}; expected a finite number above {_LEAST_SUM}. Give some record a weight "
            "above 0, and scale weights that are too large or too small."
        )
    return table


def _check_enough(num_samples: int, weights: _Floats) -> None:
    there = int(np.count_nonzero(weights))
    if num_samples > there:
        raise InvalidValueError(
            f"num_samples is {num_samples} and {there} records have a weight above 0; expected at most as many without "
            "replacement. Lower num_samples, or set replacement=True."
        )


def _uniforms(words: npt.NDArray[np.uint64]) -> _Floats:
    """Return numbers in (0, 1), evenly spread: the middles of 2**52 cells of equal width."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _log(values: _Floats) -> _Floats:
    """Return natural logarithms to a few units in the last place, with the same bits on every machine.

    NumPy's own differ from one kind of CPU to another. Here are only operations that IEEE 754 fixes to the last bit:
    ``log(x) = e log(2) + 2 artanh((m - 1) / (m + 1))`` with ``x = m 2**e``, by the series of artanh.
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2, mantissa)
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    series = np.full_like(ratio, _ODD[-1])
    for coefficient in _ODD[-2::-1]:
        series *= square
        series += coefficient
    logarithms: _Floats = (exponent - low) * _LN_2 + 2 * ratio * series
    return logarithms
