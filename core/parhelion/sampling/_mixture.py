"""Several datasets in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.seeds import derive

from ._passes import Order, count_offsets, count_parts, groups, make_order, take_passes
from ._permutation import Indices
from ._placed import PlacedSampler, check_flag, check_size
from ._proportions import Rota, count_shares
from ._registry import SAMPLER_REGISTRY
from ._shuffle import MAX_SIZE

__all__ = ["ResumableMixtureSampler"]

_EXHAUSTED: Final = ("repeat", "end")


@SAMPLER_REGISTRY.register
class ResumableMixtureSampler(PlacedSampler):
    """Samples of several datasets in turn, in proportions that hold everywhere.

    Of the first k samples of an epoch, dataset j has given ``k * weights[j]`` rounded up or down, for every k. Indices
    are those of the concatenation: record i of dataset j is ``sizes[0] + ... + sizes[j - 1] + i``.

    Each dataset is gone through pass after pass, over the epochs as within one, so that a large one with a small weight
    is used evenly, and no record comes a second time before all others of its dataset have come. With
    ``exhausted="end"`` no record comes twice in an epoch: where an epoch would reach into a second pass, which has
    another order, it begins that pass, and the rest of the one before is left out.

    Args:
        data_source: a concatenation (an object with a list ``datasets``), or a list of datasets or of their sizes.
        weights: a number >= 0 for each dataset. Integers and fractions are met exactly if they have whole proportions
            with a sum of up to 65,536, and so are floats like 0.7; others are rounded to 65,536ths. See ``weights``.
        exhausted: what happens when a dataset has no more records: "repeat", and it begins again, or "end", and the
            epoch ends before that.
        num_samples: samples of an epoch. None means: with "repeat" until every dataset has been gone through, with
            "end" until the first one has.
        shuffle: whether every pass over a dataset has a new random order, or its own.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Attributes:
        sizes: records of each dataset.
        weights: the proportions that are met: a fraction for each dataset, with a sum of 1.
        period: the smallest number of samples in which they are met to the last one.
        exhausted: "repeat" or "end".
        shuffle: whether passes have random orders.

    Raises:
        InvalidTypeError: ``data_source`` is no concatenation, or an argument has a type that cannot work.
        InvalidValueError: a dataset is empty, the weights cannot work, or ``num_samples`` is above what "end" allows.
    """

    def __init__(
        self,
        data_source: Any,
        weights: Sequence[float | Fraction],
        exhausted: str = "repeat",
        num_samples: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        self.sizes = count_parts(data_source)
        self._rota = Rota(_read_shares(weights, len(self.sizes)))
        self.period = self._rota.period
        self.weights = tuple(Fraction(share, self.period) for share in self._rota.shares)
        if exhausted not in _EXHAUSTED:
            raise InvalidValueError(
                f"exhausted is {exhausted!r}; expected 'repeat' (a dataset without more records begins again) or 'end' "
                "(the epoch ends there)."
            )
        self.exhausted = exhausted
        self.shuffle = check_flag(shuffle, "shuffle")
        super().__init__(self._choose_size(num_samples), seed, batch_size)
        self.data_source = data_source
        self._offsets = count_offsets(self.sizes)
        self._per_epoch = self._rota.counts(self._size)
        self._orders = [self._make_order(number, size) for number, size in enumerate(self.sizes)]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        return {
            "sizes": list(self.sizes),
            "weights": [str(weight) for weight in self.weights],
            "exhausted": self.exhausted,
            "shuffle": self.shuffle,
        }

    def counts(self, stop: int) -> list[int]:
        """Return how many of the first ``stop`` samples of an epoch come from each dataset."""
        return self._rota.counts(stop)

    def _choose_size(self, num_samples: int | None) -> int:
        """Return the number of samples in an epoch."""
        drawn = [number for number, share in enumerate(self._rota.shares) if share]
        if self.exhausted == "end":
            # The sample that would be one too many, for the dataset where that comes first.
            most = min(self._rota.place(number, self.sizes[number]) for number in drawn)
            if num_samples is not None and num_samples > most:
                raise InvalidValueError(
                    f"num_samples is {num_samples}, and after {most} samples a dataset has no more records; "
                    f"expected at most {most} with exhausted='end'. Lower num_samples, or set exhausted='repeat'."
                )
            return check_size(min(most, MAX_SIZE) if num_samples is None else num_samples, "num_samples")
        if num_samples is None:
            num_samples = max(self._rota.place(number, self.sizes[number] - 1) for number in drawn) + 1
            if num_samples > MAX_SIZE:
                raise InvalidValueError(
                    f"num_samples is None, which would be {num_samples} to go through every dataset; expected at most "
                    "2**62. Pass num_samples, or exhausted='end'."
                )
        return check_size(num_samples, "num_samples")

    def _make_order(self, number: int, size: int) -> Order:
        return make_order(size, derive(self._seed, "mixture", number) if self.shuffle else None)

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        who, numbers = self._rota.turns(places)
        out = np.empty(len(places), np.int64)
        for number, chosen in groups(who):
            out[chosen] = self._of_dataset(number, epoch, numbers[chosen]) + self._offsets[number]
        return out

    def _of_dataset(self, number: int, epoch: int, numbers: Indices) -> Indices:
        """Return an epoch's samples of one dataset, as its own indices."""
        size, each = self.sizes[number], self._per_epoch[number]
        before = epoch * each
        if self.exhausted == "end" and self.shuffle:
            # Two passes have different orders, so an epoch that reached into a second one could repeat a record.
            passes, rest = divmod(epoch, size // max(each, 1))
            before = passes * size + rest * each
        return take_passes(self._orders[number], size, before, numbers)


def _read_shares(weights: Any, count: int) -> list[int]:
    try:
        given = [*weights]
    except TypeError:
        raise InvalidTypeError(f"weights is {weights!r}; expected a list with a number for each dataset.") from None
    if len(given) != count:
        raise InvalidValueError(
            f"weights has {len(given)} values and data_source {count} datasets; expected one for each. "
            "0 leaves a dataset out."
        )
    return count_shares(given)
