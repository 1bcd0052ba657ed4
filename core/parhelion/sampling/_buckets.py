"""Batches of records of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidValueError
from parhelion.seeds import derive

from ._arrays import fingerprint, read_per_record
from ._passes import groups
from ._permutation import Indices, Permutation
from ._placed import PlacedSampler, check_flag
from ._position import check_count
from ._registry import SAMPLER_REGISTRY
from ._shuffle import Shuffle, count_records

__all__ = ["ResumableBucketSampler"]

_CHUNKS: Final = (
    100  # of a window; the padding is then about a hundredth of that of random batches, or the longest one's
)


@SAMPLER_REGISTRY.register
class ResumableBucketSampler(PlacedSampler):
    """Every record of a dataset once per epoch, with records of similar length next to each other.

    The random order of an epoch is cut into windows. Each window is sorted by length, and cut into chunks; its
    chunks come in random order. So a chunk has similar lengths, and an epoch no order of lengths. Nothing larger than
    a window is ever sorted or kept.

    A batch has similar lengths if it is a chunk, or if several of them make one chunk. With several ranks, choose the
    size of the global batch: then no rank waits for a longer batch of another.

    Args:
        data_source: anything with a length.
        lengths: a number for each record, or a function from ``data_source`` to them. An array is not copied (it may be
            a memory map); leave it as it is.
        window: records of a window, a multiple of ``chunk_size``; 100 chunks if None.
        chunk_size: records of a chunk; ``batch_size`` if None. It is part of the order: pass it where another batch
            size may be used later in the same run.
        shuffle: whether each epoch has a new random order. Otherwise windows are cut from the dataset as it is, and
            lengths ascend in each.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.

    Attributes:
        window: records of a window.
        chunk_size: records of a chunk.
        shuffle: whether the order is random.

    Raises:
        InvalidTypeError: ``data_source`` has no length, ``lengths`` are no numbers, or another argument has a
            type that cannot work.
        InvalidValueError: there is not one length for each record, ``window`` is no multiple of ``chunk_size``, or a
            number is out of range.
    """

    def __init__(
        self,
        data_source: Sized,
        lengths: npt.ArrayLike | Callable[[Any], npt.ArrayLike],
        window: int | None = None,
        chunk_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        super().__init__(count_records(data_source, "data_source"), seed, batch_size)
        self.data_source = data_source
        self._lengths = read_per_record(lengths, data_source, self._size, "lengths")
        chunk_size = self.batch_size if chunk_size is None else chunk_size
        self.chunk_size = check_count(chunk_size, "chunk_size", 1, "It counts the records of similar length.")
        window = _CHUNKS * self.chunk_size if window is None else window
        self.window = check_count(window, "window", 1, "It counts the records that are sorted together.")
        if self.window % self.chunk_size:
            raise InvalidValueError(
                f"window is {window}; expected a multiple of {self.chunk_size}, the chunk_size. "
                f"Pass window={self.window + -self.window % self.chunk_size}."
            )
        self.shuffle = check_flag(shuffle, "shuffle")
        self._key = derive(self._seed, "bucket")
        self._order = Shuffle(self._size, self._key)
        self._latest: tuple[tuple[int, int], Indices] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        return {
            "lengths": fingerprint(self._lengths),
            "window": self.window,
            "chunk_size": self.chunk_size,
            "shuffle": self.shuffle,
        }

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        windows = places // self.window
        out = np.empty(len(places), np.int64)
        for window, chosen in groups(windows):
            out[chosen] = self._get_window(epoch, window)[places[chosen] - window * self.window]
        return out

    def _get_window(self, epoch: int, window: int) -> Indices:
        latest = self._latest
        if latest is None or latest[0] != (epoch, window):
            latest = self._latest = ((epoch, window), self._arrange(epoch, window))
        return latest[1]

    def _arrange(self, epoch: int, window: int) -> Indices:
        """Return the records of a window in their final order."""
        start = window * self.window
        stop = min(start + self.window, self._size)
        if not self.shuffle:
            records = np.arange(start, stop, dtype=np.int64)
            return records[np.argsort(self._lengths[start:stop], kind="stable")]
        records = self._order(epoch).indices(start, stop)
        records = records[np.argsort(self._lengths[records], kind="stable")]
        return self._deal(records, derive(self._key, "window", epoch, window))

    def _deal(self, records: Indices, key: int) -> Indices:
        """Return sorted records with their chunks in random order; one that is not full is any of them, and last."""
        count, rest = divmod(len(records), self.chunk_size)
        cut = derive(key, "rest") % (count + 1) * self.chunk_size
        full = np.concatenate([records[:cut], records[cut + rest :]]).reshape(count, self.chunk_size)
        order = Permutation(count, derive(key, "chunks")).indices(0, count)
        return np.concatenate([full[order].ravel(), records[cut : cut + rest]])
