"""A part of a dataset, and several datasets one after another."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from parhelion.seeds import derive

from ._arrays import check_range, fingerprint, read_array
from ._passes import count_offsets, count_parts, groups, make_order
from ._permutation import Indices
from ._placed import PlacedSampler, check_flag
from ._registry import SAMPLER_REGISTRY
from ._shuffle import count_records

__all__ = ["ResumableConcatSampler", "ResumableSubsetSampler"]


@SAMPLER_REGISTRY.register
class ResumableSubsetSampler(PlacedSampler):
    """The chosen records of a dataset, and no others.

    Args:
        data_source: anything with a length.
        indices: the chosen records. One that is named twice comes twice in an epoch.
        shuffle: whether each epoch has a new random order, or the one of ``indices``.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Attributes:
        shuffle: whether the order is random.

    Raises:
        InvalidTypeError: ``data_source`` has no length, or an argument has a type that cannot work.
        InvalidValueError: an index is no record's, there are none, or a number is out of range.
    """

    def __init__(
        self, data_source: Sized, indices: npt.ArrayLike, shuffle: bool = True, seed: int = 0, batch_size: int = 1
    ) -> None:
        count = count_records(data_source, "data_source")
        chosen = read_array(indices, "indices", "iu", "integers, the chosen records")
        # A copy: what the caller does to the array later must not change the order.
        self._chosen: Indices = np.array(check_range(chosen, count, "indices"))
        super().__init__(len(self._chosen), seed, batch_size)
        self.data_source = data_source
        self.shuffle = check_flag(shuffle, "shuffle")
        self._order = make_order(self._size, derive(self._seed, "subset") if self.shuffle else None)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        return {"indices": fingerprint(self._chosen), "shuffle": self.shuffle}

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        return self._chosen[self._order(epoch, places)]


@SAMPLER_REGISTRY.register
class ResumableConcatSampler(PlacedSampler):
    """All records of several datasets, one dataset after another.

    Indices are those of the concatenation: record i of dataset j is ``sizes[0] + ... + sizes[j - 1] + i``.

    Args:
        data_source: a concatenation (an object with a list ``datasets``), or a list of datasets or of their sizes.
        shuffle: whether each dataset has a new random order in each epoch, or its own. To shuffle all of them
            together, use :class:`ResumableRandomSampler`.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Attributes:
        sizes: records of each dataset.
        shuffle: whether the orders are random.

    Raises:
        InvalidTypeError: ``data_source`` is no concatenation, or an argument has a type that cannot work.
        InvalidValueError: a dataset is empty, or a number is out of range.
    """

    def __init__(self, data_source: Any, shuffle: bool = True, seed: int = 0, batch_size: int = 1) -> None:
        self.sizes = count_parts(data_source)
        super().__init__(sum(self.sizes), seed, batch_size)
        self.data_source = data_source
        self.shuffle = check_flag(shuffle, "shuffle")
        self._offsets: Indices = np.array(count_offsets(self.sizes), np.int64)
        keys = [derive(self._seed, "concat", number) if self.shuffle else None for number in range(len(self.sizes))]
        self._orders = [make_order(size, key) for size, key in zip(self.sizes, keys, strict=True)]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        return {"sizes": list(self.sizes), "shuffle": self.shuffle}

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        if not self.shuffle:
            return places
        out = np.empty(len(places), np.int64)
        which = np.searchsorted(self._offsets, places, side="right").astype(np.int64) - 1
        for number, chosen in groups(which):
            start = self._offsets[number]
            out[chosen] = self._orders[number](epoch, places[chosen] - start) + start
        return out
