"""What every backend's loader does, as a test class to derive from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from parhelion.data import DataLoaderParams, DatasetSplit, create_loader
from parhelion.errors import RecordError
from parhelion.sampling import ResumableSamplerType
from parhelion.seeds import sample_rng

from ._claims import claim, claim_raises
from ._compare import first_difference
from ._loaders import check_loader_resumes

__all__ = ["LoaderContract"]


class _Points:
    """Records with their index and numbers drawn from every source; one of them may fail."""

    def __init__(self, size: int, failing: int = -1) -> None:
        self.size = size
        self.failing = failing

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.failing:
            raise LookupError(f"no record {index}")
        legacy = random.random() + np.random.rand()  # noqa: NPY002 - transforms draw from these too
        return {"index": index, "noise": sample_rng().standard_normal(3, np.float32), "legacy": np.float64(legacy)}


class LoaderContract(ABC):
    """What a loader delivers. Derive a ``TestLoader`` and give ``make_loader``.

    The oracle is the core's own loader: every backend delivers the same records with the same random numbers in the
    same order.
    """

    @abstractmethod
    def make_loader(
        self, dataset: Any, split: DatasetSplit, params: DataLoaderParams
    ) -> tuple[Any, ResumableSamplerType]:
        """Return the backend's loader and sampler, as its ``create_dataloader`` makes them."""

    def read(self, array: Any) -> Any:
        """Return the NumPy array of what a batch holds."""
        return np.asarray(array)

    def test_records_order_and_random_numbers_are_the_core_s(self) -> None:
        """For every split, shuffled or not, in one epoch after another."""
        for split in DatasetSplit:
            for shuffle in (True, False):
                params = DataLoaderParams(batch_size=4, shuffle=shuffle, random_seed=7)
                name = f"{split.name.lower()} split, shuffle {shuffle}"
                expected = list(self._epochs(*create_loader(_Points(11), split, params), 3))
                self._claim_same(expected, list(self._epochs(*self._make(11, split, params), 3)), name)

    def test_an_epoch_delivers_every_record_once(self) -> None:
        """The last batch is shorter; ``len`` counts it."""
        loader, sampler = self._make(11, DatasetSplit.TRAIN, DataLoaderParams(batch_size=4, shuffle=True))
        epochs = [[batch["index"].tolist() for batch in epoch] for epoch in self._epochs(loader, sampler, 2)]
        for number, batches in enumerate(epochs):
            delivered = sorted(index for batch in batches for index in batch)
            claim(
                delivered == list(range(11)),
                f"epoch {number} should deliver every index below 11 once and delivered {delivered}",
            )
            sizes = [len(batch) for batch in batches]
            claim(sizes == [4, 4, 3], f"batches of 11 records should have the sizes [4, 4, 3] and have {sizes}")
        claim(epochs[0] != epochs[1], f"two epochs should have two orders and have {epochs[0]} both")
        claim(len(loader) == 3, f"len of the loader should be 3 batches and is {len(loader)}")

    def test_drop_last_leaves_the_incomplete_batch_out(self) -> None:
        """And ``len`` does not count it."""
        loader, sampler = self._make(11, DatasetSplit.TRAIN, DataLoaderParams(batch_size=4, drop_last=True))
        sizes = [len(batch["index"]) for batch in next(self._epochs(loader, sampler, 1))]
        claim(sizes == [4, 4], f"with drop_last batches of 11 records should have the sizes [4, 4] and have {sizes}")
        claim(len(loader) == 2, f"len of the loader should be 2 batches and is {len(loader)}")

    def test_workers_change_no_bit(self) -> None:
        """Two workers deliver what this process would."""
        alone, helped = (DataLoaderParams(batch_size=4, shuffle=True, num_workers=number) for number in (0, 2))
        expected = list(self._epochs(*self._make(11, DatasetSplit.TRAIN, alone), 2))
        self._claim_same(expected, list(self._epochs(*self._make(11, DatasetSplit.TRAIN, helped), 2)), "two workers")

    def test_an_epoch_that_was_left_early_leaves_nothing_behind(self) -> None:
        """The next iteration begins with its own first batch."""
        params = DataLoaderParams(batch_size=4, shuffle=True)
        expected = list(self._epochs(*self._make(11, DatasetSplit.TRAIN, params), 2))
        loader, sampler = self._make(11, DatasetSplit.TRAIN, params)
        next(iter(loader))
        self._claim_same(expected, list(self._epochs(loader, sampler, 2)), "after an epoch that was left early")

    def test_a_loader_started_again_anywhere_goes_on_as_if_it_never_stopped(self) -> None:
        """The resume property, with stops anywhere."""
        params = DataLoaderParams(batch_size=4, shuffle=True)
        check_loader_resumes(lambda: self._make(11, DatasetSplit.TRAIN, params), max_examples=10)

    def test_loading_moves_no_stream(self) -> None:
        """Python's and NumPy's generators are where they were before the batches were made."""
        loader, sampler = self._make(11, DatasetSplit.TRAIN, DataLoaderParams(batch_size=4, shuffle=True))
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        expected = random.random(), float(np.random.rand())  # noqa: NPY002
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        list(self._epochs(loader, sampler, 1))
        found = random.random(), float(np.random.rand())  # noqa: NPY002
        claim(found == expected, f"after an epoch Python and NumPy should draw {expected} next and draw {found}")

    def test_a_record_that_fails_is_named(self) -> None:
        """By its sample index, with the original chained."""
        loader, sampler = self.make_loader(
            _Points(11, failing=6), DatasetSplit.TRAIN, DataLoaderParams(batch_size=4, shuffle=True)
        )
        error = claim_raises(RecordError, lambda: list(self._epochs(loader, sampler, 1)), "a dataset that fails")
        claim("6" in str(error), f"the error of a failing record should name its index, 6, and says: {error}")

    def _make(self, size: int, split: DatasetSplit, params: DataLoaderParams) -> tuple[Any, ResumableSamplerType]:
        return self.make_loader(_Points(size), split, params)

    def _epochs(self, loader: Any, sampler: ResumableSamplerType, count: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the batches of each epoch, in NumPy."""
        try:
            for epoch in range(count):
                sampler.set_epoch(epoch)
                yield [{name: self.read(value) for name, value in batch.items()} for batch in loader]
        finally:
            close = getattr(loader, "close", None)
            if callable(close):
                close()

    def _claim_same(self, expected: Any, found: Any, when: str) -> None:
        difference = first_difference(expected, found, "epochs")
        claim(difference is None, f"{when}: {difference}, where the path is epochs[epoch][batch][field]")
